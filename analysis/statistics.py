"""Estimates with intervals, on aligned scores.

Scores are a list of arrays, one a task, each (runs, steps): tasks may differ in their number of runs. The
bootstrap is rliable's stratified one (arXiv 2108.13264): runs are resampled independently within each task, but for
runs of several tasks (`Together`), which are resampled whole. A resample is kept as what each run weighs in it, so
that a statistic takes all at once and sorts the runs only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from scipy import special

REPLICATES = 2000
CONFIDENCE = 0.95
FEWEST_RUNS = 3  # for Student's t: with two runs it reaches 12.7 standard errors to each side and says nothing
AT_ONCE = 256  # resamples that fit a processor's cache
TRIMMED = 0.25  # of the weight, at each end, in the interquartile mean
# (runs of all tasks (R, F), what they weigh (R, B), each column in all 1; runs of each task) -> (B, F)
Statistic = Callable[[np.ndarray, np.ndarray, tuple[int, ...]], np.ndarray]


class Together(list[np.ndarray]):
    """Scores whose rows at one index are those of one run, whatever the task: one agent learned all of these tasks."""


def like(scores: list[np.ndarray], changed: Iterable[np.ndarray]) -> list[np.ndarray]:
    """What was made of every task's scores, `Together` if these are."""
    return type(scores)(changed)


@dataclass(frozen=True)
class Estimate:
    """A point estimate and its 95% interval, each (steps,). The interval is NaN where it cannot be known."""

    point: np.ndarray
    low: np.ndarray
    high: np.ndarray


# ----------------------------------------------------------------------------------- aggregates (protocol.md section 7)


def iqm(values: np.ndarray, weights: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    """Interquartile mean of the runs of all tasks, pooled: as in rliable, floor(25%) of them dropped at each end.

    Where tasks differ in their number of runs exactly 25% of the weight is dropped at each end, of the runs at the two
    edges a part: runs of unequal weight dropped whole would take more from one end than from the other.
    """
    trimmed = int(TRIMMED * len(values)) / len(values) if len(set(counts)) == 1 else TRIMMED
    order = np.argsort(values, axis=0)
    result = np.empty((weights.shape[1], values.shape[1]))
    for start in range(0, len(result), AT_ONCE):
        some = np.ascontiguousarray(weights[:, start : start + AT_ONCE])
        for i, rising in enumerate(order.T):
            upto, own = some[rising], values[rising, i]
            for lower, higher in pairwise(upto):  # their running sum, several times faster than np.cumsum's
                higher += lower
            np.clip(upto, trimmed, 1 - trimmed, out=upto)
            result[start : start + AT_ONCE, i] = (1 - trimmed) * own[-1] - trimmed * own[0] - np.diff(own) @ upto[:-1]
    return result / (1 - 2 * trimmed)


def mean(values: np.ndarray, weights: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    """Mean of the task means."""
    return weights.T @ values


def median(values: np.ndarray, weights: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    """Median of the task means."""
    cuts = np.cumsum(counts)[:-1]
    tasks = zip(np.split(values, cuts), np.split(weights * len(counts), cuts), strict=True)
    return np.median([weight.T @ value for value, weight in tasks], axis=0)


def optimality_gap(values: np.ndarray, weights: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    """How far the pooled scores, cut off at 1, fall short of 1."""
    return 1.0 - weights.T @ np.minimum(values, 1.0)


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
    return lambda values, weights, counts: weights.T @ (values > thresholds)


def several(statistics: list[Statistic]) -> Statistic:
    """Several statistics of the same resamples, one after the other. Scores must have one step."""
    return lambda *sample: np.concatenate([statistic(*sample) for statistic in statistics], axis=1)


# ------------------------------------------------------------------------------------------------------------ intervals


def _strata(scores: list[np.ndarray]) -> tuple[int, ...]:
    """How many there are to draw from, in each of the parts that are resampled independently: of each task the runs."""
    counts = tuple(map(len, scores))
    return counts[:1] if isinstance(scores, Together) else counts


def _reweighted(scores: list[np.ndarray], statistic: Statistic, weights: np.ndarray) -> np.ndarray:
    """A statistic (resamples, steps) by what weighs how much in each resample, (sum of the strata, resamples)."""
    counts = tuple(map(len, scores))
    if isinstance(scores, Together):  # a run weighs as much on each task
        weights = np.tile(weights, (len(scores), 1)) / len(scores)
    return statistic(np.concatenate(scores), weights, counts)


def _weights(counts: tuple[int, ...]) -> np.ndarray:
    """What each run weighs, (runs, 1): every task counts alike, however many runs it has."""
    return np.concatenate([np.full((count, 1), 1 / (count * len(counts))) for count in counts])


@lru_cache(maxsize=16)
def _resampled(counts: tuple[int, ...], replicates: int, seed: int) -> np.ndarray:
    """What each run weighs in each resample of rliable's stratified bootstrap: (runs, replicates)."""
    from rliable.library import StratifiedIndependentBootstrap  # late: it brings arch and statsmodels, two seconds

    runs = [np.arange(count)[:, None] for count in counts]  # resampled in place of their scores
    weights = np.empty((sum(counts), replicates))
    with _numpy_seed(seed):
        for i, (drawn, _) in enumerate(StratifiedIndependentBootstrap(*runs).bootstrap(replicates)):
            weights[:, i] = np.concatenate(
                [np.bincount(own[:, 0], minlength=n) / (n * len(counts)) for own, n in zip(drawn, counts, strict=True)]
            )
    return weights


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """rliable draws from NumPy's global generator, whatever it is given: seeded within, as it was after."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _one_left_out(counts: tuple[int, ...]) -> np.ndarray:
    """What each run weighs when another is left out of its task: (runs, runs), the one left out by column."""
    weights = _weights(counts)
    left = np.repeat(weights, len(weights), axis=1)
    start = 0
    for n in counts:
        own = slice(start, start + n)
        left[own, own] = (1 - np.eye(n)) / ((n - 1) * len(counts))
        start += n
    return left


def point(scores: list[np.ndarray], statistic: Statistic) -> np.ndarray:
    """A statistic of the scores themselves: (steps,)."""
    counts = tuple(map(len, scores))
    return statistic(np.concatenate(scores), _weights(counts), counts)[0]


def interval(
    scores: list[np.ndarray],
    statistic: Statistic = iqm,
    replicates: int = REPLICATES,
    seed: int = 0,
    method: str = "percentile",
) -> Estimate:
    """A statistic with its 95% interval, by a `method` of INTERVALS.

    Where a task has one run, nothing tells how far its seeds spread, and the interval is NaN.

    Raises:
        ValueError: the scores hold NaN or infinity, or a task has no run.
    """
    if not scores or any(len(task) == 0 for task in scores):
        raise ValueError("a task without a run has no score")
    if not all(np.isfinite(task).all() for task in scores):
        raise ValueError("scores hold NaN or infinity")
    estimate = point(scores, statistic)
    if min(map(len, scores)) == 1:
        unknown = np.full_like(estimate, np.nan)
        return Estimate(estimate, unknown, unknown)
    low, high = INTERVALS[method](scores, estimate, statistic, replicates, seed)
    return Estimate(estimate, low, high)


_TAILS = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])


def _draws(scores: list[np.ndarray], statistic: Statistic, replicates: int, seed: int) -> np.ndarray:
    """A statistic of each resample: (replicates, steps)."""
    return _reweighted(scores, statistic, _resampled(_strata(scores), replicates, seed))


def percentile(
    scores: list[np.ndarray], estimate: np.ndarray, statistic: Statistic, replicates: int, seed: int
) -> np.ndarray:
    """Quantiles of the stratified bootstrap: (2, steps)."""
    return np.quantile(_draws(scores, statistic, replicates, seed), _TAILS, axis=0)


def bca(scores: list[np.ndarray], estimate: np.ndarray, statistic: Statistic, replicates: int, seed: int) -> np.ndarray:
    """Bias-corrected and accelerated quantiles of the same bootstrap (Davison and Hinkley 1997, section 5.3.2)."""
    draws, strata = _draws(scores, statistic, replicates, seed), _strata(scores)
    below = (draws < estimate).mean(axis=0) + (draws == estimate).mean(axis=0) / 2
    bias = special.ndtri(below.clip(0.5 / replicates, 1 - 0.5 / replicates))
    influence = _influence(scores, estimate, statistic) / np.repeat(strata, strata)[:, None]
    squares = (influence**2).sum(axis=0)
    acceleration = (influence**3).sum(axis=0) / (6 * np.where(squares > 0, squares, 1) ** 1.5)
    shifted = bias + special.ndtri(_TAILS)[:, None]
    shares = special.ndtr(bias + shifted / (1 - acceleration * shifted))
    return np.stack([np.quantile(draws[:, i], shares[:, i]) for i in range(len(estimate))], axis=1)


def jackknife_t(
    scores: list[np.ndarray], estimate: np.ndarray, statistic: Statistic, replicates: int, seed: int
) -> np.ndarray:
    """Student's t with the stratified jackknife's standard error and Satterthwaite's degrees of freedom: (2, steps).

    Of the mean over one task it is Student's t interval itself. No bootstrap, so `replicates` and `seed` do nothing.
    """
    half = _t_half(*_jackknife(scores, estimate, statistic))
    return np.stack([estimate - half, estimate + half])


def _jackknife(scores: list[np.ndarray], estimate: np.ndarray, statistic: Statistic) -> tuple[np.ndarray, np.ndarray]:
    """A statistic's variance by the stratified jackknife, and the sum over tasks of squared parts over their degrees of
    freedom, which Satterthwaite's formula needs: each (steps,).
    """
    strata = _strata(scores)
    parts = np.split(_influence(scores, estimate, statistic), np.cumsum(strata)[:-1])
    variances = np.array([part.var(axis=0, ddof=1) / len(part) for part in parts])
    return variances.sum(axis=0), (variances**2 / (np.array(strata)[:, None] - 1)).sum(axis=0)


def _t_half(variance: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """How far Student's t interval reaches to each side, with Satterthwaite's degrees of freedom."""
    freedom = variance**2 / np.where(squares > 0, squares, 1)
    return special.stdtrit(np.maximum(freedom, 1), _TAILS[1]) * np.sqrt(variance)


def _influence(scores: list[np.ndarray], estimate: np.ndarray, statistic: Statistic) -> np.ndarray:
    """How far each run moves a statistic, by the jackknife within its task: (runs, steps)."""
    strata = _strata(scores)
    left = _reweighted(scores, statistic, _one_left_out(strata))
    return (np.repeat(strata, strata)[:, None] - 1) * (estimate - left)


INTERVALS = {"percentile": percentile, "bca": bca, "t": jackknife_t}
# Share of simulated studies in which the percentile interval of the IQM held the truth, by (tasks, seeds): see
# benchmarks/coverage.py and docs/analysis.md.
COVERAGE = {
    (1, 3): 0.76, (1, 5): 0.90, (1, 10): 0.93, (2, 3): 0.84, (2, 5): 0.90, (2, 10): 0.92,
    (3, 3): 0.84, (3, 5): 0.91, (3, 10): 0.93, (10, 3): 0.88, (10, 5): 0.91, (10, 10): 0.93,
}  # fmt: skip


def simulated(tasks: int, seeds: int) -> tuple[int, int]:
    """The key of COVERAGE with at most as many tasks and seeds; the least one where there is none."""
    few = [key for key in COVERAGE if key[0] <= max(tasks, 1) and key[1] <= max(seeds, 3)]
    return max(few)


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
    quantile = special.stdtrit(runs - 1, _TAILS[1]) if runs >= FEWEST_RUNS else np.nan
    return quantile * deviation / np.sqrt(runs)


def welch(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Difference of two means (first - second) with Welch's t 95% interval: (n,), (m,) -> (1,).

    The interval is NaN where either has fewer than FEWEST_RUNS runs.
    """
    difference = np.array([first.mean() - second.mean()])
    if min(len(first), len(second)) < FEWEST_RUNS:
        return Estimate(difference, np.array([np.nan]), np.array([np.nan]))
    error, freedom = _welch(first, second)
    half = special.stdtrit(freedom, _TAILS[1]) * error if error > 0 else 0.0
    return Estimate(difference, difference - half, difference + half)


def _welch(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Standard error of a difference of means, and its degrees of freedom."""
    a, b = (values.var(ddof=1) / len(values) for values in (first, second))
    shares = a**2 / (len(first) - 1) + b**2 / (len(second) - 1)
    return float(np.sqrt(a + b)), float((a + b) ** 2 / shares) if shares > 0 else np.inf


def welch_p(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p value of Welch's t test; NaN where either has fewer than FEWEST_RUNS runs or nothing varies."""
    if min(len(first), len(second)) < FEWEST_RUNS:
        return float("nan")
    error, freedom = _welch(first, second)
    return float(2 * special.stdtr(freedom, -abs(first.mean() - second.mean()) / error)) if error > 0 else float("nan")


def holm(p: np.ndarray) -> np.ndarray:
    """p values corrected for their number after Holm (1979), in their order; NaN are no comparisons."""
    result = np.full(len(p), np.nan)
    rising = np.argsort(p)[: np.isfinite(p).sum()]
    steps = p[rising] * np.arange(len(rising), 0, -1)
    result[rising] = np.maximum.accumulate(steps).clip(max=1)
    return result


# -------------------------------------------------------------------------------------------- pairs of arms, and curves


def probability_of_improvement(
    first: list[np.ndarray], second: list[np.ndarray], replicates: int = REPLICATES, seed: int = 0
) -> Estimate:
    """P(a run of `first` beats a run of `second` on a task), averaged over tasks, ties counted half: (1,).

    The wins of every pair of runs are counted once; a resample then only weighs them, which is what makes thousands of
    replicates cheap. Scores are one (runs,) array a task. The interval is NaN where an arm has one run on a
    task, and where all resamples give the same: that every run beats every run makes nothing certain.
    """
    random = np.random.default_rng(seed)
    points, resampled = [], []
    shares: list[np.ndarray] = [np.empty((0, 0))] * 2
    for place, tasks in enumerate(zip(first, second, strict=True)):
        for side, (whole, task) in enumerate(zip((first, second), tasks, strict=True)):
            if place == 0 or not isinstance(whole, Together):
                n = len(task)
                shares[side] = random.multinomial(n, np.full(n, 1 / n), replicates) / n
        x, y = tasks
        wins = (x[:, None] > y).astype(float) + 0.5 * (x[:, None] == y)
        points.append(wins.mean())
        resampled.append(np.einsum("bi,ij,bj->b", shares[0], wins, shares[1], optimize=True))
    low, high = np.quantile(np.mean(resampled, axis=0), _TAILS)
    if low == high or any(len(task) == 1 for task in [*first, *second]):
        low = high = np.nan
    return Estimate(np.array([np.mean(points)]), np.array([low]), np.array([high]))


def aggregate_difference(
    first: list[np.ndarray],
    second: list[np.ndarray],
    statistic: Statistic = iqm,
    replicates: int = REPLICATES,
    seed: int = 0,
    method: str = "percentile",
) -> Estimate:
    """statistic(first) - statistic(second) with both resampled, or by "t": independent seeds, the same tasks.

    Scores must have one step. The interval is NaN where an arm has one run on a task.
    """
    difference = point(first, statistic) - point(second, statistic)
    if any(len(task) == 1 for task in [*first, *second]):
        return Estimate(difference, np.full_like(difference, np.nan), np.full_like(difference, np.nan))
    draws, variance, squares = np.zeros(1), np.zeros(1), np.zeros(1)
    for tasks, own_seed, sign in ((first, 2 * seed, 1), (second, 2 * seed + 1, -1)):
        if method == "t":
            own, parts = _jackknife(tasks, point(tasks, statistic), statistic)
            variance, squares = variance + own, squares + parts
        else:
            draws = draws + sign * _draws(tasks, statistic, replicates, own_seed)
    if method == "t":
        half = _t_half(variance, squares)
        return Estimate(difference, difference - half, difference + half)
    return Estimate(difference, *np.quantile(draws, _TAILS, axis=0))


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
