"""The paper's statistics: a run as a fraction of its teacher, and many runs as one number.

The aggregate over the (environment, seed) pairs of a suite is the geometric interquartile mean
exp(IQM(log x)). Its 95 % interval is a bootstrap stratified by environment. Both are computed with
rliable (Agarwal et al., 2021). No function here drops a run; callers say what is missing.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rliable import library, metrics

from experiments.studies import PROCGEN, all_runs, plain_name, suite_of

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
FLOOR = 0.01  # smaller fractions enter a geometric mean as this one


def normalize(env_id: str, score: float) -> float:
    """Human-normalise an Atari score; any other score stays as it is."""
    bases = ATARI_BASES.get(env_id.removesuffix("NoFrameskip-v4"))
    if bases is None:
        return score
    random, human = bases
    return (score - random) / (human - random)


def fraction_of_teacher(env_id: str, score: float, teacher_score: float) -> float:
    """Raw scores to the student's fraction; nan if the teacher's score is not above 0."""
    teacher = normalize(env_id, teacher_score)
    return normalize(env_id, score) / teacher if teacher > 0 else math.nan


def steps_to_90_percent(env_id: str, evaluations: list, teacher_score: float) -> int | None:
    """The step of the first evaluation [step, mean, …] that reaches 90 % of the teacher's score.

    None if there is none, or if the teacher does not score above 0.
    """
    fractions = ((e[0], fraction_of_teacher(env_id, e[1], teacher_score)) for e in evaluations)
    return next((step for step, fraction in fractions if fraction >= 0.9), None)


def each(function, *columns: pd.Series) -> np.ndarray:
    return np.array([function(*row) for row in zip(*columns, strict=True)], dtype=float)


def make_grid(runs: pd.DataFrame, curves: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All runs of all studies, and the points of their curves. Missing runs have no numbers.

    A run with several tasks has a row for each. A run that is part of two studies has rows in both:
    `study` is the one that lists it, `trained_in` the one that it was trained in.

    Fractions and their errors are of the teacher's score, or of the original's if the teacher is
    corrupted. `area` is the mean fraction of the evaluations during training. `million_steps` are
    the steps to 90 %, or all steps of a run that never gets there.

    A point's `score` and `fraction` are of the episodes that its run trained on. That fraction is
    over `of_training`, the mean return of the last 5 % of the teacher's own training (the dashed
    line in Figure 1); over the reference if there is no such record or the noise was different.
    """
    studied = [
        (study, run, key, origin)
        for study, run in all_runs()
        for key, origin in zip(run.keys, run.origins or [None], strict=True)
    ]
    grid = pd.DataFrame([key for _, _, key, _ in studied])
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
    rows = {run.run_dir: row for row, (_, run, _, _) in enumerate(studied)}
    origins = [origin and rows[origin.run_dir] for *_, origin in studied]
    of_training = pd.Series(origins, dtype=float).map(at_the_end).where(grid["log_std_shift"] == 0)
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
    # Rounded, because an evaluation comes at the end of a rollout, whose length differs.
    grid["million_steps"] = (grid["steps_to_90_percent"].fillna(grid["steps"]) / 1e6).round(2)
    grid["minutes"] = grid["steps_to_90_percent"] / grid["steps"] * grid["hours"] * 60
    grid["trained_in"], grid["study"] = grid["study"], [study for study, *_ in studied]
    grid["run_dir"] = [str(run.run_dir) for _, run, _, _ in studied]
    grid["run_env_id"] = [run.env_id for _, run, _, _ in studied]
    is_quiet = (grid["method"] == "ppd") & (~grid["ratio_gradient"].fillna(True))
    grid["form"] = grid["method"].mask(is_quiet, "ppd --no-ratio-gradient")
    return grid, points


def own_runs(grid: pd.DataFrame) -> pd.DataFrame:
    """One row for each run, in the study that it was trained in."""
    return grid[grid["study"] == grid["trained_in"]].drop_duplicates("run_dir")


def select(grid: pd.DataFrame, study: str, envs, **choices) -> pd.DataFrame:
    """The runs of a study in some environments, including the missing ones."""
    chosen = (grid["study"] == study) & grid["env_id"].isin([*envs])
    for name, value in choices.items():
        chosen &= grid[name] == value
    return grid[chosen]


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.dropna(subset=["score"])


def each_teacher(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each environment and seed, with the teacher's scores."""
    return runs.groupby(["env_id", "seed"], sort=False).last().reset_index()


def mean_score(runs: pd.DataFrame, column: str = "score") -> float:
    """The mean over runs, human-normalised on Atari; nan if there is none."""
    return float(pd.Series(each(normalize, runs["env_id"], runs[column])).mean())


def gradient_groups(grid: pd.DataFrame) -> list[tuple[str, dict[str, pd.DataFrame]]]:
    """Name and runs by form, of each student and teacher with runs of both forms of PPD."""
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
    """Environment and runs by student, of the students that see positions only."""
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


FADES = {  # variant of the study `fade` → the student's name
    "": "PPD, λ = 1",
    "fade": "PPD, λ 1 → 0",
    "fade-early": "PPD, λ 1 → 0 in 0.8 M, PPO settings",
    "floor": "PPD, λ 1 → 0.1 in 0.8 M, PPO settings",
    "ppo": "PPO",
    "ppo-own-settings": "PPO, PPO settings",
    "fade-early-64-0.999": "PPD, λ 1 → 0 in 0.8 M, 64 steps, γ 0.999",
    "fade-early-64-0.995": "PPD, λ 1 → 0 in 0.8 M, 64 steps, γ 0.995",
    "fade-early-512-0.999": "PPD, λ 1 → 0 in 0.8 M, 512 steps, γ 0.999",
    "init": "student-distill, then PPO",
    "init-warmup": "student-distill, then PPO, critic first",
}
MULTI = {  # variant of the study `multi` → the student's name
    "ppd": "PPD `--no-ratio-gradient`",
    "paper": "PPD (paper's loss)",
    "reverse": "PPD `--no-ratio-gradient`, reverse KL",
    "reverse-unweighted": "PPD `--no-ratio-gradient`, reverse KL, equal weights",
    "distill": "distillation only",
    "ppo": "PPO",
}


def fade_groups(grid: pd.DataFrame) -> dict[tuple[str, str], dict[str, pd.DataFrame]]:
    """(Environment, teacher) → student → its runs, of the study `fade`."""
    groups, runs = {}, finished(grid[grid["study"] == "fade"])

    def name_of(run) -> str:
        if run.method == "student-distill":
            return "student-distill, 0.4 M"
        if pd.isna(run.variant):
            return FADES["ppo" if run.distill_lambda == 0 else ""]
        name = FADES[run.variant]  # on Atari and Procgen the PPO settings are PPD's own
        return name if suite_of(run.env_id) == "mujoco" else name.removesuffix(", PPO settings")

    names = [name_of(run) for run in runs.itertuples()]
    # PPO has no teacher: it is compared with the students of the corrupted one.
    is_sound = (runs["sigma"] == 0) & (runs["distill_lambda"] != 0)
    for (env_id, sound), group in runs.assign(student=names).groupby(
        ["env_id", is_sound], sort=False
    ):
        kept = group["teacher_fraction"].where(group["sigma"] > 0).mean()
        teacher = "original" if sound else f"corrupted ({kept:.2f})"
        groups[env_id, teacher] = in_order(group, "student", [*FADES.values()])
    return groups


def multi_groups(grid: pd.DataFrame) -> dict[tuple[str, str], dict[str, pd.DataFrame]]:
    """(Robot, size) → student → its runs, of the study `multi`; a run has a row for each task."""
    groups, runs = {}, finished(grid[(grid["study"] == "multi") & (grid["method"] == "ppd-multi")])
    runs = runs.assign(student=runs["variant"].map(MULTI))
    for (tasks, size), group in runs.groupby(["run_env_id", "size"], sort=False):
        groups[tasks.split("-v4")[0], size] = in_order(group, "student", [*MULTI.values()])
    return groups


def in_order(runs: pd.DataFrame, column: str, order: list[str]) -> dict[str, pd.DataFrame]:
    """The runs by a column's values: first those in `order`, then all others."""
    parts = dict([*runs.groupby(column, sort=False)])
    return {name: parts[name] for name in [*order, *parts] if name in parts}


@dataclass
class Aggregate:
    """Geometric interquartile mean over runs, and what it rests on."""

    mean: float
    interval: tuple[float, float] | None  # 95 %; None if an environment has only one seed
    runs: int
    floored: int  # how many fractions were below `FLOOR`, or equal


def geometric_iqm(*fractions: np.ndarray) -> np.ndarray:
    """exp(IQM(log x)) of all values together."""
    together = np.concatenate([np.ravel(group) for group in fractions])
    return np.array([math.exp(metrics.aggregate_iqm(np.log(np.maximum(together, FLOOR))))])


def interquartile_curve(*curves: np.ndarray) -> np.ndarray:
    """Interquartile mean (points,) over all curves; one array (runs, points) per environment."""
    return np.array([metrics.aggregate_iqm(column) for column in np.concatenate(curves).T])


def bootstrap(groups: list[np.ndarray], function, resamples: int) -> np.ndarray:
    """95 % interval (2, points) of `function(*groups)`; each resample draws seeds in each group."""
    state = np.random.get_state()
    np.random.seed(0)  # rliable uses NumPy's global generator, even if it is given another one
    try:
        _, intervals = library.get_interval_estimates({"": groups}, function, reps=resamples)
    finally:
        np.random.set_state(state)
    return intervals[""]


def aggregate(runs: pd.DataFrame, column: str = "fraction") -> Aggregate | None:
    """A column of runs to one number; None if there is no run."""
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
    """Curves (seeds, points) by environment, to their interquartile mean (points,) and interval.

    The interval (2, points) is None if an environment has only one seed.
    """
    groups = [values for values in curves.values() if len(values)]
    mean = interquartile_curve(*groups)
    if min(map(len, groups)) == 1:
        return mean, None
    return mean, bootstrap(groups, interquartile_curve, resamples)
