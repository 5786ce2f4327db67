"""What people meet who call `train` from Python, or bring their own environments.

The letters are those of the bug reports that these tests answer (docs/lab_notes.md).
"""

import errno
import fcntl
import multiprocessing
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import helpers
import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from helpers import assert_same_weights, load, make_args

script = load("ppd_mujoco")


# ------------------------------------------------------------------------------- Arguments
def test_paths_and_numpy_numbers_are_taken(monkeypatch, tmp_path):
    """D1: they are saved as plain ones, and the run is the same."""
    helpers.make_teacher("mujoco", tmp_path / "teacher.safetensors")
    given = {"seed": np.int64(3), "learning_rate": np.float32(1e-3), "gamma": np.float64(0.9)}
    given |= {"hidden_sizes": (np.int64(8), np.int32(4)), "distill_lambda": np.array(0.5)}
    given |= {"teacher": tmp_path / "teacher.safetensors"}
    plain = {"seed": 3, "learning_rate": float(np.float32(1e-3)), "gamma": 0.9}
    plain |= {"hidden_sizes": (8, 4), "distill_lambda": 0.5}
    plain |= {"teacher": str(tmp_path / "teacher.safetensors")}
    monkeypatch.setattr(script, "evaluate", helpers.no_score)
    for changes, folder in [(given, tmp_path / "numpy"), (plain, tmp_path / "plain")]:
        script.train(replace(make_args(script, "mujoco", folder, **changes), run_dir=folder))
    assert_same_weights(tmp_path / "numpy", tmp_path / "plain")
    results = [helpers.read_result(tmp_path / name)["args"] for name in ("numpy", "plain")]
    assert results[0] | {"run_dir": ""} == results[1] | {"run_dir": ""}
    torch.load(tmp_path / "numpy" / "training_state.pt", weights_only=True)


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j])
def test_other_arguments_are_refused_before_anything_is_written(value, tmp_path):
    with pytest.raises(script.UserError, match="give a number, a string"):
        script.train(script.Args(seed=value, run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("flag", "value"), [("teacher", ""), ("hidden_sizes", ()), ("init", "")])
def test_an_empty_value_is_not_the_default(flag, value):
    """R3: as from an unset variable of the shell."""
    with pytest.raises(script.UserError, match=f"--{flag.replace('_', '-')} is empty"):
        script.train(script.Args(**{flag: value}))


def test_defaults_do_not_depend_on_the_module_that_registers_an_environment():
    """D24."""
    teacher = load("ppo_teacher_mujoco")
    for env_id in ("Hopper-v4", "HalfCheetah-v4"):
        for name, kind in [("gamma", script.Args), ("num_steps", teacher.Args)]:
            plain, own = kind(env_id=env_id), kind(env_id=f"some_module:{env_id}")
            assert getattr(plain, name) == getattr(own, name)
    assert script.Args(env_id="some_module:Hopper-v4").gamma == 0.995


def test_the_shipped_teacher_is_found_for_an_id_with_its_module(train, tmp_path):
    """D24's kind."""
    result = train(script, "mujoco", env_id="gymnasium:Hopper-v4", teacher=None, total_timesteps=64)
    assert result["teacher"]["env_id"] == "Hopper-v4"


def test_two_jobs_of_one_second_have_two_folders():
    """D17."""
    runs = [script.Run(script.Args()) for _ in range(3)]
    assert len({run.folder for run in runs}) == 3


def test_a_score_without_a_fraction_says_the_difference():
    """D23: of a teacher whose return is not above 0; D23's kind: of equal returns, one episode."""
    score = lambda mean, error: {"mean": mean, "standard_error": error}
    compare = script.compare_scores
    assert compare(score(-5.0, 1.0), score(-7.5, 1.0)).endswith("· difference +2.5")
    assert compare(score(9.0, 0.0), score(10.0, 0.0)).endswith("· fraction 0.900 ± 0.000")
    assert compare(score(9.0, None), score(10.0, 1.0)).endswith("· fraction 0.900")
    # 0.9·√((0.3/9)² + (0.4/10)²)
    assert compare(score(9.0, 0.3), score(10.0, 0.4)).endswith("· fraction 0.900 ± 0.047")


# ------------------------------------------------------------------------------- Interrupted
def interrupt(monkeypatch, run_dir, **changes):
    """A run that is interrupted in its second update; returns the error, which keeps its frames."""
    calls, function = [], script.clipped_surrogate_loss

    def stop(*arguments):
        calls.append(None)
        if len(calls) > 8:
            raise KeyboardInterrupt
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(script, "clipped_surrogate_loss", stop)
        patch.setattr(script, "evaluate", helpers.no_score)
        with pytest.raises(KeyboardInterrupt) as error:
            script.train(make_args(script, "mujoco", run_dir, save_every=0, **changes))
    return error


def test_an_interrupted_run_goes_on_in_the_same_process(monkeypatch, train, tmp_path, capsys):
    """D5: a notebook keeps the traceback, and with it all objects of the run."""
    before = set(active_children())
    error = interrupt(monkeypatch, tmp_path / "run", num_workers=2)
    assert f"stopped; continue with: python ppd_mujoco.py --resume {tmp_path / 'run'}" in (
        capsys.readouterr().out
    )
    deadline = time.monotonic() + 30
    while set(active_children()) - before:  # the worker processes end with the run
        assert time.monotonic() < deadline
        time.sleep(0.02)
    monkeypatch.setattr(script, "evaluate", helpers.no_score)
    script.train(script.Args(resume=str(tmp_path / "run")))
    train(script, "mujoco", "whole", save_every=0)
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    del error


def test_the_teacher_is_found_from_another_folder(monkeypatch, tmp_path):
    """D13."""
    helpers.make_teacher("mujoco", tmp_path / "teacher.safetensors")
    monkeypatch.chdir(tmp_path)
    interrupt(monkeypatch, tmp_path / "run", teacher="teacher.safetensors")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(script, "evaluate", helpers.no_score)
    script.train(script.Args(resume=str(tmp_path / "run")))


def test_a_run_that_ended_before_its_first_checkpoint(monkeypatch, train, tmp_path):
    """R4: --resume says what to do, and that works; a folder of other files is left alone."""
    with monkeypatch.context() as patch:
        patch.setattr(script, "write_file", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError):
            train(script, "mujoco")
    with pytest.raises(script.UserError, match="missing; start it again, with --run-dir"):
        script.train(script.Args(resume=str(tmp_path / "run")))
    train(script, "mujoco", total_timesteps=64)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(script.UserError, match="is not empty; give another --run-dir"):
        train(script, "mujoco", "mine")


def test_a_run_is_locked_while_it_trains_and_not_after(monkeypatch, train, tmp_path):
    step, found = script.clipped_surrogate_loss, []

    def look(*arguments):
        with pytest.raises(Timeout):
            FileLock(tmp_path / "run" / "lock").acquire(timeout=0)
        found.append(True)
        return step(*arguments)

    monkeypatch.setattr(script, "clipped_surrogate_loss", look)
    train(script, "mujoco", total_timesteps=64)
    assert found
    FileLock(tmp_path / "run" / "lock").acquire(timeout=0).lock.release()


def test_a_file_system_without_locks_is_refused(monkeypatch, train):
    """D18: instead of two processes that write one run."""

    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(script.UserError, match="cannot be locked.*local disk"):
        train(script, "mujoco")


def test_a_run_leaves_the_callers_thread_count(train):
    torch.set_num_threads(2)
    train(script, "mujoco", total_timesteps=64)
    assert torch.get_num_threads() == 2


def test_a_daemon_steps_its_environments_alone(monkeypatch):
    """D15: the workers of a multiprocessing.Pool may not start processes."""
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
    assert script.MujocoVectorEnv("Pendulum-v1", 4, 3).pipes == []


# ------------------------------------------------------------------------------- Environments
class Plain(gym.Env):
    """Move a point to a target; it observes position and target."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.target = 0.0, float(self.np_random.uniform(-1, 1))
        return self.observe(), {}

    def observe(self):
        return np.array([self.position, self.target], np.float32)

    def step(self, action):
        self.position += 0.1 * float(action[0])
        return self.observe(), -abs(self.position - self.target), False, False, {}


class OldRandom(Plain):
    """D2: its random numbers are a RandomState, as of environments ported from Gym 0.21."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.np_random = np.random.RandomState(seed)
        self.position, self.target = 0.0, float(self.np_random.uniform(-1, 1))
        return self.observe(), {}


class ScalesAction(Plain):
    """D9: it changes the action that it is given."""

    def step(self, action):
        action *= 0.5
        return super().step(action)


class OneArray(Plain):
    """D10: all its observations are one array, which the next step and reset overwrite."""

    array = np.zeros(2, np.float32)

    def observe(self):
        OneArray.array[:] = self.position, self.target
        return OneArray.array


class ArrayReward(Plain):
    """D11: rewards and ends are arrays of one element."""

    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, np.array([reward]), np.array([False]), np.array([False]), {}


class NaNReward(Plain):
    """D7."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float("nan"), *rest


class InfiniteObservation(Plain):
    """D7: in the last observation of an episode, which no next step sees."""

    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs * np.inf, reward, True, False, {}


@pytest.fixture
def register():
    """Make one of these classes known by an id, with episodes of 7 steps."""

    def register(kind):
        gym.register("Own-v0", kind, max_episode_steps=7)
        return "Own-v0"

    yield register
    gym.registry.pop("Own-v0", None)


def actions_of(envs, seed):
    return np.random.default_rng(seed).uniform(-1, 1, (envs.num_envs, 1)).astype(np.float32)


@pytest.mark.parametrize("kind", [Plain, ScalesAction, OneArray, ArrayReward])
def test_odd_environments_are_replayed_exactly(kind, register, capsys):
    env_id = register(kind)
    envs, again = script.MujocoVectorEnv(env_id, 3, 2), script.MujocoVectorEnv(env_id, 3, 1)
    envs.reset(seed=5)
    for t in range(10):
        envs.step(actions_of(envs, t))
    again.load_state_dict(envs.state_dict())
    assert np.array_equal(again.obs, envs.obs) and np.array_equal(again.returns, envs.returns)
    for t in range(10):
        for a, b in zip(
            envs.step(actions_of(envs, t)), again.step(actions_of(envs, t)), strict=True
        ):
            np.testing.assert_equal(a, b)
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", [ScalesAction, OneArray, ArrayReward])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_odd_environments_give_what_plain_ones_do(kind, num_workers, register):
    """Final observations at the time limit, rewards and returns."""

    def play(kind, scale):
        envs = script.MujocoVectorEnv(register(kind), 3, num_workers)
        gym.registry.pop("Own-v0")
        envs.reset(seed=5)
        return [envs.step(scale * actions_of(envs, t)) for t in range(10)]

    for found, expected in zip(
        play(kind, 1), play(Plain, 0.5 if kind is ScalesAction else 1), strict=True
    ):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_equal(a, b)


def test_an_environment_without_a_generator_trains(register, train, monkeypatch, tmp_path, capsys):
    """D2: it cannot be resumed exactly, and says so."""
    helpers.make_teacher("mujoco", tmp_path / "teacher.safetensors", (2, 1), env_id="Own-v0")
    env_id = register(OldRandom)
    train(script, "mujoco", env_id=env_id)
    interrupt(monkeypatch, tmp_path / "stopped", env_id=env_id)
    monkeypatch.setattr(script, "evaluate", helpers.no_score)
    script.train(script.Args(resume=str(tmp_path / "stopped")))
    assert "WARNING: this simulator does not repeat itself" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "what"), [(NaNReward, "reward"), (InfiniteObservation, "final observation")]
)
def test_numbers_that_are_none_are_the_environments_fault(kind, what, register, tmp_path):
    """D7: in training and in a score, where no learning rate helps."""
    helpers.make_teacher("mujoco", tmp_path / "teacher.safetensors", (2, 1), env_id="Own-v0")
    args = make_args(script, "mujoco", tmp_path / "run", env_id=register(kind))
    with pytest.raises(script.UserError, match=f"Own-v0 gave a NaN or infinite {what}") as error:
        script.train(args)
    assert "learning-rate" not in str(error.value)


def test_a_newcomers_file_is_explained(tmp_path):
    """Another environment's teacher; another library's file."""
    helpers.make_teacher("mujoco", path := tmp_path / "ant.safetensors", (27, 8), env_id="Ant-v4")
    with pytest.raises(script.UserError, match="is for Ant-v4 .27 obs.*give --env-id Ant-v4"):
        script.train(script.Args(teacher=path))
    torch.save({}, tmp_path / "model.zip")
    with pytest.raises(script.UserError, match="not an agent.safetensors.*use convert.py import"):
        script.train(script.Args(teacher=tmp_path / "model.zip"))
    with pytest.raises(script.UserError, match="train a teacher with ppo_teacher_mujoco.py"):
        script.train(script.Args(teacher=Path("nowhere.safetensors")))
