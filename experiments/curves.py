"""Draw the learning curves of runs: `python -m experiments.curves docs/hopper.png RUN [RUN …]`.

Thin: the mean raw return of each rollout's finished episodes (sampled actions), smoothed over 20
rollouts. Dots: evaluations with deterministic actions. Dashed: the score of the teacher, where the
runs are students'.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]  # Okabe and Ito: safe for colour-blind eyes


def draw(path: str, runs: list[str]) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    teacher = None
    for run, colour in zip(runs, COLOURS, strict=False):
        result = json.loads((Path(run) / "result.json").read_text())
        args, score = result["args"], result["score"]
        label = (
            f"{result['script']}, {' '.join(map(str, args['hidden_sizes']))}, seed {args['seed']}"
        )
        steps, means, _ = np.array(result["curve"]).T
        width = min(20, len(means))
        smooth = np.convolve(means, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], smooth, color=colour, linewidth=1)
        if result["evaluations"]:
            eval_steps, eval_means, _ = np.array(result["evaluations"], dtype=float).T
            axes.plot(eval_steps, eval_means, "o", color=colour, markersize=3.5)
        axes.plot([], [], "-o", color=colour, markersize=3.5, label=f"{label}: {score['mean']:.0f}")
        teacher = result.get("teacher_score", teacher)
    if teacher:
        mean = teacher["mean"]
        axes.axhline(mean, color="black", linestyle="--", linewidth=1, label=f"teacher: {mean:.0f}")
    axes.set(xlabel="environment steps", ylabel="episode return", title=args["env_id"])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m experiments.curves FIGURE.png RUN [RUN …]")
    draw(sys.argv[1], sys.argv[2:])
