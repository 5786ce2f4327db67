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
    """A document's text; of a script, its docstring with the commands as a fenced block."""
    text = path.read_text()
    if path.suffix == ".py":
        text = re.sub(r"(?m)^    (python .*)$", r"```\n\1\n```", ast.get_docstring(ast.parse(text)))
    return text


def commands(path):
    """The python and make lines of every fenced block, continued lines joined."""
    for block in re.findall(r"(?ms)^ *```[a-z]*\n(.*?)^ *```", read(path)):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"^\s*(\$ )?(time )?(\.venv/bin/)?", "", line)
            if re.match(r"python \S+\.py|make( |$)", line):
                yield line


def links(path):
    """Relative targets of links and images."""
    for target in re.findall(r"\]\(([^)\s]+)", path.read_text()):
        if not re.match(r"[a-z]+:|#", target):
            yield target.split("#")[0]


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
    script = ROOT / words[1]
    assert script.is_file(), f"{words[1]} does not exist"
    if script.parent == ROOT:
        module, arguments = importlib.import_module(script.stem), words[2:]
        args_class = module.Args
        if hasattr(module, "ProcgenArgs"):  # the scripts for three suites: a subcommand each
            args_class = getattr(module, f"{arguments.pop(0).capitalize()}Args")
        tyro.cli(args_class, args=arguments)


def test_commands_were_found():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_exist(path):
    missing = [target for target in links(path) if not (path.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_scripts_named_exist(path):
    """A name.py in `code` is a file of this repository, wherever it lies."""
    here = {p.name for p in ROOT.glob("*.py")} | {p.name for p in ROOT.glob("[a-z]*/*.py")}
    named = {name.split("/")[-1] for name in re.findall(r"`([\w/]+\.py)", path.read_text())}
    assert named <= here, named - here


def test_the_demos_fractions_are_those_of_its_runs():
    """README quotes one number per seed, from the result.json files that are committed."""
    paths = [ROOT / f"experiments/demo/seed-{seed}.json" for seed in range(100, 600, 100)]
    results = [json.loads(path.read_text()) for path in paths]
    fractions = " / ".join(f"{result['fraction_of_teacher']:.3f}" for result in results)
    assert fractions in read(ROOT / "README.md")
    assert [result["args"]["seed"] for result in results] == [100, 200, 300, 400, 500]


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_published_tables_are_the_reports(name):
    """Every row of ours or the paper's stands, to the character, in a table of the report."""
    lines = (ROOT / name).read_text().splitlines()
    rows = {line for line in lines if re.match(r"\|.*\| (ours|paper) \| ", line)}
    made = "\n".join(path.read_text() for path in ROOT.glob("experiments/results/*.md"))
    assert len(rows) >= 10
    assert rows <= set(made.splitlines())
