"""The shipped teachers are what their score cards say."""

import json

import pytest

from evaluate import import_script
from experiments.score_card import TEACHERS, readme
from ppd_mujoco import MujocoVectorEnv, evaluate, load_mujoco_agent, read_checkpoint

SHIPPED = sorted(TEACHERS.glob("*.safetensors"))


def test_there_are_teachers_and_the_card_is_current():
    assert SHIPPED
    assert (TEACHERS / "README.md").read_text() == readme()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_header_and_result_agree(path):
    _, header = read_checkpoint(path)
    result = json.loads(path.with_suffix(".json").read_text())
    assert header["env_id"] == result["args"]["env_id"] == path.stem
    assert header["score"] == result["score"] and header["steps"] == result["steps"]
    assert header["seed"] == result["args"]["seed"] and import_script(path, header)
    assert result["git_commit"] and "dirty" not in result["git_commit"]


def test_the_hopper_teacher_plays_as_well_as_its_card_says():
    agent, header = load_mujoco_agent(TEACHERS / "Hopper-v4.safetensors")
    envs = MujocoVectorEnv("Hopper-v4", 10, 2)
    returns, lengths = evaluate(agent, envs, 10, 10_000 + header["seed"], True)
    envs.close()
    card = json.loads((TEACHERS / "Hopper-v4.json").read_text())
    # The first episode of each of the ten slots is the first, sixth, … of the fifty on the card;
    # another number of threads rounds otherwise, which a thousand steps of contact amplify.
    assert returns == pytest.approx(card["episode_returns"][::5], rel=0.05)
    assert min(returns) > 0.9 * header["score"]["mean"] and lengths == [1000] * 10
