"""One name, one body: what two scripts share is the same text (see copies.py)."""

import ast
import builtins
import difflib
import warnings

import pytest
import tyro
from copies import drift, imports, training_scripts
from helpers import (
    BASELINES,
    PPD_SCRIPTS,
    ROOT,
    RUNS,
    SCRIPTS,
    SUITES,
    VARIANTS,
    args_class,
    load,
    read,
)

# Limits in lines, which protect a reader of the method; the rest of a script has none.
LEARN_LINES, FIRST_LOSS_BY, LEARN_ENDS_BY = 135, 135, 380
VARIANTS_LEARN_LINES, VARIANTS_LEARN_ENDS_BY = 142, 445
NEIGHBOURS_DIFFER = 165


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


def changed_lines(a: str, b: str) -> list[str]:
    """Lines that `diff a b` marks with < or >."""
    diff = difflib.unified_diff(a.splitlines(), b.splitlines(), n=0, lineterm="")
    return [line for line in list(diff)[2:] if line[0] in "+-"]


def test_shared_names_have_one_body():
    assert training_scripts().keys() == set(SCRIPTS)
    found = drift(training_scripts())
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_globals_and_no_script_imports_another(name):
    assert not globals_read(read(name))
    modules = {path.stem for path in ROOT.glob("*.py")} | {"tests", "experiments", "benchmarks"}
    assert not modules & {word for _, origin in imports(read(name)) for word in origin.split()}


@pytest.mark.parametrize("suite", SUITES)
def test_neighbours_differ_little(suite):
    changed = changed_lines(read(f"ppo_teacher_{suite}"), read(f"ppd_{suite}"))
    assert len(changed) <= NEIGHBOURS_DIFFER


def test_the_baselines_differ_in_who_acts_alone():
    """In the docstrings of the file and of `learn`, and in one line of `learn`."""
    texts = [read(name).split('"""', 2)[2] for name in BASELINES]
    found = [line[1:].strip() for line in changed_lines(*texts)]
    assert [line for line in found if not line.startswith('"""')] == [
        "actor = agent  # the student acts, and its episodes are logged",
        "actor = teacher  # the teacher acts, and its episodes are logged",
    ]
    assert len(found) == 4


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_method_comes_first_and_is_short(name):
    source = read(name)
    places = {getattr(node, "name", ""): node for node in ast.parse(source).body}
    losses = [n for n in places if n.endswith("_loss") or n == "compute_gae"]
    assert min(places[loss].lineno for loss in losses) <= FIRST_LOSS_BY
    learn = places["learn"]
    is_variant = name in VARIANTS
    limit = VARIANTS_LEARN_LINES if is_variant else LEARN_LINES
    assert learn.end_lineno - learn.lineno + 1 <= limit
    assert name not in PPD_SCRIPTS or learn.end_lineno <= LEARN_ENDS_BY
    assert not is_variant or learn.end_lineno <= VARIANTS_LEARN_ENDS_BY


@pytest.mark.parametrize(
    ("name", "suite"), [*RUNS, *((name, "mujoco") for name in VARIANTS), ("evaluate", "")]
)
def test_every_flag_has_a_help_text(name, suite):
    """As tyro found it: the comment behind a field, where that stands on the field's own line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the parser as an object
        parser = tyro.extras.get_parser(args_class(load(name), suite))
    helps = {a.dest: str(a.help).partition("(default:")[0].strip() for a in parser._actions}
    assert len(helps) > (20 if suite else 5)
    assert not [flag for flag, text in helps.items() if len(text) < 8]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("is_short = env_name", "is_brief = env_name"),  # Args is an exception: no drift
        ("# δ_t = r_t", "# d_t = r_t"),
        ("running = deltas[t]", "running = 1 * deltas[t]"),
        ("torch.var_mean(obs, 0, unbiased=False)", "torch.var_mean(obs, 0)"),
        ("@torch.no_grad()\n    def act", "def act"),
        ("# clip range ε", "# range ε"),
        ("clip_coef: float", "clip_coef: int"),
        ("from tqdm import tqdm", "from tqdm.auto import tqdm"),
    ],
)
def test_drift_is_seen(old, new):
    """The checks above can fail: a changed comment, factor, decorator, type or import is seen."""
    source = read("ppo_teacher_mujoco")
    assert source.count(old) == 1
    found = drift({"one": source, "two": source.replace(old, new)})
    assert bool(found) == ("is_short" not in old)


def test_globals_are_seen():
    assert globals_read("import os\nA = 1\n\ndef f():\n    return A, os") == {"A"}
    assert globals_read("def f():\n    A = 1\n    return A, __file__") == set()
