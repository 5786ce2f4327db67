"""The tables of `python -m experiments.report`: ours, and the paper's beside them.

Each takes the runs and the points of their curves, as `stats.make_grid` lays them out, and returns
title, text, header and lines: no line where there is no run of ours.
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
    IMPERFECT_ATARI,
    METHODS,
    MUJOCO,
    MUJOCO_SIGMA,
    SB3_STEPS,
    SIZES,
    plain_name,
    suite_of,
)

# ------------------------------------------------------------------------------- A table's cells


def number(value) -> str:
    """A number, the paper's with its interval, or a text as it is."""
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
    """Geometric interquartile mean, interval, and what a reader must know about it."""
    result = stats.aggregate(runs, column)
    if result is None:
        return "–"
    interval = "n=1" if result.interval is None else "[{:.2f}, {:.2f}]".format(*result.interval)
    of = f", {result.runs} of {len(runs)} runs" if result.runs < len(runs) else ""
    floored = f", {result.floored} at ≤ {stats.FLOOR}" if result.floored else ""
    return f"{result.mean:.2f} {interval}{of}{floored}"


def complete_aggregate(runs: pd.DataFrame, column: str = "fraction") -> str:
    """Its mean alone; a dash where an environment is missing, which would make it another one."""
    complete = runs.groupby("env_id")[column].count().all()
    return f"{stats.aggregate(runs, column).mean:.3f}" if complete else "–"


def mean_score(runs: pd.DataFrame, column: str = "score") -> str:
    """Over seeds, human-normalised on Atari."""
    count = runs[column].count()
    seeds = f" n={count}" if 0 < count < len(runs) else ""
    return number(stats.mean_score(runs, column)) + seeds


def mean_fraction(runs: pd.DataFrame, column: str = "fraction") -> str:
    return f"{runs[column].mean():.3f}" if runs[column].count() else "–"


def with_error(runs: pd.DataFrame, column: str = "fraction") -> str:
    """Mean over seeds ± standard error, of one seed over its episodes, of two the larger."""
    error = runs[column].sem()
    if runs[column].count() < 3:  # two runs may agree by chance
        error = np.fmax(error, np.mean(runs.get(column + "_se", np.nan)))
    return mean_fraction(runs, column) + ("" if np.isnan(error) else f" ± {error:.3f}")


def counted(cell, line: pd.DataFrame):
    """A cell that says on how many runs it rests, where its line has more seeds than these."""
    most = len(finished(line).groupby(["env_id", "seed"]))

    def counted_cell(runs: pd.DataFrame, column: str = "fraction") -> str:
        text, count = cell(runs, column), runs[column].count()
        return text if text == "–" or count == most else f"{text} n={count}"

    return counted_cell


def steps_to_90_percent(runs: pd.DataFrame, _: str = "") -> str:
    """The median; a run that never gets there is the slowest."""
    steps = finished(runs)["steps_to_90_percent"]
    middle = steps.fillna(np.inf).median()
    text = "never" if np.isinf(middle) else f"{middle / 1e6:.2f} M"
    return f"{text} ({steps.count()} of {len(steps)})" if len(steps) else "–"


def students(grid, study: str, envs, sizes, cell, column: str = "fraction") -> list[str]:
    """The cells of students of some sizes and all methods."""
    each = product(sizes, METHODS)
    return [cell(select(grid, study, envs, size=s, method=m), column) for s, m in each]


# ------------------------------------------------------------------------------- Tables

SHORT = {"teacher-distill": "td", "student-distill": "sd", "ppd": "ppd"}
ALL_STUDENTS = [f"{size} {method}" for size in SIZES for method in SHORT.values()]
FOUR_GAMES = ENVS | {"atari": IMPERFECT_ATARI}
NAMES = "td: teacher-distill, sd: student-distill. A dash: no run yet."
NOTE = (
    "A student's score over its (original) teacher's; of several environments the geometric "
    "interquartile mean over (environment, seed) pairs, its 95 % bootstrap interval stratified by "
    f"environment; n=1: of one seed, so no interval. Procgen: unseen levels, unless said. {NAMES}"
)
ERROR_NOTE = (
    "A student's score over its (original) teacher's; ±: standard error, of one seed over its "
    f"episodes, of several over seeds, of two the larger; a teacher's own is in none. {NAMES}"
)
COUNT_NOTE = "n: the runs of a cell, where its line has more seeds."
STEPS_NOTE = (
    "Steps to 90 %: the first evaluation during training, of deterministic actions on MuJoCo and "
    "Atari, that reaches 90 % of the teacher's score; the median over runs, a run that never does "
    "counting as the slowest; in brackets, how many of the runs do."
)


def compare(labels: list[str], ours: list[str], theirs: list) -> list[list[str]]:
    """A line of ours and the paper's below it; none where there is no run of ours."""
    paper_line = [*([""] * len(labels)), "paper", *map(number, theirs)]
    return [] if set(ours) <= {"–", ""} else [[*labels, "ours", *ours], paper_line]


def envs_and_levels(name: str, suites: dict) -> tuple[list[str], str]:
    """What a line of the paper's is about: a suite or one environment, which levels of Procgen."""
    name, training, _ = name.partition(", training levels")
    return suites.get(name, [name]), "_training" if training else ""


def table_1(grid, points):
    rows = []
    for (name, numbers), size in product(paper.TABLE_1.items(), SIZES):
        envs, levels = envs_and_levels(name, ENVS)
        ours = students(grid, "sizes", envs, [size], aggregate, "fraction" + levels)
        rows += compare([name, size], ours, numbers[size])
    header = ["suite", "student", "", *SHORT.values()]
    return "Tables 1 and 8: students as a fraction of their teachers", NOTE, header, rows


def table_5(grid, points):
    rows = []
    for name, numbers in paper.TABLE_5.items():
        envs, levels = envs_and_levels(name, {})
        ours = [mean_score(select(grid, "teachers", envs), "score" + levels)]
        ours += students(grid, "sizes", envs, SIZES, mean_score, "score" + levels)
        rows += compare([plain_name(name)], ours, numbers)
    text = f"Means over five seeds (n: over fewer), human-normalised on Atari. {NAMES}"
    header = ["environment", "", "teacher", *ALL_STUDENTS]
    return "Table 5: scores in each environment", text, header, rows


def table_mujoco(grid, points):
    """Table 1's MuJoCo row, environment by environment: small enough for the README."""
    rows = []
    for env_id in MUJOCO:
        teachers = finished(select(grid, "teachers", [env_id]))
        line = pd.concat([teachers, select(grid, "sizes", [env_id])])
        ours = [seeds_of(line) or "–", counted(mean_score, line)(teachers, "score")]
        ours += students(grid, "sizes", [env_id], SIZES, counted(mean_fraction, line))
        teacher, *scores = paper.TABLE_5[env_id]
        ratios = [f"{score / teacher:.2f}" for score in scores]
        rows += compare([env_id], ours, ["five", teacher, *ratios])
    cell = counted(complete_aggregate, select(grid, "sizes", MUJOCO))
    ours = students(grid, "sizes", MUJOCO, SIZES, cell)
    theirs = [f"{mean:.2f}" for size in SIZES for mean, *_ in paper.TABLE_1["mujoco"][size]]
    rows += compare(["all four"], ["", "", *ours], ["", "", *theirs])
    text = f"{NOTE} {COUNT_NOTE} The paper's in an environment: its mean scores divided (Table 5)."
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
    text = f"{ERROR_NOTE} {COUNT_NOTE} All four: the geometric interquartile mean."
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
    text = f"{NOTE} ppo: PPD's settings with λ = 0. Teachers' scores are aggregated as all else. "
    text += "(Both assumed; the mean of Table 5 is another score.) The four games of Table 2."
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
        ours = students(grid, "sizes", envs, [size], steps_to_90_percent)
        rows += [[suite, size, *ours]] if set(ours) != {"–"} else []
    return "Steps to 90 % of the teacher", STEPS_NOTE, ["suite", "student", *SHORT.values()], rows


def table_sb3(grid, points):
    """Our teachers beside SB3's PPO at the same settings, seed by seed."""
    rows = []
    for theirs in finished(grid[grid["study"] == "sb3-ppo"]).to_dict("records"):
        ours = select(grid, "teachers", [theirs["env_id"]], seed=theirs["seed"])
        until = points[points["row"].isin(ours.index) & (points["step"] <= 1.03 * SB3_STEPS)]
        at_4_m = until["evaluation"].dropna().tail(1).mean()
        scores = map(number, [theirs["score"], at_4_m, ours["score"].mean()])
        rows.append([theirs["env_id"], str(theirs["seed"]), *scores])
    header = ["environment", "seed", "SB3, 4 M steps", "ours, 4 M steps", "ours, 10 M steps"]
    text = "Episode returns of deterministic actions: 50 episodes at the end of a run, 10 in "
    text += "between, which are those of our teacher after 4 M of its 10 M steps."
    return "Our PPO and SB3's, at the same settings", text, header, rows


GRADIENT_NOTE = (
    "PPD as in Equation 2, and with the ratio detached in the KL's weight (`--no-ratio-gradient`); "
    f"all students have the teachers of seed 100, sound or imperfect. {ERROR_NOTE} Steps: mean; a "
    "run that never gets there counts with all of its steps; in brackets, how many do. Area: mean "
    "of the evaluations on the way, over the teacher's score. coinrun's evaluations all play the "
    "same 20 levels, so its steps and area say little. Differences: mean over common seeds, at "
    "least three, and a bootstrap interval over these few, of 95 % by name: it covers about 83 % "
    "for five seeds and 75 % for three, of which it is the range."
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
    "Smaller networks throughout, seed 100; the teacher is not the paper's network and had fewer "
    "steps. Score: on unseen levels of Procgen, human-normalised on Atari. The paper's: smaller "
    f"students of its teachers, five seeds (Table 5), which are larger networks. {ERROR_NOTE} "
    "Atari's games, played without noise, repeat each other, so that their ± is too small."
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
        "Students of `ppd_mujoco_lstm.py`; distillation alone: `--pg-coef 0`, PPO: λ = 0. All have "
        "the teachers of seed 100, which see velocities as well, and the ratio detached "
        f"(`--no-ratio-gradient`) but where Equation 2 is said. {ERROR_NOTE} {STEPS_NOTE} Area: "
        "mean of the evaluations on the way, over the teacher's score."
    )
    return "Students that see positions alone", text, [*header, "steps to 90 % of it", "area"], rows


def table_runs(grid, points):
    """Where every number comes from: hours, commits, machines and the command, by environment."""
    rows = []
    kind = ["study", "env_id", "precision"]
    for (study, env_id, precision), runs in finished(grid).groupby(kind, sort=False):
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
    done = grid.assign(suite=grid["env_id"].map(suite_of), done=grid["score"].notna())
    counts = done.groupby(["study", "suite", "seed"], sort=False)["done"].agg(["sum", "count"])
    cells = (counts["sum"].astype(str) + " of " + counts["count"].astype(str)).unstack("seed")
    rows = [[*index, *cells.loc[index].fillna("")] for index in cells.index]
    text = "Finished runs of each study, and how many it has, by seed."
    unusable = finished(grid[grid["teacher_score"].notna() & grid["fraction"].isna()])["run"]
    if len(unusable):
        text += f" No fraction, as the teacher does not score above 0: {', '.join(unusable)}."
    return "What has been run", text, ["study", "suite", *map(str, cells.columns)], rows


TABLES = {
    "table_1": table_1, "table_5": table_5, "table_6": table_6, "table_7": table_7,
    "mujoco": table_mujoco, "imperfect_mujoco": table_imperfect_mujoco,
    "lambda": lambda grid, _: table_lambda(grid, "lambda"),
    "lambda_mujoco": lambda grid, _: table_lambda(grid, "lambda-mujoco"),
    "steps_to_90_percent": table_steps, "sb3_ppo": table_sb3, "gradient": table_gradient,
    "pixels": table_pixels, "partial": table_partial, "runs": table_runs, "missing": table_missing,
}  # fmt: skip


def write_tables(grid: pd.DataFrame, points: pd.DataFrame, folder: Path) -> None:
    for name, make_table in TABLES.items():
        title, text, header, rows = make_table(grid, points)
        lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
        if rows:
            table = "\n".join(lines)
            (folder / f"{name}.md").write_text(f"# {title}\n\n{text}\n\n{table}\n")
