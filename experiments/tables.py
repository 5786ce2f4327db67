"""The tables of `python -m experiments.report`: our numbers, and the paper's next to them.

Each function takes the runs and the points of their curves from `stats.make_grid`. It returns
title, text, header and rows, with no row where we have no run.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import paper_tables as paper
from experiments import stats
from experiments.stats import each_teacher, finished, select
from experiments.studies import (
    ENVS,
    FADE_STEPS,
    IMPERFECT_ATARI,
    METHODS,
    MUJOCO,
    MUJOCO_SIGMA,
    SB3_STEPS,
    SIZES,
    ZOO,
    plain_name,
    suite_of,
)

# ------------------------------------------------------------------------------- A table's cells


def number(value) -> str:
    """A cell: a number, a number of the paper with its interval, or a text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return "{:.2f} [{:.2f}, {:.2f}]".format(*value)
    return "–" if pd.isna(value) else f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def seeds_of(runs: pd.DataFrame) -> str:
    return ", ".join(map(str, sorted(set(finished(runs)["seed"]))))


def texts_of(runs: pd.DataFrame, column: str) -> str:
    """The different texts in a column of runs.csv."""
    return ", ".join(sorted(set(runs[column].fillna("–"))))


def aggregate(runs: pd.DataFrame, column: str = "fraction") -> str:
    """Geometric interquartile mean and interval, and how many runs they rest on."""
    result = stats.aggregate(runs, column)
    if result is None:
        return "–"
    interval = "n=1" if result.interval is None else "[{:.2f}, {:.2f}]".format(*result.interval)
    of = f", {result.runs} of {len(runs)} runs" if result.runs < len(runs) else ""
    floored = f", {result.floored} at ≤ {stats.FLOOR}" if result.floored else ""
    return f"{result.mean:.2f} {interval}{of}{floored}"


def complete_aggregate(runs: pd.DataFrame, column: str = "fraction") -> str:
    """The mean without its interval; a dash if an environment has no run."""
    complete = runs.groupby("env_id")[column].count().all()
    return f"{stats.aggregate(runs, column).mean:.3f}" if complete else "–"


def mean_score(runs: pd.DataFrame, column: str = "score") -> str:
    """Over seeds, human-normalised on Atari."""
    count = runs[column].count()
    seeds = f" n={count}" if 0 < count < len(runs) else ""
    return number(stats.mean_score(runs, column)) + seeds


def mean_fraction(runs: pd.DataFrame, column: str = "fraction") -> str:
    return f"{runs[column].mean():.3f}" if runs[column].count() else "–"


def mean_over_seeds(runs: pd.DataFrame, column: str = "fraction") -> str:
    """Mean ± standard error over seeds; without the error for one seed."""
    error = runs[column].sem()
    return mean_fraction(runs, column) + ("" if np.isnan(error) else f" ± {error:.3f}")


def score_over_seeds(runs: pd.DataFrame, column: str = "score") -> str:
    """The same for scores, human-normalised on Atari."""
    scores = pd.Series(stats.each(stats.normalize, runs["env_id"], runs[column]), dtype=float)
    error, digits = scores.sem(), 0 if scores.mean() >= 100 else 2
    return number(scores.mean()) + ("" if np.isnan(error) else f" ± {error:.{digits}f}")


def with_error(runs: pd.DataFrame, column: str = "fraction") -> str:
    """Mean ± standard error: over seeds, for one seed over its episodes, for two the larger."""
    error = runs[column].sem()
    if runs[column].count() < 3:  # two runs may agree by chance
        error = np.fmax(error, np.mean(runs.get(column + "_se", np.nan)))
    return mean_fraction(runs, column) + ("" if np.isnan(error) else f" ± {error:.3f}")


def counted(cell, line: pd.DataFrame):
    """A cell that says how many runs it has, if that is less than the seeds of its line."""
    most = len(finished(line).groupby(["env_id", "seed"]))

    def counted_cell(runs: pd.DataFrame, column: str = "fraction") -> str:
        text, count = cell(runs, column), runs[column].count()
        return text if text == "–" or count == most else f"{text} n={count}"

    return counted_cell


def steps_to_90_percent(runs: pd.DataFrame, _: str = "") -> str:
    """The median. A run that never gets there counts as the slowest."""
    steps = finished(runs)["steps_to_90_percent"]
    middle = steps.fillna(np.inf).median()
    text = "never" if np.isinf(middle) else f"{middle / 1e6:.2f} M"
    return f"{text} ({steps.count()} of {len(steps)})" if len(steps) else "–"


def students(grid, study: str, envs, sizes, cell, column="fraction", forms=METHODS) -> list[str]:
    """The cells of students of some sizes, by all methods."""
    each = product(sizes, forms)
    return [cell(select(grid, study, envs, size=s, form=form), column) for s, form in each]


# ------------------------------------------------------------------------------- Tables

FORMS = {"teacher-distill": "teacher-distill", "student-distill": "student-distill"}
FORMS |= {"ppd": "PPD (paper's loss)", "ppd --no-ratio-gradient": "PPD `--no-ratio-gradient`"}
SHORT = {"teacher-distill": "td", "student-distill": "sd", "ppd": "ppd"}
ALL_STUDENTS = [f"{size} {method}" for size in SIZES for method in SHORT.values()]
FOUR_GAMES = ENVS | {"atari": IMPERFECT_ATARI}
ERRORS = "of one seed over its episodes, of several over seeds, of two the larger"
NAMES = "td: teacher-distill, sd: student-distill, ppd: PPD (paper's loss). A dash: no run."
NOTE = (
    "A student's score over its (original) teacher's. For several environments: the geometric "
    "interquartile mean over (environment, seed) pairs, and its 95 % bootstrap interval, "
    "stratified by environment. n=1: one seed, so no interval. Procgen: unseen levels, except where"
    f" the row says otherwise. {NAMES}"
)
ERROR_NOTE = (
    f"A student's score over its (original) teacher's. ±: standard error ({ERRORS}); the teacher's "
    f"own error is not part of it. {NAMES}"
)
COUNT_NOTE = "n: the runs of a cell, where its row has more seeds."
STEPS_NOTE = (
    "Steps to 90 %: when an evaluation during training first reaches 90 % of the teacher's score. "
    "Evaluations are of deterministic actions, on Procgen of sampled ones. The cell has the median "
    "over runs, where a run that never gets there is the slowest, and how many runs get there."
)


SEEDS_NOTE = (
    "n=1: one seed, so no interval. With few seeds the interval is too narrow: in a simulation "
    "of four environments an interval of three seeds covered 84 %, of five 90 %."
)
AGGREGATE_NOTE = (
    "A student's score over its teacher's: geometric interquartile mean over (environment, seed) "
    f"pairs, and its 95 % bootstrap interval, stratified by environment. {SEEDS_NOTE} Procgen: "
    "unseen levels, except where the row says otherwise. A dash: no run."
)


def compare(labels: list[str], ours: list[str], theirs: list) -> list[list[str]]:
    """A row of ours and the paper's below it; no row if we have no run."""
    theirs = [*map(number, theirs), *(["–"] * (len(ours) - len(theirs)))]
    paper_line = [*([""] * len(labels)), "paper", *theirs]
    return [] if set(ours) <= {"–", ""} else [[*labels, "ours", *ours], paper_line]


def envs_and_levels(name: str, suites: dict) -> tuple[list[str], str]:
    """The environments of a row of the paper, and the ending of the column with its levels."""
    name, training, _ = name.partition(", training levels")
    return suites.get(name, [name]), "_training" if training else ""


def table_1(grid, points):
    rows = []
    for (name, numbers), size in product(paper.TABLE_1.items(), SIZES):
        envs, levels = envs_and_levels(name, ENVS)
        column, cell = "fraction" + levels, aggregate
        ours = students(grid, "sizes", envs, [size], cell, column, FORMS)
        rows += compare([name, size], ours, numbers[size])
    header = ["suite", "student", "", *FORMS.values()]
    return "Tables 1 and 8: students as a fraction of their teachers", AGGREGATE_NOTE, header, rows


def table_5(grid, points):
    rows = []
    for name, (teacher, *numbers) in paper.TABLE_5.items():
        envs, levels = envs_and_levels(name, {})
        teachers, runs = select(grid, "teachers", envs), select(grid, "sizes", envs)
        for number_of_size, size in enumerate(SIZES):
            line = pd.concat([teachers, runs[runs["size"] == size]])
            cell, column = counted(score_over_seeds, line), "score" + levels
            ours = [cell(teachers, column)]
            ours += students(grid, "sizes", envs, [size], cell, column, FORMS)
            theirs = [teacher, *numbers[3 * number_of_size :][:3]]
            if len(finished(runs[runs["size"] == size])) or (size == "same" and ours[0] != "–"):
                rows += compare([plain_name(name), size, seeds_of(line)], ours, theirs)
    text = (
        "Mean ± standard error over seeds, human-normalised on Atari. n: the runs of a cell, where "
        "its row has more seeds. The paper's are means over five seeds. A dash: no run."
    )
    header = ["environment", "student", "seeds", "", "teacher", *FORMS.values()]
    return "Table 5: scores in each environment", text, header, rows


def table_sizes(grid, points):
    """Each MuJoCo environment's fractions by all four methods, next to the paper's."""
    rows = []
    for env_id, size in product(MUJOCO, SIZES):
        runs = select(grid, "sizes", [env_id], size=size)
        cell = counted(mean_over_seeds, runs)
        ours = students(grid, "sizes", [env_id], [size], cell, forms=FORMS)
        teacher, *scores = paper.TABLE_5[env_id]
        theirs = [f"{score / teacher:.2f}" for score in scores[3 * SIZES.index(size) :][:3]]
        labels = [env_id, size, seeds_of(runs)]
        rows += [[*labels, *ours, *theirs]] if len(finished(runs)) else []
    for size in SIZES:
        runs = select(grid, "sizes", MUJOCO, size=size)
        cell = counted(complete_aggregate, runs)
        ours = students(grid, "sizes", MUJOCO, [size], cell, forms=FORMS)
        theirs = [f"{mean:.2f}" for mean, *_ in paper.TABLE_1["mujoco"][size]]
        rows += [["all four", size, "", *ours, *theirs]] if len(finished(runs)) else []
    text = (
        "A student's score over its teacher's: mean ± standard error over seeds; in the last rows "
        "the geometric interquartile mean over all environments and seeds. n: the runs of a cell, "
        "where its row has more seeds. The paper's numbers for one environment are its mean "
        "scores, divided (its Table 5, five seeds)."
    )
    header = ["environment", "student", "seeds", *FORMS.values()]
    header += [f"paper's {name}" for name in ("teacher-distill", "student-distill", "PPD")]
    return "MuJoCo: students of three sizes, as a fraction of their teachers", text, header, rows


def table_mujoco(grid, points):
    """Table 1's MuJoCo rows for each environment, by the paper's three methods."""
    rows = []
    for env_id in MUJOCO:
        teachers = finished(select(grid, "teachers", [env_id]))
        runs = select(grid, "sizes", [env_id])
        line = pd.concat([teachers, runs[runs["form"].isin(METHODS)]])
        ours = [seeds_of(line) or "–", counted(mean_score, line)(teachers, "score")]
        ours += students(grid, "sizes", [env_id], SIZES, counted(mean_over_seeds, line))
        teacher, *scores = paper.TABLE_5[env_id]
        ratios = [f"{score / teacher:.2f}" for score in scores]
        rows += compare([env_id], ours, ["five", teacher, *ratios])
    runs = select(grid, "sizes", MUJOCO)
    cell = counted(complete_aggregate, runs[runs["form"].isin(METHODS)])
    ours = students(grid, "sizes", MUJOCO, SIZES, cell)
    theirs = [f"{mean:.2f}" for size in SIZES for mean, *_ in paper.TABLE_1["mujoco"][size]]
    rows += compare(["all four"], ["", "", *ours], ["", "", *theirs])
    text = f"{NOTE} ±: standard error over seeds. {COUNT_NOTE} The paper's numbers for one "
    text += "environment are its mean scores, divided (its Table 5)."
    header = ["environment", "", "seeds", "teacher's score", *ALL_STUDENTS]
    return "MuJoCo: teachers, and students as a fraction of them", text, header, rows


def table_6(grid, points):
    rows = []
    for name, numbers in paper.TABLE_6.items():
        envs, levels = envs_and_levels(name, FOUR_GAMES)
        teachers = each_teacher(select(grid, "imperfect", envs))
        original = mean_score(teachers, "original_score" + levels) if len(envs) == 1 else ""
        ours = [original, aggregate(teachers, "teacher_fraction" + levels)]
        ours += students(grid, "imperfect", envs, ["larger"], aggregate, "fraction" + levels)
        rows += compare([plain_name(name)], ours, numbers)
    title = "Tables 2, 6 and 9: imperfect teachers (σ = 0.05), larger students"
    other = ", ".join(map(number, paper.TABLE_2_ATARI))
    text = f"{NOTE} The paper's Table 2 has other numbers for Atari than its Table 6: {other}."
    return title, text, ["environment", "", "original score", "teacher", *SHORT.values()], rows


def table_imperfect_mujoco(grid, points):
    rows, study = [], "imperfect-mujoco"
    for name, envs in [*((env_id, [env_id]) for env_id in MUJOCO), ("all four", MUJOCO)]:
        runs = select(grid, study, envs)
        cell, facts = complete_aggregate, ["", "", ""]
        if name in MUJOCO:
            score = mean_score(each_teacher(finished(runs)), "original_score")
            cell, facts = with_error, [seeds_of(runs), f"{MUJOCO_SIGMA[name]:g}", score]
        cell = counted(cell, runs)
        ours = [cell(each_teacher(runs), "teacher_fraction")]
        ours += students(grid, study, envs, ["larger"], cell)
        rows += [[name, *facts, *ours]] if len(finished(runs)) else []
    title = "Imperfect teachers on MuJoCo, larger students, as a fraction of the original teacher"
    header = ["environment", "seeds", "σ", "original score", "corrupted teacher", *SHORT.values()]
    text = f"{ERROR_NOTE} {COUNT_NOTE} The last row: the geometric interquartile mean."
    return title, text, header, rows


def table_7(grid, points):
    rows = []
    for name, numbers in paper.TABLE_7.items():
        envs, levels = envs_and_levels(name, FOUR_GAMES)
        teachers = select(grid, "teachers", envs)
        scores = stats.each(stats.normalize, teachers["env_id"], teachers["score" + levels])
        ours = [aggregate(teachers.assign(normalized=scores), "normalized")]
        ours += [aggregate(select(grid, "ppo-baseline", envs), "fraction" + levels)]
        ours += students(grid, "sizes", envs, ["larger"], aggregate, "fraction" + levels)
        rows += compare([name], ours, numbers)
    text = f"{NOTE} ppo: PPD's settings with λ = 0 (assumed). Teachers' scores are aggregated like "
    text += "the fractions (assumed). Atari: the four games of Table 2."
    header = ["suite", "", "teacher's score", "ppo", *SHORT.values()]
    return "Table 7: PPO without a teacher, larger students", text, header, rows


def table_lambda(grid, study):
    """Score and speed of PPD by λ, environment by environment."""
    rows, runs = [], grid[grid["study"] == study]
    weights = runs["distill_lambda"].unique()
    for env_id, of_env in runs.groupby("env_id", sort=False):
        if seeds := seeds_of(of_env):
            each = [of_env[of_env["distill_lambda"] == weight] for weight in weights]
            cell = counted(with_error, of_env)
            rows.append([env_id, seeds, "of the teacher's score", *map(cell, each)])
            rows.append(["", "", "steps to 90 % of it", *map(steps_to_90_percent, each)])
    header = ["environment", "seeds", "", *(f"λ = {weight:g}" for weight in weights)]
    text = f"{ERROR_NOTE} {COUNT_NOTE} {STEPS_NOTE} λ = 0 is PPO without a teacher."
    return "λ of PPD, larger students", text, header, rows


def table_steps(grid, points):
    rows = []
    for (suite, envs), size in product(ENVS.items(), SIZES):
        ours = students(grid, "sizes", envs, [size], steps_to_90_percent, forms=FORMS)
        rows += [[suite, size, *ours]] if set(ours) != {"–"} else []
    return "Steps to 90 % of the teacher", STEPS_NOTE, ["suite", "student", *FORMS.values()], rows


def table_sb3(grid, points):
    """Our teachers and SB3's PPO with the same settings, seed by seed."""
    rows = []
    for theirs in finished(grid[grid["study"] == "sb3-ppo"]).to_dict("records"):
        ours = select(grid, "teachers", [theirs["env_id"]], seed=theirs["seed"])
        until = points[points["row"].isin(ours.index) & (points["step"] <= 1.03 * SB3_STEPS)]
        at_4_m = until["evaluation"].dropna().tail(1).mean()
        scores = map(number, [theirs["score"], at_4_m, ours["score"].mean()])
        rows.append([theirs["env_id"], str(theirs["seed"]), *scores])
    header = ["environment", "seed", "SB3, 4 M steps", "ours, 4 M steps", "ours, 10 M steps"]
    text = (
        "Episode returns of deterministic actions: 50 episodes at the end of a run. Our teacher's "
    )
    text += "score after 4 M of its 10 M steps is of 10 episodes."
    return "Our PPO and SB3's, at the same settings", text, header, rows


GRADIENT_NOTE = (
    "Equation 2: PPD (paper's loss). r detached: PPD `--no-ratio-gradient`. All students have the "
    f"teachers of seed 100, original or corrupted. {ERROR_NOTE} Steps: the mean, to which a run "
    "that never gets there adds all of its steps; in brackets, how many get there. Area: mean of "
    "the evaluations on the way, over the teacher's score. coinrun's evaluations all play the same "
    "20 levels, so its steps and area say little. Differences: mean over common seeds, at least "
    "three, and a 95 % bootstrap interval. With so few seeds the interval is too narrow: it covers "
    "about 83 % for five seeds, and 75 % for three, whose range it is."
)


def table_gradient(grid, points):
    columns, rows = ["fraction", "million_steps", "area"], []
    for name, forms in stats.gradient_groups(grid):
        for form, runs in forms.items():
            score, steps, area = (with_error(runs, column) for column in columns)
            arrived = runs["steps_to_90_percent"].count()
            if arrived < len(runs):  # a mean of bounds has no error
                steps = mean_fraction(runs, "million_steps")
            steps = f"{steps} M" if arrived else "never"
            steps += f" ({arrived} of {len(runs)})"
            rows.append([name, form, seeds_of(runs), score, steps, area])
        by_seed = {form: runs.set_index("seed")[columns] for form, runs in forms.items()}
        never = {form for form in forms if forms[form]["steps_to_90_percent"].isna().all()}
        ours = by_seed.pop("r detached")
        for form, theirs in by_seed.items():
            gain = (ours - theirs).dropna()
            if len(gain) >= 3:
                gains = [stats.mean_with_interval(gain[column]) for column in columns]
                cells = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*each) for each in gains]
                cells[1] = "–" if {form, "r detached"} <= never else cells[1]
                rows.append([name, f"r detached − {form}", ", ".join(map(str, gain.index)), *cells])
    header = ["student", "form", "seeds", "of the teacher's score", "steps to 90 % of it", "area"]
    return "PPD with and without the ratio's gradient", GRADIENT_NOTE, header, rows


PIXELS_NOTE = (
    "Teachers and students are smaller networks, of seed 100; our teachers had fewer steps than "
    "the paper's. Score: on unseen levels of Procgen, human-normalised on Atari. The paper's score "
    "is of smaller students of its teachers, which are larger networks (Table 5, five seeds). "
    f"{ERROR_NOTE} Episodes of Atari without noise repeat each other, so their ± is too small."
)


def table_pixels(grid, points):
    rows, runs = [], finished(grid[grid["study"] == "pixels"])
    kind = ["env_id", "sigma", "method", "distill_lambda"]
    for (env_id, sigma, method, weight), group in runs.groupby(kind, sort=False, dropna=False):
        policy = f"ppd, λ = {weight:g}" if method == "ppd" else method
        policy += f", from a teacher with σ = {sigma:g}" if sigma else ""
        cells = [mean_score(group), with_error(group), mean_score(group, "score_training")]
        steps = "–" if method == "teacher" else steps_to_90_percent(group)
        cells += [mean_fraction(group, "fraction_training"), steps, texts_of(group, "precision")]
        theirs = dict(zip(("teacher", *METHODS), paper.TABLE_5[env_id], strict=False))
        as_in_the_paper = sigma == 0 and (np.isnan(weight) or weight == 1)
        paper_cell = number(theirs[method]) if as_in_the_paper else "–"
        rows.append([plain_name(env_id), policy, *cells, paper_cell])
    header = ["environment", "policy", "score", "of the teacher's", "on training levels"]
    header += ["of the teacher's", "steps to 90 %", "computed in", "paper's score"]
    return "Frames at the scale of two cores", PIXELS_NOTE, header, rows


def table_partial(grid, points):
    rows = []
    for env_id, students in stats.partial_groups(grid):
        for name, runs in students.items():
            score, area = (with_error(runs, column) for column in ("fraction", "area"))
            facts = [env_id, name, seeds_of(runs), mean_score(runs)]
            rows.append([*facts, score, steps_to_90_percent(runs), area])
    header = ["environment", "student", "seeds", "score", "of the teacher's score"]
    text = (
        "Students of `ppd_mujoco_lstm.py`. Distillation alone: `--pg-coef 0`; PPO: λ = 0. All have "
        "the teachers of seed 100, which also see velocities. Equation 2: PPD (paper's loss); all "
        f"others have `--no-ratio-gradient`. {ERROR_NOTE} {STEPS_NOTE} Area: mean of the "
        "evaluations on the way, over the teacher's score."
    )
    return "Students that see positions alone", text, [*header, "steps to 90 % of it", "area"], rows


def at_steps(runs: pd.DataFrame, points: pd.DataFrame, steps: int) -> str:
    """Mean fraction of the first evaluations from this step on."""
    later = points[points["row"].isin(runs["row"]) & (points["step"] >= steps)]
    first = later.dropna(subset=["evaluation_fraction"]).groupby("row")["evaluation_fraction"]
    return mean_fraction(pd.DataFrame({"fraction": first.first()}))


def lowest_from(runs: pd.DataFrame, points: pd.DataFrame, steps: int) -> str:
    """The lowest evaluation of all runs from this step on."""
    later = points[points["row"].isin(runs["row"]) & (points["step"] >= steps)]
    lowest = later["evaluation_fraction"].min()
    return "–" if np.isnan(lowest) else f"{lowest:.3f}"


def table_zoo(grid, points):
    """Students of agents that other people trained: by PPD in both forms and student-distill."""
    rows, early = [], {"0.1 M": 100_000, "0.2 M": 200_000, "0.4 M": 400_000}
    for env_id, (folder, _) in ZOO.items():
        of_env = finished(select(grid, "zoo", [env_id]))
        for form, name in FORMS.items():
            runs = of_env[of_env["form"] == form]
            if len(runs):
                algorithm = folder.split("/")[0].upper()
                teacher = f"{algorithm}, {number(of_env['teacher_score'].mean())}"
                cells = [at_steps(runs, points, steps) for steps in early.values()]
                cells += [with_error(runs), steps_to_90_percent(runs)]
                rows.append([env_id, teacher, name, seeds_of(runs), *cells])
    header = ["environment", "teacher's algorithm and score", "method", "seeds", *early]
    header += ["1 M, 50 episodes", "steps to 90 % of the teacher"]
    text = (
        "Smaller students of three agents of RL Zoo (`DLR-RM/rl-trained-agents`), imported with "
        "`convert.py`, 1 M steps. A student's score over its teacher's: on the way the evaluations "
        f"of ten episodes, at the end mean ± standard error ({ERRORS}). {STEPS_NOTE}"
    )
    return "Students of other people's teachers", text, header, rows


def table_authors(grid, points):
    """PPD of the authors' own code and ours, from the same teachers on the same machine."""
    rows, runs = [], finished(grid[grid["study"] == "authors"])
    names = {"sb3-distill-ppd": "sb3_distill, the authors' code"} | FORMS
    for (env_id, form), group in runs.groupby(["env_id", "form"], sort=False):
        cells = [seeds_of(group), mean_score(group), with_error(group), steps_to_90_percent(group)]
        cells += [number(group["minutes"].mean()), number(group["steps_per_second"].mean())]
        rows.append([env_id, names[form], *cells, texts_of(group, "hardware")])
    header = ["environment", "code", "seeds", "score", "of the teacher's score"]
    header += ["steps to 90 % of it", "minutes to 90 % of it", "steps per second", "hardware"]
    text = (
        "Smaller students, 2 M steps, one run at a time. Minutes and speed include the evaluations "
        f"on the way, which are the same for all. ±: standard error ({ERRORS}). {STEPS_NOTE}"
    )
    return "PPD of the authors' code and of ours", text, header, rows


def table_fade(grid, points):
    """Students with a falling λ: what they reach, and whether they keep it."""
    rows = []
    for (env_id, teacher), students_of in stats.fade_groups(grid).items():
        for name, runs in students_of.items():
            cells = [at_steps(runs, points, FADE_STEPS), lowest_from(runs, points, FADE_STEPS)]
            facts = [plain_name(env_id), teacher, name, seeds_of(runs)]
            rows.append([*facts, *cells, with_error(runs)])
    header = ["environment", "teacher", "student", "seeds", "at 0.8 M steps"]
    header += ["lowest from 0.8 M on", "at the end"]
    text = (
        "Students of the teachers of seed 100, 2 M steps, as a fraction of the original teacher's "
        "score; a corrupted teacher's own is in brackets. MuJoCo: larger students, without the "
        "ratio's gradient. Atari and Procgen: smaller students, with it where λ is constant. "
        "*PPO settings*: the teacher's own `--num-steps`, `--gamma` and `--ent-coef`. On the way: "
        "evaluations of ten episodes, the mean over seeds and the lowest of all seeds. At the end: "
        f"mean ± standard error ({ERRORS}). *Then PPO*: 1.6 M steps, counted from their beginning."
    )
    return "A falling weight λ", text, header, rows


def table_multi(grid, points):
    """One student of several teachers: its fraction in each task, and in its worst."""
    rows = []
    for (robot, size), students_of in stats.multi_groups(grid).items():
        for name, runs in students_of.items():
            each_task = [
                f"{env_id.removesuffix('-v4')} {mean_over_seeds(of_task)}"
                for env_id, of_task in runs.groupby("env_id", sort=False)
            ]
            worst = runs.groupby("seed")["fraction"].min().to_frame()
            area = runs.groupby("seed")["area"].mean().to_frame()
            cells = [mean_over_seeds(worst), mean_over_seeds(area, "area")]
            rows.append([robot, size, name, seeds_of(runs), ", ".join(each_task), *cells])
    header = [
        "robot",
        "student",
        "method",
        "seeds",
        "of each teacher's score",
        "worst task",
        "area",
    ]
    text = (
        "One student of several tasks, with a teacher for each. Mean ± standard error over seeds. "
        "Area: mean of the evaluations on the way, over the teachers' scores and over the tasks. "
        "HalfCheetah: 1 M steps of both tasks together. Ant: 2 M steps of all four."
    )
    return "One student of several teachers", text, header, rows


def table_runs(grid, points):
    """Where every number comes from: hours, commits, machines and the command, by environment."""
    rows = []
    kind, own = ["study", "run_env_id", "precision"], stats.own_runs(finished(grid))
    for (study, env_id, precision), runs in own.groupby(kind, sort=False):
        facts = [texts_of(runs, name) for name in ("git_commit", "hardware")]
        seeds = seeds_of(runs).replace(",", "")
        command = f"python -m experiments.run {study} --env-id {env_id} --seed {seeds}"
        command = f"`{command}{' --bfloat16' if precision == 'bfloat16' else ''}`"
        counts = [str(len(runs)), f"{runs['hours'].sum():.1f}"]
        rows.append([study, plain_name(env_id), *counts, *facts, command])
    header = ["study", "environment", "runs", "hours", "commits", "hardware", "command"]
    text = "Hours of training, summed over runs; versions of all packages are in runs.csv."
    return "The runs behind the tables", text, header, rows


def table_missing(grid, points):
    done = grid.drop_duplicates(["study", "run_dir"])
    done = done.assign(suite=done["env_id"].map(suite_of), done=done["score"].notna())
    counts = done.groupby(["study", "suite", "seed"], sort=False)["done"].agg(["sum", "count"])
    cells = (counts["sum"].astype(str) + " of " + counts["count"].astype(str)).unstack("seed")
    rows = [[*index, *cells.loc[index].fillna("")] for index in cells.index]
    text = "Finished runs of each study, and how many it has, by seed."
    unusable = finished(grid[grid["teacher_score"].notna() & grid["fraction"].isna()])["run"]
    if len(unusable):
        text += f" No fraction, as the teacher does not score above 0: {', '.join(unusable)}."
    return "What has been run", text, ["study", "suite", *map(str, cells.columns)], rows


TABLES = {
    "table_1": table_1, "table_5": table_5, "sizes": table_sizes,
    "table_6": table_6, "table_7": table_7,
    "mujoco": table_mujoco, "imperfect_mujoco": table_imperfect_mujoco,
    "lambda": lambda grid, _: table_lambda(grid, "lambda"),
    "lambda_mujoco": lambda grid, _: table_lambda(grid, "lambda-mujoco"),
    "steps_to_90_percent": table_steps, "sb3_ppo": table_sb3, "gradient": table_gradient,
    "pixels": table_pixels, "partial": table_partial, "zoo": table_zoo, "authors": table_authors,
    "fade": table_fade, "multi": table_multi, "runs": table_runs, "missing": table_missing,
}  # fmt: skip


def write_tables(grid: pd.DataFrame, points: pd.DataFrame, folder: Path) -> None:
    for name, make_table in TABLES.items():
        title, text, header, rows = make_table(grid, points)
        lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
        if rows:
            table = "\n".join(lines)
            (folder / f"{name}.md").write_text(f"# {title}\n\n{text}\n\n{table}\n")
