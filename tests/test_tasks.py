"""The tasks of `experiments/tasks.py`, step by step next to Gymnasium's own robots."""

import gymnasium as gym
import numpy as np
import pytest

from experiments import studies

pytestmark = pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
MODULE = "experiments.tasks:"


def play(env_id: str, steps: int = 60) -> tuple:
    """Observations, rewards and infos of random actions from one seed."""
    env = gym.make(env_id, disable_env_checker=True)
    random = np.random.default_rng(1)
    obs, rewards, infos = [env.reset(seed=7)[0]], [], []
    for _ in range(steps):
        action = random.uniform(env.action_space.low, env.action_space.high)
        step = env.step(action.astype(np.float32))
        assert not step[2], "the robot fell: take fewer steps"
        obs.append(step[0]), rewards.append(step[1]), infos.append(step[4])
    env.close()
    return np.array(obs), np.array(rewards), infos


@pytest.mark.parametrize(
    ("env_id", "direction"),
    [
        ("AntLeft-v4", (0, 1)),
        ("AntBackward-v4", (-1, 0)),
        ("AntRight-v4", (0, -1)),
    ],
)
def test_an_ant_is_rewarded_for_its_speed_in_one_direction(env_id, direction):
    """Its movements are Gymnasium's, and so is the rest of the reward."""
    ahead_obs, ahead_rewards, infos = play("Ant-v4", 12)
    obs, rewards, own_infos = play(MODULE + env_id, 12)
    assert np.array_equal(obs, ahead_obs)
    speeds = np.array([[info["x_velocity"], info["y_velocity"]] for info in infos])
    assert np.abs(speeds).max() > 0.1
    rest = ahead_rewards - speeds[:, 0]
    np.testing.assert_allclose(rewards, rest + speeds @ direction, atol=1e-9)
    reported = [info["reward_forward"] for info in own_infos]
    np.testing.assert_allclose(reported, speeds @ direction, atol=1e-9)


def test_a_cheetah_is_rewarded_for_running_backward():
    forward_obs, _, infos = play("HalfCheetah-v4")
    obs, rewards, _ = play(f"{MODULE}HalfCheetahBackward-v4")
    assert np.array_equal(obs, forward_obs)
    expected = [info["reward_ctrl"] - info["x_velocity"] for info in infos]
    np.testing.assert_allclose(rewards, expected, atol=1e-9)


@pytest.mark.parametrize(("env_id", "factor"), [("Light", 0.5), ("Heavy", 1.5)])
def test_gravity_changes_how_a_cheetah_falls_and_nothing_else(env_id, factor):
    own = gym.make(f"{MODULE}HalfCheetah{env_id}-v4", disable_env_checker=True)
    theirs = gym.make("HalfCheetah-v4", disable_env_checker=True)
    gravity, earth = (env.unwrapped.model.opt.gravity.copy() for env in (own, theirs))
    assert gravity.tolist() == [0, 0, factor * earth[2]] and earth[2] < -9
    still, speeds = np.zeros(6, dtype=np.float32), []
    for env in (own, theirs):
        env.reset(seed=3)
        data = env.unwrapped.data
        data.qpos[1], data.qvel[:] = 2.0, 0  # high above the ground, at rest
        env.step(still)
        speeds.append(data.qvel[1])
        assert env.spec.max_episode_steps == 1000
    # The legs push as well, in both alike; the rest of the difference is gravity's.
    expected = (factor - 1) * earth[2] * own.unwrapped.dt
    assert speeds[0] - speeds[1] == pytest.approx(expected, rel=0.02)
    assert own.unwrapped._forward_reward_weight == theirs.unwrapped._forward_reward_weight


def test_the_tasks_of_a_study_have_the_sizes_of_their_robot():
    for tasks in (studies.CHEETAHS, studies.ANTS):
        envs = [gym.make(studies.gym_id(task), disable_env_checker=True) for task in tasks]
        assert len({(env.observation_space.shape, str(env.action_space)) for env in envs}) == 1
        assert [env.spec.id for env in envs] == [*tasks]
