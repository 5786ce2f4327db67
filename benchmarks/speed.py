"""Speed in environment steps per second, side by side with peers and with the machine's limit.

    python benchmarks/speed.py mujoco                                   # all four environments
    python benchmarks/speed.py mujoco --envs Hopper-v4 --repeats 3      # a quicker look
    python benchmarks/speed.py atari --device cuda --options compile bfloat16
    python benchmarks/speed.py procgen --sb3-distill PATH               # with the authors' library
                                      # PATH: a clone of github.com/spiglerg/sb3_distill

What is measured, each in a process of its own, one after the other, `--repeats` times over (A B C,
A B C, …, so that a change of the machine's mood meets all of them), and reported as medians:

- `ppo`, `ppd`, `ppd_smaller`, `sd`, `td`: this project's scripts, started as a user starts them,
  with the paper's hyperparameters; the student is the larger one, but for `ppd_smaller`. Timed
  between the TensorBoard entries after the first update (`sd`, `td`: after 10,000 steps) and after
  the last, so start-up and scoring are left out.
- `sb3_ppo`: Stable-Baselines3's PPO with the same hyperparameters, networks (separate) and
  normalisation (VecNormalize), on the same simulators (of Atari: through SB3's `make_atari_env`
  and VecFrameStack), without any logging. On DummyVecEnv or SubprocVecEnv, with one torch thread or
  one per core: the fastest in a first, shorter round, which its line names. Pixels are given one
  thread per core; Procgen has threads of its own, and where a CPU runs the networks of Atari, its
  simulator hardly counts and is a DummyVecEnv.
- `sb3_distill_…`: the authors' library in the same way, or null.
- `limit_*`: 1 / (seconds of the simulator alone + seconds of the forward and backward passes
  alone), per environment step. The simulator: this project's vector environment under random
  actions drawn beforehand. The passes: the policy once per vector step, critic and teacher once per
  rollout, then policy and critic forward and backward on every minibatch of the update, at the
  faster of one torch thread and one per core (pixels: one per core). No sampling, normalisation,
  loss, optimiser, shuffling or logging. No run can reach it without overlapping simulator and
  networks.

On a CPU the paper's rollouts take minutes with pixels: there a rollout is 32 steps per environment.
Teacher: `teachers/<env-id>.safetensors` where that exists, for every contestant, or else one that
has hardly been trained. The last line of output is one JSON object.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
ENVS = {
    "mujoco": ("Hopper-v4", "HalfCheetah-v4", "Ant-v4", "Humanoid-v4"),
    "atari": ("PongNoFrameskip-v4", "MsPacmanNoFrameskip-v4"),
    "procgen": ("coinrun", "miner"),
}
PEERS = {  # and whom they are compared with
    "sb3_ppo": "ppo",
    "sb3_distill_ppd": "ppd",
    "sb3_distill_ppd_smaller": "ppd_smaller",
    "sb3_distill_sd": "sd",
    "sb3_distill_td": "td",
}


@dataclass
class Args:
    suite: tyro.conf.Positional[Literal["mujoco", "atari", "procgen"]]
    """what to measure"""
    envs: tuple[str, ...] = ()
    """environment ids; unset: all of the suite"""
    only: tuple[str, ...] = ()
    """contestants, for example ppd sb3_distill_ppd; unset: all"""
    repeats: int = 5
    """rounds over all contestants, of which the medians are reported"""
    steps: int | None = None
    """environment steps of one measurement, in whole rollouts, after one that warms up; unset:
    20,000, or one rollout with pixels on a CPU"""
    num_steps: int | None = None
    """steps per environment and rollout of PPO and PPD; unset: the paper's, or 32 with pixels on a
    CPU"""
    device: str = "cpu"
    """torch device of all contestants, for example cuda"""
    options: tuple[str, ...] = ()
    """switches of this project's scripts, for example compile bfloat16"""
    sb3_distill: Path | None = None
    """a checkout of github.com/spiglerg/sb3_distill, to measure the authors' library as well"""


class UserError(Exception):
    """Something a user can cause and mend: one line, the cause and the remedy; exit status 2."""


def check_args(args: Args) -> None:
    """Refuse what cannot be measured. Raises UserError."""
    path, known = args.sb3_distill, [*our_scripts(args), *PEERS]
    if path and not (path / "sb3_distill" / "__init__.py").exists():
        advice = "clone github.com/spiglerg/sb3_distill and name its path"
        raise UserError(f"--sb3-distill {path}: no package sb3_distill in it; {advice}")
    if min(args.repeats, args.steps, args.num_steps or 1) < 1:
        raise UserError("--repeats, --steps and --num-steps must be at least 1")
    if not set(args.only) <= {*known}:
        raise UserError(f"--only {' '.join(args.only)}: give some of {', '.join(known)}")


# ------------------------------------------------------------------------------- Contestants


def our_scripts(args: Args) -> dict[str, tuple[str, list[str]]]:
    """Script and flags of each of this project's contestants."""
    larger, smaller = ["--student-size", "larger"], ["--student-size", "smaller"]
    flags = ["--device", args.device]
    rollout = [] if args.num_steps is None else ["--num-steps", str(args.num_steps)]
    options = [f"--{name}" for name in args.options] + rollout
    scripts = {
        "ppo": (f"ppo_teacher_{args.suite}", [*flags, *options]),
        "ppd": (f"ppd_{args.suite}", [*flags, *options, *larger]),
        "ppd_smaller": (f"ppd_{args.suite}", [*flags, *options, *smaller]),
    }
    if args.suite == "mujoco":
        scripts["sd"] = ("student_distill", [args.suite, *flags, *larger])
        scripts["td"] = ("teacher_distill", [args.suite, *flags, *larger])
    return scripts


def script_args(script: str, flags: list[str], env_id: str):
    """The `Args` of one of the project's scripts: the paper's hyperparameters for `env_id`."""
    module = import_module(script)
    if script.endswith("distill"):  # a subcommand for each suite
        suite, *flags = flags
        return tyro.cli(getattr(module, f"{suite.title()}Args"), args=["--env-id", env_id, *flags])
    return tyro.cli(module.Args, args=["--env-id", env_id, *flags])


def run_quietly(command: list) -> str:
    """Run a program and return its output; what it says is shown only if it fails."""
    # Whatever a user set, every contestant chooses its own number of threads.
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env)
    if done.returncode:
        report = f"{done.stderr[-4000:]}\nspeed: error: exit status {done.returncode}"
        raise SystemExit(f"{report} (negative: ended by that signal) of {' '.join(done.args)}")
    return done.stdout


def measure_apart(function: str, **arguments):
    """Call a function of this file in a fresh process; arguments and result are JSON."""
    measure = [sys.executable, __file__, "measure", function, json.dumps(arguments)]
    return json.loads(run_quietly(measure).splitlines()[-1])


def train_random_teacher(args: Args, env_id: str, folder: str) -> Path:
    """A teacher after one small update: any will do where only speed counts."""
    script, flags = our_scripts(args)["ppo"]
    once = ["--num-steps", 8, "--total-timesteps", 1, "--eval-every", 0, "--episodes", 1]
    run_dir = Path(folder) / "teacher"
    command = [sys.executable, ROOT / f"{script}.py", "--env-id", env_id, *flags, *once]
    run_quietly([*command, "--run-dir", run_dir])
    return run_dir / "agent.safetensors"


# ------------------------------------------------------------------------------- Our scripts


def measure_script(script: str, flags: list[str], env_id: str, steps: int, teacher: Path) -> float:
    """Steps per second of a script of this project, run by its command line.

    TensorBoard notes the time of each entry, one after each update or so: none of the scripts has
    to know of this benchmark.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = script_args(script, flags, env_id)
    warm_up = max(args.batch_size, getattr(args, "log_every", 0))
    suite = flags[:1] if script.endswith("distill") else []
    command = [sys.executable, ROOT / f"{script}.py", *suite, "--env-id", env_id]
    command += flags[len(suite) :]
    command += ["--total-timesteps", warm_up + steps, "--eval-every", 0, "--episodes", 1]
    if not script.startswith("ppo"):
        command += ["--teacher", teacher, "--teacher-episodes", 1]
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        run_quietly([*command, "--run-dir", run_dir])
        events = EventAccumulator(str(run_dir))
        events.Reload()
        updates = events.Scalars("losses/value_loss")
    first, last = updates[0], updates[-1]
    return (last.step - first.step) / (last.wall_time - first.wall_time)


# ------------------------------------------------------------------------------- SB3


def make_sb3_envs(suite: str, args, vec_env: str):
    """SB3's vector environment, with its normalisation, for the `args` of one of our scripts."""
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import (
        DummyVecEnv,
        SubprocVecEnv,
        VecEnv,
        VecFrameStack,
        VecNormalize,
    )

    class ProcgenVecEnv(VecEnv):
        """Our Procgen games, which are ProcgenGym3Env and a transposition, as SB3 wants them."""

        def __init__(self, envs):
            self.envs = envs
            super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

        def reset(self):
            return self.envs.reset(seed=args.seed)[0].copy()

        def step_async(self, actions):
            self.actions = actions

        def step_wait(self):
            obs, rewards, ended, _, _ = self.envs.step(self.actions)
            return obs.copy(), rewards, ended, [{} for _ in ended]

        def close(self):
            self.envs.close()

        def get_attr(self, attr_name, indices=None):
            return [getattr(self.envs, attr_name)] * self.num_envs

        def env_is_wrapped(self, wrapper_class, indices=None):
            return [False] * self.num_envs

        # Abstract in VecEnv; PPO calls neither.
        def set_attr(self, attr_name, value, indices=None):
            raise NotImplementedError

        def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
            raise NotImplementedError

    ppo = import_module(f"ppo_teacher_{suite}")
    kind = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}.get(vec_env)
    same = {"n_envs": args.num_envs, "seed": args.seed, "vec_env_cls": kind}
    if suite == "mujoco":
        return VecNormalize(make_vec_env(partial(ppo.make_mujoco_env, args.env_id), **same))
    if suite == "atari":
        import ale_py
        import gymnasium as gym

        gym.register_envs(ale_py)
        wrapper = {"clip_reward": False, "frame_skip": args.frame_skip}
        envs = VecFrameStack(make_atari_env(args.env_id, wrapper_kwargs=wrapper, **same), 4)
    else:
        envs = ProcgenVecEnv(ppo.make_procgen_envs(args, args.num_envs, os.cpu_count()))
    return VecNormalize(envs, norm_obs=False)


def make_sb3_policy(suite: str, size) -> dict:
    """SB3's policy class and its arguments: our networks of that size (MuJoCo: hidden layers)."""
    import torch
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    ppo = import_module(f"ppo_teacher_{suite}")

    class PaperCNN(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            cnn, features = ppo.make_cnn(size, observation_space.shape)
            super().__init__(observation_space, features)
            self.cnn = cnn

        def forward(self, frames):
            return self.cnn(frames)

    if suite == "mujoco":
        net_arch = {"pi": list(size), "vf": list(size)}
        kwargs = {"net_arch": net_arch, "activation_fn": torch.nn.ReLU}
        return {"policy": "MlpPolicy", "policy_kwargs": kwargs}
    kwargs = {"net_arch": [], "features_extractor_class": PaperCNN}
    kwargs["share_features_extractor"] = False
    return {"policy": "CnnPolicy", "policy_kwargs": kwargs}


def sb3_settings(script: str, args) -> dict:
    """The arguments of SB3's algorithm, but for policy and environments, for one of our `Args`."""
    settings = {"device": args.device, "seed": args.seed, "n_steps": args.num_steps}
    settings |= {"learning_rate": args.learning_rate, "ent_coef": args.ent_coef}
    settings |= {"vf_coef": args.vf_coef, "max_grad_norm": args.max_grad_norm}
    if not script.endswith("distill"):
        settings |= {"batch_size": args.minibatch_size, "n_epochs": args.update_epochs}
        settings |= {"gamma": args.gamma, "gae_lambda": args.gae_lambda}
        settings |= {"clip_range": args.clip_coef}
    return settings


def sb3_layers(suite: str, policy, agent) -> list[tuple]:
    """Pairs of modules, SB3's and ours, that hold the same weights."""
    if suite == "mujoco":
        hidden = policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net
        ours = agent.actor[:-1], agent.critic[:-1]
    else:
        hidden = policy.pi_features_extractor.cnn, policy.vf_features_extractor.cnn
        ours = agent.actor[0], agent.critic[0]
    heads = [(policy.action_net, agent.actor[-1]), (policy.value_net, agent.critic[-1])]
    return [*zip(hidden, ours, strict=True), *heads]


def make_sb3_teacher(suite: str, path: str, envs, settings: dict):
    """One of our teachers as SB3's PPO; on MuJoCo `envs` are given its observation statistics."""
    from stable_baselines3 import PPO

    ppo = import_module(f"ppo_teacher_{suite}")
    agent, header = getattr(ppo, f"load_{suite}_agent")(path, settings["device"])
    size = header["hidden_sizes" if suite == "mujoco" else "size"]
    teacher = PPO(env=envs, **make_sb3_policy(suite, size), **settings)
    for theirs, ours in sb3_layers(suite, teacher.policy, agent):
        theirs.load_state_dict(ours.state_dict())
    if suite == "mujoco":
        teacher.policy.log_std.data.copy_(agent.log_std)
        envs.obs_rms.mean, envs.obs_rms.var = agent.obs_mean.numpy(), agent.obs_var.numpy()
        envs.obs_rms.count = float(agent.obs_count)
    return teacher


def measure_sb3(
    suite: str, script: str, flags: list, env_id: str, steps: int, teacher, library, vec_env: str,
    threads: int,
) -> float:  # fmt: skip
    """Steps per second of SB3's PPO, or of the authors' `library`, set up as one of our scripts."""
    warnings.simplefilter("ignore")
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback

    class Clock(BaseCallback):
        """Notes when each rollout starts, and when the last update is done."""

        times: list[float] = []

        def _on_step(self) -> bool:
            return True

        def note(self) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

        _on_rollout_start = _on_training_end = note

    torch.set_num_threads(threads)
    args = script_args(script, flags, env_id)
    envs = make_sb3_envs(suite, args, vec_env)
    settings = sb3_settings(script, args)
    policy = make_sb3_policy(suite, args.hidden_sizes if suite == "mujoco" else args.network)
    if library is None:
        model = PPO(env=envs, **policy, **settings)
    else:
        sys.path.insert(0, library)
        import sb3_distill

        classes = {"student": sb3_distill.StudentDistill, "teacher": sb3_distill.TeacherDistill}
        classes["ppd"] = sb3_distill.ProximalPolicyDistillation
        method = script.split("_")[0]
        model = classes[method](env=envs, **policy, **settings)
        sb3_teacher = make_sb3_teacher(suite, teacher, envs, settings)
        if method == "ppd":
            model.set_teacher(sb3_teacher, distill_lambda=args.distill_lambda, kl_mode=args.kl)
        else:
            model.set_teacher(sb3_teacher)
    clock = Clock()
    model.learn(args.batch_size + steps, callback=clock)
    envs.close()
    rollouts = len(clock.times) - 2  # the first rollout and its update warm up
    return rollouts * args.batch_size / (clock.times[-1] - clock.times[1])


# ------------------------------------------------------------------------------- The limit


def make_our_envs(suite: str, args):
    """The vector environment of our scripts, as they make it."""
    ppo, cores = import_module(f"ppo_teacher_{suite}"), os.cpu_count()
    if suite == "mujoco":
        return ppo.MujocoVectorEnv(args.env_id, args.num_envs, args.num_workers or cores)
    threads = args.env_threads or cores
    if suite == "atari":
        return ppo.AtariGames(args.env_id, args.num_envs, threads, args.frame_skip, life_loss=True)
    return ppo.make_procgen_envs(args, args.num_envs, threads)


def time_simulator(envs, seed: int, steps: int) -> float:
    """Seconds per environment step of a vector environment alone."""
    import gymnasium as gym
    import numpy as np

    rounds, space = -(-steps // envs.num_envs), envs.single_action_space
    random = np.random.default_rng(seed)
    if isinstance(space, gym.spaces.Box):  # as a fresh policy acts: a standard normal, clipped
        actions = random.normal(size=(rounds + 50, envs.num_envs, *space.shape))
        actions = actions.clip(space.low, space.high).astype(space.dtype)
    else:
        actions = random.integers(space.n, size=(rounds + 50, envs.num_envs))
    envs.reset(seed=seed)
    for number, action in enumerate(actions):
        if number == 50:  # the first ones warm up
            start = time.perf_counter()
        envs.step(action)
    return (time.perf_counter() - start) / (rounds * envs.num_envs)


def time_passes(script: str, args, agent, teacher, obs_shape: tuple, seconds: float) -> float:
    """Seconds per environment step of the forward and backward passes of one rollout and update.

    On a CPU alternates between one thread and one per core for about `seconds`, and takes the
    faster one's median; pixels are given one per core. The first round of each warms up.
    """
    import torch

    device, minibatch_size = args.device, getattr(args, "minibatch_size", args.batch_size)
    actor, critic = agent.actor, agent.critic
    # Frames as our networks take them: a pixel's channels are neighbours in memory.
    order = torch.channels_last if len(obs_shape) == 3 else torch.contiguous_format
    b_obs = torch.randn(args.batch_size, *obs_shape, device=device).to(memory_format=order)
    obs, chunks = b_obs[: args.num_envs], b_obs.split(minibatch_size)
    acting = teacher.actor if script == "teacher_distill" else actor

    def rollout_and_update() -> None:
        with torch.no_grad():
            for _ in range(args.num_steps):
                acting(obs)
            for chunk in chunks:
                if script.endswith("distill"):
                    teacher.actor(chunk), teacher.critic(chunk)
                else:
                    critic(chunk)
                if script.startswith("ppd"):
                    teacher.actor(chunk)
        for _ in range(getattr(args, "update_epochs", 1)):
            for chunk in chunks:
                (actor(chunk).sum() + critic(chunk).sum()).backward()
                actor.zero_grad(), critic.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()

    cores = torch.get_num_threads()
    taken = {threads: [] for threads in ({1, cores} if len(obs_shape) == 1 else {cores})}
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(taken[cores]) < 2:
        for threads in taken:
            torch.set_num_threads(threads)
            start = time.perf_counter()
            rollout_and_update()
            taken[threads].append(time.perf_counter() - start)
    torch.set_num_threads(cores)
    return min(statistics.median(times[1:]) for times in taken.values()) / args.batch_size


def measure_limits(suite: str, scripts: dict, env_id: str, steps: int, teacher: str) -> dict:
    """Steps per second that the simulator and the passes alone leave to each of our scripts."""
    import torch  # before our scripts: with OpenMP's own settings, not with theirs

    ours = {name: script_args(*script, env_id) for name, script in scripts.items()}
    # Its seconds are worth a long look on pixels as well, where a few steps cost nothing.
    envs = make_our_envs(suite, next(iter(ours.values())))
    simulator = time_simulator(envs, seed=100, steps=max(steps, 5000))
    obs_shape, space = envs.single_observation_space.shape, envs.single_action_space
    envs.close()
    ppo, limits = import_module(f"ppo_teacher_{suite}"), {}
    for name, args in ours.items():
        teacher_agent, _ = getattr(ppo, f"load_{suite}_agent")(teacher, args.device)
        if suite == "mujoco":
            bounds = torch.tensor(space.low), torch.tensor(space.high)
            agent = ppo.MujocoAgent(*bounds, *obs_shape, args.hidden_sizes)
        else:
            agent = ppo.PixelAgent(obs_shape, int(space.n), args.network)
        both = agent.to(args.device), teacher_agent
        passes = time_passes(scripts[name][0], args, *both, obs_shape, seconds=3)
        limits[f"limit_{name}"] = 1 / (simulator + passes)
    return limits


# ------------------------------------------------------------------------------- Report


def best_setting(suite: str, device: str, name: str, measure) -> tuple[dict, str]:
    """The fastest of SB3's vector environments and thread counts, and a line about all."""
    kinds, cores = ("DummyVecEnv", "SubprocVecEnv"), os.cpu_count()
    if suite == "procgen" or (suite == "atari" and device == "cpu"):
        vec_env = "DummyVecEnv" if suite == "atari" else "Procgen's own threads"
        return {"vec_env": vec_env, "threads": cores}, f"{name}: {vec_env}, {cores} torch threads"
    threads = sorted({1, cores}) if device == "cpu" else [cores]
    rates = {each: measure(vec_env=each[0], threads=each[1]) for each in product(kinds, threads)}
    vec_env, threads = max(rates, key=rates.get)
    tried = ", ".join(f"{kind}/{count} {rate:,.0f}" for (kind, count), rate in rates.items())
    line = f"{name}: {vec_env}, {threads} torch threads (steps/s of each: {tried})"
    return {"vec_env": vec_env, "threads": threads}, line


def table_row(*cells) -> str:
    texts = [
        cell if isinstance(cell, str) else f"{cell:,.{1 if cell < 100 else 0}f}" for cell in cells
    ]
    return "| " + " | ".join(texts) + " |"


def measure_env(args: Args, env_id: str) -> dict[str, float | None]:
    """All contestants in one environment, in turn; prints its table, returns the medians."""
    library = args.sb3_distill and str(args.sb3_distill.resolve())
    all_scripts = our_scripts(args)
    scripts = {
        name: script for name, script in all_scripts.items() if not args.only or name in args.only
    }
    peers = [name for name, ours in PEERS.items() if ours in all_scripts]
    run = {"env_id": env_id, "steps": args.steps}
    print(f"\n### {env_id}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        teacher = ROOT / "teachers" / f"{env_id}.safetensors"
        if not teacher.exists():
            teacher = train_random_teacher(args, env_id, folder)
        contestants = {
            name: partial(measure_script, *script, **run, teacher=teacher)
            for name, script in scripts.items()
        }
        for name in peers:
            if (name == "sb3_ppo" or library) and (not args.only or name in args.only):
                script, flags = all_scripts[PEERS[name]]
                flags = [flag for flag in flags if flag.removeprefix("--") not in args.options]
                peer = partial(measure_apart, "measure_sb3", suite=args.suite, script=script)
                path = None if name == "sb3_ppo" else library
                peer = partial(peer, flags=flags, teacher=str(teacher), library=path, **run)
                shorter = partial(peer, steps=max(1, args.steps // 4))
                setting, line = best_setting(args.suite, args.device, name, shorter)
                print(line, flush=True)
                contestants[name] = partial(peer, **setting)
        limits = [f"limit_{name}" for name in scripts]
        rates = {name: [] for name in (*contestants, *limits)}
        limit = {"suite": args.suite, "scripts": scripts, "teacher": str(teacher)}
        print("\n" + table_row("steps/s", *rates))
        print(table_row(*["---"] * (len(rates) + 1)), flush=True)
        for repeat in range(args.repeats):
            for name, measure in contestants.items():
                rates[name].append(measure())
            for name, rate in measure_apart("measure_limits", **limit, **run).items():
                rates[name].append(rate)
            print(table_row(f"{repeat + 1}", *[found[-1] for found in rates.values()]), flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(table_row("median", *medians.values()) + "\n")
    for name in scripts:
        text = f"{name}: {medians[name] / medians[f'limit_{name}']:.2f} of its limit"
        for peer in (peer for peer, ours in PEERS.items() if ours == name and peer in medians):
            text += f", {medians[name] / medians[peer]:.2f} × {peer}"
        print(text, flush=True)
    order = [*all_scripts, *peers, *(f"limit_{name}" for name in all_scripts)]
    return {name: round(medians[name], 1) if name in medians else None for name in order}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["measure"]:  # how `measure_apart` starts its process
        function, arguments = sys.argv[2:]
        print(json.dumps(globals()[function](**json.loads(arguments))))
        return
    args = tyro.cli(Args, description=__doc__)
    slow = args.suite != "mujoco" and args.device == "cpu"
    if slow and args.num_steps is None:
        args.num_steps = 32
    if args.steps is None:
        args.steps = 1 if slow else 20_000
    try:
        check_args(args)
    except UserError as error:
        print(f"speed: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    envs = {env_id: measure_env(args, env_id) for env_id in args.envs or ENVS[args.suite]}
    print(flush=True)
    print(json.dumps({"suite": args.suite, "device": args.device, "envs": envs}))


if __name__ == "__main__":
    main()
