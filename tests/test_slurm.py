"""Twelve runs on a real Slurm: one killed, one preempted, one requeued, a controller restart."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from real_slurm import NoSlurm, start_slurm, stop_daemon

import ppo_teacher_mujoco as teacher_script

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def slurm():
    # A short path: the name of munge's socket may have 107 characters.
    with tempfile.TemporaryDirectory() as folder:
        try:
            with start_slurm(Path(folder)) as environment:
                yield Path(folder), environment
        except NoSlurm as reason:
            pytest.skip(f"no Slurm here: {reason}")


@pytest.mark.slow
def test_twelve_runs_each_once(slurm, tmp_path):
    slurm_folder, environment = slurm
    small = {"num_envs": 2, "num_steps": 8, "minibatch_size": 16, "hidden_sizes": (8,)}
    small |= {"num_workers": 1, "torch_threads": 1, "eval_every": 0, "total_timesteps": 1}
    run_dir = tmp_path / "teacher"
    teacher_script.train(teacher_script.Args(run_dir=str(run_dir), episodes=4, **small))
    (tmp_path / "teachers").mkdir()
    (run_dir / "agent.safetensors").rename(tmp_path / "teachers" / "Hopper-v4.safetensors")
    environment = environment | {"PYTHONPATH": str(ROOT)}
    runs = tmp_path / "runs" / "twelve"
    study = [sys.executable, str(ROOT / "tests" / "tiny_study.py"), "twelve"]
    study += ["--cluster", "slurm", "--workers", "2"]

    def call(*command):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        print("$", *command, done.stdout, done.stderr, flush=True)
        return done.stdout

    def results():
        return sorted(path.parent.name for path in runs.glob("*/result.json"))

    def wait_for(condition, seconds=900):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.2)
        return found

    def running_job(used=()):
        """Name and Slurm id of the latest run with a checkpoint but no result, not in `used`."""
        started = runs.glob("*.hardware.json")
        for note in sorted(started, key=lambda path: path.stat().st_mtime, reverse=True):
            run = runs / note.name.removesuffix(".hardware.json")
            if not (run / "training_state.pt").exists():
                continue
            if run.name not in used and not (run / "result.json").exists():
                job_id = run.with_name(run.name + ".slurm").read_text()
                command = ["squeue", "--noheader", "--format=%T", "--jobs", job_id]
                answer = subprocess.run(command, env=environment, capture_output=True, text=True)
                if answer.stdout.strip() == "RUNNING":
                    return run.name, job_id

    def log(name):
        return (runs / f"{name}.log").read_text()

    engine = subprocess.Popen(
        study, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    killed, job_id = wait_for(running_job)
    call("scancel", "--signal=KILL", job_id)
    preempted, job_id = wait_for(lambda: running_job([killed]))
    call("scancel", "--signal=TERM", job_id)  # delivered, even where scancel says otherwise
    stop_daemon(slurm_folder, "slurmctld")
    print("slurmctld stopped")
    time.sleep(8)  # long enough for the engine to ask in vain
    call("slurmctld")
    requeued, requeued_id = wait_for(lambda: running_job([killed, preempted]))
    call("scontrol", "requeue", requeued_id)

    def hurry():
        """Slurm holds a requeued job back for two minutes: not here."""
        for waiting in (job_id, requeued_id):
            command = ["scontrol", "update", f"jobid={waiting}", "StartTime=now"]
            subprocess.run(command, env=environment, capture_output=True)
        time.sleep(3)
        return engine.poll() is not None

    wait_for(hurry)
    _, first = engine.communicate()
    print("first call of the engine, exit status", engine.returncode, first, sep="\n")
    assert engine.returncode == 1 and "1 of 12 runs failed" in first and killed in first
    assert len(results()) == 11 and killed not in results()

    second = subprocess.run(study, cwd=tmp_path, env=environment, capture_output=True, text=True)
    print("second call, exit status", second.returncode, second.stderr, second.stdout, sep="\n")
    assert second.returncode == 0 and "all 12 runs are finished" in second.stdout
    assert len(results()) == 12
    for name in results():
        text = log(name)
        starts, resumes = text.count("--run-dir"), text.count("$") - text.count("--run-dir")
        ends = text.count("6,000 steps, 2 episodes each")
        print(f"{name}: started {starts}, resumed {resumes}, ended {ends}")
        assert (starts, ends) == (1, 1) and resumes == (name in (killed, preempted, requeued))
        assert json.loads((runs / name / "result.json").read_text())["steps"] == 6000
