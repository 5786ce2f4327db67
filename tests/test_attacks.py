"""Hostile surroundings: a run trains on, or ends with one line; it never runs a stranger's code."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, Process, command, load, make_args, make_teacher

KINDS = ["a signal.py in the current folder", "a long TMPDIR", "a terminal that knows ASCII"]
KINDS += ["closed streams", "a reader that has gone"]


def surroundings(kind, folder) -> dict:
    """What `Process` gives a run of two worker processes in this kind of place."""
    options = {"cwd": folder, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    if kind == "a signal.py in the current folder":
        (folder / "signal.py").write_text("open('executed', 'w')")
    elif kind == "a long TMPDIR":
        options["env"]["TMPDIR"] = str(folder / ("x" * 104))
        os.mkdir(options["env"]["TMPDIR"])
    elif kind == "a terminal that knows ASCII":
        options["env"]["PYTHONIOENCODING"] = "ascii"
    elif kind == "closed streams":
        options["preexec_fn"] = lambda: (os.close(1), os.close(2))
    return options


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on(kind, tmp_path):
    script = load("ppd_mujoco")
    args = make_args(script, "mujoco", tmp_path / "run", num_workers=2)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = command(script, "mujoco", args)
    with Process(words, **pipes, **surroundings(kind, tmp_path)) as process:
        if kind == "a reader that has gone":  # as of `| head -0`
            process.stdout.close()
            process.stderr.close()
        assert process.wait(300) == 0
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "executed").exists()


def test_help_in_ascii(tmp_path):
    words = [sys.executable, str(ROOT / "ppd_mujoco.py"), "--help"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert b"--distill-lambda" in subprocess.check_output(words, env=environment, cwd=tmp_path)


def test_ctrl_c_during_the_imports(tmp_path):
    words = [sys.executable, str(ROOT / "ppd_mujoco.py"), "--run-dir", str(tmp_path / "run")]
    with Process(words, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        time.sleep(0.8)  # torch alone takes longer
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert errors == b""


def test_a_run_whose_folder_is_deleted_ends_with_one_line(tmp_path):
    script = load("ppd_mujoco")
    args = make_args(script, "mujoco", tmp_path / "run", total_timesteps=10**7, save_every=0.0)
    words = command(script, "mujoco", args)
    with Process(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("run/events*")):
            assert process.poll() is None
            time.sleep(0.05)
        (tmp_path / "run").rename(tmp_path / "gone")  # at once: a file more would keep the folder
        shutil.rmtree(tmp_path / "gone")
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert errors.count("ppd_mujoco: error: ") == 1


def test_equal_runs_write_equal_files(tmp_path):
    """Whatever order safetensors' own header has in this process."""
    script, path = load("ppd_mujoco"), tmp_path / "teacher.safetensors"
    make_teacher("mujoco", path)
    agent, header = script.load_mujoco_agent(path)
    contents = {script.pack_agent(agent.state_dict(), header) for _ in range(8)}
    assert len(contents) == 1
    path.write_bytes(*contents)
    assert script.load_mujoco_agent(path)[1] == header
