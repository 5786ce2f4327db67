"""What the training scripts share: list where it differs, or copy a change to all of them.

python tests/copies.py                              # as make copies: a diff for each difference
python tests/copies.py ppd_mujoco.py Run evaluate   # as make spread FROM=… NAMES="Run evaluate"
python tests/copies.py ppd_mujoco.py policy_kl --to ppo_teacher_mujoco.py

A name is that of a class, function or assignment at the top level, or of a field of Args. Of a
field, type and comment are copied; its default value stays. Needs nothing but Python.
"""

import argparse
import ast
import difflib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXCEPTIONS = {"Args", "MujocoArgs", "AtariArgs", "ProcgenArgs", "learn", "train", "main"}
# Torch's own is right for Gaussians; one for categoricals must mind what underflows.
EXCEPTIONS |= {"policy_kl"}
# Fields that are of the suite, and those whose value the paper gives for each script.
EXCEPTIONS |= {"env_id", "device", "torch_threads", "size", "student_size", "eval_every"}
EXCEPTIONS |= {"num_steps", "gamma", "ent_coef"}


def training_scripts() -> dict[str, str]:
    """The text of each script that trains, by its name without `.py`. Raises SyntaxError."""
    found = {}
    for path in sorted([*ROOT.glob("pp[do]_*.py"), *ROOT.glob("*_distill.py")]):
        found[path.stem] = path.read_text()
        ast.parse(found[path.stem], path.name)
    return found


def spans(source: str) -> dict[str, tuple[int, int]]:
    """Lines of each top-level class, function and assignment, from its decorators and comments on.

    A heading, `# ---- Losses`, does not belong to the definition below it.
    """
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            name, starts = node.name, [node.lineno, *(d.lineno for d in node.decorator_list)]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            name, starts = ast.unparse(target), [node.lineno]
        else:
            continue
        start = min(starts) - 1
        while start and lines[start - 1].startswith("#") and lines[start - 1][:5] != "# ---":
            start -= 1
        found[name] = start, node.end_lineno
    return found


def definitions(source: str) -> dict[str, str]:
    """The text of each top-level class, function and assignment."""
    lines = source.splitlines()
    return {name: "\n".join(lines[slice(*span)]) for name, span in spans(source).items()}


def args_nodes(source: str) -> list[ast.AnnAssign]:
    """The fields of Args and of classes like MujocoArgs."""
    return [
        field
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Args")
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    ]


def args_fields(source: str) -> list[tuple[str, str]]:
    """Each field of Args: its name; its type and the comment on its line, which is its help."""
    comments = [line.partition("  # ")[2] for line in source.splitlines()]
    return [
        (node.target.id, f"{ast.unparse(node.annotation)}\n{comments[node.end_lineno - 1]}")
        for node in args_nodes(source)
    ]


def imports(source: str) -> list[tuple[str, str]]:
    """Each imported name and where it is from."""
    return [
        (alias.asname or alias.name, f"{getattr(node, 'module', '')} {alias.name}")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]


def drift(sources: dict[str, str]) -> list[str]:
    """A diff for each name of which two scripts have different texts."""
    found = []
    for parse in (lambda text: definitions(text).items(), args_fields, imports):
        seen = {}
        for script, source in sources.items():
            for name, text in parse(source):
                first, reference = seen.setdefault(name, (script, text))
                if text != reference and name not in EXCEPTIONS:
                    names = f"{first}.py: {name}", f"{script}.py: {name}"
                    lines = reference.splitlines(), text.splitlines()
                    found.append("\n".join(difflib.unified_diff(*lines, *names, lineterm="")))
    return found


def copy_name(source: str, target: str, name: str) -> str | None:
    """The target with this name as it is in the source. None where the target does not have it.

    Raises KeyError where the source does not have it.
    """
    lines, span, shared = target.splitlines(), spans(target).get(name), definitions(source)
    if name in shared:
        if span is None:
            return None
        lines[slice(*span)] = shared[name].splitlines()
    else:
        annotation, comment = dict(args_fields(source))[name].split("\n")
        nodes = [node for node in args_nodes(target) if node.target.id == name]
        for node in reversed(nodes):
            value = node.value and ast.get_source_segment(target, node.value)
            text = f"    {name}: {annotation}" + (f" = {value}" if value else "")
            text += f"  # {comment}" if comment else ""
            lines[node.lineno - 1 : node.end_lineno] = text.splitlines()
        if not nodes:
            return None
    return "\n".join(lines) + "\n"


def spread(origin: str, names: list[str], only: list[str]) -> None:
    """Copy these names from a script to all others that have them, and say what changed.

    Nothing is written where one of the names cannot be copied. Raises ValueError.
    """
    sources = training_scripts()
    origin, only = Path(origin).stem, [Path(path).stem for path in only]
    for script in (origin, *only):
        if script not in sources:
            raise ValueError(f"{script}.py is not one of {', '.join(sources)}")
    changed, report = dict(sources), []
    for name in names:
        if name in EXCEPTIONS and not only:
            raise ValueError(f"{name} differs for a reason; say to which scripts: TO=…")
        having = []
        for script in only or sources.keys() - {origin}:
            try:
                text = copy_name(changed[origin], changed[script], name)
            except KeyError:
                raise ValueError(f"{origin}.py has no {name}") from None
            if text is not None:
                having.append((script, text != changed[script]))
                changed[script] = text
        if not having:
            where = ", ".join(f"{script}.py" for script in only) or "other scripts"
            raise ValueError(f"no {name} in {where}")
        new = sorted(f"{script}.py" for script, differed in having if differed)
        same = len(having) - len(new)
        report.append(f"{name}: copied to {', '.join(new) or 'none'}; {same} had it already")
    for script, text in changed.items():
        if text != sources[script]:
            (ROOT / f"{script}.py").write_text(text)
    print("\n".join(report))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("origin", nargs="?", help="script that has the change")
    parser.add_argument("names", nargs="*", help="what to copy from it; unset: list the drift")
    parser.add_argument("--to", nargs="+", default=[], help="scripts to copy to; unset: all")
    args = parser.parse_args()
    try:
        if args.names:
            spread(args.origin, args.names, args.to)
            return 0
        sources = training_scripts()
        found = drift(sources)
    except (ValueError, SyntaxError) as error:  # ValueError: see `spread`
        print(f"copies: error: {error}", file=sys.stderr)
        return 2
    print("\n\n".join(found) or f"no drift between {len(sources)} scripts")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
