"""Turn runs into tables and figures: `python -m experiments.report`.

Finished runs under runs/ are merged into runs.csv and curves.csv under experiments/results/, and
from these two files alone come the tables (ours beside the paper's) and the figures. So a clone
without runs regenerates every published number. A table or figure is written where there are runs
for it, a cell that rests on fewer runs than the paper's says on how many, and missing.md counts.
"""

import gzip
import importlib
import io
import json
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from experiments import stats, studies
from experiments.curves import draw_figures
from experiments.stats import BINS, finished
from experiments.studies import suite_of
from experiments.tables import write_tables

REMEDY = "nothing was written; restore it from git"
LARGE = 4_000_000  # characters: a CSV above this is committed compressed


@dataclass
class Args:
    runs: Path = Path("runs")  # folder of the runs; it may be missing
    results: Path = Path(__file__).parent / "results"  # folder of CSV files, tables and figures


class UserError(Exception):
    """Something a user can cause and mend: one line, the cause and the remedy; exit status 2."""


# ------------------------------------------------------------------------------- The two CSV files

KEYS = dict.fromkeys(("study", "env_id", "method", "size"), "string")
KEYS |= {"distill_lambda": "float64", "ratio_gradient": "boolean", "sigma": "float64"}
KEYS |= {"log_std_shift": "float64", "seed": "int64"}
NUMBERS = (
    "steps", "episodes", "distinct_episodes", "score", "score_se", "score_training",
    "teacher_score", "teacher_score_se", "teacher_score_training", "original_score",
    "original_score_training", "steps_to_90_percent", "hours", "steps_per_second",
)  # fmt: skip
TEXTS = ("precision", "hardware", "git_commit", "versions", "warnings", "run")
RUNS = KEYS | dict.fromkeys(NUMBERS, "float64") | dict.fromkeys(TEXTS, "string")
CURVES = KEYS | dict.fromkeys(("step", "training_return", "evaluation"), "float64")


def csv_text(table: pd.DataFrame) -> str:
    """Lines of CSV; a number without a fraction is written as an integer."""
    return table.to_csv(index=False, float_format="%.15g", lineterminator="\n")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV file; a large one compressed, the same bytes each time."""
    compressed, text = path.with_name(path.name + ".gz"), csv_text(table)
    if len(text) <= LARGE:
        path.write_text(text)
        compressed.unlink(missing_ok=True)
    else:
        compressed.write_bytes(gzip.compress(text.encode(), mtime=0))
        path.unlink(missing_ok=True)


def read_table(path: Path, columns: dict) -> pd.DataFrame:
    """What `write_table` wrote; no rows where it has not. Raises UserError for anything else."""
    compressed = path.with_name(path.name + ".gz")
    path = compressed if compressed.exists() else path
    if not path.exists():
        return pd.DataFrame(columns=list(columns)).astype(columns)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path == compressed else data).decode()
        options = {"keep_default_na": False, "na_values": [""], "float_precision": "round_trip"}
        table = pd.read_csv(io.StringIO(text), dtype=columns, **options)
        # What was read must be all that is there: this sees cut lines, missing columns, …
        if list(table) != list(columns) or csv_text(table) != text:
            raise ValueError("its columns or lines are not this report's")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}); {REMEDY}") from error
    return table


def without(table: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table whose key no row of another one has."""
    marked = table.merge(others[[*KEYS]].drop_duplicates(), how="left", indicator=True)
    return table[(marked["_merge"] == "left_only").to_numpy()]


def read_tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """runs.csv and curves.csv. Raises UserError where either is damaged, or they do not match."""
    runs, curves = read_table(folder / "runs.csv", RUNS), read_table(folder / "curves.csv", CURVES)
    twice = runs.duplicated([*KEYS]).any() or curves.duplicated([*KEYS, "step"]).any()
    if twice or len(without(runs, curves)) or len(without(curves, runs)):
        reason = "runs.csv and curves.csv are damaged: they do not hold the same runs, each once"
        raise UserError(f"{folder}: {reason}; {REMEDY}")
    return runs, curves


# ------------------------------------------------------------------------------- Rows from runs


def shorten(value: float | None) -> float | None:
    """A float to six significant digits: enough for every table, and short in a file."""
    return value if value is None else float(value if isinstance(value, int) else f"{value:.6g}")


def row_of_result(study: str, run_dir: Path, result: dict) -> dict:
    """Everything that a table needs of a run's result.json."""
    args, teacher, score = result["args"], result.get("teacher") or {}, result["score"]
    facts = result | {name: teacher[name] for name in teacher if name.startswith("original_")}
    row = {name: facts[name]["mean"] for name in NUMBERS if isinstance(facts.get(name), dict)}
    row |= {"study": study, "run": run_dir.name, "env_id": args["env_id"], "seed": args["seed"]}
    kind = result["script"].removesuffix(f"_{suite_of(row['env_id'])}")
    row["method"] = "teacher" if kind == "ppo_teacher" else kind.replace("_", "-")
    if kind == "ppd_mujoco_lstm":
        row["method"] = studies.partial_method(args)
    row["size"] = args.get("student_size") or args["size"]
    if "distill_lambda" in args:
        row["distill_lambda"] = float(args["distill_lambda"])
        row["ratio_gradient"] = args.get("ratio_gradient", True)  # the first runs had no choice
    row |= {name: float(teacher.get(name, 0)) for name in ("sigma", "log_std_shift")}
    row |= {name: result.get(name) for name in ("steps", "steps_per_second", "git_commit")}
    row |= {"episodes": score["episodes"], "distinct_episodes": score.get("distinct")}
    row |= {"score_se": score["standard_error"], "hours": result["seconds"] / 3600}
    row["teacher_score_se"] = result.get("teacher_score", {}).get("standard_error")
    reference = row.get("original_score" if row["sigma"] else "teacher_score")
    if reference is not None:
        reached = stats.steps_to_90_percent(row["env_id"], result["evaluations"], reference)
        row["steps_to_90_percent"] = reached
    row["precision"] = "bfloat16" if args.get("bfloat16") else "float32"
    note = run_dir.with_name(run_dir.name + ".hardware.json")  # the engine's
    found = json.loads(note.read_text()) if note.exists() else {}
    row["hardware"] = result.get("hardware") or found.get("hardware")
    row["versions"] = " ".join(f"{name}={value}" for name, value in result["versions"].items())
    row["warnings"] = " ".join(result.get("warnings", []))
    row |= {name: " ".join(str(row[name] or "").split()) or None for name in TEXTS}  # one line
    return {name: shorten(row.get(name)) if name in NUMBERS else row.get(name) for name in RUNS}


def curve_of_result(result: dict) -> pd.DataFrame:
    """A learning curve in `BINS` points: step, mean return of its training episodes, evaluation."""
    steps = result["steps"]
    curve = pd.DataFrame(result["curve"], columns=["step", "mean", "episodes"], dtype=float)
    evaluations = pd.DataFrame(result["evaluations"], columns=["step", "mean", "se"], dtype=float)
    for table in (curve, evaluations):  # rounded up, exactly
        table.index = [-(-int(step) * BINS // steps) for step in table["step"]]
    curve["sum"] = curve["mean"] * curve["episodes"]
    sums = curve.groupby(level=0).sum()
    points = pd.DataFrame({"training_return": sums["sum"] / sums["episodes"]})
    evaluation = evaluations["mean"].groupby(level=0).last().rename("evaluation")
    points = points.join(evaluation, how="outer").map(shorten)
    return points.assign(step=[round(number * steps / BINS) for number in points.index])


def other_settings(run: studies.Run, args: dict) -> list[str]:
    """The arguments in which a run is not the study's, but for those of the machine."""
    if run.method == "sb3-ppo":  # its script needs a library that a report does not
        planned = {"total_timesteps": run.steps, "episodes": 50, "eval_every": 500_000}
    else:
        script, *suite = run.script
        module = importlib.import_module(script.removesuffix(".py"))
        kind = getattr(module, f"{run.suite.capitalize()}Args" if suite else "Args")
        planned = json.loads(json.dumps(vars(tyro.cli(kind, args=run.flags()))))
    names = planned.keys() & args.keys() - studies.OF_THE_MACHINE
    return sorted(name for name in names if planned[name] != args[name])


def check_teacher(run: studies.Run, header: dict) -> None:
    """Raises UserError where a student's teacher, by its header, is not the study's."""
    names = other_settings(run.origin, header)
    names += ["steps"] if header["steps"] < run.origin.steps else []
    names += ["noise_seed"] if header.get("noise_seed", run.origin.seed) != run.origin.seed else []
    if names:
        raise UserError(f"not a run of a study: its teacher has another {', '.join(names)}")


def read_runs(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Rows and curves of the finished runs in a folder, and what was left out and why."""
    rows, curves, left_out = {}, {}, []
    expected = {tuple(run.key.values()): run for run in studies.all_runs()}
    for path in sorted([*folder.glob("*/result.json"), *folder.glob("*/*/result.json")]):
        run_dir = path.parent
        # A teacher trained by hand lies in runs/ itself.
        study = "teachers" if run_dir.parent == folder else run_dir.parent.name
        try:
            result = json.loads(path.read_text())
            row, curve = row_of_result(study, run_dir, result), curve_of_result(result)
            key = tuple(row[name] for name in KEYS)
            run = expected.get(key)
            if run is None or row["steps"] < run.steps:
                raise UserError("not a run of a study, by its arguments or its length")
            if names := other_settings(run, result["args"]):
                raise UserError(f"not a run of a study: other arguments for its {', '.join(names)}")
            if run.origin:
                check_teacher(run, result["teacher"])
            if key in rows:
                raise UserError(f"the same run as {rows[key]['run']}, which counts")
            if not np.isfinite(row["score"]) or curve.empty:
                raise UserError("it has no score, or no learning curve")
        except UserError as error:
            left_out.append(f"{run_dir}: {error}")
        except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
            left_out.append(f"{run_dir}: its result.json cannot be used ({e!r})")
        else:
            rows[key], curves[key] = row, curve.assign(**{name: row[name] for name in KEYS})
    runs = pd.DataFrame(rows.values(), columns=[*RUNS]).astype(RUNS)
    parts = [curve[[*CURVES]].astype(CURVES) for curve in curves.values()]
    return runs, pd.concat([pd.DataFrame(columns=[*CURVES]).astype(CURVES), *parts]), left_out


# ------------------------------------------------------------------------------- The report


def merge(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """New rows in place of old ones, in an order that does not depend on how they came in."""
    order = [*KEYS, *(["step"] if "step" in new else [])]
    return pd.concat([without(old, new), new]).sort_values(order, na_position="first")


def report(args: Args) -> None:
    """Merge new runs into the CSV files, then write all tables and figures from them."""
    runs, curves = read_tables(args.results)
    new_runs, new_curves, left_out = read_runs(args.runs)
    args.results.mkdir(parents=True, exist_ok=True)
    write_table(merge(runs, new_runs), args.results / "runs.csv")
    write_table(merge(curves, new_curves), args.results / "curves.csv")
    # Everything below comes from the files alone.
    grid, points = stats.make_grid(*read_tables(args.results))
    write_tables(grid, points, args.results)
    draw_figures(grid, points, args.results)
    for text in left_out:
        print(f"left out: {text}")
    for row in runs.merge(new_runs, on=[*KEYS], suffixes=("_old", "")).to_dict("records"):
        if row["score"] != row["score_old"]:
            print(f"replaced: {row['run']} scored {row['score_old']:g}, and now {row['score']:g}")
    found = f"{len(new_runs)} finished runs in {args.runs}, {len(finished(grid))} in runs.csv"
    print(f"{found}, of {len(grid)} in the studies: {args.results}/missing.md")


def main() -> None:
    try:
        report(tyro.cli(Args, description=__doc__))
    except (UserError, OSError) as error:
        print(f"experiments.report: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
