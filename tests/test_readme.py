"""What README.md, docs and docstrings tell a reader to type or open is there."""

import ast
import csv
import importlib
import json
import re
import shlex
import subprocess

import pytest
import tyro
from helpers import ROOT

from experiments import curves, paper_tables, report, stats, studies

DOCUMENTS = [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md")), *ROOT.glob("teachers/*.md")]
RESULTS = ROOT / "experiments/results"


def read(path):
    """A document's text, or a script's docstring."""
    text = path.read_text()
    return ast.get_docstring(ast.parse(text)) if path.suffix == ".py" else text


def commands(path):
    """What a reader is told to type: in a fence, indented, or as `code` within a sentence."""
    text, command = re.sub(r"\\\n +", "", read(path)), "((?:python|make) "
    fenced = "".join(re.findall(r"(?ms)^```bash\n(.*?)^```$", text))
    prose = re.sub(r"(?ms)^```.*?^```$", "", text)
    yield from re.findall(rf"(?m)^(?:\$ |[A-Z_]+=\S+ )*{command}.*)$", fenced)
    yield from re.findall(rf"(?m)^    {command}.*)$", prose)
    yield from re.findall(rf"`{command}[^`]+)`", prose)


def blocks(path, language):
    """The fenced code of a document in one language."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", path.read_text())


COMMANDS = {
    f"{path.relative_to(ROOT)}: {line}": line
    for path in [*DOCUMENTS, *sorted(ROOT.glob("*.py"))]
    for line in commands(path)
}


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS.keys())
def test_command_parses(line):
    words = shlex.split(line.split("&&")[0].split("|")[0], comments=True)
    if words[0] == "make":
        run = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return
    name, *arguments = words[2:] if words[1] == "-m" else [words[1].removesuffix(".py"), *words[2:]]
    if name == "pip":
        assert (ROOT / arguments[-1]).is_file()
        return
    script = ROOT / f"{name.replace('.', '/')}.py"
    if name == "pytest":
        script = ROOT / arguments[0]
    assert script.is_file(), f"{script} does not exist"
    if script.parent.name == "tests" or script.stem in ("recurrent", "score_card"):
        return  # no Args to be imported
    module = importlib.import_module(name.replace("/", "."))
    args_class = getattr(module, "Args", None)
    if name == "convert":
        args_class = getattr(module, arguments.pop(0).capitalize())
    if hasattr(module, "ProcgenArgs"):  # the scripts for three suites: a subcommand each
        args_class = getattr(module, f"{arguments.pop(0).capitalize()}Args")
    if "--help" not in arguments:
        args = tyro.cli(args_class, args=arguments)
        assert {*getattr(args, "only", ())} <= {*getattr(module, "CONTESTANTS", ())}  # speed.py's


def test_commands_were_found():
    assert len(COMMANDS) >= 50
    assert {line.split()[0] for line in COMMANDS.values()} == {"python", "make"}


def anchors(path):
    """The fragments by which GitHub links to a document's headings."""
    text = re.sub(r"(?ms)^```.*?^```$", "", path.read_text())
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_is_there(path):
    """Targets of relative links and images, headings too; a name.py in `code`, in any folder."""
    text = path.read_text()
    for target, fragment in re.findall(r"\]\((?![a-z]+:)([^)\s#]*)(?:#([^)\s]+))?\)", text):
        file = path.parent / target if target else path
        assert file.exists(), target
        assert not fragment or fragment in anchors(file), f"{target}#{fragment}"
    here = {p.name for p in ROOT.glob("*.py")} | {p.name for p in ROOT.glob("[a-z]*/*.py")}
    named = {name.split("/")[-1] for name in re.findall(r"`([\w/]+\.py)`", text)}
    assert named <= here, named - here
    assert "$$" not in text  # GitHub's Markdown eats backslashes there, and none in a math fence


def test_the_index_has_every_page():
    index = (ROOT / "docs/README.md").read_text()
    pages = {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}
    assert [page for page in pages if f"]({page})" not in index] == []


@pytest.mark.parametrize("folder", [".", "experiments", "benchmarks"])
def test_pages_that_code_names_are_there(folder):
    sources = "".join(path.read_text() for path in (ROOT / folder).glob("*.py"))
    pages = {*re.findall(r"docs/\w+\.md", sources)}
    assert not [page for page in pages if not (ROOT / page).exists()]


def test_the_demos_fractions_are_those_of_its_runs():
    """README quotes one number per seed, from the result.json files that are committed."""
    paths = [ROOT / f"experiments/demo/seed-{seed}.json" for seed in range(100, 600, 100)]
    results = [json.loads(path.read_text()) for path in paths]
    fractions = " / ".join(f"{result['fraction_of_teacher']:.3f}" for result in results)
    assert fractions in read(ROOT / "README.md")
    assert [result["args"]["seed"] for result in results] == [100, 200, 300, 400, 500]


def tables(path):
    """Tables of a Markdown file, each its lines as they stand, by their first line."""
    return {
        table[0]: table
        for table in map(str.splitlines, re.findall(r"(?:^\|.*\n)+", path.read_text(), re.M))
    }


def test_published_tables_are_the_reports():
    """A table that the report makes is in the docs to the character."""
    made, published = {}, {}
    for path in RESULTS.glob("*.md"):
        made |= tables(path)
    for path in ROOT.glob("docs/results*.md"):
        published |= tables(path)
    assert len(made.keys() & published.keys()) >= 6
    for header in made.keys() & published.keys():
        assert published[header] == made[header]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(path, header):
    """The rows, as lists of cells, of the table in a document whose first cell is `header`."""
    found = [lines for first, lines in tables(path).items() if cells(first)[0] == header]
    assert len(found) == 1, (path, header, len(found))
    return [cells(line) for line in found[0][2:]]


FORMS = ["Equation 2", "r detached", "student-distill"]  # the report's names, left to right


def of_gradient(student, form, digits):
    """A cell of the pages, `fraction · steps to 90 %`, from the table of the study gradient."""
    found = [r for r in rows(RESULTS / "gradient.md", "student") if r[:2] == [student, form]]
    if not found:
        return "–"
    fraction, steps = found[0][3].split()[0], found[0][4].split(" ± ")[0].split(" (")[0]
    if not steps.startswith("never"):
        steps = f"{float(steps.removesuffix(' M')):.{digits}f} M"
    return f"{float(fraction):.{digits}f} · {steps}"


def test_the_readmes_results_are_the_reports():
    for task, *found, paper in rows(ROOT / "README.md", "task"):
        assert found == [of_gradient(f"{task}, smaller", form, 2) for form in FORMS]
        teacher, _, _, smaller_ppd, *_ = paper_tables.TABLE_5[task]
        assert paper == f"{smaller_ppd / teacher:.2f}"


def test_the_readmes_figure_shows_what_the_runs_scored():
    """Its first panel: steps and heights of the teacher's own line, and the students' range."""
    grid, points = stats.make_grid(*report.read_tables(RESULTS))
    axes = curves.draw_readme(grid, points).axes[0]
    teacher = json.loads((ROOT / "teachers/Hopper-v4.json").read_text())
    scores = [mean / teacher["score"]["mean"] for _, mean, _ in teacher["evaluations"][:4]]
    _, students, _, own, _ = axes.lines
    assert [*own.get_xdata()] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert [*own.get_ydata()] == pytest.approx(scores, rel=1e-3)
    forms = (grid["study"] == "gradient") & (grid["env_id"] == "Hopper-v4")
    runs = grid[forms & (grid["size"] == "smaller") & grid["ratio_gradient"].eq(False)]
    first = points[points["row"].isin(runs.index)].dropna(subset=["evaluation"])
    first = first.groupby("row")["evaluation_fraction"].first()
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert students.get_xdata()[0] == pytest.approx(0.1) and len(first) == 5
    assert students.get_ydata()[0] == pytest.approx(first.mean())
    assert first.min() == pytest.approx(heights.min())
    notes = [text.get_text() for panel in axes.figure.axes for text in panel.texts]
    for label, of_line in curves.lines_of_the_readme(grid, "Hopper-v4").items():
        (note,) = [note for note in notes if note.startswith(label)]
        assert f"{of_line['seed'].nunique()} seed" in note


def test_the_table_of_the_ratios_gradient_is_the_reports():
    found = rows(ROOT / "docs/ratio_gradient.md", "student")
    made = rows(RESULTS / "gradient.md", "student")
    assert [r[0] for r in found] == list(dict.fromkeys(r[0] for r in made))
    for student, seeds, *values in found:
        assert values == [of_gradient(student, form, 3) for form in FORMS]
        assert {str(len(r[2].split(","))) for r in made if r[:2] == [student, FORMS[1]]} == {seeds}


def test_the_table_of_other_peoples_teachers_is_the_reports():
    (made,) = tables(RESULTS / "zoo.md").values()
    assert tables(ROOT / "docs/ratio_gradient.md")[made[0]] == made


def test_the_table_of_lstm_students_is_the_reports():
    made = {(r[0], r[1]): r[4] for r in rows(RESULTS / "partial.md", "environment")}
    page = ROOT / "docs/ppd_lstm.md"
    header = "fraction of the teacher's score ± standard error over 3 seeds"
    (first,) = [line for line in tables(page) if cells(line)[0] == header]
    for student, *values in rows(page, header):
        assert values == [made[task, student] for task in cells(first)[1:]]


def test_the_table_of_studies_is_that_of_the_runs():
    """docs/reproduce.md: finished runs and their hours."""
    runs = list(csv.DictReader((RESULTS / "runs.csv").read_text().splitlines()))
    found = rows(ROOT / "docs/reproduce.md", "study")
    assert {row[0].strip("`") for row in found} == studies.STUDIES.keys()
    for study, _, total, finished, hours, _ in found:
        of_it = [run for run in runs if run["study"] == study.strip("`")]
        count = total if finished.startswith("all") else re.match(r"\d+", finished)[0]
        assert int(count) == len(of_it), study
        assert not of_it or hours == f"{sum(float(run['hours']) for run in of_it):.1f}", study


def test_the_readme_names_every_script_and_where_the_method_ends():
    readme = (ROOT / "README.md").read_text()
    named = {
        n for row in rows(ROOT / "README.md", "script") for n in re.findall(r"\w+\.py", row[0])
    }
    assert named == {path.name for path in ROOT.glob("*.py")}
    (short, long) = re.findall(r"first (\d+) lines \(LSTM, several teachers: (\d+)\)", readme)[0]
    for name in named - {"evaluate.py", "convert.py"}:
        places = {getattr(n, "name", ""): n for n in ast.parse((ROOT / name).read_text()).body}
        method = places.get("learn", places["train"])
        variant = name in ("ppd_mujoco_lstm.py", "ppd_mujoco_multi.py")
        assert method.end_lineno <= int(long if variant else short), name


SCRIPT_PAGES = ["ppd", "ppd_lstm", "ppd_multi", "baselines", "ppo_teacher"]


@pytest.mark.parametrize("page", [f"docs/{name}.md" for name in SCRIPT_PAGES])
def test_pages_of_scripts_have_one_template_and_name_what_is_there(page):
    text = (ROOT / page).read_text()
    template = ["Usage", "What it computes", "Implementation details", "Logged metrics", "Results"]
    headings = re.findall(r"(?m)^## (.+)$", text)
    assert [heading for heading in headings if heading in template] == template
    source = "".join(path.read_text() for path in ROOT.glob("*.py"))
    details = text[text.index("## Implementation details") : text.index("## Logged metrics")]
    names = re.findall(r"`([A-Za-z_]+(?:\.[a-z_]+)?)`", re.sub(r"(?ms)^```.*?^```$", "", details))
    assert names
    for name in names:
        assert all(re.search(rf"\b{part}\b", source) for part in name.split(".")), name


@pytest.mark.parametrize("name", ["README.md", "docs/reading.md"])
def test_quoted_code_is_the_scripts(name):
    """Each block's lines stand in ppd_mujoco.py in this order; there may be others between."""
    quoted = blocks(ROOT / name, "python")
    assert quoted
    for block in quoted:
        script = map(str.strip, (ROOT / "ppd_mujoco.py").read_text().splitlines())
        lines = list(filter(None, map(str.strip, block.splitlines())))
        assert [line for line in lines if line not in script] == []  # `in` consumes `script`


def test_what_the_walk_names_is_in_the_script():
    prose = re.sub(r"(?ms)^```.*?^```$", "", (ROOT / "docs/reading.md").read_text())
    names = set(re.findall(r"[a-zA-Z]\w*", " ".join(re.findall(r"`([^`]+)`", prose))))
    assert len(names) >= 30
    script = (ROOT / "ppd_mujoco.py").read_text()
    assert [name for name in names if name not in script] == []


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
def test_code_for_readers_runs(tmp_path, monkeypatch):
    """The Python of docs/deploy.md, and a teacher that is written by hand."""
    (tmp_path / "teachers").symlink_to(ROOT / "teachers")
    monkeypatch.chdir(tmp_path)
    convert, lstm = importlib.import_module("convert"), importlib.import_module("ppd_mujoco_lstm")
    onnx, with_lstm, use = blocks(ROOT / "docs/deploy.md", "python")
    exec(use, names := {})
    assert names["env"].action_space.contains(names["action"])
    names["env"].close()
    convert.export_student(convert.Export("teachers/Hopper-v4.safetensors", "student.onnx"))
    exec(onnx, names)
    assert names["action"].shape == names["mean"].shape == names["std"].shape == (1, 3)
    lstm.train(lstm.Args(total_timesteps=1, num_envs=1, eval_every=0, episodes=1, run_dir="run"))
    convert.export_student(convert.Export("run/agent.safetensors", "lstm.onnx"))
    exec(with_lstm, names)
    assert names["actions"].shape == (1, 3) and names["h"].shape == (1, 1, 256)

    _, write = blocks(ROOT / "docs/bring_your_teacher.md", "python")
    exec(write, names)
    evaluate = importlib.import_module("evaluate")
    args = evaluate.Args(("mine.safetensors",), episodes=1)
    assert evaluate.score_checkpoint("mine.safetensors", args)[1] == "Hopper-v4"


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
def test_the_environment_with_a_time_feature_is_one(tmp_path, monkeypatch):
    """docs/bring_your_teacher.md: through `--env-id zoo:ZooHopper-v4`, and back in time."""
    module, _ = blocks(ROOT / "docs/bring_your_teacher.md", "python")
    (tmp_path / "zoo.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    script = importlib.import_module("ppd_mujoco")
    env = script.make_mujoco_env("zoo:ZooHopper-v4")
    obs, _ = env.reset(seed=0)
    assert obs.shape == env.observation_space.shape == (12,) and obs[-1] == 1
    for _ in range(3):
        obs, *_ = env.step(env.action_space.sample())
    assert obs[-1] == 1 - 3 / 1000
    assert env.reset(seed=0)[0][-1] == 1


def test_the_tutorials_python_has_real_arguments():
    (block,) = blocks(ROOT / "docs/tutorial.md", "python")
    (call,) = [n for n in ast.walk(ast.parse(block)) if getattr(n, "keywords", None)]
    script = importlib.import_module("ppd_mujoco")
    script.Args(**{k.arg: ast.literal_eval(k.value) for k in call.keywords})
    keys = re.findall(r'result\["(\w+)"\]', block)
    assert keys == ["score", "teacher_score"]
