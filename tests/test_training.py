"""Real short runs: they learn, repeat bitwise, and go on bitwise after a kill."""

import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    MUJOCO_SCRIPTS,
    ROOT,
    FakeEnvs,
    NoWriter,
    has_teacher,
    load,
    read_result,
    save_mujoco_teacher,
    use_fake_envs,
)
from safetensors.torch import load_file

SMALL = {"num_envs": 4, "num_workers": 2, "torch_threads": 1, "eval_every": 0, "episodes": 2}


def small_args(script, run_dir, teacher=None, **changed):
    """A run of seconds. Scripts with a teacher get `teacher` and few episodes of it."""
    values = SMALL | {"run_dir": str(run_dir), "hidden_sizes": (16,), "num_steps": 64}
    values |= {"minibatch_size": 64, "total_timesteps": 1024}
    if has_teacher(script.__name__):
        values |= {"teacher": str(teacher), "teacher_episodes": 2}
    return script.Args(**values | changed)


def fake_run(script, monkeypatch, tmp_path, name="run", **changed):
    """Two updates and more on environments that cost nothing."""
    use_fake_envs(script, monkeypatch)
    monkeypatch.setattr(script, "SummaryWriter", NoWriter)
    teacher = tmp_path / "teacher.safetensors"
    if not teacher.exists():
        save_mujoco_teacher(script, teacher)
    values = {"num_steps": 9, "minibatch_size": 16, "total_timesteps": 108, "num_workers": 1}
    return small_args(script, tmp_path / name, teacher, **values | changed)


def weights(run_dir):
    return load_file(run_dir / "agent.safetensors")


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="session")
def trained_teacher(tmp_path_factory):
    """A run of the PPO script that balances a pole; random actions keep it up for 5 to 10 steps."""
    script, run_dir = load("ppo_teacher_mujoco"), tmp_path_factory.mktemp("teacher") / "run"
    options = {"env_id": "InvertedPendulum-v5", "num_envs": 8, "num_steps": 128, "episodes": 10}
    options |= {"hidden_sizes": (32, 32), "minibatch_size": 128, "gamma": 0.99}
    options |= {"total_timesteps": 40_000, "learning_rate": 1e-3, "eval_every": 20_000}
    script.train(small_args(script, run_dir, **options))
    return run_dir


@pytest.fixture(scope="session")
def hopper_teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("hopper") / "teacher.safetensors"
    script = load("ppd_mujoco")
    save_mujoco_teacher(script, path, sizes=(11, 3))
    return path


def test_ppo_learns(trained_teacher):
    result = read_result(trained_teacher)
    curve = [mean for _, mean, _ in result["curve"]]
    assert curve[0] < 30
    assert result["score"]["mean"] > 200
    assert len(result["evaluations"]) == 2


def test_ppd_learns_from_its_teacher(trained_teacher, tmp_path, monkeypatch):
    """In a tenth of the teacher's steps the KL falls and the student's return rises."""
    script = load("ppd_mujoco")
    monkeypatch.setattr(script, "SummaryWriter", NoWriter)
    options = {"env_id": "InvertedPendulum-v5", "num_envs": 8, "hidden_sizes": (32, 32)}
    options |= {"total_timesteps": 8192, "learning_rate": 1e-3, "episodes": 10, "num_steps": 64}
    teacher = trained_teacher / "agent.safetensors"
    result = script.train(small_args(script, tmp_path / "run", teacher, **options))
    kl = NoWriter.scalars["distill/kl"]
    assert len(kl) == 16
    assert np.mean(kl[-4:]) < 0.3 * kl[0]
    assert result["curve"][0][1] < 40
    assert result["score"]["mean"] > 100


def test_result_has_what_was_promised(trained_teacher, monkeypatch, tmp_path):
    common = {"script", "args", "score", "steps", "seconds", "steps_per_second", "versions"}
    common |= {"episode_returns", "episode_lengths", "curve", "evaluations", "git_commit"}
    result = read_result(trained_teacher)
    assert common <= result.keys()
    returns = result["episode_returns"]
    error = np.std(returns, ddof=1) / len(returns) ** 0.5
    assert result["score"]["mean"] == pytest.approx(np.mean(returns))
    assert result["score"]["standard_error"] == pytest.approx(error)
    assert result["score"]["episodes"] == len(returns) == len(result["episode_lengths"]) == 10
    assert result["steps"] == 40 * 1024
    assert result["steps_per_second"] == pytest.approx(result["steps"] / result["seconds"])
    assert {"python", "torch", "numpy", "gymnasium", "mujoco"} <= result["versions"].keys()
    assert result["args"]["env_id"] == "InvertedPendulum-v5"
    script = load("ppd_mujoco")
    args = fake_run(script, monkeypatch, tmp_path, eval_every=36, episodes=20)
    script.train(args)
    result = read_result(args.run_dir)
    assert common <= result.keys()
    fraction = result["score"]["mean"] / result["teacher_score"]["mean"]
    assert result["fraction_of_teacher"] == pytest.approx(fraction)
    good = [
        s for s, mean, _ in result["evaluations"] if mean >= 0.9 * result["teacher_score"]["mean"]
    ]
    assert result["steps_to_90_percent"] == (good[0] if good else None)
    assert len(result["evaluations"]) == 3
    assert result["warnings"] == []
    assert result["teacher"]["env_id"] == "Hopper-v4"


@pytest.mark.parametrize("name", MUJOCO_SCRIPTS)
def test_same_seed_same_weights(name, hopper_teacher, tmp_path):
    """Whatever the number of workers, and whether or not it is evaluated on the way."""
    script = load(name)
    runs = {"one": {}, "two": {"num_workers": 3, "eval_every": 256, "eval_episodes": 2}}
    for run, options in (runs | {"other": {"seed": 101}}).items():
        script.train(small_args(script, tmp_path / run, hopper_teacher, **options))
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "one", tmp_path / "other")


def start(arguments, cwd):
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment, **pipes)


def flags(args):
    given = {"num_envs": 4, "num_workers": 2, "torch_threads": 1, "eval_every": 0, "episodes": 2}
    given |= {"num_steps": 64, "minibatch_size": 64, "save_every": args.save_every}
    given |= {"total_timesteps": args.total_timesteps, "run_dir": args.run_dir}
    if hasattr(args, "teacher"):
        given |= {"teacher": args.teacher, "teacher_episodes": 2}
    words = [word for k, v in given.items() for word in ("--" + k.replace("_", "-"), str(v))]
    return [*words, "--hidden-sizes", *map(str, args.hidden_sizes)]


def wait_for_saves(path, count, process):
    """Until the file has been written so many times."""
    deadline, seen = time.monotonic() + 300, set()
    while len(seen) < count and process.poll() is None and time.monotonic() < deadline:
        if path.exists():
            seen.add(path.stat().st_mtime_ns)
        time.sleep(0.002)
    assert len(seen) == count, process.communicate()


def stop_and_resume(script, number, teacher, tmp_path):
    """Stop a real process at a random moment, go on here; returns its status and output."""
    long = {"total_timesteps": 64 * 4 * 40, "save_every": 256}
    whole = small_args(script, tmp_path / "whole", teacher, **long)
    script.train(whole)
    stopped = small_args(script, tmp_path / "stopped", teacher, **long)
    with start([ROOT / f"{script.__name__}.py", *flags(stopped)], tmp_path) as process:
        # At least one update is saved: a run resumed at its start needs no state restored.
        wait_for_saves(tmp_path / "stopped" / "training_state.pt", random.randint(3, 10), process)
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(number)
        output, errors = process.communicate(timeout=300)
    assert not (tmp_path / "stopped" / "result.json").exists(), "too late: it had finished"
    script.read_checkpoint(tmp_path / "stopped" / "agent.safetensors")
    script.train(script.Args(resume=str(tmp_path / "stopped")))
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    a, b = read_result(tmp_path / "whole"), read_result(tmp_path / "stopped")
    for name in ("episode_returns", "episode_lengths", "curve", "steps", "score"):
        assert a[name] == b[name]
    return process.returncode, output, errors


@pytest.mark.parametrize("name", MUJOCO_SCRIPTS)
def test_killed_and_resumed(name, hopper_teacher, tmp_path):
    status, _, _ = stop_and_resume(load(name), signal.SIGKILL, hopper_teacher, tmp_path)
    assert status == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(10))
def test_killed_and_resumed_ten_times(attempt, hopper_teacher, tmp_path):
    stop_and_resume(load("ppd_mujoco"), signal.SIGKILL, hopper_teacher, tmp_path)


def test_ctrl_c_saves_and_says_how_to_go_on(hopper_teacher, tmp_path):
    script = load("ppd_mujoco")
    status, output, errors = stop_and_resume(script, signal.SIGINT, hopper_teacher, tmp_path)
    assert status == 130
    assert f"python ppd_mujoco.py --resume {tmp_path / 'stopped'}" in output
    assert "Traceback" not in errors


def test_a_resumed_run_wants_its_first_teacher(monkeypatch, tmp_path):
    script = load("ppd_mujoco")
    args = fake_run(script, monkeypatch, tmp_path)
    script.train(args)
    (tmp_path / "run" / "result.json").unlink()
    script.train(script.Args(resume=args.run_dir))  # the same teacher
    (tmp_path / "run" / "result.json").unlink()
    agent, header = script.load_mujoco_agent(args.teacher)
    script.save_agent(agent, Path(args.teacher), header | {"seed": 2})
    with pytest.raises(script.UserError, match="its teacher has changed"):
        script.train(script.Args(resume=args.run_dir))


@pytest.mark.parametrize("name", MUJOCO_SCRIPTS)
@pytest.mark.parametrize("file", ["training_state.pt", "agent.safetensors"])
def test_a_run_that_cannot_save_says_so(name, file, monkeypatch, tmp_path):
    """A full disk, a folder that is gone or read-only; here, a folder in the file's place."""
    script = load(name)
    args = fake_run(script, monkeypatch, tmp_path)
    script.train(args)
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / f"{file}.partial").mkdir()
    with pytest.raises(script.UserError, match=f"{file} cannot be written: .*--resume"):
        script.train(script.Args(resume=args.run_dir))


@pytest.mark.parametrize("name", MUJOCO_SCRIPTS)
def test_a_newcomer_sees_no_warning(name, hopper_teacher, tmp_path):
    """stderr of a whole run is its progress line, and nothing else."""
    script = load(name)
    args = small_args(script, tmp_path / "run", hopper_teacher)
    with start([ROOT / f"{name}.py", *flags(args)], tmp_path) as process:
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    lines = [line for line in re.split(r"[\r\n]", errors) if line.strip()]
    assert lines
    assert [line for line in lines if not re.search(r"\d+%\|.*\| .*steps", line)] == []
    assert "arning" not in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    kept = {path.name.split(".")[0] for path in (tmp_path / "run").iterdir()}
    assert kept == {"agent", "training_state", "result", "events"}


def test_lambda_0_is_ppo(monkeypatch, tmp_path):
    """Bitwise the weights of the PPO script, given its start and its observation statistics."""
    ppo, ppd = load("ppo_teacher_mujoco"), load("ppd_mujoco")
    same = {"gamma": 0.9, "ent_coef": 0.1, "hidden_sizes": (4, 3)}
    args = fake_run(ppd, monkeypatch, tmp_path, "ppd", distill_lambda=0.0, **same)
    load_teacher = ppd.load_mujoco_teacher

    def load_teacher_aside(*arguments):
        with torch.random.fork_rng():  # the teacher's network takes random numbers
            teacher, header, warning = load_teacher(*arguments)
        teacher.obs_mean.zero_(), teacher.obs_var.fill_(1), teacher.obs_count.fill_(1e-4)
        return teacher, header, warning

    monkeypatch.setattr(ppd, "load_mujoco_teacher", load_teacher_aside)
    ppd.train(args)
    ppo_args = fake_run(ppo, monkeypatch, tmp_path, "ppo", **same)
    monkeypatch.setattr(ppo.MujocoAgent, "update_normalizer", lambda agent, obs: None)
    ppo.train(ppo_args)
    assert_same_weights(tmp_path / "ppd", tmp_path / "ppo")
    args = fake_run(ppd, monkeypatch, tmp_path, "lambda", distill_lambda=1e-3, **same)
    ppd.train(args)
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "lambda", tmp_path / "ppo")


@pytest.mark.parametrize("name", MUJOCO_SCRIPTS)
def test_ratios_start_at_1(name, hopper_teacher, monkeypatch, tmp_path):
    """On each rollout's first minibatch: it holds the observations as the policy saw them."""
    script, ratios = load(name), []
    loss = script.clipped_surrogate_loss

    def record(ratio, *rest):
        ratios.append(ratio.detach())
        return loss(ratio, *rest)

    monkeypatch.setattr(script, "clipped_surrogate_loss", record)
    script.train(small_args(script, tmp_path / "run", hopper_teacher))
    per_rollout = 4 * 4  # epochs × minibatches
    assert len(ratios) == 4 * per_rollout
    for first in ratios[::per_rollout]:
        np.testing.assert_allclose(first, 1, rtol=0, atol=1e-5)
    assert not np.allclose(ratios[per_rollout - 1], 1, atol=1e-5)


def test_teacher_is_asked_once_and_never_changes(monkeypatch, tmp_path):
    script, asked, loaded = load("ppd_mujoco"), [], []
    args = fake_run(script, monkeypatch, tmp_path)
    load_teacher = script.load_mujoco_teacher

    def record_questions(*arguments):
        teacher, header, warning = load_teacher(*arguments)
        teacher.actor.register_forward_hook(lambda _, inputs, outputs: asked.append(len(outputs)))
        loaded.append(teacher)
        return teacher, header, warning

    monkeypatch.setattr(script, "load_mujoco_teacher", record_questions)
    script.train(args)
    (teacher,) = loaded
    in_training = [rows for rows in asked if rows > 10]  # it is scored on 10 environments
    assert in_training == [36] * args.num_iterations
    assert not teacher.training
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    on_disk, student = load_file(args.teacher), weights(tmp_path / "run")
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, on_disk[name])
    for name in ("obs_mean", "obs_var", "obs_count"):
        assert torch.equal(student[name], on_disk[name])


@pytest.mark.parametrize(("episodes", "quota"), [(10, [3, 3, 2, 2]), (2, [1, 1, 0, 0])])
def test_evaluation_takes_a_quota_from_each_slot(mujoco_script, episodes, quota, monkeypatch):
    use_fake_envs(mujoco_script, monkeypatch)
    envs = FakeEnvs("", 4, 1)
    agent = mujoco_script.MujocoAgent(-torch.ones(2), torch.ones(2), 3, (3,))
    returns, lengths = mujoco_script.evaluate(agent, envs, episodes, 1, True)
    expected = [length for n, length in zip(quota, envs.lengths, strict=True) for _ in range(n)]
    assert lengths == expected
    assert len(returns) == episodes
    first = sum(step["rewards"][0] for step in envs.steps[: envs.lengths[0]])
    assert returns[0] == pytest.approx(first)


def test_evaluation_leaves_the_random_numbers_alone(mujoco_script, monkeypatch):
    use_fake_envs(mujoco_script, monkeypatch)
    agent = mujoco_script.MujocoAgent(-torch.ones(2), torch.ones(2), 3, (3,))
    before = torch.get_rng_state()
    runs = [
        mujoco_script.evaluate(agent, FakeEnvs("", 3, 1), 4, seed, deterministic=False)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("name", MUJOCO_SCRIPTS)
@pytest.mark.parametrize("broken", ["value_loss", "clipped_surrogate_loss"])
def test_nan_stops_the_run(name, broken, monkeypatch, tmp_path):
    """At update 3, with the checkpoint of update 2 kept."""
    script, calls = load(name), []
    args = fake_run(script, monkeypatch, tmp_path, save_every=36)
    function, per_update = getattr(script, broken), 4 * 3

    def break_down(*arguments):
        calls.append(None)
        loss = function(*arguments)
        return loss * float("nan") if len(calls) > 2 * per_update + 1 else loss

    monkeypatch.setattr(script, broken, break_down)
    with pytest.raises(script.UserError, match="update 3") as error:
        script.train(args)
    assert "\n" not in str(error.value)
    _, header = script.read_checkpoint(tmp_path / "run" / "agent.safetensors")
    assert header["steps"] == 2 * 36
    state = script.load_training_state(args.run_dir, name, script.Args)
    assert state["log"]["iteration"] == 2
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_weight_that_is_no_number_stops_the_run(mujoco_script, tmp_path):
    """The last gradient step of an update may break what no loss has seen."""
    layer, losses = torch.nn.Linear(1, 1), {"losses/value_loss": 1.0}
    mujoco_script.check_finite(layer, losses, 3, tmp_path)
    layer.bias.data[0] = float("inf")
    with pytest.raises(mujoco_script.UserError, match="update 3"):
        mujoco_script.check_finite(layer, losses, 3, tmp_path)


@pytest.mark.parametrize("name", MUJOCO_SCRIPTS)
def test_exploding_weights_stop_the_run(name, monkeypatch, tmp_path):
    script = load(name)
    args = fake_run(script, monkeypatch, tmp_path, learning_rate=1e36)
    with warnings.catch_warnings(), pytest.raises(script.UserError, match="update [123];"):
        warnings.simplefilter("ignore")
        script.train(args)
    script.read_checkpoint(tmp_path / "run" / "agent.safetensors")


def test_resume_where_the_simulator_cannot_be_saved(monkeypatch, tmp_path, capsys):
    """Episodes restart, and the run says so."""
    script = load("ppo_teacher_mujoco")
    args = fake_run(script, monkeypatch, tmp_path, save_every=36)
    monkeypatch.setattr(script, "check_finite", fail_at(2, script.check_finite))
    with pytest.raises(KeyboardInterrupt):
        script.train(args)
    monkeypatch.undo()
    use_fake_envs(script, monkeypatch)
    monkeypatch.setattr(script, "SummaryWriter", NoWriter)
    result = script.train(script.Args(resume=args.run_dir))
    assert result["steps"] == 108
    assert "its running episodes restart" in capsys.readouterr().out


def fail_at(update, function):
    def wrapped(agent, losses, number, run_dir):
        if number == update:
            raise KeyboardInterrupt
        function(agent, losses, number, run_dir)

    return wrapped


def test_a_teacher_far_below_its_header_is_reported(monkeypatch, tmp_path, capsys):
    """Also one of another environment of the same shapes; result.json keeps both warnings."""
    script = load("ppd_mujoco")
    args = fake_run(script, monkeypatch, tmp_path)
    agent, header = script.load_mujoco_agent(args.teacher)
    header |= {"score": {"mean": 1e6, "standard_error": 1.0, "episodes": 50}, "env_id": "Ant-v4"}
    script.save_agent(agent, tmp_path / "teacher.safetensors", header)
    result = script.train(args)
    other, below = result["warnings"]
    assert "Ant-v4" in other
    assert "1000000.0 in its header" in below
    assert capsys.readouterr().out.count("WARNING") == 2


def test_a_file_is_whole_or_not_there(mujoco_script, tmp_path):
    path = tmp_path / "file"
    mujoco_script.write_whole(path, lambda partial: partial.write_text("old"))

    def fail(partial):
        partial.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mujoco_script.write_whole(path, fail)
    assert path.read_text() == "old"
