"""Turn runs into tables and figures: `python -m experiments.report`.

Finished runs under runs/ are merged into runs.csv and curves.csv under experiments/results/. Tables
(ours next to the paper's) and figures are made from these two files only, so a clone without runs
can make every published number again. A table or figure is written if there are runs for it. A cell
with fewer runs than planned says how many it has, and missing.md counts what is missing.
"""

import gzip
import importlib
import io
import json
import sys
import zlib
from dataclasses import dataclass
from functools import cache
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
    """A mistake that a user can cause and fix: one line with cause and remedy, exit status 2."""


# ------------------------------------------------------------------------------- The two CSV files

KEYS = dict.fromkeys(("study", "env_id", "method", "size"), "string")
KEYS |= {"distill_lambda": "float64", "ratio_gradient": "boolean", "sigma": "float64"}
KEYS |= {"log_std_shift": "float64", "variant": "string", "seed": "int64"}
NUMBERS = (
    "steps", "episodes", "distinct_episodes", "score", "score_se", "score_training",
    "teacher_score", "teacher_score_se", "teacher_score_training", "original_score",
    "original_score_training", "steps_to_90_percent", "hours", "steps_per_second",
)  # fmt: skip
TEXTS = ("precision", "hardware", "git_commit", "versions", "warnings", "run")
PACKAGES = {"python", "torch", "numpy", "gymnasium", "mujoco", "ale-py", "stable-baselines3"}
PACKAGES |= {"procgen", "procgen-mirror"}  # packages whose versions matter for a run
RUNS = KEYS | dict.fromkeys(NUMBERS, "float64") | dict.fromkeys(TEXTS, "string")
CURVES = KEYS | dict.fromkeys(("step", "training_return", "evaluation"), "float64")


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV; whole numbers are written as integers."""
    return table.to_csv(index=False, float_format="%.15g", lineterminator="\n")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV file, compressed if it is large. The same table gives the same bytes."""
    compressed, text = path.with_name(path.name + ".gz"), csv_text(table)
    if len(text) <= LARGE:
        path.write_text(text)
        compressed.unlink(missing_ok=True)
    else:
        compressed.write_bytes(gzip.compress(text.encode(), mtime=0))
        path.unlink(missing_ok=True)


def read_table(path: Path, columns: dict) -> pd.DataFrame:
    """Read what `write_table` wrote; no rows if there is no file. Raises UserError if damaged."""
    compressed = path.with_name(path.name + ".gz")
    path = compressed if compressed.exists() else path
    if not path.exists():
        return pd.DataFrame(columns=list(columns)).astype(columns)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path == compressed else data).decode()
        options = {"keep_default_na": False, "na_values": [""], "float_precision": "round_trip"}
        table = pd.read_csv(io.StringIO(text), dtype=columns, **options)
        # Written again, the table must give the same text: this finds cut lines and lost columns.
        if list(table) != list(columns) or csv_text(table) != text:
            raise ValueError("it has other columns or lines than this report writes")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}); {REMEDY}") from error
    return table


def without(table: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table whose key is not in another table."""
    marked = table.merge(others[[*KEYS]].drop_duplicates(), how="left", indicator=True)
    return table[(marked["_merge"] == "left_only").to_numpy()]


def read_tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """runs.csv and curves.csv. Raises UserError if one is damaged or they do not match."""
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


def rows_of_result(run_dir: Path, result: dict) -> list[dict]:
    """All that the tables need of a run's result.json: a row, or one for each of several tasks."""
    if "scores" not in result:
        return [row_of_result(run_dir, result)]
    rows = []
    for task, teacher in zip(result["scores"], result["teacher"]["teachers"], strict=True):
        own = {"args": result["args"] | {"env_id": task}, "teacher": teacher}
        own |= {"score": result["scores"][task], "teacher_score": result["teacher_scores"][task]}
        own["evaluations"] = result[f"evaluations/{task}"]
        rows.append(row_of_result(run_dir, result | own))
    return rows


def row_of_result(run_dir: Path, result: dict) -> dict:
    """A row of runs.csv without `study` and `variant`, which are not in result.json."""
    args, teacher, score = result["args"], result.get("teacher") or {}, result["score"]
    facts = result | {name: teacher[name] for name in teacher if name.startswith("original_")}
    row = {name: facts[name]["mean"] for name in NUMBERS if isinstance(facts.get(name), dict)}
    row |= {"run": run_dir.name, "env_id": args["env_id"].split(":")[-1], "seed": args["seed"]}
    kind = result["script"].removesuffix(f"_{suite_of(row['env_id'])}")
    methods = {"ppo_teacher": "teacher", "ppd_mujoco_multi": "ppd-multi"}
    row["method"] = methods.get(kind, kind.replace("_", "-"))
    if kind == "ppd_mujoco_lstm":
        row["method"] = studies.partial_method(args)
    row["size"] = args.get("student_size") or args["size"]
    if "distill_lambda" in args:
        row["distill_lambda"] = float(args["distill_lambda"])
        row["ratio_gradient"] = args.get("ratio_gradient", True)  # the first runs had no such flag
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
    note = run_dir.with_name(run_dir.name + ".hardware.json")  # written by the engine
    found = json.loads(note.read_text()) if note.exists() else {}
    row["hardware"] = result.get("hardware") or found.get("hardware")
    versions = {n: v for n, v in result["versions"].items() if n in PACKAGES}
    row["versions"] = " ".join(f"{name}={version}" for name, version in versions.items())
    row["warnings"] = " ".join(result.get("warnings", []))
    row |= {name: " ".join(str(row[name] or "").split()) or None for name in TEXTS}  # one line
    return {name: shorten(row.get(name)) if name in NUMBERS else row.get(name) for name in RUNS}


def curve_of_result(result: dict, task: str | None = None) -> pd.DataFrame:
    """A learning curve in `BINS` points: step, mean return of its training episodes, evaluation.

    Of several tasks, `task` names the one whose evaluations are meant. The training episodes of all
    tasks are logged together, so such a curve has no returns.
    """
    steps, evaluations = result["steps"], result["evaluations"]
    curve = pd.DataFrame(result["curve"], columns=["step", "mean", "episodes"], dtype=float)
    if "scores" in result:
        curve, evaluations = curve[:0], result[f"evaluations/{task}"]
    evaluations = pd.DataFrame(evaluations, columns=["step", "mean", "se"], dtype=float)
    for table in (curve, evaluations):  # rounded up, exactly
        table.index = [-(-int(step) * BINS // steps) for step in table["step"]]
    curve["sum"] = curve["mean"] * curve["episodes"]
    sums = curve.groupby(level=0).sum()
    points = pd.DataFrame({"training_return": sums["sum"] / sums["episodes"]})
    evaluation = evaluations["mean"].groupby(level=0).last().rename("evaluation")
    points = points.join(evaluation, how="outer").map(shorten)
    return points.assign(step=[round(number * steps / BINS) for number in points.index])


def plain_values(args: dict) -> dict:
    """Arguments that two machines may write differently, in one form.

    A module in front of an environment's id is left out. Of the file that a run starts from, only
    whether there is one counts.
    """
    args = {name: value for name, value in args.items() if name not in studies.OF_THE_MACHINE}
    if "env_id" in args:
        args["env_id"] = args["env_id"].split(":")[-1]
    if "env_ids" in args:
        args["env_ids"] = [env_id.split(":")[-1] for env_id in args["env_ids"]]
    if "init" in args:
        args["init"] = args["init"] is not None
    return args


@cache
def planned_args(run: studies.Run) -> dict:
    """All arguments that the script of a run has by its command line."""
    script, *suite = run.script
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    kind = getattr(module, f"{run.suite.capitalize()}Args" if suite else "Args")
    return plain_values(json.loads(json.dumps(vars(tyro.cli(kind, args=run.flags())))))


def other_settings(run: studies.Run, args: dict) -> list[str]:
    """The arguments that differ from the study's, except those of the machine."""
    planned, args = planned_args(run), plain_values(args)
    return sorted(name for name in planned.keys() & args.keys() if planned[name] != args[name])


def check_teachers(run: studies.Run, result: dict) -> None:
    """Raises UserError if a student's teacher, by its header, is not the study's."""
    header = result.get("teacher") or {}
    headers = header.get("teachers", [header])  # of several tasks, one for each
    names = []
    if run.imported:
        _, steps = studies.ZOO[run.env_id]
        planned = {"trained_by": "stable-baselines3", "env_id": run.env_id, "steps": steps}
        names += [name for name, value in planned.items() if header.get(name) != value]
    for origin, header in zip(run.origins, headers, strict=False):
        names += other_settings(origin, header)
        names += ["steps"] if header["steps"] < origin.steps else []
        names += ["noise_seed"] if header.get("noise_seed", origin.seed) != origin.seed else []
    if names:
        raise UserError(f"not a run of a study: its teacher has another {', '.join(names)}")


def run_of_result(study: str, rows: list[dict], result: dict) -> studies.Run:
    """The run of a study whose command line gave this result. Raises UserError if there is none."""
    names = [name for name in KEYS if name not in ("study", "variant")]
    found = [{name: row[name] for name in names} for row in rows]
    candidates = [
        run
        for run in studies.STUDIES.get(study, list)()
        if run.study == study and [{n: key[n] for n in names} for key in run.keys] == found
    ]
    if not candidates or result["steps"] < min(run.steps for run in candidates):
        raise UserError("not a run of a study, by its arguments or its length")
    differences = {run: other_settings(run, result["args"]) for run in candidates}
    run = min(differences, key=lambda run: len(differences[run]))
    if differences[run]:
        other = ", ".join(differences[run])
        raise UserError(f"not a run of a study: other arguments for its {other}")
    return run


def read_runs(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Rows and curves of the finished runs in a folder, and what was left out and why."""
    rows, curves, left_out = {}, {}, []
    for path in sorted([*folder.glob("*/result.json"), *folder.glob("*/*/result.json")]):
        run_dir = path.parent
        # A teacher that was trained by hand lies in runs/ itself.
        study = "teachers" if run_dir.parent == folder else run_dir.parent.name
        try:
            result = json.loads(path.read_text())
            own_rows = rows_of_result(run_dir, result)
            run = run_of_result(study, own_rows, result)
            check_teachers(run, result)
            for row, key in zip(own_rows, run.keys, strict=True):
                row |= {name: key[name] for name in ("study", "variant")}
                curve, key = curve_of_result(result, row["env_id"]), (*key.values(),)
                if key in rows:
                    raise UserError(f"the same run as {rows[key]['run']}, which counts")
                if not np.isfinite(row["score"]) or curve.empty:
                    raise UserError("it has no score, or no learning curve")
                rows[key] = row
                curves[key] = curve.assign(**{name: row[name] for name in KEYS})
        except UserError as error:
            left_out.append(f"{run_dir}: {error}")
        except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
            left_out.append(f"{run_dir}: its result.json cannot be used ({e!r})")
    runs = pd.DataFrame(rows.values(), columns=[*RUNS]).astype(RUNS)
    parts = [curve[[*CURVES]].astype(CURVES) for curve in curves.values()]
    return runs, pd.concat([pd.DataFrame(columns=[*CURVES]).astype(CURVES), *parts]), left_out


# ------------------------------------------------------------------------------- The report


def merge(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Replace old rows by new ones, sorted so that the order of merging does not matter."""
    order = [*KEYS, *(["step"] if "step" in new else [])]
    return pd.concat([without(old, new), new]).sort_values(order, na_position="first")


def report(args: Args) -> None:
    """Merge new runs into the CSV files, then write all tables and figures from these."""
    runs, curves = read_tables(args.results)
    new_runs, new_curves, left_out = read_runs(args.runs)
    args.results.mkdir(parents=True, exist_ok=True)
    write_table(merge(runs, new_runs), args.results / "runs.csv")
    write_table(merge(curves, new_curves), args.results / "curves.csv")
    # Everything below comes from the files only.
    grid, points = stats.make_grid(*read_tables(args.results))
    write_tables(grid, points, args.results)
    draw_figures(grid, points, args.results)
    for text in left_out:
        print(f"left out: {text}")
    for row in runs.merge(new_runs, on=[*KEYS], suffixes=("_old", "")).to_dict("records"):
        if row["score"] != row["score_old"]:
            print(f"replaced: {row['run']} scored {row['score_old']:g}, and now {row['score']:g}")
    new = new_runs.drop_duplicates(["study", "run"])
    own, done = stats.own_runs(grid), stats.own_runs(finished(grid))
    found = f"{len(new)} finished runs in {args.runs}, {len(done)} in runs.csv"
    print(f"{found}, of {len(own)} in the studies: {args.results}/missing.md")


def main() -> None:
    try:
        report(tyro.cli(Args, description=__doc__))
    except (UserError, OSError) as error:
        print(f"experiments.report: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
