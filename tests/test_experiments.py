"""The engine on this machine: however it is interrupted, each run is trained once, to its end."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import save_file

from experiments.job import Job, is_finished, is_training
from experiments.run import find_agent
from experiments.studies import STUDIES, Run, narrow, teacher_run

ROOT = Path(__file__).parents[1]
TINY = [sys.executable, str(ROOT / "tests" / "tiny_study.py")]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
RUN = "runs/{}/Hopper-v4__ppd__smaller__distill-lambda-{}__total-timesteps-{}__100"


@pytest.fixture
def folder(tmp_path):
    """A folder with a shipped teacher of Hopper, seed 100, and no runs."""
    (tmp_path / "teachers").mkdir()
    teacher = tmp_path / "teachers" / "Hopper-v4.safetensors"
    save_file({"weights": np.zeros(1)}, teacher, metadata={"header": '{"seed": 100}'})
    return tmp_path


def start(folder, *arguments, **environment):
    """Start the engine in its own process group, so that only it gets a signal."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    pipes |= {"cwd": folder, "env": ENVIRONMENT | environment, "start_new_session": True}
    # Tests in the background of a shell ignore Ctrl-C, and their children would, too.
    hear_ctrl_c = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([*TINY, *arguments], preexec_fn=hear_ctrl_c, **pipes)


def finish(engine, status):
    output, _ = engine.communicate(timeout=120)
    assert engine.returncode == status, output
    return output


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    return found


def log_of(run):
    path = run.with_name(f"{run.name}.log")
    return path.read_text() if path.exists() else ""


def steps(run):
    """Process and step, in the order in which they were trained."""
    return re.findall(r"process (\d+) at step (\d+)", log_of(run))


def assert_trained(run, times, total):
    """Trained to its end by `times` processes, each from where the one before had saved."""
    assert is_finished(run) and not is_training(run)
    parts = [[*part] for _, part in itertools.groupby(steps(run), key=lambda pair: pair[0])]
    assert len(parts) == times == len({part[0][0] for part in parts})
    last = 0
    for part in parts:
        numbers = [int(step) for _, step in part]
        assert numbers == [*range(last // 5 * 5 + 1, numbers[-1] + 1)]
        last = numbers[-1]
    assert last == total


def test_interrupted_in_every_way(folder):
    first, second = (folder / RUN.format("tiny", weight, 300) for weight in (1, 2))

    def start_and_see_it_train():
        seen, engine = len(steps(first)), start(folder, "tiny", "--workers", "1")
        wait_for(lambda: len(steps(first)) > seen + 10)
        return engine

    for number in (signal.SIGINT, signal.SIGTERM):
        engine = start_and_see_it_train()
        engine.send_signal(number)
        assert "continue with: python -m experiments.run tiny" in finish(engine, 130)
        assert not is_training(first) and not is_finished(first)

    # The engine is killed with its training, then without; another run is killed early; then two
    # engines run at the same time.
    engine = start_and_see_it_train()
    engine.kill()
    finish(engine, -signal.SIGKILL)
    assert is_training(first)
    os.kill(int(steps(first)[-1][0]), signal.SIGKILL)
    engine = start_and_see_it_train()
    engine.kill()
    finish(engine, -signal.SIGKILL)
    second.mkdir()
    assert is_training(first)
    for engine in [start(folder, "tiny", "--workers", "2") for _ in range(2)]:
        output = finish(engine, 1)
        assert "must be 0 or more" in output and "1 of 3 runs failed" in output
    assert_trained(first, 4, 300)
    assert_trained(second, 1, 300)
    assert "cores" in first.with_name(f"{first.name}.hardware.json").read_text()

    before = log_of(first)  # a finished run is not touched
    finish(start(folder, "tiny"), 1)
    assert log_of(first) == before


DAMAGES = [
    ({"result.json": ""}, 1, "result.json is not complete"),
    ({"result.json": '{"score": {"me', "training_state.pt": "ok"}, 11, "not complete"),
    ({"result.json": "[]", "training_state.pt": "ok"}, 11, "not complete"),
    ({"training_state.pt": "{"}, 1, "damaged; the run starts from the beginning"),
    ({"events": "killed before its first checkpoint"}, 1, "--run-dir"),
]


@pytest.mark.parametrize(("files", "first_step", "words"), DAMAGES)
def test_damaged_runs_are_repaired(folder, files, first_step, words):
    run = folder / RUN.format("brief", 1, 20)
    run.mkdir(parents=True)
    for name, text in files.items():
        (run / name).write_text(json.dumps({"step": 10, "total": 20}) if text == "ok" else text)
    finish(start(folder, "brief"), 1)
    assert is_finished(run) and len(steps(run)) == 21 - first_step and words in log_of(run)
    assert run.with_name(f"{run.name}.damaged").exists() == ("damaged" in words)


def test_a_damaged_run_is_kept_beside_an_older_one(tmp_path):
    """It is not moved if its checkpoint has changed, or if another process trains it."""
    job = Job(tmp_path / "run", [], [])

    def damage():
        job.run_dir.mkdir()
        (job.run_dir / "training_state.pt").write_text("{")
        return job.saved_at()

    for name in ("run.damaged", "run.damaged1", "run.damaged2"):
        job.put_aside(damage())
        assert (tmp_path / name / "training_state.pt").exists() and not job.run_dir.exists()
    job.put_aside(damage() - 1)
    with FileLock(job.run_dir / "lock"):
        job.put_aside(job.saved_at())
    assert job.run_dir.exists() and not (tmp_path / "run.damaged3").exists()


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ('{"score": {"mean": 1.0}}', True),
        ('{"scores": {"Ant-v4": {"mean": 1.0}}}', True),
        ('{"scores": {}}', False),
        ('{"steps": 7}', False),
        ('["score"]', False),
        ('{"score": {"mea', False),
    ],
)
def test_a_run_is_finished_when_it_has_its_scores(tmp_path, text, finished):
    """One score, or one for each of several tasks."""
    (tmp_path / "result.json").write_text(text)
    assert is_finished(tmp_path) == finished


def test_slurm_can_requeue_a_job(tmp_path):
    """When its time is up, submitit asks the job what to submit again: the job itself."""
    job = Job(tmp_path / "run", [], [])
    again = job.checkpoint()
    assert again.function is job and not again.args and not again.kwargs


def test_a_log_that_cannot_be_written_ends_its_own_run_alone(folder):
    first, second = (folder / RUN.format("brief", weight, 20) for weight in (1, 2))
    first.with_name(f"{first.name}.log").mkdir(parents=True)
    output = finish(start(folder, "brief", "--workers", "1"), 1)
    assert "Is a directory" in output and "2 of 3 runs failed" in output
    assert is_finished(second) and not is_finished(first)


GPUS = [([], "GPU-8f,MIG-2c", {"GPU-8f", "MIG-2c"}), ([], "", {""}), ([], None, {"0", "1"})]
GPUS += [(["--device", "cpu"], None, {None})]


@pytest.mark.parametrize(("flags", "variable", "gpus"), GPUS)
def test_each_worker_has_its_gpu_and_cores(folder, flags, variable, gpus):
    (folder / "nvidia-smi").write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    (folder / "nvidia-smi").chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    environment |= {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    finish(start(folder, "brief", "--workers", "2", "--cores", "3", *flags, **environment), 1)
    results = [json.loads(path.read_text()) for path in folder.glob("runs/brief/*/result.json")]
    assert {result["CUDA_VISIBLE_DEVICES"] for result in results} == gpus
    assert {result["OMP_NUM_THREADS"] for result in results} == {"3"}
    assert {result["MALLOC_MMAP_MAX_"] for result in results} == {"0"}


def test_a_run_that_another_process_trains_is_not_touched(tmp_path):
    job = Job(tmp_path / "run", ["nowhere.py"], [])
    job.run_dir.mkdir()
    with FileLock(job.run_dir / "lock"), ThreadPoolExecutor() as pool:
        pool.submit(job)
        time.sleep(0.5)
        job.stopped = True
    assert job.run_dir.exists() and job.log_tail() == "(no log)"


def test_an_imperfect_teacher_is_made_once(tmp_path):
    made = tmp_path / "made" / "teacher"
    make = f"import time; time.sleep(1); open({str(made)!r}, 'a').write('made')"
    fail = ["-c", "import sys; sys.exit('no such training script')"]
    jobs = [Job(tmp_path / name, fail, [], 1, ["-c", make], made) for name in "abc"]
    with ThreadPoolExecutor() as pool:
        list(pool.map(Job.__call__, jobs))
    assert made.read_text() == "made"
    assert all("no such training script" in job.log_tail() for job in jobs)


WRONG_INPUTS = [
    (
        ["orphan"],
        "python -m experiments.run teachers --method teacher --env-id Hopper-v4 --seed 300",
    ),
    (  # teachers of two studies
        ["gradient"],
        "--seed 100 && python -m experiments.run pixels --method teacher "
        "--env-id coinrun CrazyClimberNoFrameskip-v4 --seed 100`",
    ),
    (
        ["zoo", "--env-id", "Walker2d-v4", "--seed", "100"],
        "3 runs have no teacher yet; import it, next to a clone of DLR-RM/rl-trained-agents, with "
        "`python convert.py import rl-trained-agents/trpo/Walker2d-v3_1/Walker2d-v3.zip "
        "--vecnormalize rl-trained-agents/trpo/Walker2d-v3_1/Walker2d-v3/vecnormalize.pkl "
        "--env-id Walker2d-v4 --out runs/zoo/Walker2d-v4.safetensors`",
    ),
    (  # a teacher for one task, and none for the other
        ["multi", "--variant", "paper", "--seed", "100"],
        "1 runs have no teacher yet; train it with `python -m experiments.run teachers --method "
        "teacher --env-id HalfCheetah-v4 --seed 100 && python -m experiments.run multi --method "
        "teacher --env-id HalfCheetahBackward-v4 --seed 100`",
    ),
    (["nothing"], "study nothing: unknown; give one of teachers, sizes"),
    (["sizes", "--method", "sd"], "which has teacher-distill, student-distill, ppd"),
    (["sizes", "--env-id", "Hopper"], "which has Atlantis"),
    (["fade", "--variant", "slow"], "which has fade, fade-early, floor"),
    (["sizes", "--suite", "atari", "--env-id", "Ant-v4"], "matches all these choices"),
    (["tiny", "--cores", "0"], "must be above 0"),
    (["tiny", "--cluster", "slurm", "--sbatch", "main"], "give NAME=VALUE"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG_INPUTS)
def test_wrong_input_is_one_line_and_status_2(folder, arguments, words):
    (folder / "srun").touch(mode=0o755)
    environment = ENVIRONMENT | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run([*TINY, *arguments], cwd=folder, env=environment, capture_output=True)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and words in done.stderr.decode()


def test_a_shipped_teacher_is_found_by_the_seed_in_its_header(folder, monkeypatch):
    """Not by its folder's name: of two files, each is the teacher of its own seed."""
    monkeypatch.chdir(folder)
    assert find_agent(teacher_run("Hopper-v4", 200)) is None
    for name, seed in [("seed-200", 200), ("seed-best", 400)]:
        path = folder / "teachers" / name / "Hopper-v4.safetensors"
        path.parent.mkdir()
        header = {"header": json.dumps({"seed": seed})}
        save_file({"weights": np.zeros(1)}, path, metadata=header)
    found = [find_agent(teacher_run("Hopper-v4", seed)) for seed in (100, 200, 300, 400)]
    names = ["", "seed-200/", None, "seed-best/"]
    assert found == [n if n is None else Path(f"teachers/{n}Hopper-v4.safetensors") for n in names]
    assert find_agent(Run("teachers", "Hopper-v4", "teacher", 200, "smaller")) is None
    assert find_agent(Run("sizes", "Hopper-v4", "ppd", 200)) is None  # a student is not shipped


def test_a_student_that_is_trained_further_must_be_there_first(folder):
    """The engine says which command trains it."""
    shutil.copy(folder / "teachers/Hopper-v4.safetensors", folder / "teachers/Ant-v4.safetensors")
    arguments = ["fade", "--variant", "init", "init-warmup", "--env-id", "Ant-v4"]
    remedy = "`python -m experiments.run fade --method student-distill --env-id Ant-v4 --seed 100`"
    output = finish(start(folder, *arguments), 2)
    assert f"2 runs have no teacher yet; train it with {remedy}" in output
    for run in narrow(STUDIES["fade"](), env_id=["Ant-v4"], method=["student-distill"]):
        (folder / run.run_dir).mkdir(parents=True)
        (folder / run.run_dir / "result.json").write_text('{"score": {"mean": 1}}')
    shutil.rmtree(folder / "teachers")
    assert "teachers --method teacher" in finish(start(folder, *arguments), 2)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_shipped_teacher_is_one_line(folder, content):
    (folder / "teachers" / "Hopper-v4.safetensors").write_bytes(content)
    output = finish(start(folder, "orphan", "--dry-run"), 2)
    assert len(output.splitlines()) == 1 and "Hopper-v4.safetensors: damaged" in output


def test_a_file_in_a_runs_place_is_one_line(folder):
    path = folder / RUN.format("tiny", 1, 300)
    path.parent.mkdir(parents=True)
    path.write_text("")
    assert len(finish(start(folder, "tiny"), 2).splitlines()) == 1
