"""One name, one body: what two scripts share is the same text. `make copies` prints the drift."""

import ast
import builtins
import difflib
import sys

import pytest
from helpers import ROOT, SCRIPTS

EXCEPTIONS = {"Args", "train", "main"}
NEIGHBOURS = [
    (f"ppo_teacher_{suite}", f"ppd_{suite}")
    for suite in ("atari", "mujoco", "procgen")
    if f"ppo_teacher_{suite}" in SCRIPTS and f"ppd_{suite}" in SCRIPTS
]


def read(name: str) -> str:
    return (ROOT / f"{name}.py").read_text()


def definitions(source: str) -> dict[str, str]:
    """Top-level classes and functions, each with the comments and decorators above it."""
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
            while start and lines[start - 1].startswith("#"):
                start -= 1
            found[node.name] = "\n".join(lines[start : node.end_lineno])
    return found


def args_fields(source: str) -> dict[str, str]:
    """Each field of Args as its type and docstring."""
    body = next(n for n in ast.parse(source).body if getattr(n, "name", "") == "Args").body
    fields = {}
    for node, after in zip(body, body[1:], strict=False):
        if isinstance(node, ast.AnnAssign):
            text = after.value.value if isinstance(after, ast.Expr) else "(no docstring)"
            fields[node.target.id] = f"{ast.unparse(node.annotation)}\n{text}"
    return fields


def drift(sources: dict[str, str], parse) -> list[str]:
    """A diff for each name of which two scripts have different texts."""
    seen, found = {}, []
    for script, source in sources.items():
        for name, text in parse(source).items():
            if name in EXCEPTIONS:
                continue
            first, reference = seen.setdefault(name, (script, text))
            if text != reference:
                names = f"{first}.py: {name}", f"{script}.py: {name}"
                lines = reference.splitlines(), text.splitlines()
                found.append("\n".join(difflib.unified_diff(*lines, *names, lineterm="")))
    return found


def all_drift() -> list[str]:
    sources = {script: read(script) for script in SCRIPTS}
    return drift(sources, definitions) + drift(sources, args_fields)


def globals_read(source: str) -> set[str]:
    """Names that functions and classes take from module-level assignments."""
    tree = ast.parse(source)
    assigned = {
        name.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }
    assigned -= set(dir(builtins))
    return {
        name.id
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load) and name.id in assigned
    } | {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}


def changed_lines(a: str, b: str) -> int:
    """Lines that `diff a b` marks with < or >."""
    diff = difflib.unified_diff(a.splitlines(), b.splitlines(), n=0, lineterm="")
    return sum(line[0] in "+-" and line[:3] not in ("+++", "---") for line in diff)


def test_shared_names_have_one_body():
    found = all_drift()
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_globals(name):
    assert not globals_read(read(name))


@pytest.mark.parametrize(("teacher", "student"), NEIGHBOURS)
def test_neighbours_differ_little(teacher, student):
    assert changed_lines(read(teacher), read(student)) <= 150


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda path: path.name)
def test_lines_fit_side_by_side(path):
    long = [n for n, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 100]
    assert not long, f"{path.name}: lines {long} are longer than 100"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_argument_is_documented(name):
    fields = args_fields(read(name))
    assert len(fields) > 20
    assert not [field for field, text in fields.items() if "(no docstring)" in text]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return -(-self", "return -(-1 * self"),  # Args is an exception: no drift
        ("# δ_t = r_t", "# d_t = r_t"),
        ("running = deltas[t]", "running = 1 * deltas[t]"),
        ("(), 0, unbiased=False)", "(), 0)"),
        ("@torch.no_grad()\n    def act", "def act"),
        ('"""clip range ε', '"""range ε'),
        ("clip_coef: float", "clip_coef: int"),
    ],
)
def test_drift_is_seen(old, new):
    """The checks above can fail: a changed comment, factor, decorator or type is seen."""
    source = read("ppo_teacher_mujoco")
    assert source.count(old) == 1
    sources = {"one": source, "two": source.replace(old, new)}
    found = drift(sources, definitions) + drift(sources, args_fields)
    assert bool(found) == ("self" not in old)


def test_globals_are_seen():
    assert globals_read("import os\nA = 1\n\ndef f():\n    return A, os") == {"A"}
    assert globals_read("def f():\n    A = 1\n    return A, __file__") == set()


if __name__ == "__main__":
    found = all_drift()
    print("\n\n".join(found) or f"no drift between {len(SCRIPTS)} scripts")
    sys.exit(bool(found))
