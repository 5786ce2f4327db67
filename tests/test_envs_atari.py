"""AtariGames against Gymnasium's own Atari wrappers; its replay; scores of whole games."""

import warnings
from types import SimpleNamespace

import ale_py
import ale_py.vector_env
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from helpers import load

script = load("ppd_atari")  # test_copies.py holds that the others have the same text
FEW = ["MsPacman", "Pong", "Seaquest"]  # lives, no lives, a game with random numbers of its own
MANY = ["Atlantis", "BeamRider", "CrazyClimber", "DemonAttack", "Enduro", "Freeway", "Qbert"]
MANY += ["Zaxxon"]
ACTIONS = {"Atlantis": 4, "DemonAttack": 6, "Freeway": 3, "Pong": 6, "Qbert": 6}
ACTIONS |= {"Seaquest": 18, "Zaxxon": 18}  # the others have 9
GAMES = FEW + [pytest.param(game, marks=pytest.mark.slow) for game in MANY]


def make_games(game: str, num_envs: int, life_loss: bool = True, frame_skip: int = 4):
    return script.AtariGames(f"{game}NoFrameskip-v4", num_envs, 1, frame_skip, life_loss)


def change_simulator(monkeypatch, **options) -> None:
    plain = ale_py.vector_env.AtariVectorEnv
    make = lambda *args, **kwargs: plain(*args, **(kwargs | options))
    monkeypatch.setattr(ale_py.vector_env, "AtariVectorEnv", make)


@pytest.mark.parametrize("life_loss", [True, False])
def test_games_start_and_end_by_the_protocol(life_loss, monkeypatch):
    """FIRE, no-ops, half an hour; nothing else differs from what is compared below."""
    told, plain = [], ale_py.vector_env.AtariVectorEnv
    record = lambda *args, **kwargs: told.append(kwargs) or plain(*args, **kwargs)
    monkeypatch.setattr(ale_py.vector_env, "AtariVectorEnv", record)
    make_games("Pong", 1, life_loss)
    expected = {"noop_max": 30, "use_fire_reset": True, "max_num_frames_per_episode": 108_000}
    expected |= {"repeat_action_probability": 0.0, "full_action_space": False, "frameskip": 4}
    expected |= {"reward_clipping": False, "episodic_life": False, "life_loss_info": life_loss}
    assert told == [expected | {"num_threads": 1}]


@pytest.fixture
def plain_start(monkeypatch):
    """Games that start without FIRE and no-ops, which a single environment does not press."""
    change_simulator(monkeypatch, noop_max=0, use_fire_reset=False)


def single_game(game: str, seed: int, frame_skip: int = 4) -> gym.Env:
    """What Gymnasium makes of the paper's id, its simulator seeded as slot 0 is with `seed`."""
    gym.register_envs(ale_py)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that v4 is out of date
        env = gym.make(f"{game}NoFrameskip-v4", disable_env_checker=True)
    ale = env.unwrapped.ale
    ale.setInt("random_seed", seed)
    ale.loadROM(ale_py.roms.get_rom_path(script.find_rom(f"{game}NoFrameskip-v4")))
    env = AtariPreprocessing(env, noop_max=0, frame_skip=frame_skip)
    return FrameStackObservation(env, 4, padding_type="zero")


def compare_with_single(game: str, steps: int, frame_skip: int = 4) -> dict:
    """Step both with the same actions; returns how often what happened."""
    games, single = make_games(game, 1, frame_skip=frame_skip), single_game(game, 3, frame_skip)
    rng = np.random.default_rng(1)
    np.testing.assert_array_equal(games.reset(seed=3)[0][0], single.reset()[0])
    assert games.single_action_space == single.action_space
    assert games.single_action_space.n == ACTIONS.get(game, 9)
    lives, played, seen = single.unwrapped.ale.lives(), [], {"lost": 0, "games": 0}
    for _ in range(steps):
        action = rng.integers(games.single_action_space.n, size=1)
        obs, rewards, terminations, truncations, infos = games.step(action)
        their_obs, reward, terminated, truncated, info = single.step(action[0])
        assert rewards[0] == reward
        played.append(reward)
        over = terminated or truncated
        assert truncations[0] == truncated
        # as SB3 has it: Atlantis plays on with 0 lives, and that is no lost life
        assert terminations[0] == (terminated or 0 < info["lives"] < lives)
        assert infos["episodes"] == ([(0, sum(played), len(played))] if over else [])
        seen["lost"] += int(terminations[0] and not over)
        lives = info["lives"]
        if over:
            np.testing.assert_array_equal(infos["final_obs"][0], their_obs)
            seen["games"], played = seen["games"] + 1, []
            their_obs, info = single.reset()
            lives = info["lives"]
        np.testing.assert_array_equal(obs[0], their_obs)
    return seen


@pytest.mark.parametrize("game", FEW)
def test_equal_to_gymnasium(game, plain_start):
    seen = compare_with_single(game, 1000)
    assert seen["games"] >= (game != "Seaquest")
    assert (seen["lost"] > 0) == (game != "Pong")


@pytest.mark.slow
@pytest.mark.parametrize("game", FEW + MANY)
def test_equal_to_gymnasium_for_long(game, plain_start):
    assert compare_with_single(game, 2500)["games"] or game in ("CrazyClimber", "Enduro")


def test_frame_skip_of_1(plain_start):
    compare_with_single("MsPacman", 600, frame_skip=1)


def test_a_time_limit_is_a_truncation(monkeypatch):
    """The final observation is at hand, and the next game has begun."""
    change_simulator(monkeypatch, max_num_frames_per_episode=200)
    games, ends = make_games("Pong", 2), 0
    before = games.reset(seed=1)[0].copy()
    for _ in range(120):
        obs, _, terminations, truncations, infos = games.step(np.zeros(2, dtype=np.int64))
        assert not terminations.any()
        assert [n for n, _, _ in infos["episodes"]] == np.flatnonzero(truncations).tolist()
        for row in np.flatnonzero(truncations):
            ends += 1
            np.testing.assert_array_equal(infos["final_obs"][row][:3], before[row][1:])
            assert not obs[row][:3].any()  # a new game: no frames before its first
        before = obs.copy()
    assert ends >= 4


@pytest.mark.parametrize("steps_before", [-2, -1, 0, 1])
def test_a_life_lost_at_the_time_limit_ends_the_game(steps_before, monkeypatch):
    """The simulator then reports no truncation. The limit is set to a step in which a life is lost.

    Without the mend the next game would be counted as the rest of this one.
    """

    def play(steps):
        games, rng = make_games("MsPacman", 1), np.random.default_rng(0)
        games.reset(seed=1)
        played = random_steps(games, rng, steps)
        return games, np.array([step[2][0] for step in played]), [step[-1] for step in played]

    lost_at = 1 + int(np.flatnonzero(play(400)[1])[0])
    limit = lost_at + steps_before
    monkeypatch.setattr(script.AtariGames, "max_frames", 4 * limit)
    games, terminations, episodes = play(limit + 4)  # the log of actions is limit + 2 long
    assert terminations[: limit + 1].any() == (steps_before >= 0)
    assert [len(ended) for ended in episodes] == [0] * (limit - 1) + [1, 0, 0, 0, 0]
    assert episodes[limit - 1][0][2] == limit
    assert games.lengths.tolist() == [4] and games.games.tolist() == [1]


@pytest.mark.parametrize(("game", "fewest", "most"), [("Pong", 1, 29), ("CrazyClimber", 0, 29)])
def test_no_ops_at_the_start(game, fewest, most):
    """FIRE and 0 to 28 no-ops; 0 to 29 in a game without FIRE."""
    games, frames = make_games(game, 20), []
    games.reset(seed=3)
    for _ in range(10):
        _, state = games.simulator.reset()
        frames += state["episode_frame_number"].tolist()
    assert (min(frames), max(frames)) == (fewest, most)
    zeros = np.mean(np.array(frames) == fewest)
    assert (0.04 if game == "Pong" else 0.01) < zeros < (0.12 if game == "Pong" else 0.06)


def random_steps(games, rng, steps):
    """The steps, copied, of random play."""
    played = []
    for _ in range(steps):
        actions = rng.integers(games.single_action_space.n, size=games.num_envs)
        *step, infos = games.step(actions)
        played.append([np.copy(part) for part in step] + [infos["episodes"]])
    return played


@pytest.mark.parametrize("game", GAMES)
def test_replay_is_bit_identical(game):
    """Over games played before, and into games that start after it."""
    old, new, rng = make_games(game, 2), make_games(game, 2), np.random.default_rng(2)
    old.reset(seed=5)
    assert old.seeds.tolist() == [5, 6]
    for _ in range(1200):
        if random_steps(old, rng, 1)[0][-1]:
            break
    random_steps(old, rng, 40)
    state = old.state_dict()
    new.reset(seed=99)
    random_steps(new, rng, 10)
    new.load_state_dict(state)
    np.testing.assert_array_equal(old.obs, new.obs)
    ahead = random_steps(old, np.random.default_rng(4), 900)
    for a, b in zip(ahead, random_steps(new, np.random.default_rng(4), 900), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    assert any(state["games"]) or game in ("Atlantis", "CrazyClimber", "Enduro", "Freeway")
    np.testing.assert_array_equal(old.games, new.games)


@pytest.mark.parametrize("changed", [0, 1])
def test_a_replay_that_differs_is_reported(changed, capsys):
    games = make_games("Pong", 2)
    games.reset(seed=5)
    state = games.state_dict()
    state["obs"][1, 3, 40, 40] += changed
    games.load_state_dict(state)
    assert ("WARNING: this simulator does not repeat" in capsys.readouterr().out) == bool(changed)


@pytest.mark.parametrize("game", GAMES)
def test_evaluation_plays_whole_games(game):
    """Nothing ends but games: `life_loss`, which ends more, leaves the episodes as they are."""
    scores, agent = [], SimpleNamespace()
    agent.act = lambda obs, deterministic: rng.integers(ACTIONS.get(game, 9), size=len(obs))
    for life_loss in (False, True):
        rng = np.random.default_rng(0)
        games, ends = make_games(game, 2, life_loss), []
        step = games.step

        def record(actions, step=step, ends=ends):
            *rest, infos = step(actions)
            ends.append(rest[2].sum())
            return *rest, infos

        games.step = record
        scores.append(script.evaluate(agent, games, 2, 1, False))
    assert scores[0] == scores[1]
    assert min(scores[0]["lengths"]) > 100
    assert sum(ends) > 2 or game in ("Pong", "Freeway", "Enduro")


def test_rom_names():
    games = FEW + ["BeamRider", "Qbert", "TicTacToe3D", "Pitfall2"]
    names = [script.find_rom(f"{game}NoFrameskip-v4") for game in games]
    expected = ["ms_pacman", "pong", "seaquest", "beam_rider", "qbert", "tic_tac_toe_3d"]
    assert names == [*expected, "pitfall2"]


def test_every_game_for_one_player_has_an_id():
    """Those that Gymnasium registers, with the name that it gives them."""
    gym.register_envs(ale_py)
    ids = [name for name in gym.registry if name.startswith("ALE/")]
    roms = [gym.registry[name].kwargs["game"] for name in ids]
    names = [name.removeprefix("ALE/").removesuffix("-v5") for name in ids]
    assert [script.find_rom(f"{name}NoFrameskip-v4") for name in names] == roms
    refused = set()
    for rom in set(ale_py.roms.get_all_rom_ids()) - set(roms):
        with pytest.raises(script.UserError, match="two players"):
            script.find_rom(f"{ale_py.registration.rom_id_to_name(rom)}NoFrameskip-v4")
        refused.add(rom)
    assert refused == {"combat", "joust", "maze_craze", "warlords"} and len(roms) > 100


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("ALE/Pong-v5", "give PongNoFrameskip-v4"),
        ("PongDeterministic-v4", "give PongNoFrameskip-v4"),
        ("ALE/PongNoFrameskip-v4", "give PongNoFrameskip-v4"),
        ("ale_py:ALE/MsPacman-v5", "give MsPacmanNoFrameskip-v4"),
        ("Breakout-ram-v0", "give BreakoutNoFrameskip-v4"),
        ("QbertNoFrameskip-v0", "give QbertNoFrameskip-v4"),
        ("ms_pacman", "give MsPacmanNoFrameskip-v4"),
        ("tictactoe3d", "give TicTacToe3DNoFrameskip-v4"),
        ("ALE/Joust-v5", "two players"),
        ("Hopper-v4", "not an Atari game"),
        ("NoFrameskip-v4", "not an Atari game"),
    ],
)
def test_other_ids_are_told_the_right_one(env_id, words, refused):
    assert env_id in refused(script, ["--env-id", env_id], words)
