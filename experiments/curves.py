"""Draw the learning curves of runs: `python -m experiments.curves docs/hopper.png RUN [RUN …]`.

Thin: the mean raw return of each rollout's finished episodes (sampled actions), smoothed over 20
rollouts. Dots: evaluations with deterministic actions. Dashed: the score of the teacher, where the
runs are students'. A run that was stopped is drawn as far as its last checkpoint.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]  # Okabe and Ito: safe for colour-blind eyes


def read_run(run: Path) -> dict:
    """A finished run's result.json, or the same of a stopped one, which has no score."""
    if (run / "result.json").exists():
        return json.loads((run / "result.json").read_text())
    state = torch.load(run / "training_state.pt", weights_only=True)
    return {"script": state["script"], "args": state["args"], **state["log"]}


def draw(path: str, runs: list[str]) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    teacher = None
    for run, colour in zip(runs, COLOURS, strict=False):
        result = read_run(Path(run))
        args, script = result["args"], result["script"]
        size = args.get("student_size") or args["size"]
        if "hidden_sizes" in args:
            size = " ".join(map(str, args["hidden_sizes"]))
        steps, means, _ = np.array(result["curve"]).T
        end = f"{result['score']['mean']:.0f}" if "score" in result else "stopped"
        width = min(20, len(means))
        smooth = np.convolve(means, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], smooth, color=colour, linewidth=1)
        if result["evaluations"]:
            eval_steps, eval_means, _ = np.array(result["evaluations"], dtype=float).T
            axes.plot(eval_steps, eval_means, "o", color=colour, markersize=3.5)
        label = f"{script}, {size}, seed {args['seed']}: {end}"
        axes.plot([], [], "-o", color=colour, markersize=3.5, label=label)
        teacher = result.get("teacher_score", teacher)
    if teacher:
        mean = teacher["mean"]
        axes.axhline(mean, color="black", linestyle="--", linewidth=1, label=f"teacher: {mean:.0f}")
    axes.set(xlabel="environment steps", ylabel="episode return", title=args["env_id"])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m experiments.curves FIGURE.png RUN [RUN …]")
    draw(sys.argv[1], sys.argv[2:])
