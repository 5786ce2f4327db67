"""What several test files share: the scripts, mutants of them, tiny runs and fake environments."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from copies import ROOT, definitions
from safetensors.torch import load_file, save_file

SUITES = ("mujoco", "atari", "procgen")
TEACHERS = [f"ppo_teacher_{suite}" for suite in SUITES]
PPD_SCRIPTS = [f"ppd_{suite}" for suite in SUITES]
BASELINES = ["student_distill", "teacher_distill"]
SCRIPTS = [*PPD_SCRIPTS, *TEACHERS, *BASELINES, "ppd_mujoco_lstm"]
# Every pair of a script and a suite that it trains in; but for ppd_mujoco_lstm.py, all of whose
# runs are in test_lstm.py, since its agents and rollouts have a state that the others' have not.
RUNS = [(name, name.split("_")[-1]) for name in PPD_SCRIPTS + TEACHERS]
RUNS += [(name, suite) for name in BASELINES for suite in SUITES]
PAPER_IDS = ["Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Humanoid-v4", "Swimmer-v4"]


load = importlib.import_module


def read(name: str) -> str:
    return (ROOT / f"{name}.py").read_text()


def owners() -> dict[str, str]:
    """The first script that has a definition: tests of its body run there.

    A name has one body in all scripts, as test_copies.py holds.
    """
    found = {}
    for script in reversed(SCRIPTS):
        found |= dict.fromkeys(definitions(read(script)), script)
    return found


def owner(name: str) -> types.ModuleType:
    """The script in which the function or class of this name is tested."""
    return load(owners()[name])


def mutant(script: str, function: str, old: str, new: str) -> types.ModuleType:
    """The script with one thing changed in one function."""
    source, body = read(script), definitions(read(script))[function]
    assert body.count(old) == 1, f"{script}.{function}: {body.count(old)} times {old!r}"
    module = types.ModuleType(script)
    module.__file__ = str(ROOT / f"{script}.py")
    changed = source.replace(body, body.replace(old, new))
    exec(compile(changed, script, "exec"), vars(module))
    return module


# ------------------------------------------------------------------------------- Tiny runs
def no_score(agent, envs, episodes, seed, deterministic=True) -> dict:
    """In place of `evaluate`, where a test is not about scores."""
    score = {"mean": 1.0, "standard_error": 0.0, "episodes": episodes}
    return score | {"returns": [1.0] * episodes, "lengths": [1] * episodes}


ENV_IDS = {"mujoco": "Hopper-v4", "atari": "PongNoFrameskip-v4", "procgen": "dodgeball"}
HEADERS = {
    "mujoco": {"hidden_sizes": [5], "deterministic": True},
    "atari": {"size": "smaller", "deterministic": True, "frame_skip": 4},
    "procgen": {"size": "smaller", "deterministic": False, "distribution_mode": "easy"}
    | {"num_levels": 200, "start_level": 0},
}


def args_class(script: types.ModuleType, suite: str) -> type:
    """Its Args; of a baseline, those of the suite."""
    return getattr(script, f"{suite.capitalize()}Args", script.Args)


def make_args(script: types.ModuleType, suite: str, run_dir, **changes):
    """Arguments of a run that takes seconds; a teacher is saved beside the run where it needs one.

    Three rollouts of 64 steps, minibatches of 24, 24 and 16, nothing evaluated before the end.
    """
    kind = args_class(script, suite)
    names = {field.name for field in dataclasses.fields(kind)}
    values = {"env_id": ENV_IDS[suite], "num_envs": 4, "num_steps": 16, "minibatch_size": 24}
    values |= {"update_epochs": 2, "total_timesteps": 192, "eval_every": 0, "episodes": 2}
    values |= {"num_workers": 1, "env_threads": 1, "torch_threads": 1, "device": "cpu"}
    values |= {"log_every": 128, "size": "smaller", "student_size": "smaller"}
    if suite == "mujoco":
        values["hidden_sizes"] = (16,)
    if "teacher" in names and "teacher" not in changes:
        path = Path(run_dir).parent / "teacher.safetensors"
        if not path.exists():
            make_teacher(suite, path)
        values["teacher"] = str(path)
    values = {name: value for name, value in values.items() if name in names}
    return kind(**values | {"run_dir": str(run_dir)} | changes)


def command(script: types.ModuleType, suite: str, args) -> list[str]:
    """The command line that gives these arguments."""
    words = [sys.executable, str(ROOT / f"{script.__name__}.py")]
    words += [suite] if script.__name__ in BASELINES else []
    default = type(args)()
    for name, value in vars(args).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words += [f"--{flag}" if value else f"--no-{flag}"]
        elif value != getattr(default, name):
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


def save_agent(agent: torch.nn.Module, path, header: dict) -> None:
    """A checkpoint as the scripts write it."""
    tensors = {name: tensor.contiguous() for name, tensor in agent.state_dict().items()}
    save_file(tensors, path, {"header": json.dumps(header)})


def make_teacher(suite: str, path, sizes=(11, 3), **changes) -> torch.nn.Module:
    """A random agent far from its initialisation, as a checkpoint; returns it.

    `sizes` are of observations and actions on MuJoCo; `changes`, of its header.
    """
    script = load(f"ppd_{suite}")
    header = {"format": "ppd-agent-2", "suite": suite, "script": f"ppo_teacher_{suite}"}
    header |= {"env_id": ENV_IDS[suite], "seed": 1, "steps": 0, **HEADERS[suite], **changes}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if suite == "mujoco":
            (obs_dim, action_dim), hidden_sizes = sizes, header["hidden_sizes"]
            box = -torch.ones(action_dim), torch.ones(action_dim)
            agent = script.MujocoAgent(*box, obs_dim, hidden_sizes)
            for parameter in agent.parameters():
                parameter.data.add_(torch.randn_like(parameter) * 0.3)
            agent.obs_mean.copy_(torch.randn(obs_dim))
            agent.obs_var.copy_(torch.rand(obs_dim) + 0.5)
            agent.obs_count.fill_(1000)
        else:
            shape = {"atari": ((4, 84, 84), 6), "procgen": ((3, 64, 64), 15)}[suite]
            agent = script.PixelAgent(*shape, header["size"])
            agent.actor[1].weight.data.mul_(100)
    save_agent(agent, path, header)
    return agent


def shorten_episodes(script: types.ModuleType, suite: str, monkeypatch) -> None:
    """Have scores take no time: Atari games of 100 frames, and four games at once, not 10 or 20."""
    if suite == "atari":
        import ale_py.vector_env

        plain = ale_py.vector_env.AtariVectorEnv
        short = lambda *args, **kwargs: plain(*args, **kwargs | {"max_num_frames_per_episode": 100})
        monkeypatch.setattr(ale_py.vector_env, "AtariVectorEnv", short)
        games = script.AtariGames
        few = lambda env_id, num_envs, *rest, **more: games(env_id, min(num_envs, 4), *rest, **more)
        monkeypatch.setattr(script, "AtariGames", few)
    elif suite == "procgen":
        make = script.ProcgenVectorEnv
        few = lambda args, num_envs, *rest: make(args, min(num_envs, 4), *rest)
        monkeypatch.setattr(script, "ProcgenVectorEnv", few)


def run_main(script: types.ModuleType, arguments, monkeypatch) -> int:
    """Call a script's main as its command line would; returns the exit status."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
    try:
        return script.main() or 0
    except SystemExit as stop:
        return stop.code


class Process(subprocess.Popen):
    """It ends with its `with` block, which would else wait for it, for ever after a failure."""

    def __exit__(self, *exception) -> None:
        self.kill()
        super().__exit__(*exception)


def run_python(code: str, *arguments) -> Process:
    """A new process that knows the scripts and the tests, in a group of its own."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return Process(words, env=environment, start_new_session=True, **pipes)


def read_result(run_dir) -> dict:
    return json.loads((Path(run_dir) / "result.json").read_text())


def assert_same_weights(run_dir, other) -> None:
    """Bit for bit."""
    a, b = (load_file(Path(folder) / "agent.safetensors") for folder in (run_dir, other))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# ------------------------------------------------------------------------------- Fakes
class FakeEnvs:
    """N environments in this process, 3 numbers observed, 2 acted.

    Slot i's episodes are 3 + i steps long. Slots take turns in how their episodes end: terminated,
    truncated, both at once. It records each step, with who acted and the sampled action before it
    was clipped (see `use_fake_envs`).
    """

    made: list = []
    acted: dict = {}
    reward_scale = 1

    def __init__(self, env_id: str, num_envs: int, num_workers: int):
        self.num_envs, self.steps = num_envs, []
        self.lengths = 3 + np.arange(num_envs)
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.single_action_space = gym.spaces.Box(-0.5, 0.5, (2,), np.float32)
        FakeEnvs.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def draw(self) -> np.ndarray:
        return self.rng.normal(1.0, 2.0, (self.num_envs, 3))

    def reset(self, *, seed=None, options=None):
        self.rng = np.random.default_rng(seed)
        self.elapsed, self.returns = np.zeros(self.num_envs, int), np.zeros(self.num_envs)
        self.obs = self.draw()
        return self.obs, {}

    def step(self, actions):
        old, reached = self.obs, 0.5 * self.obs + self.draw()
        rewards = self.reward_scale * (reached[:, 0] + 3 * actions.sum(1))
        self.elapsed += 1
        self.returns += rewards
        over, kind = self.elapsed == self.lengths, np.arange(self.num_envs) % 3
        terminations, truncations = over & (kind != 1), over & (kind != 0)
        ended = np.flatnonzero(over)
        episodes = [(int(n), float(self.returns[n]), int(self.elapsed[n])) for n in ended]
        self.obs = np.where(over[:, None], self.draw(), reached)
        self.elapsed[over], self.returns[over] = 0, 0.0
        # `reached` is what each step led to, whether or not an episode ended there.
        self.steps.append(
            {"obs": old, "reached": reached, "rewards": rewards, **FakeEnvs.acted}
            | {"terminations": terminations, "truncations": truncations}
        )
        infos = {"episodes": episodes, "final_obs": {n: reached[n] for n in ended}}
        return self.obs, rewards, terminations, truncations, infos

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        """Only of a run that has all its steps."""


def use_fake_envs(script: types.ModuleType, monkeypatch) -> None:
    """Have a MuJoCo script step `FakeEnvs`, which remember who sampled what actions."""
    env_actions = script.MujocoAgent.env_actions

    def record_actions(agent, actions):
        FakeEnvs.acted = {"actor": agent, "actions": actions.double().numpy().copy()}
        return env_actions(agent, actions)

    monkeypatch.setattr(script.MujocoAgent, "env_actions", record_actions)
    monkeypatch.setattr(script, "MujocoVectorEnv", FakeEnvs)
    monkeypatch.setattr(FakeEnvs, "made", [])


class NoWriter:
    """Stands for TensorBoard's SummaryWriter and keeps the scalars."""

    scalars: dict = {}
    add_text = close = lambda self, *arguments: None

    def __init__(self, *arguments, **options):
        NoWriter.scalars = {}

    def add_scalar(self, name, value, step):
        NoWriter.scalars.setdefault(name, []).append(value)


class Malicious:
    """A pickle that creates a file when it is opened, if `function` is called."""

    def __init__(self, path, function=open):
        self.path, self.function = str(path), function

    def __reduce__(self):
        return self.function, (self.path, "w")


def make_spaces(observation_space: gym.Space, action_space: gym.Space) -> gym.Env:
    """What Stable-Baselines3 needs to make a model; it cannot be stepped."""
    env = gym.Env()
    env.observation_space, env.action_space = observation_space, action_space
    return env
