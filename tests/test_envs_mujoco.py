"""MujocoVectorEnv against Gymnasium's own vector environment, and the two normalisers."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import gymnasium as gym
import numpy as np
import oracle
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from helpers import PAPER_IDS, ROOT, load
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

script = load("ppd_mujoco")  # test_copies.py holds that the others have the same text
OTHER_IDS = ["Pendulum-v1", "InvertedPendulum-v5"]


@pytest.fixture
def make_envs():
    """MujocoVectorEnvs that end with the test."""
    made = []

    def make(*arguments):
        made.append(script.MujocoVectorEnv(*arguments))
        return made[-1]

    yield make
    for envs in made:
        envs.close()


def random_actions(envs, rng):
    box = envs.single_action_space
    return rng.uniform(box.low, box.high, (envs.num_envs, *box.shape)).astype(box.dtype)


def near_time_limit(envs, steps_left):
    """Put the simulators so near their time limit that a test gets there in no time."""
    state = envs.state_dict()
    for simulator in state["simulators"]:
        simulator["elapsed_steps"] = 1000 - steps_left
    envs.load_state_dict(state)


def compare(ours, theirs, steps, seed=3):
    """Step both with the same actions; returns how many episodes were terminated, truncated."""
    rng, ends = np.random.default_rng(seed), np.zeros(2, int)
    for _ in range(steps):
        actions = random_actions(ours, rng)
        obs, rewards, terminations, truncations, infos = theirs.step(actions)
        found = ours.step(actions)
        for a, b in zip(found, (obs, rewards, terminations, truncations), strict=False):
            np.testing.assert_array_equal(a, b)
            assert np.asarray(a).dtype == np.asarray(b).dtype
        ended = terminations | truncations
        assert ended.any() == ("final_obs" in found[4])
        if ended.any():
            np.testing.assert_array_equal(found[4]["_final_obs"], infos["_final_obs"])
            for row in np.flatnonzero(ended):
                np.testing.assert_array_equal(found[4]["final_obs"][row], infos["final_obs"][row])
        ends += [terminations.sum(), truncations.sum()]
    return ends


def sync_envs(env_id, num_envs):
    make = [partial(script.make_mujoco_env, env_id)] * num_envs
    return SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)


def start_both(make_envs, env_id, num_envs, num_workers):
    ours, theirs = make_envs(env_id, num_envs, num_workers), sync_envs(env_id, num_envs)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    for seed in (11, None, 12):  # a reset without a seed goes on with the same random numbers
        np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
    return ours, theirs


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("env_id", PAPER_IDS + OTHER_IDS)
def test_equal_to_sync_vector_env(make_envs, env_id, num_workers):
    ours, theirs = start_both(make_envs, env_id, 5, num_workers)
    steps = 220 if env_id == "Pendulum-v1" else 60  # Pendulum's time limit is 200
    terminated, truncated = compare(ours, theirs, steps)
    if env_id in PAPER_IDS:
        for env in theirs.envs:
            env.set_wrapper_attr("_elapsed_steps", 993)
        near_time_limit(ours, 7)
        terminated, truncated = np.add([terminated, truncated], compare(ours, theirs, 20, seed=4))
    assert truncated or env_id == "InvertedPendulum-v5"
    assert terminated or env_id not in ("Hopper-v4", "Humanoid-v4", "InvertedPendulum-v5")
    theirs.close()


@pytest.mark.slow
@pytest.mark.parametrize("env_id", PAPER_IDS)
def test_equal_to_sync_vector_env_for_long(make_envs, env_id):
    ours, theirs = start_both(make_envs, env_id, 18, 2)
    _, truncated = compare(ours, theirs, 2100)
    assert truncated or env_id in ("Ant-v4", "Hopper-v4", "Humanoid-v4")
    theirs.close()


def test_more_workers_than_environments(make_envs):
    envs = make_envs("Pendulum-v1", 2, 5)
    assert len(envs.workers) == 1  # and this process has the other environment
    assert envs.reset(seed=1)[0].shape == (2, 3)


@pytest.mark.parametrize("env_id", PAPER_IDS)
def test_state_goes_on_exactly_in_a_new_pool(make_envs, env_id):
    """Over a time limit and the autoreset after it, whose random numbers are part of the state."""
    old, new, rng = make_envs(env_id, 4, 2), make_envs(env_id, 4, 1), np.random.default_rng(1)
    old.reset(seed=5)
    new.reset(seed=99)
    for _ in range(25):
        old.step(random_actions(old, rng))
    near_time_limit(old, 6)
    new.load_state_dict(old.state_dict())
    np.testing.assert_array_equal(old.shared["obs"], new.shared["obs"])
    truncated = 0
    for _ in range(40):
        actions = random_actions(old, rng)
        for a, b in zip(old.step(actions)[:4], new.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(a, b)
        truncated += old.shared["truncations"].sum()
    assert truncated


@pytest.mark.parametrize("env_id", OTHER_IDS)
def test_no_state_of_another_id(make_envs, env_id):
    envs = make_envs(env_id, 3, 2)
    envs.reset(seed=1)
    assert envs.state_dict()["simulators"] == [None] * 3


def test_a_dead_worker_ends_the_run(make_envs):
    envs = make_envs("Pendulum-v1", 4, 2)
    envs.reset(seed=1)
    actions = random_actions(envs, np.random.default_rng(0))
    os.kill(envs.workers[0].pid, signal.SIGKILL)
    with pytest.raises(script.UserError, match="worker died.*--resume"):
        for _ in range(3):
            envs.step(actions)
    assert not any(worker.is_alive() for worker in envs.workers)


def test_an_environment_that_fails_says_why(make_envs):
    envs = make_envs("Pendulum-v1", 2, 2)
    envs.own_envs[0].reset(seed=1)  # but not the worker's
    with pytest.raises(RuntimeError, match="failed in its worker:(.|\n)*Cannot call env.step"):
        envs.step(np.zeros((2, 1), np.float32))


def test_close_ends_the_workers(make_envs):
    envs = make_envs("Pendulum-v1", 2, 2)
    envs.close()
    assert not any(worker.is_alive() for worker in envs.workers)
    envs.close()  # a second time does no harm


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_faster_number_of_workers_is_taken(monkeypatch):
    """Pools are timed side by side, and closed."""
    closed = []

    class TimedEnvs:
        action_space = gym.spaces.Box(-1, 1, (2, 1))

        def __init__(self, env_id, num_envs, num_workers):
            self.num_workers = num_workers

        def reset(self, seed):
            pass

        def step(self, actions):
            time.sleep(0.002 if self.num_workers == slow else 0.0005)

        def close(self):
            closed.append(self.num_workers)

    monkeypatch.setattr(script, "MujocoVectorEnv", TimedEnvs)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for slow in (1, 2):
        assert script.faster_worker_count("Pendulum-v1", 2) == 3 - slow
    assert sorted(closed) == [1, 1, 2, 2]


@pytest.mark.parametrize("end", ["raise ValueError", "pass"])
def test_a_process_that_never_closes_its_pool_ends(end):
    """At its end Python waits for the workers, which wait for their pipes to close."""
    code = f"""
from ppd_mujoco import MujocoVectorEnv, catch_stop_signals
if __name__ == "__main__":
    catch_stop_signals()  # so that SIGTERM ends nothing
    envs = MujocoVectorEnv("Pendulum-v1", 4, 2)
    envs.reset(seed=1)
    {end}
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=-1, timeout=60)
    assert process.returncode == (end != "pass")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_a_killed_run_leaves_no_worker_behind():
    code = "import time; from ppd_mujoco import MujocoVectorEnv as E; e = E('Pendulum-v1', 3, 3);"
    code += "e.reset(seed=1); print(*[w.pid for w in e.workers], flush=True); time.sleep(60)"
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **options) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        process.kill()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


class Scripted(gym.Env):
    """Plays given rewards and ends."""

    observation_space = action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, rewards, ended):
        self.script = iter(zip(rewards, ended, strict=True))

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward, ended = next(self.script)
        return np.zeros(1, np.float32), reward, bool(ended), False, {}


def test_rewards_are_scaled_as_by_sb3():
    rng = np.random.default_rng(8)
    rewards = rng.normal(2, 5, (300, 4)) * 10.0 ** rng.integers(-1, 3, (300, 4))
    ended = rng.random((300, 4)) < 0.05
    makers = [partial(Scripted, rewards[:, n], ended[:, n]) for n in range(4)]
    theirs = VecNormalize(DummyVecEnv(makers), norm_obs=False, gamma=0.99)
    theirs.reset()
    independent = oracle.RewardScale(4)
    raw = np.float32(rewards).astype(np.float64)
    scaled = script.RewardNormalizer(4)(raw, ended)
    for t in range(300):
        np.testing.assert_allclose(scaled[t], theirs.step(np.zeros((4, 1)))[1], rtol=1e-5)
        np.testing.assert_allclose(scaled[t], independent(raw[t], ended[t]), rtol=1e-9)
    assert (np.abs(scaled) <= 10).all()


def test_reward_scale_survives_a_checkpoint():
    """And two rollouts are scaled as one of both lengths."""
    rng = np.random.default_rng(8)
    first, second, whole = (script.RewardNormalizer(3) for _ in range(3))
    rewards, ended = rng.normal(size=(7, 3)), rng.random((7, 3)) < 0.3
    expected = whole(rewards, ended)
    np.testing.assert_array_equal(first(rewards[:5], ended[:5]), expected[:5])
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second(rewards[5:], ended[5:]), expected[5:])


def test_observation_statistics_are_exact():
    """Step by step they are those of all observations so far, far from 0 as well."""
    rng = np.random.default_rng(2)
    batches = rng.normal(50, 3, (60, 4, 4)) * [1, 0.01, 10, 1]
    agent = script.MujocoAgent(-torch.ones(1), torch.ones(1), 4, (3,))
    for n, batch in enumerate(batches, 1):
        agent.update_normalizer(torch.from_numpy(batch))
        mean, var = oracle.moments(batches[:n].reshape(-1, 4))
        np.testing.assert_allclose(agent.obs_mean, mean, rtol=1e-9)
        np.testing.assert_allclose(agent.obs_var, var, rtol=1e-9)
    mean, var = agent.obs_mean.numpy(), agent.obs_var.numpy()
    obs = rng.normal(50, 100, (30, 4))
    expected = np.clip((obs - mean) / np.sqrt(var + 1e-8), -10, 10)
    np.testing.assert_allclose(agent.normalize(torch.from_numpy(obs)), expected, rtol=1e-5)
    assert (np.abs(expected) == 10).any()


def test_episode_statistics():
    track = script.EpisodeStatistics(2)
    assert track(np.array([1.0, 10.0]), np.array([False, True])) == [(10.0, 1)]
    assert track(np.array([2.0, 20.0]), np.array([True, False])) == [(3.0, 2)]
    assert track(np.array([4.0, 30.0]), np.array([True, True])) == [(4.0, 1), (50.0, 2)]
