"""The benchmark compares like with like: SB3's networks and settings are those of our scripts."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import first_gpu, sb3, speed

ROOT = Path(__file__).resolve().parents[1]
SUITES = ["mujoco", "atari", "procgen"]


@pytest.mark.parametrize("suite", SUITES)
def test_contestants_have_the_papers_hyperparameters(suite):
    env_id = speed.ENVS[suite][0]
    scripts = speed.our_scripts(speed.Args(suite, student_size="smaller"))
    ppo, ppd = [speed.script_args(*scripts[name], env_id) for name in ("ppo", "ppd")]
    assert ppo.num_envs == ppd.num_envs == 18 and ppo.env_id == ppd.env_id == env_id
    assert (ppd.num_steps, ppd.minibatch_size, ppd.student_size) == (64, 512, "smaller")
    settings = sb3.settings_of(ppd)
    assert (settings["n_steps"], settings["batch_size"], settings["n_epochs"]) == (64, 512, 4)
    assert settings["gamma"] == ppd.gamma and settings["clip_range"] == 0.2


def test_shortened_rollouts_and_switches_reach_ppo_and_ppd():
    scripts = speed.our_scripts(speed.Args("atari", num_steps=32, options=("bfloat16",)))
    for script in scripts.values():
        args = speed.script_args(*script, "PongNoFrameskip-v4")
        assert args.num_steps == 32 and args.bfloat16 and not args.compile


@pytest.mark.parametrize("suite", SUITES)
def test_sb3_teacher_acts_and_values_as_ours(suite, tmp_path):
    ppo, env_id = import_module(f"ppo_teacher_{suite}"), speed.ENVS[suite][0]
    path = ROOT / "teachers" / "Hopper-v4.safetensors"
    if suite != "mujoco":
        shape, actions = {"atari": ((4, 84, 84), 6), "procgen": ((3, 64, 64), 15)}[suite]
        header = {"format": "ppd-agent-2", "suite": suite, "env_id": env_id, "size": "same"}
        header |= {"script": ppo.__name__, "seed": 1, "steps": 0, "deterministic": True}
        path = tmp_path / "agent.safetensors"
        agent = ppo.PixelAgent(shape, actions, "same")
        path.write_bytes(ppo.pack_agent(agent.state_dict(), header | {"frame_skip": 4}))
    agent, _ = getattr(ppo, f"load_{suite}_agent")(path)
    args = ppo.Args(env_id=env_id, num_envs=2, num_steps=2)
    envs = sb3.make_envs(suite, args, "DummyVecEnv")
    small = {"device": "cpu", "n_steps": 2, "batch_size": 4}
    teacher = sb3.make_teacher(suite, str(path), envs, small)
    # MuJoCo's observations are normalised on the way, with the teacher's statistics.
    envs.training = False
    obs = envs.reset()
    raw = envs.get_original_obs()
    theirs, _ = teacher.policy.obs_to_tensor(obs)
    if suite == "atari":  # SB3 stacks frames last
        theirs, _ = teacher.policy.obs_to_tensor(np.moveaxis(obs, -1, 1))
        raw = np.moveaxis(raw, -1, 1)
    with torch.no_grad():
        found, wanted = teacher.policy.get_distribution(theirs).distribution, agent.policy(raw)
        if suite == "mujoco":
            torch.testing.assert_close(found.mean, wanted.mean, atol=1e-4, rtol=0)
            torch.testing.assert_close(found.stddev, wanted.stddev, atol=1e-6, rtol=0)
        else:
            torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)
        values = teacher.policy.predict_values(theirs).squeeze(-1)
        torch.testing.assert_close(values, agent.value(raw), atol=1e-3, rtol=1e-4)
    envs.close()


def test_sb3_plays_the_same_procgen_games():
    args = import_module("ppo_teacher_procgen").Args()
    ours, theirs = speed.make_our_envs("procgen", args), sb3.make_envs("procgen", args, "")
    assert np.array_equal(ours.reset(seed=args.seed)[0], theirs.reset())
    random = np.random.default_rng(0)
    for _ in range(50):
        actions = random.integers(15, size=18)
        obs, rewards, ended, _, _ = ours.step(actions)
        their_obs, _, their_ended, _ = theirs.step(actions)
        assert np.array_equal(obs, their_obs) and np.array_equal(ended, their_ended)
        assert np.array_equal(rewards, theirs.get_original_reward())


def test_limit_runs_the_networks_of_the_script():
    flags = ["--num-steps", "4", "--student-size", "smaller", "--num-workers", "1"]
    teacher = str(ROOT / "teachers" / "Hopper-v4.safetensors")
    assert 1 < speed.measure_limit("ppd_mujoco", flags, "Hopper-v4", 20, teacher) < 1e6


@pytest.mark.parametrize("suite", ["atari", "procgen"])
def test_first_gpu_times_every_phase(suite):
    args = first_gpu.Args(device="cpu", num_envs=2, minibatch_size=4, rounds=1)
    settings = dict.fromkeys(first_gpu.SETTINGS, True) | {"compile": False}
    found = first_gpu.measure(import_module(f"ppd_{suite}"), args, "smaller", settings)
    torch.backends.cudnn.benchmark = False
    phases = [*found["act"]["milliseconds"], *found["minibatch"]["milliseconds"]]
    assert phases[1] == "policy" and phases[-3:] == ["backward", "clipping", "Adam"]
    assert found["minibatch"]["sum"] > 0 and json.dumps(found)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sb3-distill", "nowhere"], "no package sb3_distill in it; clone"),
        (["--repeats", "0"], "must be at least 1"),
        (["--only", "pdp"], "--only pdp: give some of ppo, sb3_ppo"),
        (["--only", "sb3_distill"], "give --sb3-distill as well"),
        (["--options", "compile"], "only the pixel scripts have it"),
    ],
)
def test_wrong_flags_are_one_line(flags, said):
    command = [sys.executable, ROOT / "benchmarks" / "speed.py", "mujoco", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
