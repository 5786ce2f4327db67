"""Each wrong input: exit status 2, one line that names cause and remedy, nothing written."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from helpers import MUJOCO_SCRIPTS, ROOT, has_teacher, load, run_main, save_mujoco_teacher
from safetensors.torch import save_file

PPD_SCRIPTS = [name for name in MUJOCO_SCRIPTS if has_teacher(name)]
QUICK = ["--num-envs", 2, "--num-workers", 1, "--total-timesteps", 1]


class Malicious:
    """A pickle that creates a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def teacher(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_mujoco_teacher(load("ppd_mujoco"), path, sizes=(11, 3))
    return path


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def check_refused(name, arguments, folder, capsys, monkeypatch, *words):
    """The line holds every one of `words`, in whatever case."""
    before = files(folder.parent)
    status = run_main(load(name), arguments, monkeypatch)
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert status == 2
    assert lines[0].startswith(f"{name}: error: ")
    assert "Traceback" not in captured.out
    for word in words:
        assert word.lower() in lines[0].lower()
    assert files(folder.parent) == before


BAD_VALUES = [
    ("--env-id NoSuchRobot-v0", "NoSuchRobot-v0", "Hopper-v4"),
    ("--env-id not/a/valid/id", "not/a/valid/id", "Hopper-v4"),
    ("--env-id nosuchmodule:Robot-v0", "nosuchmodule", "Hopper-v4"),
    ("--env-id PongNoFrameskip-v4", "Atari", "ppo_teacher_atari.py"),
    ("--env-id ALE/Pong-v5", "Atari", "ppo_teacher_atari.py"),
    ("--env-id CartPole-v1", "Discrete", "Boxes"),
    ("--env-id :Hopper-v4", ":Hopper-v4", "Hopper-v4"),
    ("--env-id Hopper", "which version", "Hopper-v5"),
    ("--num-envs 0", "--num-envs", "at least 1"),
    ("--num-envs -3", "--num-envs", "at least 1"),
    ("--num-workers 0", "--num-workers", "at least 1"),
    ("--torch-threads 0", "--torch-threads", "at least 1"),
    ("--total-timesteps 0", "--total-timesteps", "at least 1"),
    ("--num-steps 0", "--num-steps", "at least 1"),
    ("--minibatch-size -1", "--minibatch-size", "at least 1"),
    ("--update-epochs 0", "--update-epochs", "at least 1"),
    ("--hidden-sizes 64 0", "--hidden-sizes", "at least 1"),
    ("--episodes 0", "--episodes", "at least 1"),
    ("--eval-episodes 0", "--eval-episodes", "at least 1"),
    ("--save-every 0", "--save-every", "at least 1"),
    ("--eval-every -1", "--eval-every", "0 or more"),
    ("--learning-rate 0", "--learning-rate", "above 0"),
    ("--learning-rate nan", "--learning-rate", "above 0"),
    ("--clip-coef -0.2", "--clip-coef", "above 0"),
    ("--gamma 1.5", "--gamma", "between 0 and 1"),
    ("--gae-lambda -1", "--gae-lambda", "between 0 and 1"),
    ("--seed -1", "--seed", "from 0 to 2**30"),
    ("--seed 99999999999999999999", "--seed", "from 0 to 2**30"),
    ("--device nonsense", "nonsense", "cpu"),
    ("--device meta", "meta", "cpu"),
    ("--resume nowhere", "nowhere", "runs/"),
    ("--resume nowhere --seed 3", "--resume", "no other flag"),
]


@pytest.mark.parametrize("name", MUJOCO_SCRIPTS)
@pytest.mark.parametrize(("line", "cause", "remedy"), BAD_VALUES, ids=lambda text: text)
def test_bad_values(name, line, cause, remedy, folder, capsys, monkeypatch):
    quick = [] if "--resume" in line else QUICK
    check_refused(name, [*quick, *line.split()], folder, capsys, monkeypatch, cause, remedy)


@pytest.mark.parametrize("name", PPD_SCRIPTS)
@pytest.mark.parametrize("flag", ["--distill-lambda", "--distill-lambda-final"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_bad_lambda(name, flag, value, folder, capsys, monkeypatch):
    check_refused(name, [*QUICK, flag, value], folder, capsys, monkeypatch, flag, "0 or more")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", MUJOCO_SCRIPTS)
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_no_gpu(name, device, folder, capsys, monkeypatch):
    arguments = [*QUICK, "--device", device]
    check_refused(name, arguments, folder, capsys, monkeypatch, device, "--device cpu")


@pytest.mark.parametrize("name", MUJOCO_SCRIPTS)
@pytest.mark.parametrize("where", ["a file", "exists"])
def test_unwritable_run_dir(name, where, teacher, folder, capsys, monkeypatch):
    (folder / "file").write_text("")
    (folder / "exists").mkdir()
    run_dir = folder / "file" / "run" if where == "a file" else folder / "exists"
    arguments = [*QUICK, "--run-dir", run_dir]
    arguments += ["--teacher", teacher] if has_teacher(name) else []
    check_refused(name, arguments, folder, capsys, monkeypatch, str(run_dir), "--run-dir")


def damaged_teacher(kind, good):
    """A file or path that is no usable Hopper teacher."""
    path, script = good.with_name(f"{kind}.safetensors"), load("ppd_mujoco")
    content = good.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not safetensors at all")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Malicious(str(path.with_name("executed")))))
    elif kind == "torch pickle":
        torch.save(Malicious(str(path.with_name("executed"))), path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "other env":
        save_mujoco_teacher(script, path, "Ant-v4", sizes=(27, 8))
    elif kind != "missing":
        agent, header = script.load_mujoco_agent(good)
        if kind == "NaN":
            agent.actor[0].weight.data[0, 0] = float("nan")
        elif kind == "other sizes":
            header["hidden_sizes"] = [6]
        elif kind == "other suite":
            header["suite"] = "atari"
        elif kind == "foreign":
            header = {}
        elif kind == "no sizes":
            del header["hidden_sizes"]
        script.save_agent(agent, path, header)
    if kind == "foreign, as Hugging Face writes it":
        save_file({"weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("name", PPD_SCRIPTS)
@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("missing", "no such file"),
        ("empty", "not safetensors"),
        ("text", "not safetensors"),
        ("truncated", "cut off"),
        ("directory", "directory"),
        ("pickle", "pickle"),
        ("torch pickle", "pickle"),
        ("other env", "sizes"),
        ("other sizes", "sizes"),
        ("no sizes", "sizes"),
        ("other suite", "atari"),
        ("foreign", "not an agent"),
        ("foreign, as Hugging Face writes it", "not an agent"),
        ("NaN", "NaN"),
    ],
)
def test_bad_teacher(name, kind, cause, teacher, folder, capsys, monkeypatch):
    path = damaged_teacher(kind, teacher)
    check_refused(name, [*QUICK, "--teacher", path], folder, capsys, monkeypatch, cause, str(path))
    assert not path.with_name("executed").exists()


def test_the_pickle_is_malicious(tmp_path):
    """Opened, it does create the file."""
    pickle.loads(pickle.dumps(Malicious(str(tmp_path / "executed")))).close()
    assert (tmp_path / "executed").exists()


def test_a_header_of_any_length_is_accepted(tmp_path):
    """The file starts with its header's length, which may look like the start of a pickle."""
    script, starts = load("ppd_mujoco"), set()
    for size in range(0, 300, 8):
        path = tmp_path / "agent.safetensors"
        script.save_agent(torch.nn.Linear(1, 1), path, {"format": "ppd-agent-1", "x": "x" * size})
        script.read_checkpoint(path)
        starts.add(path.read_bytes()[0])
    assert 0x80 in starts


@pytest.mark.parametrize("name", MUJOCO_SCRIPTS)
@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("finished", "finished"),
        ("foreign", "ppo_teacher_atari"),
        ("empty folder", "training_state.pt"),
        ("cut off", "damaged"),
        ("text", "damaged"),
        ("pickle", "damaged"),
        ("no args", "damaged"),
    ],
)
def test_bad_resume(name, kind, cause, folder, capsys, monkeypatch):
    run_dir = folder / "run"
    run_dir.mkdir()
    path = run_dir / "training_state.pt"
    if kind == "finished":
        (run_dir / "result.json").write_text(json.dumps({}))
    if kind in ("finished", "cut off", "foreign"):
        script = "ppo_teacher_atari" if kind == "foreign" else name
        torch.save({"script": script, "args": {}, "x": torch.zeros(1000)}, path)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "no args":
        torch.save({"script": name}, path)
    elif kind == "text":
        path.write_text("nonsense")
    elif kind == "pickle":
        torch.save(Malicious(str(folder / "executed")), path)
    check_refused(name, ["--resume", run_dir], folder, capsys, monkeypatch, cause, str(run_dir))


@pytest.mark.parametrize("name", MUJOCO_SCRIPTS)
def test_a_real_command_line(name, tmp_path):
    command = [sys.executable, ROOT / f"{name}.py", "--env-id", "NoSuchRobot-v0"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert "NoSuchRobot" in found.stderr
    assert not list(tmp_path.iterdir())
