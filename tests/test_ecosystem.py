"""What surrounds the scripts: lists of requirements, make spread, CI's files, the notebook."""

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys

import copies
import inline_metadata
import nbclient
import nbformat
import pytest
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
PARTS = ["requirements-mujoco.txt", "requirements-atari.txt", "requirements-procgen.txt"]
REQUIREMENT_FILES = [*PARTS, "requirements-convert.txt", "experiments/requirements.txt"]
REQUIREMENT_FILES.append("requirements-dev.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
THE_STANDARDS = r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$"  # from PEP 723


def parse(lines) -> list[str]:
    """Requirements in one spelling. Raises InvalidRequirement."""
    return [str(Requirement(line)) for line in lines]


def lines(name: str) -> list[str]:
    """The lines of a requirement file that are not comments."""
    text = re.sub(r"(?m)(^| )#.*$", "", (ROOT / name).read_text())
    return [line.strip() for line in text.splitlines() if line.strip()]


def load_yaml(name: str):
    return YAML(typ="safe").load((ROOT / name).read_text())


# ------------------------------------------------------------------------------- Requirements
def test_requirements_are_the_parts():
    assert lines("requirements.txt") == ["-c constraints.txt", *(f"-r {name}" for name in PARTS)]
    for name in REQUIREMENT_FILES:
        for line in parse(lines(name)):
            assert re.fullmatch(r"[\w\[\]-]+==[\w.]+(; .+)?", line), (name, line)


def test_pyproject_reads_the_requirement_files():
    """As setuptools does: whole files, in which it knows neither -r nor -c."""
    extras = PROJECT["tool"]["setuptools"]["dynamic"]["optional-dependencies"]
    read = {name: extra["file"] for name, extra in extras.items()}
    assert PROJECT["tool"]["setuptools"]["dynamic"]["dependencies"]["file"] == [PARTS[0]]
    assert read == {
        "atari": ["requirements-atari.txt"],
        "procgen": ["requirements-procgen.txt"],
        "convert": ["requirements-convert.txt"],
        "experiments": ["experiments/requirements.txt"],
        "dev": REQUIREMENT_FILES[1:],
    }
    assert PROJECT["project"]["dynamic"] == ["dependencies", "optional-dependencies"]


def inline(source: str) -> dict:
    """The script's block, read as the standard says."""
    (found,) = re.finditer(THE_STANDARDS, source)
    return tomllib.loads(re.sub(r"(?m)^# ?", "", found["content"]))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_scripts_block_has_the_requirements_of_what_it_imports(name):
    source = (ROOT / name).read_text()
    block = inline(source)
    assert source.rstrip().endswith("# ///")
    assert block["requires-python"] == PROJECT["project"]["requires-python"]
    known = {line for file in REQUIREMENT_FILES for line in parse(lines(file))}
    assert set(parse(block["dependencies"])) <= known
    inside = {canonicalize_name(Requirement(line).name) for line in block["dependencies"]}
    imported = inline_metadata.imported(source) - {"gym_notices"}  # procgen's gym brings it
    imported -= set(sys.stdlib_module_names)
    imported |= {"tensorboard"} if "torch.utils.tensorboard" in source else set()
    imported |= {"ale_py", "procgen"} if name in ("evaluate.py", "convert.py") else set()
    imported = {canonicalize_name(module) for module in imported}  # named as their distributions
    assert imported <= inside
    for simulator in ("ale-py", "procgen"):
        assert (simulator in inside) == (simulator in imported)
    assert "mujoco" in inside


def test_blocks_are_as_the_requirement_files(capsys):
    assert inline_metadata.main(["--check"]) == 0, capsys.readouterr().out


def test_make_inline_writes_what_differs(tmp_path, monkeypatch, capsys):
    for name in REQUIREMENT_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr(inline_metadata, "ROOT", tmp_path)
    script = tmp_path / "ppd_atari.py"
    script.write_text("import ale_py\n\nprint()\n")
    assert inline_metadata.main(["--check"]) == 1
    assert script.read_text() == "import ale_py\n\nprint()\n"
    assert inline_metadata.main([]) == 0 and inline_metadata.main(["--check"]) == 0
    written = script.read_text()
    assert written.startswith("import ale_py\n\nprint()\n\n\n# What")
    assert parse(inline(written)["dependencies"]) == parse([*lines(PARTS[0]), *lines(PARTS[1])])
    atari = tmp_path / "requirements-atari.txt"
    atari.write_text(atari.read_text().replace("ale-py==", "ale-py==9."))
    assert inline_metadata.main(["--check"]) == 1
    assert inline_metadata.main([]) == 0
    assert script.read_text() == written.replace("ale-py==", "ale-py==9.")


def pins() -> dict[str, list[Requirement]]:
    found = {}
    for line in lines("constraints.txt"):
        pin = Requirement(line)
        found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def test_constraints_pin_all_that_the_requirements_bring_along():
    """For this Python and machine, as far as it is installed; setuptools is left to Python."""
    waiting = [Requirement(line) for name in REQUIREMENT_FILES for line in lines(name)]
    waiting = [requirement for requirement in waiting if applies(requirement)]
    pinned, seen = pins(), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, *sorted(requirement.extras)) in seen or name == "setuptools":
            continue
        seen.add((name, *sorted(requirement.extras)))
        (pin,) = [pin for pin in pinned.get(name, []) if applies(pin)]
        version = str(pin.specifier).removeprefix("==")
        assert requirement.specifier.contains(version, prereleases=True), (requirement, version)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # the CPU's torch brings no CUDA
        for line in distribution.requires or []:
            needed = Requirement(line)
            if any(applies(needed, extra) for extra in ["", *requirement.extras]):
                waiting.append(needed)
    assert len(seen) > 80


# ------------------------------------------------------------------------------- make spread
@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Copies of three training scripts; that of ppd_mujoco.py has changed."""
    for name in ("ppd_mujoco", "ppd_atari", "ppo_teacher_mujoco"):
        (tmp_path / f"{name}.py").write_text((ROOT / f"{name}.py").read_text())
    monkeypatch.setattr(copies, "ROOT", tmp_path)
    source = (ROOT / "ppd_mujoco.py").read_text()
    for old, new in [
        ("def score_text(", "# A comment above it.\ndef score_text("),
        ("class UserError(Exception):\n", "class UserError(Exception):\n    new = True\n\n"),
    ]:
        assert source.count(old) == 1
        source = source.replace(old, new)
    source = re.sub(r"( +clip_coef: )float = ([\d.]+)  # .*", r"\1int = 7  # the range", source)
    (tmp_path / "ppd_mujoco.py").write_text(source)
    return tmp_path


def spread(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["copies.py", *arguments])
    return copies.main(), "".join(capsys.readouterr())


def test_spread_copies_a_change_to_all_scripts_that_share_it(clone, monkeypatch, capsys):
    before = copies.training_scripts()
    assert spread(monkeypatch, capsys)[0] == 1  # the drift
    names = ["score_text", "UserError", "clip_coef"]
    status, out = spread(monkeypatch, capsys, "ppd_mujoco.py", *names)
    assert status == 0 and [line.split(":")[0] for line in out.splitlines()] == names
    assert spread(monkeypatch, capsys) == (0, f"no drift between {len(before)} scripts\n")
    after = copies.training_scripts()
    assert after["ppd_mujoco"] == before["ppd_mujoco"]
    for name in after.keys() - {"ppd_mujoco"}:
        assert after[name].count("# A comment above it.\ndef score_text(") == 1
        assert after[name].count("    new = True\n") == 1
        default = dict(re.findall(r"(clip_coef: )float( = [\d.]+)  #", before[name]))
        for value in default.values():  # the other script's own value stays
            assert f"    clip_coef: int{value}  # the range\n" in after[name]
        undone = (
            after[name].replace("# A comment above it.\n", "").replace("    new = True\n\n", "")
        )
        undone = undone.replace("clip_coef: int", "clip_coef: float")
        assert re.sub("(clip_coef.*#).*", r"\1", undone) == re.sub(
            "(clip_coef.*#).*", r"\1", before[name]
        )
    assert "already" in spread(monkeypatch, capsys, "ppd_mujoco.py", *names)[1]
    assert copies.training_scripts() == after


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["ppd_mujoco.py", "score_text", "no_such_name"], "has no no_such_name"),
        (["ppd_mine.py", "score_text"], "ppd_mine.py is not one of"),
        (["ppd_mujoco.py", "score_text", "train"], "train differs for a reason"),
        (
            ["ppd_mujoco.py", "MujocoAgent", "--to", "ppd_atari.py"],
            "no MujocoAgent in ppd_atari.py",
        ),
    ],
)
def test_spread_writes_nothing_where_a_name_cannot_be_copied(
    clone, monkeypatch, capsys, arguments, reason
):
    before = copies.training_scripts()
    status, out = spread(monkeypatch, capsys, *arguments)
    assert status == 2 and reason in out and out.count("\n") == 1
    assert copies.training_scripts() == before


def test_spread_to_one_script_takes_names_that_may_differ(clone, monkeypatch, capsys):
    before = copies.training_scripts()
    words = ["ppd_mujoco.py", "policy_kl", "--to", "ppd_atari.py"]
    assert spread(monkeypatch, capsys, *words)[0] == 0
    after = copies.training_scripts()
    assert [name for name in after if after[name] != before[name]] == ["ppd_atari"]
    bodies = [copies.definitions(after[name])["policy_kl"] for name in ("ppd_mujoco", "ppd_atari")]
    assert bodies[0] == bodies[1]


# ------------------------------------------------------------------------------- Files for others
def validate(schema: str, path) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    return subprocess.run(words, capture_output=True, text=True)


SCHEMAS = {
    ".github/workflows/test.yml": "vendor.github-workflows",
    "CITATION.cff": "vendor.citation-file-format",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_files_follow_their_schema(name, tmp_path):
    """And a misspelt key is seen."""
    run = validate(SCHEMAS[name], ROOT / name)
    assert run.returncode == 0, run.stdout + run.stderr
    key = {"test.yml": "runs-on", "CITATION.cff": "authors"}[name.split("/")[-1]]
    text = (ROOT / name).read_text()
    assert text.count(f"{key}:") >= 1
    (tmp_path / "broken.yml").write_text(text.replace(f"{key}:", f"{key}-:"))
    assert validate(SCHEMAS[name], tmp_path / "broken.yml").returncode == 1


def test_the_workflow_runs_ci():
    (job,) = load_yaml(".github/workflows/test.yml")["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.10", "3.12"]
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    (cached,) = [step["with"] for step in job["steps"] if "cache" in step.get("with", {})]
    for pattern in cached["cache-dependency-path"].split():
        assert list(ROOT.glob(pattern)), pattern


def test_pre_commit_calls_what_is_there():
    (repository,) = load_yaml(".pre-commit-config.yaml")["repos"]
    entries = {hook["id"]: shlex.split(hook["entry"]) for hook in repository["hooks"]}
    assert entries.keys() == {"ruff-format", "ruff-check", "copies", "inline"}
    for name, (python, *words) in entries.items():
        assert python == ".venv/bin/python"
        if words[0] != "-m":
            assert (ROOT / words[0]).is_file(), name
    for hook in repository["hooks"]:
        assert "files" not in hook or re.search(hook["files"], "ppd_mujoco.py")


def test_version_and_date_are_the_same_everywhere():
    version, date = re.findall(r"(?m)^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text())[0]
    citation = load_yaml("CITATION.cff")
    assert PROJECT["project"]["version"] == citation["version"] == version
    assert citation["date-released"] == date


def test_what_contributing_says_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    commands = re.findall(
        r"(?m)^(make .+?)(?: #.*)?$", "".join(re.findall(r"(?ms)```bash(.*?)```", text))
    )
    commands += re.findall(r"`(make [^`]+)`", text)
    assert len(commands) > 10
    for line in commands:
        words = ["make", "-n", "PYTHON=python", *shlex.split(line)[1:]]
        run = subprocess.run(words, cwd=ROOT, capture_output=True)
        assert run.returncode == 0, (line, run.stderr)
    files = re.findall(r"\]\(([^):]+)\)", text) + re.findall(r"`([\w/.-]+/[\w.-]*)`", text)
    assert len(files) > 3
    assert not [name for name in files if not (ROOT / name).exists() and "venv" not in name]


# ------------------------------------------------------------------------------- The notebook
def test_the_notebook_runs(tmp_path, monkeypatch):
    """docs/colab.ipynb in a real kernel, with shorter runs; the last cells need OpenGL."""
    notebook = nbformat.read(ROOT / "docs/colab.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) == 10
    assert not [cell for cell in notebook.cells if cell.get("outputs")]
    (settings,) = [cell for cell in notebook.cells if "STEPS, EPISODES = " in cell.source]
    settings.source = settings.source.replace("100_000, 10", "2_304, 2")
    assert "2_304, 2" in settings.source
    for path in [*ROOT.glob("*.py"), ROOT / "teachers"]:
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "docs").mkdir()
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "docs")}}
    )
    skip = None
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        printed = "".join(
            out.get("text", "") for c in notebook.cells for out in c.get("outputs", [])
        )
        if "cannot draw here" not in printed:
            raise
        skip = error
    outputs = [
        "".join(out.get("text", "") or str(out.get("data", "")) for out in cell.get("outputs", []))
        for cell in notebook.cells
    ]
    score = r"student -?[\d.]+ ± [\d.]+ · teacher 37[\d.]+ ± [\d.]+"
    assert re.search(score, outputs[4]), outputs[4]  # %run
    assert re.search(score, outputs[5]), outputs[5]  # train(Args(…)), after it
    assert "image/png" in outputs[7]
    (runs,) = (tmp_path / "runs").iterdir()
    results = {
        path.parent.name: json.loads(path.read_text()) for path in runs.glob("*/result.json")
    }
    weights = {name: result["args"]["distill_lambda"] for name, result in results.items()}
    assert weights == {"with_teacher": 1.0, "without_teacher": 0.0}
    if skip:
        pytest.skip("no OpenGL on this machine")
    assert "Hopper-v4" in outputs[8] and "video/mp4" in outputs[9]
