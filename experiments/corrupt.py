"""Make a corrupted teacher: add Gaussian noise to every parameter and score the result.

    python -m experiments.corrupt teachers/Hopper-v4.safetensors --sigma 0.05 --seed 100 \\
        --out runs/corrupted/Hopper-v4__sigma-0.05__100.safetensors

θ ← θ + ε, ε ~ N(0, σ²), for policy, log σ and critic (Section 3). Observation statistics and action
bounds are not parameters and stay as they are. `--log-std-shift -2` makes the actions of a MuJoCo
teacher less noisy, alone or together with `--sigma`. The header keeps the original's score, because
students of a corrupted teacher are compared with the original one.
"""

import importlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from evaluate import UserError, play, read_header


@dataclass
class Args:
    teacher: Annotated[str, tyro.conf.Positional]  # the teacher's agent.safetensors
    out: str  # file to write, replaced if it exists
    sigma: float | None = None  # σ of the noise; default: 0.05 (paper), 0 with --log-std-shift
    log_std_shift: float = 0.0  # added to log σ of the actions (MuJoCo)
    seed: int = 100  # seed of the noise; the studies take the seed of the teacher
    episodes: int | None = None  # episodes of the new score; default: as many as the original had
    device: Literal["cpu", "cuda"] = "cpu"  # device of the networks


@torch.no_grad()
def add_noise(agent: torch.nn.Module, sigma: float, seed: int) -> None:
    """Add N(0, σ²) to every parameter; the same seed gives the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in agent.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter += sigma * noise.to(parameter)


def score_teacher(script, agent, header: dict, episodes: int) -> dict:
    """Play by the paper's protocol; returns the header's entries that hold scores."""
    kinds = {"score": "unseen", "score_training": "training"}
    scores = {}
    for name in kinds if header["suite"] == "procgen" else ("score",):
        full = play(script, agent, header, episodes, header["seed"], kinds[name])
        scores[name] = {key: full[key] for key in full if key not in ("returns", "lengths")}
    return scores


def corrupt(args: Args) -> dict:
    """Write the corrupted teacher; returns its header. Raises UserError."""
    header = read_header(args.teacher)
    script = importlib.import_module(header["script"])
    shift, sigma = args.log_std_shift, args.sigma
    sigma = sigma if sigma is not None else 0.0 if shift else 0.05
    if not (0 <= sigma < math.inf and math.isfinite(shift) and (sigma or shift)):
        raise UserError("--sigma must be above 0, or 0 with a --log-std-shift; both finite")
    if shift and header["suite"] != "mujoco":
        raise UserError(f"--log-std-shift: {args.teacher} has no log σ; leave the flag out")
    if Path(args.out).is_dir():
        raise UserError(f"--out {args.out}: a folder; give a file in it")
    if args.episodes is not None and args.episodes < 1:
        raise UserError(f"--episodes {args.episodes}: must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu")
    if "original_score" in header or "sigma" in header:
        raise UserError(f"teacher {args.teacher}: it is corrupted already; give the original")
    if "score" not in header:
        raise UserError(f"teacher {args.teacher}: no score yet; finish its training with --resume")
    agent, header = getattr(script, f"load_{header['suite']}_agent")(args.teacher)
    if header["suite"] == "mujoco":
        torch.set_num_threads(1)  # more threads slow down such small networks
    add_noise(agent, sigma, args.seed)
    if shift:
        if not agent.action_low.is_floating_point():
            raise UserError(
                f"--log-std-shift: {args.teacher} has no log σ (discrete actions); leave it out"
            )
        agent.log_std.data += shift
        header["log_std_shift"] = shift
    agent.to(args.device)
    originals = {f"original_{key}": header[key] for key in header if key.startswith("score")}
    episodes = args.episodes or header["score"]["episodes"]
    header |= score_teacher(script, agent, header, episodes) | originals
    header |= {"sigma": sigma, "noise_seed": args.seed}
    out = Path(args.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        script.write_file(out, script.pack_agent(agent.state_dict(), header))
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; give another file") from error
    return header


def main() -> None:
    if sys.stdout:  # which may be closed
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know ± or σ
    args = tyro.cli(Args, description=__doc__)
    try:
        header = corrupt(args)
    except Exception as error:
        if type(error).__name__ != "UserError":  # each script has its own
            raise
        print(f"experiments.corrupt: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("experiments.corrupt: stopped; nothing was written", file=sys.stderr)
        sys.exit(130)
    score, original = header["score"], header["original_score"]
    kept = f", {score['mean'] / original['mean']:.2f} of it" if original["mean"] > 0 else ""
    noise = f"σ {header['sigma']:g}, noise seed {args.seed}, log σ {args.log_std_shift:+g}"
    print(f"{args.out}: {noise}")
    print(f"score {score['mean']:.1f}, the original's {original['mean']:.1f}{kept}")


if __name__ == "__main__":
    main()
