"""Real short runs: they learn, repeat bitwise, and go on bitwise after a kill."""

import os
import random
import re
import signal
import sys
import time
import types
from functools import cache

import helpers
import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import RUNS, TEACHERS, FakeEnvs, NoWriter, assert_same_weights, load, make_args
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PPO_RUNS = [run for run in RUNS if run[0] not in helpers.BASELINES]
PPD_RUNS = [run for run in RUNS if run[0] in helpers.PPD_SCRIPTS]
STUDENT_RUNS = [run for run in RUNS if run[0] not in TEACHERS]
# Of the baselines, which differ in who acts alone, and share the code of the suites.
PROBES = [("student_distill", "mujoco"), ("teacher_distill", "procgen")]
over = lambda *runs: pytest.mark.parametrize("run", runs, ids=" ".join, indirect=True)
# Of a run that is to be stopped on its way: saved after each rollout, of which there are so many.
LONG = {suite: {"save_every": 0, "total_timesteps": 64 * rollouts, "eval_every": 128}
        for suite, rollouts in [("mujoco", 12), ("atari", 4), ("procgen", 4)]}  # fmt: skip
LONG["mujoco"]["num_workers"] = 2


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a script's tiny run that nothing stopped; it is trained once."""

    @cache
    def train(script, suite):
        folder = tmp_path_factory.mktemp("whole")
        with pytest.MonkeyPatch.context() as monkeypatch:
            helpers.shorten_episodes(script, suite, monkeypatch)
            script.train(make_args(script, suite, folder / "run", **LONG[suite]))
        return folder / "run"

    return train


# ------------------------------------------------------------------------------- Learning
def test_ppo_learns_and_ppd_from_it(monkeypatch, tmp_path):
    """To balance a pole, which random actions keep up for 5 to 10 steps; PPD in fewer steps."""
    options = {"env_id": "InvertedPendulum-v5", "num_envs": 8, "num_steps": 128, "episodes": 10}
    options |= {"hidden_sizes": (32, 32), "minibatch_size": 128, "gamma": 0.99, "update_epochs": 4}
    options |= {"total_timesteps": 40_000, "learning_rate": 1e-3, "eval_every": 20_000}
    script, run_dir = load("ppo_teacher_mujoco"), tmp_path / "ppo"
    result = script.train(make_args(script, "mujoco", run_dir, **options))
    assert result["curve"][0][1] < 30 and result["score"]["mean"] > 200
    assert len(result["evaluations"]) == 2

    script = load("ppd_mujoco")
    monkeypatch.setattr(script, "SummaryWriter", NoWriter)
    options |= {"total_timesteps": 8192, "num_steps": 64, "minibatch_size": 24, "gamma": 0.999}
    options |= {"eval_every": 0, "teacher": str(run_dir / "agent.safetensors")}
    result = script.train(make_args(script, "mujoco", tmp_path / "ppd", **options))
    kl = NoWriter.scalars["distill/kl"]
    assert len(kl) == 16 and np.mean(kl[-4:]) < 0.3 * kl[0]
    assert result["curve"][0][1] < 40 and result["score"]["mean"] > 100


@over(("ppo_teacher_atari", "atari"), ("ppo_teacher_procgen", "procgen"))
def test_ppo_learns_from_pixels_which_action_is_paid(run, monkeypatch, train):
    """The real games, but with a reward of 1 for action 2 and nothing else."""
    script, suite = run
    envs, rates = script.AtariGames if suite == "atari" else script.ProcgenVectorEnv, []
    step = envs.step

    def paid_step(self, actions):
        obs, _, *rest = step(self, actions)
        rates.append(np.mean(actions == 2))
        return obs, (actions == 2).astype(np.float32), *rest

    monkeypatch.setattr(envs, "step", paid_step)
    changes = {"num_steps": 32, "minibatch_size": 64, "total_timesteps": 4 * 32 * 8}
    changes |= {"update_epochs": 4, "gamma": 0.5, "learning_rate": 1e-3}
    train(script, suite, **changes)
    assert np.mean(rates[:32]) < 0.3 and np.mean(rates[-32:]) > 0.6


@over(*PPD_RUNS[1:], PROBES[1])
def test_the_student_of_pixels_comes_nearer_to_its_teacher(run, train):
    """In a few rollouts, and too few rewards to learn anything from."""
    train(*run, learning_rate=1e-3, total_timesteps=64 * 12)
    kl = NoWriter.scalars["distill/kl"]
    assert np.mean(kl[-2:]) < 0.6 * kl[0], kl


# ------------------------------------------------------------------------------- The same again
@over(*PPD_RUNS, ("student_distill", "mujoco"))
def test_same_seed_same_run(run, whole, monkeypatch, tmp_path):
    """Whatever the number of workers or threads, how often it is evaluated and saved."""
    script, suite = run
    helpers.shorten_episodes(script, suite, monkeypatch)
    changes = LONG[suite] | {"eval_every": 0, "save_every": 60}
    workers = "num_workers" if suite == "mujoco" else "env_threads"
    result = script.train(make_args(script, suite, tmp_path / "two", **changes | {workers: 3}))
    assert_same_weights(whole(script, suite), tmp_path / "two")
    expected = helpers.read_result(whole(script, suite))
    assert [result[key] for key in ("curve", "score")] == [expected["curve"], expected["score"]]
    assert expected["evaluations"] and not result["evaluations"]
    with pytest.raises(AssertionError):
        changes |= {"seed": 101, "total_timesteps": 64}
        script.train(make_args(script, suite, tmp_path / "three", **changes))
        assert_same_weights(whole(script, suite), tmp_path / "three")


def test_a_run_starts_with_the_same_weights_on_any_number_of_cores(run, train, monkeypatch):
    """An orthogonal matrix depends on how many threads make it: as many as a flag says."""
    script, suite = run
    changes = {"hidden_sizes": (128, 64)} if suite == "mujoco" else {}

    def start(threads):
        def keep(self, header, parts, *rest):
            found.update({k: v.clone() for k, v in parts["agent"].state_dict().items()})
            raise KeyboardInterrupt

        found = {}
        torch.set_num_threads(threads)
        monkeypatch.setattr(script.Run, "start", keep)
        with pytest.raises(KeyboardInterrupt):
            train(script, suite, f"on-{threads}", **changes)
        return found

    one, four = start(1), start(4)
    assert [name for name in one if not torch.equal(one[name], four[name])] == []


def start(script, suite, args) -> helpers.Process:
    """The script's own `main` in a new process (and group), with short episodes.

    It waits a little after each rollout, so that a test on busy cores is not too late to stop it.
    """
    code = """
    import sys, time, pytest
    from helpers import load, shorten_episodes
    script, suite = load(sys.argv.pop(1)), sys.argv.pop(1)
    shorten_episodes(script, suite, pytest.MonkeyPatch())
    log = script.Run.log
    script.Run.log = lambda *arguments: time.sleep(0.1) or log(*arguments)
    script.main()
    """
    words = helpers.command(script, suite, args)[2:]
    return helpers.run_python(code, script.__name__, suite, *words)


def stop_and_resume(script, suite, number, whole, tmp_path, monkeypatch):
    """Stop a real process at a random moment, go on here; returns its status and output."""
    teacher = whole.parent / "teacher.safetensors"
    given = LONG[suite] | ({"teacher": str(teacher)} if teacher.exists() else {})
    rollouts = LONG[suite]["total_timesteps"] // 64
    run_dir, seen = tmp_path / "stopped", set()
    first = 1 if number == signal.SIGKILL else 2  # the first is saved before the line is printed
    state, wanted = run_dir / "training_state.pt", random.randint(first, rollouts // 2)
    with start(script, suite, make_args(script, suite, run_dir, **given)) as process:
        while len(seen) < wanted and process.poll() is None:
            if state.exists():
                seen.add(state.stat().st_mtime_ns)
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.2))
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        output, errors = process.communicate(timeout=120)
    deadline = time.monotonic() + 30
    while process_group_lives(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.returncode in (-number, 130), errors
    helpers.shorten_episodes(script, suite, monkeypatch)
    script.train(type(make_args(script, suite, run_dir))(resume=str(run_dir)))
    assert_same_weights(whole, run_dir)
    a, b = helpers.read_result(whole), helpers.read_result(run_dir)
    keys = ["curve", "score", "evaluations", "steps", *(k for k in a if k.endswith("_training"))]
    assert [a[key] for key in keys] == [b[key] for key in keys]
    return process.returncode, output, errors


def process_group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@over(*PPO_RUNS, ("student_distill", "mujoco"), ("teacher_distill", "atari"))
def test_killed_and_resumed(run, whole, monkeypatch, tmp_path):
    """Bit for bit as if it had never been stopped."""
    stop_and_resume(*run, signal.SIGKILL, whole(*run), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(10))
def test_killed_and_resumed_ten_times(run, attempt, whole, monkeypatch, tmp_path):
    stop_and_resume(*run, signal.SIGKILL, whole(*run), tmp_path, monkeypatch)


@over(("ppd_mujoco", "mujoco"), ("student_distill", "procgen"))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand(run, number, whole, monkeypatch, tmp_path):
    """Ctrl-C, which the workers get as well, says how to go on; no process is left."""
    arguments = number, whole(*run), tmp_path, monkeypatch
    status, output, errors = stop_and_resume(*run, *arguments)
    suite = f" {run[1]}" if run[0].__name__ in helpers.BASELINES else ""
    line = f"continue with: python {run[0].__name__}.py{suite} --resume {tmp_path / 'stopped'}"
    assert "Traceback" not in errors
    assert output.count(line) == (2 if number == signal.SIGINT else 1)
    assert status == (130 if number == signal.SIGINT else -number)


@pytest.fixture
def almost_finished(tmp_path):
    """A PPD run that has all its steps, but no result yet."""
    script = load("ppd_mujoco")
    script.train(make_args(script, "mujoco", tmp_path / "run"))
    (tmp_path / "run" / "result.json").unlink()
    return script, ["--resume", tmp_path / "run"]


def test_a_run_that_is_being_trained_is_not_resumed(almost_finished, refused, tmp_path):
    with FileLock(tmp_path / "run" / "lock"):
        refused(*almost_finished, "another process is training this run")
    almost_finished[0].train(almost_finished[0].Args(resume=str(tmp_path / "run")))


def test_a_resumed_run_wants_its_first_teacher(almost_finished, refused, tmp_path):
    helpers.make_teacher("mujoco", tmp_path / "teacher.safetensors", seed=2)
    refused(*almost_finished, "its teacher has changed")


def test_a_run_of_another_version_is_not_resumed(almost_finished, refused, tmp_path):
    """As an older version may have had."""
    path = tmp_path / "run" / "training_state.pt"
    state = torch.load(path, weights_only=True)
    state["args"]["old"] = state["args"].pop("kl")
    torch.save(state, path)
    refused(*almost_finished, "another version", "use the version that began this run")


def test_a_tracked_run_keeps_its_id_in_its_folder(monkeypatch, train, tmp_path):
    """Weights & Biases goes on with what it finds in `dir`; a folder's name may stand twice."""
    calls = []
    init, finish = lambda **options: calls.append(options), lambda: calls.append("finish")
    wandb = types.SimpleNamespace(init=init, finish=finish)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(load("ppo_teacher_mujoco"), "mujoco", track=True, total_timesteps=64)
    call, finished = calls  # so that the next run of this process is a separate one (bug report D6)
    assert finished == "finish"
    assert call["config"]["seed"] == 100 and call["sync_tensorboard"] and call["resume"] == "auto"
    assert (call["dir"], call["name"], "id" in call) == (tmp_path / "run", "run", False)


def test_a_run_that_cannot_be_tracked_leaves_nothing(refused, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    refused(load("ppo_teacher_mujoco"), ["--track", "--run-dir", tmp_path / "run"], "wandb")
    assert not (tmp_path / "run").exists()


def test_what_was_logged_survives_a_resume(monkeypatch, tmp_path):
    """TensorBoard drops what a stopped run logged after its checkpoint, and no more."""
    script, calls = load("ppo_teacher_mujoco"), []
    function = script.value_loss
    monkeypatch.setattr(script, "evaluate", helpers.no_score)

    def stop(*arguments):
        calls.append(None)
        if len(calls) > 2 * 6:
            raise KeyboardInterrupt
        return function(*arguments)

    monkeypatch.setattr(script, "value_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        script.train(make_args(script, "mujoco", tmp_path / "run", save_every=0))
    monkeypatch.setattr(script, "value_loss", function)
    script.train(script.Args(resume=str(tmp_path / "run")))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in events.Scalars("losses/value_loss")] == [64, 128, 192]


@pytest.mark.parametrize("file", ["training_state.pt", "agent.safetensors"])
def test_a_run_that_cannot_save_says_so(file, almost_finished, monkeypatch, capsys, tmp_path):
    """A full disk, a folder that is gone or read-only; here, a folder in the file's place."""
    (tmp_path / "run" / f"{file}.partial").mkdir()
    assert helpers.run_main(*almost_finished, monkeypatch) == 2
    output, errors = capsys.readouterr()
    assert f"stopped; continue with: python ppd_mujoco.py --resume {tmp_path / 'run'}" in output
    assert "Traceback" not in errors and f"{file}.partial" in errors.splitlines()[-1]


def test_a_file_is_whole_or_not_there(monkeypatch, tmp_path):
    (path := tmp_path / "file").write_text("old")

    def fail(partial, content):
        partial.write_text("ne")
        raise KeyboardInterrupt

    monkeypatch.setattr(type(path), "write_bytes", fail)
    with pytest.raises(KeyboardInterrupt):
        helpers.owner("write_file").write_file(path, b"new")
    assert path.read_text() == "old"


# ------------------------------------------------------------------------------- The method
def test_lambda_0_is_ppo(suite, monkeypatch, train, tmp_path):
    """Bitwise the weights of the PPO script, given its start and its observation statistics."""
    ppo, ppd = load(f"ppo_teacher_{suite}"), load(f"ppd_{suite}")
    load_teacher = getattr(ppd, f"load_{suite}_agent")

    def load_teacher_aside(*arguments):
        with torch.random.fork_rng():  # the teacher's network takes random numbers
            teacher, header = load_teacher(*arguments)
        if suite == "mujoco":
            teacher.obs_mean.zero_(), teacher.obs_var.fill_(1), teacher.obs_count.fill_(1e-4)
        return teacher, header

    monkeypatch.setattr(ppd, f"load_{suite}_agent", load_teacher_aside)
    monkeypatch.setattr(ppo, "update_normalizer", lambda agent, obs: None, raising=False)
    options = {"gamma": 0.9, "ent_coef": 0.1}
    train(ppo, suite, "ppo", **options)
    train(ppd, suite, "ppd", distill_lambda=0.0, **options)
    assert_same_weights(tmp_path / "ppd", tmp_path / "ppo")
    train(ppd, suite, "lambda", distill_lambda=1e-3, **options)
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "lambda", tmp_path / "ppo")


@over(*PPO_RUNS)
def test_ratios_start_at_1(run, monkeypatch, train):
    """On each rollout's first minibatch: it holds the observations as the policy saw them."""
    (script, suite), ratios = run, []
    loss = script.clipped_surrogate_loss

    def record(ratio, *rest):
        ratios.append(ratio.detach())
        return loss(ratio, *rest)

    monkeypatch.setattr(script, "clipped_surrogate_loss", record)
    train(script, suite)
    assert len(ratios) == 3 * 2 * 3  # rollouts × epochs × minibatches
    for first in ratios[::6]:
        np.testing.assert_allclose(first, 1, rtol=0, atol=1e-5)
    assert not np.allclose(ratios[5], 1, atol=1e-5)


@over(*STUDENT_RUNS)
def test_teacher_is_asked_once_and_never_changes(run, monkeypatch, train, tmp_path):
    (script, suite), asked, loaded = run, [], []
    load_teacher = getattr(script, f"load_{suite}_agent")

    def record_questions(*arguments):
        teacher, header = load_teacher(*arguments)
        teacher.actor.register_forward_hook(lambda _, inputs, outputs: asked.append(len(outputs)))
        loaded.append(teacher)
        return teacher, header

    monkeypatch.setattr(script, f"load_{suite}_agent", record_questions)
    train(script, suite)
    (teacher,), acts = loaded, script.__name__ == "teacher_distill"
    assert sum(asked) == 192 * (2 if acts else 1)
    assert not teacher.training
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    on_disk = load_file(tmp_path / "teacher.safetensors")
    assert all(torch.equal(tensor, on_disk[k]) for k, tensor in teacher.state_dict().items())
    student = load_file(tmp_path / "run" / "agent.safetensors")
    assert all(torch.equal(student[k], on_disk[k]) for k in student if k.startswith("obs_"))


@over(*RUNS)
def test_each_score_is_whose_it_says(run, monkeypatch, tmp_path):
    """The n-th evaluation scores n here, which tells who played where for each that is kept."""
    (script, suite), calls = run, []

    def evaluate(agent, envs, episodes, seed, deterministic=True):
        trains = any(parameter.requires_grad for parameter in agent.parameters())
        levels = getattr(envs, "options", {}).get("start_level")
        calls.append((trains, levels, episodes, seed, deterministic))
        return no_score(agent, envs, episodes, seed) | {"mean": float(len(calls))}

    no_score = helpers.no_score
    monkeypatch.setattr(script, "SummaryWriter", NoWriter)
    monkeypatch.setattr(script, "evaluate", evaluate)
    changes = {"eval_every": 64, "seed": 5, "episodes": 7}
    changes |= {"start_level": 3, "num_levels": 4} if suite == "procgen" else {}
    result = script.train(make_args(script, suite, tmp_path / "run", **changes))
    unseen, training = (7, 3) if suite == "procgen" else (None, None)
    found = lambda mean: calls[round(mean) - 1]
    for name in {"score", "teacher_score", "score_training", "teacher_score_training"} & {*result}:
        levels = training if name.endswith("training") else unseen
        expected = not name.startswith("teacher"), levels, 7, 5, suite != "procgen"
        assert found(result[name]["mean"]) == expected, name
    few = 20 if suite == "procgen" else 10
    for name in {"evaluations", "evaluations_training"} & {*result}:
        levels = training if name.endswith("training") else unseen
        expected = True, levels, few, 5, suite != "procgen"
        assert [found(mean) for _, mean, _ in result[name]] == [expected] * 3, name
    pairs = {"score_training", "evaluations_training"} if suite == "procgen" else set()
    pairs |= {"teacher_score"} if script.__name__ not in TEACHERS else set()
    assert {"score", "evaluations", *pairs} <= {*result}
    _, header = getattr(script, f"load_{suite}_agent")(tmp_path / "run" / "agent.safetensors")
    levels = {"start_level", "num_levels"} & {*changes}
    assert {name: header[name] for name in levels} == {name: changes[name] for name in levels}


def test_what_is_logged_and_how_long_it_took(monkeypatch, tmp_path):
    """Returns are no lengths; a run's seconds are those up to each save, together."""
    script = helpers.owner("Run")
    run = object.__new__(script.Run)
    run.parts, run.header, run.folder = {"agent": torch.nn.Linear(1, 1)}, {}, tmp_path
    run.args, run.script, run.command = script.Args(), "script", "python"
    run.history, run.step, run.first_step = {"curve": [], "seconds": 100.0}, 10, 0
    run.started_at = script.time.monotonic() - 5
    run.bar, run.writer = script.tqdm(total=20, disable=True), NoWriter(str(tmp_path))
    run.log([{"losses/value_loss": torch.tensor(1.0)}], {}, [(0, 5.0, 7), (1, 6.0, 9)])
    assert run.history["curve"] == [[10, 5.5, 2]]
    assert NoWriter.scalars["charts/episodic_return"] == [5.5]
    assert NoWriter.scalars["charts/episodic_length"] == [8]
    assert NoWriter.scalars["charts/SPS"] == [pytest.approx(2, rel=0.1)]
    clock, run.saved_at = iter([1007.0, 1010.0]), 1000.0
    monkeypatch.setattr(script.time, "monotonic", lambda: next(clock))
    run.save(), run.save()
    monkeypatch.undo()
    assert run.history["seconds"] == 110


class Told:
    """Stands for an agent and its environment: it keeps what they are told, and random numbers."""

    num_envs = 1

    def __init__(self):
        self.told = []

    def reset(self, *, seed):
        self.told.append(seed)
        return np.zeros(1), {}

    def act(self, obs, deterministic):
        self.told += [deterministic, torch.rand(1).item()]

    def step(self, actions):
        return np.zeros(1), None, None, None, {"episodes": [(0, 1.0, 1)]}


@pytest.mark.parametrize("deterministic", [False, True])
def test_evaluation_has_seeds_of_its_own(deterministic):
    """Far from those of training, for environments and samples; and it leaves training's alone."""
    evaluate, found = helpers.owner("evaluate").evaluate, []
    for before in (1, 2):
        torch.manual_seed(before)
        envs = Told()
        evaluate(envs, envs, 2, 5, deterministic)
        found.append(envs.told)
        after = torch.rand(1)
        torch.manual_seed(before)
        assert torch.equal(after, torch.rand(1))
    torch.manual_seed(10_005)
    samples = [torch.rand(1).item() for _ in range(2)]
    assert found[0] == found[1] == [10_005, deterministic, samples[0], deterministic, samples[1]]


def fake_score(monkeypatch, num_envs, *arguments):
    """`evaluate` of a small agent on fake environments; these and its score."""
    script = helpers.owner("evaluate")
    helpers.use_fake_envs(script, monkeypatch)
    torch.manual_seed(0)
    agent = script.MujocoAgent(-torch.ones(2), torch.ones(2), 3, (3,))
    before, envs = torch.get_rng_state(), FakeEnvs("", num_envs, 1)
    score = script.evaluate(agent, envs, *arguments)
    assert torch.equal(before, torch.get_rng_state())
    return envs, score


@pytest.mark.parametrize(("episodes", "quota"), [(10, [3, 3, 2, 2]), (2, [1, 1, 0, 0])])
def test_evaluation_takes_a_quota_from_each_slot(episodes, quota, monkeypatch):
    envs, score = fake_score(monkeypatch, 4, episodes, 1)
    expected = [length for n, length in zip(quota, envs.lengths, strict=True) for _ in range(n)]
    assert score["lengths"] == expected
    assert score["episodes"] == len(score["returns"]) == episodes
    first = sum(step["rewards"][0] for step in envs.steps[: envs.lengths[0]])
    assert score["returns"][0] == pytest.approx(first)


def test_evaluation_has_random_numbers_of_its_own(monkeypatch):
    scores = [fake_score(monkeypatch, 3, 4, seed, False)[1] for seed in (1, 1, 2)]
    assert scores[0] == scores[1] != scores[2]


def test_only_a_slow_evaluation_shows_how_far_it_is(capsys):
    """Fifty games of Atari take minutes; of a fast environment nothing is announced."""
    script, envs = helpers.owners()["evaluate"], Told()
    helpers.load(script).evaluate(envs, envs, 2, 5)
    assert not capsys.readouterr().err
    slow = helpers.mutant(script, "evaluate", "delay=10", "delay=0, mininterval=0")
    slow.evaluate(envs, envs, 2, 5)
    shown = capsys.readouterr().err
    assert shown.index("scoring:   0%") < shown.index("1/2") < shown.index("2/2")


# ------------------------------------------------------------------------------- What is written
def test_what_a_run_leaves(run, whole):
    """The keys of result.json and of the checkpoint's header, and that they agree."""
    (script, suite), folder = run, whole(*run)
    result, name = helpers.read_result(folder), script.__name__
    keys = {"script", "args", "score", "steps", "seconds", "steps_per_second", "versions"}
    keys |= {"curve", "evaluations", "git_commit"}
    student = name not in TEACHERS
    keys |= {"teacher", "teacher_score"} if student else set()
    keys |= {"score_training", "evaluations_training"} if suite == "procgen" else set()
    assert keys <= result.keys()
    for key in [key for key in result if "score" in key]:
        score, returns = result[key], result[key]["returns"]
        assert score["episodes"] == len(returns) == len(score["lengths"]) == 2
        assert score["mean"] == pytest.approx(np.mean(returns))
        error = np.std(returns, ddof=1) / len(returns) ** 0.5
        assert score["standard_error"] == pytest.approx(error)
        assert {"distinct", "human_normalized"} <= score.keys() or suite != "atari"
    total = LONG[suite]["total_timesteps"]
    assert (result["script"], result["steps"]) == (name, total)
    assert result["steps_per_second"] == pytest.approx(total / result["seconds"])
    assert {"torch", "numpy", "gymnasium"} <= result["versions"].keys()
    assert [step for step, *_ in result["evaluations"]] == list(range(128, total + 1, 128))
    _, header = getattr(script, f"load_{suite}_agent")(folder / "agent.safetensors")
    promised = {"format": "ppd-agent-2", "script": name, "suite": suite, "seed": 100}
    promised |= {"env_id": result["args"]["env_id"], "steps": total}
    promised |= {"deterministic": suite != "procgen"}
    assert promised.items() <= header.items()
    for key in result.keys() & {"score", "score_training"}:  # an imperfect teacher needs both
        short = {k: v for k, v in result[key].items() if k not in ("returns", "lengths")}
        assert header[key] == short
    if student:
        assert result["teacher"]["script"] == f"ppo_teacher_{suite}"


OTHERS = {"env_id": "Other-v4", "frame_skip": 1, "distribution_mode": "hard"}
OTHERS |= {"num_levels": 500, "start_level": 1000}


@over(*PPD_RUNS, ("student_distill", "mujoco"))
def test_a_teacher_of_another_environment_is_used_with_a_warning(run, train, tmp_path, capsys):
    """Of another name, frame skip, difficulty or training levels."""
    here = {key: OTHERS[key] for key in OTHERS if key in {"env_id", *helpers.HEADERS[run[1]]}}
    helpers.make_teacher(run[1], tmp_path / "teacher.safetensors", **here)
    train(*run, total_timesteps=64)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert said and not [value for value in here.values() if str(value) not in "".join(said)]


@over(*PPO_RUNS, *PROBES)
def test_nan_stops_the_run(run, monkeypatch, train, tmp_path):
    """In the third rollout's update, with the checkpoint of the second kept."""
    (script, suite), calls = run, []
    function, per_update = script.value_loss, 1 if script.__name__ in helpers.BASELINES else 2 * 3

    def break_down(*arguments):
        calls.append(None)
        return function(*arguments) * (float("nan") if len(calls) > 2 * per_update else 1)

    monkeypatch.setattr(script, "value_loss", break_down)
    with pytest.raises(script.UserError, match="step 192.*lower --learning-rate") as error:
        train(script, suite, save_every=0)
    assert "\n" not in str(error.value)
    _, header = getattr(script, f"load_{suite}_agent")(tmp_path / "run" / "agent.safetensors")
    assert header["steps"] == 128
    name = " ".join(
        [f"python {script.__name__}.py", *[suite] * (script.__name__ in helpers.BASELINES)]
    )
    args = helpers.args_class(script, suite)()
    state = script.read_training_state(tmp_path / "run", name, args)
    assert state["history"]["steps"] == 128
    assert all(tensor.isfinite().all() for tensor in state["agent"].values())
    assert not (tmp_path / "run" / "result.json").exists()


@over(*PROBES)
def test_nan_is_seen_before_it_is_sampled_from(run, train):
    """Where losses are logged once in many updates."""
    with pytest.raises(run[0].UserError, match="NaN or infinite loss at step 128"):
        train(*run, learning_rate=1e6, log_every=10**6, total_timesteps=6400)


def test_a_choice_that_breaks_down_ends_with_one_line(tmp_path):
    """NaN among logits of discrete actions; not to be resumed, which would end so again."""
    script = load("ppo_teacher_mujoco")
    changes = {"env_id": "CartPole-v1", "learning_rate": 1e12}
    with start(script, "mujoco", make_args(script, "mujoco", tmp_path / "run", **changes)) as run:
        output, errors = run.communicate(timeout=300)
    assert run.returncode == 2, errors
    assert "Traceback" not in errors and "NaN or infinite loss at step 64" in errors
    assert "stopped; continue with" not in output


def test_exploding_weights_stop_the_run(monkeypatch, train, tmp_path):
    """The last gradient step of an update, here the only one, may break what no loss has seen."""
    script, step = load("ppd_mujoco"), torch.optim.Adam.step

    def break_down(self, closure=None):
        step(self, closure)
        self.param_groups[0]["params"][0].data[0] = float("inf")

    monkeypatch.setattr(torch.optim.Adam, "step", break_down)
    changes = {"total_timesteps": 64, "minibatch_size": 64, "update_epochs": 1, "save_every": 0}
    with pytest.raises(script.UserError, match="NaN or infinite"):
        train(script, "mujoco", **changes)
    script.load_mujoco_agent(tmp_path / "run" / "agent.safetensors")


@over(*PPD_RUNS, ("teacher_distill", "mujoco"))
def test_a_newcomer_sees_no_warning(run, tmp_path):
    """stderr of a whole run is its progress line, and nothing else."""
    with start(*run, make_args(*run, tmp_path / "run")) as process:
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    lines = [line for line in re.split(r"[\r\n]", errors) if line.strip()]
    assert lines
    assert [line for line in lines if not re.search(r"\d+%\|.*\| .*steps", line)] == []
    assert "arning" not in output
    kept = {path.name.split(".")[0] for path in (tmp_path / "run").iterdir()}
    assert kept <= {"agent", "best", "training_state", "result", "events", "lock"}
