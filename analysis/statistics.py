"""Estimates with intervals, on aligned scores.

Scores are a list of arrays, one a task, each (runs, steps): tasks may differ in their number of runs. The
bootstrap is rliable's stratified one (arXiv 2108.13264): runs are resampled independently within each
task. rliable takes its randomness from NumPy's global generator, so `_numpy_seed` sets that around the call
and puts it back; and it passes NaN through without a word, so `interval` refuses NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

REPLICATES = 2000
CONFIDENCE = 0.95
FEWEST_RUNS = 3  # for Student's t: with two runs it reaches 12.7 standard errors to each side and says nothing
# (pooled (R, F), task means (T, F), weights (R,) of the pooled runs, None where all weigh alike) -> (F,)
Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]
TRIMMED = 0.25  # of the weight, at each end, in the interquartile mean


@dataclass(frozen=True)
class Estimate:
    """A point estimate and its 95% interval, each (steps,). The interval is NaN where it cannot be known."""

    point: np.ndarray
    low: np.ndarray
    high: np.ndarray


# ----------------------------------------------------------------------------------- aggregates (protocol.md section 7)


def iqm(pooled: np.ndarray, task_means: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Interquartile mean: all runs of all tasks pooled, floor(25%) of them dropped at each end, as in rliable.

    With weights exactly 25% of the weight is dropped at each end, of the runs at the two edges a part: runs of unequal
    weight dropped whole would take more from one end than from the other.
    """
    if weights is None:
        dropped = int(TRIMMED * len(pooled))
        columns = np.sort(pooled.T, axis=-1)  # each step's runs side by side: several times faster than along axis 0
        return columns[:, dropped : len(pooled) - dropped].mean(axis=-1)
    order = np.argsort(pooled, axis=0)
    weight = weights[order]
    upto = np.cumsum(weight, axis=0)
    kept = np.clip(np.minimum(upto, 1 - TRIMMED) - np.maximum(upto - weight, TRIMMED), 0, None)
    return (np.take_along_axis(pooled, order, axis=0) * kept).sum(axis=0) / kept.sum(axis=0)


def mean(pooled: np.ndarray, task_means: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Mean of the task means."""
    return task_means.mean(axis=0)


def median(pooled: np.ndarray, task_means: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Median of the task means."""
    return np.median(task_means, axis=0)


def optimality_gap(pooled: np.ndarray, task_means: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """How far the pooled scores, cut off at 1, fall short of 1."""
    return 1.0 - np.average(np.minimum(pooled, 1.0), axis=0, weights=weights)


AGGREGATES: dict[str, Statistic] = {
    "IQM": iqm,
    "Median": median,
    "Mean": mean,
    "Optimality gap": optimality_gap,
}


def profile(thresholds: np.ndarray) -> Statistic:
    """Performance profile: the share of runs whose score is above each threshold.

    Scores must have one step.
    """

    def above(pooled: np.ndarray, task_means: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        return np.average(pooled > thresholds, axis=0, weights=weights)

    return above


def several(statistics: list[Statistic]) -> Statistic:
    """Several statistics of the same resamples, one after the other. Scores must have one step."""
    return lambda pooled, task_means, weights: np.concatenate(
        [statistic(pooled, task_means, weights) for statistic in statistics]
    )


# ------------------------------------------------------------------------------------------------------------ intervals


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def point(scores: list[np.ndarray], statistic: Statistic) -> np.ndarray:
    """A statistic of the scores themselves: (steps,). Every task counts alike, however many runs it has."""
    means = np.stack([task.mean(axis=0) for task in scores])
    return statistic(np.concatenate(scores), means, _weights([len(task) for task in scores]))


def _weights(counts: list[int]) -> np.ndarray | None:
    """What each pooled run weighs, where tasks differ in their number of runs: (sum of `counts`,), in all 1."""
    if len(set(counts)) == 1:
        return None
    return np.concatenate([np.full(count, 1 / (count * len(counts))) for count in counts])


def interval(
    scores: list[np.ndarray], statistic: Statistic = iqm, replicates: int = REPLICATES, seed: int = 0
) -> Estimate:
    """A statistic with its 95% stratified bootstrap percentile interval.

    Where a task has one run, nothing tells how far its seeds spread, and the interval is NaN.

    Raises:
        ValueError: the scores hold NaN or infinity, or a task has no run.
    """
    if not scores or any(len(task) == 0 for task in scores):
        raise ValueError("a task without a run has no score")
    if not all(np.isfinite(task).all() for task in scores):
        raise ValueError("scores hold NaN or infinity")
    estimate = point(scores, statistic)
    if any(len(task) == 1 for task in scores):
        unknown = np.full_like(estimate, np.nan)
        return Estimate(estimate, unknown, unknown)
    low, high = _bootstrap(scores, statistic, replicates, seed)
    return Estimate(estimate, low, high)


def _bootstrap(scores: list[np.ndarray], statistic: Statistic, replicates: int, seed: int) -> np.ndarray:
    """(2, steps) percentile bounds. A matrix where every task has as many runs; else one array a task."""
    from rliable import library  # imported late: it brings arch and statsmodels, two seconds

    def of_matrix(matrix: np.ndarray) -> np.ndarray:  # (runs, tasks, steps)
        return statistic(matrix.reshape(-1, matrix.shape[-1]), matrix.mean(axis=0), None)

    def of_tasks(*tasks: np.ndarray) -> np.ndarray:  # each (runs, 1, steps)
        return point([task[:, 0] for task in tasks], statistic)

    even = len({len(task) for task in scores}) == 1
    data = np.stack(scores, axis=1) if even else [task[:, None] for task in scores]
    function = of_matrix if even else of_tasks
    with _numpy_seed(seed):
        _, bounds = library.get_interval_estimates(
            {"": data}, function, reps=replicates, confidence_interval_size=CONFIDENCE
        )
    return bounds[""]


def student_t(values: np.ndarray) -> Estimate:
    """Mean over runs with Student's t 95% interval: (runs, steps) -> (steps,).

    The interval is NaN for fewer than FEWEST_RUNS runs.
    """
    runs = len(values)
    centre = values.mean(axis=0)
    half = student_half_width(values.std(axis=0, ddof=min(1, runs - 1)), runs)
    return Estimate(centre, centre - half, centre + half)


def student_half_width(deviation: np.ndarray | float, runs: int) -> np.ndarray | float:
    """How far Student's t 95% interval of a mean reaches to each side, from the standard deviation over runs.

    NaN for fewer than FEWEST_RUNS runs.
    """
    quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, runs - 1) if runs >= FEWEST_RUNS else np.nan
    return quantile * deviation / np.sqrt(runs)


def welch(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Difference of two means (first - second) with Welch's t 95% interval: (n,), (m,) -> (1,).

    The interval is NaN where either has fewer than FEWEST_RUNS runs.
    """
    difference = np.array([first.mean() - second.mean()])
    if min(len(first), len(second)) < FEWEST_RUNS:
        return Estimate(difference, np.array([np.nan]), np.array([np.nan]))
    a, b = first.var(ddof=1) / len(first), second.var(ddof=1) / len(second)
    if a + b == 0:
        return Estimate(difference, difference, difference)
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * np.sqrt(a + b)
    return Estimate(difference, difference - half, difference + half)


# -------------------------------------------------------------------------------------------- pairs of arms, and curves


def probability_of_improvement(
    first: list[np.ndarray], second: list[np.ndarray], replicates: int = REPLICATES, seed: int = 0
) -> Estimate:
    """P(a run of `first` beats a run of `second` on a task), averaged over tasks, ties counted half: (1,).

    The wins of every pair of runs are counted once; a resample then only weighs them, which is what makes thousands of
    replicates cheap. Scores are one (runs,) array a task. The interval is NaN where an arm has one run on a task.
    """
    random = np.random.default_rng(seed)
    points, resampled = [], []
    for x, y in zip(first, second, strict=True):
        wins = (x[:, None] > y).astype(float) + 0.5 * (x[:, None] == y)
        points.append(wins.mean())
        x_share = random.multinomial(len(x), np.full(len(x), 1 / len(x)), replicates) / len(x)
        y_share = random.multinomial(len(y), np.full(len(y), 1 / len(y)), replicates) / len(y)
        resampled.append(np.einsum("bi,ij,bj->b", x_share, wins, y_share, optimize=True))
    low, high = np.quantile(np.mean(resampled, axis=0), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    if any(len(task) == 1 for task in [*first, *second]):
        low = high = np.nan
    return Estimate(np.array([np.mean(points)]), np.array([low]), np.array([high]))


def aggregate_difference(
    first: list[np.ndarray],
    second: list[np.ndarray],
    statistic: Statistic = iqm,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Estimate:
    """statistic(first) - statistic(second) with both resampled: independent seeds, the same tasks.

    Scores must have one step. The interval is NaN where an arm has one run on a task.
    """
    random = np.random.default_rng(seed)

    def resampled(tasks: list[np.ndarray]) -> np.ndarray:
        # The replicates stand where the steps are elsewhere.
        drawn = [task[random.integers(len(task), size=(len(task), replicates)), 0] for task in tasks]
        return point(drawn, statistic)

    draws = resampled(first) - resampled(second)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], keepdims=True)
    if any(len(task) == 1 for task in [*first, *second]):
        low = high = np.full_like(low, np.nan)
    return Estimate(point(first, statistic) - point(second, statistic), low, high)


def pairs(names: list[str]) -> list[tuple[str, str]]:
    """All unordered pairs, in order."""
    return list(combinations(names, 2))


def area_under_curve(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Mean height of each run's curve, by trapezia: (runs, steps) -> (runs, 1)."""
    if len(steps) < 2:
        return values[:, :1]
    return (np.trapezoid(values, steps, axis=1) / (steps[-1] - steps[0]))[:, None]


def first_reaching(values: np.ndarray, steps: np.ndarray, threshold: float) -> np.ndarray:
    """The first env step at which each run is at or above a threshold; infinity where it never is: (runs,)."""
    reached = values >= threshold
    return np.where(reached.any(axis=1), steps[reached.argmax(axis=1)], np.inf)


def is_recent(env_step: Any, mark: int) -> Any:
    """Whether values of these env steps may stand for those at the mark: the last 6% before it."""
    return env_step >= 0.94 * mark
