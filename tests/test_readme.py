"""What README.md, docs and docstrings tell a reader to type or open is there."""

import ast
import importlib
import json
import re
import shlex
import subprocess

import pytest
import tyro
from helpers import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *ROOT.glob("teachers/*.md")]


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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_is_there(path):
    """Targets of relative links and images; a name.py in `code`, wherever it lies."""
    text = path.read_text()
    targets = re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", text)
    assert not [target for target in targets if not (path.parent / target).exists()]
    here = {p.name for p in ROOT.glob("*.py")} | {p.name for p in ROOT.glob("[a-z]*/*.py")}
    named = {name.split("/")[-1] for name in re.findall(r"`([\w/]+\.py)`", text)}
    assert named <= here, named - here
    assert "$$" not in text  # GitHub's Markdown eats backslashes there, and none in a math fence


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
    """A table that the report makes stands in README and docs to the character."""
    made = {}
    for path in ROOT.glob("experiments/results/*.md"):
        made |= tables(path)
    published = tables(ROOT / "docs/results.md")
    assert len(made.keys() & published.keys()) == 6
    for header in made.keys() & published.keys():
        assert published[header] == made[header]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_readmes_three_rows_are_the_reports_last_two():
    """README's row of a method: ours and the paper's, by size, over all four environments."""
    lines = (ROOT / "experiments/results/mujoco.md").read_text().splitlines()
    (header,) = [cells(line) for line in lines if line.startswith("| environment")]
    ours, papers = (dict(zip(header, cells(line), strict=True)) for line in lines[-2:])
    assert (ours["environment"], ours[""], papers[""]) == ("all four", "ours", "paper")
    rows = [cells(line) for line in (ROOT / "README.md").read_text().splitlines()]
    for name, method in [("teacher-distill", "td"), ("student-distill", "sd"), ("PPD", "ppd")]:
        columns = [f"{size} {method}" for size in ("smaller", "same", "larger")]
        row = [name, *(value for column in columns for value in (ours[column], papers[column]))]
        assert rows.count(row) == 1, row


def test_the_readme_knows_how_long_the_scripts_are():
    """Within 25 lines, so that a number is as good as the reader needs and edits are free."""
    rows = [cells(line) for line in (ROOT / "README.md").read_text().splitlines()]
    said = {}
    for row in rows:
        names = re.findall(r"`(\w+\.py)`", row[0])
        if names and len(row) > 2:
            said |= dict(zip(names, map(int, row[1].split(",")), strict=True))
    assert said.keys() == {path.name for path in ROOT.glob("*.py")}
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in said}
    assert {name: lines[name] for name in said if abs(lines[name] - said[name]) > 25} == {}
    (end,) = map(int, re.findall(r"first (\d+) lines", (ROOT / "README.md").read_text()))
    for name in said.keys() - {"evaluate.py", "convert.py", "ppd_mujoco_lstm.py"}:
        definitions = ast.parse((ROOT / name).read_text()).body
        (train,) = [node for node in definitions if getattr(node, "name", None) == "train"]
        assert train.end_lineno <= end + 5, (name, train.end_lineno)


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
    """The Python of docs/ppd.md; what it writes is a teacher."""
    (tmp_path / "teachers").symlink_to(ROOT / "teachers")
    monkeypatch.chdir(tmp_path)
    use, write = blocks(ROOT / "docs/ppd.md", "python")
    exec(use, names := {})
    assert names["env"].action_space.contains(names["action"])
    names["env"].close()
    exec(write, names)
    evaluate = importlib.import_module("evaluate")
    args = evaluate.Args(("mine.safetensors",), episodes=1)
    assert evaluate.score_checkpoint("mine.safetensors", args)[1] == "Hopper-v4"
