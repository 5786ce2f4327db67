"""Speed of ppd_mujoco_lstm.py beside RecurrentPPO of sb3-contrib, both as recurrent PPO.

    pip install sb3-contrib==2.9.2                # beside requirements-dev.txt
    python benchmarks/recurrent.py                # ten minutes; --long: as when it has learned

Hopper-v4, positions alone, λ = 0; 18 environments, 64 steps, minibatches of 512, 4 epochs, LSTMs of
width 256 on the observation itself. The critic has an LSTM as well (`ours`, `sb3`) or none
(`ours_full`, an MLP on all of the observation, as is the default; `sb3_plain`, one linear layer).
Early episodes are short; with --long a fallen Hopper plays on, so that all of them have 1000 steps.

Each runs in one process with one torch thread, three times in turns; timed from the end of the
first rollout and update to that of the last, in seconds and in CPU seconds, which do not count what
other processes take. Ours logs and writes checkpoints, theirs does not. The last line is one JSON
object: medians of steps per second, per CPU second.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gymnasium as gym
import tyro

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("ours", "sb3", "ours_full", "sb3_plain")


def env_id(long: bool) -> str:
    entry = "gymnasium.envs.mujoco.hopper_v4:HopperEnv"
    options = {"terminate_when_unhealthy": False}
    gym.register("LongHopper-v4", entry, max_episode_steps=1000, kwargs=options)
    return "LongHopper-v4" if long else "Hopper-v4"


def time_ours(critic: str, steps: int, long: bool) -> list[tuple[float, float]]:
    """When each update ended, in seconds and CPU seconds."""
    sys.path.insert(0, str(ROOT))
    import ppd_mujoco_lstm as script

    log, ends = script.Run.log, []

    def note_time(*arguments):
        log(*arguments)
        ends.append((time.perf_counter(), time.process_time()))

    script.Run.log = note_time
    script.evaluate = lambda *_: {"mean": 0.0, "standard_error": 0.0}  # not what is timed
    with tempfile.TemporaryDirectory() as folder:
        options = {"env_id": env_id(long), "observe": "0,1,2,3,4", "gamma": 0.995, "eval_every": 0}
        options |= {
            "critic": critic,
            "distill_lambda": 0.0,
            "num_workers": 1,
            "hidden_sizes": (256,),
        }
        options |= {"teacher": str(ROOT / "teachers" / "Hopper-v4.safetensors")}
        script.train(script.Args(total_timesteps=steps, run_dir=f"{folder}/run", **options))
    return ends


def time_sb3(critic_lstm: bool, steps: int, long: bool) -> list[tuple[float, float]]:
    """When each rollout ended, in seconds and CPU seconds."""
    import torch
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    torch.set_num_threads(1)
    name, ends = env_id(long), []

    class NoteTime(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            ends.append((time.perf_counter(), time.process_time()))

    def make():
        space = gym.spaces.Box(-float("inf"), float("inf"), (5,))
        return gym.wrappers.TransformObservation(gym.make(name), lambda obs: obs[:5], space)

    sizes = {"lstm_hidden_size": 256, "net_arch": [], "enable_critic_lstm": critic_lstm}
    model = RecurrentPPO(
        "MlpLstmPolicy", VecNormalize(DummyVecEnv([make] * 18)), n_steps=64, batch_size=512,
        n_epochs=4, gamma=0.995, gae_lambda=0.9, policy_kwargs=sizes, seed=100,
    )  # fmt: skip
    model.learn(steps, NoteTime())
    return ends


def main(rollouts: int = 10, repeats: int = 3, long: bool = False, only: str = "") -> None:
    steps = rollouts * 18 * 64
    if only:
        kind = {"ours": "student", "ours_full": "full", "sb3": True, "sb3_plain": False}[only]
        ends = (time_ours if only.startswith("ours") else time_sb3)(kind, steps, long)
        print(
            *((len(ends) - 1) * 18 * 64 / (b - a) for a, b in zip(ends[0], ends[-1], strict=True))
        )
        return
    measured = {name: [] for name in NAMES}
    for name in NAMES * repeats:
        command = [sys.executable, __file__, "--only", name, "--rollouts", str(rollouts)]
        command += ["--long"] if long else []
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        measured[name].append([float(word) for word in output.splitlines()[-1].split()])
        print(name, *(f"{speed:.0f}" for speed in measured[name][-1]), flush=True)
    columns = {name: zip(*rows, strict=True) for name, rows in measured.items()}
    print(json.dumps({n: [round(statistics.median(c)) for c in columns[n]] for n in NAMES}))


if __name__ == "__main__":
    tyro.cli(main)
