"""Tables and figures come from the committed CSV files only, and say what they rest on."""

import gzip
import json
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from experiments import curves, report, stats
from experiments.studies import STUDIES, narrow

RESULTS = Path(__file__).parents[1] / "experiments" / "results"
AGGREGATE = np.exp(np.mean(np.log([1.1, 1.1, 1.1, 1.2])))


def make_report(runs, results):
    report.report(report.Args(runs=Path(runs), results=Path(results)))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_committed_results_are_made_again_from_the_csv_files(tmp_path):
    for path in RESULTS.glob("*.csv*"):
        shutil.copy(path, tmp_path)
    make_report(tmp_path / "no-runs", tmp_path)
    made, committed = contents(tmp_path), contents(RESULTS)
    assert made.keys() == committed.keys() and {"runs.csv", "readme.png"} <= made.keys()
    for name in made:
        if name.endswith(".png"):  # another processor rounds differently
            ours, theirs = (matplotlib.image.imread(d / name) for d in (tmp_path, RESULTS))
            assert ours.shape == theirs.shape and np.abs(ours - theirs).mean() < 0.01, name
        else:
            assert made[name] == committed[name], name


def save(folder, run, score, teacher_score=None, original=None, steps=2_000_448, where=None):
    """A result.json as the scripts write it; the return grows in a straight line to the score."""
    args = {"env_id": run.env_id, "seed": run.seed}
    args["size" if run.method == "teacher" else "student_size"] = run.size
    (key,) = run.keys
    if run.method == "ppd":
        args |= {name: key[name] for name in ("distill_lambda", "ratio_gradient")}
    if run.study == "partial":
        args |= {"observe": "positions", "memory": "lstm", "pg_coef": 1.0, "distill_lambda": 1.0}
        args |= {name.replace("-", "_"): value for name, value in run.options.items()}
        args["ratio_gradient"] = key["ratio_gradient"]
    if run.study == "pixels":
        args["bfloat16"] = "distill-lambda" not in run.options
    grid = range(1152, steps + 1, 1152)
    result = {"script": run.script[0].removesuffix(".py"), "args": args, "steps": steps}
    result |= {"score": {"mean": score, "standard_error": 1.0, "episodes": 50}, "warnings": []}
    result["curve"] = [[step, score * step / steps, 2] for step in grid]
    result["evaluations"] = [[step, score * step / steps, 1] for step in grid][::87]
    result |= {"seconds": 3600.0, "steps_per_second": 555.5, "git_commit": "abc"}
    versions = {"python": "3.11", "pip": "26", "torch": "2"}  # pip has no effect on a run
    result |= {"versions": versions, "teacher": None}
    if teacher_score:
        result["teacher_score"] = {"mean": teacher_score, "standard_error": 2.0, "episodes": 50}
        if run.suite == "procgen":
            result["score_training"], result["teacher_score_training"] = {"mean": 9}, {"mean": 10}
        result["teacher"] = {"env_id": run.env_id, "log_std_shift": run.log_std_shift}
        for origin in run.origins:
            result["teacher"] |= {"seed": origin.seed, "steps": origin.steps}
        if original:
            result["teacher"] |= {"sigma": run.sigma, "original_score": {"mean": original}}
    run_dir = folder / (where or run.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "result.json").write_text(json.dumps(result))
    note = {"hardware": "a processor, 2 cores"}
    run_dir.with_name(run_dir.name + ".hardware.json").write_text(json.dumps(note))


def save_fade(folder, run, scores):
    """A run of the study fade, as the scripts with its flags write it: evaluations as given."""
    original = 1000 if run.sigma else None
    save(folder, run, scores[-1], 400 if run.sigma else 1000, original, steps=run.steps)
    path = folder / run.run_dir / "result.json"
    result = json.loads(path.read_text())
    args = {"distill_lambda_final": None, "distill_lambda_steps": None, "critic_warmup": 0}
    args |= {"num_steps": 64, "gamma": 0.999, "init": "elsewhere" if run.begins_with else None}
    args |= {"total_timesteps": run.steps} if run.method == "ppd" else {}
    given = {name.replace("-", "_"): value for name, value in run.options.items()}
    result["args"] |= args | {name: value for name, value in given.items() if value is not None}
    every = run.steps // len(scores)
    result["evaluations"] = [[(n + 1) * every, score, 1.0] for n, score in enumerate(scores)]
    path.write_text(json.dumps(result))


def save_multi(folder, run, scores, teacher_scores):
    """A run of several tasks: scores, teachers and evaluations of each, curves of all together."""
    tasks = [task.env_id for task in run.tasks]
    args = {"env_ids": [f"some.module:{task}" for task in tasks], "seed": run.seed}
    args |= {"student_size": run.size, "kl": "forward", "pg_coef": 1.0, "weights": None}
    args |= {"distill_lambda": run.keys[0]["distill_lambda"]}
    args |= {"ratio_gradient": run.keys[0]["ratio_gradient"], "total_timesteps": run.steps}
    given = {name.replace("-", "_"): value for name, value in run.options.items()}
    args |= {name: value for name, value in given.items() if value is not None}
    result = {"script": "ppd_mujoco_multi", "args": args, "steps": run.steps, "seconds": 60.0}
    headers = [{"env_id": t.env_id, "seed": t.seed, "steps": t.steps} for t in run.tasks]
    result["teacher"] = {"env_id": run.env_id, "teachers": headers}
    result |= {"score": {"mean": 0.9, "worst": 0.8}, "scores": {}, "teacher_scores": {}}
    result |= {"curve": [[run.steps, 5.0, 3]], "evaluations": [], "versions": {}}
    for task, score, teacher_score in zip(tasks, scores, teacher_scores, strict=True):
        known = {"standard_error": 1.0, "episodes": 50}
        result["scores"][task] = {"mean": score} | known
        result["teacher_scores"][task] = {"mean": teacher_score} | known
        result[f"evaluations/{task}"] = [[run.steps // 2, score / 2, 1.0], [run.steps, score, 1.0]]
    (folder / run.run_dir).mkdir(parents=True)
    (folder / run.run_dir / "result.json").write_text(json.dumps(result))


def choose(study, **choices):
    return narrow(STUDIES[study](), **{"suite": ["mujoco"]} | choices)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    # PPD, larger: two seeds in all four environments; Humanoid scores below 0. TD: one run.
    for run in choose("sizes", method=["ppd"], size=["larger"], seed=[100, 200]):
        save(folder, run, -5 if run.env_id == "Humanoid-v4" else 1000 + run.seed, 1000)
    save(folder, choose("sizes", method=["teacher-distill"], size=["same"])[0], 900, 1000)
    for run in choose("lambda-mujoco", env_id=["Hopper-v4"], seed=[100]):
        save(folder, run, 1500, 1000)
    save(folder, choose("lambda-mujoco", env_id=["Hopper-v4"], seed=[200])[0], 700, 1000)
    for run in choose("imperfect-mujoco", env_id=["Hopper-v4"], seed=[100]):
        save(folder, run, 600, 400, 1200)
    for run in choose("gradient", env_id=["Ant-v4"], size=["smaller"], seed=[100, 200, 300]):
        gain = run.seed / 10 if "no-ratio-gradient" in run.options else 0
        save(folder, run, 900 + gain + 50 * (run.method == "student-distill"), 1000)
    for run in choose("pixels", suite=["procgen"], method=["ppd"]):
        save(folder, run, 6, 3 if run.sigma else 8, 8 if run.sigma else None)
    for run in choose("partial", env_id=["Hopper-v4"], method=["ppd-lstm", "ppo-lstm"]):
        save(folder, run, 900 + run.seed if run.method == "ppd-lstm" else 300, 1000)
    teacher, other, short = choose("teachers", env_id=["Ant-v4"])[:3]
    save(folder, teacher, 3000, steps=10_000_000)
    save(folder, short, 2000, steps=5_000_000)
    save(
        folder, other, 4000, steps=10_000_000, where="runs/mine"
    )  # trained by hand, with another folder
    make_report(folder / "runs", folder / "results")
    return folder / "results"


def cells(path, *start):
    """The cells of the first row of a table that begins with these."""
    rows = [
        [c.strip() for c in line.strip("|").split("|")] for line in path.read_text().split("\n")
    ]
    return next(row[len(start) :] for row in rows if row[: len(start)] == list(start))


def test_tables_of_a_few_runs(results):
    # 1.1, 1.2 three times and 0.01 twice: the middle four are 1.1, 1.1, 1.1, 1.2.
    *others, ours, _ = cells(results / "table_1.md", "mujoco", "larger", "ours")
    assert ours.startswith(f"{AGGREGATE:.2f} [") and others == ["–", "–"]
    assert ours.endswith("], 8 of 20 runs, 2 at ≤ 0.01")
    ours = cells(results / "table_1.md", "mujoco", "same", "ours")
    assert ours == ["0.90 n=1, 1 of 20 runs", "–", "–", "–"]
    ours = cells(results / "table_5.md", "Ant-v4", "larger", "100, 200", "ours")
    assert ours == ["3500 ± 500", "–", "–", "1150 ± 50", "1150 ± 50"]
    text = (results / "table_1.md").read_text() + (results / "table_5.md").read_text()
    assert "atari" not in text and "Qbert" not in text  # of which there is no run
    assert cells(results / "mujoco.md", "Ant-v4", "ours")[:2] == ["100, 200", "3500"]
    assert cells(results / "mujoco.md", "Ant-v4", "ours")[2 + 8] == "1.150 ± 0.050"
    assert cells(results / "mujoco.md", "Ant-v4", "ours")[2 + 3] == "0.900 n=1"
    assert cells(results / "mujoco.md", "", "paper")[2 + 8] == "0.98"  # 3490 of 3574
    assert cells(results / "mujoco.md", "all four", "ours")[1 + 8 :] == ["–", f"{AGGREGATE:.3f}"]
    ours = cells(results / "runs.md", "sizes", "Hopper-v4")
    command = "`python -m experiments.run sizes --env-id Hopper-v4 --seed 100 200`"
    assert ours == ["4", "4.0", "abc", "a processor, 2 cores", command]
    assert cells(results / "missing.md", "sizes", "mujoco")[:3] == [
        "10 of 48",
        "8 of 48",
        "0 of 48",
    ]
    teachers = cells(results / "missing.md", "teachers", "mujoco")
    assert teachers[:3] == ["1 of 5", "1 of 5", "0 of 5"]  # 300 was too short


def test_tables_of_imperfect_teachers_lambda_and_the_gradient(results):
    # With one seed the error is over episodes: in raw scores 2 for the teacher, 1 for a student.
    ours = cells(results / "imperfect_mujoco.md", "Hopper-v4", "100", "0.1", "1200")
    assert ours == ["0.333 ± 0.002"] + ["0.500 ± 0.001"] * 3
    assert cells(results / "imperfect_mujoco.md", "all four") == [""] * 3 + ["–"] * 4
    # λ = 0 has two seeds, 1.5 and 0.7: mean 1.1, standard error 0.4.
    ours = cells(results / "lambda_mujoco.md", "Hopper-v4", "100, 200", "of the teacher's score")
    assert ours == ["1.100 ± 0.400"] + ["1.500 ± 0.001 n=1"] * 4
    # The second seed never reaches 90 %, and so the median of the two does not.
    steps = cells(results / "lambda_mujoco.md", "", "", "steps to 90 % of it")
    assert steps == ["never (1 of 2)"] + ["1.20 M (1 of 1)"] * 4
    form = cells(results / "gradient.md", "Ant-v4, smaller", "r detached", "100, 200, 300")
    assert form == ["0.920 ± 0.006", "never (0 of 3)", form[2]]
    form = cells(results / "gradient.md", "Ant-v4, smaller", "student-distill", "100, 200, 300")
    assert form[1] == "1.910 ± 0.000 M (3 of 3)"
    for other, fractions in [
        ("Equation 2", "+0.020 [+0.010, +0.030]"),
        ("student-distill", "-0.030 [-0.040, -0.020]"),
    ]:
        form = f"r detached − {other}"
        gain = cells(results / "gradient.md", "Ant-v4, smaller", form, "100, 200, 300")
        assert gain[0] == fractions and (gain[1] == "–") == (other == "Equation 2")
    for policy, *precision_and_paper in [
        ("ppd, λ = 1", "bfloat16", "6.17"),
        ("ppd, λ = 5", "float32", "–"),
    ]:
        ours = cells(results / "pixels.md", "coinrun", policy)
        never = ["6.00", "0.750 ± 0.125", "9.00", "0.900", "never (0 of 1)"]
        assert ours == never + precision_and_paper
    command = "`python -m experiments.run pixels --env-id coinrun --seed 100"
    for count, precision in [("2", " --bfloat16`"), ("4", "`")]:
        assert cells(results / "runs.md", "pixels", "coinrun", count)[-1] == command + precision
    ours = cells(results / "pixels.md", "coinrun", "ppd, λ = 1, from a teacher with σ = 0.08")
    assert ours[:2] == ["6.00", "0.750 ± 0.125"]
    # 1.0, 1.1 and 1.2 of the teacher: evaluations, which grow in a straight line, reach 0.9 of it.
    for form in ("", ", Equation 2"):
        ours = cells(results / "partial.md", "Hopper-v4", f"PPD, LSTM{form}", "100, 200, 300")
        assert ours[:2] == ["1100", "1.100 ± 0.058"] and ours[2].endswith(" M (3 of 3)")
    ours = cells(results / "partial.md", "Hopper-v4", "PPO, LSTM", "100, 200, 300")
    assert ours[:3] == ["300", "0.300 ± 0.000", "never (0 of 3)"]
    assert "no memory" not in (results / "partial.md").read_text()  # of which there is no run


def test_tables_with_several_seeds(tmp_path):
    """One seed, two, and three in one table, and runs that another study trained."""
    for run in choose("sizes", env_id=["Ant-v4"], size=["smaller"], seed=[100, 200, 300]):
        if run.method != "teacher-distill" or run.seed != 300:
            quiet = "no-ratio-gradient" in run.options
            save(tmp_path, run, 800 + run.seed + (50 if quiet else 0), 1000)
    for run in choose("teachers", env_id=["Ant-v4"], seed=[100, 200, 300]):
        save(tmp_path, run, 900 + run.seed, steps=10_000_000)
    make_report(tmp_path / "runs", results := tmp_path / "results")
    error = f" ± {100 / 3**0.5:.0f}"  # of 900, 1000 and 1100
    ours = cells(results / "table_5.md", "Ant-v4", "smaller", "100, 200, 300", "ours")
    assert ours == [f"1100{error}", "950 ± 50 n=2", f"1000{error}", f"1000{error}", f"1050{error}"]
    assert cells(results / "table_5.md", "", "", "", "paper")[:2] == ["3574", "3529"]
    ours = cells(results / "sizes.md", "Ant-v4", "smaller", "100, 200, 300")
    mean = "{:.3f} ± 0.058".format
    assert ours[:4] == ["0.950 ± 0.050 n=2", mean(1), mean(1), mean(1.05)]
    assert ours[4:] == ["0.99", "0.98", "0.92"]
    # The interval of three seeds is their range, as a mean's would be.
    ours = cells(results / "table_1.md", "mujoco", "smaller", "ours")
    assert ours[2:] == ["1.00 [0.90, 1.10], 3 of 20 runs", "1.05 [0.95, 1.15], 3 of 12 runs"]
    # The run of seed 100 without the ratio's gradient is counted in both, its hours once.
    mujoco = cells(results / "missing.md", "sizes", "mujoco")
    assert mujoco[:3] == ["4 of 48", "4 of 48", "3 of 48"]
    assert cells(results / "missing.md", "gradient", "mujoco")[0] == "1 of 24"
    assert cells(results / "runs.md", "sizes", "Ant-v4")[:2] == ["10", "10.0"]
    assert cells(results / "runs.md", "gradient", "Ant-v4")[:2] == ["1", "1.0"]


def test_tables_of_a_falling_weight(tmp_path):
    choices = {"env_id": ["Ant-v4"], "sigma": [0.0175], "seed": [100, 200]}
    for variant, scores in [
        ("", [300, 310, 320, 330, 340]),  # of the study gradient
        ("fade-early", [500, 800, 100, 900, 950]),
        ("floor", [500, 700, 710, 720, 730]),
        ("ppo-own-settings", [10, 20, 30, 40, 50]),
        ("init", [600, 610, 620, 630, 640]),
    ]:
        for run in choose("fade", variant=[variant], method=["ppd"], **choices):
            save_fade(tmp_path, run, [score + run.seed / 10 for score in scores])
    (sound,) = choose("fade", env_id=["Ant-v4"], sigma=[0.0], seed=[100])
    save_fade(tmp_path, sound, [990])
    runs, _, left_out = report.read_runs(tmp_path / "runs")
    assert not left_out and len(runs) == 10
    make_report(tmp_path / "runs", results := tmp_path / "results")
    table, corrupted = results / "fade.md", ("Ant-v4", "corrupted (0.40)")
    name = "PPD, λ 1 → 0 in 0.8 M, PPO settings"
    assert cells(table, *corrupted, name) == ["100, 200", "0.815", "0.110", "0.965 ± 0.005"]
    assert cells(table, *corrupted, "PPD, λ = 1")[3] == "0.355 ± 0.005"
    assert cells(table, *corrupted, "PPO, PPO settings")[0] == "100, 200"
    assert cells(table, *corrupted, "student-distill, then PPO")[0] == "100"
    assert cells(table, "Ant-v4", "original", name)[3] == "0.990 ± 0.001"
    assert "Hopper" not in table.read_text() and (results / "fade.png").exists()
    variants = report.read_tables(results)[0]["variant"].value_counts(dropna=False)
    assert variants["fade-early"] == 3 and variants[None] == 2
    # Without its start it is no run of the study; the report names what is least wrong.
    (init,) = choose("fade", variant=["init"], **choices)
    path = tmp_path / init.run_dir / "result.json"
    path.write_text(path.read_text().replace('"elsewhere"', "null"))
    _, _, left_out = report.read_runs(tmp_path / "runs")
    assert len(left_out) == 1 and left_out[0].endswith("other arguments for its total_timesteps")


def test_tables_of_several_tasks(tmp_path):
    pair = {"size": ["smaller"], "variant": ["ppd", "distill"], "method": ["ppd-multi"]}
    for run in choose("multi", env_id=["HalfCheetah-v4--HalfCheetahBackward-v4"], **pair):
        loss = 100 * (run.variant == "distill") + run.seed
        save_multi(tmp_path, run, [2000 - loss, 1000 - loss], [2000, 1000])
    runs, points, left_out = report.read_runs(tmp_path / "runs")
    assert not left_out and len(runs) == 2 * 2 * 3  # tasks, methods, seeds
    assert set(points["env_id"]) == {"HalfCheetah-v4", "HalfCheetahBackward-v4"}
    make_report(tmp_path / "runs", results := tmp_path / "results")
    start = ("HalfCheetah", "smaller", "PPD `--no-ratio-gradient`", "100, 200, 300")
    each = "HalfCheetah 0.900 ± 0.029, HalfCheetahBackward 0.800 ± 0.058"
    # The mean of both evaluations and both tasks: three quarters of 0.85.
    assert cells(results / "multi.md", *start) == [each, "0.800 ± 0.058", "0.638 ± 0.032"]
    assert cells(results / "multi.md", "HalfCheetah", "smaller", "distillation only")
    assert "reverse" not in (results / "multi.md").read_text()
    pair = "HalfCheetah-v4--HalfCheetahBackward-v4"
    assert cells(results / "runs.md", "multi", pair)[:2] == ["6", "0.1"]  # minutes, counted once
    assert cells(results / "missing.md", "multi", "mujoco")[:2] == ["2 of 15", "2 of 11"]
    assert (results / "multi.png").exists()


def test_students_of_other_peoples_teachers(tmp_path):
    for run in choose("zoo", env_id=["Hopper-v4"], seed=[100, 200]):
        save(tmp_path, run, 900 + run.seed, 1000, steps=1_000_512)
        path = tmp_path / run.run_dir / "result.json"
        result = json.loads(path.read_text())
        teacher = {"env_id": "Hopper-v4", "trained_by": "stable-baselines3", "seed": 0}
        steps = 5 if (run.method, run.seed) == ("student-distill", 200) else 1_000_448
        path.write_text(json.dumps(result | {"teacher": teacher | {"steps": steps}}))
    _, _, left_out = report.read_runs(tmp_path / "runs")
    assert len(left_out) == 1 and left_out[0].endswith("its teacher has another steps")
    make_report(tmp_path / "runs", results := tmp_path / "results")
    start = ("Hopper-v4", "PPO, 1000", "PPD (paper's loss)", "100, 200")
    at_0_1, at_0_2, at_0_4, score, steps = cells(results / "zoo.md", *start)
    assert (score, steps) == ("1.050 ± 0.050", "0.90 M (2 of 2)")
    # Evaluations, every 0.1 M steps, grow in a straight line to 1.05 on average.
    found = [float(cell) for cell in (at_0_1, at_0_2, at_0_4)]
    assert found == pytest.approx([0.105, 0.21, 0.42], abs=0.003)
    assert cells(results / "zoo.md", *start[:2], "student-distill")[0] == "100"


def test_minutes_next_to_the_authors_code(tmp_path):
    for run in choose("authors", env_id=["Ant-v4"]):
        save(tmp_path, run, 1000, 1000)
        path = tmp_path / run.run_dir / "result.json"
        result = json.loads(path.read_text())
        if run.method == "sb3-distill-ppd":
            result |= {"script": "sb3_distill_ppd", "seconds": 7200.0}
            result["args"]["distill_lambda"] = 1.0
        result["evaluations"] = [[1_000_224, 950, 1.0], [2_000_448, 1000, 1.0]]
        path.write_text(json.dumps(result))
    runs, _, left_out = report.read_runs(tmp_path / "runs")
    assert not left_out and set(runs["method"]) == {"sb3-distill-ppd", "ppd"}
    make_report(tmp_path / "runs", results := tmp_path / "results")
    for name, minutes in [
        ("sb3_distill, the authors' code", "60.00"),
        ("PPD (paper's loss)", "30.00"),
        ("PPD `--no-ratio-gradient`", "30.00"),
    ]:
        ours = cells(results / "authors.md", "Ant-v4", name, "100")
        assert ours[:4] == ["1000", "1.000 ± 0.001", "1.00 M (1 of 1)", minutes], name


def test_rows_and_curves_have_what_must_be_recorded(results):
    grid, points = stats.make_grid(*report.read_tables(results))
    [row] = grid[grid["run"] == "Hopper-v4__ppd__larger__200"].to_dict("records")
    assert (row["score"], row["teacher_score"], row["hours"]) == (1200, 1000, 1)
    assert (row["versions"], row["hardware"]) == ("python=3.11 torch=2", "a processor, 2 cores")
    curve = points[points["row"] == row["row"]]
    assert len(curve) == 100 and curve["step"].max() == 2_000_448
    # An evaluation up to a rollout after each 0.1 M counts as one at that.
    assert row["steps_to_90_percent"] % 10_000 > 0
    assert row["million_steps"] == round(row["steps_to_90_percent"] / 1e6, 2)
    assert curve["training_return"].iloc[49] == pytest.approx(600, rel=0.02)
    steps = 4_004_352  # of which a hundredth, in floats, is a little too small
    result = {"steps": steps, "curve": [[steps, 1.0, 1]], "evaluations": [[steps, 2.0, 0.1]]}
    assert report.curve_of_result(result).to_dict("records") == [
        {"training_return": 1, "evaluation": 2, "step": steps}
    ]


def test_runs_are_merged_in_the_same_order_and_the_unusable_left_out(results, tmp_path, capsys):
    shutil.copytree(results, tmp_path / "again")
    ant, *others = choose("sizes", env_id=["Ant-v4"], method=["ppd"])
    save(tmp_path, ant, 700, 1000)
    newer = choose("sizes", method=["ppd"], size=["larger"])[0]
    save(tmp_path, newer, 1300, 1000)
    halved, empty, text, wrong, deaf, stranger = others[:6]
    for run in (halved, empty, text, wrong, deaf):
        save(tmp_path, run, np.nan if run is deaf else 700, 1000)
    path = tmp_path / halved.run_dir / "result.json"
    path.write_text(path.read_text()[:1000])
    (tmp_path / empty.run_dir / "result.json").write_text("")
    (tmp_path / text.run_dir / "result.json").write_text('["score"]')
    path = tmp_path / wrong.run_dir / "result.json"
    path.write_text(path.read_text().replace('"steps": 2000448', '"steps": "many"'))
    save(tmp_path, newer, 5, 1000, where=f"{newer.run_dir}.other")
    save(tmp_path, stranger, 700, 1000, where="runs/tried/by-hand")
    make_report(tmp_path / "runs", tmp_path / "again")
    output = capsys.readouterr().out
    printed = [line for line in output.splitlines() if "left out" in line]
    assert "replaced: Ant-v4__ppd__larger__100 scored 1100, and now 1300\n" in output
    assert len(printed) == 7 and "other: the same run as Ant-v4__ppd__larger__100" in output
    assert all(str(r.run_dir) in "".join(printed) for r in others[:5])
    before, after = (report.read_tables(d)[0] for d in (results, tmp_path / "again"))
    assert len(after) == len(before) + 1 and len(report.without(before, after)) == 0
    assert [*after[after["run"] == "Ant-v4__ppd__larger__100"]["score"]] == [1300]
    assert after.equals(after.sort_values([*report.KEYS], na_position="first"))


def test_runs_with_other_hyperparameters_are_left_out(results, tmp_path, capsys):
    """The report names the arguments. Those of the machine may differ, and git may be missing."""
    shutil.copytree(results, tmp_path / "again")
    runs = choose("sizes", method=["ppd"], size=["smaller"])[:3]
    changes = [{"learning_rate": 0.1}, {"hidden_sizes": [8]}, {"num_workers": 7, "gamma": 0.999}]
    for run, change in zip(runs, changes, strict=True):
        save(tmp_path, run, 700, 1000)
        path = tmp_path / run.run_dir / "result.json"
        result = json.loads(path.read_text())
        del result["git_commit"]
        path.write_text(json.dumps(result | {"args": result["args"] | change}))
    make_report(tmp_path / "runs", tmp_path / "again")
    printed = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert [line.split("its ")[-1] for line in printed] == [
        "learning_rate",
        "hidden_sizes",
    ]
    before, after = (report.read_tables(d)[0] for d in (results, tmp_path / "again"))
    assert len(after) == len(before) + 1


def test_a_run_of_sb3_must_be_as_long_as_the_studys(tmp_path):
    run = STUDIES["sb3-ppo"]()[0]
    for steps, left_out in [(4_000_000, 0), (10_000_000, 1)]:
        save(tmp_path, run, 700, steps=steps)
        path = tmp_path / run.run_dir / "result.json"
        result = json.loads(path.read_text()) | {"script": "sb3_ppo"}
        result["args"] |= {"total_timesteps": steps, "episodes": 50}
        path.write_text(json.dumps(result))
        runs, _, texts = report.read_runs(tmp_path / "runs")
        assert (len(runs), len(texts)) == (1 - left_out, left_out), texts


def test_students_of_other_teachers_are_left_out(results, tmp_path, capsys):
    """The report says how: fewer steps, another network or seed, or other noise."""
    shutil.copytree(results, tmp_path / "again")
    runs = choose("sizes", method=["ppd"], size=["smaller"], seed=[100])[:4]
    runs += choose("imperfect-mujoco", method=["ppd"], seed=[200])[:1]
    changes = [{"seed": 200}, {"steps": 5_000_000}, {"hidden_sizes": [64, 64]}]
    changes += [{"env_id": "Hopper-v4"}, {"noise_seed": 7}]
    for run, change in zip(runs, changes, strict=True):
        save(tmp_path, run, 700, 1000, 1000 if run.sigma else None)
        path = tmp_path / run.run_dir / "result.json"
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"teacher": result["teacher"] | change}))
    make_report(tmp_path / "runs", tmp_path / "again")
    printed = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    found = {line.split(" has another ")[-1] for line in printed}
    assert found == {"seed", "steps", "hidden_sizes", "env_id", "noise_seed"}
    before, after = (report.read_tables(d)[0] for d in (results, tmp_path / "again"))
    assert len(after) == len(before)


def test_figures_are_drawn_for_what_there_is(results):
    names = {path.stem for path in results.glob("*.png")}
    wanted = {"suites", "sizes_mujoco", "teachers_mujoco", "lambda_mujoco", "imperfect_mujoco"}
    assert names == wanted | {"gradient", "pixels", "pixels_lambda", "partial"}
    grid, points = stats.make_grid(*report.read_tables(results))
    figures = curves.make_figures(grid[grid["seed"] == 100])
    [axes] = curves.draw(figures["lambda_mujoco"][0], points).axes  # there are runs of Hopper alone
    circles = [line for line in axes.lines if line.get_marker() == "o"]
    # The score grows in a straight line to 1.5 of the teacher: 0.9 at six tenths of the way.
    assert axes.get_title() == "PPD, larger students: Hopper-v4" and len(circles) == 5
    assert circles[0].get_xdata()[0] == pytest.approx(0.6 * 2_000_448, rel=0.02)
    # Of the last returns of its teacher's training, which grow in a straight line to 3000; of the
    # score, 1000, where the teacher had other noise.
    drawn = {axes.get_title(): axes for axes in curves.draw(figures["gradient"][0], points).axes}
    for title, teacher in [("Ant-v4, smaller", 0.98 * 3000), ("Ant-v4, smaller, log σ -2", 1000)]:
        assert drawn[title].lines[0].get_label().startswith("Equation 2")
        assert drawn[title].lines[0].get_ydata()[-1] == pytest.approx(900 / teacher, rel=0.01)
    [axes] = curves.draw(figures["imperfect_mujoco"][0], points).axes
    lines = {line.get_label(): line.get_ydata()[0] for line in axes.lines}
    assert (lines["imperfect teacher"], lines["original teacher"]) == (400, 1200)


def test_a_suites_panel_leaves_out_a_method_that_lacks_an_environment(results):
    grid, points = stats.make_grid(*report.read_tables(results))
    panels = {panel.title: panel.lines for panel in curves.panels_of_suites(grid)}
    assert [*panels["mujoco, same"]] == ["teacher-distill (teacher's episodes)"]
    assert {*panels["mujoco, larger"]} == {curves.PAPERS, curves.QUIET}
    lost = (grid["form"] == "ppd --no-ratio-gradient") & (grid["env_id"] == "Hopper-v4")
    panels = {panel.title: panel.lines for panel in curves.panels_of_suites(grid[~lost])}
    assert {*panels["mujoco, larger"]} == {curves.PAPERS}


def test_a_teachers_band_is_one_deviation(results):
    """Figures 3 to 5: two seeds, of which the second ends 1000 higher."""
    grid, points = stats.make_grid(*report.read_tables(results))
    [panel] = [p for p in curves.panels_of_teachers(grid, "mujoco") if p.title == "Ant-v4"]
    [axes] = curves.draw([panel], points).axes
    [band] = axes.collections
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(3500, rel=0.01)
    top = band.get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(3500 + 1000 / 2**0.5, rel=0.01)


DAMAGES = {
    "empty": lambda text: "",
    "cut in a line": lambda text: text[: len(text) // 2],
    "no end": lambda text: text[:-1],
    "a line lost": lambda text: "\n".join(text.split("\n")[:-2]) + "\n",
    "a line twice": lambda text: text + text.split("\n")[-2] + "\n",
    "a column lost": lambda text: text.replace(",sigma,", ",", 1),
    "a word for a number": lambda text: text.replace(",100,", ",many,", 1),
    "a cell too many": lambda text: text.replace(",100,", ",100,1,", 1),
    "a conflict": lambda text: "<<<<<<<\n" + text,
}


@pytest.mark.parametrize("large", [0, 10**9])
@pytest.mark.parametrize("name", ["runs.csv", "curves.csv"])
def test_a_damaged_csv_is_not_written_over(results, tmp_path, name, large, capsys, monkeypatch):
    monkeypatch.setattr(report, "LARGE", large)  # so that files are compressed, or not
    monkeypatch.setattr("sys.argv", ["report", "--results", str(tmp_path)])
    for path, table in zip(["runs.csv", "curves.csv"], report.read_tables(results), strict=True):
        report.write_table(table, tmp_path / path)
    path = tmp_path / (name if large else f"{name}.gz")
    assert all(p.read_bytes()[4:8] == bytes(4) for p in tmp_path.glob("*.gz"))  # no time in them
    assert len({*tmp_path.glob("*.gz")}) == (0 if large else 2)
    for damage, change in DAMAGES.items():
        if (name, damage) == ("curves.csv", "a line lost"):
            continue  # a curve may have gaps
        text = change((results / name).read_text())
        data = text.encode() if large else gzip.compress(text.encode())
        path.write_bytes(data[:-20] if "cut" in damage else data)
        before = contents(tmp_path)
        with pytest.raises(SystemExit, match="2"):
            report.main()
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and "damaged" in error and "restore" in error, damage
        assert contents(tmp_path) == before, damage


@pytest.mark.parametrize(
    ("env_id", "title"),
    [
        ("PongNoFrameskip-v4", "Pong, human-normalised"),
        ("coinrun", "coinrun"),
        ("Ant-v4", "Ant-v4"),
    ],
)
def test_a_panel_says_where_scores_are_human_normalised(env_id, title):
    assert curves.title_of(env_id) == title
