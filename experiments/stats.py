"""The paper's statistics: a run as a fraction of its teacher, and many runs as one number.

The aggregate over the (environment, seed) pairs of a suite is the geometric interquartile mean
exp(IQM(log x)), its 95 % interval a bootstrap stratified by environment; both through rliable
(Agarwal et al., 2021). No function here drops a run: what is missing is for the caller to say.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rliable import library, metrics

from experiments.studies import PROCGEN, all_runs, plain_name

# Random play and a human (Badia et al., 2020).
ATARI_BASES = {
    "Atlantis": (12850.0, 29028.1),
    "BeamRider": (363.9, 16926.5),
    "CrazyClimber": (10780.5, 35829.4),
    "DemonAttack": (152.1, 1971.0),
    "Enduro": (0.0, 860.5),
    "Freeway": (0.0, 29.6),
    "MsPacman": (307.3, 6951.6),
    "Pong": (-20.7, 14.6),
    "Qbert": (163.9, 13455.0),
    "Seaquest": (68.4, 42054.7),
    "Zaxxon": (32.5, 9173.3),
}
BINS = 100  # points of a learning curve in the CSV
FLOOR = 0.01  # a fraction at or below it enters a geometric mean as this


def normalize(env_id: str, score: float) -> float:
    """An Atari score human-normalised, any other as it is."""
    bases = ATARI_BASES.get(env_id.removesuffix("NoFrameskip-v4"))
    if bases is None:
        return score
    random, human = bases
    return (score - random) / (human - random)


def fraction_of_teacher(env_id: str, score: float, teacher_score: float) -> float:
    """Raw scores to the student's fraction; nan where the teacher's is not above 0."""
    teacher = normalize(env_id, teacher_score)
    return normalize(env_id, score) / teacher if teacher > 0 else math.nan


def steps_to_90_percent(env_id: str, evaluations: list, teacher_score: float) -> int | None:
    """The first evaluation [step, mean score, …] at 90 % of the teacher; None if there is none.

    Nor is there 90 % of a teacher that does not score above 0.
    """
    fractions = ((e[0], fraction_of_teacher(env_id, e[1], teacher_score)) for e in evaluations)
    return next((step for step, fraction in fractions if fraction >= 0.9), None)


def each(function, *columns: pd.Series) -> np.ndarray:
    return np.array([function(*row) for row in zip(*columns, strict=True)], dtype=float)


def make_grid(runs: pd.DataFrame, curves: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All runs of all studies, one that is missing without numbers, and the points of their curves.

    Fractions, errors among them, are of the teacher's score, or of the original's where it is
    imperfect; `area` is that of the evaluations on the way, `million_steps` are those to 90 %, or
    all. A point's `score` and `fraction` are of the episodes that its run trained on, the latter
    over `of_training`: those of its teacher's last 5 % of steps (Figure 1's dashed line), or the
    reference where those are not on record, or had other noise.
    """
    studied = all_runs()
    grid = pd.DataFrame([run.key for run in studied])
    keys = list(grid)
    grid = grid.astype(runs.dtypes[keys]).merge(runs, how="left")
    env_id, names = grid["env_id"], ("", "teacher_")
    for levels in ("", "_training"):
        original, teacher = grid[f"original_score{levels}"], grid[f"teacher_score{levels}"]
        reference = original.where(grid["sigma"] > 0, teacher)
        grid[f"reference{levels}"] = reference
        for name in names:
            score = grid[f"{name}score{levels}"]
            grid[f"{name}fraction{levels}"] = each(fraction_of_teacher, env_id, score, reference)
    for name in names:  # an error is a difference of scores
        above = grid[f"{name}score"] + grid[f"{name}score_se"]
        above = each(fraction_of_teacher, env_id, above, grid["reference"])
        grid[f"{name}fraction_se"] = above - grid[f"{name}fraction"]

    points = curves.merge(grid.assign(row=grid.index)[[*keys, "row", "steps", "reference"]])
    points["bin"] = (points["step"] / points["steps"] * BINS).round().astype(int)
    at_the_end = points[points["bin"] > 0.95 * BINS].groupby("row")["training_return"].mean()
    rows = {run.run_dir: row for row, run in enumerate(studied)}
    teachers = pd.Series([run.origin and rows[run.origin.run_dir] for run in studied], dtype=float)
    of_training = teachers.map(at_the_end).where(grid["log_std_shift"] == 0)
    scores = grid["reference_training"].where(env_id.isin(PROCGEN), grid["reference"])
    grid = grid.assign(row=grid.index, of_training=of_training.fillna(scores))
    points = points.merge(grid[["row", "of_training"]])
    for name, column, reference in [
        ("", "training_return", "of_training"),
        ("evaluation_", "evaluation", "reference"),
    ]:
        scores = points["env_id"], points[column]
        points[f"{name}score"] = each(normalize, *scores)
        points[f"{name}fraction"] = each(fraction_of_teacher, *scores, points[reference])
    grid["area"] = points.groupby("row")["evaluation_fraction"].mean()
    # Rounded: an evaluation comes at the end of a rollout, which is longer in PPD.
    grid["million_steps"] = (grid["steps_to_90_percent"].fillna(grid["steps"]) / 1e6).round(2)
    return grid, points


def select(grid: pd.DataFrame, study: str, envs, **choices) -> pd.DataFrame:
    """The runs of a study in some environments, the missing ones among them."""
    chosen = (grid["study"] == study) & grid["env_id"].isin([*envs])
    for name, value in choices.items():
        chosen &= grid[name] == value
    return grid[chosen]


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.dropna(subset=["score"])


def each_teacher(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each environment and seed: of its teacher, measured beside several students."""
    return runs.groupby(["env_id", "seed"], sort=False).last().reset_index()


def mean_score(runs: pd.DataFrame, column: str = "score") -> float:
    """Human-normalised on Atari; nan where there is none."""
    return float(pd.Series(each(normalize, runs["env_id"], runs[column])).mean())


def gradient_groups(grid: pd.DataFrame) -> list[tuple[str, dict[str, pd.DataFrame]]]:
    """Name and runs by form, of each student and teacher that PPD was run on in both forms."""
    groups, runs = [], finished(grid[grid["study"] == "gradient"])
    kind = ["env_id", "size", "sigma", "log_std_shift"]
    for (env_id, size, sigma, shift), group in runs.groupby(kind, sort=False):
        teacher = f", σ = {sigma:g}" if sigma else f", log σ {shift:+g}" if shift else ""
        forms = {
            "Equation 2": group[(group["ratio_gradient"]).fillna(False)],
            "r detached": group[(~group["ratio_gradient"]).fillna(False)],
            "student-distill": group[group["method"] == "student-distill"],
        }
        if len(forms["Equation 2"]) and len(forms["r detached"]):
            found = {form: members for form, members in forms.items() if len(members)}
            groups.append((f"{plain_name(env_id)}, {size}{teacher}", found))
    return groups


def partial_groups(grid: pd.DataFrame) -> list[tuple[str, dict[str, pd.DataFrame]]]:
    """Environment and runs by student, of those that see positions alone."""
    names = {"ppd-lstm": "PPD, LSTM", "distill-lstm": "distillation alone, LSTM"}
    names |= {"ppo-lstm": "PPO, LSTM", "ppd-mlp": "PPD, no memory"}
    runs = finished(grid[grid["study"] == "partial"])
    as_in_the_paper = (runs["method"] != "ppo-lstm") & runs["ratio_gradient"].fillna(False)
    students = runs["method"].map(names) + as_in_the_paper.map({True: ", Equation 2", False: ""})
    runs = runs.assign(student=students)
    return [
        (env_id, dict([*of_env.groupby("student", sort=False)]))
        for env_id, of_env in runs.groupby("env_id", sort=False)
    ]


@dataclass
class Aggregate:
    """Geometric interquartile mean over runs, and all that a reader must know about it."""

    mean: float
    interval: tuple[float, float] | None  # 95 %; None where an environment has one seed
    runs: int
    floored: int  # how many fractions entered as `FLOOR`


def geometric_iqm(*fractions: np.ndarray) -> np.ndarray:
    """exp(IQM(log x)) of all values together."""
    together = np.concatenate([np.ravel(group) for group in fractions])
    return np.array([math.exp(metrics.aggregate_iqm(np.log(np.maximum(together, FLOOR))))])


def interquartile_curve(*curves: np.ndarray) -> np.ndarray:
    """Interquartile mean at each point of curves (runs, points), one array per environment."""
    return np.array([metrics.aggregate_iqm(column) for column in np.concatenate(curves).T])


def bootstrap(groups: list[np.ndarray], function, resamples: int) -> np.ndarray:
    """95 % interval (2, points) of `function(*groups)`: seeds are drawn anew in each group."""
    state = np.random.get_state()
    np.random.seed(0)  # rliable draws from NumPy's global generator, whatever it is given
    try:
        _, intervals = library.get_interval_estimates({"": groups}, function, reps=resamples)
    finally:
        np.random.set_state(state)
    return intervals[""]


def aggregate(runs: pd.DataFrame, column: str = "fraction") -> Aggregate | None:
    """A column of runs to one number; None where there is no run at all."""
    known = runs.dropna(subset=[column])
    groups = [np.array(of_env[column])[:, None] for _, of_env in known.groupby("env_id")]
    if not groups:
        return None
    interval = None
    if min(map(len, groups)) > 1:
        low, high = bootstrap(groups, geometric_iqm, 2000)[:, 0]
        interval = float(low), float(high)
    floored = int((known[column] <= FLOOR).sum())
    return Aggregate(float(geometric_iqm(*groups)[0]), interval, len(known), floored)


def mean_with_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean over seeds, and its 95 % bootstrap interval."""
    groups = [np.array(values, dtype=float)[:, None]]
    low, high = bootstrap(groups, lambda *drawn: np.mean(np.concatenate(drawn), axis=0), 2000)[:, 0]
    return float(np.mean(values)), float(low), float(high)


def curve_band(curves: dict[str, np.ndarray], resamples: int = 300):
    """Environment → (seeds, points), to the interquartile mean (points,) and its interval.

    The interval (2, points) is None where an environment has one seed.
    """
    groups = [values for values in curves.values() if len(values)]
    mean = interquartile_curve(*groups)
    if min(map(len, groups)) == 1:
        return mean, None
    return mean, bootstrap(groups, interquartile_curve, resamples)
