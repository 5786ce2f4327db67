"""Teachers of other libraries, read as weights and compared with their own answers; ONNX back out."""

import io
import json
import pickle
import shutil
import sys
import types
import zipfile
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn as nn
from helpers import ROOT, load, run_main
from safetensors.torch import save_file
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

convert = load("convert")
HOPPER = ROOT / "teachers" / "Hopper-v4.safetensors"


class Frames(gym.Env):
    """Noise in the shape of Atari's frames."""

    observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gym.spaces.Discrete(6)

    def reset(self, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


class Malicious:
    """A pickle that creates a file when it is opened."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def build(path, env_id="Pendulum-v1", **options):
    """The agent that `convert.py import` would write."""
    args = convert.Import(str(path), env_id, "out.safetensors", **options)
    return convert.build_agent(args)[1]


def check(agent, obs, outputs, values, std=None, tolerance=1e-5):
    """An agent answers raw observations with these means or logits, deviations and values."""
    dist = agent.policy(obs)
    ours = dist.mean if std is not None else dist.logits
    theirs = outputs if std is not None else outputs.log_softmax(-1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    if std is not None:
        torch.testing.assert_close(dist.stddev, std.expand_as(ours), rtol=0, atol=tolerance)
    torch.testing.assert_close(agent.value(obs), values, rtol=0, atol=tolerance)


def check_sb3(agent, model, obs, normalize=lambda obs: obs):
    seen = torch.as_tensor(normalize(obs)).float() if obs.dtype != np.uint8 else torch.tensor(obs)
    with torch.no_grad():
        dist = model.policy.get_distribution(seen).distribution
        gaussian = isinstance(dist, torch.distributions.Normal)
        outputs, std = (dist.mean, dist.stddev) if gaussian else (dist.logits, None)
        check(agent, obs, outputs, model.policy.predict_values(seen).flatten(), std)


MLPS = [
    (PPO, "Pendulum-v1", {"pi": [16], "vf": [8, 8]}, nn.Tanh, 2.5),
    (A2C, "Pendulum-v1", [32, 16], nn.ReLU, None),
    (PPO, "Pendulum-v1", {"pi": [8, 4], "vf": []}, nn.ELU, np.inf),
    (PPO, "CartPole-v1", {"pi": [8], "vf": [32]}, nn.ReLU, 10.0),
    (A2C, "Acrobot-v1", [16], nn.Tanh, None),
]


@pytest.mark.parametrize(("algorithm", "env_id", "net_arch", "activation", "clip"), MLPS)
def test_sb3_mlps_answer_alike(algorithm, env_id, net_arch, activation, clip, tmp_path):
    envs, options = DummyVecEnv([lambda: Monitor(gym.make(env_id))]), {}
    if clip:
        envs = VecNormalize(envs, clip_obs=clip, epsilon=1e-3)
        options = {"vecnormalize": str(tmp_path / "normalize.pkl")}
    networks = {"net_arch": net_arch, "activation_fn": activation}
    model = algorithm("MlpPolicy", envs, n_steps=64, policy_kwargs=networks, seed=1)
    model.learn(500)
    model.policy.optimizer.param_groups[0]["lr"] = 0
    if hasattr(model.policy, "log_std"):
        model.policy.log_std.data.uniform_(-1, 1)
    model.save(tmp_path / "model.zip")
    if clip:
        envs.save(options["vecnormalize"])
    agent = build(tmp_path / "model.zip", env_id, **options)
    obs = np.random.default_rng(0).normal(size=(256, envs.observation_space.shape[0])) * 3
    check_sb3(agent, model, obs, envs.normalize_obs if clip else lambda obs: obs)
    assert (agent.normalize(obs).abs().max() > 2.5) == (clip != 2.5)


@pytest.mark.parametrize("share", [True, False])
def test_sb3_cnns_answer_alike(share, tmp_path):
    model = A2C("CnnPolicy", Frames(), policy_kwargs={"share_features_extractor": share}, seed=1)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(10)
    model.learn(10)
    model.save(tmp_path / "model.zip")
    agent = build(tmp_path / "model.zip", "PongNoFrameskip-v4")
    check_sb3(agent, model, np.random.default_rng(0).integers(0, 256, (256, 4, 84, 84), np.uint8))


def mlp(*sizes, activation=nn.Tanh, last=()):
    """Linear layers with activations between them; small random numbers everywhere."""
    found = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*found[:-1], *last)


def named(**networks):
    return {f"{name}.{k}": v for name, n in networks.items() for k, v in n.state_dict().items()}


def rewrite(source, target, change=None, weights=None):
    """Copy an SB3 zip, changing its data in place or replacing its weights."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        data = json.loads(old.read("data"))
        if change:
            change(data)
        new.writestr("data", json.dumps(data))
        torch.save(weights, buffer := io.BytesIO())
        new.writestr("policy.pth", buffer.getvalue() if weights else old.read("policy.pth"))
    return target


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """A small SB3 agent that has never learnt."""
    path = tmp_path_factory.mktemp("sb3") / "pendulum.zip"
    PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, seed=1).save(path)
    return path


def test_old_sb3_shares_its_first_layers(pendulum, tmp_path):
    torch.manual_seed(0)
    shared, policy, value = mlp(3, 6, 1)[:2], mlp(6, 5, 1), mlp(6, 4, 1)
    parts = {"mlp_extractor.shared_net": shared, "mlp_extractor.policy_net": policy[:2]}
    parts |= {"mlp_extractor.value_net": value[:2], "action_net": policy[2], "value_net": value[2]}
    weights = named(**parts) | {"log_std": torch.tensor([0.3])}
    path = rewrite(pendulum, tmp_path / "old.zip", weights=weights)
    obs = torch.randn(256, 3)
    latent = shared(obs)
    check(build(path), obs, policy(latent), value(latent)[:, 0], torch.tensor([0.3]).exp())


def test_cleanrl_answers_alike(tmp_path):
    torch.manual_seed(0)
    actor, critic, obs = mlp(3, 64, 64, 1), mlp(3, 64, 64, 1), torch.randn(256, 3) * 3
    weights = named(actor_mean=actor, critic=critic) | {"actor_logstd": torch.full((1, 1), -0.4)}
    torch.save(weights, tmp_path / "ppo.cleanrl_model")
    statistics = {"mean": np.array([0.5, -1, 2]), "var": np.array([0.2, 1, 9]), "clip": 1.5}
    np.savez(tmp_path / "statistics.npz", **statistics)
    agent = build(tmp_path / "ppo.cleanrl_model", vecnormalize=str(tmp_path / "statistics.npz"))
    mean, var = (torch.tensor(statistics[name]) for name in ("mean", "var"))
    seen = ((obs - mean) / (var + 1e-8).sqrt()).clamp(-1.5, 1.5).float()
    check(agent, obs, actor(seen), critic(seen)[:, 0], torch.tensor(-0.4).exp())

    actor, critic, obs = mlp(4, 64, 64, 2), mlp(4, 64, 64, 1), torch.randn(256, 4) * 30
    torch.save(named(actor=actor, critic=critic), tmp_path / "discrete.cleanrl_model")
    agent = build(tmp_path / "discrete.cleanrl_model", "CartPole-v1")  # beyond ±10: nothing clips
    check(agent, obs, actor(obs), critic(obs)[:, 0])

    cnn = load("ppd_atari").NatureCNN((4, 84, 84), (32, 64, 64), 512)
    network, actor, critic = (
        nn.Sequential(*cnn[0], cnn[1], cnn[2]),
        nn.Linear(512, 6),
        nn.Linear(512, 1),
    )
    torch.save(named(network=network, actor=actor, critic=critic), tmp_path / "atari.cleanrl_model")
    agent = build(tmp_path / "atari.cleanrl_model", "PongNoFrameskip-v4")
    frames = torch.randint(256, (64, 4, 84, 84), dtype=torch.uint8)
    seen = network(frames / 255)
    check(agent, frames, actor(seen), critic(seen)[:, 0])


def statistics(size):
    std = torch.rand(1, size) + 0.1
    return {"_mean": torch.randn(1, size), "_var": std**2, "_std": std, "count": torch.tensor(9)}


@pytest.mark.parametrize("critic_size", [3, 5])
@pytest.mark.parametrize("version", ["1", "2.0", "2.3", "3", "4", "5"])
def test_rsl_rl_answers_alike(version, critic_size, tmp_path, capsys):
    torch.manual_seed(0)
    actor, critic = mlp(3, 8, 6, 1, activation=nn.ELU), mlp(critic_size, 4, 1, activation=nn.ELU)
    of_actor, of_critic, obs = statistics(3), statistics(critic_size), torch.randn(256, 3)
    std = {"std": torch.tensor([0.7])} if version in "1 2.0 4" else {}
    std |= {"log_std": torch.tensor([0.7]).log()} if version in "2.3 3" else {}
    std |= {"distribution.std_param": torch.tensor([0.7])} if version == "5" else {}
    if version in "4 5":
        mine, its = (
            {f"obs_normalizer.{k}": v for k, v in s.items()} for s in (of_actor, of_critic)
        )
        content = {"actor_state_dict": named(mlp=actor) | mine | std}
        content |= {"critic_state_dict": named(mlp=critic) | its}
    else:
        content = {"model_state_dict": named(actor=actor, critic=critic) | std}
        normalizers = {"actor_obs_normalizer": of_actor, "critic_obs_normalizer": of_critic}
        if version == "3":
            content["model_state_dict"] |= {
                f"{name}.{k}": v for name, s in normalizers.items() for k, v in s.items()
            }
        elif version != "1":
            content["obs_norm_state_dict"] = of_actor
            privileged = "critic" if version == "2.0" else "privileged"
            content[f"{privileged}_obs_norm_state_dict"] = of_critic
    torch.save(content | {"iter": 100, "infos": None}, tmp_path / "model_100.pt")
    agent = build(tmp_path / "model_100.pt")
    seen, critics = obs, obs
    if version != "1":
        seen = (obs - of_actor["_mean"]) / (of_actor["_std"] + 0.01)
    if critic_size == 5:
        assert agent.critic is None
        assert "left out" in capsys.readouterr().out
        agent.critic = critic = nn.Sequential(nn.Linear(3, 1))  # so that the policy can be checked
        critics = agent.normalize(obs)
    elif version != "1":
        critics = (obs - of_critic["_mean"]) / (of_critic["_std"] + 0.01)
    check(agent, obs, actor(seen), critic(critics)[:, 0], torch.tensor([0.7]))


def refuse(arguments, capsys, monkeypatch, *words):
    """One line that holds every one of `words`, exit status 2."""
    assert run_main(convert, arguments, monkeypatch) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("convert: error: ")
    for word in words:
        assert word in lines[0], lines[0]


def wrong_files(folder, pendulum):
    """File, environment and what the line says."""

    def write(name, content):
        (folder / name).write_bytes(content)
        return folder / name

    def save(name, content):
        torch.save(content, folder / name)
        return folder / name

    def changed(name, **changes):
        return rewrite(pendulum, folder / name, lambda data: data.update(changes))

    def saved(name, model):
        model.save(folder / name)
        return folder / name

    content, weights = (
        pendulum.read_bytes(),
        torch.load(io.BytesIO(zipfile.ZipFile(pendulum).read("policy.pth")), weights_only=True),
    )
    frames = saved("frames.zip", A2C("CnnPolicy", Frames()))
    discrete = saved("discrete.zip", PPO("MlpPolicy", "CartPole-v1"))
    no_policy = io.BytesIO()
    with zipfile.ZipFile(no_policy, "w") as archive:
        archive.writestr("data", "{}")
    bomb = Malicious(folder / "created")
    with zipfile.ZipFile(bomb_zip := io.BytesIO(), "w") as archive:
        archive.writestr("data", zipfile.ZipFile(pendulum).read("data"))
        archive.writestr("policy.pth", pickle.dumps(bomb))
    module = "sb3_contrib.common.{}.policies"
    maskable, recurrent = ({"__module__": module.format(n)} for n in ("maskable", "recurrent"))
    of_4 = named(actor_mean=mlp(4, 8, 1), critic=mlp(4, 8, 1)) | {"actor_logstd": torch.zeros(1, 1)}
    of_9 = named(actor_mean=mlp(9, 8, 1), critic=mlp(9, 8, 1)) | {"actor_logstd": torch.zeros(1, 1)}
    nan = {**weights, "log_std": torch.tensor([torch.nan])}
    short = {name: value for name, value in weights.items() if name != "action_net.bias"}
    huge = {**weights, "mlp_extractor.policy_net.0.bias": torch.zeros(9)}
    script = torch.jit.script(nn.Linear(3, 1))
    torch.jit.save(script, folder / "script.pt")
    return [
        (write("empty.zip", b""), "Pendulum-v1", "cut short"),
        (write("text.zip", b"no model, but text"), "Pendulum-v1", "neither"),
        (write("truncated.zip", content[: len(content) // 2]), "Pendulum-v1", "cut short"),
        (write("garbled.zip", content.replace(b"ep_info", b"ep_\xff\xff\xff\xff")), "Pendulum-v1", "damaged"),
        (write("no_policy.zip", no_policy.getvalue()), "Pendulum-v1", "policy.pth"),
        (write("bomb.zip", bomb_zip.getvalue()), "Pendulum-v1", "io.open"),
        (write("bomb.pt", pickle.dumps(bomb)), "Pendulum-v1", "io.open"),
        (folder / "script.pt", "Pendulum-v1", "TorchScript"),
        (saved("dqn.zip", DQN("MlpPolicy", "CartPole-v1", buffer_size=10)), "CartPole-v1", "dqn"),
        (saved("sac.zip", SAC("MlpPolicy", "Pendulum-v1", buffer_size=10)), "Pendulum-v1", "sac"),
        (changed("maskable.zip", policy_class=maskable), "Pendulum-v1", "maskable"),
        (changed("recurrent.zip", policy_class=recurrent), "Pendulum-v1", "recurrent"),
        (saved("sde.zip", A2C("MlpPolicy", "Pendulum-v1", use_sde=True)), "Pendulum-v1", "gSDE"),
        (frames, "Hopper-v4", "image policy"),
        (frames, "BoxingNoFrameskip-v4", "18"),
        (pendulum, "PongNoFrameskip-v4", "PongNoFrameskip-v4"),
        (pendulum, "Hopper-v4", "observes 3 numbers, and Hopper-v4 has 11"),
        (pendulum, "NoSuchRobot-v0", "NoSuchRobot"),
        (pendulum, "CartPole-v1", "observes 3"),
        (discrete, "InvertedPendulum-v4", "discrete"),
        (save("time.cleanrl_model", of_4), "Pendulum-v1", "time feature"),
        (save("stacked.cleanrl_model", of_9), "Pendulum-v1", "3 stacked"),
        (rewrite(pendulum, folder / "nan.zip", weights=nan), "Pendulum-v1", "NaN"),
        (rewrite(pendulum, folder / "short.zip", weights=short), "Pendulum-v1", "action_net.bias"),
        (rewrite(pendulum, folder / "huge.zip", weights=huge), "Pendulum-v1", "size mismatch"),
        (save("other.pt", {"weights": torch.zeros(3)}), "Pendulum-v1", "neither CleanRL"),
        (save("tensor.pt", torch.zeros(3)), "Pendulum-v1", "weights"),
        (save("rnn.pt", {"model_state_dict": {"memory_a.rnn.bias": torch.zeros(1)}}), "Pendulum-v1", "recurrent"),
        (save("beta.pt", {"actor_state_dict": named(mlp=mlp(3, 1)), "critic_state_dict": {}}), "Pendulum-v1", "deviation"),
        (HOPPER, "Hopper-v4", "neither"),
        (folder / "missing.zip", "Pendulum-v1", "No such file"),
    ]  # fmt: skip


def test_wrong_files_are_refused(pendulum, tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    for path, env_id, words in wrong_files(tmp_path, pendulum):
        arguments = ["import", path, "--env-id", env_id, "--out", tmp_path / "out.safetensors"]
        refuse(arguments, capsys, monkeypatch, words, path.name)
    assert not (tmp_path / "created").exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_wrong_normalizers_are_refused(pendulum, tmp_path, capsys, monkeypatch):
    arguments = ["import", pendulum, "--env-id", "Pendulum-v1", "--out", tmp_path / "out"]
    envs = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    envs.save(tmp_path / "cartpole.pkl")
    envs.obs_rms.mean[:] = np.nan
    bombs = {"call": Malicious(tmp_path / "created"), "other": [Fraction(1)], "list": [1]}
    for name, content in bombs.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content))
    np.savez(tmp_path / "nan.npz", mean=np.full(3, np.nan), var=np.ones(3))
    np.savez(
        tmp_path / "objects.npz", mean=np.array([Malicious(tmp_path / "created")], dtype=object)
    )
    words = {"cartpole.pkl": "(4,)", "call.pkl": "io.open", "other.pkl": "fractions.Fraction"}
    words |= {"list.pkl": "VecNormalize", "nan.npz": "NaN", "objects.npz": "allow_pickle"}
    for name, word in words.items():
        refuse([*arguments, "--vecnormalize", tmp_path / name], capsys, monkeypatch, word)
    refuse([*arguments, "--activation", "relu"], capsys, monkeypatch, "--activation")
    refuse([*arguments, "--episodes", 0], capsys, monkeypatch, "--episodes")
    refuse([*arguments[:-1], tmp_path / "no" / "out"], capsys, monkeypatch, "--out")
    assert not (tmp_path / "created").exists()


def test_an_import_is_played_and_distilled(tmp_path, capsys, monkeypatch):
    """From SB3's zip to PPD's student, whose normaliser is VecNormalize's; then without a critic."""
    monkeypatch.chdir(tmp_path)
    envs = VecNormalize(DummyVecEnv([lambda: Monitor(gym.make("Hopper-v4"))]), clip_obs=2.0)
    model = PPO("MlpPolicy", envs, n_steps=128, seed=1)
    model.learn(1000)
    model.save("model.zip")
    envs.save("normalize.pkl")
    command = ["import", "model.zip", "--env-id", "Hopper-v3", "--out", "hopper.safetensors"]
    assert run_main(convert, [*command, "--expect", 5000, "--episodes", 2], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "give --vecnormalize" in printed
    assert "plays worse than expected" in printed
    assert run_main(convert, [*command, "--vecnormalize", "normalize.pkl"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "Hopper-v3 is not installed: Hopper-v4 in its place" in printed
    assert "over 10 episodes; its last training episodes: " in printed

    ppd = load("ppd_mujoco")
    quick = ["--num-envs", 2, "--num-workers", 1, "--total-timesteps", 1, "--episodes", 1]
    quick += ["--env-id", "Hopper-v4", "--teacher", "hopper.safetensors"]
    assert run_main(ppd, [*quick, "--run-dir", "run"], monkeypatch) == 0
    student, header = ppd.load_mujoco_agent("run/agent.safetensors")
    assert student.obs_clip == 2.0
    assert "activation" not in header
    np.testing.assert_array_equal(student.obs_mean, envs.obs_rms.mean)
    assert run_main(load("evaluate"), ["hopper.safetensors", "--episodes", 1], monkeypatch) == 0

    shutil.copy("hopper.safetensors", "whole.safetensors")
    teacher, header = ppd.load_mujoco_agent("hopper.safetensors")
    teacher.critic = None
    texts = {name: json.dumps(value) for name, value in header.items()}
    save_file(teacher.state_dict(), "hopper.safetensors", texts)
    capsys.readouterr()
    for name in ("student_distill", "teacher_distill"):
        assert run_main(load(name), ["mujoco", *quick, "--run-dir", name], monkeypatch) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert "critic" in lines[0]
    assert run_main(ppd, [*quick, "--run-dir", "again"], monkeypatch) == 0


# ------------------------------------------------------------------------------- Export
def test_onnx_plays_as_the_agent(tmp_path, capsys, monkeypatch):
    """onnxruntime alone, with NumPy and Gymnasium, repeats the score of evaluate.py's protocol."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "hopper.onnx"
    assert run_main(convert, ["export", HOPPER, "--out", path], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "largest difference" in printed
    assert "onnxruntime" in printed
    assert [p.name for p in tmp_path.iterdir()] == ["hopper.onnx"]
    session = onnxruntime.InferenceSession(path)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["env_id"]) == "Hopper-v4"
    ppd = load("ppd_mujoco")
    agent, _ = ppd.load_mujoco_agent(HOPPER)
    obs = agent.obs_mean.numpy() + np.random.default_rng(0).normal(size=(1000, 11))
    action, mean, std = session.run(None, {"obs": obs.astype(np.float32)})
    np.testing.assert_allclose(action, agent.act(obs), rtol=0, atol=1e-5)
    np.testing.assert_allclose(mean, agent.policy(obs).mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(std, agent.policy(obs).stddev, rtol=0, atol=1e-5)

    score = ppd.evaluate(agent, ppd.MujocoVectorEnv("Hopper-v4", 1, 1), 1, seed=0)
    env = gym.make("Hopper-v4")
    obs, _ = env.reset(seed=10_000)
    total, ended, steps = 0.0, False, 0
    while not ended:
        [action], _, _ = session.run(None, {"obs": obs[None].astype(np.float32)})
        obs, reward, terminated, truncated, _ = env.step(action)
        total, steps, ended = total + reward, steps + 1, terminated or truncated
    assert steps == score["lengths"][0]
    assert total == pytest.approx(score["mean"], rel=1e-3)


@pytest.mark.parametrize("suite", ["cartpole", "atari", "procgen"])
def test_onnx_of_other_agents(suite, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    header = {"format": "ppd-agent-1", "suite": suite, "env_id": "any", "size": "nature"}
    header |= {"seed": 1, "steps": 0, "deterministic": True}
    if suite == "cartpole":
        bounds = torch.zeros(2, dtype=torch.int8), torch.ones(2, dtype=torch.int8)
        agent = load("ppd_mujoco").MujocoAgent(*bounds, 4, [8], "elu")
        header |= {"suite": "mujoco", "activation": "elu", "hidden_sizes": [8]}
        obs = torch.randn(5, 4)
    else:
        shape, actions = ((4, 84, 84), 6) if suite == "atari" else ((3, 64, 64), 15)
        agent = load(f"ppd_{suite}").PixelAgent(shape, actions, "nature")
        obs = torch.randint(256, (5, *shape), dtype=torch.uint8)
    header["script"] = f"ppd_{header['suite']}"
    texts = {name: json.dumps(value) for name, value in header.items()}
    save_file(agent.state_dict(), tmp_path / "agent.safetensors", texts)
    command = ["export", tmp_path / "agent.safetensors", "--out", tmp_path / "agent.onnx"]
    assert run_main(convert, command, monkeypatch) == 0
    session = onnxruntime.InferenceSession(tmp_path / "agent.onnx")
    action, logits = session.run(None, {"obs": obs.numpy()})
    expected = agent.actor(agent.normalize(obs)).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(action, expected.argmax(-1))


def test_wrong_exports_are_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "text.safetensors").write_text("no agent")
    out = ["--out", tmp_path / "out.onnx"]
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    monkeypatch.setitem(sys.modules, "onnxscript", types.ModuleType("onnxscript"))
    refuse(["export", tmp_path / "text.safetensors", *out], capsys, monkeypatch, "no agent")
    refuse(["export", HOPPER, "--out", tmp_path / "no" / "x"], capsys, monkeypatch, "--out")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refuse(["export", HOPPER, *out], capsys, monkeypatch, "requirements-convert.txt")
