"""Film checkpoints side by side, in real time, as one animated WebP for a README.

    python -m experiments.film teachers/*.safetensors --out docs/teachers.webp

Each plays one episode from the seed of its final score (on MuJoCo and Atari the first of its
episodes). An episode that ends early stays on its last frame.
"""

import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageOps

import evaluate
from experiments.studies import plain_name


@dataclass
class Args:
    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional]  # files, from left to right
    out: str  # the file to write, .webp
    seconds: float = 5.0  # length of the film, which repeats
    frames_per_second: int = 20  # pictures per second, independent of the simulators' own rates
    width: int = 170  # width of each checkpoint's picture in pixels


def film(path: str, args: Args) -> list[Image.Image]:
    """The pictures of one checkpoint. Raises evaluate's UserError."""
    script, agent, header = evaluate.load(path)
    levels = ["unseen"] if header["suite"] == "procgen" else []
    start = getattr(evaluate, f"film_{header['suite']}")
    frames, rate = start(script, agent, header, 10_000 + header["seed"], *levels)
    wanted = np.arange(round(args.seconds * args.frames_per_second)) / args.frames_per_second
    wanted = np.round(wanted * float(rate)).astype(int).tolist()
    shown = list(islice(frames, wanted[-1] + 1))
    frames.close()
    return [label(shown[min(index, len(shown) - 1)], header, args.width) for index in wanted]


def label(frame: np.ndarray, header: dict, width: int) -> Image.Image:
    """A frame (H, W, 3) in a square of this width, with environment and score below it."""
    resampling, size = Image.Resampling.LANCZOS, (width, width)
    panel = Image.new("RGB", (width, width + 20), "white")
    panel.paste(ImageOps.pad(Image.fromarray(frame), size, resampling, "white"))
    text = plain_name(header["env_id"])
    if "score" in header:  # a stopped run has none yet
        text += f": {header['score']['mean']:.0f}"
    ImageDraw.Draw(panel).text((width / 2, width + 10), text, "black", anchor="mm", font_size=12)
    return panel


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        if not args.checkpoints or not args.out.endswith(".webp"):
            raise evaluate.UserError("give one or more agent.safetensors, and --out FILE.webp")
        if min(args.seconds * args.frames_per_second, args.width) < 1:
            raise evaluate.UserError("--seconds, --frames-per-second or --width is too small")
        films = [film(path, args) for path in args.checkpoints]
    except Exception as error:
        if type(error).__name__ != "UserError":  # each script has its own
            raise
        print(f"film: error: {error}", file=sys.stderr)
        sys.exit(2)
    pictures = []
    for panels in zip(*films, strict=True):
        strip = Image.new("RGB", (args.width * len(panels), panels[0].height))
        for column, panel in enumerate(panels):
            strip.paste(panel, (column * args.width, 0))
        pictures.append(strip)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    timing = {"duration": round(1000 / args.frames_per_second), "loop": 0}
    small = {"quality": 30, "method": 6}
    pictures[0].save(args.out, save_all=True, append_images=pictures[1:], **timing, **small)
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
