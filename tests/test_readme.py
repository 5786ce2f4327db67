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
    """What a reader is told to type: indented lines, and `code` within a sentence."""
    found = re.findall(
        r"(?m)^    (?:\$ )?((?:python|make) .*)$|`((?:python|make) [^`]+)`", read(path)
    )
    for line in map("".join, found):
        if "COPY" not in line:  # a file that the reader makes
            yield line.replace("σ", "0.05")


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
    name, *arguments = words[2:] if words[1] == "-m" else [words[1].removesuffix(".py"), *words[2:]]
    script = ROOT / f"{name.replace('.', '/')}.py"
    if name == "pytest":
        script = ROOT / arguments[0]
    assert script.is_file(), f"{script} does not exist"
    if script.parent.name in ("tests", "benchmarks") or name == "experiments.score_card":
        return  # no Args to be imported
    module = importlib.import_module(name.replace("/", "."))
    args_class = module.Args
    if hasattr(module, "ProcgenArgs"):  # the scripts for three suites: a subcommand each
        args_class = getattr(module, f"{arguments.pop(0).capitalize()}Args")
    if "--help" not in arguments:
        tyro.cli(args_class, args=arguments)


def test_commands_were_found():
    assert len(COMMANDS) >= 50
    assert {line.split()[0] for line in COMMANDS.values()} == {"python", "make"}


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
    published = [tables(ROOT / name) for name in ("README.md", "docs/results.md")]
    assert [len(made.keys() & found.keys()) for found in published] == [1, 4]
    for found in published:
        for header in made.keys() & found.keys():
            assert found[header] == made[header]
