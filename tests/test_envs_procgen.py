"""Procgen's games: the real simulator, its levels, its state, and short runs on it."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ppd_procgen
import ppo_teacher_procgen

if not importlib.util.find_spec("procgen"):
    pytest.skip("Procgen has no wheel for this machine", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [ppo_teacher_procgen, ppd_procgen]
GAMES = ["coinrun", "jumper", "miner", "ninja"]
ALL_LEVELS = 2**31 - 1


def make_envs(game="coinrun", num_envs=4, num_levels=200, start_level=0, num_threads=1, **options):
    return ppd_procgen.ProcgenVectorEnv(
        game, num_envs, num_levels, start_level, "easy", num_threads, **options
    )


def make_plain(game="coinrun", num_envs=4, seed=3, **options):
    options = {"num_levels": 200, "start_level": 0, "distribution_mode": "easy"} | options
    simulator = ppd_procgen.import_procgen(game)
    return simulator(num=num_envs, env_name=game, rand_seed=seed, num_threads=1, **options)


def random_actions(steps, num_envs=4, seed=0):
    return np.random.default_rng(seed).integers(0, 15, (steps, num_envs))


def level_seeds(envs) -> list[int]:
    return [int(info["level_seed"]) for info in envs.simulator.get_info()]


def play(envs, actions) -> list[tuple]:
    """Copies of what each step returned."""
    return [tuple(np.copy(x) for x in envs.step(action)[:4]) for action in actions]


def digest(steps) -> str:
    return hashlib.sha256(b"".join(x.tobytes() for step in steps for x in step)).hexdigest()


def run_python(code: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def tiny(script, run_dir, **changes):
    """Arguments of a run that takes seconds; dodgeball's episodes are short."""
    settings = {"env_id": "dodgeball", "num_envs": 4, "num_steps": 16, "minibatch_size": 32}
    settings |= {"total_timesteps": 192, "eval_every": 64, "eval_episodes": 2, "episodes": 6}
    settings |= {"torch_threads": 1, "env_threads": 1, "save_every": 64, "run_dir": str(run_dir)}
    settings["student_size" if script is ppd_procgen else "size"] = "smaller"
    if script is ppd_procgen:
        settings["teacher_episodes"] = 2
    return script.Args(**settings | changes)


def save_teacher(path, **changes) -> str:
    """A random agent whose policy is far from uniform, as a checkpoint."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        agent = ppd_procgen.PixelAgent((3, 64, 64), 15, "smaller")
    with torch.no_grad():
        agent.actor[-1].weight.mul_(100)
    header = {"format": "ppd-agent-1", "suite": "procgen", "script": "ppo_teacher_procgen"}
    header |= {"env_id": "dodgeball", "distribution_mode": "easy", "num_levels": 200}
    header |= {"start_level": 0, "size": "smaller", "seed": 1, "deterministic": False}
    ppd_procgen.save_agent(agent, path, header | changes)
    return str(path)


def with_few_games(make, most=4):
    """`make_procgen_envs` of at most so many games: evaluating on 20 of them takes long."""
    return lambda args, num_envs, *rest: make(args, min(num_envs, most), *rest)


@pytest.fixture(params=SCRIPTS, ids=[script.__name__ for script in SCRIPTS])
def script(request, monkeypatch):
    """Either script, with few games in its evaluations."""
    few = with_few_games(request.param.make_procgen_envs)
    monkeypatch.setattr(request.param, "make_procgen_envs", few)
    return request.param


@pytest.fixture
def train(script, tmp_path):
    """Train by a tiny run; PPD learns from a random teacher."""

    def train(name="run", **changes):
        if script is ppd_procgen and "teacher" not in changes:
            changes["teacher"] = save_teacher(tmp_path / "teacher.safetensors")
        return script.train(tiny(script, tmp_path / name, **changes))

    return train


# ------------------------------------------------------------------------------- Simulator


@pytest.mark.parametrize("game", GAMES)
def test_equals_the_plain_simulator(game):
    plain, envs = make_plain(game), make_envs(game)
    obs, infos = envs.reset(seed=3)
    assert infos == {} and obs.shape == (4, 3, 64, 64) and obs.dtype == np.uint8
    assert envs.observation_space.contains(np.ascontiguousarray(obs))
    _, expected, first = plain.observe()
    assert first.all()
    np.testing.assert_array_equal(obs, expected["rgb"].transpose(0, 3, 1, 2))
    ends = 0
    for action in random_actions(1010):  # past the time limit of each game
        plain.act(action)
        expected_rewards, expected, first = plain.observe()
        obs, rewards, terminations, truncations, infos = envs.step(action)
        np.testing.assert_array_equal(obs, expected["rgb"].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(rewards, expected_rewards)
        np.testing.assert_array_equal(terminations, first)
        assert not truncations.any() and infos == {}
        assert level_seeds(envs) == [int(info["level_seed"]) for info in plain.get_info()]
        ends += terminations.sum()
    assert ends
    envs.close()


def test_red_is_the_first_channel():
    envs = make_envs(num_envs=1, render_mode="rgb_array")
    obs, _ = envs.reset(seed=1)
    (frame,) = envs.render()
    assert frame.shape == (512, 512, 3) and frame.dtype == np.uint8
    means = frame.mean((0, 1))
    assert np.ptp(means) > 10  # the channels can be told apart
    np.testing.assert_allclose(obs[0].mean((1, 2)), means, atol=10)
    envs.close()


def test_an_end_is_a_termination_with_its_last_reward():
    """coinrun pays 10 for the coin, which ends the level: reward, end, next level in one step."""
    envs = make_envs(num_envs=16)
    envs.reset(seed=0)
    levels, paid, ends = level_seeds(envs), 0, 0
    for action in random_actions(600, 16):
        _, rewards, terminations, _, _ = envs.step(action)
        infos = envs.simulator.get_info()
        for slot in np.flatnonzero(terminations):
            assert infos[slot]["prev_level_seed"] == levels[slot]
            assert rewards[slot] == 10 * infos[slot]["prev_level_complete"]
        assert not rewards[~terminations].any()
        same = [old == int(info["level_seed"]) for old, info in zip(levels, infos, strict=True)]
        assert np.array(same)[~terminations].all()
        levels = [int(info["level_seed"]) for info in infos]
        paid += rewards.sum()
        ends += terminations.sum()
    assert paid >= 20 and ends > paid / 10
    envs.close()


def test_a_time_limit_is_an_end_like_any_other():
    envs = make_envs("maze", num_envs=2)
    envs.reset(seed=0)
    nothing = np.full(2, 4)
    for t in range(1, 1001):
        _, rewards, terminations, truncations, infos = envs.step(nothing)
        assert terminations.all() == (t == 500) or t > 500  # maze stops at 500
        assert not truncations.any() and "final_obs" not in infos and not rewards.any()
    envs.close()


def test_a_seed_fixes_everything():
    actions = random_actions(200)
    envs, threaded = make_envs(), make_envs(num_threads=3)
    streams = []
    for which, seed in [(envs, 5), (envs, 5), (threaded, 5), (envs, 6)]:
        first = np.copy(which.reset(seed=seed)[0])
        streams.append(digest([(first,), *play(which, actions)]))
    assert streams[0] == streams[1] == streams[2] != streams[3]
    followers = []  # a reset without a seed goes on to other games, reproducibly
    for seed in (5, 5):
        envs.reset(seed=seed)
        followers.append(digest([tuple(np.copy(envs.reset()[0])), *play(envs, actions)]))
    assert followers[0] == followers[1] not in streams
    envs.reset(seed=2**40 + 5)  # seeds may be larger than the simulator's
    for which in (envs, threaded):
        which.close()


def test_resets_leak_no_memory():
    code = """if True:
    import resource, sys
    import numpy as np, ppd_procgen
    envs = ppd_procgen.ProcgenVectorEnv("coinrun", 4, 200, 0, "easy", 2)
    def peak(resets):
        for seed in range(resets):
            envs.reset(seed=seed)
            envs.step(np.zeros(4, int))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before = peak(50)
    print(peak(100) - before)
    """
    grown = float(run_python(code).stdout)
    assert grown < 15, f"{grown} MiB more after 100 resets"


def test_state_is_exact_in_a_new_process(tmp_path):
    envs = make_envs("leaper")  # often won by chance
    envs.reset(seed=2)
    for step, action in enumerate(random_actions(2000)):  # stop where reward and end are pending
        obs, rewards, terminations, _, _ = envs.step(action)
        if step > 100 and terminations.any() and rewards.any():
            break
    assert rewards.any()
    torch.save({"envs": envs.state_dict()}, tmp_path / "state.pt")
    code = """if True:
    import sys
    sys.path.insert(0, "tests")
    import numpy as np, torch
    from test_envs_procgen import digest, make_envs, play, random_actions
    envs = make_envs("leaper", num_threads=2)
    obs, _ = envs.reset(seed=99)
    envs.load_state_dict(torch.load(sys.argv[1], weights_only=True)["envs"])
    rewards, first = envs.observe()
    print(digest([(obs.copy(), rewards, first), *play(envs, random_actions(300, seed=8))]))
    """
    found = run_python(code, tmp_path / "state.pt")
    expected = digest(
        [(obs.copy(), rewards, terminations), *play(envs, random_actions(300, seed=8))]
    )
    assert found.stdout.strip() == expected, found.stderr
    envs.close()


# ------------------------------------------------------------------------------- Levels


def test_unseen_levels_are_all_the_others():
    """With a training set as large as the rest, a leak would show in the first few levels."""
    half = 2**30
    args = ppd_procgen.Args(num_levels=half)
    for game in GAMES:
        args.env_id = game
        kinds = {}
        for kind in ("training", "unseen"):
            envs = ppd_procgen.make_procgen_envs(args, 64, 1, kind)
            envs.reset(seed=0)
            kinds[kind] = level_seeds(envs)
            envs.close()
        assert all(level < half for level in kinds["training"])
        assert all(half <= level < ALL_LEVELS for level in kinds["unseen"])
    # Procgen's own "all levels from start_level on" would not do: it ignores start_level.
    plain = make_plain(num_envs=64, num_levels=0, start_level=half)
    plain.observe()
    assert any(int(info["level_seed"]) < half for info in plain.get_info())


def test_the_last_training_level_and_the_first_unseen_one():
    args = ppd_procgen.Args(num_levels=3, start_level=7)
    envs = ppd_procgen.make_procgen_envs(args, 64, 1)
    envs.reset(seed=0)
    assert set(level_seeds(envs)) == {7, 8, 9}
    unseen = ppd_procgen.make_procgen_envs(args, 64, 1, "unseen")
    assert unseen.options["start_level"] == 10
    assert unseen.options["start_level"] + unseen.options["num_levels"] == ALL_LEVELS
    envs.close()
    args = ppd_procgen.Args(start_level=ALL_LEVELS - 3, num_levels=2)  # one unseen level is left
    envs = ppd_procgen.make_procgen_envs(args, 8, 1, "unseen")
    envs.reset(seed=0)
    assert set(level_seeds(envs)) == {ALL_LEVELS - 1}
    envs.close()


def test_evaluation_never_sees_a_training_level(script, train, monkeypatch):
    """Every level of a whole run: where it was played, and what result.json calls its episodes."""
    seen, step, reset = {}, script.ProcgenVectorEnv.step, script.ProcgenVectorEnv.reset

    def look(envs):
        entry = seen.setdefault(id(envs), {"envs": envs, "levels": [], "returns": []})
        entry["levels"] += level_seeds(envs)
        return entry

    def watched_step(envs, actions):
        out = step(envs, actions)
        look(envs)["returns"] += out[1].tolist()
        return out

    def watched_reset(envs, **options):
        out = reset(envs, **options)
        look(envs)
        return out

    monkeypatch.setattr(script.ProcgenVectorEnv, "step", watched_step)
    monkeypatch.setattr(script.ProcgenVectorEnv, "reset", watched_reset)
    result = train(num_levels=50, start_level=1000)
    rollouts, unseen, training = seen.values()
    assert set(rollouts["levels"]) | set(training["levels"]) <= set(range(1000, 1050))
    assert len(set(unseen["levels"])) > 10
    assert not set(unseen["levels"]) & set(range(1050))
    assert all(1050 <= level < ALL_LEVELS for level in unseen["levels"])
    # The scores come from the games that they name.
    agent, header = script.load_procgen_agent(Path(result["args"]["run_dir"]) / "agent.safetensors")
    for envs, suffix in [(unseen["envs"], ""), (training["envs"], "_training")]:
        returns, lengths = script.evaluate(agent, envs, 6, 10_100, header["deterministic"])
        assert returns == result[f"episode_returns{suffix}"]
        assert lengths == result[f"episode_lengths{suffix}"]
        assert header[f"score{suffix}"] == result[f"score{suffix}"] == script.summarize(returns)
    assert len(result["evaluations"]) == len(result["evaluations_training"]) == 3


def test_every_agent_is_scored_on_the_same_levels():
    played = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        agent = ppd_procgen.PixelAgent((3, 64, 64), 15, "smaller")
        envs, levels = make_envs("dodgeball"), []
        step = envs.step

        def watched_step(actions, envs=envs, step=step, levels=levels):
            out = step(actions)
            levels.append((level_seeds(envs), out[2].copy()))
            return out

        envs.step = watched_step
        ppd_procgen.evaluate(agent, envs, 12, 5, deterministic=False)
        per_slot = [[seeds[slot] for seeds, ended in levels if ended[slot]] for slot in range(4)]
        played.append([slot[:2] for slot in per_slot])
        envs.close()
    assert played[0] == played[1]


# ------------------------------------------------------------------------------- Import, errors


def test_nothing_is_imported_before_a_game_is_made_and_no_banner_is_seen():
    code = """if True:
    import sys
    import ppo_teacher_procgen as script
    assert "procgen" not in sys.modules and "gym" not in sys.modules
    script.ProcgenVectorEnv("coinrun", 1, 200, 0, "easy", 1).reset(seed=1)
    assert "gym" in sys.modules
    """
    found = run_python(code)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    assert "unmaintained" in run_python("import procgen").stderr  # what would be seen


def run_main(script, capsys, monkeypatch, *arguments) -> str:
    """The error message of a command that must fail: one line, exit status 2."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"{script.__name__}: error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "cause", "remedy"),
    [
        (["--env-id", "doom"], "--env-id doom", "coinrun"),
        (["--env-id", "Hopper-v4"], "--env-id Hopper-v4", "coinrun"),
        (["--num-levels", "-5"], "--num-levels -5", "at least 1"),
        (["--num-levels", "0"], "--num-levels 0", "at least 1"),
        (["--start-level", "-1"], "--start-level -1", "0 or more"),
        (["--start-level", str(2**31 - 2)], "no unseen level", "give less"),
        (["--env-threads", "0"], "--env-threads 0", "at least 1"),
        (["--num-steps", "0"], "--num-steps 0", "at least 1"),
        (["--device", "cuda:7"], "--device cuda:7", "--device cpu"),
    ],
)
def test_input_errors(script, capsys, monkeypatch, tmp_path, arguments, cause, remedy):
    line = run_main(script, capsys, monkeypatch, *arguments, "--run-dir", tmp_path / "run")
    assert cause in line and remedy in line
    assert not (tmp_path / "run").exists()


def test_procgen_is_missing(script, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "procgen", None)
    line = run_main(script, capsys, monkeypatch, "--run-dir", tmp_path / "run")
    assert "not installed" in line and "pip install procgen" in line


def test_teachers_of_other_suites_are_refused(capsys, monkeypatch, tmp_path):
    path = save_teacher(tmp_path / "teacher.safetensors", suite="atari")
    line = run_main(ppd_procgen, capsys, monkeypatch, "--teacher", path)
    assert "an agent for atari" in line and "Procgen" in line
    path = save_teacher(tmp_path / "teacher.safetensors", size="same")
    assert "sizes" in run_main(ppd_procgen, capsys, monkeypatch, "--teacher", path)
    line = run_main(ppd_procgen, capsys, monkeypatch, "--env-id", "plunder")
    assert "no such file" in line and "ppo_teacher_procgen.py --env-id plunder" in line


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({}, None),
        ({"env_id": "miner"}, "env_id miner, not dodgeball"),
        ({"distribution_mode": "hard"}, "distribution_mode hard, not easy"),
        ({"num_levels": 500}, "num_levels 500, not 200"),
    ],
)
def test_a_teacher_of_another_game_is_used_with_a_warning(changes, warning, tmp_path):
    path = save_teacher(tmp_path / "teacher.safetensors", **changes)
    _, header, found = ppd_procgen.load_procgen_teacher(tiny(ppd_procgen, "", teacher=path))
    assert header.items() >= changes.items()
    assert found == (warning and f"the teacher was trained on {warning}")


# ------------------------------------------------------------------------------- Networks


@pytest.mark.parametrize(
    ("size", "parameters"), [("smaller", 142_511), ("same", 625_999), ("larger", 4_599_439)]
)
def test_parameter_counts(size, parameters):
    agent = ppd_procgen.PixelAgent((3, 64, 64), 15, size)
    assert sum(p.numel() for p in agent.actor.parameters()) == parameters


def test_the_paper_s_settings():
    teacher, student = ppo_teacher_procgen.Args(), ppd_procgen.Args()
    shared = {"num_envs": 18, "minibatch_size": 512, "update_epochs": 4, "gae_lambda": 0.9}
    shared |= {"learning_rate": 3e-4, "adam_eps": 1e-5, "clip_coef": 0.2, "vf_coef": 0.5}
    shared |= {"max_grad_norm": 0.5, "num_levels": 200, "start_level": 0, "episodes": 200}
    shared |= {"distribution_mode": "easy", "seed": 100}
    own = {"total_timesteps": 30_000_000, "num_steps": 512, "gamma": 0.995, "ent_coef": 0.01}
    assert vars(teacher).items() >= (shared | own | {"size": "same"}).items()
    own = {"total_timesteps": 2_000_000, "num_steps": 64, "gamma": 0.999, "ent_coef": 0.0}
    own |= {"distill_lambda": 1.0, "kl": "forward", "student_size": "larger"}
    assert vars(student).items() >= (shared | own).items()


# ------------------------------------------------------------------------------- Training


def test_a_warning_stands_in_result_json(monkeypatch, tmp_path, capsys):
    few = with_few_games(ppd_procgen.make_procgen_envs)
    monkeypatch.setattr(ppd_procgen, "make_procgen_envs", few)
    teacher = save_teacher(tmp_path / "teacher.safetensors", env_id="miner")
    args = tiny(ppd_procgen, tmp_path / "run", teacher=teacher, eval_every=0, total_timesteps=64)
    ppd_procgen.train(args)
    (warning,) = json.loads((tmp_path / "run" / "result.json").read_text())["warnings"]
    assert "env_id miner, not dodgeball" in warning
    assert f"WARNING: {warning}" in capsys.readouterr().out


def scalars(monkeypatch, script) -> dict[str, list[float]]:
    """What the coming run logs, by name."""
    logged = {}

    def add_scalar(writer, name, value, step):
        logged.setdefault(name, []).append(value)

    monkeypatch.setattr(script.SummaryWriter, "add_scalar", add_scalar)
    return logged


def test_a_rollout_s_first_minibatch_is_on_policy(script, train, monkeypatch):
    """With one gradient step per rollout each ratio is 1, and the surrogate the mean advantage."""
    logged = scalars(monkeypatch, script)
    train(minibatch_size=64, update_epochs=1, total_timesteps=192, eval_every=0, episodes=1)
    for name, bound in [("approx_kl", 1e-6), ("clipfrac", 0), ("policy_loss", 1e-5)]:
        values = np.abs(logged[f"losses/{name}"])
        assert len(values) == 3 and values.max() <= bound, (name, values)


def test_what_the_games_show_reaches_the_advantages(script, train, monkeypatch):
    """Each rollout's rewards, ends and values against a record of the training games."""
    played, rollouts, games, normalizers = [], [], [], []
    reset, step = script.ProcgenVectorEnv.reset, script.ProcgenVectorEnv.step
    value, gae = script.PixelAgent.value, script.compute_gae

    def watched_reset(envs, **options):
        games.append(envs)  # the training games come first
        return reset(envs, **options)

    def watched_step(envs, actions):
        before = torch.tensor(envs.obs)
        out = step(envs, actions)
        if envs is games[0]:
            played.append((before, out[1].copy(), out[2].copy(), torch.tensor(envs.obs)))
        return out

    def watched_value(agent, obs):
        games.append(agent)
        return value(agent, obs)

    def watched_gae(rewards, values, next_values, terminations, ended, gamma, gae_lambda):
        obs, raw, ends, after = (list(x) for x in zip(*played, strict=True))
        agent, raw, ends = games[-1], np.stack(raw).astype(np.float64), np.stack(ends)
        normalizers[:] = normalizers or [script.RewardNormalizer(4)]
        expected = torch.from_numpy(normalizers[0](raw, ends)).float()
        torch.testing.assert_close(rewards, expected)
        assert torch.equal(terminations, torch.from_numpy(ends))
        assert torch.equal(ended, terminations)
        for found, frames in [(values, obs), (next_values, after)]:
            expected = torch.stack([value(agent, frame) for frame in frames])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        rollouts.append(ends.sum())
        played.clear()
        return gae(rewards, values, next_values, terminations, ended, gamma, gae_lambda)

    monkeypatch.setattr(script.ProcgenVectorEnv, "reset", watched_reset)
    monkeypatch.setattr(script.ProcgenVectorEnv, "step", watched_step)
    monkeypatch.setattr(script.PixelAgent, "value", watched_value)
    monkeypatch.setattr(script, "compute_gae", watched_gae)
    train(total_timesteps=384, num_steps=32, eval_every=0, episodes=1)
    assert len(rollouts) == 3 and sum(rollouts) > 0


@pytest.mark.parametrize("distill_lambda", [1.0, 0.0])
def test_the_student_comes_nearer_to_its_teacher(monkeypatch, tmp_path, distill_lambda):
    few = with_few_games(ppd_procgen.make_procgen_envs, 8)
    monkeypatch.setattr(ppd_procgen, "make_procgen_envs", few)
    logged = scalars(monkeypatch, ppd_procgen)
    changes = {"teacher": save_teacher(tmp_path / "teacher.safetensors"), "num_envs": 8}
    changes |= {"num_steps": 32, "minibatch_size": 64, "total_timesteps": 8 * 32 * 6}
    changes |= {"eval_every": 0, "episodes": 1, "teacher_episodes": 1}
    changes |= {"distill_lambda": distill_lambda}
    ppd_procgen.train(tiny(ppd_procgen, tmp_path / "run", **changes))
    kl = logged["distill/kl"]
    assert (kl[-1] < 0.5 * kl[0]) == (distill_lambda > 0), kl


def test_ppo_learns_which_action_is_paid(monkeypatch, tmp_path):
    """The real games, but with a reward of 1 for action 7 and nothing else."""
    script, rates = ppo_teacher_procgen, []
    step, few = script.ProcgenVectorEnv.step, with_few_games(script.make_procgen_envs, 8)

    def paid_step(envs, actions):
        obs, _, *rest = step(envs, actions)
        rates.append(np.mean(actions == 7))
        return obs, (actions == 7).astype(np.float32), *rest

    monkeypatch.setattr(script, "make_procgen_envs", few)
    monkeypatch.setattr(script.ProcgenVectorEnv, "step", paid_step)
    logged = scalars(monkeypatch, script)
    changes = {"num_envs": 8, "num_steps": 64, "minibatch_size": 64, "total_timesteps": 8 * 64 * 5}
    changes |= {"gamma": 0.5, "eval_every": 0, "episodes": 1}
    script.train(tiny(script, tmp_path / "run", **changes))
    assert np.mean(rates[:64]) < 0.15
    assert np.mean(rates[4 * 64 : 5 * 64]) > 0.5
    assert logged["losses/entropy"][-1] < logged["losses/entropy"][0] - 0.3


def test_a_resumed_run_is_bitwise_the_same(script, train, monkeypatch, tmp_path):
    save = script.save_training_state

    def save_and_keep(run_dir, parts, facts):
        save(run_dir, parts, facts)
        if facts["log"]["iteration"] == 1 and not (tmp_path / "stopped").exists():
            shutil.copytree(run_dir, tmp_path / "stopped")

    monkeypatch.setattr(script, "save_training_state", save_and_keep)
    whole = train("whole")
    code = """if True:
    import importlib, sys
    sys.path.insert(0, "tests")
    from test_envs_procgen import with_few_games
    script = importlib.import_module(sys.argv[1])
    script.make_procgen_envs = with_few_games(script.make_procgen_envs)
    script.train(script.Args(resume=sys.argv[2]))
    """
    found = run_python(code, script.__name__, tmp_path / "stopped")
    assert found.returncode == 0, found.stderr
    resumed = json.loads((tmp_path / "stopped" / "result.json").read_text())
    for key in ("curve", "evaluations", "evaluations_training", "score", "score_training"):
        assert resumed[key] == whole[key], key
    agents = [script.load_procgen_agent(tmp_path / run / "agent.safetensors")[0]
              for run in ("whole", "stopped")]  # fmt: skip
    for one, other in zip(*(agent.state_dict().values() for agent in agents), strict=True):
        assert torch.equal(one, other)


def test_same_seed_same_run(script, train):
    changes = {"total_timesteps": 64, "eval_every": 0, "episodes": 4}
    first, second = train("first", **changes), train("second", **changes)
    for key in ("curve", "episode_returns", "episode_lengths", "episode_returns_training"):
        assert first[key] == second[key]


def test_sampled_actions_follow_the_policy():
    agent = ppd_procgen.PixelAgent((3, 64, 64), 15, "smaller")
    logits = torch.linspace(-2, 2, 15)
    actions = agent.sample(logits.expand(200_000, 15))
    found = torch.bincount(actions, minlength=15) / len(actions)
    torch.testing.assert_close(found, logits.softmax(-1), rtol=0, atol=4e-3)
