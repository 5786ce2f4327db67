"""Make an imperfect teacher: Gaussian noise on every parameter, its score taken anew.

    python -m experiments.corrupt teachers/Hopper-v4.safetensors --sigma 0.05 --seed 100 \\
        --out runs/corrupted/Hopper-v4__sigma-0.05__100.safetensors

θ ← θ + ε, ε ~ N(0, σ²), for policy, log-std and critic (Section 3); observation statistics and
action bounds are no parameters and stay. The header keeps the original's score: students of an
imperfect teacher are measured against the original one.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from evaluate import import_script, play
from ppd_mujoco import UserError, read_checkpoint


@dataclass
class Args:
    teacher: Annotated[str, tyro.conf.Positional]
    """the teacher's agent.safetensors"""
    out: str
    """file to write, replaced if it exists"""
    sigma: float = 0.05
    """standard deviation of the noise; the paper's is 0.05"""
    seed: int = 100
    """seed of the noise; students of seed S take S"""
    episodes: int | None = None
    """episodes of the new score; unset: as many as the original's has"""
    device: Literal["cpu", "cuda"] = "cpu"
    """of the networks while they play"""


@torch.no_grad()
def add_noise(agent: torch.nn.Module, sigma: float, seed: int) -> None:
    """Add N(0, σ²) to every parameter, the same numbers for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in agent.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter += sigma * noise.to(parameter)


def score_teacher(script, agent, header: dict, episodes: int) -> dict:
    """Play by the paper's protocol; returns the header's entries that hold scores."""
    seed = 10_000 + header["seed"]
    scores = {"score": play(script, agent, header, episodes, seed)[0]}
    if header["suite"] == "procgen":
        scores["score_training"] = play(script, agent, header, episodes, seed, "training")[0]
    return scores


def corrupt(args: Args) -> dict:
    """Write the imperfect teacher; returns its header. Raises UserError."""
    _, header = read_checkpoint(args.teacher)
    script = import_script(args.teacher, header)
    if not 0 < args.sigma < float("inf"):
        raise UserError(f"--sigma {args.sigma}: must be above 0")
    if args.episodes is not None and args.episodes < 1:
        raise UserError(f"--episodes {args.episodes}: must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu")
    if "sigma" in header:
        raise UserError(f"teacher {args.teacher}: it is corrupted already; give the original")
    if "score" not in header:
        raise UserError(f"teacher {args.teacher}: no score yet; finish its training with --resume")
    agent, header = getattr(script, f"load_{header['suite']}_agent")(args.teacher)
    add_noise(agent, args.sigma, args.seed)
    agent.to(args.device)
    originals = {f"original_{key}": header[key] for key in header if key.startswith("score")}
    episodes = args.episodes or header["score"]["episodes"]
    header |= score_teacher(script, agent, header, episodes) | originals
    header |= {"sigma": args.sigma, "noise_seed": args.seed}
    out = Path(args.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        script.save_agent(agent, out, header)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; name another file") from error
    return header


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        header = corrupt(args)
    except Exception as error:
        if type(error).__name__ != "UserError":  # each script has its own
            raise
        print(f"experiments.corrupt: error: {error}", file=sys.stderr)
        sys.exit(2)
    score, original = header["score"], header["original_score"]
    kept = f", {score['mean'] / original['mean']:.2f} of it" if original["mean"] > 0 else ""
    print(f"{args.out}: σ {args.sigma:g}, noise seed {args.seed}")
    print(f"score {score['mean']:.1f}, the original's {original['mean']:.1f}{kept}")


if __name__ == "__main__":
    main()
