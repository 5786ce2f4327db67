"""MujocoVectorEnv against Gymnasium's own vector environment, its replay, and the normalisers."""

import hashlib
import json
import os
import signal
import time
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import oracle
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from helpers import PAPER_IDS, load, make_spaces, run_python
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

script = load("ppd_mujoco")  # test_copies.py holds that the others have the same text
OTHER_IDS = ["Pendulum-v1", "Walker2d-v5"]


def shorten_episodes(monkeypatch, steps=25):
    """A time limit that a test reaches in no time."""
    make = partial(script.make_mujoco_env, max_episode_steps=steps)
    monkeypatch.setattr(script, "make_mujoco_env", make)


def random_actions(envs, rng):
    box = envs.single_action_space
    return rng.uniform(box.low, box.high, (envs.num_envs, *box.shape)).astype(box.dtype)


def compare(env_id, num_workers, steps):
    """Step ours and Gymnasium's with the same actions; how many episodes ended, and how."""
    ours = script.MujocoVectorEnv(env_id, 5, num_workers)
    make = [partial(script.make_mujoco_env, env_id)] * 5
    theirs = SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    for seed in (11, None, 12):  # a reset without a seed goes on with the same random numbers
        np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
    rng, ends = np.random.default_rng(3), np.zeros(2, int)
    returns, lengths = np.zeros(5), np.zeros(5, int)
    for _ in range(steps):
        actions = random_actions(ours, rng)
        *expected, their_infos = theirs.step(actions)
        *found, infos = ours.step(actions)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        returns, lengths = returns + expected[1], lengths + 1
        rows = np.flatnonzero(expected[2] | expected[3]).tolist()
        assert infos["episodes"] == [(n, returns[n], lengths[n]) for n in rows]
        assert list(infos["final_obs"]) == rows
        for n in rows:
            np.testing.assert_array_equal(infos["final_obs"][n], their_infos["final_obs"][n])
        returns[rows] = lengths[rows] = 0
        ends += [expected[2].sum(), expected[3].sum()]
    theirs.close()
    return ends


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("env_id", PAPER_IDS + OTHER_IDS)
def test_equal_to_sync_vector_env(env_id, num_workers, monkeypatch):
    """Whatever the number of processes."""
    shorten_episodes(monkeypatch)
    terminated, truncated = compare(env_id, num_workers, 60)
    assert truncated
    assert terminated or env_id not in ("Hopper-v4", "Humanoid-v4", "Walker2d-v5")


@pytest.mark.slow
@pytest.mark.parametrize("env_id", PAPER_IDS)
def test_equal_to_sync_vector_env_for_long(env_id):
    compare(env_id, 2, 2100)


def test_more_workers_than_environments():
    envs = script.MujocoVectorEnv("Pendulum-v1", 2, 5)
    assert len(envs.pipes) == 1  # and this process has the other environment
    assert envs.reset(seed=1)[0].shape == (2, 3)


REPLAYED = ["Hopper-v4", "Ant-v4", "Humanoid-v4", *OTHER_IDS]


def play_on(envs, steps=60):
    """A digest of what random play sees: over the end of an episode, and the next one's start."""
    rng, seen = np.random.default_rng(9), hashlib.sha256(envs.obs.tobytes())
    for _ in range(steps):
        for part in envs.step(random_actions(envs, rng))[:4]:
            seen.update(part.tobytes())
    return seen.hexdigest()


def test_replay_is_exact_in_a_new_process(monkeypatch, tmp_path):
    """Of episodes that a seed began (10 steps) and of later ones (40), with other workers."""
    expected, states, rng = {}, {}, np.random.default_rng(1)
    shorten_episodes(monkeypatch)
    for env_id, steps in [(env_id, steps) for env_id in REPLAYED for steps in (10, 40)]:
        envs, name = script.MujocoVectorEnv(env_id, 3, 2), f"{env_id} {steps}"
        envs.reset(seed=5)
        for _ in range(steps):
            envs.step(random_actions(envs, rng))
        states[name] = envs.state_dict()
        expected[name] = play_on(envs)
    torch.save(states, tmp_path / "states.pt")
    code = """
    import json, sys, torch
    from functools import partial
    from test_envs_mujoco import play_on, script
    script.make_mujoco_env = partial(script.make_mujoco_env, max_episode_steps=25)
    found = {}
    for name, state in torch.load(sys.argv[1], weights_only=True).items():
        envs = script.MujocoVectorEnv(name.split()[0], 3, 3)
        envs.load_state_dict(state)
        found[name] = play_on(envs)
    print(json.dumps(found))
    """
    output, errors = run_python(code, tmp_path / "states.pt").communicate(timeout=120)
    assert output and json.loads(output) == expected, errors


class Noisy(gym.Env):
    """Its random numbers are not those that Gymnasium seeds."""

    observation_space = action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.random.default_rng().uniform(-1, 1, 1).astype(np.float32), 0.0, False, False, {}


@pytest.mark.parametrize(("env_id", "warned"), [("Noisy-v0", True), ("Pendulum-v1", False)])
def test_a_simulator_that_does_not_replay_is_reported(env_id, warned, capsys):
    if warned:
        gym.register("Noisy-v0", Noisy)
    old, new = script.MujocoVectorEnv(env_id, 3, 2), script.MujocoVectorEnv(env_id, 3, 1)
    old.reset(seed=1)
    for _ in range(3):
        old.step(np.zeros((3, 1), np.float32))
    new.load_state_dict(old.state_dict())
    assert ("WARNING" in capsys.readouterr().out) == warned
    gym.registry.pop("Noisy-v0", None)


class Acted(Noisy):
    """It observes the action that it was given."""

    action_space = gym.spaces.Discrete(3, start=5)

    def step(self, action):
        return np.full(1, action, np.float32), 0.0, False, False, {}


@pytest.fixture
def register():
    """Make a class known by an id, for as long as the test runs."""
    gym.register("Toy-v0", Acted)
    yield
    gym.registry.pop("Toy-v0")


def test_discrete_actions_begin_where_they_begin(register):
    envs = script.MujocoVectorEnv("Toy-v0", 3, 2)
    envs.reset(seed=1)
    assert envs.single_action_space == gym.spaces.Box(0, 1, (3,), np.int8)
    assert envs.step(np.eye(3))[0].tolist() == [[5], [6], [7]]


def test_a_box_of_integers_is_no_choice(register, monkeypatch):
    """Its rows would be taken for one-hot ones."""
    monkeypatch.setattr(Acted, "action_space", gym.spaces.Box(0, 9, (3,), np.int64))
    with pytest.raises(script.UserError, match="Box.*int64.*use flat Boxes of floats"):
        script.make_mujoco_env("Toy-v0")


def test_a_dead_worker_ends_the_run():
    before = set(active_children())
    envs = script.MujocoVectorEnv("Pendulum-v1", 4, 3)
    envs.reset(seed=1)
    actions = random_actions(envs, np.random.default_rng(0))
    os.kill(min(set(active_children()) - before, key=lambda w: w.pid).pid, signal.SIGKILL)
    with pytest.raises(script.UserError, match="environment process was killed"):
        for _ in range(3):
            envs.step(actions)


def test_an_environment_that_fails_says_why(capfd):
    """In its worker: the traceback is its own, the run's error one line."""
    envs = script.MujocoVectorEnv("Pendulum-v1", 2, 2)
    envs.reset(seed=1)
    envs.pipes[0].send(("reset", [None, None]))  # one environment too many for this worker
    with pytest.raises(script.UserError, match="worker process: ValueError: zip.*num-workers 1"):
        envs.step(np.zeros((2, 1), np.float32))


def test_a_library_that_is_missing_is_named(monkeypatch):
    """Gymnasium says only that MuJoCo is not installed."""

    def make(*arguments, **options):
        missing = ImportError("libX11.so.6: cannot open shared object file")
        raise gym.error.DependencyNotInstalled("MuJoCo is not installed") from missing

    monkeypatch.setattr(gym, "make", make)
    with pytest.raises(script.UserError, match="--env-id Hopper-v4: libX11.so.6: cannot open"):
        script.make_mujoco_env("Hopper-v4")


def test_workers_end_with_their_pool():
    before = set(active_children())
    envs = script.MujocoVectorEnv("Pendulum-v1", 3, 3)
    workers = set(active_children()) - before
    assert len(workers) == 2
    del envs
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_no_worker_behind(number):
    """Of several pools, whose later workers hold copies of the earlier ones' pipes."""
    code = """
    import multiprocessing, time
    from ppd_mujoco import MujocoVectorEnv
    envs = [MujocoVectorEnv("Pendulum-v1", 3, 3) for _ in range(2)]
    envs[0].reset(seed=1)
    print(*[worker.pid for worker in multiprocessing.active_children()])
    time.sleep(60)
    """
    with run_python(code) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 4 and all(alive(pid) for pid in pids)
        process.send_signal(number)
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_rewards_are_scaled_as_by_sb3():
    rng = np.random.default_rng(8)
    rewards = np.float32(rng.normal(2, 5, (300, 4)) * 10.0 ** rng.integers(-1, 3, (300, 4)))
    rewards[150, :2] = 1e6, -1e6
    ended, box = rng.random((300, 4)) < 0.05, gym.spaces.Box(-1, 1, (1,))
    theirs = VecNormalize(DummyVecEnv([lambda: make_spaces(box, box)] * 4), norm_obs=False)
    theirs.venv, obs, infos = SimpleNamespace(), np.zeros((4, 1)), [{}] * 4
    independent = oracle.RewardScale(4)
    raw = rewards.astype(np.float64)
    scaled = script.RewardNormalizer(4)(raw, ended)
    for t in range(300):
        theirs.venv.step_wait = lambda t=t: (obs, rewards[t], ended[t], infos)
        np.testing.assert_allclose(scaled[t], theirs.step_wait()[1], rtol=1e-5)
        np.testing.assert_allclose(scaled[t], independent(raw[t], ended[t]), rtol=1e-9)
    assert (scaled.min(), scaled.max()) == (-10, 10)


def test_observation_statistics_are_exact():
    """Step by step they are those of all observations so far, far from 0 as well."""
    teacher_script, rng = load("ppo_teacher_mujoco"), np.random.default_rng(2)
    batches = (rng.normal(50, 3, (60, 4, 4)) * [1, 0.01, 10, 1]).astype(np.float32)
    agent = teacher_script.MujocoAgent(-torch.ones(1), torch.ones(1), 4, (3,))
    for n, batch in enumerate(batches, 1):
        teacher_script.update_normalizer(agent, batch)
        mean, var = oracle.moments(batches[:n].reshape(-1, 4).astype(np.float64))
        np.testing.assert_allclose(agent.obs_mean, mean, rtol=1e-9)
        np.testing.assert_allclose(agent.obs_var, var, rtol=1e-7)
    mean, var = agent.obs_mean.numpy(), agent.obs_var.numpy()
    obs = rng.normal(50, 100, (30, 4))
    expected = np.clip((obs - mean) / np.sqrt(var + 1e-8), -10, 10)
    np.testing.assert_allclose(agent.normalize(torch.from_numpy(obs)), expected, rtol=1e-5)
    assert (np.abs(expected) == 10).any()
