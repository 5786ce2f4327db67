"""Score checkpoints of any script by the paper's protocol, and film them.

    python evaluate.py teachers/Hopper-v4.safetensors
    python evaluate.py runs/*/agent.safetensors --episodes 20
    python evaluate.py teachers/Hopper-v4.safetensors --episodes 1 --video videos

Whole episodes, raw returns, a fixed quota of episodes per environment slot; deterministic actions
on MuJoCo (Appendix A.3). With the default seed it repeats the final score of the run that wrote the
checkpoint, number for number, on the same software.
"""

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from ppd_mujoco import UserError, read_checkpoint


@dataclass
class Args:
    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional]
    """one or more agent.safetensors"""
    episodes: int = 50
    """whole episodes played by each"""
    seed: int | None = None
    """seed of the first environment; unset: that of the checkpoint's own final score"""
    video: str | None = None
    """also film one episode of each into this folder, as mp4"""


def import_script(path: str, header: dict):
    """The training script that a checkpoint names. Raises UserError for any other name."""
    scripts = [f"{kind}_{suite}" for kind in ("ppo_teacher", "ppd") for suite in ("mujoco",)]
    if header.get("script") not in scripts:
        known = ", ".join(scripts)
        raise UserError(f"checkpoint {path}: script {header.get('script')!r} is none of {known}")
    return importlib.import_module(header["script"])


def confidence_interval(returns: list[float], resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    draws = np.random.default_rng(0).choice(returns, (resamples, len(returns)))
    low, high = np.percentile(draws.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def write_video(path: Path, frames, frames_per_second: int) -> None:
    """Write an iterable of RGB frames (H, W, 3), uint8, as H.264 in an mp4."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = None
        for frame in frames:
            if stream is None:
                stream = file.add_stream("libx264", rate=frames_per_second)
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def film_mujoco(script, agent, env_id: str, seed: int, path: Path) -> None:
    """Film one episode. Raises UserError where nothing can be drawn."""
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # drawing without a screen
    try:
        env = script.make_mujoco_env(env_id, render_mode="rgb_array")
        obs, _ = env.reset(seed=seed)
        env.render()
    except (ImportError, AttributeError, RuntimeError) as error:
        advice = "install libegl1 and libgl1-mesa-dri, or set MUJOCO_GL=osmesa with libosmesa6"
        raise UserError(f"--video: MuJoCo cannot draw here ({error}); {advice}") from error

    def frames(obs):
        ended = False
        while not ended:
            yield env.render()
            obs, _, terminated, truncated, _ = env.step(agent.act(obs[None])[0])
            ended = terminated or truncated
        yield env.render()

    write_video(path, frames(obs), env.metadata["render_fps"])
    env.close()


def score_checkpoint(path: str, args: Args) -> list[str]:
    """Play a checkpoint's episodes; returns its row of the table. Raises UserError."""
    _, header = read_checkpoint(path)
    script = import_script(path, header)
    agent, header = script.load_mujoco_agent(path)
    env_id = header["env_id"]
    seed = 10_000 + header["seed"] if args.seed is None else args.seed
    envs = script.MujocoVectorEnv(env_id, 10, torch.get_num_threads())
    returns, lengths = script.evaluate(agent, envs, args.episodes, seed, header["deterministic"])
    envs.close()
    if args.video:
        video = Path(args.video) / f"{env_id}__{header['script']}__{header['seed']}.mp4"
        film_mujoco(script, agent, env_id, seed, video)
        print(f"video: {video}")
    low, high = confidence_interval(returns)
    score = script.summarize(returns)
    sizes = " ".join(str(size) for size in header["hidden_sizes"])
    episodes = f"{args.episodes}, {np.mean(lengths):.0f} steps"
    interval = f"{low:.1f} to {high:.1f}" if len(returns) > 1 else "n=1"
    columns = [env_id, header["script"], sizes, f"{header['steps']:,}"]
    return [path, *columns, script.score_text(score), interval, episodes]


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        if not args.checkpoints:
            raise UserError("no checkpoint given; give one or more agent.safetensors")
        if args.episodes < 1:
            raise UserError(f"--episodes {args.episodes}: must be at least 1")
        for path in args.checkpoints:  # all of them before the first long evaluation
            import_script(path, read_checkpoint(path)[1])
        titles = ["checkpoint", "env", "script", "hidden", "trained steps"]
        titles += ["score ± s.e.", "95 % interval", "episodes"]
        print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
        for path in args.checkpoints:
            print("| " + " | ".join(score_checkpoint(path, args)) + " |")
    except UserError as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
