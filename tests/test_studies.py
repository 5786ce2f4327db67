"""The studies have the planned runs, and each run has its own folder and a command that parses."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
from helpers import Process

from experiments import report, studies
from experiments.run import Args, make_job, run_locally
from experiments.studies import METHODS, STUDIES, all_runs, narrow, partial_method

ROOT = Path(__file__).parents[1]
COUNTS = {"teachers": 100, "sizes": 855 + 36, "imperfect": 120, "lambda": 80, "ppo-baseline": 40}
COUNTS |= {"imperfect-mujoco": 60, "lambda-mujoco": 50, "sb3-ppo": 10, "gradient": 100}
COUNTS |= {"pixels": 19, "partial": 30, "zoo": 27, "authors": 12, "fade": 96, "multi": 37}
ANT = {"env_id": ["Ant-v4"], "method": ["ppd"]}


def test_number_of_runs_and_folders():
    assert {study: len(make_runs()) for study, make_runs in STUDIES.items()} == COUNTS
    own = [run for study, run in all_runs() if run.study == study]
    assert {run.run_dir for _, run in all_runs()} == {run.run_dir for run in own}
    keys = [(*key.values(),) for run in own for key in run.keys]
    assert len({run.run_dir for run in own}) == len(own) and len({*keys}) == len(keys)
    corner = narrow(STUDIES["sizes"](), suite=["mujoco"], seed=[100], method=["ppd"])
    assert len(corner) == 4 * 3 * 2  # environments, sizes, forms of PPD


def test_runs_that_two_studies_need_are_trained_once():
    shared = {(study, run.study) for study, run in all_runs() if run.study != study}
    assert shared == {("sizes", "gradient"), ("fade", "gradient"), ("fade", "pixels")}
    of_sizes = [run for run in STUDIES["sizes"]() if run.study == "gradient"]
    assert {(run.env_id, run.size) for run in of_sizes} == {
        *((env_id, "smaller") for env_id in studies.MUJOCO),
        *((env_id, "larger") for env_id in ("Ant-v4", "Humanoid-v4")),
    }
    for run in of_sizes:  # only where the student's own teacher is the one of that study
        (origin,) = run.origins
        assert (run.seed, origin.seed, run.imperfections) == (100, 100, [])
        assert "no-ratio-gradient" in run.options


@pytest.mark.parametrize("study", STUDIES)
def test_every_command_parses(study):
    """The scripts have all flags of all runs, and take what the runs give."""
    for run in STUDIES[study]():
        planned = report.planned_args(run)
        assert planned["seed"] == run.seed and planned.get("student_size", run.size) == run.size
        for name, value in run.options.items():
            if value is not None:
                found = planned[name.replace("-", "_")]
                assert found == (list(value) if isinstance(value, tuple) else value), name


def test_fade_varies_one_thing_at_a_time():
    runs = STUDIES["fade"]()
    early = {"distill-lambda-final": 0, "distill-lambda-steps": 800_000}
    own = {"num-steps": 512, "gamma": 0.995}
    ant = narrow(runs, **ANT, sigma=[0.0175])
    quiet = {"no-ratio-gradient": None}
    for variant, options, seeds in [
        ("", quiet, 3),
        ("fade", quiet | {"distill-lambda-final": 0}, 3),
        ("fade-early", quiet | early | own, 3),
        ("floor", quiet | early | own | {"distill-lambda-final": 0.1}, 3),
        ("ppo", {"distill-lambda": 0}, 3),
        ("ppo-own-settings", {"distill-lambda": 0} | own, 3),
        ("fade-early-64-0.999", quiet | early | {"num-steps": 64, "gamma": 0.999}, 1),
        ("fade-early-64-0.995", quiet | early | {"num-steps": 64, "gamma": 0.995}, 1),
        ("fade-early-512-0.999", quiet | early | {"num-steps": 512, "gamma": 0.999}, 1),
        ("init", {"distill-lambda": 0, "total-timesteps": 1_600_000} | own, 1),
    ]:
        found = narrow(ant, variant=[variant])
        assert [run.seed for run in found] == [100, 200, 300][:seeds], variant
        assert all(run.options == options and run.size == "larger" for run in found), variant
    (hopper,) = narrow(runs, env_id=["Hopper-v4"], variant=["floor"], seed=[100])
    teacher = report.planned_args(hopper.origins[0])
    assert {
        name: teacher[name.replace("-", "_")] for name in ("num-steps", "gamma", "ent-coef")
    } == {name: hopper.options[name] for name in ("num-steps", "gamma", "ent-coef")}
    assert {run.origins[0].seed for run in runs} == {100}
    sound = narrow(runs, sigma=[0.0], suite=["mujoco"])
    assert sorted((run.env_id, run.seed) for run in sound) == [
        (env_id, seed) for env_id in ("Ant-v4", "HalfCheetah-v4") for seed in (100, 200, 300)
    ]


def test_a_distilled_student_is_trained_further_by_reward():
    choices = {"env_id": ["Ant-v4"], "seed": [100]}
    (student,) = narrow(STUDIES["fade"](), **choices, method=["student-distill"])
    for variant, warmup in [("init", ""), ("init-warmup", "--critic-warmup 100000 ")]:
        (run,) = narrow(STUDIES["fade"](), **choices, variant=[variant])
        command = " ".join(run.flags())
        assert f"{warmup}--init {student.run_dir}/agent.safetensors --run-dir" in command
        assert run.run_dir.name.endswith("__from-student-distill__100")


def test_multi_has_a_teacher_for_each_task():
    runs = STUDIES["multi"]()
    students = narrow(runs, method=["ppd-multi"])
    pair = "HalfCheetah-v4--HalfCheetahBackward-v4"
    ants = "Ant-v4--AntLeft-v4--AntBackward-v4--AntRight-v4"
    found = {(run.env_id, run.size, run.variant) for run in students}
    cheetahs = ["ppd", "distill", "ppo", "reverse", "reverse-unweighted", "paper"]
    expected = {(pair, "smaller", variant) for variant in cheetahs}
    expected |= {(pair, "larger", variant) for variant in ("ppd", "distill")}
    expected |= {(ants, "smaller", variant) for variant in ("ppd", "distill", "ppo")}
    assert found == expected and len(students) == 3 * len(found)
    (run,) = narrow(students, seed=[200], variant=["reverse-unweighted"])
    ids = "HalfCheetah-v4 experiments.tasks:HalfCheetahBackward-v4"
    teachers = [f"runs/{path}/agent.safetensors" for path in (
        "teachers/HalfCheetah-v4__teacher__same__100",
        "multi/HalfCheetahBackward-v4__teacher__same__100",
    )]  # fmt: skip
    assert " ".join([*run.script, *run.flags()]) == (
        f"ppd_mujoco_multi.py --env-ids {ids} --seed 200 --student-size smaller "
        f"--teachers {' '.join(teachers)} --total-timesteps 1000000 --kl reverse --weights 1 1 "
        f"--run-dir runs/multi/{pair}__ppd-multi__smaller__total-timesteps-1000000__kl-reverse"
        "__weights-1-1__200"
    )
    assert [key["env_id"] for key in run.keys] == ids.replace("experiments.tasks:", "").split()
    steps = {run.env_id: run.steps for run in runs if run.method == "teacher"}
    headings = dict.fromkeys(["AntLeft-v4", "AntBackward-v4", "AntRight-v4"], 5_000_000)
    assert steps == {"HalfCheetahBackward-v4": 10_000_000} | headings


def test_students_learn_from_the_teacher_of_their_seed_or_of_seed_100():
    ant = {study: narrow(STUDIES[study](), **ANT, seed=[300]) for study in STUDIES}
    of_sizes, recommended = narrow(ant["sizes"], size=["smaller"])
    paper, detached = narrow(ant["gradient"], log_std_shift=[0.0], size=["smaller"])
    for run, seed, flag in [
        (of_sizes, 300, ""),
        (recommended, 300, "no-ratio-gradient"),
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
    (noisy,) = narrow(ant["gradient"], sigma=[0.0175])[0].teachers
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
        found = [s.keys[0]["distill_lambda"] for s in narrow(sound, method=["ppd"])]
        assert sorted(found) == weights
        both = narrow(STUDIES["gradient"](), suite=[suite])
        assert sorted((r.seed, r.keys[0]["ratio_gradient"]) for r in both) == [
            (seed, form) for seed in (100, 200, 300) for form in (False, True)
        ]
        for run in [*sound, *both]:
            assert run.teachers == [own.run_dir / "agent.safetensors"]


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
    """Takes the place of a job: it lasts until its test ends."""

    def __init__(self, run_dir, over: Event):
        self.run_dir, self.over = run_dir, over

    def __call__(self, gpu):
        self.over.wait()


@pytest.mark.parametrize(
    ("study", "flags", "at_once"),
    [
        ("pixels", {"device": "cuda"}, 8),
        ("pixels", {"device": "cuda", "workers": 3}, 3),
        ("pixels", {}, 8),  # Atari and Procgen use a GPU if there is one
        ("pixels", {"device": "cpu"}, 16),
        ("gradient", {"suite": ("mujoco",), "cores": 8}, 2),
        ("lambda-mujoco", {}, 16),
        ("lambda-mujoco", {"device": "cuda"}, 8),
    ],
)
def test_a_gpu_is_not_given_a_run_for_each_core(study, flags, at_once, monkeypatch, tmp_path):
    """With two GPUs and 16 cores, four runs for each GPU; --workers overrides it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("experiments.run.ask_nvidia", lambda column: ["0", "1"])
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(16))
    over = Event()
    jobs = [Waiting(tmp_path / str(number), over) for number in range(20)]
    with closing(run_locally(jobs, Args(study, **flags))) as progress:
        assert next(progress)[0] == at_once
    over.set()


def test_a_list_of_commands_may_be_read_in_part():
    """As `| head` does, with a list that is longer than a pipe's buffer."""
    command = [sys.executable, "-m", "experiments.run", "sizes", "--dry-run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Process(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline().startswith("python teacher_distill.py atari")
        process.stdout.close()
        assert process.stderr.read() == ""
