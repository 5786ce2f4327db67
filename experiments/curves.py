"""Learning curves: the figures of `python -m experiments.report`, and figures of single runs:

    python -m experiments.curves docs/qbert.png RUN [RUN …]

In a figure of single runs, lines are the mean raw return of each rollout's finished episodes
(sampled actions), smoothed over 20 rollouts. Dots are evaluations (deterministic actions, sampled
ones on Procgen). The dashed line is the teacher's score, if the runs are of students. There can be
up to six runs. A stopped run is drawn up to its last checkpoint.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch

from experiments import stats
from experiments.stats import BINS, FADES, each_teacher, finished, select
from experiments.studies import (
    ENVS,
    IMPERFECT_ATARI,
    LAMBDA_MUJOCO,
    METHODS,
    MUJOCO_SIGMA,
    PIXEL_STEPS,
    PROCGEN,
    SIZES,
    TEACHERS,
    plain_name,
    suite_of,
)

matplotlib.use("agg")  # no screen needed
import matplotlib.pyplot as plt

# Colour-blind readers can tell Okabe and Ito's colours apart. The dashes are for grey print.
STYLES = [("#0072B2", "-"), ("#D55E00", (0, (5, 1.5))), ("#009E73", (0, (1, 1)))]
STYLES += [("#CC79A7", (0, (4, 1, 1, 1))), ("#E69F00", (0, (8, 2))), ("#56B4E9", (0, (2, 1)))]
LEVELS = [("black", "--"), ("black", ":")]
plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
plt.rcParams |= {"legend.frameon": False}


@dataclass
class Panel:
    """One pair of axes. Each line is the interquartile mean of some runs, with its interval."""

    title: str
    lines: dict[str, pd.DataFrame]  # label → runs
    levels: dict[str, float] = field(default_factory=dict)  # label → height of a horizontal line
    unit: str = "score"  # or fraction; or evaluation_fraction, which draws evaluations as lines
    dots: bool = True  # the evaluations during training, means over seeds
    circles: bool = False  # a mark on each line at its last step below 0.9
    deviation: bool = False  # draw mean and standard deviation instead
    limit: float | None = None  # last step that is drawn


def on_common_steps(runs: pd.DataFrame, points: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of the curves' points: a row for each run, a column for each step."""
    points = points[points["row"].isin(runs.index)]
    table = points.pivot(index="row", columns="bin", values=column).reindex(columns=range(BINS + 1))
    return table.set_axis(table.columns / BINS * runs["steps"].max(), axis=1)


def draw_line(axes, panel: Panel, label: str, points: pd.DataFrame, style: tuple) -> None:
    runs, (colour, dashes) = panel.lines[label], style
    values = on_common_steps(runs, points, panel.unit)
    if panel.unit != "evaluation_fraction":  # if no episode ended in a bin, take the bin before
        values = values.ffill(axis=1)
    values = values.dropna(axis=1)  # only where every run has a value
    if values.empty:
        return
    steps, envs = values.columns.to_numpy(), runs.loc[values.index, "env_id"]
    mean, interval = stats.curve_band({e: values[envs == e].to_numpy() for e in envs.unique()})
    if panel.deviation and interval is not None:
        mean, deviation = values.mean().to_numpy(), values.std().to_numpy()
        interval = mean - deviation, mean + deviation
    if interval is not None:
        axes.fill_between(steps, *interval, color=colour, alpha=0.2, linewidth=0)
    else:
        seeds = runs.loc[values.index, "seed"].nunique()
        label += " (1 seed)" if seeds == 1 else f" ({seeds} seeds)"
    axes.plot(steps, mean, color=colour, linestyle=dashes, linewidth=1.4, label=label)
    below = np.flatnonzero(mean < 0.9)
    if panel.circles and len(below):
        mark = steps[below[-1]], mean[below[-1]]
        axes.plot(*mark, "o", color=colour, markeredgecolor="black", markersize=7)
    if panel.dots:
        dots = on_common_steps(runs, points, "evaluation_" + panel.unit).dropna(axis=1).mean()
        axes.plot(dots.index, dots, "o", color=colour, markersize=3.2)


def draw(panels: list[Panel], points: pd.DataFrame, columns: int = 4, width: float = 3.6):
    """A figure of several panels, with one legend below them."""
    rows = -(-len(panels) // columns)
    columns = -(-len(panels) // rows)
    size = (width * columns, 2.9 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    styles, entries = {}, {}
    for panel, axes in zip(panels, grid.flat, strict=False):
        for label in panel.lines:
            if label not in styles:
                styles[label] = STYLES[len(styles)]
            draw_line(axes, panel, label, points, styles[label])
        for (label, height), (colour, dashes) in zip(panel.levels.items(), LEVELS, strict=False):
            axes.axhline(height, color=colour, linestyle=dashes, linewidth=1, label=label)
        axes.set(title=panel.title, xlabel="environment steps")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
        axes.set_xlim(right=panel.limit)
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    for axes, panel in zip(grid[:, 0], panels[::columns], strict=True):
        labels = {"fraction": "fraction of teacher, in training", "score": "return in training"}
        axes.set_ylabel(labels.get(panel.unit, "fraction of teacher"))
    ncols = max(1, int(figure.get_figwidth() / 2.8))
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=ncols, fontsize=8)
    return figure


# ------------------------------------------------------------------------------- The report's


PAPERS, QUIET = "PPD (paper's loss)", "PPD --no-ratio-gradient"


def of_methods(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    lines = {form: runs[runs["form"] == form] for form in reversed(METHODS)}
    lines = {PAPERS if form == "ppd" else form: of_form for form, of_form in lines.items()}
    # Its rollouts are the teacher's, so its curve says little about the student (Figure 8).
    lines["teacher-distill (teacher's episodes)"] = lines.pop("teacher-distill")
    if len(quiet := runs[runs["form"] == "ppd --no-ratio-gradient"]):
        lines[QUIET] = quiet
    return lines


def title_of(env_id: str) -> str:
    """The title of a panel of scores; it says so if the scores are human-normalised."""
    return plain_name(env_id) + (", human-normalised" if suite_of(env_id) == "atari" else "")


def in_training(env_id: str) -> str:
    """The ending of the column with scores as in training: of Procgen's training levels."""
    return "_training" if env_id in PROCGEN else ""


def levels_of_teacher(runs: pd.DataFrame) -> dict[str, float]:
    """The teacher's level for the lines (Figure 1's dashed line), and that for the dots."""
    names = {"teacher, in training": "of_training", "teacher's score": "reference"}
    teachers = each_teacher(finished(runs))
    return {label: stats.mean_score(teachers, name) for label, name in names.items()}


def panels_of_sizes(grid: pd.DataFrame, envs) -> list[Panel]:
    """Figures 9, 10, 11: a row for each environment, a column for each size of student."""
    panels = []
    for env_id in envs:
        runs = select(grid, "sizes", [env_id])
        for size in SIZES if len(finished(runs)) else ():
            lines = of_methods(runs[runs["size"] == size])
            panels.append(Panel(f"{title_of(env_id)}, {size}", lines, levels_of_teacher(runs)))
    return panels


def panels_of_suites(grid: pd.DataFrame) -> list[Panel]:
    """Figures 1, 6, 7, 8: all environments of a suite together."""
    panels = []
    for suite, envs in ENVS.items():
        runs = select(grid, "sizes", envs)
        for size in SIZES if len(finished(runs)) else ():
            own = runs[(runs["size"] == size) & runs["fraction"].notna()]
            # A mean of fewer environments than the others' could not be compared with them.
            count = own["env_id"].nunique()
            lines = {k: v for k, v in of_methods(own).items() if v["env_id"].nunique() == count}
            panels.append(Panel(f"{suite}, {size}", lines, {"teacher": 1}, "fraction", dots=False))
    return panels


def panels_of_teachers(grid: pd.DataFrame, suite: str) -> list[Panel]:
    """Figures 3, 4, 5; dashed, the final score: of deterministic actions, except on Procgen."""
    panels = []
    for env_id in filter(lambda env_id: suite_of(env_id) == suite, TEACHERS):
        runs = finished(select(grid, "teachers", [env_id]))
        final = {"final score": stats.mean_score(runs, "score" + in_training(env_id))}
        panel = Panel(title_of(env_id), {"PPO": runs}, final, dots=False, deviation=True)
        panels += [panel] if len(runs) else []
    return panels


def panels_of_imperfect_mujoco(grid: pd.DataFrame) -> list[Panel]:
    """Students of corrupted MuJoCo teachers, with the scores of both teachers."""
    panels = []
    for env_id, sigma in MUJOCO_SIGMA.items():
        runs = finished(select(grid, "imperfect-mujoco", [env_id]))
        names = {"imperfect teacher": "teacher_score", "original teacher": "original_score"}
        levels = {label: each_teacher(runs)[name].mean() for label, name in names.items()}
        panel = Panel(f"{env_id}, σ = {sigma:g}", of_methods(runs), levels)
        panels += [panel] if len(runs) else []
    return panels


def panels_of_lambda(grid: pd.DataFrame, study: str, groups: list) -> list[Panel]:
    """Figure 2, a panel for each group of environments: PPD with several λ."""
    panels, levels = [], {"teacher": 1, "90 % of the teacher": 0.9}
    for envs in groups:
        runs = select(grid, study, envs, sigma=0.0).dropna(subset=["fraction"])
        lines = {f"λ = {weight:g}": of_it for weight, of_it in runs.groupby("distill_lambda")}
        sizes, names = runs["size"].unique(), ", ".join(map(plain_name, envs))
        title = f"PPD, {' and '.join(sizes)} students: {names}"
        panel = Panel(title, lines, levels, "fraction", dots=False, circles=True)
        panels += [panel] if lines else []
    return panels


def panels_of_sb3(grid: pd.DataFrame) -> list[Panel]:
    """Learning curves of our PPO and of SB3's with the same settings, as far as SB3's goes."""
    panels = []
    for env_id, theirs in finished(grid[grid["study"] == "sb3-ppo"]).groupby("env_id"):
        ours = finished(select(grid, "teachers", [env_id]))
        lines = {"ours": ours[ours["seed"].isin(theirs["seed"])], "SB3": theirs}
        panels.append(Panel(f"{env_id}, PPO", lines, limit=theirs["steps"].max()))
    return panels


def panels_of_gradient(grid: pd.DataFrame) -> list[Panel]:
    groups = stats.gradient_groups(grid)
    return [Panel(title, lines, {"teacher": 1}, "fraction") for title, lines in groups]


def panels_of_pixels(grid: pd.DataFrame) -> list[Panel]:
    """coinrun and CrazyClimber: students of the teacher, and of the corrupted one."""
    panels = []
    for env_id, runs in finished(grid[grid["study"] == "pixels"]).groupby("env_id", sort=False):
        levels = in_training(env_id)
        for sigma, students in runs[runs["method"] != "teacher"].groupby("sigma"):
            scores = levels_of_teacher(students)
            if sigma:
                names = {"imperfect teacher": "teacher_score", "sound teacher": "original_score"}
                scores = {k: stats.mean_score(students, v + levels) for k, v in names.items()}
            lines = of_methods(students[students["distill_lambda"].fillna(1) == 1])
            lines["PPO without a teacher"] = students[students["distill_lambda"] == 0]
            teacher = f", σ = {sigma:g}" if sigma else ""
            title = f"{title_of(env_id)}, smaller students{teacher}"
            panels.append(Panel(title, lines, scores))
    return panels


def panels_of_partial(grid: pd.DataFrame) -> list[Panel]:
    return [
        Panel(f"{env_id}, positions alone", lines, {"teacher": 1}, "fraction")
        for env_id, lines in stats.partial_groups(grid)
    ]


def panels_of_fade(grid: pd.DataFrame) -> list[Panel]:
    """Students of corrupted teachers by how λ falls, for three seeds on MuJoCo."""
    panels, wanted = [], [*FADES.values()][:6]
    for (env_id, teacher), students in stats.fade_groups(grid).items():
        lines = {name: students[name] for name in wanted if name in students}
        if teacher != "original" and suite_of(env_id) == "mujoco" and len(lines) > 1:
            kept = pd.concat(lines.values())["teacher_fraction"].mean()
            levels = {"original teacher": 1, "corrupted teacher": kept}
            panels.append(Panel(env_id, lines, levels, "evaluation_fraction", dots=False))
    return panels


def panels_of_multi(grid: pd.DataFrame) -> list[Panel]:
    """One student of several teachers: its fraction of each of them."""
    return [
        Panel(
            f"{env_id}, {size} student",
            {name.replace("`", ""): runs[runs["env_id"] == env_id] for name, runs in lines.items()},
            {"teacher": 1},
            "evaluation_fraction",
            dots=False,
        )
        for (_, size), lines in stats.multi_groups(grid).items()
        for env_id in pd.concat(lines.values())["env_id"].unique()
    ]


def panels_of_zoo(grid: pd.DataFrame) -> list[Panel]:
    """Students of other people's teachers."""
    panels = []
    for env_id, runs in finished(grid[grid["study"] == "zoo"]).groupby("env_id"):
        names = {"ppd": PAPERS, "ppd --no-ratio-gradient": QUIET}
        lines = dict([*runs.groupby(runs["form"].replace(names))])
        panels.append(Panel(env_id, lines, {"teacher": 1}, "evaluation_fraction", dots=False))
    return panels


def lines_of_the_readme(grid: pd.DataFrame, env_id: str) -> dict[str, pd.DataFrame]:
    """Smaller students, their teacher's own training, and PPO at PPD's settings, where it ran."""
    runs = finished(select(grid, "gradient", [env_id], size="smaller", log_std_shift=0.0))
    forms = runs["ratio_gradient"].fillna(True)
    alone = select(grid, "lambda-mujoco", [env_id], distill_lambda=0.0)
    lines = {
        QUIET: runs[~forms],
        PAPERS: runs[forms & (runs["method"] == "ppd")],
        "the teacher's own PPO run": select(grid, "teachers", [env_id], seed=100),
        "PPD's settings, no teacher": alone,
    }
    return {label: finished(of_it) for label, of_it in lines.items()}


def draw_readme(grid: pd.DataFrame, points: pd.DataFrame):
    """Evaluations as a fraction of the teacher's final score, a panel for each of four tasks.

    Lines are means over seeds and bands their range. Each line is named once, with its number of
    seeds, in the panel where there is room. None if Hopper has no run for one of the lines.
    """
    room = {  # for a line's name: panel and height
        QUIET: ("HalfCheetah-v4", 1.06),
        PAPERS: ("Ant-v4", 1.06),
        "the teacher's own PPO run": ("Hopper-v4", 0.53),
        "PPD's settings, no teacher": ("Hopper-v4", 0.1),
    }
    tasks = ["Hopper-v4", "HalfCheetah-v4", "Ant-v4", "Humanoid-v4"]
    found = {env_id: lines_of_the_readme(grid, env_id) for env_id in tasks}
    if not all(map(len, found["Hopper-v4"].values())):
        return None
    layout = {"figsize": (10.5, 3.1), "sharey": True, "layout": "constrained"}
    figure, row = plt.subplots(1, len(tasks), **layout)
    for axes, (env_id, lines) in zip(row, found.items(), strict=True):
        axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
        for (label, runs), (colour, dashes) in zip(lines.items(), STYLES, strict=False):
            own = label == "the teacher's own PPO run"
            column = "evaluation_score" if own else "evaluation_fraction"
            values = on_common_steps(runs, points, column).dropna(axis=1)
            values = values / (runs["score"].mean() if own else 1)
            every = 0.5 if own else 0.1  # million steps between evaluations; bins round them up
            values = values.set_axis(values.columns / 1e6 // every * every, axis=1)
            values = values.loc[:, values.columns < 2.05]
            style = {"color": colour, "linestyle": dashes, "marker": "o" if own else None}
            axes.plot(values.columns, values.mean(), **style, markersize=4)
            span = values.min(), values.max()
            axes.fill_between(values.columns, *span, color=colour, alpha=0.2, linewidth=0)
            panel, height = room[label]
            if panel == env_id:
                seeds = runs["seed"].nunique()
                note = f"{seeds} seeds" if seeds > 1 else "1 seed"
                note = f"512 512, {note}" if "no teacher" in label else note
                axes.text(2, height, f"{label}\n({note})", color=colour, ha="right", va="bottom")
        axes.set(title=env_id, xlabel="million steps", xlim=(0, 2), ylim=(-0.1, 1.3))
    row[0].set_ylabel("score / teacher's final score")
    return figure


def make_figures(grid: pd.DataFrame) -> dict[str, tuple]:
    """Figure → its panels, and how `draw` lays them out. Without runs there are no panels."""
    figures = {"suites": (panels_of_suites(grid), 3)}
    for suite, envs in ENVS.items():
        figures[f"teachers_{suite}"] = (panels_of_teachers(grid, suite),)
        figures[f"sizes_{suite}"] = panels_of_sizes(grid, envs), 3
    figures["lambda"] = panels_of_lambda(grid, "lambda", [IMPERFECT_ATARI]), 1, 6
    one_by_one = [[env_id] for env_id in LAMBDA_MUJOCO]
    figures["lambda_mujoco"] = panels_of_lambda(grid, "lambda-mujoco", one_by_one), 2, 4.6
    figures["imperfect_mujoco"] = (panels_of_imperfect_mujoco(grid),)
    figures["sb3_ppo"] = panels_of_sb3(grid), 2, 4.6
    figures["pixels"] = panels_of_pixels(grid), 2, 6.4
    games = [[env_id] for env_id in PIXEL_STEPS]
    figures["pixels_lambda"] = panels_of_lambda(grid, "pixels", games), 2, 4.6
    figures["gradient"] = (panels_of_gradient(grid),)
    figures["partial"] = panels_of_partial(grid), 2, 4.6
    figures["zoo"] = panels_of_zoo(grid), 3, 4
    figures["fade"] = panels_of_fade(grid), 2, 4.6
    figures["multi"] = panels_of_multi(grid), 2, 4.6
    return figures


def draw_figures(grid: pd.DataFrame, points: pd.DataFrame, folder: Path) -> None:
    for name, (panels, *layout) in make_figures(grid).items():
        if panels:
            draw(panels, points, *layout).savefig(folder / f"{name}.png", dpi=120)
            plt.close()
    if (figure := draw_readme(grid, points)) is not None:
        figure.savefig(folder / "readme.png", dpi=150)
        plt.close()


# ------------------------------------------------------------------------------- By hand


def read_run(run: Path) -> dict:
    """A finished run's result.json; for a stopped run the same, without a score."""
    if (run / "result.json").exists():
        return json.loads((run / "result.json").read_text())
    state = torch.load(run / "training_state.pt", map_location="cpu", weights_only=True)
    script = Path(state["command"].split()[1]).stem  # of `python SCRIPT.py`
    return {"script": script, "args": state["args"], **state["history"]}


def draw_runs(path: str, runs: list[str]) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    teacher = None
    for run, (colour, _) in zip(runs, STYLES, strict=False):
        result = read_run(Path(run))
        args = result["args"]
        size = args.get("student_size") or args["size"]
        steps, means, _ = np.array(result["curve"]).T
        end = f"{result['score']['mean']:.0f}" if "score" in result else "stopped"
        width = min(20, len(means))
        smooth = np.convolve(means, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], smooth, color=colour, linewidth=1)
        if result["evaluations"]:
            eval_steps, eval_means, _ = np.array(result["evaluations"], dtype=float).T
            axes.plot(eval_steps, eval_means, "o", color=colour, markersize=3.5)
        label = f"{result['script']}, {size}, seed {args['seed']}: {end}"
        axes.plot([], [], "-o", color=colour, markersize=3.5, label=label)
        teacher = result.get("teacher_score", teacher)
    if teacher:
        mean = teacher["mean"]
        axes.axhline(mean, color="black", linestyle="--", linewidth=1, label=f"teacher: {mean:.0f}")
    axes.set(xlabel="environment steps", ylabel="episode return", title=args["env_id"])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    figure.legend(loc="outside lower center", fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 2 + len(STYLES):
        sys.exit("usage: python -m experiments.curves FIGURE.png RUN [RUN …]")
    try:
        draw_runs(sys.argv[1], sys.argv[2:])
    except OSError as error:
        print(f"curves: error: {error}; give folders of runs", file=sys.stderr)
        sys.exit(2)
