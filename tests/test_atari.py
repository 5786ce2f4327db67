"""Frames: networks of the paper's sizes, options that must not change results, lives and games."""

import copy

import numpy as np
import pytest
import torch
from helpers import owner, shorten_episodes
from test_paper import check_initialisation

script = owner("PixelAgent")
ACTIONS = [4, 9, 9, 6, 9, 3, 9, 6, 6, 18, 18]  # of the paper's eleven games


COUNTS = [("smaller", 142_511, 279.3), ("smaller-text", 99_439, 235.9)]
COUNTS += [("same", 625_999, 1091.5), ("larger", 4_599_439, 8328.9)]


@pytest.mark.parametrize(("size", "procgen", "atari"), COUNTS)
def test_parameter_counts(size, procgen, atari):
    """Of the policy network; Table 4: on Atari in thousands, the mean over the games."""
    count = lambda network: sum(parameter.numel() for parameter in network.parameters())
    assert count(script.PixelAgent((3, 64, 64), 15, size).actor) == procgen
    agent = script.PixelAgent((4, 84, 84), ACTIONS[0], size)
    last = agent.actor[1]
    body = count(agent.actor) - count(last)
    mean = body + np.mean([(last.in_features + 1) * actions for actions in ACTIONS])
    assert round(mean / 1000, 1) == atari
    assert count(agent.critic) == body + last.in_features + 1


@pytest.mark.parametrize(("size", "layers"), [("smaller", 5), ("smaller-text", 5), ("same", 17)])
def test_initialisation(size, layers):
    check_initialisation(script.PixelAgent((4, 84, 84), 6, size), layers)


def test_impala_by_hand():
    """Convolution, pooling and two residual blocks three times, written out once more."""
    functional = torch.nn.functional
    agent = script.PixelAgent((4, 84, 84), 6, "same")
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    weights = iter(list(agent.actor.parameters()))
    conv = lambda x: functional.conv2d(x, next(weights), next(weights), padding=1)
    x = obs.float() / 255
    for _ in range(3):
        x = functional.max_pool2d(conv(x), 3, 2, 1)
        for _ in range(2):
            x = x + conv(torch.relu(conv(torch.relu(x))))
    x = torch.relu(functional.linear(torch.relu(x.flatten(1)), next(weights), next(weights)))
    logits = functional.linear(x, next(weights), next(weights))
    assert next(weights, None) is None
    torch.testing.assert_close(agent.logits(obs), logits, rtol=1e-4, atol=1e-5)


def test_act():
    agent = script.PixelAgent((4, 84, 84), 6, "smaller")
    obs = np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), np.uint8)
    actions = agent.act(obs)
    assert actions.dtype == np.int64
    assert actions.tolist() == agent.logits(obs).argmax(-1).tolist()
    drawn = {tuple(agent.act(obs, deterministic=False)) for _ in range(20)}
    assert len(drawn) > 1
    assert agent.value(obs).shape == (5,)


def test_scores():
    """Badia et al. (2020); distinct games are told apart by return and length."""
    games = lambda *returns: {"mean": np.mean(returns), "standard_error": 1.0, "returns": returns}
    score = games(14.6, -20.7, 14.6) | {"lengths": [9, 8, 9]}
    score = script.score_games("PongNoFrameskip-v4", score)
    assert score["human_normalized"] == pytest.approx(2 / 3)
    assert score["distinct"] == 2
    assert script.game_score_text(score) == "2.8 ± 1.0, 2 distinct games, human-normalised 0.67"
    atlantis = script.score_games("AtlantisNoFrameskip-v4", games(29028.1) | {"lengths": [1]})
    assert atlantis["human_normalized"] == 1
    other = script.score_games("BreakoutNoFrameskip-v4", games(3.0) | {"lengths": [1]})
    assert "human_normalized" not in other and "human" not in script.game_score_text(other)


def test_the_last_line_compares_with_the_teacher():
    """A fraction, or the difference where a fraction says nothing; human-normalised if known."""
    script, texts = owner("compare_games"), []
    for game, mine, theirs in [
        ("Pong", 14.6, 14.6), ("Pong", -3.05, -20.7), ("Breakout", 3.0, 4.0),
        ("Breakout", 3.0, 0.0),
    ]:  # fmt: skip
        scores = []
        for mean in (mine, theirs):
            score = {"mean": mean, "standard_error": None, "returns": [mean], "lengths": [1]}
            scores.append(script.score_games(f"{game}NoFrameskip-v4", score))
        text = script.compare_games(*scores)
        assert text.startswith(f"student {script.game_score_text(scores[0])} · teacher ")
        texts.append(text.rpartition(" · ")[2])
    assert texts == ["human-normalised fraction 1.000", "human-normalised difference +0.50",
                     "fraction 0.750", "difference +3.00"]  # fmt: skip


def outputs_and_gradients(agent, obs):
    agent.zero_grad()
    outputs = agent.logits(obs), agent.value(obs)
    (outputs[0].square().mean() + outputs[1].mean()).backward()
    return [*outputs, *(p.grad.clone() for p in agent.parameters())]


def strong_agent(size):
    """One whose logits are not all near 0."""
    torch.manual_seed(3)
    agent = script.PixelAgent((4, 84, 84), 6, size)
    with torch.no_grad():
        agent.actor[1].weight.mul_(100)
    return agent, torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8)


def largest_errors(changed, agent, obs):
    """Of logits and values, and of the gradients, relative to those of the agent."""
    found, expected = outputs_and_gradients(changed, obs), outputs_and_gradients(agent, obs)
    assert all(tensor.dtype == torch.float32 for tensor in found)
    pairs = zip(found, expected, strict=True)
    errors = [((a - b).norm() / (b.norm() + 1e-6)).item() for a, b in pairs]
    return max(errors[:2]), max(errors[2:])


@pytest.mark.parametrize("size", ["smaller", "same"])
def test_bfloat16_agrees(size):
    agent, obs = strong_agent(size)
    low = copy.deepcopy(agent)
    low.bfloat16 = True
    outputs, gradients = largest_errors(low, agent, obs)
    assert 0 < outputs < 0.1 and gradients < 0.2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler
@pytest.mark.parametrize("size", ["smaller", "same"])
def test_compiled_networks_agree(size):
    agent, obs = strong_agent(size)
    compiled = copy.deepcopy(agent)
    for network in (compiled.actor, compiled.critic):
        network.forward = torch.compile(network.forward, mode="reduce-overhead", dynamic=False)
    assert max(largest_errors(compiled, agent, obs)) < 1e-4


def test_lost_lives_end_episodes_but_not_games(monkeypatch, train):
    """Advantages and the reward's scale see lost lives, here every seventh step; the log, games."""
    script, lost, games = owner("AtariGames"), [], []
    simulated = script.AtariGames
    shorten_episodes(script, "atari", monkeypatch)
    step, gae, scale = simulated.step, script.compute_gae, script.RewardNormalizer.__call__

    def losing_step(self, actions):
        obs, rewards, terminations, truncations, infos = step(self, actions)
        terminations[:] = len(lost) % 7 == 6
        lost.append(terminations.copy())
        games.extend(infos["episodes"])
        return obs, rewards, terminations, truncations, infos

    def check_gae(rewards, values, next_values, terminations, *rest):
        np.testing.assert_array_equal(terminations, np.array(lost[-len(rewards) :]))
        return gae(rewards, values, next_values, terminations, *rest)

    def check_scale(self, rewards, ended):
        assert (ended >= np.array(lost[-len(rewards) :])).all() and ended.any()
        return scale(self, rewards, ended)

    monkeypatch.setattr(simulated, "step", losing_step)
    monkeypatch.setattr(script, "compute_gae", check_gae)
    monkeypatch.setattr(script.RewardNormalizer, "__call__", check_scale)
    result = train(script, "atari")
    assert sum(count for _, _, count in result["curve"]) == len(games) > 0
