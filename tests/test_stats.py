"""The statistics, compared with calculations by hand and with a bootstrap written here."""

import math

import numpy as np
import pandas as pd
import pytest
from helpers import load

from experiments import stats
from experiments.studies import ATARI


def aggregate(**fractions):
    """Environment → fractions of its seeds, as runs."""
    rows = [(env_id, value) for env_id, values in fractions.items() for value in values]
    return stats.aggregate(pd.DataFrame(rows, columns=["env_id", "fraction"]))


def test_aggregates_by_hand():
    # Of eight values the lowest two and the highest two are left out: exp(mean(log)) of 2, 2, 4, 4.
    found = aggregate(a=[0.5, 2, 4, 100], b=[1, 2, np.nan, 4, 50])
    assert found.mean == pytest.approx(math.sqrt(8)) and (found.runs, found.floored) == (8, 0)
    # One seed gives no interval and no run no number; fractions up to the floor are counted.
    assert aggregate(a=[0.5, 0.7], b=[2]).interval is None  # one environment without is enough
    assert aggregate(a=[0.5], b=[2]) == stats.Aggregate(pytest.approx(1), None, 2, 0)
    assert aggregate(a=[np.nan]) is None
    assert aggregate(a=[-3], b=[0.01], c=[0.001]) == stats.Aggregate(
        pytest.approx(0.01), None, 3, 3
    )


def test_interval_is_a_bootstrap_stratified_by_environment():
    random = np.random.default_rng(3)
    fractions = {"a": random.uniform(0.8, 1.2, 12), "b": random.uniform(0.2, 1, 8)}
    means = []
    for _ in range(10_000):
        drawn = [random.choice(values, len(values)) for values in fractions.values()]
        logs = np.sort(np.log(np.concatenate(drawn)))
        means.append(math.exp(logs[5:15].mean()))  # twenty values, without a quarter at each end
    found = aggregate(**fractions)
    assert found.interval == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.015)
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    assert aggregate(**fractions) == found and np.random.rand() == expected  # its state is kept
    # Of three values, 1 draw of 27 has only the lowest, and 1 only the highest.
    assert stats.mean_with_interval([1.0, 2.0, 6.0]) == (3, 1, 6)


def test_fractions_of_a_teacher():
    pong, seaquest = "PongNoFrameskip-v4", "SeaquestNoFrameskip-v4"
    assert stats.fraction_of_teacher("Hopper-v4", 3000, 2500) == 1.2
    assert stats.fraction_of_teacher(pong, -20.7 + 35.3, -20.7 + 17.65) == pytest.approx(2)
    assert stats.fraction_of_teacher(seaquest, 68.4, 500) == 0  # random play's score
    for env_id, score, teacher in [(seaquest, 500, 68.4), ("Hopper-v4", 10, -1)]:
        assert math.isnan(stats.fraction_of_teacher(env_id, score, teacher))
    assert all(stats.normalize(game, 0) != 0 or stats.normalize(game, 1) != 1 for game in ATARI)
    assert stats.normalize("QbertNoFrameskip-v4", 13455.0) == 1.0


def test_steps_to_90_percent():
    evaluations = [[100, 80, 1], [200, 90, 1], [300, 85, 1], [400, 99, 1]]
    assert stats.steps_to_90_percent("Hopper-v4", evaluations, 100) == 200
    assert stats.steps_to_90_percent("Hopper-v4", evaluations, 120) is None
    # Pong: 90 % of human-normalised 1 is −20.7 + 0.9·35.3 = 11.07, not 0.9·14.6 = 13.14.
    assert stats.steps_to_90_percent("PongNoFrameskip-v4", [[7, 12.0, 0]], 14.6) == 7


def test_curve_band():
    curves = {"a": np.array([[1.0, 2.0], [3.0, 4.0]]), "b": np.array([[5.0, 6.0], [7.0, 80.0]])}
    mean, interval = stats.curve_band(curves)
    assert mean.tolist() == [4.0, 5.0]  # of 1 3 5 7 and of 2 4 6 80 the middle two
    assert interval.shape == (2, 2) and (interval[0] <= mean).all() and (mean <= interval[1]).all()
    assert stats.curve_band(curves | {"a": curves["a"][:1]})[1] is None


@pytest.mark.parametrize("env_id", ATARI)
def test_scores_are_normalised_as_the_scripts_do(env_id):
    """Both have the table of random play and humans."""
    for mean in (123.0, 4567.0):
        score = {"mean": mean, "returns": [mean], "lengths": [1]}
        expected = load("ppd_atari").score_games(env_id, score)["human_normalized"]
        assert stats.normalize(env_id, mean) == pytest.approx(expected)
