"""Ship a finished teacher: `python -m experiments.score_card RUN [RUN …]`.

Copies each run's agent to teachers/<env>.safetensors and its result to teachers/<env>.json, then
writes teachers/README.md anew from all of them.
"""

import json
import shutil
import sys
from pathlib import Path

TEACHERS = Path(__file__).parent.parent / "teachers"
PAPER = {"Ant-v4": 3574, "HalfCheetah-v4": 6664, "Hopper-v4": 2510, "Humanoid-v4": 4540}
HEAD = """# Trained teachers

Each file is a complete policy for raw observations: load it as [docs/ppd.md](../docs/ppd.md) shows,
score it again with `python evaluate.py teachers/<env>.safetensors`. The score is by the paper's
protocol: 50 whole episodes, deterministic actions, mean ± standard error; the paper's column is the
mean of its five teachers (Table 5). `<env>.json` is the run's own `result.json`: every episode, the
learning curve, all arguments, versions. MIT licence.

| teacher | seed | steps | score | paper | hours | commit | versions |
|---|---|---|---|---|---|---|---|
"""


def row(result: dict) -> str:
    args, score, versions = result["args"], result["score"], result["versions"]
    env_id = args["env_id"]
    used = ", ".join(f"{name} {versions[name]}" for name in ("torch", "gymnasium", "mujoco"))
    cells = [
        f"[{env_id}]({env_id}.safetensors)",
        args["seed"],
        f"{result['steps']:,}",
        f"{score['mean']:.1f} ± {score['standard_error']:.1f}",
        PAPER.get(env_id, "–"),
        f"{result['seconds'] / 3600:.2f}",
        result["git_commit"],
        used,
    ]
    return "| " + " | ".join(map(str, cells)) + " |\n"


def command(result: dict) -> str:
    args = result["args"]
    return f"    python {result['script']}.py --env-id {args['env_id']} --seed {args['seed']}\n"


def readme() -> str:
    """teachers/README.md, from the results beside the teachers."""
    results = [json.loads(path.read_text()) for path in sorted(TEACHERS.glob("*.json"))]
    text = HEAD + "".join(map(row, results))
    text += (
        "\nHours are those of one core of a shared two-core machine, with other work beside it.\n"
        "The commit is that of the process that finished and scored the run: all but Hopper's\n"
        "were stopped and resumed, or scored again, under a newer one than they began with.\n"
    )
    return text + "\nEach was trained by\n\n" + "".join(map(command, results))


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: python -m experiments.score_card RUN [RUN …]")
    for run in map(Path, sys.argv[1:]):
        result = json.loads((run / "result.json").read_text())
        target = TEACHERS / result["args"]["env_id"]
        shutil.copy(run / "agent.safetensors", f"{target}.safetensors")
        # where the run lay on its machine is nobody else's business
        result["args"]["run_dir"] = None
        Path(f"{target}.json").write_text(json.dumps(result))
    (TEACHERS / "README.md").write_text(readme())


if __name__ == "__main__":
    main()
