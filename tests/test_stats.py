"""The statistics, against sums done by hand and a bootstrap written out here."""

import math

import numpy as np
import pytest

from experiments import stats
from experiments.studies import ATARI


def test_interquartile_mean_by_hand():
    # Eight values: the lowest two and the highest two go, exp(mean(log)) of 2, 2, 4, 4 is left.
    fractions = {"a": [0.5, 2.0, 4.0, 100.0], "b": [1.0, 2.0, 4.0, 50.0]}
    found = stats.aggregate(fractions)
    assert found.mean == pytest.approx(math.sqrt(8)) and found.runs == 8 and found.floored == 0


def test_interval_is_a_bootstrap_stratified_by_environment():
    random = np.random.default_rng(3)
    fractions = {"a": list(random.uniform(0.8, 1.2, 12)), "b": list(random.uniform(0.2, 1, 8))}
    means = []
    for _ in range(10_000):
        drawn = [random.choice(values, len(values)) for values in fractions.values()]
        logs = np.sort(np.log(np.concatenate(drawn)))
        means.append(math.exp(logs[5:15].mean()))  # twenty values, a quarter off at either end
    found = stats.aggregate(fractions, resamples=10_000)
    assert found.interval == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.005)


def test_same_data_same_interval_and_numpys_own_generator_is_left_alone():
    fractions = {"a": [0.9, 1.0, 1.1], "b": [0.7, 0.9, 1.2]}
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    first = stats.aggregate(fractions)
    assert np.random.rand() == expected and stats.aggregate(fractions) == first


def test_one_seed_has_no_interval_and_no_run_has_no_number():
    found = stats.aggregate({"a": [0.5], "b": [2.0]})
    assert found == stats.Aggregate(pytest.approx(1.0), None, 2, 0)
    assert stats.aggregate({"a": [], "b": []}) is None


def test_fractions_at_or_below_the_floor_are_counted():
    found = stats.aggregate({"a": [-3.0], "b": [0.01], "c": [0.001]})
    assert found.mean == pytest.approx(0.01) and found.floored == 3


@pytest.mark.parametrize(
    ("env_id", "score", "teacher", "fraction"),
    [
        ("Hopper-v4", 3000, 2500, 1.2),
        ("coinrun", 3, 6, 0.5),
        ("PongNoFrameskip-v4", -20.7 + 35.3, -20.7 + 17.65, 2.0),  # human − random is 35.3
        ("SeaquestNoFrameskip-v4", 68.4, 500, 0.0),
        ("SeaquestNoFrameskip-v4", 500, 68.4, None),
        ("Hopper-v4", 10, -1, None),
    ],
)
def test_fraction_of_teacher(env_id, score, teacher, fraction):
    assert stats.fraction_of_teacher(env_id, score, teacher) == pytest.approx(fraction)


def test_every_atari_game_of_the_paper_is_human_normalised():
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
    assert stats.curve_band({"a": curves["a"][:1]})[1] is None
