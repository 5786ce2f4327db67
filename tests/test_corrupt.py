"""Imperfect teachers: noise on every parameter and nothing else, scored, told in the header."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import ppd_mujoco
import ppo_teacher_mujoco as teacher_script
from experiments import corrupt

SMALL = {"num_envs": 2, "num_steps": 8, "minibatch_size": 16, "hidden_sizes": (8,)}
SMALL |= {"num_workers": 1, "torch_threads": 1, "eval_every": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a shipped teacher of Hopper, seed 100."""
    folder = tmp_path_factory.mktemp("corrupt")
    run_dir = folder / "teacher"
    args = teacher_script.Args(run_dir=str(run_dir), total_timesteps=1, episodes=4, **SMALL)
    teacher_script.train(args)
    (folder / "teachers").mkdir()
    (run_dir / "agent.safetensors").rename(folder / "teachers" / "Hopper-v4.safetensors")
    return folder


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
