"""Ship a finished teacher: `python -m experiments.score_card RUN [RUN …]`.

Copies each run's agent to teachers/<env>.safetensors and its result to teachers/<env>.json. Seeds
other than 100 go to teachers/seed-<seed>/. Then writes teachers/README.md from all of them.
"""

import importlib
import json
import shutil
import sys
from pathlib import Path

from experiments import studies

TEACHERS = Path(__file__).parent.parent / "teachers"
PAPER = {"Ant-v4": "3574", "HalfCheetah-v4": "6664", "Hopper-v4": "2510", "Humanoid-v4": "4540"}
PAPER |= {"coinrun": "6.28; training levels 7.29"}
PAPER |= {"CrazyClimberNoFrameskip-v4": "human-normalised 2.08"}
HEAD = """# Trained teachers

Each file is a complete policy for raw observations. [docs/deploy.md](../docs/deploy.md) shows how
to load it, and `python evaluate.py teachers/<env>.safetensors` scores it again. One seed of each is
shipped.

The score is by the paper's protocol, mean ± standard error over episodes: 50 whole episodes with
deterministic actions, on Procgen 200 with sampled actions on levels that are not trained on. The
paper's column is the mean of its five teachers (Table 5). `<env>.json` is the run's `result.json`:
every episode, the learning curve, all arguments, versions. The licence is MIT.

| teacher | seed | steps | score | paper | hours | commit | versions |
|---|---|---|---|---|---|---|---|
"""
TAIL = """
Hours are those of one core of a shared two-core machine with other work. The commit is that of the
process that finished and scored the run. All runs but Hopper's were stopped and resumed, or scored
again, under a newer commit than the one they began with.
"""


def env_id_of(result: dict) -> str:
    """The environment's id without the module that registers it."""
    return result["args"]["env_id"].split(":")[-1]


def target(result: dict) -> str:
    """Where a teacher lies in teachers/, without a suffix."""
    seed = result["args"]["seed"]
    return ("" if seed == 100 else f"seed-{seed}/") + env_id_of(result)


def score_text(score: dict, digits: int) -> str:
    return f"{score['mean']:.{digits}f} ± {score['standard_error']:.{digits}f}"


def row(result: dict) -> str:
    args, versions, env_id = result["args"], result["versions"], env_id_of(result)
    simulators = {"mujoco": ["mujoco"], "atari": ["ale-py"]}
    simulators |= {"procgen": ["procgen", "procgen-mirror"]}  # the former on Python 3.10
    suite = result["script"].removeprefix("ppo_teacher_")
    used = [n for n in ("torch", "gymnasium", *simulators[suite]) if n in versions]
    score = score_text(result["score"], 2 if "score_training" in result else 1)
    if "human_normalized" in result["score"]:
        score += f"; human-normalised {result['score']['human_normalized']:.2f}"
    if "score_training" in result:
        score += f"; training levels {score_text(result['score_training'], 2)}"
    cells = [
        f"[{env_id}]({target(result)}.safetensors)",
        args["seed"],
        f"{result['steps']:,}",
        score,
        PAPER.get(env_id, "–"),
        f"{result['seconds'] / 3600:.2f}",
        result.get("git_commit", "–"),
        ", ".join(f"{name} {versions[name]}" for name in used),
    ]
    return "| " + " | ".join(map(str, cells)) + " |\n"


def deviations(result: dict) -> dict:
    """The flags in which a teacher differs from the paper's, except those of the machine."""
    args, kind = result["args"], importlib.import_module(result["script"]).Args
    paper = vars(kind(env_id=args["env_id"], seed=args["seed"], size=args["size"]))
    paper = json.loads(json.dumps(paper | {"size": kind().size}))
    names = paper.keys() & args.keys() - (studies.OF_THE_MACHINE - {"bfloat16"})
    return {name: args[name] for name in args if name in names and args[name] != paper[name]}


def note(result: dict) -> str:
    """A sentence about a teacher whose network is not the paper's."""
    if "size" not in deviations(result):
        return ""
    total = importlib.import_module(result["script"]).Args().total_timesteps
    steps = f"{result['args']['total_timesteps'] / 1e6:.3g} of its {total / 1e6:g} M steps"
    env_id, size = env_id_of(result), result["args"]["size"]
    return f"\n**{env_id}'s teacher is not the paper's: the {size} network (Table 4), {steps}.**\n"


def warning(result: dict) -> str:
    """A sentence about a teacher whose last policy is much worse than it was before."""
    if len(result["evaluations"]) < 2:
        return ""
    before, after = result["evaluations"][-2][1], result["score"]["mean"]
    if after > 0.7 * before:
        return ""
    steps = f"it scored {before:.1f} after {result['evaluations'][-2][0]:,} steps"
    return f"\n**{target(result)}'s teacher is not at its best: {steps}.**\n"


def command(result: dict) -> str:
    args = result["args"]
    text = f"    python {result['script']}.py --env-id {args['env_id']} --seed {args['seed']}"
    for name, value in deviations(result).items():
        words = value if isinstance(value, list) else [] if value is True else [value]
        text += " ".join([f" --{name.replace('_', '-')}", *map(str, words)])
    return text + "\n"


def readme() -> str:
    """The text of teachers/README.md, made from the results next to the teachers."""
    paths = [*sorted(TEACHERS.glob("*.json")), *sorted(TEACHERS.glob("seed-*/*.json"))]
    results = [json.loads(path.read_text()) for path in paths]
    text = HEAD + "".join(map(row, results)) + "".join(map(note, results))
    text += "".join(map(warning, results)) + TAIL
    return text + "\nEach was trained by\n\n" + "".join(map(command, results))


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: python -m experiments.score_card RUN [RUN …]")
    for run in map(Path, sys.argv[1:]):
        result = json.loads((run / "result.json").read_text())
        path = TEACHERS / target(result)
        path.parent.mkdir(exist_ok=True)
        shutil.copy(run / "agent.safetensors", f"{path}.safetensors")
        result["args"]["run_dir"] = None  # a path of the machine that trained it
        Path(f"{path}.json").write_text(json.dumps(result))
    (TEACHERS / "README.md").write_text(readme())


if __name__ == "__main__":
    main()
