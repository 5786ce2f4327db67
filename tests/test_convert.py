"""Teachers of other libraries answer as they did there; ONNX plays as the agent."""

import io
import json
import pickle
import re
import shlex
import sys
import zipfile
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn as nn
import tyro
from helpers import ROOT, Malicious, load, make_spaces, make_teacher, run_main, save_agent
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.save_util import save_to_pkl
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from evaluate import read_header

convert, ppd = load("convert"), load("ppd_mujoco")
HOPPER = ROOT / "teachers" / "Hopper-v4.safetensors"
MLPS = [
    (PPO, "Pendulum-v1", {"pi": [16], "vf": [8, 8]}, nn.Tanh, 2.5),
    (A2C, "Pendulum-v1", [32, 16], nn.ReLU, None),
    (PPO, "Pendulum-v1", {"pi": [8, 4], "vf": []}, nn.ELU, np.inf),
    (PPO, "CartPole-v1", {"pi": [8], "vf": [32]}, nn.ReLU, 10.0),
    (A2C, "Acrobot-v1", [16], nn.Tanh, None),
]


FRAMES = make_spaces(gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Discrete(6))


def mlp(*sizes, activation=nn.Tanh):
    pairs = zip(sizes, sizes[1:], strict=False)
    layers = [layer for pair in pairs for layer in (nn.Linear(*pair), activation())]
    return nn.Sequential(*layers[:-1])


def named(**networks):
    return {f"{name}.{k}": v for name, n in networks.items() for k, v in n.state_dict().items()}


def torch_bytes(content) -> bytes:
    torch.save(content, buffer := io.BytesIO())
    return buffer.getvalue()


def zip_bytes(members: dict) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sb3_bytes(model) -> bytes:
    model.save(buffer := io.BytesIO())
    return buffer.getvalue()


def saved_policy(env_id) -> bytes:
    """What the policy's own `save` writes, and imitation's."""
    PPO("MlpPolicy", env_id).policy.save(buffer := io.BytesIO())
    return buffer.getvalue()


def statistics_bytes(env_id) -> bytes:
    """What VecNormalize's `save` writes."""
    return pickle.dumps(VecNormalize(DummyVecEnv([lambda: gym.make(env_id)])))


def build(path, env_id="Pendulum-v1", **options):
    """The agent that `convert.py import` would write."""
    return convert.build_agent(convert.Import(str(path), env_id, "out", **options))[1]


def check(agent, obs, outputs, values, std=None):
    """An agent answers raw observations with these means or logits, deviations and values."""
    dist, close = agent.policy(obs), {"rtol": 0, "atol": 1e-5}
    if std is None:
        torch.testing.assert_close(dist.logits, outputs.log_softmax(-1), **close)
    else:
        torch.testing.assert_close(dist.mean, outputs, **close)
        torch.testing.assert_close(dist.stddev, std.expand_as(outputs), **close)
    torch.testing.assert_close(agent.value(obs), values.flatten(), **close)


@torch.no_grad()
def check_sb3(agent, model, obs, seen):
    dist = model.policy.get_distribution(seen).distribution
    parts = (dist.mean, dist.stddev) if hasattr(dist, "loc") else (dist.logits, None)
    check(agent, obs, parts[0], model.policy.predict_values(seen), parts[1])


@pytest.mark.parametrize(("algorithm", "env_id", "net_arch", "activation", "clip"), MLPS)
def test_sb3_mlps_answer_alike(algorithm, env_id, net_arch, activation, clip, tmp_path):
    envs, options = DummyVecEnv([lambda: Monitor(gym.make(env_id))]), {}
    if clip:
        envs = VecNormalize(envs, clip_obs=clip, epsilon=1e-3)
        options = {"vecnormalize": str(tmp_path / "normalize.pkl")}
    networks = {"net_arch": net_arch, "activation_fn": activation}
    model = algorithm("MlpPolicy", envs, n_steps=64, policy_kwargs=networks, seed=1)
    model.learn(500)
    if env_id == "Pendulum-v1":
        model.policy.log_std.data.uniform_(-1, 1)
    model.save(tmp_path / "model.zip")
    if clip:
        envs.save(options["vecnormalize"])
    agent = build(tmp_path / "model.zip", env_id, **options)
    obs = np.random.default_rng(0).normal(size=(256, *envs.observation_space.shape)) * 3
    seen = torch.tensor(envs.normalize_obs(obs) if clip else obs).float()
    check_sb3(agent, model, obs, seen)
    assert (seen.abs().max() > 2.5) == (clip != 2.5)


@pytest.mark.parametrize("share", [True, False])
def test_sb3_cnns_answer_alike(share, tmp_path):
    model = A2C("CnnPolicy", FRAMES, policy_kwargs={"share_features_extractor": share}, seed=1)
    for parameter in model.policy.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    model.save(tmp_path / "model.zip")
    frames = torch.randint(256, (256, 4, 84, 84), dtype=torch.uint8)
    check_sb3(build(tmp_path / "model.zip", "PongNoFrameskip-v4"), model, frames, frames)


@pytest.fixture(scope="module")
def pendulum():
    """The members of a small SB3 agent's zip."""
    model = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, seed=1)
    with zipfile.ZipFile(io.BytesIO(sb3_bytes(model))) as archive:
        return {name: archive.read(name) for name in ("data", "policy.pth")}


PREFIXES = ["_orig_mod.", "module.", "module._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_names_of_compiled_and_parallel_modules(prefix, pendulum, tmp_path):
    """A prefix of the whole policy, or inside of it, changes nothing."""
    weights = torch.load(io.BytesIO(pendulum["policy.pth"]), weights_only=True)
    cleanrl = named(actor_mean=mlp(3, 8, 1), critic=mlp(3, 8, 1))
    cleanrl |= {"actor_logstd": torch.zeros(1, 1)}
    rsl_rl = named(actor=mlp(3, 8, 1), critic=mlp(3, 8, 1)) | {"std": torch.ones(1)}
    outside = lambda weights: {prefix + name: value for name, value in weights.items()}
    inside = lambda weights: {name.replace(".", f".{prefix}", 1): v for name, v in weights.items()}
    sb3 = lambda weights: zip_bytes({**pendulum, "policy.pth": torch_bytes(weights)})
    for weights, write in (
        (weights, sb3),
        (cleanrl, torch_bytes),
        (rsl_rl, lambda weights: torch_bytes({"model_state_dict": weights})),
    ):
        agents = []
        for rename in (dict, outside, inside):
            (tmp_path / "model").write_bytes(write(rename(weights)))
            agents.append(build(tmp_path / "model").state_dict())
        for agent in agents[1:]:
            assert all(torch.equal(agents[0][name], agent[name]) for name in agent)


@pytest.mark.filterwarnings("ignore:.*np.bool8:DeprecationWarning")
def test_numbers_of_a_pickle_are_numpys():
    """All plain kinds, orders and protocols as NumPy reads them; other kinds are refused."""
    random = np.random.default_rng(0)
    for kind in ("?", "i1", "<i2", ">i4", "i8", "u1", "<u2", ">u4", "u8", "f2", "<f4", ">f8"):
        array = (100 * random.random((3, 4))).astype(kind)
        values = [array, array[:, ::2], np.asfortranarray(array), array[0, 0], array[:0], array[0]]
        for value, protocol in ((v, p) for v in values for p in (3, 4, 5)):
            read = convert.to_array(convert.read_pickle(pickle.dumps(value, protocol)))
            np.testing.assert_array_equal(read, value)
            assert read.dtype == value.dtype
    assert convert.to_array(convert.read_pickle(pickle.dumps(2.5))) == 2.5
    odd = [np.array([None]), np.array(["a"]), np.zeros(1, complex), np.zeros(1, "M8[s]")]
    odd += [np.zeros(1, [("a", "f8")]), np.datetime64(1, "s"), np.zeros(1, "V3")]
    for value in odd:
        with pytest.raises((ValueError, TypeError)):
            convert.to_array(convert.read_pickle(pickle.dumps(value)))


def import_pendulum(content, folder, monkeypatch, capsys, *flags) -> str:
    """What `convert.py import` prints for this file."""
    (folder / "model").write_bytes(content)
    command = ["import", folder / "model", "--env-id", "Pendulum-v1", "--episodes", 1]
    command += ["--out", folder / "teacher.safetensors", *flags]
    assert run_main(convert, command, monkeypatch) == 0
    return capsys.readouterr().out


def cleanrl_bytes(log_std) -> bytes:
    networks = named(actor_mean=mlp(3, 8, 1), critic=mlp(3, 8, 1))
    return torch_bytes(networks | {"actor_logstd": torch.tensor([[log_std]])})


def test_cleanrl_without_its_statistics_is_warned_of(tmp_path, monkeypatch, capsys):
    """The recipe in the warning is one that works."""
    content = cleanrl_bytes(0.0)
    printed = import_pendulum(content, tmp_path, monkeypatch, capsys)
    assert "WARNING: CleanRL normalises observations" in printed
    assert "written. Import it again with --vecnormalize; only if" in printed.splitlines()[-1]

    env = gym.wrappers.NormalizeObservation(gym.make("Pendulum-v1"))
    clip = lambda obs: obs.clip(-10, 10)
    env = gym.wrappers.TransformObservation(env, clip, env.observation_space)
    envs = gym.vector.SyncVectorEnv([lambda: gym.wrappers.NormalizeReward(env)])
    envs.reset(seed=0)
    monkeypatch.chdir(tmp_path)
    exec(re.search("`(.+)`", printed)[1], {"envs": envs, "np": np})
    flags = ["--vecnormalize", "stats.npz"]
    printed = import_pendulum(content, tmp_path, monkeypatch, capsys, *flags)
    assert "WARNING" not in printed and "written; distil it with: " in printed.splitlines()[-1]
    agent, _ = ppd.load_mujoco_agent(tmp_path / "teacher.safetensors")
    np.testing.assert_array_equal(agent.obs_mean, env.get_wrapper_attr("obs_rms").mean)


@pytest.mark.parametrize(("std", "quiet"), [(0.08, True), (0.19, True), (0.21, False), (1, False)])
def test_the_next_command_suits_the_teachers_sigma(std, quiet, tmp_path, monkeypatch, capsys):
    """A small σ is printed with the flag that such teachers need."""
    np.savez(tmp_path / "stats.npz", mean=np.zeros(3), var=np.ones(3))
    flags = ["--vecnormalize", tmp_path / "stats.npz"]
    content = cleanrl_bytes(float(np.log(std)))
    printed = import_pendulum(content, tmp_path, monkeypatch, capsys, *flags)
    assert f"σ of its actions: {std}\n" in printed
    assert ("can be slow with a σ this small" in printed) == quiet
    command = printed.splitlines()[-1].partition("distil it with: ")[2]
    args = tyro.cli(ppd.Args, args=shlex.split(command)[2:])
    assert args.env_id == "Pendulum-v1" and args.ratio_gradient is not quiet
    assert args.teacher == str(tmp_path / "teacher.safetensors")


def test_a_range_of_sigmas_and_none(capsys):
    """Of several joints the middle one counts; discrete actions have none."""
    flags = lambda *std: convert.distil_flags(convert.Teacher("x", log_std=torch.tensor(std).log()))
    assert flags(0.05, 0.08, 0.9) == " --no-ratio-gradient"
    assert "σ of its actions: 0.05 to 0.9\n" in capsys.readouterr().out
    assert flags(0.05, 0.8, 0.9) == ""
    capsys.readouterr()
    assert convert.distil_flags(convert.Teacher("x")) == "" == capsys.readouterr().out


ENVIRONMENT = """
import gymnasium as gym
import numpy as np

class Timed(gym.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)

    def reset(self, **options):
        self.steps = 0
        return super().reset(**options)

    def step(self, action):
        self.steps += 1
        return super().step(action)

    def observation(self, obs):
        return np.append(obs, 1 - self.steps / 200)

make = lambda **options: Timed(gym.make("Pendulum-v1", **options).unwrapped)
gym.register("TimedPendulum-v0", make, max_episode_steps=200)
"""


def test_a_time_feature_is_played_through_an_environment_of_ones_own(
    tmp_path, monkeypatch, capsys, refused
):
    """As the refusal says; evaluate.py then asks for the module, which no file names."""
    (tmp_path / "timed_pendulum.py").write_text(ENVIRONMENT)
    monkeypatch.syspath_prepend(tmp_path)
    model = PPO("MlpPolicy", make_spaces(*timed_spaces()), policy_kwargs={"net_arch": [8]})
    (tmp_path / "model.zip").write_bytes(sb3_bytes(model))
    command = ["import", tmp_path / "model.zip", "--out", tmp_path / "teacher.safetensors"]
    command += ["--episodes", 1, "--env-id"]
    sentence = "observes 4 numbers, and Pendulum-v1 has 3: one more, as of a time feature; give an"
    refused(convert, [*command, "Pendulum-v1"], sentence, "--env-id your_module:Id")
    assert run_main(convert, [*command, "timed_pendulum:TimedPendulum-v0"], monkeypatch) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "--env-id timed_pendulum:TimedPendulum-v0 --teacher" in last

    gym.registry.pop("TimedPendulum-v0")  # as in another process
    monkeypatch.delitem(sys.modules, "timed_pendulum")
    evaluate, scored = load("evaluate"), [tmp_path / "teacher.safetensors", "--episodes", 1]
    advice = "give the module that registers it, --env-id your_module:TimedPendulum-v0"
    refused(evaluate, scored, "Gymnasium has no environment TimedPendulum-v0", advice)
    flags = ["--env-id", "timed_pendulum:TimedPendulum-v0"]
    assert run_main(evaluate, [*scored, *flags], monkeypatch) == 0
    assert "| stable-baselines3 |" in capsys.readouterr().out
    gym.registry.pop("TimedPendulum-v0")
    monkeypatch.delitem(sys.modules, "timed_pendulum")


def timed_spaces():
    return gym.spaces.Box(-np.inf, np.inf, (4,)), gym.spaces.Box(-2, 2, (1,))


def test_an_old_id_of_other_sizes_leads_to_an_environment_of_ones_own(tmp_path, refused):
    """Ant-v3 observed 111 numbers, and is gone: the id it was trained on is no way out."""
    networks = named(actor_mean=mlp(111, 8, 8), critic=mlp(111, 8, 1))
    torch.save(networks | {"actor_logstd": torch.zeros(1, 8)}, tmp_path / "ant")
    command = ["import", tmp_path / "ant", "--out", tmp_path / "out", "--env-id"]
    line = refused(convert, [*command, "Ant-v3"], "observes 111 numbers", "replaces Ant-v3, has 27")
    assert "trained on" not in line and "--env-id your_module:Id" in line
    line = refused(convert, [*command, "Ant-v4"], "observes 111 numbers, and Ant-v4 has 27")
    assert "give the id that it was trained on, or an environment of your own" in line


GAME_IDS = ["ALE/Breakout-v5", "BreakoutDeterministic-v4", "Breakout-v4", "ALE/Breakout-ram-v5"]
GAME_IDS += ["BreakoutNoFrameskip-v0", "ALE/BreakoutNoFrameskip-v4"]


@pytest.mark.parametrize("env_id", GAME_IDS)
def test_another_id_of_a_game_leads_to_the_one_that_is_played(env_id, tmp_path, refused):
    (tmp_path / "model.zip").write_bytes(sb3_bytes(A2C("CnnPolicy", FRAMES)))
    command = ["import", tmp_path / "model.zip", "--env-id", env_id, "--out", tmp_path / "out"]
    refused(convert, command, "give an Atari id like BreakoutNoFrameskip-v4")


def test_images_are_scaled_only_where_there_are_images(tmp_path):
    """normalize_images=False changes nothing for vectors."""
    options = {"net_arch": [8], "normalize_images": False}
    model = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs=options, seed=1)
    (tmp_path / "model.zip").write_bytes(sb3_bytes(model))
    obs = torch.randn(64, 3)
    check_sb3(build(tmp_path / "model.zip"), model, obs, obs)


def test_an_environment_that_gives_nan_is_one_line(pendulum, tmp_path, monkeypatch, refused):
    (tmp_path / "model.zip").write_bytes(zip_bytes(pendulum))
    step = gym.envs.classic_control.PendulumEnv.step
    nan = lambda env, action: (step(env, action)[0], np.nan, False, False, {})
    monkeypatch.setattr(gym.envs.classic_control.PendulumEnv, "step", nan)
    command = ["import", tmp_path / "model.zip", "--env-id", "Pendulum-v1", "--episodes", 2]
    refused(convert, [*command, "--out", tmp_path / "out"], "gave a NaN or infinite reward")
    assert not (tmp_path / "out").exists()


def test_the_next_command_names_the_module_and_quotes_the_file(
    pendulum, tmp_path, monkeypatch, capsys
):
    """An environment that a module registers is known by module:Id alone, in each process."""
    made, make = [], ppd.MujocoVectorEnv
    record = lambda env_id, *rest: made.append(env_id) or make(env_id, *rest)
    monkeypatch.setattr(ppd, "MujocoVectorEnv", record)
    (tmp_path / "model.zip").write_bytes(zip_bytes(pendulum))
    command = ["import", tmp_path / "model.zip", "--env-id", "gymnasium:Pendulum-v1"]
    command += ["--out", tmp_path / "a teacher.safetensors", "--episodes", 1]
    assert run_main(convert, command, monkeypatch) == 0
    flags = f"--env-id gymnasium:Pendulum-v1 --teacher '{tmp_path}/a teacher.safetensors'"
    assert capsys.readouterr().out.endswith(f"python ppd_mujoco.py {flags}\n")
    header = read_header(tmp_path / "a teacher.safetensors")
    assert made == ["gymnasium:Pendulum-v1"] and header["env_id"] == "Pendulum-v1"


def test_old_sb3_shares_its_first_layers(pendulum, tmp_path):
    torch.manual_seed(0)
    shared, policy, value = mlp(3, 6, 1)[:2], mlp(6, 5, 1), mlp(6, 4, 1)
    parts = {"mlp_extractor.shared_net": shared, "mlp_extractor.policy_net": policy[:2]}
    parts |= {"mlp_extractor.value_net": value[:2], "action_net": policy[2], "value_net": value[2]}
    weights = torch_bytes(named(**parts) | {"log_std": torch.tensor([0.3])})
    (tmp_path / "old.zip").write_bytes(zip_bytes({**pendulum, "policy.pth": weights}))
    obs = torch.randn(256, 3)
    latent = shared(obs)
    check(build(tmp_path / "old.zip"), obs, policy(latent), value(latent), torch.tensor(0.3).exp())


def test_cleanrl_answers_alike(tmp_path):
    torch.manual_seed(0)
    actor, critic, obs = mlp(3, 64, 64, 1), mlp(3, 64, 64, 1), torch.randn(256, 3) * 3
    path = tmp_path / "agent.cleanrl_model"
    log_std = torch.full((1, 1), -0.4)
    torch.save(named(actor_mean=actor, critic=critic) | {"actor_logstd": log_std}, path)
    mean, var = np.array([0.5, -1, 2]), np.array([0.2, 1, 9])
    np.savez(tmp_path / "statistics.npz", mean=mean, var=var, clip=1.5)
    agent = build(path, vecnormalize=str(tmp_path / "statistics.npz"))
    seen = torch.tensor(((obs.numpy() - mean) / np.sqrt(var + 1e-8)).clip(-1.5, 1.5)).float()
    check(agent, obs, actor(seen), critic(seen), log_std.exp())

    actor, critic, obs = mlp(4, 64, 64, 2), mlp(4, 64, 64, 1), torch.randn(256, 4) * 30
    torch.save(named(actor=actor, critic=critic), path)
    check(build(path, "CartPole-v1"), obs, actor(obs), critic(obs))  # nothing clips at 10

    cnn = load("ppd_atari").make_nature_cnn((4, 84, 84), (32, 64, 64), 512)
    network, actor, critic = nn.Sequential(*cnn[0], cnn[1], cnn[2]), mlp(512, 6), mlp(512, 1)
    torch.save(named(network=network) | named(actor=actor[0], critic=critic[0]), path)
    frames = torch.randint(256, (64, 4, 84, 84), dtype=torch.uint8)
    seen = network(frames / 255)
    check(build(path, "PongNoFrameskip-v4"), frames, actor(seen), critic(seen))


def statistics(size):
    std = torch.rand(1, size) + 0.1
    return {"_mean": torch.randn(1, size), "_var": std**2, "_std": std, "count": torch.tensor(9)}


@pytest.mark.parametrize("critic_size", [3, 5])
@pytest.mark.parametrize("version", ["1", "2.0", "2.3", "3", "4", "5"])
def test_rsl_rl_answers_alike(version, critic_size, tmp_path, capsys):
    torch.manual_seed(0)
    actor, critic = mlp(3, 8, 6, 1, activation=nn.ELU), mlp(critic_size, 4, 1, activation=nn.ELU)
    of_actor, of_critic, obs = statistics(3), statistics(critic_size), torch.randn(256, 3)
    deviation = {"std": torch.tensor([0.7])}
    if version in ("2.3", "3"):
        deviation = {"log_std": torch.tensor([0.7]).log()}
    elif version == "5":
        deviation = {"distribution.std_param": torch.tensor([0.7])}
    content = {"model_state_dict": named(actor=actor, critic=critic) | deviation}
    beside = lambda name, values: {f"{name}obs_normalizer.{k}": v for k, v in values.items()}
    if version in ("2.0", "2.3"):
        kind = "critic" if version == "2.0" else "privileged"
        content |= {"obs_norm_state_dict": of_actor, f"{kind}_obs_norm_state_dict": of_critic}
    elif version == "3":
        both = beside("actor_", of_actor) | beside("critic_", of_critic)
        content["model_state_dict"] |= both
    elif version in ("4", "5"):
        content = {"actor_state_dict": named(mlp=actor) | beside("", of_actor) | deviation}
        content |= {"critic_state_dict": named(mlp=critic) | beside("", of_critic)}
    torch.save(content | {"iter": 100, "infos": None}, tmp_path / "model_100.pt")
    agent = build(tmp_path / "model_100.pt")
    scale = lambda of: obs if version == "1" else (obs - of["_mean"]) / (of["_std"] + 0.01)
    if critic_size == 5:
        assert agent.critic is None
        assert "left out" in capsys.readouterr().out
        agent.critic = critic = nn.Linear(3, 1)  # so that its policy can be compared
    values = critic(agent.normalize(obs) if critic_size == 5 else scale(of_critic))
    check(agent, obs, actor(scale(of_actor)), values, torch.tensor(0.7))


def test_wrong_files_are_refused(pendulum, tmp_path, refused):
    weights = torch.load(io.BytesIO(pendulum["policy.pth"]), weights_only=True)
    bomb, newer_bomb = (pickle.dumps(Malicious(tmp_path / "created"), n) for n in (2, 4))
    whole, key = zip_bytes(pendulum), "mlp_extractor.policy_net.0.bias"

    def changed(**changes):
        data = json.loads(pendulum["data"]) | changes
        return zip_bytes({**pendulum, "data": json.dumps(data)})

    def weighing(content):
        return zip_bytes({**pendulum, "policy.pth": torch_bytes(content)})

    def cleanrl(size):
        networks = named(actor_mean=mlp(size, 8, 1), critic=mlp(size, 8, 1))
        return torch_bytes(networks | {"actor_logstd": torch.zeros(1, 1)})

    module = "sb3_contrib.common.{}.policies"
    frames = sb3_bytes(A2C("CnnPolicy", FRAMES))
    headless = {k: v for k, v in weights.items() if k != "action_net.bias"}
    memory = {"model_state_dict": {"memory_a.rnn.bias": torch.zeros(1)}}
    student = named(student=mlp(3, 8, 1), teacher=mlp(3, 8, 1)) | {"std": torch.ones(1)}
    np.savez(arrays := io.BytesIO(), mean=np.zeros(3), var=np.ones(3))
    raw_frames = sb3_bytes(A2C("CnnPolicy", FRAMES, policy_kwargs={"normalize_images": False}))
    beta = {"actor_state_dict": named(mlp=mlp(3, 1)), "critic_state_dict": {}}
    cases = [
        (b"", "Pendulum-v1", "not a whole torch file"),
        (b"no model, but text", "Pendulum-v1", "not a whole torch file"),
        (whole[: len(whole) // 2], "Pendulum-v1", "not a whole torch file"),
        (whole.replace(b"PK\x01\x02", b"gone"), "Pendulum-v1", "not a whole torch file"),
        (whole.replace(b"n_steps", b"\xff_steps"), "Pendulum-v1", "damaged"),
        (zip_bytes({"data": "{}"}), "Pendulum-v1", "policy.pth"),
        (zip_bytes({**pendulum, "policy.pth": bomb}), "Pendulum-v1", "io.open"),
        (bomb, "Pendulum-v1", "io.open"),
        (newer_bomb, "Pendulum-v1", "objects"),
        (zip_bytes({"policy/code/model.py": "", "policy/data.pkl": ""}), "Any-v1", "TorchScript"),
        (sb3_bytes(DQN("MlpPolicy", "CartPole-v1", buffer_size=10)), "CartPole-v1", "dqn"),
        (sb3_bytes(SAC("MlpPolicy", "Pendulum-v1", buffer_size=10)), "Pendulum-v1", "sac"),
        (changed(policy_class={"__module__": module.format("maskable")}), "Any-v1", "maskable"),
        (changed(policy_class={"__module__": module.format("recurrent")}), "Any-v1", "recurrent"),
        (sb3_bytes(A2C("MlpPolicy", "Pendulum-v1", use_sde=True)), "Pendulum-v1", "gSDE"),
        (changed(policy_kwargs={"activation_fn": "<class 'SiLU'>"}), "Pendulum-v1", "silu"),
        (changed(policy_kwargs={"activation_fn": "functools.partial"}), "Pendulum-v1", "partial;"),
        (frames, "Hopper-v4", "image policy"),
        (frames, "BoxingNoFrameskip-v4", "18"),
        (whole, "PongNoFrameskip-v4", "PongNoFrameskip-v4"),
        (whole, "Hopper-v4", "observes 3 numbers, and Hopper-v4 has 11"),
        (whole, "NoSuchRobot-v0", "NoSuchRobot"),
        (sb3_bytes(PPO("MlpPolicy", "CartPole-v1")), "InvertedPendulum-v4", "discrete"),
        (cleanrl(4), "Pendulum-v1", "time feature; give an environment of your own"),
        (cleanrl(9), "Pendulum-v1", "3 stacked observations; give an environment of your own"),
        (cleanrl(5), "Pendulum-v1", "--env-id your_module:Id"),
        (weighing({**weights, "log_std": torch.tensor([np.nan])}), "Pendulum-v1", "NaN"),
        (weighing({**weights, key: torch.zeros(9)}), "Pendulum-v1", "size mismatch"),
        (weighing(headless), "Pendulum-v1", "no 'action_net.bias' in it"),
        (torch_bytes({"weights": torch.zeros(3)}), "Pendulum-v1", "neither CleanRL"),
        (torch_bytes(torch.zeros(3)), "Pendulum-v1", "a Tensor, not weights by name"),
        (torch_bytes((weights, weights)), "Pendulum-v1", "DDPG, TD3 and SAC"),
        (torch_bytes({"model_state_dict": student}), "Pendulum-v1", "a student of rsl_rl's"),
        (torch_bytes({"student_state_dict": weights}), "Pendulum-v1", "a student of rsl_rl's"),
        (torch_bytes({"model_state_dict": weights}), "Pendulum-v1", "without an MLP actor"),
        (pendulum["policy.pth"], "Pendulum-v1", "give the zip of model.save()"),
        (torch_bytes(nn.Linear(1, 1)), "Pendulum-v1", "save the policy's state_dict() alone"),
        (saved_policy("Pendulum-v1"), "Pendulum-v1", "give the zip of model.save()"),
        (saved_policy("CartPole-v1"), "CartPole-v1", "give the zip of model.save()"),
        (statistics_bytes("Pendulum-v1"), "Pendulum-v1", "give them as --vecnormalize"),
        (arrays.getvalue(), "Pendulum-v1", "give statistics as --vecnormalize"),
        (raw_frames, "PongNoFrameskip-v4", "normalize_images=False"),
        (torch_bytes(memory), "Pendulum-v1", "recurrent"),
        (torch_bytes(beta), "Pendulum-v1", "no σ that is the same in each state"),
        (HOPPER.read_bytes(), "Hopper-v4", "is given as --teacher"),
    ]
    path, out = tmp_path / "teacher", tmp_path / "out"
    for content, env_id, word in cases:
        path.write_bytes(content)
        refused(convert, ["import", path, "--env-id", env_id, "--out", out], word)
    path.write_bytes(whole)
    arguments = ["import", path, "--env-id", "Pendulum-v1", "--out", out]
    refused(convert, [*arguments, "--activation", "relu"], "--activation")
    refused(convert, [*arguments, "--episodes", 0], "--episodes")
    refused(convert, [*arguments[:-1], tmp_path / "no" / "out"], "--out")
    refused(convert, [*arguments[:-1], tmp_path], "a folder; name a file in it")
    for place in range(1, 6, 2):  # an unset variable of the shell
        unset = [*arguments[:place], "", *arguments[place + 1 :]]
        name = arguments[place - 1] if place > 1 else "--source"
        refused(convert, unset, f"{name}: the value is empty")
    refused(convert, [*arguments, "--vecnormalize", ""], "--vecnormalize: the value is empty")
    refused(convert, ["export", HOPPER, "--out", ""], "--out: the value is empty")
    refused(convert, ["import", tmp_path / "gone", *arguments[2:]], "No such file")

    (tmp_path / "cartpole").write_bytes(statistics_bytes("CartPole-v1"))
    library_bomb = pickle.dumps(Malicious(tmp_path / "created", save_to_pkl))
    np.savez(nan := io.BytesIO(), mean=np.full(3, np.nan), var=np.ones(3))
    bombs = np.array([Malicious(tmp_path / "created")], object)
    np.savez(objects := io.BytesIO(), mean=bombs, var=bombs)
    np.savez(only_mean := io.BytesIO(), mean=np.zeros(3))
    cases = {"(4,)": (tmp_path / "cartpole").read_bytes(), "io.open": newer_bomb}
    cases |= {"fractions.Fraction": pickle.dumps([Fraction(1)]), "VecNormalize": b""}
    cases |= {"no mean and var in it, but data": whole, "it, but mean; give": only_mean.getvalue()}
    cases |= {"holds a dict; give the file of VecNormalize.save()": pickle.dumps({"mean": 0})}
    cases |= {"save_to_pkl": library_bomb}
    cases |= {"NaN": nan.getvalue(), "allow_pickle": objects.getvalue()}
    for word, content in cases.items():
        (tmp_path / "statistics").write_bytes(content)
        refused(convert, [*arguments, "--vecnormalize", tmp_path / "statistics"], word)
    assert not (tmp_path / "created").exists()
    assert not out.exists()


def test_an_import_is_played_and_distilled(tmp_path, capsys, monkeypatch, refused):
    """From SB3's zip to PPD's student, which has VecNormalize's statistics; then without critic."""
    monkeypatch.chdir(tmp_path)
    envs = DummyVecEnv([lambda: Monitor(ppd.make_mujoco_env("Hopper-v4"))])
    envs = VecNormalize(envs, clip_obs=2.0)
    model = PPO("MlpPolicy", envs, n_steps=128, seed=1)
    model.learn(1000)
    model.save("model.zip")
    envs.save("normalize.pkl")
    command = ["import", "model.zip", "--env-id", "Hopper-v3", "--out", "hopper.safetensors"]
    assert run_main(convert, [*command, "--expect", 5000, "--episodes", 2], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "WARNING: trained with VecNormalize; give the file of its save()" in printed
    assert "plays worse than expected" in printed
    assert "written. Import it again with --vecnormalize; only if" in printed.splitlines()[-1]
    assert run_main(convert, [*command, "--vecnormalize", "normalize.pkl"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "Hopper-v3 is not installed; playing Hopper-v4 instead" in printed
    assert "WARNING" not in printed and "written; distil it with: python" in printed
    assert "over 10 episodes; its last training episodes: " in printed

    quick = ["--num-envs", 2, "--num-workers", 1, "--total-timesteps", 1, "--episodes", 1]
    quick += ["--env-id", "Hopper-v4", "--teacher", "hopper.safetensors"]
    assert run_main(ppd, [*quick, "--run-dir", "run"], monkeypatch) == 0
    student, header = ppd.load_mujoco_agent("run/agent.safetensors")
    assert student.obs_clip == 2.0
    assert "activation" not in header
    np.testing.assert_array_equal(student.obs_mean, envs.obs_rms.mean)
    assert run_main(load("evaluate"), ["hopper.safetensors", "--episodes", 1], monkeypatch) == 0

    teacher, header = ppd.load_mujoco_agent("hopper.safetensors")
    teacher.critic = None
    save_agent(teacher, "hopper.safetensors", header)
    for name in ("student_distill", "teacher_distill"):
        refused(load(name), ["mujoco", *quick, "--run-dir", name], "critic")
    assert run_main(ppd, [*quick, "--run-dir", "again"], monkeypatch) == 0


def test_onnx_plays_as_the_agent(tmp_path, capsys, monkeypatch):
    """onnxruntime alone, with NumPy and Gymnasium, scores as evaluate.py does.

    Actions differ by 1e-6, which Hopper's contacts make grow: only the beginning is the same.
    """
    onnxruntime, onnx = map(pytest.importorskip, ("onnxruntime", "onnx"))
    path = tmp_path / "hopper.onnx"
    torch.set_num_threads(2)
    assert run_main(convert, ["export", HOPPER, "--out", path], monkeypatch) == 0
    assert torch.get_num_threads() == 2  # a notebook's other cells need them
    printed = capsys.readouterr().out
    assert "largest difference" in printed
    assert "onnxruntime" in printed
    assert [p.name for p in tmp_path.iterdir()] == ["hopper.onnx"]
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert (proto.ir_version, proto.opset_import[0].version) == (8, 18)  # onnxruntime 1.14 loads it
    assert b"convert.py" not in path.read_bytes()  # nor any other path of this machine
    session = onnxruntime.InferenceSession(path)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["env_id"]) == "Hopper-v4"
    agent, _ = ppd.load_mujoco_agent(HOPPER)
    obs = agent.obs_mean.numpy() + np.random.default_rng(0).normal(size=(1000, 11))
    action, mean, std = session.run(None, {"obs": obs.astype(np.float32)})
    np.testing.assert_allclose(action, agent.act(obs), rtol=0, atol=1e-5)
    np.testing.assert_allclose(mean, agent.policy(obs).mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(std, agent.policy(obs).stddev, rtol=0, atol=1e-5)

    score = ppd.evaluate(agent, ppd.MujocoVectorEnv("Hopper-v4", 1, 1), 1, seed=0)
    env = ppd.make_mujoco_env("Hopper-v4")
    obs, _ = env.reset(seed=10_000)
    total, ended, steps = 0.0, False, 0
    while not ended:
        [action], _, _ = session.run(None, {"obs": obs[None].astype(np.float32)})
        obs, reward, terminated, truncated, _ = env.step(action)
        total, steps, ended = total + reward, steps + 1, terminated or truncated
    assert steps == score["lengths"][0]
    assert total == pytest.approx(score["mean"], rel=0.02)


@pytest.mark.parametrize("suite", ["cartpole", "atari", "procgen"])
def test_onnx_of_other_agents(suite, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    path, frames = tmp_path / "agent.safetensors", {"atari": (4, 84, 84), "procgen": (3, 64, 64)}
    if suite == "cartpole":
        make_teacher("mujoco", path)
        bounds = torch.zeros(2, dtype=torch.int8), torch.ones(2, dtype=torch.int8)
        agent, obs = ppd.MujocoAgent(*bounds, 4, [8], "elu"), torch.randn(5, 4)
        header = read_header(path) | {"activation": "elu", "hidden_sizes": [8]}
        save_agent(agent, path, header)
    else:
        agent = make_teacher(suite, path, size="nature", deterministic=True)
        obs = torch.randint(256, (5, *frames[suite]), dtype=torch.uint8)
    command = ["export", path, "--out", tmp_path / "agent.onnx"]
    assert run_main(convert, command, monkeypatch) == 0
    session = onnxruntime.InferenceSession(tmp_path / "agent.onnx")
    action, logits = session.run(None, {"obs": obs.numpy()})
    expected = agent.actor(agent.normalize(obs)).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(action, expected.argmax(-1))


def test_wrong_exports_are_refused(tmp_path, monkeypatch, refused):
    (tmp_path / "text.safetensors").write_text("no agent")
    out = ["--out", tmp_path / "out.onnx"]
    for name in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, json)  # as if it were installed
    refused(convert, ["export", tmp_path / "text.safetensors", *out], "not an agent")
    refused(convert, ["export", HOPPER, "--out", tmp_path / "no" / "x"], "--out")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(convert, ["export", HOPPER, *out], "requirements-convert.txt")
