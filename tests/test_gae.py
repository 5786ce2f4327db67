"""compute_gae against its definition and against Stable-Baselines3."""

import numpy as np
import oracle
import pytest
import torch
from gymnasium import spaces
from helpers import mutant, owner, owners
from stable_baselines3.common.buffers import RolloutBuffer

GAMMA, LAMBDA = 0.97, 0.9
script = owner("compute_gae")


def random_rollout(seed, T=12, N=5):
    """Rollouts whose ends are terminations, time limits and both, also in the last step."""
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, T, N))
    terminations, truncations = rng.random((2, T, N)) < 0.2
    terminations[-1, :2], truncations[-1, 1:3] = True, True
    ended = terminations | truncations
    # Where the episode goes on, the next value is that of the next step.
    next_values[:-1][~ended[:-1]] = values[1:][~ended[:-1]]
    return rewards, values, next_values, terminations, ended


def compute(script, rollout):
    return script.compute_gae(*map(torch.from_numpy, rollout), GAMMA, LAMBDA).numpy()


def check_against_definition(script):
    for seed in range(4):
        rollout = random_rollout(seed)
        expected = oracle.gae(*rollout, GAMMA, LAMBDA)
        np.testing.assert_allclose(compute(script, rollout), expected, rtol=1e-5, atol=1e-5)


def test_brute_force():
    check_against_definition(script)


def test_stable_baselines3():
    """Its buffer, with its bootstrapping: γ·V(final observation) is added to the reward."""
    rewards, values, next_values, terminations, ended = rollout = random_rollout(9)
    T, N = rewards.shape
    cut = ended & ~terminations
    box = spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(T, box, box, gamma=GAMMA, gae_lambda=LAMBDA, n_envs=N)
    buffer.rewards[:] = rewards + GAMMA * next_values * cut
    buffer.values[:] = values
    buffer.episode_starts[1:] = ended[:-1]
    buffer.compute_returns_and_advantage(torch.from_numpy(next_values[-1]), ended[-1])
    np.testing.assert_allclose(compute(script, rollout), buffer.advantages, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("* ~terminations", "* ~ended"),
        ("* ~terminations", ""),
        ("gamma * gae_lambda * ~ended", "gamma * gae_lambda * ~terminations"),
        ("gamma * gae_lambda * ~ended", "gae_lambda * ~ended"),
        ("gamma * next_values", "next_values"),
        ("deltas[t] + discounts[t]", "deltas[t] + discounts[t - 1]"),
        ("- values\n", "\n"),
    ],
)
def test_a_changed_factor_is_seen(old, new):
    changed = mutant(owners()["compute_gae"], "compute_gae", old, new)
    with pytest.raises(AssertionError):
        check_against_definition(changed)
