"""The benchmark compares like with like: SB3's networks and settings are those of our scripts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ppd_mujoco

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import speed  # noqa: E402


@pytest.mark.parametrize("suite", ["mujoco", "atari", "procgen"])
def test_contestants_have_the_papers_hyperparameters(suite):
    env_id = speed.ENVS[suite][0]
    scripts = speed.our_scripts(speed.Args(suite))
    args = {name: speed.script_args(*script, env_id) for name, script in scripts.items()}
    assert {a.num_envs for a in args.values()} == {18} and {a.env_id for a in args.values()} == {
        env_id
    }
    assert args["ppd"].num_steps == 64 and args["ppd"].minibatch_size == 512
    assert (args["ppd"].student_size, args["ppd_smaller"].student_size) == ("larger", "smaller")
    if suite == "mujoco":
        assert (args["sd"].batch_size, args["td"].batch_size) == (90, 90)


def test_shortened_rollouts_and_switches_reach_ppo_and_ppd():
    scripts = speed.our_scripts(speed.Args("atari", num_steps=32, options=("bfloat16",)))
    for name in ("ppo", "ppd", "ppd_smaller"):
        args = speed.script_args(*scripts[name], "PongNoFrameskip-v4")
        assert args.num_steps == 32 and args.bfloat16 and not args.compile


@pytest.mark.parametrize("suite", ["mujoco", "atari", "procgen"])
def test_sb3_teacher_acts_and_values_as_ours(suite, tmp_path):
    ppo = __import__(f"ppo_teacher_{suite}")
    scripts, env_id = speed.our_scripts(speed.Args(suite, num_steps=2)), speed.ENVS[suite][0]
    args = speed.script_args(*scripts["ppd"], env_id)
    args.num_envs = 2
    header = {"format": "ppd-agent-1", "suite": suite, "env_id": env_id, "size": "same"}
    if suite == "mujoco":
        agent, _ = ppo.load_mujoco_agent(ROOT / "teachers" / "Hopper-v4.safetensors")
        header["hidden_sizes"] = [256, 256]
    else:
        shape, actions = {"atari": ((4, 84, 84), 6), "procgen": ((3, 64, 64), 15)}[suite]
        agent = ppo.PixelAgent(shape, actions, "same")
    path = tmp_path / "agent.safetensors"
    ppo.save_agent(agent, path, header)
    envs = speed.make_sb3_envs(suite, args, "DummyVecEnv")
    teacher = speed.make_sb3_teacher(suite, str(path), envs, {"device": "cpu"})
    # MuJoCo's observations are normalised on the way, with the teacher's statistics.
    envs.training = False
    obs = envs.reset()
    raw = envs.get_original_obs()
    theirs, _ = teacher.policy.obs_to_tensor(obs)
    if suite == "atari":  # SB3 stacks frames last
        theirs, _ = teacher.policy.obs_to_tensor(np.moveaxis(obs, -1, 1))
        raw = np.moveaxis(raw, -1, 1)
    ours = torch.as_tensor(raw if suite != "mujoco" else raw.astype(np.float32))
    with torch.no_grad():
        found = teacher.policy.get_distribution(theirs).distribution
        wanted = agent.distribution(agent.policy_outputs(ours))
        for get in (lambda d: d.mode, lambda d: d.entropy()):
            theirs_is, ours_is = get(found), get(wanted)
            if theirs_is.ndim > ours_is.ndim:  # SB3's Gaussian: one entropy for each dimension
                theirs_is = theirs_is.sum(-1)
            assert torch.allclose(theirs_is, ours_is, atol=1e-4)
        values = teacher.policy.predict_values(theirs).squeeze(-1)
        assert torch.allclose(values, agent.value(ours), atol=1e-3, rtol=1e-4)
    envs.close()


def test_sb3_ppo_becomes_one_of_our_agents(tmp_path, capsys):
    from experiments import sb3_ppo

    values = {"total_timesteps": 1, "eval_every": 4608, "eval_episodes": 2, "episodes": 3}
    result = sb3_ppo.train(sb3_ppo.Args(run_dir=str(tmp_path / "run"), **values))
    assert "unmaintained" not in "".join(capsys.readouterr())
    assert result["steps"] == 4608 and len(result["episode_returns"]) == 3
    assert [point[0] for point in result["evaluations"]] == [4608] and result["curve"]
    agent, header = sb3_ppo.ppo.load_mujoco_agent(tmp_path / "run" / "agent.safetensors")
    assert header["trained_by"] == "stable-baselines3"
    # It learned observation statistics, and acts within the Box.
    assert agent.obs_count > 4608 and (agent.obs_var != 1).all()
    played = sb3_ppo.ppo.MujocoVectorEnv("Hopper-v4", 10, 1)
    again, _ = sb3_ppo.ppo.evaluate(agent, played, 3, 10_100, True)
    assert again == result["episode_returns"]


def test_sb3_ppo_plays_whole_games_of_atari(tmp_path, monkeypatch):
    from functools import partial

    from experiments import sb3_ppo

    atari = sb3_ppo.ppo_teacher_atari
    short = partial(atari.Args, num_envs=2, num_steps=600, minibatch_size=600, update_epochs=1)
    monkeypatch.setattr(atari, "Args", short)
    values = {"env_id": "PongNoFrameskip-v4", "size": "smaller", "eval_every": 0, "episodes": 1}
    run_dir = tmp_path / "run"
    values |= {"total_timesteps": 2400, "run_dir": str(run_dir)}
    result = sb3_ppo.train(sb3_ppo.Args(**values))
    returns = [mean for _, mean, _ in result["curve"]]
    assert result["steps"] == 2400 and returns and max(returns) < -15  # whole, not clipped, raw
    assert result["score"]["human_normalized"] < 0.1 and len(result["episode_returns"]) == 1
    agent, header = atari.load_atari_agent(run_dir / "agent.safetensors")
    assert header["frame_skip"] == 4 and header["trained_by"] == "stable-baselines3"
    assert header["score"] == result["score"]


@pytest.mark.parametrize("suite", ["mujoco", "atari"])
def test_sb3_agent_acts_as_the_model_did(suite):
    from stable_baselines3 import PPO

    from experiments import sb3_ppo

    short = {"num_envs": 3, "num_steps": 8, "minibatch_size": 24}
    if suite == "mujoco":
        settings = sb3_ppo.ppo.Args(env_id="HalfCheetah-v4", **short)
        network = settings.hidden_sizes
    else:
        settings = sb3_ppo.ppo_teacher_atari.Args(size="smaller", **short)
        network = settings.network
    envs = speed.make_sb3_envs(suite, settings, "DummyVecEnv")
    policy = speed.make_sb3_policy(suite, network)
    model = PPO(env=envs, **policy, **speed.sb3_settings(f"ppo_teacher_{suite}", settings))
    model.learn(48)
    envs.training = False
    obs, raw = envs.reset(), envs.get_original_obs()
    header = {"suite": suite, "hidden_sizes": network, "size": network}
    agent = sb3_ppo.copy_agent(model, envs, header)
    actions, _ = model.predict(obs, deterministic=True)
    if suite == "atari":  # SB3 stacks frames last
        raw = np.moveaxis(raw, -1, 1)
        frames = torch.as_tensor(raw)
        with torch.no_grad():  # near-uniform at first: not only the likeliest action
            theirs = model.policy.get_distribution(frames).distribution.logits
            ours = agent.policy_outputs(frames).log_softmax(-1)
            values = model.policy.predict_values(frames).squeeze(-1)
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
            torch.testing.assert_close(agent.value(frames), values, atol=1e-5, rtol=0)
    np.testing.assert_allclose(agent.act(raw), actions, atol=1e-4)
    envs.close()


STAND_IN = """
from stable_baselines3 import PPO

class ProximalPolicyDistillation(PPO):
    def set_teacher(self, teacher, distill_lambda, kl_mode):
        print("taught:", type(teacher).__name__, distill_lambda, kl_mode)
"""


def test_sb3_distill_is_taught_and_scored(tmp_path):
    """With a library of the authors' interface that is plain PPO: theirs is not on PyPI."""
    (tmp_path / "sb3_distill").mkdir()
    (tmp_path / "sb3_distill" / "__init__.py").write_text(STAND_IN)
    command = [sys.executable, ROOT / "experiments" / "sb3_distill_ppd.py", "--sb3-distill"]
    command += [tmp_path, "--run-dir", tmp_path / "run", "--distill-lambda", "2"]
    command += ["--total-timesteps", "1", "--eval-every", "1152", "--eval-episodes", "2"]
    done = subprocess.run([*command, "--episodes", "3"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "taught: PPO 2.0 forward" in done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 1152 and len(result["episode_returns"]) == 3
    assert [point[0] for point in result["evaluations"]] == [1152]
    student, header = ppd_mujoco.load_mujoco_agent(tmp_path / "run" / "agent.safetensors")
    assert (header["trained_by"], header["hidden_sizes"]) == ("sb3_distill", [512, 512])
    teacher, _ = ppd_mujoco.load_mujoco_agent(ROOT / "teachers" / "Hopper-v4.safetensors")
    for name in ("obs_mean", "obs_var", "obs_count"):  # frozen
        assert torch.equal(student.get_buffer(name), teacher.get_buffer(name)), name


def test_sb3_distill_not_found_is_one_line(tmp_path):
    command = [sys.executable, ROOT / "experiments" / "sb3_distill_ppd.py", "--sb3-distill"]
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and "no package sb3_distill in it; clone" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_sb3_plays_the_same_procgen_games():
    scripts = speed.our_scripts(speed.Args("procgen"))
    args = speed.script_args(*scripts["ppo"], "coinrun")
    ours, sb3 = speed.make_our_envs("procgen", args), speed.make_sb3_envs("procgen", args, "")
    assert np.array_equal(ours.reset(seed=args.seed)[0], sb3.reset())
    random = np.random.default_rng(0)
    for _ in range(50):
        actions = random.integers(15, size=18)
        obs, rewards, ended, _, _ = ours.step(actions)
        their_obs, _, their_ended, _ = sb3.step(actions)
        assert np.array_equal(obs, their_obs) and np.array_equal(ended, their_ended)
        assert np.array_equal(rewards, sb3.get_original_reward())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sb3-distill", "nowhere"], "no package sb3_distill in it; clone"),
        (["--repeats", "0"], "must be at least 1"),
        (["--only", "pdp"], "--only pdp: give some of ppo, ppd"),
    ],
)
def test_wrong_flags_are_one_line(flags, said):
    command = [sys.executable, ROOT / "benchmarks" / "speed.py", "mujoco", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
