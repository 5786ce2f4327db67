"""The engine on this machine: interrupted in every way, it ends with the results all the same."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import ppd_mujoco
import ppo_teacher_mujoco as teacher_script
from experiments import corrupt, report
from experiments.job import Job, locked

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SMALL = {"num_envs": 2, "num_steps": 8, "minibatch_size": 16, "hidden_sizes": (8,)}
SMALL |= {"num_workers": 1, "torch_threads": 1, "eval_every": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a shipped teacher of Hopper, seed 100, and no runs."""
    folder = tmp_path_factory.mktemp("engine")
    run_dir = folder / "teacher"
    args = teacher_script.Args(run_dir=str(run_dir), total_timesteps=1, episodes=4, **SMALL)
    teacher_script.train(args)
    (folder / "teachers").mkdir()
    (run_dir / "agent.safetensors").rename(folder / "teachers" / "Hopper-v4.safetensors")
    return folder


def start(folder, *arguments):
    """The engine, in a process group of its own so that it alone gets a signal."""
    command = [sys.executable, str(ROOT / "tests" / "tiny_study.py"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, start_new_session=True, **pipes)


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def children_of(pid):
    """Process ids, on Linux."""
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            found += [path.parent.name] if f"PPid:\t{pid}\n" in path.read_text() else []
    return found


def test_interrupted_study_ends_with_the_same_results(folder):
    runs = folder / "runs" / "tiny"

    def names(pattern):
        return sorted(path.name for path in runs.glob(pattern))

    # Ctrl-C once a run has a checkpoint: it saves and ends, and nothing is left running.
    engine = start(folder, "tiny", "--workers", "1")
    wait_for(lambda: names("*/training_state.pt"))
    engine.send_signal(signal.SIGINT)
    output, _ = engine.communicate(timeout=300)
    assert engine.returncode == 130 and "each run saves" in output and "go on with" in output
    assert not names("*/result.json")
    (first,) = runs.glob("*/training_state.pt")
    log = first.parent.with_name(first.parent.name + ".log")
    assert "stopped at step" in log.read_text()

    # SIGKILL of the engine: the training goes on without it, and holds its lock.
    engine = start(folder, "tiny", "--workers", "1")
    wait_for(lambda: len(list(first.parent.glob("events*"))) == 2)  # it has been resumed
    engine.kill()
    # The same for the jobs that it started: only the training itself is left.
    for path in (runs / ".submitit").glob("*_0_log.out"):
        controller = path.name.split("_")[0]
        for pid in [controller, *children_of(controller)]:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    engine.communicate()
    time.sleep(0.5)
    assert Job(first.parent, [], []).is_locked

    # A folder as of a run that was killed before its first checkpoint; two engines at once.
    (runs / "Hopper-v4__ppd__smaller__distill-lambda-2__total-timesteps-3000__100").mkdir()
    engines = [start(folder, "tiny", "--workers", "2") for _ in range(2)]
    outputs = [engine.communicate(timeout=600)[0] for engine in engines]
    assert [engine.returncode for engine in engines] == [1, 1], outputs
    assert all(
        "must be 0 or more" in output and "1 of 3 runs failed" in output for output in outputs
    )
    assert len(names("*/result.json")) == 2

    # Each good run was started once, and only the one that was stopped was resumed.
    for path in runs.glob("*.log"):
        text = path.read_text()
        assert text.count("--run-dir") == 1 or "must be 0 or more" in text
        assert text.count("--resume runs") == (2 if path == log else 0), text  # asked for, and done

    # The interrupted run's result is the one that it would have had.
    result = json.loads((first.parent / "result.json").read_text())
    args = result["args"] | {"run_dir": str(folder / "whole"), "teacher": None}
    args["teacher"] = str(folder / "teachers" / "Hopper-v4.safetensors")
    args["hidden_sizes"] = tuple(args["hidden_sizes"])
    whole = ppd_mujoco.train(ppd_mujoco.Args(**args))
    assert whole["episode_returns"] == result["episode_returns"]
    hardware = first.parent.with_name(first.parent.name + ".hardware.json")
    assert "cores" in json.loads(hardware.read_text())["hardware"]


def test_finished_runs_are_skipped(folder):
    engine = start(folder, "tiny", "--workers", "1", "--size", "smaller")
    output, _ = engine.communicate(timeout=300)
    assert engine.returncode == 1 and "3 runs: 2 finished, 0 running, 0 waiting, 1 failed" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["orphan"], "python -m experiments.run teachers --env-id Hopper-v4 --seed 300"),
        (["nothing"], "study nothing: none of teachers, sizes"),
        (["sizes", "--method", "sd"], "--method sd: none of teacher, teacher-distill"),
        (["sizes", "--env-id", "Hopper"], "it has the environments Atlantis"),
        (["tiny", "--workers", "0"], "must be above 0"),
        (["tiny", "--cluster", "slurm", "--sbatch", "main"], "give NAME=VALUE"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(folder, tmp_path, arguments, words):
    if "slurm" in arguments:  # a srun to be found
        (tmp_path / "srun").touch(mode=0o755)
    environment = ENVIRONMENT | {"PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}
    command = [sys.executable, str(ROOT / "tests" / "tiny_study.py"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and words in done.stderr


def test_a_job_leaves_a_locked_run_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.job.LOCK_PATIENCE", 0.3)
    job = Job(tmp_path / "run", ["nowhere.py"], [])
    assert not job.is_locked
    with locked(job.beside(".lock")) as lock:
        assert lock and job.is_locked
        before = signal.getsignal(signal.SIGTERM)
        job()
        signal.signal(signal.SIGTERM, before)
    assert not job.beside(".log").exists() and not job.is_locked


# ------------------------------------------------------------------------------- Imperfect teachers


def test_corrupted_teacher(folder, tmp_path):
    original = str(folder / "teachers" / "Hopper-v4.safetensors")
    args = corrupt.Args(original, str(tmp_path / "a.safetensors"), sigma=0.3, seed=7)
    header = corrupt.corrupt(args)
    before, _ = ppd_mujoco.read_checkpoint(original)
    after, read_back = ppd_mujoco.read_checkpoint(args.out)
    assert read_back == header and (header["sigma"], header["noise_seed"]) == (0.3, 7)
    original_header = ppd_mujoco.read_checkpoint(original)[1]
    assert header["original_score"] == original_header["score"] != header["score"]
    assert header["score"]["episodes"] == 4

    # Noise on every parameter, policy, log-std and critic, and on nothing else.
    fixed = {"action_low", "action_high", "obs_mean", "obs_var", "obs_count"}
    noise = {name: after[name] - before[name] for name in before if name not in fixed}
    assert noise.keys() == {name for name, _ in teacher_script.load_mujoco_agent(original)[0]
                            .named_parameters()}  # fmt: skip
    assert all(torch.equal(before[name], after[name]) for name in fixed)
    assert all((change != 0).all() for change in noise.values())
    together = torch.cat([change.flatten() for change in noise.values()])
    assert abs(together.std() - 0.3) < 0.03 and abs(together.mean()) < 0.06

    # The same seed makes the same teacher, another one another.
    again = corrupt.Args(original, str(tmp_path / "b.safetensors"), sigma=0.3, seed=7)
    corrupt.corrupt(again)
    weights, its_header = ppd_mujoco.read_checkpoint(again.out)
    assert its_header == header and all(torch.equal(weights[name], after[name]) for name in after)
    corrupt.corrupt(corrupt.Args(original, again.out, sigma=0.3, seed=8))
    assert not torch.equal(ppd_mujoco.read_checkpoint(again.out)[0]["log_std"], after["log_std"])

    # Students are measured against the original.
    run = {"run_dir": str(tmp_path / "run"), "teacher": args.out, "total_timesteps": 1}
    result = ppd_mujoco.train(ppd_mujoco.Args(**run, episodes=2, teacher_episodes=1, **SMALL))
    reference = header["original_score"]["mean"]
    assert result["fraction_of_teacher"] == result["score"]["mean"] / reference

    # What the script writes is what the report reads.
    row = report.row_of_result("imperfect-mujoco", tmp_path / "run", result)
    assert report.fraction(row) == pytest.approx(result["fraction_of_teacher"], rel=1e-4)
    assert (row["sigma"], row["method"], row["size"]) == (0.3, "ppd", "larger")
    assert len(report.curve_of_result(result)) == len(result["curve"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "nowhere.safetensors"}, "No such file"),
        ({"sigma": 0.0}, "must be above 0"),
        ({"episodes": 0}, "at least 1"),
        ({"teacher": "corrupted"}, "corrupted already"),
        ({"out": "/dev/null/x.safetensors"}, "name another file"),
    ],
)
def test_corrupt_refuses_in_one_line(folder, tmp_path, changes, words, monkeypatch, capsys):
    teacher = str(folder / "teachers" / "Hopper-v4.safetensors")
    if changes.get("teacher") == "corrupted":
        changes = {"teacher": str(tmp_path / "corrupted.safetensors")}
        agent, header = teacher_script.load_mujoco_agent(teacher)
        teacher_script.save_agent(agent, Path(changes["teacher"]), header | {"sigma": 1})
    values = {"teacher": teacher, "out": str(tmp_path / "out.safetensors")} | changes
    command = ["corrupt", values.pop("teacher")]
    command += [word for name, value in values.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        corrupt.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1 and words in error


@pytest.mark.parametrize("suite", ["atari", "procgen"])
def test_corrupted_teacher_of_frames(suite, tmp_path):
    """Scored by its own suite's protocol, on Procgen on both kinds of levels."""
    script = importlib.import_module(f"ppo_teacher_{suite}")
    shape = {"atari": ((4, 84, 84), 6), "procgen": ((3, 64, 64), 15)}[suite]
    header = {"format": "ppd-agent-1", "suite": suite, "script": script.__name__, "seed": 1}
    header |= {"size": "smaller", "steps": 0, "deterministic": suite == "atari"}
    header |= {"score": {"mean": 1.0, "standard_error": None, "episodes": 1}}
    if suite == "atari":
        header |= {"env_id": "PongNoFrameskip-v4", "frame_skip": 4}
    else:
        levels = {"num_levels": 200, "start_level": 0, "distribution_mode": "easy"}
        header |= {"env_id": "coinrun", "score_training": header["score"]} | levels
    script.save_agent(script.PixelAgent(*shape, "smaller"), tmp_path / "a.safetensors", header)
    out = tmp_path / "b.safetensors"
    found = corrupt.corrupt(corrupt.Args(str(tmp_path / "a.safetensors"), str(out), sigma=0.5))
    assert found["original_score"]["mean"] == 1.0 and found["sigma"] == 0.5
    assert found["score"]["episodes"] == 1
    if suite == "atari":
        assert {"human_normalized", "distinct"} <= found["score"].keys()
    else:
        assert {"score_training", "original_score_training"} <= found.keys()
    a, b = (script.read_checkpoint(path)[0] for path in (tmp_path / "a.safetensors", out))
    assert all(abs((b[key] - a[key]).std().item() - 0.5) < 0.1 for key in a if a[key].numel() > 500)
