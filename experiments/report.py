"""Turn runs into tables and figures: `python -m experiments.report`.

Finished runs under runs/ are merged into the CSV files under experiments/results/, and from these
files alone come the tables (ours beside the paper's) and the figures. So a clone without runs
regenerates every published number. What is missing is listed in missing.md, and each cell of a
table that rests on fewer runs than the paper's says on how many.
"""

import csv
import gzip
import io
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, median, stdev

import matplotlib
import numpy as np
import tyro

from experiments import paper_tables as paper
from experiments import stats
from experiments.studies import (
    ATARI,
    IMPERFECT,
    IMPERFECT_ATARI,
    LAMBDA_MUJOCO,
    METHODS,
    MUJOCO,
    MUJOCO_SIGMA,
    MUJOCO_TEACHERS,
    PROCGEN,
    SB3_ENVS,
    SIZES,
    STUDIES,
    Run,
    suite_of,
)

matplotlib.use("agg")  # no screen needed
import matplotlib.pyplot as plt

ENVS = {"atari": ATARI, "mujoco": MUJOCO, "procgen": PROCGEN}
BINS = 100  # points of a learning curve in the CSV
SB3_STEPS = 4_000_000  # of SB3's PPO, and of our teachers where they are laid beside it
LARGE = 4_000_000  # characters: a CSV above this is committed compressed


@dataclass
class Args:
    runs: Path = Path("runs")
    """folder of the runs; it may be missing"""
    results: Path = Path(__file__).parent / "results"
    """folder of the CSV files, tables and figures"""


class UserError(Exception):
    """Something a user can cause and mend: one line, the cause and the remedy; exit status 2."""


# ------------------------------------------------------------------------------- Rows from runs

KEYS = ("study", "env_id", "method", "size", "distill_lambda", "sigma", "seed")
NUMBERS = (
    "steps", "episodes", "distinct_episodes", "score", "score_se", "score_training",
    "teacher_score", "teacher_score_se", "teacher_score_training", "original_score",
    "original_score_training", "steps_to_90_percent", "hours", "steps_per_second",
)  # fmt: skip
TEXTS = ("hardware", "git_commit", "versions", "warnings", "run")
CURVE = ("step", "training_return", "evaluation")
METHOD_OF_SCRIPT = {"ppo_teacher": "teacher", "ppd": "ppd", "sb3_ppo": "sb3-ppo"}
METHOD_OF_SCRIPT |= {"student_distill": "student-distill", "teacher_distill": "teacher-distill"}


def shorten(value):
    """A float to six significant digits: enough for every table, and short in a file."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def key_of_run(run: Run) -> tuple:
    """The key of the row that a run of a study becomes."""
    weight = run.options.get("distill-lambda", 1 if run.method == "ppd" else None)
    weight = None if weight is None else float(weight)
    return run.study, run.env_id, run.method, run.size, weight, float(run.sigma), run.seed


def row_of_result(study: str, run_dir: Path, result: dict) -> dict:
    """Everything that a table needs of a run's result.json."""
    args, teacher, score = result["args"], result.get("teacher", {}), result["score"]
    kind = result["script"].removesuffix(f"_{suite_of(args['env_id'])}")
    row = {"study": study, "env_id": args["env_id"], "method": METHOD_OF_SCRIPT[kind]}
    row |= {"size": args.get("student_size") or args["size"], "seed": args["seed"]}
    row |= {"distill_lambda": args.get("distill_lambda"), "sigma": float(teacher.get("sigma", 0))}
    row |= {"steps": result["steps"], "episodes": score["episodes"], "score": score["mean"]}
    row |= {"score_se": score["standard_error"], "distinct_episodes": score.get("distinct")}
    for name in ("score_training", "teacher_score", "teacher_score_training"):
        row[name] = result[name]["mean"] if name in result else None
    row["teacher_score_se"] = result.get("teacher_score", {}).get("standard_error")
    for name in ("original_score", "original_score_training"):
        row[name] = teacher[name]["mean"] if name in teacher else None
    reference = row["original_score"] if row["sigma"] else row["teacher_score"]
    if reference is not None:
        reached = stats.steps_to_90_percent(args["env_id"], result["evaluations"], reference)
        row["steps_to_90_percent"] = reached
    row |= {"hours": result["seconds"] / 3600, "steps_per_second": result["steps_per_second"]}
    hardware = run_dir.with_name(run_dir.name + ".hardware.json")  # the engine's note
    row["hardware"] = result.get("hardware") or (
        json.loads(hardware.read_text())["hardware"] if hardware.exists() else None
    )
    row["git_commit"] = result["git_commit"]
    row["versions"] = " ".join(f"{name}={value}" for name, value in result["versions"].items())
    row |= {"warnings": " ".join(result.get("warnings", [])), "run": run_dir.name}
    return {name: shorten(row.get(name)) for name in (*KEYS, *NUMBERS, *TEXTS)}


def curve_of_result(result: dict) -> list[tuple]:
    """A learning curve in `BINS` points: step, mean return of its training episodes, evaluation."""
    steps = result["steps"]
    returns, evaluations = defaultdict(list), {}
    for step, mean, episodes in result["curve"]:
        returns[-(-step * BINS // steps)].append((mean, episodes))  # rounded up, exactly
    for step, mean, *_ in result["evaluations"]:
        evaluations[-(-step * BINS // steps)] = mean
    points = []
    for number in sorted(returns.keys() | evaluations.keys()):
        played = returns[number]
        total = sum(episodes for _, episodes in played)
        mean = sum(mean * episodes for mean, episodes in played) / total if total else None
        point = (round(number * steps / BINS), mean, evaluations.get(number))
        points.append(tuple(shorten(value) for value in point))
    return points


def read_runs(folder: Path) -> tuple[dict, dict, list[str]]:
    """Rows and curves of the finished runs in a folder, by key, and what was left out and why."""
    rows, curves, left_out = {}, {}, []
    known = {key_of_run(run) for make_runs in STUDIES.values() for run in make_runs()}
    for path in sorted([*folder.glob("*/result.json"), *folder.glob("*/*/result.json")]):
        run_dir, result = path.parent, json.loads(path.read_text())
        # A teacher trained by hand lies in runs/ itself.
        study = "teachers" if run_dir.parent == folder else run_dir.parent.name
        try:
            row = row_of_result(study, run_dir, result)
        except KeyError as error:
            left_out.append(f"{run_dir}: its result.json has no {error}")
            continue
        key = tuple(row[name] for name in KEYS)
        long_enough = row["steps"] >= paper_steps(row["method"], row["env_id"])
        if key not in known or not long_enough:
            left_out.append(f"{run_dir}: not a run of a study, by its arguments or its length")
            continue
        rows[key], curves[key] = row, curve_of_result(result)
    return rows, curves, left_out


def paper_steps(method: str, env_id: str) -> int:
    """Environment steps of a complete run; SB3's PPO is not the paper's."""
    if method == "teacher":
        return 30_000_000 if suite_of(env_id) == "procgen" else 10_000_000
    return SB3_STEPS if method == "sb3-ppo" else 2_000_000


def write_text(path: Path, text: str) -> None:
    """Write a text; a large one compressed, the same bytes each time."""
    compressed = path.with_name(path.name + ".gz")
    if len(text) <= LARGE:
        path.write_text(text)
        compressed.unlink(missing_ok=True)
    else:
        compressed.write_bytes(gzip.compress(text.encode(), mtime=0))
        path.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """What `write_text` wrote; nothing where it has not."""
    compressed = path.with_name(path.name + ".gz")
    if compressed.exists():
        return gzip.decompress(compressed.read_bytes()).decode()
    return path.read_text() if path.exists() else ""


def parse_key(record: dict) -> tuple:
    study, env_id, method, size, weight, sigma, seed = (record[name] for name in KEYS)
    return study, env_id, method, size, float(weight) if weight else None, float(sigma), int(seed)


def read_tables(folder: Path) -> tuple[dict, dict]:
    """Rows and curves from the CSV files. Raises UserError for a file that is none."""
    rows, curves = {}, defaultdict(list)
    try:
        for record in csv.DictReader(io.StringIO(read_text(folder / "runs.csv"))):
            row = dict(zip(KEYS, parse_key(record), strict=True))
            for name in NUMBERS:
                row[name] = float(record[name]) if record[name] else None
            rows[parse_key(record)] = row | {name: record[name] or None for name in TEXTS}
        for record in csv.DictReader(io.StringIO(read_text(folder / "curves.csv"))):
            point = tuple(float(record[name]) if record[name] else None for name in CURVE)
            curves[parse_key(record)].append(point)
    except (KeyError, ValueError, TypeError) as error:
        remedy = "restore it from git"
        raise UserError(f"{folder}: a CSV file is damaged ({error!r}); {remedy}") from error
    return rows, dict(curves)


def csv_text(header: Iterable[str], records: Iterable[Iterable]) -> str:
    """Lines of CSV; a number without a fraction is written as an integer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for record in records:
        whole = [isinstance(v, float) and v.is_integer() and abs(v) < 1e15 for v in record]
        writer.writerow([int(v) if w else v for v, w in zip(record, whole, strict=True)])
    return text.getvalue()


def write_tables(folder: Path, rows: dict, curves: dict) -> None:
    """Write runs.csv and curves.csv, in an order that does not depend on how runs came in."""

    def order(key):
        return [(value is not None, value) for value in key]

    records = [list(rows[key].values()) for key in sorted(rows, key=order)]
    write_text(folder / "runs.csv", csv_text((*KEYS, *NUMBERS, *TEXTS), records))
    points = [(*key, *point) for key in sorted(curves, key=order) for point in curves[key]]
    write_text(folder / "curves.csv", csv_text((*KEYS, *CURVE), points))


# ------------------------------------------------------------------------------- Picking runs


class Results:
    """The rows, and questions that tables ask about them."""

    def __init__(self, rows: dict):
        self.rows = rows
        self.expected = [run for make_runs in STUDIES.values() for run in make_runs()]

    def select(self, study: str, envs, **choices) -> tuple[dict[str, list[dict]], int]:
        """Environment → rows of a study, and how many the paper's grid has there."""
        found, wanted = {env_id: [] for env_id in envs}, 0
        for run in self.expected:
            if run.study != study or run.env_id not in found:
                continue
            key = key_of_run(run)
            values = dict(zip(KEYS, key, strict=True))
            if all(values[name] == value for name, value in choices.items()):
                wanted += 1
                if key in self.rows:
                    found[run.env_id].append(self.rows[key])
        return found, wanted


def fraction(row: dict, which: str = "score", levels: str = "") -> float | None:
    """A row's score, or its teacher's, as a fraction of the original teacher's."""
    score = row[which + levels]
    teacher = row[("original_score" if row["sigma"] else "teacher_score") + levels]
    if score is None or teacher is None:
        return None
    return stats.fraction_of_teacher(row["env_id"], score, teacher)


def aggregate_cell(found: dict[str, list[dict]], wanted: int, which="score", levels="") -> str:
    """A table's cell: geometric interquartile mean, interval, and what a reader must know."""
    fractions = {
        env_id: [fraction(row, which, levels) for row in rows] for env_id, rows in found.items()
    }
    known = {env_id: [f for f in values if f is not None] for env_id, values in fractions.items()}
    result = stats.aggregate(known)
    if result is None:
        return "–"
    text = f"{result.mean:.2f} "
    text += "n=1" if result.interval is None else "[{:.2f}, {:.2f}]".format(*result.interval)
    if result.runs < wanted:
        text += f", {result.runs} of {wanted} runs"
    if result.floored:
        text += f", {result.floored} at ≤ {stats.FLOOR}"
    return text


def score_cell(rows: list[dict], wanted: int, name: str = "score") -> str:
    """The mean score over seeds, human-normalised on Atari."""
    scores = [stats.normalize(row["env_id"], row[name]) for row in rows if row[name] is not None]
    if not scores:
        return "–"
    text = number(fmean(scores))
    return text if len(scores) == wanted else f"{text} n={len(scores)}"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def paper_cell(value) -> str:
    """A number of the paper's, or one with its interval."""
    if isinstance(value, tuple):
        return "{:.2f} [{:.2f}, {:.2f}]".format(*value)
    return number(value)


def paper_cells(values, length: int) -> list[str]:
    return [paper_cell(value) for value in values] if values else ["–"] * length


# ------------------------------------------------------------------------------- Tables

SHORT = {"teacher-distill": "td", "student-distill": "sd", "ppd": "ppd"}
NOTE = (
    "Fractions are a student's score over its own teacher's (of the original one where the teacher "
    "is corrupted), summed up by the geometric interquartile mean over all (environment, seed) "
    "pairs with a 95 % bootstrap interval stratified by environment; n=1: one seed, so no "
    "interval. td: teacher-distill, sd: student-distill. A dash: no run yet."
)


def markdown(title: str, text: str, header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join([f"# {title}", "", text, "", *lines, ""])


def plain_name(env_id: str) -> str:
    return env_id.removesuffix("NoFrameskip-v4")


def table_1(results: Results) -> str:
    rows = []
    for suite, envs in ENVS.items():
        for size in SIZES:
            ours = [
                aggregate_cell(*results.select("sizes", envs, method=method, size=size))
                for method in METHODS
            ]
            rows.append([suite, size, "ours", *ours])
            rows.append(["", "", "paper", *paper_cells(paper.TABLE_1[suite][size], 3)])
    header = ["suite", "student", "", *SHORT.values()]
    title = "Table 1: students as a fraction of their teachers"
    return markdown(title, NOTE + " Procgen: unseen levels.", header, rows)


def table_2(results: Results) -> str:
    rows = []
    suites = {"atari": IMPERFECT_ATARI, "procgen": PROCGEN}
    for suite, envs in suites.items():
        rows.append([suite, "ours", *imperfect_cells(results, "imperfect", envs)])
        rows.append(["", "paper, Table 2", *paper_cells(paper.TABLE_2[suite], 4)])
        rows.append(["", "paper, Table 6", *paper_cells(paper.TABLE_6[suite][1:], 4)])
    header = ["suite", "", "corrupted teacher", *SHORT.values()]
    title = "Table 2: imperfect teachers, larger students, as a fraction of the original teacher"
    text = NOTE + " The paper's Tables 2 and 6 give different numbers for Atari; both are shown."
    return markdown(title, text, header, rows)


def imperfect_cells(results: Results, study: str, envs, levels: str = "") -> list[str]:
    """The corrupted teacher, measured beside its students, and the students of three methods."""
    of_teacher, wanted = results.select(study, envs)
    once = {
        env_id: list({row["seed"]: row for row in rows}.values())
        for env_id, rows in of_teacher.items()
    }
    cells = [aggregate_cell(once, wanted // len(METHODS), "teacher_score", levels)]
    for method in METHODS:
        found, wanted = results.select(study, envs, method=method)
        cells.append(aggregate_cell(found, wanted, levels=levels))
    return cells


def table_5(results: Results) -> str:
    rows = []
    lines = [(env_id, "") for env_id in (*ATARI, *MUJOCO_TEACHERS)]
    lines += [(env_id, "_training") for env_id in PROCGEN] + [(env_id, "") for env_id in PROCGEN]
    for env_id, levels in lines:
        found, wanted = results.select("teachers", [env_id])
        ours = [score_cell(found[env_id], wanted, "score" + levels)]
        for size in SIZES:
            for method in METHODS:
                found, wanted = results.select("sizes", [env_id], method=method, size=size)
                ours.append(score_cell(found[env_id], wanted, "score" + levels))
        name = env_id + (", training levels" if levels else "")
        rows.append([plain_name(name), "ours", *ours])
        rows.append(["", "paper", *paper_cells(paper.TABLE_5.get(name), 10)])
    header = ["environment", "", "teacher"]
    header += [f"{size} {short}" for size in SIZES for short in SHORT.values()]
    text = "Mean score over five seeds (n: over fewer), human-normalised on Atari. Procgen: unseen "
    text += "levels unless said otherwise. td: teacher-distill, sd: student-distill."
    return markdown("Table 5: scores in each environment", text, header, rows)


def table_mujoco(results: Results) -> str:
    """Table 1's MuJoCo row, environment by environment: small enough for the README."""
    grid, rows = list(product(SIZES, METHODS)), []
    for env_id in MUJOCO:
        teachers = results.select("teachers", [env_id])[0][env_id]
        cells = []
        for size, method in grid:
            found = results.select("sizes", [env_id], method=method, size=size)[0][env_id]
            fractions = [fraction(row) for row in found if fraction(row) is not None]
            cells.append(f"{fmean(fractions):.3f}" if fractions else "–")
        seeds = ", ".join(str(row["seed"]) for row in teachers) or "–"
        rows.append([env_id, "ours", seeds, score_cell(teachers, len(teachers)), *cells])
        teacher, *students = paper.TABLE_5[env_id]
        ratios = [f"{student / teacher:.2f}" for student in students]
        rows.append(["", "paper", "five", number(teacher), *ratios])
    ours, theirs = [], []
    for size, method in grid:
        found = results.select("sizes", MUJOCO, method=method, size=size)[0]
        known = {env_id: [fraction(row) for row in rows] for env_id, rows in found.items()}
        known = {env_id: [f for f in values if f is not None] for env_id, values in known.items()}
        # An environment that is missing would make this another aggregate.
        complete = all(known.values())
        ours.append(f"{stats.aggregate(known).mean:.3f}" if complete else "–")
        theirs.append("{:.2f}".format(paper.TABLE_1["mujoco"][size][METHODS.index(method)][0]))
    rows.append(["all four", "ours", "", "", *ours])
    rows.append(["", "paper", "", "", *theirs])
    header = ["environment", "", "seeds", "teacher's score"]
    header += [f"{size} {SHORT[method]}" for size, method in grid]
    text = NOTE + " The paper's in each environment: its mean scores divided (Table 5)."
    return markdown("MuJoCo: teachers, and students as a fraction of them", text, header, rows)


def table_imperfect(
    results: Results, title: str, study: str, envs, numbers: dict, levels=""
) -> str:
    """Tables 6 and 9: each environment, then each suite."""
    rows = []
    groups = [(plain_name(env_id), [env_id]) for env_id in envs]
    for suite in dict.fromkeys(suite_of(env_id) for env_id in envs):
        groups.append((suite, [env_id for env_id in envs if suite_of(env_id) == suite]))
    for name, members in groups:
        found, wanted = results.select(study, members)
        first = {row["seed"]: row for row in found[members[0]]}.values()
        original = score_cell(list(first), wanted // len(METHODS), "original_score" + levels)
        sigma = ", ".join(sorted({f"{r['sigma']:g}" for rows in found.values() for r in rows}))
        original = "" if len(members) > 1 else original
        cells = imperfect_cells(results, study, members, levels)
        rows.append([name, "ours", sigma or "–", original, *cells])
        key = name if name in numbers else members[0]
        rows.append(["", "paper", "0.05", *paper_cells(numbers[key], 5)])
    header = ["environment", "", "σ", "original score", "corrupted teacher", *SHORT.values()]
    return markdown(title, NOTE, header, rows)


def fraction_cell(rows: list[dict], which: str = "score") -> str:
    """MuJoCo: mean fraction over seeds ± standard error, over seeds or, of one seed, episodes."""
    rows = [row for row in rows if fraction(row, which) is not None]
    if not rows:
        return "–"
    values = [fraction(row, which) for row in rows]
    if len(rows) > 1:
        error = stdev(values) / math.sqrt(len(rows))
    else:
        error = rows[0][which + "_se"] / (rows[0]["original_score"] or rows[0]["teacher_score"])
    return f"{fmean(values):.3f} ± {error:.3f}"


ERROR_NOTE = (
    "A student's score over its (original) teacher's; ±: standard error, of one seed over its "
    "episodes, of several over seeds. Not in the paper. A dash: no run yet."
)


def seeds_of(rows: list[dict]) -> str:
    return ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows})) or "–"


def table_imperfect_mujoco(results: Results) -> str:
    """Imperfect teachers on MuJoCo: the teachers, measured beside their students, and these."""
    study, columns = "imperfect-mujoco", [(METHODS[0], "teacher_score")]
    columns += [(method, "score") for method in METHODS]
    rows = []
    for env_id, sigma in MUJOCO_SIGMA.items():
        every = results.select(study, [env_id])[0][env_id]
        cells = [seeds_of(every), f"{sigma:g}"]
        cells.append(score_cell(every, len(every), "original_score"))
        for method, which in columns:
            found = results.select(study, [env_id], method=method)[0][env_id]
            cells.append(fraction_cell(found, which))
        rows.append([env_id, *cells])
    totals = []
    for method, which in columns:
        found = results.select(study, MUJOCO_SIGMA, method=method)[0]
        known = {env: [fraction(row, which) for row in of_env] for env, of_env in found.items()}
        # An environment that is missing would make this another aggregate.
        totals.append(f"{stats.aggregate(known).mean:.3f}" if all(known.values()) else "–")
    rows.append(["all four", "", "", "", *totals])
    header = ["environment", "seeds", "σ", "original score", "corrupted teacher", *SHORT.values()]
    title = "Imperfect teachers on MuJoCo, larger students, as a fraction of the original teacher"
    text = ERROR_NOTE + " td: teacher-distill, sd: student-distill. All four: the geometric "
    return markdown(title, text + "interquartile mean.", header, rows)


def table_7(results: Results) -> str:
    rows = []
    for name, envs, levels in [
        ("atari", IMPERFECT_ATARI, ""),
        ("procgen, training levels", PROCGEN, "_training"),
        ("procgen", PROCGEN, ""),
    ]:
        found, wanted = results.select("teachers", envs)
        every = [row for rows_of_env in found.values() for row in rows_of_env]
        cells = [score_cell(every, wanted, "score" + levels)]
        cells.append(aggregate_cell(*results.select("ppo-baseline", envs), levels=levels))
        for method in METHODS:
            chosen = results.select("sizes", envs, method=method, size="larger")
            cells.append(aggregate_cell(*chosen, levels=levels))
        rows.append([name, "ours", *cells])
        rows.append(["", "paper", *paper_cells(paper.TABLE_7[name], 5)])
    header = ["suite", "", "teacher's score", "ppo", *SHORT.values()]
    text = NOTE + " ppo: PPD's settings with λ = 0 (assumed). The four games of Table 2."
    return markdown("Table 7: PPO without a teacher, larger students", text, header, rows)


def table_8(results: Results) -> str:
    rows = []
    for size in SIZES:
        for levels, name in [("_training", "training levels"), ("", "unseen levels")]:
            chosen = [
                results.select("sizes", PROCGEN, method=method, size=size) for method in METHODS
            ]
            ours = [aggregate_cell(*each, levels=levels) for each in chosen]
            printed = paper.TABLE_8[size] if levels else paper.TABLE_1["procgen"][size]
            rows.append([size, name, "ours", *ours])
            rows.append(["", "", "paper", *paper_cells(printed, 3)])
    header = ["student", "Procgen", "", *SHORT.values()]
    return markdown("Table 8: Procgen, training and unseen levels", NOTE, header, rows)


def weights_of(study: str) -> list[float]:
    """The λ of a study, in its order."""
    return [*dict.fromkeys(float(run.options["distill-lambda"]) for run in STUDIES[study]())]


def table_lambda(results: Results) -> str:
    rows, envs = [], IMPERFECT_ATARI
    for name, members in [("all", envs), *((plain_name(env_id), [env_id]) for env_id in envs)]:
        for weight in weights_of("lambda"):
            found, wanted = results.select("lambda", members, distill_lambda=weight)
            cells = [aggregate_cell(found, wanted), steps_cell(found)]
            rows.append([name, f"{weight:g}", *cells])
    header = ["environment", "λ", "fraction of teacher", "steps to 90 % of the teacher"]
    text = NOTE + " " + STEPS_NOTE
    return markdown("λ of PPD, larger students (the paper's Figure 2)", text, header, rows)


STEPS_NOTE = (
    "Steps to 90 %: the first evaluation during training, of deterministic actions on MuJoCo and "
    "Atari, that reaches 90 % of the teacher's score; the median over runs, a run that never does "
    "counting as the slowest; in brackets, how many of the runs do."
)


def steps_cell(found: dict[str, list[dict]]) -> str:
    steps = [row["steps_to_90_percent"] for rows in found.values() for row in rows]
    if not steps:
        return "–"
    reached = sum(step is not None for step in steps)
    middle = median(math.inf if step is None else step for step in steps)
    text = "never" if math.isinf(middle) else f"{middle / 1e6:.2f} M"
    return f"{text} ({reached} of {len(steps)})"


def table_lambda_mujoco(results: Results) -> str:
    """Score and speed of PPD by λ, environment by environment."""
    rows, weights = [], weights_of("lambda-mujoco")
    for env_id in LAMBDA_MUJOCO:
        scores, steps = [], []
        for weight in weights:
            found = results.select("lambda-mujoco", [env_id], distill_lambda=weight)[0]
            scores.append(fraction_cell(found[env_id]))
            steps.append(steps_cell(found))
        seeds = seeds_of(results.select("lambda-mujoco", [env_id])[0][env_id])
        rows.append([env_id, seeds, "of the teacher's score", *scores])
        rows.append(["", "", "steps to 90 % of it", *steps])
    header = ["environment", "seeds", "", *(f"λ = {weight:g}" for weight in weights)]
    text = f"{ERROR_NOTE} {STEPS_NOTE} λ = 0 is PPO without a teacher."
    return markdown("λ of PPD on MuJoCo, larger students", text, header, rows)


def table_steps(results: Results) -> str:
    rows = []
    for suite, envs in ENVS.items():
        for size in SIZES:
            chosen = [results.select("sizes", envs, method=m, size=size)[0] for m in METHODS]
            rows.append([suite, size, *(steps_cell(found) for found in chosen)])
    header = ["suite", "student", *SHORT.values()]
    return markdown("Steps to 90 % of the teacher", STEPS_NOTE, header, rows)


SB3_NOTE = (
    "Episode returns of deterministic actions: 50 episodes at the end of a run, 10 in between, "
    "which are those of our teacher after 4 M of its 10 M steps. Not in the paper."
)


def table_sb3(results: Results, curves: dict) -> str:
    """Our teachers beside SB3's PPO at the same settings, seed by seed."""
    rows = []
    for env_id in SB3_ENVS:
        found = results.select("sb3-ppo", [env_id])[0][env_id]
        ours = {row["seed"]: row for row in results.select("teachers", [env_id])[0][env_id]}
        for theirs in found:
            row, at_same_steps = ours.get(theirs["seed"]), None
            if row:
                curve = curves.get(tuple(row[name] for name in KEYS), [])
                points = [(step, mean) for step, _, mean in curve if mean is not None]
                at_same_steps = max((p for p in points if p[0] <= SB3_STEPS * 1.03), default=None)
            cells = [theirs["score"], at_same_steps and at_same_steps[1], row and row["score"]]
            rows.append([env_id, str(theirs["seed"]), *(number(value) for value in cells)])
    header = ["environment", "seed", "SB3, 4 M steps", "ours, 4 M steps", "ours, 10 M steps"]
    return markdown("Our PPO and SB3's, at the same settings", SB3_NOTE, header, rows)


def table_runs(results: Results) -> str:
    """Where every number comes from: hours, commits, machines and the command, by environment."""
    groups = defaultdict(list)
    for row in results.rows.values():
        groups[row["study"], row["env_id"]].append(row)
    rows, listed = [], lambda found, name: ", ".join(sorted({row[name] or "–" for row in found}))
    for study in STUDIES:
        for env_id in (*ATARI, *MUJOCO_TEACHERS, *PROCGEN):
            found = groups.get((study, env_id), [])
            if found:
                hours = sum(row["hours"] for row in found)
                counts = [str(len(found)), f"{hours:.1f}"]
                facts = [listed(found, name) for name in ("git_commit", "hardware")]
                seeds = " ".join(str(seed) for seed in sorted({row["seed"] for row in found}))
                command = f"`python -m experiments.run {study} --env-id {env_id} --seed {seeds}`"
                rows.append([study, plain_name(env_id), *counts, *facts, command])
    header = ["study", "environment", "runs", "hours", "commits", "hardware", "command"]
    text = "Hours of training, summed over runs; versions of all packages are in runs.csv."
    return markdown("The runs behind the tables", text, header, rows)


def list_missing(results: Results) -> str:
    """What the studies have and the CSV has not: whole suites in one line, else seed by seed."""
    lines = []
    for study, make_runs in STUDIES.items():
        runs = make_runs()
        absent = [run for run in runs if key_of_run(run) not in results.rows]
        lines += ["", f"## {study}: {len(runs) - len(absent)} of {len(runs)} runs", ""]
        for suite in dict.fromkeys(run.suite for run in runs):
            there = [run for run in runs if run.suite == suite]
            gone = [run for run in absent if run.suite == suite]
            if len(gone) == len(there):
                lines.append(f"- {suite}: all {len(gone)}")
                continue
            groups = defaultdict(list)
            for run in gone:
                options = "".join(f" λ={value:g}" for value in run.options.values())
                groups[f"{run.env_id} {run.method} {run.size}{options}"].append(str(run.seed))
            lines += [f"- {name}: seed {', '.join(seeds)}" for name, seeds in groups.items()]
        if not absent:
            lines.append("none is missing")
    unusable = [
        row["run"] for row in results.rows.values() if row["teacher_score"] and not fraction(row)
    ]
    if unusable:
        text = ", ".join(sorted(unusable))
        lines += [
            "",
            "## Runs whose teacher does not score above 0, so without a fraction",
            "",
            text,
        ]
    head = ["# Runs of the studies that are not in runs.csv", ""]
    head.append("A table leaves them out, and says in each cell how many runs it rests on.")
    return "\n".join([*head, *lines, ""])


def make_tables(rows: dict, curves: dict) -> dict[str, str]:
    """File name → Markdown."""
    results = Results(rows)
    return {
        "table_1.md": table_1(results),
        "table_2.md": table_2(results),
        "table_5.md": table_5(results),
        "mujoco.md": table_mujoco(results),
        "table_6.md": table_imperfect(
            results, "Table 6: imperfect teachers, larger students", "imperfect", IMPERFECT,
            paper.TABLE_6,
        ),
        "table_7.md": table_7(results),
        "table_8.md": table_8(results),
        "table_9.md": table_imperfect(
            results, "Table 9: imperfect teachers on Procgen's training levels", "imperfect",
            PROCGEN, paper.TABLE_9, "_training",
        ),
        "lambda.md": table_lambda(results),
        "imperfect_mujoco.md": table_imperfect_mujoco(results),
        "lambda_mujoco.md": table_lambda_mujoco(results),
        "steps_to_90_percent.md": table_steps(results),
        "sb3_ppo.md": table_sb3(results, curves),
        "runs.md": table_runs(results),
        "missing.md": list_missing(results),
    }  # fmt: skip


# ------------------------------------------------------------------------------- Figures

# Okabe and Ito's colours are told apart by colour-blind eyes; the dashes are, in grey print.
STYLES = [("#0072B2", "-"), ("#D55E00", (0, (5, 1.5))), ("#009E73", (0, (1, 1)))]
STYLES += [("#CC79A7", (0, (4, 1, 1, 1))), ("#E69F00", (0, (8, 2)))]
# Its rollouts are the teacher's, so its curve says little about the student (Figure 8).
METHOD_LABELS = {"teacher-distill": "teacher-distill (teacher's episodes)"}
METHOD_STYLES = {
    "ppd": STYLES[0], "student-distill": STYLES[1], "teacher-distill": STYLES[2],
    "teacher": STYLES[0],
}  # fmt: skip
plt.rcParams |= {"svg.hashsalt": "ppd", "font.size": 9, "axes.spines.top": False}
plt.rcParams |= {"axes.spines.right": False, "legend.frameon": False}


def align_curves(rows: list[dict], curves: dict, scale) -> tuple[np.ndarray, np.ndarray] | None:
    """Training returns of runs on their common grid of steps: steps (P,), values (runs, P)."""
    values = np.full((len(rows), BINS + 1), np.nan)
    total = max(row["steps"] for row in rows)
    for line, row in zip(values, rows, strict=True):
        for step, mean, _ in curves.get(tuple(row[name] for name in KEYS), []):
            if mean is not None:
                line[round(step / row["steps"] * BINS)] = scale(row, mean)
        for index in range(1, BINS + 1):  # a bin in which no episode ended: as the one before
            if np.isnan(line[index]):
                line[index] = line[index - 1]
    return np.linspace(0, total, BINS + 1), values


def draw_band(axes, groups: dict[str, list[dict]], curves, scale, label, style):
    """One line: interquartile mean over environments and seeds, its interval shaded.

    Returns steps and means, or None where there is no run.
    """
    rows = [row for members in groups.values() for row in members]
    if not rows:
        return None
    steps, values = align_curves(rows, curves, scale)
    drawn = ~np.isnan(values).any(axis=0)  # from where every run has finished an episode
    if not drawn.any():
        return None
    steps, values = steps[drawn], values[:, drawn]
    of_env = np.array([row["env_id"] for row in rows])
    mean, interval = stats.curve_band({env_id: values[of_env == env_id] for env_id in groups})
    colour, dashes = style
    seeds = len({row["seed"] for row in rows})
    label += "" if interval is not None else " (n=1)" if seeds == 1 else f" ({seeds} seeds)"
    axes.plot(steps, mean, color=colour, linestyle=dashes, linewidth=1.4, label=label)
    if interval is not None:
        axes.fill_between(steps, *interval, color=colour, alpha=0.2, linewidth=0)
    return steps, mean


def finish(axes, title: str, ylabel: str) -> None:
    axes.set(title=title, xlabel="environment steps", ylabel=ylabel)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")


def share_legend(figure):
    """One legend below all panels, where it hides no curve."""
    entries = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    columns = max(1, round(figure.get_figwidth() / 2.4))
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns, fontsize=8)
    return figure


def panels(count: int, width: float = 3.6):
    lines = -(-count // 4)
    columns = -(-count // lines)
    size = (width * columns, 2.9 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    return figure, list(grid.flat[:count])


def training_levels(row: dict) -> str:
    """During training, Procgen's scores are those of the training levels."""
    return "_training" if suite_of(row["env_id"]) == "procgen" else ""


def as_fraction(row: dict, mean: float) -> float:
    return fraction(row | {"now" + training_levels(row): mean}, "now", training_levels(row))


def as_score(row: dict, mean: float) -> float:
    return stats.normalize(row["env_id"], mean)


def score_label(suite: str) -> str:
    return "human-normalised return" if suite == "atari" else "episode return"


def usable(found: dict[str, list[dict]]) -> dict[str, list[dict]]:
    return {env: [row for row in rows if fraction(row) is not None] for env, rows in found.items()}


def draw_suites(results: Results, curves: dict, size: str):
    """Figures 1, 6, 7, 8: all environments of a suite together, as a fraction of the teacher."""
    suites = {
        s: e for s, e in ENVS.items() if any(results.select("sizes", e, size=size)[0].values())
    }
    if not suites:
        return None
    figure, grid = panels(len(suites), 4.6)
    for axes, (suite, envs) in zip(grid, suites.items(), strict=True):
        for method in reversed(METHODS):
            found = usable(results.select("sizes", envs, method=method, size=size)[0])
            label, style = METHOD_LABELS.get(method, method), METHOD_STYLES[method]
            draw_band(axes, found, curves, as_fraction, label, style)
        axes.axhline(1, color="black", linestyle="--", linewidth=1, label="teacher")
        finish(axes, f"{suite}, {size} students", "fraction of teacher, in training")
    return share_legend(figure)


def draw_evaluations(axes, rows: list[dict], curves: dict, colour: str) -> None:
    """Dots: the students' own evaluations on the way, means over seeds."""
    points = defaultdict(list)
    for row in rows:
        for step, _, evaluation in curves.get(tuple(row[name] for name in KEYS), []):
            if evaluation is not None:
                points[step].append(as_score(row, evaluation))
    steps = sorted(step for step, values in points.items() if len(values) == len(rows))
    axes.plot(steps, [fmean(points[step]) for step in steps], "o", color=colour, markersize=3.2)


def draw_environments(results: Results, curves: dict, suite: str):
    """Figures 9, 10, 11: each environment by itself, a column for each size of student."""
    found = results.select("sizes", ENVS[suite])[0]
    envs = [env_id for env_id, rows in found.items() if rows]
    if not envs:
        return None
    size = (3.6 * len(SIZES), 2.9 * len(envs))
    figure, grid = plt.subplots(
        len(envs), len(SIZES), figsize=size, squeeze=False, sharey="row", layout="constrained"
    )
    for axes, (env_id, size) in zip(grid.flat, product(envs, SIZES), strict=True):
        for method in reversed(METHODS):
            rows = results.select("sizes", [env_id], method=method, size=size)[0]
            label, style = METHOD_LABELS.get(method, method), METHOD_STYLES[method]
            draw_band(axes, rows, curves, as_score, label, style)
            draw_evaluations(axes, rows[env_id], curves, style[0])
        levels = training_levels({"env_id": env_id})
        teachers = {row["seed"]: row["teacher_score" + levels] for row in found[env_id]}
        line = fmean(stats.normalize(env_id, score) for score in teachers.values())
        axes.axhline(line, color="black", linestyle="--", linewidth=1, label="teacher")
        ylabel = score_label(suite) if size == SIZES[0] else ""
        finish(axes, f"{plain_name(env_id)}, {size}", ylabel)
    return share_legend(figure)


def draw_teachers(results: Results, curves: dict, suite: str):
    """Figures 3, 4, 5; dashed, the final score: of deterministic actions, except on Procgen."""
    envs = MUJOCO_TEACHERS if suite == "mujoco" else ENVS[suite]
    found = results.select("teachers", envs)[0]
    envs = [env_id for env_id, rows in found.items() if rows]
    if not envs:
        return None
    figure, grid = panels(len(envs))
    for axes, env_id in zip(grid, envs, strict=True):
        one = {env_id: found[env_id]}
        draw_band(axes, one, curves, as_score, "PPO", METHOD_STYLES["teacher"])
        levels = training_levels({"env_id": env_id})
        final = fmean(stats.normalize(env_id, row["score" + levels]) for row in found[env_id])
        axes.axhline(final, color="black", linestyle="--", linewidth=1, label="final score")
        finish(axes, plain_name(env_id), score_label(suite))
    return share_legend(figure)


def draw_sb3(results: Results, curves: dict):
    """Learning curves of our PPO and of SB3's at the same settings, for as long as SB3's ran."""
    envs = [env_id for env_id, rows in results.select("sb3-ppo", SB3_ENVS)[0].items() if rows]
    if not envs:
        return None
    figure, grid = panels(len(envs), 4.6)
    for axes, env_id in zip(grid, envs, strict=True):
        theirs = results.select("sb3-ppo", [env_id])[0]
        ours = results.select("teachers", [env_id])[0]
        seeds = {row["seed"] for row in theirs[env_id]}
        ours = {env_id: [row for row in ours[env_id] if row["seed"] in seeds]}
        for found, label, style in [(theirs, "SB3", STYLES[1]), (ours, "ours", STYLES[0])]:
            draw_band(axes, found, curves, as_score, label, style)
            draw_evaluations(axes, found[env_id], curves, style[0])
        axes.set_xlim(0, SB3_STEPS)
        finish(axes, f"{plain_name(env_id)}, PPO", score_label("mujoco"))
    return share_legend(figure)


def draw_imperfect(results: Results, curves: dict):
    """Students of imperfect MuJoCo teachers, between those and the originals."""
    found = results.select("imperfect-mujoco", MUJOCO_SIGMA)[0]
    envs = [env_id for env_id, rows in found.items() if rows]
    if not envs:
        return None
    figure, grid = panels(len(envs))
    for axes, env_id in zip(grid, envs, strict=True):
        for method in reversed(METHODS):
            rows = results.select("imperfect-mujoco", [env_id], method=method)[0]
            label, style = METHOD_LABELS.get(method, method), METHOD_STYLES[method]
            draw_band(axes, rows, curves, as_score, label, style)
            draw_evaluations(axes, rows[env_id], curves, style[0])
        for name, dashes, label in [
            ("teacher_score", "--", "imperfect teacher"),
            ("original_score", ":", "original teacher"),
        ]:
            teachers = {row["seed"]: row[name] for row in found[env_id]}
            line = fmean(teachers.values())
            axes.axhline(line, color="black", linestyle=dashes, linewidth=1, label=label)
        ylabel = score_label("mujoco") if axes is grid[0] else ""
        finish(axes, f"{plain_name(env_id)}, σ = {MUJOCO_SIGMA[env_id]:g}", ylabel)
    return share_legend(figure)


def draw_lambda(results: Results, curves: dict, study: str, groups: list[tuple[str, ...]]):
    """Figure 2, a panel for each group of environments: PPD with several λ.

    A circle stands at the last step below 90 % of the teacher.
    """
    groups = [envs for envs in groups if any(results.select(study, envs)[0].values())]
    if not groups:
        return None
    figure, grid = panels(len(groups), 6.0 if len(groups) == 1 else 4.6)
    for axes, envs in zip(grid, groups, strict=True):
        for weight, style in zip(weights_of(study), reversed(STYLES), strict=False):
            found = usable(results.select(study, envs, distill_lambda=weight)[0])
            line = draw_band(axes, found, curves, as_fraction, f"λ = {weight:g}", style)
            if line is None:
                continue
            below = np.flatnonzero(line[1] < 0.9)
            if len(below):
                mark = line[0][below[-1]], line[1][below[-1]]
                axes.plot(*mark, "o", color=style[0], markeredgecolor="black", markersize=7)
        axes.axhline(1, color="black", linestyle="--", linewidth=1, label="teacher")
        axes.axhline(0.9, color="grey", linestyle="--", linewidth=1, label="90 % of the teacher")
        names = ", ".join(plain_name(env_id) for env_id in envs)
        finish(axes, f"PPD, larger students: {names}", "fraction of teacher, in training")
    return share_legend(figure)


def make_figures(rows: dict, curves: dict):
    """Yields file name (without its ending) and figure, for what there are runs of."""
    results = Results(rows)
    for size in SIZES:
        yield f"suites_{size}", draw_suites(results, curves, size)
    for suite in ENVS:
        yield f"teachers_{suite}", draw_teachers(results, curves, suite)
        yield f"sizes_{suite}", draw_environments(results, curves, suite)
    yield "lambda", draw_lambda(results, curves, "lambda", [IMPERFECT_ATARI])
    one_by_one = [(env_id,) for env_id in LAMBDA_MUJOCO]
    yield "lambda_mujoco", draw_lambda(results, curves, "lambda-mujoco", one_by_one)
    yield "imperfect_mujoco", draw_imperfect(results, curves)
    yield "sb3_ppo", draw_sb3(results, curves)


# ------------------------------------------------------------------------------- The report


def report(args: Args) -> None:
    """Merge new runs into the CSV files, then write all tables and figures from them."""
    args.results.mkdir(parents=True, exist_ok=True)
    rows, curves = read_tables(args.results)
    new_rows, new_curves, left_out = read_runs(args.runs)
    write_tables(args.results, rows | new_rows, curves | new_curves)
    rows, curves = read_tables(args.results)  # everything below comes from the files alone
    for name, text in make_tables(rows, curves).items():
        (args.results / name).write_text(text)
    drawn = []
    for name, figure in make_figures(rows, curves):
        if figure is not None:
            drawn.append(name)
            figure.savefig(args.results / f"{name}.png", dpi=120)
            figure.savefig(args.results / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)
    for text in left_out:
        print(f"left out: {text}")
    missing = sum(len(make_runs()) for make_runs in STUDIES.values()) - len(rows)
    print(f"{len(new_rows)} finished runs in {args.runs}, {len(rows)} in {args.results}/runs.csv")
    print(f"{len(drawn)} figures; {missing} runs of the studies are missing: missing.md")


def main() -> None:
    try:
        report(tyro.cli(Args, description=__doc__))
    except UserError as error:
        print(f"experiments.report: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
