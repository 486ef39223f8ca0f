"""Estimates against rliable and closed forms; intervals reproducible, refused where they cannot be known."""

from __future__ import annotations

import numpy as np
import pytest
from rliable import library, metrics
from scipy import stats

from analysis import statistics
from analysis.statistics import (
    AGGREGATES,
    INTERVALS,
    Together,
    aggregate_difference,
    interval,
    iqm,
    mean,
    point,
    probability_of_improvement,
    several,
)


def scores(runs: int = 10, tasks: int = 8, steps: int = 1, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.beta(2 + task % 3, 2, size=(runs, steps)) for task in range(tasks)]


def matrix(tasks: list[np.ndarray]) -> np.ndarray:
    return np.stack([task[:, 0] for task in tasks], axis=1)


def test_aggregates_are_those_of_rliable() -> None:
    theirs = {
        "IQM": metrics.aggregate_iqm,
        "Median": metrics.aggregate_median,
        "Mean": metrics.aggregate_mean,
        "Optimality gap": metrics.aggregate_optimality_gap,
    }
    own = scores(7, 5)
    for name, statistic in AGGREGATES.items():
        assert point(own, statistic)[0] == pytest.approx(theirs[name](matrix(own)))


def test_iqm_drops_the_floor_of_a_quarter() -> None:
    assert point([np.array([[0.0], [1.0], [2.0], [30.0], [-9.0]])], iqm)[0] == pytest.approx(1.0)
    assert point([np.array([[0.0], [1.0], [5.0]])], iqm)[0] == pytest.approx(2.0)


@pytest.mark.parametrize("runs", [5, 3])
def test_intervals_are_rliables_own_from_the_same_draws(runs: int) -> None:
    """What its `get_interval_estimates` gives, but for rounding; and NumPy's global generator is as before."""
    own = [task[:, :1] for task in scores(runs=runs)]
    before = np.random.get_state()
    estimate = interval(own, iqm, replicates=300, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before, strict=True))
    np.random.seed(4)
    _, bounds = library.get_interval_estimates(
        {"": own}, lambda *tasks: np.array([metrics.aggregate_iqm(np.concatenate(tasks, axis=1))]), reps=300
    )
    np.random.set_state(before)
    np.testing.assert_allclose([estimate.low[0], estimate.high[0]], bounds[""][:, 0], rtol=1e-12)


def test_intervals_are_those_of_rliable_to_bootstrap_error() -> None:
    own = scores()
    np.random.seed(1)
    _, theirs = library.get_interval_estimates(
        {"a": matrix(own)}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=20_000
    )
    estimate = interval(own, iqm, replicates=20_000)
    width = theirs["a"][1, 0] - theirs["a"][0, 0]
    assert abs(estimate.low[0] - theirs["a"][0, 0]) < 0.05 * width
    assert abs(estimate.high[0] - theirs["a"][1, 0]) < 0.05 * width


def plain_iqm(tasks: list[np.ndarray]) -> float:
    """Of (runs,) arrays: run after run from the lowest, each with as much of its weight as lies in the middle."""
    even = len({len(task) for task in tasks}) == 1
    runs = sorted((float(value), 1 / (len(tasks) * len(task))) for task in tasks for value in task)
    cut = int(0.25 * len(runs)) / len(runs) if even else 0.25
    upto = total = weight_kept = 0.0
    for value, weight in runs:
        kept = max(min(upto + weight, 1 - cut) - max(upto, cut), 0.0)
        upto, total, weight_kept = upto + weight, total + kept * value, weight_kept + kept
    return total / weight_kept


RESTATED = {
    "IQM": plain_iqm,
    "Median": lambda tasks: float(np.median([task.mean() for task in tasks])),
    "Mean": lambda tasks: float(np.mean([task.mean() for task in tasks])),
    "Optimality gap": lambda tasks: 1 - float(np.mean([np.minimum(task, 1).mean() for task in tasks])),
}


@pytest.mark.parametrize("seeds", [(5, 5, 5, 5), (3, 5, 2, 4)])
@pytest.mark.parametrize("name", list(AGGREGATES))
def test_intervals_are_those_of_a_bootstrap_run_by_run(name: str, seeds: tuple[int, ...]) -> None:
    """Resample after resample in plain numpy, on another generator: the same quantiles, to the error of both."""
    random = np.random.default_rng(2)
    own = [random.beta(2, 2, size=(count, 1)) + 0.1 * i for i, count in enumerate(seeds)]
    restated = RESTATED[name]
    draws = [restated([random.choice(task[:, 0], len(task)) for task in own]) for _ in range(4000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    estimate = interval(own, AGGREGATES[name], 4000)
    assert estimate.point[0] == pytest.approx(restated([task[:, 0] for task in own]), abs=1e-14)
    assert [estimate.low[0], estimate.high[0]] == pytest.approx([low, high], abs=0.06 * (high - low))


@pytest.mark.parametrize("name", ["IQM", "Mean", "Optimality gap"])
@pytest.mark.parametrize("seeds", [(5, 5, 5), (3, 6, 4)])
def test_jackknife_and_bca_are_those_of_run_by_run(name: str, seeds: tuple[int, ...]) -> None:
    """Leave each run out in turn, in plain numpy."""
    random = np.random.default_rng(4)
    own = [random.beta(2, 3, size=count) + 0.1 * i for i, count in enumerate(seeds)]

    def of(tasks: list[np.ndarray]) -> float:
        """Where one is left out the same weight is cut as of all."""
        cut = int(0.25 * sum(seeds)) / sum(seeds) if len(set(seeds)) == 1 else 0.25
        if name != "IQM":
            return RESTATED[name](tasks)
        runs = sorted((float(v), 1 / (len(tasks) * len(task))) for task in tasks for v in task)
        upto = total = 0.0
        for value, weight in runs:
            total += value * max(min(upto + weight, 1 - cut) - max(upto, cut), 0.0)
            upto += weight
        return total / (1 - 2 * cut)

    whole, variance, freedom, cubes, squares = of(own), 0.0, 0.0, 0.0, 0.0
    for i, task in enumerate(own):
        n = len(task)
        left = [of([*own[:i], np.delete(task, j), *own[i + 1 :]]) for j in range(n)]
        influence = (n - 1) * (whole - np.array(left))
        share = influence.var(ddof=1) / n
        variance, freedom = variance + share, freedom + share**2 / (n - 1)
        cubes, squares = cubes + ((influence / n) ** 3).sum(), squares + ((influence / n) ** 2).sum()
    half = stats.t.ppf(0.975, variance**2 / freedom) * np.sqrt(variance)
    scores = [task[:, None] for task in own]
    estimate = interval(scores, AGGREGATES[name], method="t")
    assert [estimate.low[0], estimate.high[0]] == pytest.approx([whole - half, whole + half])
    draws = [of([random.choice(task, len(task)) for task in own]) for _ in range(4000)]
    bias = stats.norm.ppf((np.array(draws) < whole).mean() + (np.array(draws) == whole).mean() / 2)
    z = bias + stats.norm.ppf([0.025, 0.975])
    low, high = np.quantile(draws, stats.norm.cdf(bias + z / (1 - cubes / (6 * squares**1.5) * z)))
    estimate = interval(scores, AGGREGATES[name], 4000, method="bca")
    assert [estimate.low[0], estimate.high[0]] == pytest.approx([low, high], abs=0.1 * (high - low))


def test_the_t_interval_of_one_task_is_students() -> None:
    values = np.random.default_rng(6).normal(size=(5, 3))
    own, theirs = interval([values], mean, method="t"), statistics.student_t(values)
    assert own.low == pytest.approx(theirs.low) and own.high == pytest.approx(theirs.high)


def test_what_a_caption_says_of_coverage_is_what_was_simulated() -> None:
    assert statistics.simulated(1, 2) == statistics.simulated(0, 4) == (1, 3)
    assert statistics.simulated(5, 9) == (3, 5) and statistics.simulated(28, 10) == (10, 10)


def test_tasks_with_unequal_seeds() -> None:
    """One array a task gives nearly what the matrix gives when the numbers of runs are nearly equal."""
    own = scores(20, 6)
    even = interval(own, iqm, 5000)
    uneven = interval([own[0][:-1], *own[1:]], iqm, 5000)
    runs = sorted((value, 1 / (6 * len(task))) for task in [own[0][:-1], *own[1:]] for value in task[:, 0])
    values, weights = np.array(runs).T
    upto = np.cumsum(weights)
    kept = [max(min(u, 0.75) - max(u - w, 0.25), 0.0) for u, w in zip(upto, weights, strict=True)]
    assert uneven.point[0] == pytest.approx(np.average(values, weights=kept))
    assert uneven.low[0] == pytest.approx(even.low[0], abs=0.02)
    assert uneven.high[0] == pytest.approx(even.high[0], abs=0.02)


def test_unequal_seeds_lose_equal_weight_at_both_ends() -> None:
    """One seed fewer on one of two tasks: .28 and .78 have half of the middle each, as with equal numbers."""
    low, high = np.full((5, 1), 0.28), np.full((5, 1), 0.78)
    assert point([low, high], iqm)[0] == pytest.approx(0.53)
    for fewer in (4, 3, 2, 1):
        assert point([low, high[:fewer]], iqm)[0] == pytest.approx(0.53)
        assert point([low[:fewer], high], iqm)[0] == pytest.approx(0.53)


def test_unequal_seeds_do_not_bias_the_iqm() -> None:
    """Means over many draws of 3 and 2 seeds on two tasks, against those of 3 and 3 (whole runs dropped: -0.036)."""
    random = np.random.default_rng(0)
    draws = random.normal([[0.3], [0.7]], 0.1, size=(4000, 2, 3))
    even = np.mean([point([d[0, :, None], d[1, :, None]], iqm)[0] for d in draws])
    uneven = np.mean([point([d[0, :, None], d[1, :2, None]], iqm)[0] for d in draws])
    assert uneven == pytest.approx(even, abs=0.006)


def test_a_task_with_more_seeds_counts_no_more() -> None:
    """Each run doubled on one task alone: the statistics stay what they were."""
    own = scores(8, 4)
    uneven = [np.repeat(own[0], 2, axis=0), *own[1:]]
    for statistic in [*AGGREGATES.values(), statistics.profile(np.linspace(0, 1, 11))]:
        assert point(uneven, statistic) == pytest.approx(point(own, statistic))
    low, high = np.array([[0.2], [0.3]]), np.array([[0.8], [0.9], [0.85], [0.95]])
    assert point([low, high], iqm)[0] == pytest.approx((0.3 + 0.8 / 2 + 0.85 / 2) / 2)


def test_the_mean_of_one_task_has_the_closed_form_of_the_bootstrap() -> None:
    values = np.random.default_rng(3).normal(size=(40, 1))
    estimate = interval([values], mean, 20_000)
    error = values.std() / np.sqrt(40)
    assert estimate.low[0] == pytest.approx(values.mean() - 1.96 * error, abs=0.04 * error * 4)
    assert estimate.high[0] == pytest.approx(values.mean() + 1.96 * error, abs=0.04 * error * 4)


def test_same_input_same_interval_and_the_global_generator_is_left_alone() -> None:
    own = scores(5, 4, steps=3)
    np.random.seed(7)
    state = np.random.get_state()[1].copy()
    one = interval(own, iqm, 200)
    assert (np.random.get_state()[1] == state).all()
    np.random.seed(99)
    two = interval(own, iqm, 200)
    assert one.low.tolist() == two.low.tolist() and one.high.tolist() == two.high.tolist()
    assert one.point.shape == (3,)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused(bad: float) -> None:
    own = scores()
    own[2][1, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        interval(own)


def test_a_task_without_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="without a run"):
        interval([np.empty((0, 1)), *scores()])


def test_one_seed_has_no_interval() -> None:
    estimate = interval(scores(runs=1))
    assert np.isfinite(estimate.point[0]) and np.isnan(estimate.low[0]) and np.isnan(estimate.high[0])


def test_one_seed_on_one_task_has_no_interval() -> None:
    uneven = [scores(1, 1)[0], *scores(5, 2)]
    assert np.isnan(interval(uneven).low[0])
    difference = statistics.aggregate_difference(uneven, scores(5, 3, seed=1), replicates=20)
    assert np.isfinite(difference.point[0]) and np.isnan([difference.low[0], difference.high[0]]).all()
    better = statistics.probability_of_improvement([np.ones(1), np.ones(3)], [np.zeros(3), np.zeros(3)], 20)
    assert better.point[0] == 1.0 and np.isnan([better.low[0], better.high[0]]).all()


def test_several_statistics_share_resamples() -> None:
    own = scores()
    both = interval(own, several([iqm, mean]), 300)
    assert both.low[0] == interval(own, iqm, 300).low[0] and both.high[1] == interval(own, mean, 300).high[0]


@pytest.mark.parametrize("method", INTERVALS)
def test_runs_of_several_tasks_are_resampled_whole(method: str) -> None:
    """The mean over their tasks is then that of runs of one task, whose score is their own mean."""
    scores = [np.random.default_rng(task).normal(task, 1, (5, 2)) for task in range(3)]
    whole = interval(Together(scores), mean, 500, method=method)
    one = interval([np.mean(scores, axis=0)], mean, 500, method=method)
    for name in ("point", "low", "high"):
        np.testing.assert_allclose(getattr(whole, name), getattr(one, name), rtol=1e-12)
    alike = [scores[0]] * 3  # nothing but the run varies: three tasks say no more than one
    width = {kind: np.ptp([e.low, e.high], axis=0) for kind, e in (
        ("one", interval(alike[:1], mean, 500, method=method)),
        ("whole", interval(Together(alike), mean, 500, method=method)),
        ("apart", interval(alike, mean, 500, method=method)),
    )}  # fmt: skip
    np.testing.assert_allclose(width["whole"], width["one"], rtol=1e-12)
    assert (width["apart"] < 0.8 * width["one"]).all()


def test_pairs_of_runs_of_several_tasks_are_resampled_whole() -> None:
    x, y = np.array([1.0, 3.0, 5.0]), np.array([2.0, 2.5, 4.0])
    one = probability_of_improvement([x], [y], 500)
    for first in (Together([x, x]), [x, x]):
        other = probability_of_improvement(first, Together([y, y]), 500)
        assert other.point == one.point
        same = (other.low, other.high) == (one.low, one.high)
        assert same == isinstance(first, Together)
    difference = aggregate_difference(Together([x[:, None]] * 2), Together([y[:, None]] * 2), mean, 500, method="t")
    alone = aggregate_difference([x[:, None]], [y[:, None]], mean, 500, method="t")
    np.testing.assert_allclose(difference.low, alone.low)


def test_profile_is_the_share_above() -> None:
    own = [np.array([[0.1], [0.5]]), np.array([[0.5], [0.9]])]
    shares = point(own, statistics.profile(np.array([0.0, 0.1, 0.4, 0.5, 0.95])))
    assert shares.tolist() == [1.0, 0.75, 0.75, 0.25, 0.0]


def test_probability_of_improvement_is_that_of_rliable() -> None:
    x, y = scores(9, 5, seed=1), scores(7, 5, seed=2)
    estimate = statistics.probability_of_improvement([t[:, 0] for t in x], [t[:, 0] for t in y], 4000)
    assert estimate.point[0] == pytest.approx(metrics.probability_of_improvement(matrix(x), matrix(y)))
    np.random.seed(0)
    _, theirs = library.get_interval_estimates(
        {"a": [matrix(x), matrix(y)]},
        lambda a, b: np.array([metrics.probability_of_improvement(a, b)]),
        reps=1000,
    )
    assert estimate.low[0] == pytest.approx(theirs["a"][0, 0], abs=0.02)
    assert estimate.high[0] == pytest.approx(theirs["a"][1, 0], abs=0.02)


def test_ties_count_half() -> None:
    assert statistics.probability_of_improvement([np.ones(3)], [np.ones(4)], 10).point[0] == 0.5


def test_student_and_welch_are_those_of_scipy() -> None:
    random = np.random.default_rng(5)
    x, y = random.normal(3, 1, 6), random.normal(2, 2, 9)
    own = statistics.student_t(x[:, None])
    low, high = stats.t.interval(0.95, 5, loc=x.mean(), scale=stats.sem(x))
    assert (own.low[0], own.high[0]) == pytest.approx((low, high))
    theirs = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    difference = statistics.welch(x, y)
    assert (difference.low[0], difference.high[0]) == pytest.approx((theirs.low, theirs.high))


def test_student_says_nothing_of_two_runs() -> None:
    own = statistics.student_t(np.array([[1.0], [3.0]]))
    assert own.point[0] == 2.0 and np.isnan([own.low[0], own.high[0]]).all()


def test_welch_says_nothing_of_two_runs() -> None:
    own = statistics.welch(np.array([1.0, 3.0]), np.array([1.0, 2.0, 3.0, 6.0]))
    assert own.point[0] == -1.0 and np.isnan([own.low[0], own.high[0]]).all()


def test_the_difference_of_iqms_is_antisymmetric() -> None:
    x, y = scores(8, 4, seed=1), scores(8, 4, seed=2)
    one, two = statistics.aggregate_difference(x, y), statistics.aggregate_difference(y, x)
    assert one.point[0] == pytest.approx(-two.point[0])
    assert one.low[0] == pytest.approx(-two.high[0], abs=0.02)
    same = statistics.aggregate_difference(x, x)
    assert same.low[0] < 0 < same.high[0] and same.point[0] == 0


def test_the_t_interval_of_a_difference_is_welchs_on_one_task() -> None:
    """Of means; over tasks variances add up, and so do the parts of Satterthwaite's formula."""
    random = np.random.default_rng(8)
    x, y = [random.normal(2, 1, (5, 1))], [random.normal(1, 2, (4, 1))]
    own, theirs = statistics.aggregate_difference(x, y, mean, method="t"), statistics.welch(x[0][:, 0], y[0][:, 0])
    assert [own.low[0], own.high[0]] == pytest.approx([theirs.low[0], theirs.high[0]])
    x, y = [random.normal(size=(n, 1)) for n in (3, 5)], [random.normal(size=(n, 1)) for n in (4, 4)]
    parts = [(task.var(ddof=1) / len(task) / 4, len(task) - 1) for task in [*x, *y]]
    variance = sum(part for part, _ in parts)
    half = stats.t.ppf(0.975, variance**2 / sum(p**2 / df for p, df in parts)) * np.sqrt(variance)
    own = statistics.aggregate_difference(x, y, mean, method="t")
    assert (own.high[0] - own.low[0]) / 2 == pytest.approx(half)


def test_area_under_curve() -> None:
    steps = np.array([0, 10, 30])
    assert statistics.area_under_curve(np.array([[0.0, 1.0, 1.0]]), steps)[0, 0] == pytest.approx(25 / 30)


def test_first_reaching() -> None:
    values = np.array([[0.0, 5.0, 9.0], [0.0, 9.0, 1.0], [0.0, 1.0, 2.0]])
    assert statistics.first_reaching(values, np.array([0, 10, 20]), 5.0).tolist() == [10, 10, np.inf]


@pytest.mark.slow
def test_the_interval_of_the_iqm_covers_the_truth() -> None:
    """10 seeds, 20 tasks, 500 repetitions: the truth lies in the 95% interval in 92 to 97% of them."""
    random = np.random.default_rng(11)
    shapes = random.uniform(1, 6, size=(20, 2))
    population = random.beta(shapes[:, 0], shapes[:, 1], size=(200_000, 20))
    truth = stats.trim_mean(population.ravel(), 0.25)
    covered = 0
    for _ in range(500):
        drawn = random.beta(shapes[:, 0], shapes[:, 1], size=(10, 20))
        estimate = interval([drawn[:, task, None] for task in range(20)], iqm, 400)
        covered += estimate.low[0] <= truth <= estimate.high[0]
    assert 0.92 <= covered / 500 <= 0.97
