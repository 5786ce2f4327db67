"""Corrupted teachers: noise on all parameters and nothing else, with the score in the header."""

from pathlib import Path

import pytest
import torch
from helpers import load, make_teacher, save_agent, shorten_episodes

from experiments import corrupt

SCORE = {"mean": 40.0, "standard_error": 1.0, "episodes": 4}


@pytest.fixture
def teacher(tmp_path):
    """A teacher of Hopper that has a score."""
    path = tmp_path / "Hopper-v4.safetensors"
    make_teacher("mujoco", path, score=SCORE)
    return path


def make(teacher, out, **options):
    """Corrupt a teacher; returns its header and the parameters as read from the file."""
    header = corrupt.corrupt(corrupt.Args(str(teacher), str(out), **options))
    agent, read_back = load("ppd_mujoco").load_mujoco_agent(out)
    assert read_back == header
    return header, agent.state_dict()


def test_corrupted_teacher(teacher, tmp_path):
    agent, _ = load("ppd_mujoco").load_mujoco_agent(teacher)
    before, parameters = agent.state_dict(), {name for name, _ in agent.named_parameters()}
    header, after = make(teacher, tmp_path / "a.safetensors", sigma=0.3, seed=7)
    assert (header["sigma"], header["noise_seed"]) == (0.3, 7)
    assert header["original_score"] == SCORE != header["score"]
    assert header["score"]["episodes"] == 4
    # Noise on every parameter, policy, log-std and critic, and on nothing else.
    assert {name for name in before if not torch.equal(before[name], after[name])} == parameters
    noise = torch.cat([(after[name] - before[name]).flatten() for name in parameters])
    assert (noise != 0).all()
    assert abs(noise.std() - 0.3) < 0.05 and abs(noise.mean()) < 0.08
    # The same seed makes the same teacher, another seed another one.
    _, again = make(teacher, tmp_path / "b.safetensors", sigma=0.3, seed=7)
    _, other = make(teacher, tmp_path / "c.safetensors", sigma=0.3, seed=8)
    assert all(torch.equal(again[name], after[name]) for name in after)
    assert not torch.equal(other["log_std"], after["log_std"])


def test_a_quieter_teacher(teacher, tmp_path):
    """Its actions have less noise; its deterministic policy does not change."""
    agent, _ = load("ppd_mujoco").load_mujoco_agent(teacher)
    header, after = make(teacher, tmp_path / "quiet.safetensors", log_std_shift=-2.0)
    before = agent.state_dict()
    torch.testing.assert_close(after.pop("log_std"), before.pop("log_std") - 2)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (header["sigma"], header["log_std_shift"], header["seed"]) == (0.0, -2.0, 1)


def test_a_choice_has_no_noise_to_lower(tmp_path):
    box = load("ppd_mujoco").make_mujoco_env("CartPole-v1").action_space
    agent = load("ppd_mujoco").MujocoAgent(box.low, box.high, 4, (5,))
    make_teacher("mujoco", path := tmp_path / "CartPole-v1.safetensors")
    header = load("ppd_mujoco").load_mujoco_agent(path)[1] | {"env_id": "CartPole-v1"}
    save_agent(agent, path, header | {"score": SCORE})
    with pytest.raises(corrupt.UserError, match="no log σ"):
        make(path, tmp_path / "quiet.safetensors", log_std_shift=-2.0)


REFUSED = [
    ({"teacher": "nowhere.safetensors"}, "No such file"),
    ({"sigma": 0.0}, "must be above 0"),
    ({"episodes": 0}, "at least 1"),
    ({"teacher": "corrupted"}, "corrupted already"),
    ({"teacher": "unfinished"}, "no score yet"),
    ({"out": "."}, "a folder; give a file in it"),
    ({"out": "/dev/null/x.safetensors"}, "give another file"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_corrupt_refuses_in_one_line(changes, words, teacher, tmp_path, monkeypatch, refused):
    make_teacher("mujoco", tmp_path / "corrupted", score=SCORE, sigma=0.1)
    make_teacher("mujoco", tmp_path / "unfinished")
    monkeypatch.chdir(tmp_path)
    flags = {"teacher": teacher, "sigma": 0.1, "out": "x.safetensors"} | changes
    arguments = [flags.pop("teacher")]
    arguments += [word for name, value in flags.items() for word in (f"--{name}", value)]
    refused(corrupt, arguments, words)
    assert not Path("x.safetensors").exists()


@pytest.mark.parametrize("suite", ["atari", "procgen"])
def test_corrupted_teacher_of_frames(suite, tmp_path, monkeypatch):
    script = load(f"ppo_teacher_{suite}")
    shorten_episodes(script, suite, monkeypatch)
    path, score = tmp_path / "teacher.safetensors", {"score": SCORE}
    score |= {"score_training": SCORE} if suite == "procgen" else {}
    make_teacher(suite, path, script=script.__name__, **score)
    args = corrupt.Args(str(path), str(tmp_path / "out.safetensors"), episodes=2)
    header = corrupt.corrupt(args)
    assert header["sigma"] == 0.05
    assert {f"original_{name}" for name in score} <= header.keys()
    assert all(header[name]["episodes"] == 2 for name in score)
