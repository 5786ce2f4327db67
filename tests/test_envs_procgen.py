"""Procgen's games: equal to the plain simulator, their levels, their state in a new process."""

import hashlib
import importlib.util
import re
import sys

import numpy as np
import pytest
import torch
from helpers import load, make_args, run_python, shorten_episodes

if not importlib.util.find_spec("procgen"):
    pytest.skip("Procgen has no wheel for this machine", allow_module_level=True)

script = load("ppd_procgen")  # test_copies.py holds that the others have the same text
GAMES = ["coinrun", "jumper", "miner", "ninja"]
ALL_LEVELS = 2**31 - 1


def make_envs(game="coinrun", num_envs=4, num_levels=200, start_level=0, num_threads=1, **options):
    args = script.Args(env_id=game, num_levels=num_levels, start_level=start_level)
    return script.ProcgenVectorEnv(args, num_envs, num_threads, **options)


def make_plain(game="coinrun", num_envs=4, seed=3, **options):
    options = {"num_levels": 200, "start_level": 0, "distribution_mode": "easy"} | options
    simulator = script.import_procgen(game)
    return simulator(num=num_envs, env_name=game, rand_seed=seed, num_threads=1, **options)


def random_actions(steps, num_envs=4, seed=0):
    return np.random.default_rng(seed).integers(0, 15, (steps, num_envs))


def level_seeds(envs) -> list[int]:
    return [int(info["level_seed"]) for info in envs.simulator.get_info()]


def play(envs, actions) -> str:
    """A digest of what was shown and returned at every step."""
    seen = hashlib.sha256(envs.obs.tobytes())
    for action in actions:
        *parts, infos = envs.step(action)
        for part in (*parts, repr(infos).encode()):
            seen.update(part if isinstance(part, bytes) else part.tobytes())
    return seen.hexdigest()


@pytest.mark.parametrize("game", GAMES)
def test_equals_the_plain_simulator(game):
    plain, envs = make_plain(game), make_envs(game)
    obs, infos = envs.reset(seed=3)
    assert infos == {} and obs.shape == (4, 3, 64, 64) and obs.dtype == np.uint8
    assert envs.single_observation_space.contains(np.ascontiguousarray(obs[0]))
    _, expected, first = plain.observe()
    assert first.all()
    np.testing.assert_array_equal(obs, expected["rgb"].transpose(0, 3, 1, 2))
    returns, lengths, ends = np.zeros(4), np.zeros(4, int), 0
    for action in random_actions(1010):  # past the time limit of each game
        plain.act(action)
        expected_rewards, expected, first = plain.observe()
        obs, rewards, terminations, truncations, infos = envs.step(action)
        np.testing.assert_array_equal(obs, expected["rgb"].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(rewards, expected_rewards)
        np.testing.assert_array_equal(terminations, first)
        returns, lengths = returns + expected_rewards, lengths + 1
        rows = np.flatnonzero(first)
        assert not truncations.any()
        assert infos["episodes"] == [(n, returns[n], lengths[n]) for n in rows]
        assert level_seeds(envs) == [int(info["level_seed"]) for info in plain.get_info()]
        returns[rows] = lengths[rows] = 0
        ends += len(rows)
    assert ends


def test_state_is_exact_in_a_new_process(tmp_path):
    envs = make_envs("leaper")  # often won by chance
    envs.reset(seed=2)
    for step, action in enumerate(random_actions(2000)):  # stop where reward and end are pending
        _, rewards, terminations, _, _ = envs.step(action)
        if step > 100 and terminations.any() and rewards.any():
            break
    assert rewards.any()
    torch.save(envs.state_dict(), tmp_path / "state.pt")
    code = """
    import sys, torch
    from test_envs_procgen import make_envs, play, random_actions
    envs = make_envs("leaper", num_threads=2)
    envs.reset(seed=99)
    envs.load_state_dict(torch.load(sys.argv[1], weights_only=True))
    print(play(envs, random_actions(300, seed=8)))
    """
    found, errors = run_python(code, tmp_path / "state.pt").communicate(timeout=300)
    assert found.strip() == play(envs, random_actions(300, seed=8)), errors


def test_unseen_levels_are_all_the_others():
    """With a training set as large as the rest, a leak would show in the first few levels."""
    half = 2**30
    for game in GAMES:
        args, kinds = script.Args(env_id=game, num_levels=half), {}
        for kind in ("training", "unseen"):
            envs = script.ProcgenVectorEnv(args, 64, 1, kind)
            envs.reset(seed=0)
            kinds[kind] = level_seeds(envs)
        assert all(level < half for level in kinds["training"])
        assert all(half <= level < ALL_LEVELS for level in kinds["unseen"])
    # Procgen's own "all levels from start_level on" would not do: it ignores start_level.
    plain = make_plain(num_envs=64, num_levels=0, start_level=half)
    plain.observe()
    assert any(int(info["level_seed"]) < half for info in plain.get_info())


def test_the_last_training_level_and_the_first_unseen_one():
    args = script.Args(num_levels=3, start_level=7)
    envs = script.ProcgenVectorEnv(args, 64, 1)
    envs.reset(seed=0)
    assert set(level_seeds(envs)) == {7, 8, 9}
    unseen = script.ProcgenVectorEnv(args, 64, 1, "unseen")
    assert unseen.options["start_level"] == 10
    assert unseen.options["start_level"] + unseen.options["num_levels"] == ALL_LEVELS
    args = script.Args(start_level=ALL_LEVELS - 3, num_levels=2)  # one unseen level is left
    envs = script.ProcgenVectorEnv(args, 8, 1, "unseen")
    envs.reset(seed=0)
    assert set(level_seeds(envs)) == {ALL_LEVELS - 1}


@pytest.mark.parametrize("name", ["ppo_teacher_procgen", "ppd_procgen", "student_distill"])
def test_evaluation_never_sees_a_training_level(name, monkeypatch, tmp_path, capsys):
    """Every level of a whole run, and the scores, also as printed, are of the games they name."""
    script, seen = load(name), {}

    def watch(method):
        def watched(envs, *arguments, **options):
            out = method(envs, *arguments, **options)
            seen.setdefault(id(envs), (envs, set()))[1].update(level_seeds(envs))
            return out

        return watched

    for name in ("step", "reset"):
        method = watch(getattr(script.ProcgenVectorEnv, name))
        monkeypatch.setattr(script.ProcgenVectorEnv, name, method)
    shorten_episodes(script, "procgen", monkeypatch)  # the class's name is a function's from here
    changes = {"num_levels": 50, "start_level": 1000, "episodes": 6, "eval_every": 128}
    result = script.train(make_args(script, "procgen", tmp_path / "run", **changes))
    (_, rollouts), (unseen_envs, unseen), (training_envs, training) = seen.values()
    assert rollouts | training <= set(range(1000, 1050))
    assert len(unseen) > 10 and all(1050 <= level < ALL_LEVELS for level in unseen)
    agent, _ = script.load_procgen_agent(tmp_path / "run" / "agent.safetensors")
    printed = capsys.readouterr().out
    kinds = [(unseen_envs, "", "unseen"), (training_envs, "_training", "training")]
    for envs, suffix, levels in kinds:
        again = script.evaluate(agent, envs, 6, 100, deterministic=False)
        assert again == result[f"score{suffix}"]
        score = re.escape(script.score_text(again))
        assert re.search(f"{levels} levels:? (student )?{score}", printed)
    assert len(result["evaluations"]) == len(result["evaluations_training"]) > 0


def test_every_agent_is_scored_on_the_same_levels():
    played = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        envs, levels = make_envs("dodgeball"), [[] for _ in range(4)]
        step = envs.step

        def watched_step(actions, envs=envs, step=step, levels=levels):
            out = step(actions)
            for slot in np.flatnonzero(out[2]):
                levels[slot].append(level_seeds(envs)[slot])
            return out

        envs.step = watched_step
        agent = script.PixelAgent((3, 64, 64), 15, "smaller")
        script.evaluate(agent, envs, 12, 5, deterministic=False)
        played.append([slot[:2] for slot in levels])
    assert played[0] == played[1]


def test_nothing_is_imported_before_a_game_is_made_and_no_banner_is_seen():
    code = """
    import sys
    import ppo_teacher_procgen as script
    assert "procgen" not in sys.modules and "gym" not in sys.modules
    script.ProcgenVectorEnv(script.Args(), 1, 1).reset(seed=1)
    assert "gym" in sys.modules
    """
    assert run_python(code).communicate(timeout=300) == ("", "")
    assert "unmaintained" in run_python("import procgen").communicate()[1]  # what would be seen


def test_procgen_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "procgen", None)
    with pytest.raises(script.UserError, match="not installed.*pip install procgen") as error:
        make_envs()
    assert "\n" not in str(error.value)
