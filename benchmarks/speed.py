"""Speed in environment steps per second, side by side with peers and with the machine's limit.

    python benchmarks/speed.py mujoco                                   # all four environments
    python benchmarks/speed.py mujoco --envs Hopper-v4 --repeats 3      # a quicker look
    python benchmarks/speed.py mujoco --sb3-distill PATH                # with the authors' library
                                      # PATH: a clone of github.com/spiglerg/sb3_distill

What is measured, each in a process of its own, one after the other, `--repeats` times over (A B C,
A B C, …, so that a change of the machine's mood meets all of them), and reported as medians:

- `ppo`, `ppd`, `ppd_smaller`: this project's scripts, started as a user starts them, with the
  paper's hyperparameters; the student is the larger or the smaller one. Timed between the
  TensorBoard entries of the first and of the last update, so start-up and scoring are left out.
- `sb3_ppo`: Stable-Baselines3's PPO with the same hyperparameters, networks (separate, ReLU) and
  normalisation (VecNormalize), on the same simulators (Gymnasium's environment checker off),
  without any logging. On DummyVecEnv or SubprocVecEnv, with one torch thread or one per core: the
  fastest of the four in a first, shorter round, which its line names.
- `sb3_distill_ppd`, `sb3_distill_ppd_smaller`: the authors' PPD in the same way, or null.
- `limit_*`: 1 / (seconds of the simulator alone + seconds of the forward and backward passes
  alone), per environment step. The simulator: this project's vector environment under random
  actions drawn beforehand. The passes: the policy once per vector step, critic and teacher once per
  rollout, then policy and critic forward and backward on every minibatch of the update, at the
  faster of one torch thread and one per core. No sampling, normalisation, loss, optimiser,
  shuffling or logging. No run can reach it without overlapping simulator and networks.

Teacher: `teachers/<env-id>.safetensors` where that exists, for every contestant, or else random
weights. The last line of output is one JSON object.
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
from itertools import product
from pathlib import Path
from typing import Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
ENVS = {"mujoco": ("Hopper-v4", "HalfCheetah-v4", "Ant-v4", "Humanoid-v4")}
# of each suite: script and flags of the project's contestants
SCRIPTS = {
    "mujoco": {
        "ppo": ("ppo_teacher_mujoco", ()),
        "ppd": ("ppd_mujoco", ("--student-size", "larger")),
        "ppd_smaller": ("ppd_mujoco", ("--student-size", "smaller")),
    }
}
PEERS = {"sb3_ppo": "ppo", "sb3_distill_ppd": "ppd", "sb3_distill_ppd_smaller": "ppd_smaller"}


@dataclass
class Args:
    suite: tyro.conf.Positional[Literal["mujoco"]]
    """what to measure"""
    envs: tuple[str, ...] = ()
    """environment ids; unset: all of the suite"""
    repeats: int = 5
    """rounds over all contestants, of which the medians are reported"""
    steps: int = 20_000
    """environment steps of one measurement, in whole rollouts, after one that warms up"""
    sb3_distill: Path | None = None
    """a checkout of github.com/spiglerg/sb3_distill, to measure the authors' PPD as well"""


# ------------------------------------------------------------------------------- Measurements


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


def script_args(script: str, flags: tuple[str, ...], env_id: str):
    """The `Args` of one of the project's scripts: the paper's hyperparameters for `env_id`."""
    return tyro.cli(__import__(script).Args, args=["--env-id", env_id, *flags])


def save_random_teacher(env_id: str, path: str) -> bool:
    """Write a teacher with fresh networks, as `ppo_teacher_mujoco.py` would start with."""
    import torch

    import ppo_teacher_mujoco as ppo

    env = ppo.make_mujoco_env(env_id)
    bounds = torch.tensor(env.action_space.low), torch.tensor(env.action_space.high)
    sizes = ppo.mlp_sizes("same")
    agent = ppo.MujocoAgent(*bounds, *env.observation_space.shape, sizes)
    header = {"format": "ppd-agent-1", "suite": "mujoco", "script": "ppo_teacher_mujoco"}
    header |= {"env_id": env_id, "hidden_sizes": sizes, "seed": 0, "deterministic": True}
    ppo.save_agent(agent, Path(path), header)
    return True


def measure_script(script: str, flags: tuple[str, ...], env_id: str, steps: int, teacher) -> float:
    """Steps per second of a script of this project, run by its command line.

    TensorBoard notes the time of each entry, one after each update: none of the scripts has to
    know of this benchmark.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    batch_size = script_args(script, flags, env_id).batch_size
    command = [sys.executable, ROOT / f"{script}.py", "--env-id", env_id, *flags]
    command += ["--total-timesteps", batch_size + steps, "--eval-every", 0, "--episodes", 1]
    if script.startswith("ppd"):
        command += ["--teacher", teacher, "--teacher-episodes", 1]
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        run_quietly([*command, "--run-dir", run_dir])
        events = EventAccumulator(str(run_dir))
        events.Reload()
        updates = events.Scalars("losses/value_loss")
    first, last = updates[0], updates[-1]
    return (last.step - first.step) / (last.wall_time - first.wall_time)


def measure_sb3(
    script: str, flags: list, env_id: str, steps: int, teacher, library, vec_env: str, threads: int
) -> float:
    """Steps per second of SB3's PPO, or of the PPD in `library`, set up as one of our scripts."""
    warnings.simplefilter("ignore")
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

    import ppo_teacher_mujoco as ppo

    class Clock(BaseCallback):
        """Notes when each rollout starts, and when the last update is done."""

        times: list[float] = []

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            self.times.append(time.perf_counter())

        def _on_training_end(self) -> None:
            self.times.append(time.perf_counter())

    def make_policy(sizes) -> dict:
        net_arch = {"pi": list(sizes), "vf": list(sizes)}
        return {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": net_arch, **relu}}

    torch.set_num_threads(threads)
    relu = {"activation_fn": torch.nn.ReLU}
    args = script_args(script, flags, env_id)
    vec_env_cls = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}[vec_env]
    make_env = partial(ppo.make_mujoco_env, env_id)
    envs = make_vec_env(make_env, args.num_envs, seed=args.seed, vec_env_cls=vec_env_cls)
    envs = VecNormalize(envs, gamma=0.99)
    same = {"n_steps": args.num_steps, "batch_size": args.minibatch_size, "device": "cpu"}
    same |= {"n_epochs": args.update_epochs, "learning_rate": args.learning_rate}
    same |= {"gamma": args.gamma, "gae_lambda": args.gae_lambda, "ent_coef": args.ent_coef}
    same |= {"clip_range": args.clip_coef, "vf_coef": args.vf_coef, "seed": args.seed}
    same |= {"max_grad_norm": args.max_grad_norm, "env": envs}
    if library is None:
        model = PPO(**make_policy(args.hidden_sizes), **same)
    else:
        sys.path.insert(0, library)
        from sb3_distill import ProximalPolicyDistillation

        agent, header = ppo.load_mujoco_agent(teacher)
        sb3_teacher = PPO(**make_policy(header["hidden_sizes"]), **same)
        policy = sb3_teacher.policy
        copies = [(policy.mlp_extractor.policy_net, agent.actor[:-1])]
        copies += [(policy.mlp_extractor.value_net, agent.critic[:-1])]
        copies += [(policy.action_net, agent.actor[-1]), (policy.value_net, agent.critic[-1])]
        for theirs, ours in copies:
            theirs.load_state_dict(ours.state_dict())
        policy.log_std.data.copy_(agent.log_std)
        envs.obs_rms.mean, envs.obs_rms.var = agent.obs_mean.numpy(), agent.obs_var.numpy()
        envs.obs_rms.count = float(agent.obs_count)
        model = ProximalPolicyDistillation(**make_policy(args.hidden_sizes), **same)
        model.set_teacher(sb3_teacher, distill_lambda=args.distill_lambda, kl_mode=args.kl)
    clock = Clock()
    model.learn(args.batch_size + steps, callback=clock)
    envs.close()
    rollouts = len(clock.times) - 2  # the first rollout and its update warm up
    return rollouts * args.batch_size / (clock.times[-1] - clock.times[1])


def time_simulator(args, steps: int) -> float:
    """Seconds per environment step of this project's vector environment alone."""
    import numpy as np

    import ppo_teacher_mujoco as ppo

    envs = ppo.MujocoVectorEnv(args.env_id, args.num_envs, args.num_workers or os.cpu_count())
    rounds, box = -(-steps // args.num_envs), envs.single_action_space
    # as a fresh policy acts: a standard normal, clipped
    actions = np.random.default_rng(0).normal(size=(rounds + 50, args.num_envs, *box.shape))
    actions = actions.clip(box.low, box.high).astype(box.dtype)
    envs.reset(seed=args.seed)
    for number, action in enumerate(actions):
        if number == 50:  # the first ones warm up
            start = time.perf_counter()
        envs.step(action)
    seconds = (time.perf_counter() - start) / (rounds * args.num_envs)
    envs.close()
    return seconds


def time_passes(args, obs_dim: int, action_dim: int, seconds: float) -> float:
    """Seconds per environment step of the forward and backward passes of one rollout and update.

    Alternates between one thread and one per core for about `seconds`; the faster one's median.
    """
    import torch

    import ppo_teacher_mujoco as ppo

    actor = ppo.make_mlp(obs_dim, args.hidden_sizes, action_dim, gain=0.01)
    critic = ppo.make_mlp(obs_dim, args.hidden_sizes, 1, gain=1.0)
    teacher = ppo.make_mlp(obs_dim, ppo.mlp_sizes("same"), action_dim, gain=0.01)
    obs, b_obs = torch.randn(args.num_envs, obs_dim), torch.randn(args.batch_size, obs_dim)

    def rollout_and_update() -> None:
        with torch.no_grad():
            for _ in range(args.num_steps):
                actor(obs)
            critic(b_obs), critic(obs)
            if hasattr(args, "teacher"):
                teacher(b_obs)
        for _ in range(args.update_epochs):
            for mb_obs in b_obs.split(args.minibatch_size):
                (actor(mb_obs).sum() + critic(mb_obs).sum()).backward()
                actor.zero_grad(), critic.zero_grad()

    taken = {1: [], torch.get_num_threads(): []}
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(taken[1]) < 4:
        for threads in taken:
            torch.set_num_threads(threads)
            start = time.perf_counter()
            rollout_and_update()
            taken[threads].append(time.perf_counter() - start)
    torch.set_num_threads(max(taken))
    # the first one warms up
    return min(statistics.median(times[1:]) for times in taken.values()) / args.batch_size


def measure_limits(suite: str, env_id: str, steps: int) -> dict[str, float]:
    """Steps per second that the simulator and the passes alone leave to each of our scripts."""
    import torch  # noqa: F401  (before our scripts: with OpenMP's own settings, not with theirs)

    import ppo_teacher_mujoco as ppo

    env = ppo.make_mujoco_env(env_id)
    sizes = *env.observation_space.shape, *env.action_space.shape
    ours = {name: script_args(*script, env_id) for name, script in SCRIPTS[suite].items()}
    simulator = time_simulator(ours["ppo"], steps)
    return {
        f"limit_{name}": 1 / (simulator + time_passes(args, *sizes, seconds=3))
        for name, args in ours.items()
    }


# ------------------------------------------------------------------------------- Report


def best_setting(name: str, measure) -> tuple[dict, str]:
    """The fastest of SB3's vector environments and thread counts, and a line about all four."""
    rates = {}
    for vec_env, threads in product(("DummyVecEnv", "SubprocVecEnv"), sorted({1, os.cpu_count()})):
        rates[vec_env, threads] = measure(vec_env=vec_env, threads=threads)
    vec_env, threads = max(rates, key=rates.get)
    tried = ", ".join(f"{kind}/{count} {rate:,.0f}" for (kind, count), rate in rates.items())
    line = f"{name}: {vec_env}, {threads} torch threads (steps/s of each: {tried})"
    return {"vec_env": vec_env, "threads": threads}, line


def table_row(*cells) -> str:
    texts = [cell if isinstance(cell, str) else f"{cell:,.0f}" for cell in cells]
    return "| " + " | ".join(texts) + " |"


def measure_env(args: Args, env_id: str) -> dict[str, float | None]:
    """All contestants in one environment, in turn; prints its table, returns the medians."""
    scripts, library = SCRIPTS[args.suite], args.sb3_distill and str(args.sb3_distill.resolve())
    run = {"env_id": env_id, "steps": args.steps}
    print(f"\n### {env_id}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        teacher = ROOT / "teachers" / f"{env_id}.safetensors"
        if not teacher.exists():
            teacher = Path(folder) / "teacher.safetensors"
            measure_apart("save_random_teacher", env_id=env_id, path=str(teacher))
        contestants = {
            name: partial(measure_script, *script, **run, teacher=teacher)
            for name, script in scripts.items()
        }
        for name, ours in PEERS.items():
            if name == "sb3_ppo" or library:
                script, flags = scripts[ours]
                peer = partial(measure_apart, "measure_sb3", script=script, flags=flags, **run)
                path = None if name == "sb3_ppo" else library
                peer = partial(peer, teacher=str(teacher), library=path)
                setting, line = best_setting(name, partial(peer, steps=max(1, args.steps // 4)))
                print(line, flush=True)
                contestants[name] = partial(peer, **setting)
        limits = [f"limit_{name}" for name in scripts]
        rates = {name: [] for name in (*contestants, *limits)}
        print("\n" + table_row("steps/s", *rates))
        print(table_row(*["---"] * (len(rates) + 1)), flush=True)
        for repeat in range(args.repeats):
            for name, measure in contestants.items():
                rates[name].append(measure())
            for name, limit in measure_apart("measure_limits", suite=args.suite, **run).items():
                rates[name].append(limit)
            print(table_row(f"{repeat + 1}", *[found[-1] for found in rates.values()]), flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(table_row("median", *medians.values()) + "\n")
    for name in scripts:
        text = f"{name}: {medians[name] / medians[f'limit_{name}']:.2f} of its limit"
        for peer in (peer for peer, ours in PEERS.items() if ours == name and peer in medians):
            text += f", {medians[name] / medians[peer]:.2f} × {peer}"
        print(text, flush=True)
    order = [*scripts, *PEERS, *limits]
    return {name: round(medians[name], 1) if name in medians else None for name in order}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["measure"]:  # how `measure_apart` starts its process
        function, arguments = sys.argv[2:]
        print(json.dumps(globals()[function](**json.loads(arguments))))
        return
    args = tyro.cli(Args, description=__doc__)
    if args.sb3_distill and not (args.sb3_distill / "sb3_distill" / "__init__.py").exists():
        reason = f"--sb3-distill {args.sb3_distill}: no package sb3_distill in it"
        sys.exit(f"speed: error: {reason}; clone github.com/spiglerg/sb3_distill and name its path")
    if min(args.repeats, args.steps) < 1:
        sys.exit("speed: error: --repeats and --steps must be at least 1")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    envs = {env_id: measure_env(args, env_id) for env_id in args.envs or ENVS[args.suite]}
    print(flush=True)
    print(json.dumps({"suite": args.suite, "envs": envs}))


if __name__ == "__main__":
    main()
