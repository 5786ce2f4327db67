"""The studies are the paper's: as many runs, of the right kinds, each in a folder of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.studies import STUDIES, narrow

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("study", "count"),
    [
        ("teachers", 100),
        ("sizes", 855),
        ("imperfect", 120),
        ("lambda", 80),
        ("ppo-baseline", 40),
        ("imperfect-mujoco", 4 * 3 * 5),
        ("lambda-mujoco", 2 * 5 * 5),
    ],
)
def test_number_of_runs_and_folders(study, count):
    runs = STUDIES[study]()
    assert len(runs) == count == len({run.run_dir for run in runs}) == len(set(runs))
    assert all(run.study == study for run in runs)


def test_narrowed_to_a_corner():
    runs = narrow(STUDIES["sizes"](), suite=["mujoco"], seed=[100], method=["ppd"])
    assert len(runs) == 4 * 3  # environments × sizes
    assert {run.env_id for run in runs} == {"Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Humanoid-v4"}


def dry_run(tmp_path, *arguments) -> list[str]:
    """The command lines that `--dry-run` prints, of a repository without any run."""
    command = [sys.executable, "-m", "experiments.run", *arguments, "--dry-run"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_student_learns_from_the_teacher_of_its_seed(tmp_path):
    choices = "--env-id Hopper-v4 --seed 300 --method ppd --size larger"
    assert dry_run(tmp_path, "sizes", *choices.split()) == [
        "python ppd_mujoco.py --env-id Hopper-v4 --seed 300 --student-size larger "
        "--teacher runs/teachers/Hopper-v4__teacher__same__300/agent.safetensors "
        "--run-dir runs/sizes/Hopper-v4__ppd__larger__300"
    ]


def test_imperfect_prints_the_commands_that_make_its_teachers(tmp_path):
    choices = "--env-id QbertNoFrameskip-v4 --seed 100 --method student-distill ppd"
    assert dry_run(tmp_path, "imperfect", *choices.split()) == [
        "python -m experiments.corrupt "
        "runs/teachers/QbertNoFrameskip-v4__teacher__same__100/agent.safetensors --sigma 0.05 "
        "--seed 100 --out runs/corrupted/QbertNoFrameskip-v4__sigma-0.05__100.safetensors",
        "python student_distill.py atari --env-id QbertNoFrameskip-v4 --seed 100 "
        "--student-size larger "
        "--teacher runs/corrupted/QbertNoFrameskip-v4__sigma-0.05__100.safetensors "
        "--run-dir runs/imperfect/QbertNoFrameskip-v4__student-distill__larger__sigma-0.05__100",
        "python ppd_atari.py --env-id QbertNoFrameskip-v4 --seed 100 --student-size larger "
        "--teacher runs/corrupted/QbertNoFrameskip-v4__sigma-0.05__100.safetensors "
        "--run-dir runs/imperfect/QbertNoFrameskip-v4__ppd__larger__sigma-0.05__100",
    ]
