"""Speed in environment steps per second, side by side with peers and with the machine's limit.

    python benchmarks/speed.py mujoco                                   # all four environments
    python benchmarks/speed.py mujoco --envs Hopper-v4 --repeats 3      # a quicker look
    python benchmarks/speed.py atari --device cuda --options compile bfloat16
    python benchmarks/speed.py procgen --sb3-distill PATH               # with the authors' library
                                      # PATH: a clone of github.com/spiglerg/sb3_distill

Each in a separate process, one after the other, `--repeats` times over, so that a change of the
machine's mood meets all of them; reported are medians. Pixels on a CPU: rollouts of 32 steps. The
teacher is `teachers/<env-id>.safetensors`, or else one of random weights.

- `ppo`, `ppd`: this project's scripts as a user starts them, at the paper's hyperparameters. Timed
  from TensorBoard's entry after the first update to the last one: without start-up and scoring.
- `sb3_ppo`: Stable-Baselines3's PPO, without logging, with the same hyperparameters, networks,
  normalisation (VecNormalize) and simulators (of Atari: SB3's `make_atari_env`, VecFrameStack); on
  the vector environment and torch threads that are fastest in a first, shorter round.
- `sb3_distill`: the authors' PPD in the same way.
- `limit_ppo`, `limit_ppd`: 1 / (seconds of the simulator alone + seconds of the networks alone) per
  environment step, with the same switches and threads: random actions drawn beforehand; the policy
  at every step, critic and teacher once per rollout, both networks forward and backward on every
  minibatch. No sampling, normalisation, loss, optimiser, shuffling or logging. No run can reach
  it without overlapping simulator and networks.

The last line of output is one JSON object.
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
from itertools import pairwise, product
from pathlib import Path
from typing import Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # when run as a file, not as a module

from benchmarks import sb3  # noqa: E402

ENVS = {
    "mujoco": ("Hopper-v4", "HalfCheetah-v4", "Ant-v4", "Humanoid-v4"),
    "atari": ("PongNoFrameskip-v4", "MsPacmanNoFrameskip-v4"),
    "procgen": ("coinrun", "miner"),
}
CONTESTANTS = ("ppo", "sb3_ppo", "limit_ppo", "ppd", "sb3_distill", "limit_ppd")


@dataclass
class Args:
    suite: tyro.conf.Positional[Literal["mujoco", "atari", "procgen"]]  # what to measure
    envs: tuple[str, ...] = ()  # environment ids; unset: all of the suite
    only: tuple[str, ...] = ()  # contestants, for example ppd sb3_distill; unset: all
    repeats: int = 5  # rounds over all contestants, of which the medians are reported
    steps: int = 0  # measured, after a rollout that warms up; 0: 20,000, or a rollout of pixels
    num_steps: int = 0  # per environment and rollout; 0: the paper's, or 32 of pixels on a CPU
    student_size: str = "larger"  # of PPD: smaller, same or larger
    device: Literal["cpu", "cuda"] = "cpu"  # of all contestants
    options: tuple[Literal["compile", "bfloat16"], ...] = ()  # switches of the pixel scripts
    sb3_distill: Path | None = None  # a checkout of github.com/spiglerg/sb3_distill


class UserError(Exception):
    """Something a user can cause and mend: one line on stderr, exit status 2."""


def check_args(args: Args) -> None:
    """Refuse what cannot be measured. Raises UserError."""
    path = args.sb3_distill
    if path and not (path / "sb3_distill" / "__init__.py").exists():
        advice = "clone github.com/spiglerg/sb3_distill and name its path"
        raise UserError(f"--sb3-distill {path}: no package sb3_distill in it; {advice}")
    if args.repeats < 1 or min(args.steps, args.num_steps) < 0:
        raise UserError("--repeats must be at least 1, --steps and --num-steps at least 0")
    if not set(args.only) <= {*CONTESTANTS}:
        raise UserError(f"--only {' '.join(args.only)}: give some of {', '.join(CONTESTANTS)}")
    if args.options and args.suite == "mujoco":
        raise UserError(f"--options {args.options[0]}: only the pixel scripts have it")
    if "sb3_distill" in args.only and not path:
        raise UserError("--only sb3_distill: give --sb3-distill as well, a clone of the library")


# ------------------------------------------------------------------------------- Contestants
def our_scripts(args: Args) -> dict[str, tuple[str, list[str]]]:
    """Script and flags of each of this project's contestants."""
    flags = ["--device", args.device, *(f"--{name}" for name in args.options)]
    flags += ["--num-steps", str(args.num_steps)] if args.num_steps else []
    student = [*flags, "--student-size", args.student_size]
    return {"ppo": (f"ppo_teacher_{args.suite}", flags), "ppd": (f"ppd_{args.suite}", student)}


def script_args(script: str, flags: list[str], env_id: str):
    """The `Args` of one of the project's scripts: the paper's hyperparameters for `env_id`."""
    return tyro.cli(import_module(script).Args, args=["--env-id", env_id, *flags])


def run_quietly(command: list) -> str:
    """Run a program and return its output; what it says is shown only if it fails."""
    # Whatever a user set, every contestant chooses its own number of threads.
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env)
    if done.returncode:
        report = f"{done.stderr[-4000:]}\nspeed: error: exit status {done.returncode}"
        raise SystemExit(f"{report} of {' '.join(done.args)}")
    return done.stdout


def measure_apart(function: str, **arguments):
    """Call a function of this file in a fresh process; arguments and result are JSON."""
    measure = [sys.executable, __file__, "measure", function, json.dumps(arguments)]
    return json.loads(run_quietly(measure).splitlines()[-1])


def make_agent(ppo, envs, size):
    """A fresh agent for `envs`, of a script's classes."""
    shape, space = envs.single_observation_space.shape, envs.single_action_space
    if len(shape) == 1:
        return ppo.MujocoAgent(space.low, space.high, *shape, size)
    return ppo.PixelAgent(shape, int(space.n), size)


def find_teacher(suite: str, env_id: str, folder: str) -> Path:
    """The shipped teacher, or one of random weights: any will do where only speed counts."""
    teacher = ROOT / "teachers" / f"{env_id}.safetensors"
    if not teacher.exists():
        ppo = import_module(f"ppo_teacher_{suite}")
        args, teacher = ppo.Args(env_id=env_id), Path(folder) / "teacher.safetensors"
        envs, size = make_our_envs(suite, args), network_size(args)
        envs.reset(seed=0)  # Procgen's can be closed only then
        header = {"format": "ppd-agent-2", "script": ppo.__name__, "suite": suite, "seed": 0}
        header |= {"env_id": env_id, "steps": 0, "deterministic": True}
        header |= {"hidden_sizes" if suite == "mujoco" else "size": size}
        teacher.write_bytes(ppo.pack_agent(make_agent(ppo, envs, size).state_dict(), header))
        envs.close()
    return teacher


def measure_script(script: str, flags: list[str], env_id: str, steps: int, teacher: Path) -> float:
    """Steps per second of a script of this project.

    TensorBoard notes the time of each entry, one after each update: none of the scripts has to know
    of this benchmark.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = script_args(script, flags, env_id)
    steps += args.num_envs * args.num_steps  # the first rollout and update warm up
    command = [sys.executable, ROOT / f"{script}.py", "--env-id", env_id, *flags]
    command += ["--total-timesteps", steps, "--eval-every", 0, "--episodes", 1]
    command += ["--teacher", teacher] if script.startswith("ppd") else []
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        run_quietly([*command, "--run-dir", run_dir])
        events = EventAccumulator(str(run_dir))
        events.Reload()
        first, *_, last = events.Scalars("losses/value_loss")
    return (last.step - first.step) / (last.wall_time - first.wall_time)


def network_size(args):
    """Hidden layers on MuJoCo, else the name of a CNN."""
    names = ("hidden_sizes", "student_size", "size")
    return next(getattr(args, name) for name in names if hasattr(args, name))


def measure_sb3(
    script: str, flags: list, env_id: str, steps: int, teacher: str, library: str | None,
    vec_env: str = "DummyVecEnv", threads: int = 1,
) -> float:  # fmt: skip
    """Steps per second of SB3's PPO, or of the authors' `library`, set up as one of our scripts."""
    warnings.simplefilter("ignore")
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback

    times: list[float] = []

    class Clock(BaseCallback):
        """Notes when each rollout starts, and when the last update is done."""

        def _on_step(self) -> bool:
            return True

        def note(self) -> None:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

        _on_rollout_start = _on_training_end = note

    torch.set_num_threads(threads)
    args, suite = script_args(script, flags, env_id), script.split("_")[-1]
    rollout, envs = args.num_envs * args.num_steps, sb3.make_envs(suite, args, vec_env)
    settings = sb3.make_policy(suite, network_size(args)) | sb3.settings_of(args)
    if not script.startswith("ppd"):
        model = PPO(env=envs, **settings)
    else:
        sys.path.insert(0, library)
        import sb3_distill

        model = sb3_distill.ProximalPolicyDistillation(env=envs, **settings)
        sb3_teacher = sb3.make_teacher(suite, teacher, envs, sb3.settings_of(args))
        model.set_teacher(sb3_teacher, distill_lambda=args.distill_lambda, kl_mode=args.kl)
    model.learn(rollout + steps, callback=Clock())
    envs.close()
    return (len(times) - 2) * rollout / (times[-1] - times[1])  # the first one warms up


# ------------------------------------------------------------------------------- The limit
def make_our_envs(suite: str, args):
    """The vector environment of our scripts, as they make it."""
    ppo = import_module(f"ppo_teacher_{suite}")
    if suite == "mujoco":
        return ppo.MujocoVectorEnv(args.env_id, args.num_envs, args.num_workers)
    if suite == "procgen":
        return ppo.ProcgenVectorEnv(args, args.num_envs, args.env_threads)
    games = args.env_id, args.num_envs, args.env_threads, args.frame_skip
    return ppo.AtariGames(*games, life_loss=True)


def time_simulator(envs, seed: int, steps: int) -> float:
    """Seconds per environment step of a vector environment alone."""
    import numpy as np

    rounds, space = -(-steps // envs.num_envs), envs.single_action_space
    random = np.random.default_rng(seed)
    if space.shape:  # as a fresh policy acts: a standard normal, clipped
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


def time_passes(args, actor, critic, teacher, obs_shape: tuple) -> float:
    """Seconds per environment step of the networks in a rollout and update; the first warms up."""
    import torch

    # Frames as our networks take them: a pixel's channels are neighbours in memory.
    order = torch.channels_last if len(obs_shape) == 3 else torch.contiguous_format
    batch = args.num_envs * args.num_steps
    b_obs = torch.randn(batch, *obs_shape, device=args.device).to(memory_format=order)
    obs, chunks = b_obs[: args.num_envs], b_obs.split(args.minibatch_size)

    @torch.autocast(args.device, torch.bfloat16, enabled=getattr(args, "bfloat16", False))
    def rollout_and_update() -> None:
        with torch.no_grad():
            for _ in range(args.num_steps):
                actor(obs)
            for chunk in chunks:
                critic(chunk)
                if teacher is not None:
                    teacher(chunk)
        for chunk in chunks * args.update_epochs:
            (actor(chunk).sum() + critic(chunk).sum()).backward()
            actor.zero_grad(), critic.zero_grad()
        if args.device == "cuda":
            torch.cuda.synchronize()

    times = [time.perf_counter()]
    while len(times) < 4 or times[-1] - times[0] < 3:
        rollout_and_update()
        times.append(time.perf_counter())
    return statistics.median(b - a for a, b in pairwise(times[1:])) / batch


def measure_limit(script: str, flags: list, env_id: str, steps: int, teacher: str) -> float:
    """Steps per second that simulator and networks alone leave to one of our scripts."""
    import torch

    args, suite = script_args(script, flags, env_id), script.split("_")[-1]
    torch.set_num_threads(args.torch_threads)
    # A long look at the simulator, on pixels as well, where a few steps cost nothing.
    envs = make_our_envs(suite, args)
    seconds = time_simulator(envs, seed=100, steps=max(steps, 5000))
    envs.close()
    ppo = import_module(f"ppo_teacher_{suite}")
    asked = getattr(ppo, f"load_{suite}_agent")(teacher)[0].to(args.device).actor
    asked = asked if script.startswith("ppd") else None
    agent = make_agent(ppo, envs, network_size(args))
    if suite != "mujoco" and args.device == "cuda":
        agent.to(memory_format=torch.channels_last)
    options = {"mode": "reduce-overhead", "dynamic": False, "isolate_recompiles": True}
    for network in (agent.actor, agent.critic) if getattr(args, "compile", False) else ():
        network.forward = torch.compile(network.forward, **options)
    agent.to(args.device)
    return 1 / (
        seconds
        + time_passes(args, agent.actor, agent.critic, asked, envs.single_observation_space.shape)
    )


# ------------------------------------------------------------------------------- Report
def best_setting(suite: str, device: str, name: str, measure) -> dict:
    """The fastest of SB3's vector environments and thread counts; prints a line about all."""
    kinds, cores = ("DummyVecEnv", "SubprocVecEnv"), os.cpu_count()
    if suite == "procgen" or (suite == "atari" and device == "cpu"):
        kinds = kinds[:1]  # Procgen has its own threads; Atari's simulator hardly counts here
    threads = {1, cores} if suite == "mujoco" else {cores}
    settings = [{"vec_env": k, "threads": t} for k, t in product(kinds, sorted(threads))]
    rates = [measure(**setting) for setting in settings] if len(settings) > 1 else [0.0]
    for rate, setting in zip(rates, settings, strict=True):
        print(f"{name}: {setting}, in a first round {rate:,.0f} steps/s", flush=True)
    return settings[rates.index(max(rates))]


def table_row(*cells) -> str:
    texts = [c if isinstance(c, str) else f"{c:,.{1 if c < 100 else 0}f}" for c in cells]
    return f"| {' | '.join(texts)} |"


def measure_env(args: Args, env_id: str) -> dict[str, float | None]:
    """All contestants in one environment, in turn; prints its table, returns the medians."""
    print(f"\n### {env_id}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        teacher = str(find_teacher(args.suite, env_id, folder))
        contestants = {}
        for name, peer in (("ppo", "sb3_ppo"), ("ppd", "sb3_distill")):
            script, flags = our_scripts(args)[name]
            run = {"script": script, "env_id": env_id, "steps": args.steps, "teacher": teacher}
            contestants[name] = partial(measure_script, flags=flags, **run)
            plain = [flag for flag in flags if flag.removeprefix("--") not in args.options]
            library = {"flags": plain, "library": str(args.sb3_distill)}
            contestants[peer] = partial(measure_apart, "measure_sb3", **run, **library)
            contestants[f"limit_{name}"] = partial(
                measure_apart, "measure_limit", flags=flags, **run
            )
        wanted = args.only or [n for n in CONTESTANTS if n != "sb3_distill" or args.sb3_distill]
        contestants = {name: contestants[name] for name in CONTESTANTS if name in wanted}
        for name in contestants.keys() & {"sb3_ppo", "sb3_distill"}:
            shorter = partial(contestants[name], steps=max(1, args.steps // 4))
            setting = best_setting(args.suite, args.device, name, shorter)
            contestants[name] = partial(contestants[name], **setting)
        print("\n" + table_row("steps/s", *contestants))
        print("|" + "---|" * (len(contestants) + 1), flush=True)
        rounds = []
        for number in range(args.repeats):
            rounds.append([measure() for measure in contestants.values()])
            print(table_row(f"{number + 1}", *rounds[-1]), flush=True)
    medians = dict(zip(contestants, map(statistics.median, zip(*rounds, strict=True)), strict=True))
    print(table_row("median", *medians.values()) + "\n")
    for name, *others in (CONTESTANTS[:3], CONTESTANTS[3:]):
        for other in [other for other in others if {name, other} <= medians.keys()]:
            print(f"{name}: {medians[name] / medians[other]:.2f} × {other}", flush=True)
    return {name: round(medians[name], 1) if name in medians else None for name in CONTESTANTS}


def main() -> None:
    if sys.argv[1:2] == ["measure"]:  # how `measure_apart` starts its process
        function, arguments = sys.argv[2:]
        print(json.dumps(globals()[function](**json.loads(arguments))))
        return
    args = tyro.cli(Args, description=__doc__)
    try:
        check_args(args)
    except UserError as error:
        print(f"speed: error: {error}", file=sys.stderr)
        sys.exit(2)
    if args.suite != "mujoco" and args.device == "cpu":
        args.num_steps, args.steps = args.num_steps or 32, args.steps or 1
    args.steps = args.steps or 20_000
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    envs = {env_id: measure_env(args, env_id) for env_id in args.envs or ENVS[args.suite]}
    print(flush=True)
    print(json.dumps({"suite": args.suite, "device": args.device, "envs": envs}))


if __name__ == "__main__":
    main()
