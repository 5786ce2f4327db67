"""The paper's statistics: a run as a fraction of its teacher, and many runs as one number.

The aggregate over the (environment, seed) pairs of a suite is the geometric interquartile mean
exp(IQM(log x)), its 95 % interval a bootstrap stratified by environment; both through rliable
(Agarwal et al., 2021). No function here drops a run: what is missing is for the caller to say.
"""

import math
from dataclasses import dataclass

import numpy as np
from rliable import library, metrics

# Random play and a human (Badia et al., 2020).
ATARI_BASES = {
    "Atlantis": (12850.0, 29028.1),
    "BeamRider": (363.9, 16926.5),
    "CrazyClimber": (10780.5, 35829.4),
    "DemonAttack": (152.1, 1971.0),
    "Enduro": (0.0, 860.5),
    "Freeway": (0.0, 29.6),
    "MsPacman": (307.3, 6951.6),
    "Pong": (-20.7, 14.6),
    "Qbert": (163.9, 13455.0),
    "Seaquest": (68.4, 42054.7),
    "Zaxxon": (32.5, 9173.3),
}
FLOOR = 0.01  # a fraction at or below it enters a geometric mean as this


def normalize(env_id: str, score: float) -> float:
    """An Atari score human-normalised, any other as it is."""
    bases = ATARI_BASES.get(env_id.removesuffix("NoFrameskip-v4"))
    if bases is None:
        return score
    random, human = bases
    return (score - random) / (human - random)


def fraction_of_teacher(env_id: str, score: float, teacher_score: float) -> float | None:
    """Raw scores to the student's fraction; None where the teacher's is not above 0."""
    teacher = normalize(env_id, teacher_score)
    return normalize(env_id, score) / teacher if teacher > 0 else None


def steps_to_90_percent(env_id: str, evaluations: list, teacher_score: float) -> int | None:
    """The first evaluation [step, mean score, …] at 90 % of the teacher; None if there is none."""
    wanted = 0.9 * normalize(env_id, teacher_score)
    return next((e[0] for e in evaluations if normalize(env_id, e[1]) >= wanted), None)


@dataclass
class Aggregate:
    """Geometric interquartile mean over runs, and all that a reader must know about it."""

    mean: float
    interval: tuple[float, float] | None
    """95 %; None where no environment has a second seed"""
    runs: int
    floored: int
    """how many fractions entered as `FLOOR`"""


def geometric_iqm(*fractions: np.ndarray) -> np.ndarray:
    """exp(IQM(log x)) of all values together."""
    together = np.concatenate([np.ravel(group) for group in fractions])
    return np.array([math.exp(metrics.aggregate_iqm(np.log(np.maximum(together, FLOOR))))])


def interquartile_curve(*curves: np.ndarray) -> np.ndarray:
    """Interquartile mean at each point of curves (runs, points), one array per environment."""
    return np.array([metrics.aggregate_iqm(column) for column in np.concatenate(curves).T])


def bootstrap(groups: list[np.ndarray], function, resamples: int) -> np.ndarray:
    """95 % interval (2, points) of `function(*groups)`: seeds are drawn anew in each group."""
    state = np.random.get_state()
    np.random.seed(0)  # rliable draws from NumPy's global generator, whatever it is given
    try:
        _, intervals = library.get_interval_estimates({"": groups}, function, reps=resamples)
    finally:
        np.random.set_state(state)
    return intervals[""]


def aggregate(fractions: dict[str, list[float]], resamples: int = 2000) -> Aggregate | None:
    """Environment → fractions of its seeds, to one number; None where there is no run at all."""
    groups = [np.array(values)[:, None] for values in fractions.values() if values]
    if not groups:
        return None
    together = np.concatenate(groups)
    interval = None
    if max(len(group) for group in groups) > 1:
        low, high = bootstrap(groups, geometric_iqm, resamples)[:, 0]
        interval = float(low), float(high)
    floored = int((together <= FLOOR).sum())
    return Aggregate(float(geometric_iqm(*groups)[0]), interval, len(together), floored)


def curve_band(curves: dict[str, np.ndarray], resamples: int = 300):
    """Environment → (seeds, points), to the interquartile mean (points,) and its interval.

    The interval (2, points) is None where no environment has a second seed.
    """
    groups = [values for values in curves.values() if len(values)]
    mean = interquartile_curve(*groups)
    if max(len(group) for group in groups) == 1:
        return mean, None
    return mean, bootstrap(groups, interquartile_curve, resamples)
