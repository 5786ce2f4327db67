"""The shipped teachers are what their score cards say."""

import importlib
import json

import pytest

from evaluate import read_header
from experiments.score_card import TEACHERS, readme
from ppd_mujoco import MujocoVectorEnv, evaluate, load_mujoco_agent

SHIPPED = sorted(TEACHERS.glob("**/*.safetensors"))


def test_there_are_teachers_and_the_card_is_current():
    assert SHIPPED
    assert (TEACHERS / "README.md").read_text() == readme()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_header_and_result_agree(path):
    header, result = read_header(path), json.loads(path.with_suffix(".json").read_text())
    assert header["env_id"] == result["args"]["env_id"].split(":")[-1] == path.stem
    assert header["score"].items() <= result["score"].items() and header["steps"] == result["steps"]
    assert header["seed"] == result["args"]["seed"]
    assert path.parent.name == ("teachers" if header["seed"] == 100 else f"seed-{header['seed']}")
    assert result["git_commit"] and "dirty" not in result["git_commit"]
    script = importlib.import_module(header["script"])
    getattr(script, f"load_{header['suite']}_agent")(path)


def test_the_hopper_teacher_plays_as_well_as_its_card_says():
    agent, header = load_mujoco_agent(TEACHERS / "Hopper-v4.safetensors")
    score = evaluate(agent, MujocoVectorEnv("Hopper-v4", 10, 2), 10, header["seed"])
    card = json.loads((TEACHERS / "Hopper-v4.json").read_text())
    # The first episode of each of the ten slots is the first, sixth, … of the fifty on the card;
    # another number of threads rounds otherwise, which a thousand steps of contact amplify.
    assert score["returns"] == pytest.approx(card["episode_returns"][::5], rel=0.05)
    assert min(score["returns"]) > 0.9 * header["score"]["mean"]
    assert score["lengths"] == [1000] * 10
