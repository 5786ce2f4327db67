"""What several test files share: the scripts, mutants of them, and small environments."""

import importlib
import json
import sys
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
# Every training script at the top level; a script to come is found by itself.
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if "\ndef train(" in path.read_text())
MUJOCO_SCRIPTS = [name for name in SCRIPTS if name in ("ppo_teacher_mujoco", "ppd_mujoco")]
PPO_SCRIPTS = [name for name in SCRIPTS if name.startswith(("ppo_teacher_", "ppd_"))]
PAPER_IDS = ["Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Humanoid-v4", "Swimmer-v4"]


def load(name: str) -> types.ModuleType:
    return importlib.import_module(name)


def has_teacher(name: str) -> bool:
    return name.startswith("ppd_")


def mutant(name: str, function: str, old: str, new: str) -> types.ModuleType:
    """The script with one thing changed in one function."""
    source = (ROOT / f"{name}.py").read_text()
    start = source.index(f"def {function}(")
    end = source.find("\n\n\n", start)
    body = source[start:end]
    assert body.count(old) == 1, f"{name}.{function}: {body.count(old)} times {old!r}"
    module = types.ModuleType(name)
    module.__file__ = str(ROOT / f"{name}.py")
    exec(
        compile(source[:start] + body.replace(old, new) + source[end:], name, "exec"), vars(module)
    )
    return module


def gaussian_agent(script, action_dim: int):
    bounds = torch.full((action_dim,), -1.0), torch.full((action_dim,), 1.0)
    return script.MujocoAgent(*bounds, 3, (4,)).double()


def distribution(script, outputs: torch.Tensor, log_std: torch.Tensor):
    """The distribution that a script's agent makes of the policy's outputs."""
    if not hasattr(script, "MujocoAgent"):
        return script.PixelAgent.distribution(None, outputs)
    agent = gaussian_agent(script, outputs.shape[1])
    del agent.log_std
    agent.log_std = log_std  # a plain tensor, so that its gradient reaches the caller
    return agent.distribution(outputs)


class FakeEnvs:
    """N environments in this process: slot i's episodes are 3 + i steps long.

    Slots take turns in how their episodes end: terminated, truncated, both at once. It records
    each step, with the sampled action before it was clipped (see `record_actions`).
    """

    made: list = []
    raw_actions = None

    def __init__(self, env_id: str, num_envs: int, num_workers: int):
        self.num_envs, self.steps = num_envs, []
        self.lengths = 3 + np.arange(num_envs)
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.single_action_space = gym.spaces.Box(-0.5, 0.5, (2,), np.float32)
        FakeEnvs.made.append(self)

    def draw(self) -> np.ndarray:
        return self.rng.normal(1.0, 2.0, (self.num_envs, 3))

    def reset(self, seed=None, options=None):
        self.rng = np.random.default_rng(seed)
        self.elapsed = np.zeros(self.num_envs, int)
        self.obs = self.draw()
        return self.obs.copy(), {}

    def step(self, actions):
        old, self.obs = self.obs, 0.5 * self.obs + self.draw()
        rewards = self.obs[:, 0] + 3 * actions.sum(1)
        self.elapsed += 1
        over, kind = self.elapsed == self.lengths, np.arange(self.num_envs) % 3
        terminations, truncations = over & (kind != 1), over & (kind != 0)
        final_obs = np.where(over[:, None], self.obs, np.nan)
        self.obs[over], self.elapsed[over] = self.draw()[over], 0
        self.steps.append(
            {"obs": old, "next_obs": self.obs.copy(), "final_obs": final_obs, "rewards": rewards}
            | {"terminations": terminations, "truncations": truncations}
            | {"actions": FakeEnvs.raw_actions}
        )
        infos = {"final_obs": final_obs, "_final_obs": over} if over.any() else {}
        return self.obs.copy(), rewards, terminations, truncations, infos

    def state_dict(self):
        simulators = [None] * self.num_envs
        return {"obs": torch.tensor(self.obs), "simulators": simulators}

    def close(self):
        pass


def use_fake_envs(script, monkeypatch) -> None:
    """Have a MuJoCo script step `FakeEnvs`, which remember the actions that the policy sampled."""
    env_actions = script.MujocoAgent.env_actions

    def record_actions(agent, actions):
        FakeEnvs.raw_actions = actions.double().numpy().copy()
        return env_actions(agent, actions)

    monkeypatch.setattr(script.MujocoAgent, "env_actions", record_actions)
    monkeypatch.setattr(script, "MujocoVectorEnv", FakeEnvs)
    monkeypatch.setattr(FakeEnvs, "made", [])


class NoWriter:
    """Stands for TensorBoard's SummaryWriter and keeps the scalars."""

    scalars: dict = {}

    def __init__(self, *args, **kwargs):
        NoWriter.scalars = {}

    def add_scalar(self, name, value, step):
        NoWriter.scalars.setdefault(name, []).append(value)

    def add_text(self, *args):
        pass

    def close(self):
        pass


def save_mujoco_teacher(script, path, env_id="Hopper-v4", sizes=(3, 2), hidden_sizes=(5,)):
    """A random agent with unusual statistics and deviations, as a checkpoint; returns it."""
    obs_dim, action_dim = sizes
    with torch.random.fork_rng():
        torch.manual_seed(7)
        bounds = -torch.ones(action_dim), torch.ones(action_dim)
        agent = script.MujocoAgent(*bounds, obs_dim, hidden_sizes)
        with torch.no_grad():
            for parameter in agent.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
            agent.obs_mean.copy_(torch.randn(obs_dim))
            agent.obs_var.copy_(torch.rand(obs_dim) + 0.5)
            agent.obs_count.fill_(1000)
    header = {"format": "ppd-agent-1", "suite": "mujoco", "script": "ppo_teacher_mujoco"}
    header |= {"env_id": env_id, "hidden_sizes": hidden_sizes, "seed": 1, "deterministic": True}
    script.save_agent(agent, path, header)
    return agent


def run_main(script, arguments, monkeypatch) -> int:
    """Call a script's main as its command line would; returns the exit status."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
    try:
        script.main()
    except SystemExit as stop:
        return stop.code
    return 0


def read_result(run_dir) -> dict:
    return json.loads((Path(run_dir) / "result.json").read_text())
