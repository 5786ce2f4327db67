"""Each wrong input: exit status 2, one line that names cause and remedy, nothing written.

What several scripts check by the same function is tried in one of them (see test_copies.py).
"""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, Malicious, load, make_teacher, run_main, save_agent
from safetensors.torch import save_file


@pytest.fixture
def nothing_written(tmp_path, refused, monkeypatch):
    """Call a script in a folder of its own; it must refuse, and write nothing anywhere."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    files = lambda: {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def call(name, arguments, *words):
        before = files()
        line = refused(load(name), arguments, *words)
        # Pytest's folder is named after the test, and must not stand for what the line says.
        said = line.replace(str(tmp_path), "").lower()
        assert not [w for w in words if str(w).replace(str(tmp_path), "").lower() not in said]
        assert files() == before

    return call


BAD_VALUES = """
ppd_mujoco --env-id NoSuchRobot-v0 | NoSuchRobot | Hopper-v4
ppd_mujoco --env-id not/a/valid/id | not/a/valid/id | Hopper-v4
ppd_mujoco --env-id nosuchmodule:Robot-v0 | nosuchmodule | Hopper-v4
ppd_mujoco --env-id PongNoFrameskip-v4 | --env-id | Pong
ppd_mujoco --env-id ALE/Pong-v5 | --env-id | ALE/Pong-v5
ppd_mujoco --env-id FrozenLake-v1 | Discrete(16) | Boxes
ppd_mujoco --env-id :Hopper-v4 | :Hopper-v4 | Try Hopper-v4
ppd_mujoco --env-id Hopper | which version | Hopper-v5
ppd_mujoco --num-envs 0 | --num-envs 0 | above 0
ppd_mujoco --num-envs -3 | --num-envs -3 | above 0
ppd_mujoco --num-workers 0 | --num-workers 0 | above 0
ppd_mujoco --torch-threads 0 | --torch-threads 0 | above 0
ppd_mujoco --total-timesteps 0 | --total-timesteps 0 | above 0
ppo_teacher_mujoco --num-steps 0 | --num-steps 0 | above 0
ppd_mujoco --minibatch-size -1 | --minibatch-size -1 | above 0
ppd_mujoco --update-epochs 0 | --update-epochs 0 | above 0
ppd_mujoco --hidden-sizes 64 0 | --hidden-sizes 0 | above 0
ppd_mujoco --hidden-sizes | --hidden-sizes is empty | give a value
ppd_mujoco --teacher= | --teacher is empty | give a value
ppd_mujoco --run-dir= | --run-dir is empty | give a value
ppd_mujoco --resume= | --resume is empty | give a value
ppd_mujoco --env-id= | --env-id is empty | give a value
ppd_mujoco --episodes 0 | --episodes 0 | above 0
ppd_mujoco --save-every -1 | --save-every -1 | at least 0
ppd_mujoco --eval-every -1 | --eval-every -1 | at least 0
ppd_mujoco --learning-rate 0 | --learning-rate 0 | above 0
ppd_mujoco --learning-rate nan | --learning-rate nan | above 0
ppd_mujoco --clip-coef -0.2 | --clip-coef -0.2 | above 0
ppd_mujoco --gamma 1.5 | --gamma 1.5 | at most 1
ppd_mujoco --gae-lambda -1 | --gae-lambda -1 | at least 0 and at most 1
ppd_mujoco --distill-lambda -1 | --distill-lambda -1 | at least 0
ppd_mujoco --distill-lambda inf | --distill-lambda inf | at least 0
ppd_mujoco --distill-lambda-final nan | --distill-lambda-final nan | at least 0
ppd_mujoco --distill-lambda-steps 0 | --distill-lambda-steps 0 | above 0
ppd_mujoco --pg-coef -1 | --pg-coef -1 | at least 0
ppd_mujoco --critic-warmup -1 | --critic-warmup -1 | at least 0
ppd_mujoco --init nowhere | nowhere | ppo_teacher_mujoco.py
ppd_mujoco --seed -1 | --seed -1 | at least 0
ppd_mujoco --resume nowhere | nowhere | missing
ppd_mujoco --resume nowhere --seed 3 | --resume | no other flag
ppo_teacher_mujoco --run-dir file/run | file/run | directory
ppd_mujoco --run-dir . | . is not empty | another
ppd_atari --env-id Hopper-v4 | Atari | PongNoFrameskip-v4
ppd_atari --env-id PingNoFrameskip-v4 | Atari | PongNoFrameskip-v4
ppd_atari --env-id SeaquestNoFrameskip-v4 | Seaquest | ppo_teacher_atari.py
ppd_atari --frame-skip 0 | --frame-skip 0 | above 0
ppd_atari --env-threads -1 | --env-threads -1 | above 0
ppd_procgen --env-id pong | Procgen | coinrun
ppd_procgen --num-levels 0 | --num-levels 0 | above 0
ppd_procgen --start-level -1 | --start-level -1 | at least 0
ppd_procgen --num-levels 2147483647 | no unseen level | give less
student_distill mujoco --env-id Nope-v4 | Nope | Hopper-v4
student_distill atari --env-id Hopper-v4 | Atari | PongNoFrameskip-v4
student_distill procgen --env-id pong | Procgen | coinrun
student_distill mujoco --log-every 0 | --log-every 0 | above 0
student_distill mujoco --teacher= | --teacher is empty | give a value
student_distill procgen --resume nowhere | nowhere | missing
"""


@pytest.mark.parametrize("line", BAD_VALUES.strip().splitlines())
def test_bad_values(line, nothing_written, tmp_path):
    typed, *words = line.split(" | ")
    (tmp_path / "here" / "file").write_text("")
    name, *arguments = typed.split(" ")
    nothing_written(name, arguments, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(nothing_written):
    nothing_written("ppd_mujoco", ["--device", "cuda"], "--device cuda", "use --device cpu")


WRONG_TYPES = """
ppd_mujoco --num-envs x
ppd_mujoco --device nonsense
ppd_mujoco --kl backward
ppd_procgen --student-size huge
ppd_mujoco --no-such-flag 1
student_distill
student_distill robots
"""


@pytest.mark.parametrize("line", WRONG_TYPES.strip().splitlines())
def test_wrong_types(line, tmp_path, capsys, monkeypatch):
    """These are found by tyro, which names the flag and what it takes in a box of its own."""
    monkeypatch.chdir(tmp_path)
    name, *arguments = line.split()
    assert run_main(load(name), arguments, monkeypatch) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert (arguments or ["mujoco"])[0] in error
    assert not list(tmp_path.iterdir())


def save_changed(path, tensors=None, **header):
    """A sound teacher for Hopper but for single numbers of its tensors, or for its header."""
    make_teacher("mujoco", path)
    agent, sound = load("ppd_mujoco").load_mujoco_agent(path)
    for name, number in (tensors or {}).items():
        agent.state_dict()[name].view(-1)[0] = number
    save_agent(agent, path, sound | header)


def cut_off(path):
    make_teacher("mujoco", path)
    path.write_bytes(path.read_bytes()[:-500])


ABSENT = "train a teacher with ppo_teacher_mujoco.py"
FOREIGN = "if another library wrote it, use convert.py import"
BAD_TEACHERS = {
    "No such file": (ABSENT, lambda path: None),
    "header too small": (FOREIGN, lambda path: path.write_bytes(b"")),
    "header too large": (FOREIGN, lambda path: path.write_text("not safetensors at all")),
    "incomplete": (FOREIGN, cut_off),
    "No such file or directory": (ABSENT, lambda path: path.mkdir()),
    "not an agent.safetensors": (
        FOREIGN,
        lambda path: path.write_bytes(pickle.dumps(Malicious(path.with_name("executed")))),
    ),
    "not an agent.safetensors (": (
        FOREIGN,
        lambda path: torch.save(Malicious(path.with_name("executed")), path),
    ),
    "not an agent of this version": ("", lambda path: save_agent(torch.nn.Linear(1, 1), path, {})),
    "agent of this version for mujoco": (
        "",
        lambda path: save_file({}, path, {"format": '"ppd-agent-1"', "suite": '"mujoco"'}),
    ),
    "27 observations, 8 actions": (
        "give --env-id Ant-v4",
        lambda path: make_teacher("mujoco", path, (27, 8), env_id="Ant-v4"),
    ),
    "actor.0.weight holds NaN": (
        "",
        lambda path: save_changed(path, {"actor.0.weight": np.nan}),
    ),
    "size mismatch": ("", lambda path: save_changed(path, hidden_sizes=[6])),
    "of this version for mujoco": ("", lambda path: save_changed(path, suite="atari")),
}


@pytest.mark.parametrize("cause", BAD_TEACHERS)
def test_bad_teacher(cause, nothing_written, tmp_path):
    path = tmp_path / "teacher.safetensors"
    remedy, make = BAD_TEACHERS[cause]
    make(path)
    nothing_written("ppd_mujoco", ["--teacher", path], cause, str(path), remedy)
    assert not path.with_name("executed").exists()


OTHER_GAMES = [
    ("ppd_atari --env-id BreakoutNoFrameskip-v4", "actions"),
    ("student_distill atari --env-id BreakoutNoFrameskip-v4", "actions"),
    ("ppd_procgen", "for procgen"),
]


@pytest.mark.parametrize(("line", "cause"), OTHER_GAMES)
def test_teacher_of_another_game(line, cause, nothing_written, tmp_path):
    """Here one of Pong, which has six actions."""
    make_teacher("atari", tmp_path / "teacher.safetensors")
    name, *arguments = line.split()
    arguments += ["--teacher", tmp_path / "teacher.safetensors"]
    nothing_written(name, arguments, cause)


def test_the_pickle_is_malicious(tmp_path):
    """Opened, it does create the file."""
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()


BAD_RUNS = [("finished", "finished"), ("other script", "python ppo_teacher_mujoco.py")]
BAD_RUNS += [("other suite", "python student_distill.py atari"), ("empty folder", "missing")]
BAD_RUNS += [(kind, "damaged") for kind in ("cut off", "one bit", "pickle")]


@pytest.mark.parametrize(("kind", "cause"), BAD_RUNS)
def test_bad_resume(kind, cause, nothing_written, tmp_path):
    path, executed = tmp_path / "run" / "training_state.pt", tmp_path / "executed"
    path.parent.mkdir()
    command = cause if kind.startswith("other") else "python student_distill.py mujoco"
    state = {"command": command, "args": {}}
    torch.save(Malicious(executed) if kind == "pickle" else state, path)
    content = bytearray(path.read_bytes())
    if kind == "finished":
        (tmp_path / "run" / "result.json").write_text("{}")
    elif kind == "empty folder":
        path.unlink()
    elif kind == "cut off":
        path.write_bytes(content[:500])
    elif kind == "one bit":
        content[content.index(b"distill")] ^= 1  # of a zip a part means nothing
        path.write_bytes(content)
    nothing_written("student_distill", ["mujoco", "--resume", path.parent], cause, str(path.parent))
    assert not executed.exists()


def test_a_real_command_line(tmp_path):
    command = [sys.executable, ROOT / "ppd_mujoco.py", "--env-id", "NoSuchRobot-v0"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert "NoSuchRobot" in found.stderr
    assert not list(tmp_path.iterdir())
