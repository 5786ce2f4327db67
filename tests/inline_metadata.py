"""Write the requirements of each top-level script at its end (PEP 723), so that `uv run` works.

python tests/inline_metadata.py             # as make inline: writes what differs, says where
python tests/inline_metadata.py --check     # writes nothing; status 1 where something differs

The requirement files are the source. Needs nothing but Python.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVERY_SCRIPT = "requirements-mujoco.txt"
IMPORTED = {
    "ale_py": "requirements-atari.txt",
    "procgen": "requirements-procgen.txt",
    "onnxruntime": "requirements-convert.txt",
}
NEED_EVERY_SIMULATOR = ("evaluate.py", "convert.py")  # they import the script of a checkpoint
PYTHONS = ">=3.10,<3.14"
HEADING = "# What `uv run` installs; `make inline` writes it from the requirement files."
BLOCK = rf"\n*(?:{HEADING}\n)?# /// script\n(?:#(?: .*)?\n)+?# ///\n"


def imported(source: str) -> set[str]:
    """Packages that are imported anywhere in a script."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def requirements(*names: str) -> list[str]:
    """The lines of requirement files, without comments."""
    lines = "\n".join((ROOT / name).read_text() for name in names).splitlines()
    return [line for line in (line.partition("#")[0].strip() for line in lines) if line]


def requirement_files(script: str, source: str) -> list[str]:
    """The requirement files that hold what a script imports."""
    packages = imported(source)
    if script in NEED_EVERY_SIMULATOR:
        packages |= {"ale_py", "procgen"}
    return [EVERY_SCRIPT, *(IMPORTED[name] for name in IMPORTED if name in packages)]


def with_block(script: str, source: str) -> str:
    """The script with its block at the end, in place of an old one."""
    needed = requirements(*requirement_files(script, source))
    lines = ['    "{}",'.format(line.replace('"', "'")) for line in needed]
    lines = [f'requires-python = "{PYTHONS}"', "dependencies = [", *lines, "]"]
    block = "\n".join([HEADING, "# /// script", *(f"# {line}" for line in lines), "# ///\n"])
    return re.sub(BLOCK, "\n", source).rstrip("\n") + "\n\n\n" + block


def main(arguments: list[str]) -> int:
    scripts = {path: path.read_text() for path in sorted(ROOT.glob("*.py"))}
    new = {path: with_block(path.name, text) for path, text in scripts.items()}
    changed = [path for path in scripts if new[path] != scripts[path]]
    if "--check" not in arguments:
        for path in changed:
            path.write_text(new[path])
    names = ", ".join(path.name for path in changed)
    said = "differ (make inline writes them)" if "--check" in arguments else "written"
    print(f"inline requirements {said}: {names}" if names else "inline requirements: as they were")
    return bool(changed) and "--check" in arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
