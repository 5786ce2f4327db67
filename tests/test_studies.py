"""The studies are the paper's: as many runs, of the right kinds, each in a folder of its own."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
from helpers import Process

from experiments.run import Args, make_job, run_locally
from experiments.studies import METHODS, STUDIES, all_runs, narrow, partial_method

ROOT = Path(__file__).parents[1]
COUNTS = {"teachers": 100, "sizes": 855, "imperfect": 120, "lambda": 80, "ppo-baseline": 40}
COUNTS |= {
    "imperfect-mujoco": 60,
    "lambda-mujoco": 50,
    "sb3-ppo": 10,
    "gradient": 100,
    "pixels": 19,
}
COUNTS |= {"partial": 30}


def test_number_of_runs_and_folders():
    assert {study: len(make_runs()) for study, make_runs in STUDIES.items()} == COUNTS
    runs = all_runs()
    assert all(run.study == study for study in STUDIES for run in STUDIES[study]())
    assert len({r.run_dir for r in runs}) == len({(*r.key.values(),) for r in runs}) == len(runs)
    corner = narrow(STUDIES["sizes"](), suite=["mujoco"], seed=[100], method=["ppd"])
    assert len(corner) == 4 * 3  # environments × sizes


def test_students_learn_from_the_teacher_of_their_seed_or_of_seed_100():
    choices = {"env_id": ["Ant-v4"], "seed": [300], "method": ["ppd"]}
    ant = {study: narrow(STUDIES[study](), **choices) for study in STUDIES}
    paper, detached = narrow(ant["gradient"], log_std_shift=[0.0], size=["smaller"])
    for run, seed, flag in [
        (narrow(ant["sizes"], size=["smaller"])[0], 300, ""),
        (paper, 100, ""),
        (detached, 100, "no-ratio-gradient"),
    ]:
        teacher = f"runs/teachers/Ant-v4__teacher__same__{seed}/agent.safetensors"
        run_dir = f"runs/{run.study}/Ant-v4__ppd__smaller{flag and '__'}{flag}__300"
        assert " ".join([*run.script, *run.flags()]) == (
            f"ppd_mujoco.py --env-id Ant-v4 --seed 300 --student-size smaller --teacher {teacher} "
            f"{flag and f'--{flag} '}--run-dir {run_dir}"
        )
    quiet = narrow(ant["gradient"], log_std_shift=[-2.0])[0]
    assert quiet.run_dir.name == "Ant-v4__ppd__smaller__log-std-2__300"
    made = "runs/corrupted/Ant-v4__log-std-2__100.safetensors"
    assert " ".join(quiet.corruption) == f"--log-std-shift -2 --seed 100 --out {made}"
    noisy = narrow(ant["gradient"], sigma=[0.0175])[0].teacher
    assert noisy.name == "Ant-v4__sigma-0.0175__100.safetensors"


def test_partial_has_three_seeds_of_five_students_in_two_environments():
    runs = STUDIES["partial"]()
    quiet = "--no-ratio-gradient"
    students = {("ppd-lstm", quiet), ("distill-lstm", f"--pg-coef 0 {quiet}"), ("ppd-lstm", "")}
    students |= {("ppo-lstm", "--distill-lambda 0"), ("ppd-mlp", f"--memory none {quiet}")}
    assert {(r.env_id, r.method, r.seed) for r in runs} == {
        (env_id, method, seed)
        for env_id in ("Hopper-v4", "HalfCheetah-v4")
        for method, _ in students
        for seed in (100, 200, 300)
    }
    teacher = "runs/teachers/Hopper-v4__teacher__same__100/agent.safetensors"
    command = "ppd_mujoco_lstm.py --env-id Hopper-v4 --seed 200 --student-size same --teacher "
    found = set()
    for run in narrow(runs, env_id=["Hopper-v4"], seed=[200]):
        start, flags = " ".join([*run.script, *run.flags()]).split(f"{teacher} ")
        flags, folder = flags.split("--run-dir runs/partial/")
        found.add((run.method, flags.strip()))
        name = "".join(
            f"__{flag}"
            for flag in flags.replace(" 0", "-0")
            .replace(" none", "-none")
            .replace("--", "")
            .split()
        )
        assert (start, folder) == (command, f"Hopper-v4__{run.method}__same{name}__200")
        default = {"observe": "positions", "memory": "lstm", "pg_coef": 1.0, "distill_lambda": 1.0}
        given = {name.replace("-", "_"): value for name, value in run.options.items()}
        assert partial_method(default | given) == run.method
    assert found == students
    assert partial_method(default | {"observe": "velocities"}) is None


def test_pixels_and_gradient_share_the_teacher_that_two_cores_trained():
    for suite, weights in [("procgen", [0.0, 0.5, 1.0, 2.0, 5.0]), ("atari", [0.0, 1.0])]:
        own, *students = narrow(STUDIES["pixels"](), suite=[suite])
        sound = narrow(students, sigma=[0.0])
        assert own.method == "teacher" and {s.method for s in students if s.sigma} == {*METHODS}
        found = [s.key["distill_lambda"] for s in narrow(sound, method=["ppd"])]
        assert sorted(found) == weights
        both = narrow(STUDIES["gradient"](), suite=[suite])
        assert sorted((r.seed, r.key["ratio_gradient"]) for r in both) == [
            (seed, form) for seed in (100, 200, 300) for form in (False, True)
        ]
        for run in [*sound, *both]:
            assert run.teacher == own.run_dir / "agent.safetensors"


def test_imperfect_prints_the_commands_that_make_its_teachers(tmp_path):
    choices = "--env-id QbertNoFrameskip-v4 --seed 100 --method student-distill ppd --dry-run"
    command = [sys.executable, "-m", "experiments.run", "imperfect", *choices.split()]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    made = "runs/corrupted/QbertNoFrameskip-v4__sigma-0.05__100.safetensors"
    student = f"--env-id QbertNoFrameskip-v4 --seed 100 --student-size larger --teacher {made} "
    folder = "--run-dir runs/imperfect/QbertNoFrameskip-v4__{}__larger__sigma-0.05__100"
    assert done.stdout.splitlines() == [
        "python -m experiments.corrupt runs/teachers/QbertNoFrameskip-v4__teacher__same__100/"
        f"agent.safetensors --sigma 0.05 --seed 100 --out {made}",
        f"python student_distill.py atari {student}{folder.format('student-distill')}",
        f"python ppd_atari.py {student}{folder.format('ppd')}",
    ]


@pytest.mark.parametrize("flags", [[], ["--bfloat16"], ["--device", "cpu", "--bfloat16"]])
def test_bfloat16_is_for_runs_on_frames(flags):
    choices = ["--suite", "mujoco", "procgen", "--method", "ppd", "--seed", "200", "--dry-run"]
    command = [sys.executable, "-m", "experiments.run", "gradient", *choices, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    commands = [line for line in done.stdout.splitlines() if line.startswith("python ppd_")]
    assert all(any(suite in line for line in commands) for suite in ("mujoco", "procgen"))
    for line in commands:
        assert ("--bfloat16" in line) == ("--bfloat16" in flags and "procgen" in line)
        assert ("--device cpu" in line) == ("--device" in flags)


def test_an_imperfect_teacher_is_scored_where_its_students_train():
    job = make_job(STUDIES["imperfect"]()[0], Args("imperfect", device="cuda"))
    assert job.teacher_command[:2] == ["-m", "experiments.corrupt"]
    assert job.teacher_command[-2:] == ["--device", "cuda"] == job.command[-2:]


class Waiting:
    """Stands for a job: it is not over before its test is."""

    def __init__(self, run_dir, over: Event):
        self.run_dir, self.over = run_dir, over

    def __call__(self, gpu):
        self.over.wait()


@pytest.mark.parametrize(
    ("study", "flags", "at_once"),
    [
        ("pixels", {"device": "cuda"}, 8),
        ("pixels", {"device": "cuda", "workers": 3}, 3),
        ("pixels", {}, 8),  # frames are computed on a GPU where there is one
        ("pixels", {"device": "cpu"}, 16),
        ("gradient", {"suite": ("mujoco",), "cores": 8}, 2),
        ("lambda-mujoco", {}, 16),
        ("lambda-mujoco", {"device": "cuda"}, 8),
    ],
)
def test_a_gpu_is_not_given_a_run_for_each_core(study, flags, at_once, monkeypatch, tmp_path):
    """Two GPUs and 16 cores: four runs each, unless a user knows better."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("experiments.run.ask_nvidia", lambda column: ["0", "1"])
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(16))
    over = Event()
    jobs = [Waiting(tmp_path / str(number), over) for number in range(20)]
    with closing(run_locally(jobs, Args(study, **flags))) as progress:
        assert next(progress)[0] == at_once
    over.set()


def test_a_list_of_commands_may_be_read_in_part():
    """As `| head` does; a list that fits no pipe."""
    command = [sys.executable, "-m", "experiments.run", "sizes", "--dry-run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Process(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline().startswith("python teacher_distill.py atari")
        process.stdout.close()
        assert process.stderr.read() == ""
