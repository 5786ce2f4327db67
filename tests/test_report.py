"""Tables and figures come from the committed CSV files alone, and say what they rest on."""

import json
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from experiments import report
from experiments.studies import MUJOCO_SIGMA, STUDIES, narrow

RESULTS = Path(__file__).parents[1] / "experiments" / "results"


def make_report(runs, results):
    report.report(report.Args(runs=Path(runs), results=Path(results)))


def test_committed_results_are_made_anew_from_the_csv_files(tmp_path):
    for path in RESULTS.glob("*.csv*"):
        shutil.copy(path, tmp_path)
    make_report(tmp_path / "no-runs", tmp_path)
    committed = {path.name for path in RESULTS.iterdir()}
    assert committed == {path.name for path in tmp_path.iterdir()}
    assert "runs.csv" in committed and "table_1.md" in committed
    for name in sorted(committed):
        if name.endswith((".md", ".csv", ".gz")):
            assert (tmp_path / name).read_bytes() == (RESULTS / name).read_bytes(), name
        elif name.endswith(".png"):
            ours, theirs = (matplotlib.image.imread(d / name) for d in (tmp_path, RESULTS))
            assert ours.shape == theirs.shape and np.abs(ours - theirs).mean() < 0.01, name


def make_result(run, score, teacher_score, original_score=None, steps=2_000_448):
    """A result.json with what the scripts write of a run of a study."""
    args = {"env_id": run.env_id, "seed": run.seed, "run_dir": str(run.run_dir)}
    args["size" if run.method == "teacher" else "student_size"] = run.size
    script = {"teacher": "ppo_teacher_mujoco", "ppd": "ppd_mujoco"}.get(run.method)
    if run.method == "ppd":
        args["distill_lambda"] = float(run.options.get("distill-lambda", 1))
    result = {"script": script or run.method.replace("-", "_"), "args": args, "steps": steps}
    result["score"] = {"mean": score, "standard_error": 1.0, "episodes": 50}
    grid = range(1152, steps + 1, 1152)
    result["curve"] = [[step, score * step / steps, 2] for step in grid]
    result["evaluations"] = [[step, score * step / steps, 1] for step in grid][::87]
    result |= {"seconds": 3600.0, "steps_per_second": 555.5, "warnings": []}
    result |= {"git_commit": "abc", "versions": {"python": "3.11", "torch": "2"}}
    if run.method != "teacher":
        mean = {"mean": teacher_score, "standard_error": 2.0, "episodes": 50}
        result |= {"teacher_score": mean, "teacher": {"seed": run.seed}}
        if run.sigma:
            result["teacher"] |= {"sigma": run.sigma, "original_score": {"mean": original_score}}
    return result


def save_result(folder, run, *scores, **facts):
    run_dir = folder / run.run_dir
    run_dir.mkdir(parents=True)
    (run_dir / "result.json").write_text(json.dumps(make_result(run, *scores, **facts)))
    hardware = run_dir.with_name(run_dir.name + ".hardware.json")
    hardware.write_text(json.dumps({"hardware": "a processor, 2 cores"}))


def cells(text, *start):
    """The cells of the first row of a table that begins with these."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return next(row[len(start) :] for row in rows if row[: len(start)] == list(start))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")

    def choose(study, **choices):
        return narrow(STUDIES[study](), suite=["mujoco"], **choices)

    # PPD, larger: both seeds in all four environments; Humanoid scores nothing. TD: one run.
    for run in choose("sizes", method=["ppd"], size=["larger"], seed=[100, 200]):
        save_result(folder, run, -5 if run.env_id == "Humanoid-v4" else 1000 + run.seed, 1000)
    save_result(folder, choose("sizes", method=["teacher-distill"], size=["same"])[0], 900, 1000)
    for run in choose("lambda-mujoco", env_id=["Hopper-v4"], seed=[100]):
        save_result(folder, run, 1500, 1000)
    save_result(folder, choose("lambda-mujoco", env_id=["Hopper-v4"], seed=[200])[0], 700, 1000)
    for run in choose("imperfect-mujoco", env_id=["Hopper-v4"], seed=[100]):
        save_result(folder, run, 600, 400, 1200)
    teacher, other, short = choose("teachers", env_id=["Ant-v4"])[:3]
    save_result(folder, teacher, 3000, None, steps=10_000_000)
    save_result(folder, short, 2000, None, steps=5_000_000)
    by_hand = make_result(other, 4000, None, steps=10_000_000)  # in runs/ itself, by any name
    (folder / "runs" / "mine").mkdir()
    (folder / "runs" / "mine" / "result.json").write_text(json.dumps(by_hand))
    make_report(folder / "runs", folder / "results")
    return folder / "results"


AGGREGATE = np.exp(np.mean(np.log([1.1, 1.1, 1.1, 1.2])))


def test_tables_of_a_few_runs(results):
    ours = cells((results / "table_1.md").read_text(), "mujoco", "larger", "ours")
    # 1.1, 1.2 three times and 0.01 twice: the middle four are 1.1, 1.1, 1.1, 1.2.
    assert ours[2].startswith(f"{AGGREGATE:.2f} [") and ours[:2] == ["–", "–"]
    assert ours[2].endswith("], 8 of 20 runs, 2 at ≤ 0.01")
    ours = cells((results / "table_1.md").read_text(), "mujoco", "same", "ours")
    assert ours == ["0.90 n=1, 1 of 20 runs", "–", "–"]
    ours = cells((results / "table_5.md").read_text(), "Ant-v4", "ours")
    assert (ours[0], ours[9]) == ("3500 n=2", "1150 n=2")


def test_table_of_mujoco(results):
    text = (results / "mujoco.md").read_text()
    larger_ppd = 2 + 8  # after seeds and the teacher's score
    assert cells(text, "Ant-v4", "ours")[:2] == ["100, 200", "3500"]
    assert cells(text, "Ant-v4", "ours")[larger_ppd] == "1.150"
    assert cells(text, "all four", "ours")[larger_ppd - 1 :] == ["–", f"{AGGREGATE:.3f}"]
    paper = next(line for line in text.splitlines() if "3574" in line)  # 3490 of it, larger
    assert paper.endswith("| 0.98 |")


def test_tables_of_imperfect_teachers_and_of_lambda(results):
    text = (results / "imperfect_mujoco.md").read_text()
    # Of one seed the error is the episodes', in raw scores 2 of the teacher's and 1 of a student's.
    sigma = f"{MUJOCO_SIGMA['Hopper-v4']:g}"
    students = ["0.500 ± 0.001", "0.500 ± 0.001", "0.500 ± 0.001"]
    assert cells(text, "Hopper-v4") == ["100", sigma, "1200", "0.333 ± 0.002", *students]
    assert cells(text, "all four") == [""] * 3 + ["–"] * 4  # three are missing
    # λ = 0 has a second seed, of 0.7 beside 1.5: mean 1.1, standard error 0.4.
    text = (results / "lambda_mujoco.md").read_text()
    ours = cells(text, "Hopper-v4")
    assert ours[:3] == ["100, 200", "of the teacher's score", "1.100 ± 0.400"]
    assert ours[3:] == ["1.500 ± 0.001"] * 4
    steps = cells(text, "", "", "steps to 90 % of it")  # HalfCheetah's, which is missing
    # The second seed never has 90 %, nor then has the median of the two.
    assert steps == ["–"] * 5 and "| never (1 of 2) | 1.20 M (1 of 1) | 1.20 M (1 of 1) |" in text


def test_runs_are_listed_with_their_origin(results):
    ours = cells((results / "runs.md").read_text(), "sizes", "Hopper-v4")
    assert ours[:4] == ["2", "2.0", "abc", "a processor, 2 cores"]
    assert ours[4] == "`python -m experiments.run sizes --env-id Hopper-v4 --seed 100 200`"


def test_missing_runs_are_listed(results):
    text = (results / "missing.md").read_text()
    assert "## sizes: 9 of 855 runs" in text and "- atari: all 495" in text
    assert "- Humanoid-v4 ppd larger: seed 300, 400, 500\n" in text
    assert "- Hopper-v4 ppd larger λ=2: seed 200, 300, 400, 500\n" in text
    assert "- Ant-v4 teacher same: seed 300, 400, 500\n" in text  # 300 was too short


def test_no_point_of_a_curve_lies_behind_its_end():
    steps = 4_004_352  # of which a hundredth, in floats, is a little too small
    result = {"steps": steps, "curve": [[steps, 1.0, 1]], "evaluations": [[steps, 2.0, 0.1]]}
    assert report.curve_of_result(result) == [(steps, 1.0, 2.0)]


def test_rows_have_what_must_be_recorded(results):
    rows, curves = report.read_tables(results)
    key = ("sizes", "Hopper-v4", "ppd", "larger", 1.0, 0.0, 200)
    row = rows[key]
    assert (row["score"], row["teacher_score"], row["hours"]) == (1200, 1000, 1)
    assert (row["git_commit"], row["versions"]) == ("abc", "python=3.11 torch=2")
    assert row["hardware"] == "a processor, 2 cores"
    assert len(curves[key]) == 100 and curves[key][-1][0] == 2_000_448
    assert curves[key][49][1] == pytest.approx(600, rel=0.02)


def test_runs_are_merged_and_their_order_does_not_matter(results, tmp_path):
    shutil.copytree(results, tmp_path / "again")
    run = narrow(STUDIES["sizes"](), env_id=["Ant-v4"], seed=[100], method=["ppd"])[0]
    save_result(tmp_path, run, 700, 1000)
    make_report(tmp_path / "runs", tmp_path / "again")
    before, after = (report.read_tables(d)[0] for d in (results, tmp_path / "again"))
    assert len(after) == len(before) + 1 and before.items() <= after.items()
    assert list(after) == sorted(after, key=lambda k: [(v is not None, v) for v in k])


def test_figures_are_drawn_for_what_there_is(results):
    names = {path.stem for path in results.glob("*.png")}
    wanted = {"suites_larger", "suites_same", "sizes_mujoco", "teachers_mujoco"}
    wanted |= {"lambda_mujoco", "imperfect_mujoco"}
    assert names == wanted == {path.stem for path in results.glob("*.svg")}


def test_circle_at_the_last_step_below_90_percent(results):
    rows, curves = report.read_tables(results)
    rows = {key: row for key, row in rows.items() if row["seed"] == 100}
    groups = [("HalfCheetah-v4",), ("Hopper-v4",)]  # there are runs of Hopper alone
    figure = report.draw_lambda(report.Results(rows), curves, "lambda-mujoco", groups)
    assert [axes.get_title() for axes in figure.axes] == ["PPD, larger students: Hopper-v4"]
    circles = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    # The score grows in a straight line to 1.5 of the teacher: 0.9 at six tenths of the way.
    assert len(circles) == 5
    assert circles[0].get_xdata()[0] == pytest.approx(0.6 * 2_000_448, rel=0.02)


def test_imperfect_and_original_teacher_are_lines(results):
    rows, curves = report.read_tables(results)
    figure = report.draw_imperfect(report.Results(rows), curves)
    lines = {line.get_label(): line.get_ydata()[0] for line in figure.axes[0].lines}
    assert (lines["imperfect teacher"], lines["original teacher"]) == (400, 1200)


def test_a_large_csv_is_compressed_the_same_way_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LARGE", 10)
    for name in ("a.csv", "b.csv"):
        report.write_text(tmp_path / name, "more than ten characters")
    first, second = (tmp_path / f"{name}.csv.gz" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert report.read_text(tmp_path / "a.csv") == "more than ten characters"


def test_a_damaged_csv_is_one_line(tmp_path):
    (tmp_path / "runs.csv").write_text("study,env_id\nsizes,Hopper-v4\n")
    with pytest.raises(report.UserError, match="damaged .* restore it from git"):
        make_report(tmp_path / "runs", tmp_path)
