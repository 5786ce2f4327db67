"""Teachers of other libraries, read as weights and compared with their own answers; ONNX back out."""

import io
import json
import pickle
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn as nn
from helpers import ROOT, load, run_main, save_mujoco_teacher
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

convert = load("convert")
HOPPER = ROOT / "teachers" / "Hopper-v4.safetensors"
QUIET = "ignore::UserWarning"


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
        model.policy.action_net.weight.mul_(50)
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
    network, actor, critic = nn.Sequential(*cnn[0], cnn[1], cnn[2]), nn.Linear(512, 6), nn.Linear(512, 1)
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
        mine, its = ({f"obs_normalizer.{k}": v for k, v in s.items()} for s in (of_actor, of_critic))
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
