"""The studies are the paper's: as many runs, of the right kinds, each in a folder of its own."""

import pytest

from experiments.studies import STUDIES, narrow


@pytest.mark.parametrize(
    ("study", "count"),
    [("teachers", 100), ("sizes", 855), ("imperfect", 120), ("lambda", 80), ("ppo-baseline", 40)],
)
def test_number_of_runs_and_folders(study, count):
    runs = STUDIES[study]()
    assert len(runs) == count == len({run.run_dir for run in runs})


def test_narrowed_to_a_corner():
    runs = narrow(STUDIES["sizes"](), suite=["mujoco"], seed=[100], method=["ppd"])
    assert len(runs) == 4 * 3  # environments × sizes
    assert {run.env_id for run in runs} == {"Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Humanoid-v4"}


def test_a_student_learns_from_the_teacher_of_its_seed():
    (run,) = narrow(
        STUDIES["sizes"](), env_id=["Hopper-v4"], seed=[300], method=["ppd"], size=["larger"]
    )
    command = " ".join(map(str, run.command()[1:]))
    assert command == (
        "ppd_mujoco.py --env-id Hopper-v4 --seed 300 --student-size larger "
        "--teacher runs/teachers/Hopper-v4__teacher__same__300/agent.safetensors "
        "--run-dir runs/sizes/Hopper-v4__ppd__larger__300"
    )
