"""AtariGames against Gymnasium's own Atari wrappers; its replay; scores of whole games."""

import warnings

import ale_py
import ale_py.vector_env
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

import ppd_atari as script  # test_copies.py holds that the teacher's script has the same text

FEW = ["MsPacman", "Pong", "Seaquest"]  # lives, no lives, a game with random numbers of its own
MANY = ["Atlantis", "BeamRider", "CrazyClimber", "DemonAttack", "Enduro", "Freeway", "Qbert"]
MANY += ["Zaxxon"]
ACTIONS = {"Atlantis": 4, "DemonAttack": 6, "Freeway": 3, "Pong": 6, "Qbert": 6}
ACTIONS |= {"Seaquest": 18, "Zaxxon": 18}  # the others have 9
GAMES = FEW + [pytest.param(game, marks=pytest.mark.slow) for game in MANY]


def make_games(game: str, num_envs: int, life_loss: bool = True, frame_skip: int = 4):
    return script.AtariGames(f"{game}NoFrameskip-v4", num_envs, 1, frame_skip, life_loss)


@pytest.fixture
def plain_start(monkeypatch):
    """Games that start without FIRE and no-ops, which a single environment does not press."""
    options = {"noop_max": 0, "use_fire_reset": False}
    plain = ale_py.vector_env.AtariVectorEnv

    def make(*args, **kwargs):
        return plain(*args, **(kwargs | options))

    monkeypatch.setattr(ale_py.vector_env, "AtariVectorEnv", make)


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
    track, rng = script.EpisodeStatistics(1), np.random.default_rng(1)
    np.testing.assert_array_equal(games.reset(seed=3)[0][0], single.reset()[0])
    assert games.single_action_space == single.action_space
    assert games.single_action_space.n == ACTIONS.get(game, 9)
    lives, total, seen = single.unwrapped.ale.lives(), 0, {"lost": 0, "games": 0}
    for _ in range(steps):
        action = rng.integers(games.single_action_space.n, size=1)
        obs, rewards, terminations, truncations, infos = games.step(action)
        their_obs, reward, terminated, truncated, info = single.step(action[0])
        assert rewards[0] == reward
        total += reward
        over = terminated or truncated
        assert infos["game_over"][0] == over
        assert truncations[0] == truncated
        # as SB3 has it: Atlantis plays on with 0 lives, and that is no lost life
        assert terminations[0] == (terminated or 0 < info["lives"] < lives)
        seen["lost"] += int(terminations[0] and not over)
        finished = track(rewards, infos["game_over"])
        assert len(finished) == over
        lives = info["lives"]
        if over:
            np.testing.assert_array_equal(infos["final_obs"][0], their_obs)
            assert finished[0][0] == total
            seen["games"], total = seen["games"] + 1, 0
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
    assert compare_with_single("MsPacman", 600, frame_skip=1)


def test_a_time_limit_is_a_truncation(monkeypatch):
    """The final observation is at hand, and the next game has begun."""
    plain = ale_py.vector_env.AtariVectorEnv

    def make(*args, **kwargs):
        return plain(*args, **(kwargs | {"max_num_frames_per_episode": 200}))

    monkeypatch.setattr(ale_py.vector_env, "AtariVectorEnv", make)
    games, ends = make_games("Pong", 2), 0
    before = games.reset(seed=1)[0].copy()
    for _ in range(120):
        obs, _, terminations, truncations, infos = games.step(np.zeros(2, dtype=np.int64))
        assert not terminations.any()
        np.testing.assert_array_equal(infos["game_over"], truncations)
        for row in np.flatnonzero(truncations):
            ends += 1
            np.testing.assert_array_equal(infos["final_obs"][row][:3], before[row][1:])
            assert not obs[row][:3].any()  # a new game: no frames before its first
        before = obs.copy()
    assert ends >= 4


def random_steps(games, rng, steps, until=lambda infos: False):
    """The steps, copied, of random play."""
    played = []
    for _ in range(steps):
        actions = rng.integers(games.single_action_space.n, size=games.num_envs)
        *step, infos = games.step(actions)
        played.append([np.copy(part) for part in step])
        if until(infos):
            break
    return played


@pytest.mark.parametrize("game", GAMES)
def test_replay_is_bit_identical(game):
    """Over games played before, and into games that start after it."""
    old, new, rng = make_games(game, 2), make_games(game, 2), np.random.default_rng(2)
    old.reset(seed=5)
    random_steps(old, rng, 1200, until=lambda infos: infos["game_over"].any())
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


def test_a_state_just_after_a_reset():
    old, new = make_games("Pong", 2), make_games("Pong", 2)
    old.reset(seed=5)
    new.reset(seed=6)
    new.load_state_dict(old.state_dict())
    np.testing.assert_array_equal(old.obs, new.obs)


def test_a_replay_that_differs_is_refused():
    games = make_games("Pong", 2)
    games.reset(seed=5)
    state = games.state_dict()
    state["obs"][1, 3, 40, 40] += 1
    with pytest.raises(script.UserError, match="do not replay"):
        games.load_state_dict(state)


def test_seeds():
    games = make_games("Pong", 2)
    first = games.reset(seed=7)[0].copy()
    assert games.seeds.tolist() == [7, 8]
    random_steps(games, np.random.default_rng(0), 20)
    np.testing.assert_array_equal(games.reset(seed=7)[0], first)
    games.reset()  # goes on from the seed
    drawn = games.seeds.tolist()
    games.reset(seed=7)
    games.reset()
    assert games.seeds.tolist() == drawn != [7, 8]


def test_a_lost_life_in_the_middle_of_a_rollout():
    """For GAE an end; in the game the next step is an ordinary one."""
    games, rng, frames, rewards, lost = (
        make_games("MsPacman", 1),
        np.random.default_rng(3),
        [],
        [],
        [],
    )
    games.reset(seed=1)
    for _ in range(300):
        frames.append(games.obs[0].copy())
        _, reward, terminations, truncations, infos = games.step(rng.integers(9, size=1))
        rewards.append(reward.astype(np.float32))
        lost.append(terminations & ~infos["game_over"])
        assert not truncations.any()
    (at, *_) = np.flatnonzero(lost)
    assert 0 < at < 299
    np.testing.assert_array_equal(frames[at + 1][:3], frames[at][1:])  # the stack goes on
    rewards, lost = torch.tensor(np.array(rewards)), torch.tensor(np.array(lost))
    values, next_values = torch.rand(300, 1), torch.rand(300, 1)
    advantages = script.compute_gae(rewards, values, next_values, lost, lost, 0.99, 0.9)
    torch.testing.assert_close(advantages[at], rewards[at] - values[at])
    rewards[at + 1 :] += 1  # what comes after a lost life does not count before it
    later = script.compute_gae(rewards, values, next_values, lost, lost, 0.99, 0.9)
    assert torch.equal(later[: at + 1], advantages[: at + 1])
    assert not torch.equal(later[at + 1 :], advantages[at + 1 :])


class RandomAgent:
    def __init__(self, num_actions):
        self.num_actions = num_actions

    def act(self, obs, deterministic):
        return torch.randint(self.num_actions, (len(obs),)).numpy()


@pytest.mark.parametrize("game", GAMES)
def test_evaluation_plays_whole_games(game):
    """Nothing ends but games: where lives are lost, `life_loss` would end ten times as many."""
    games = make_games(game, 2, life_loss=False)
    returns, lengths = script.evaluate(RandomAgent(games.single_action_space.n), games, 2, 1, False)
    training, track = make_games(game, 2), script.EpisodeStatistics(2)
    finished = {}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        training.reset(seed=1)
        agent, ends = RandomAgent(games.single_action_space.n), 0
        while len(finished) < 2:
            _, rewards, terminations, _, infos = training.step(agent.act(training.obs, False))
            ends += terminations.sum()
            over = infos["game_over"]
            for slot, episode in zip(np.flatnonzero(over), track(rewards, over), strict=True):
                finished.setdefault(slot, episode)
    assert [finished[0], finished[1]] == list(zip(returns, lengths, strict=True))
    assert ends > 2 or game in ("Pong", "Freeway", "Enduro")


@pytest.mark.parametrize(
    ("env_id", "reason"),
    [
        ("Hopper-v4", "no Atari id"),
        ("ALE/Pong-v5", "no Atari id"),
        ("Pong", "no Atari id"),
        ("PingNoFrameskip-v4", "no such game"),
    ],
)
def test_ids_that_are_refused(env_id, reason):
    with pytest.raises(script.UserError, match=reason) as error:
        script.AtariGames(env_id, 2, 1, 4, True)
    assert "\n" not in str(error.value)
    assert "PongNoFrameskip-v4" in str(error.value)


def test_a_missing_rom(monkeypatch, tmp_path):
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(script.UserError, match="ROM cannot be read.*ALE_ROMS_DIR"):
        script.find_rom("PongNoFrameskip-v4")


def test_rom_names():
    names = [script.find_rom(f"{game}NoFrameskip-v4") for game in FEW + ["BeamRider", "Qbert"]]
    assert names == ["ms_pacman", "pong", "seaquest", "beam_rider", "qbert"]
