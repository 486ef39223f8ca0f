"""How often the 95% intervals of the analysis hold the truth: ``python -m benchmarks.coverage [repetitions]``.

Made-up studies are drawn again and again: a task's scores are of a beta distribution of its own, as skewed as scores
at a budget are, and the truth is the statistic of these distributions themselves. Printed is the share of studies whose
interval holds it, and the mean width of the intervals. "3 and 2": every other task has one seed fewer.
"""

from __future__ import annotations

import sys
from functools import cache
from itertools import pairwise, product

import numpy as np

from analysis.statistics import (
    AGGREGATES,
    INTERVALS,
    Estimate,
    aggregate_difference,
    interval,
    probability_of_improvement,
    profile,
    student_t,
    welch,
)

TASKS, SEEDS = (1, 2, 3, 10), (3, 5, 10)
# The optimality gap of scores below 1 is one minus their mean.
STATISTICS = {name: AGGREGATES[name] for name in ("IQM", "Mean", "Median")}
STATISTICS |= {"Profile at 0.5": profile(np.array([0.5]))}
UNEVEN = ("IQM", "Mean")  # also with one seed fewer on every other task
POPULATION = 200_000  # draws of all tasks together that stand for their distributions
SETS = 10  # of tasks, and as many studies of each


def tasks_of(count: int, random: np.random.Generator) -> np.ndarray:
    """The two shapes of each task's beta distribution: (count, 2)."""
    return random.uniform(1, 6, size=(count, 2))


@cache
def sets(tasks: int, name: str) -> list[tuple[np.ndarray, float]]:
    """Sets of tasks, the same for every statistic, and the truth of the one named."""
    random, found = np.random.default_rng(tasks), []
    count = POPULATION // tasks
    for _ in range(SETS):
        shapes = tasks_of(tasks, random)
        population = np.concatenate([random.beta(a, b, (count, 1)) for a, b in shapes])
        weights = np.full((count * tasks, 1), 1 / (count * tasks))
        found.append((shapes, float(STATISTICS[name](population, weights, (count,) * tasks)[0, 0])))
    return found


def covered(name: str, method: str, tasks: int, seeds: int, uneven: bool, repetitions: int) -> tuple[float, float]:
    """Share of studies whose interval holds the truth, and their mean width."""
    random = np.random.default_rng(seeds)
    hits, widths = [], []
    for shapes, truth in sets(tasks, name):
        counts = [seeds - (uneven and i % 2 == 1) for i in range(tasks)]
        # The studies stand where the steps of a curve are elsewhere.
        drawn = [random.beta(a, b, (n, repetitions // SETS)) for (a, b), n in zip(shapes, counts, strict=True)]
        estimate = interval(drawn, STATISTICS[name], method=method)
        hits.append((estimate.low <= truth) & (truth <= estimate.high))
        widths.append(estimate.high - estimate.low)
    return float(np.mean(hits)), float(np.mean(widths))


def differences(tasks: int, seeds: int, repetitions: int) -> dict[str, float]:
    """Coverage of what compares two arms: the probability of improvement, and the difference of two IQMs."""
    random = np.random.default_rng(seeds)
    hits: dict[str, list[np.ndarray]] = {"improvement": [], "percentile": [], "t": []}

    def note(name: str, estimate: Estimate, truth: float) -> None:
        known = np.isfinite(estimate.low)  # all wins or all losses: no interval is drawn, and none is counted
        hits[name].append(((estimate.low <= truth) & (truth <= estimate.high))[known])

    count = POPULATION // tasks
    for (ours, truth), (theirs, other_truth) in pairwise(sets(tasks, "IQM")):
        many = [[random.beta(a, b, count) for a, b in arm] for arm in (ours, theirs)]
        wins = float(np.mean([np.searchsorted(np.sort(y), x).mean() / count for x, y in zip(*many, strict=True)]))
        for _ in range(repetitions // SETS):
            first, second = ([random.beta(a, b, seeds) for a, b in arm] for arm in (ours, theirs))
            note("improvement", probability_of_improvement(first, second), wins)
            own, other = ([task[:, None] for task in arm] for arm in (first, second))
            for method in ("percentile", "t"):
                note(method, aggregate_difference(own, other, method=method), truth - other_truth)
    return {name: float(np.concatenate(found).mean()) for name, found in hits.items()}


def students(seeds: int, repetitions: int) -> tuple[float, float]:
    """Coverage of Student's t over seeds of one task, and of Welch's for the difference of two."""
    random = np.random.default_rng(seeds)
    one = two = 0
    for _ in range(repetitions):
        (a, b), (c, d) = tasks_of(2, random)
        x, y = random.beta(a, b, seeds), random.beta(c, d, seeds)
        own, difference = student_t(x[:, None]), welch(x, y)
        one += own.low[0] <= a / (a + b) <= own.high[0]
        two += difference.low[0] <= a / (a + b) - c / (c + d) <= difference.high[0]
    return one / repetitions, two / repetitions


def main(arguments: list[str]) -> int:
    repetitions = int(arguments[0]) if arguments else 2000
    print("| statistic | tasks | seeds | " + " | ".join(INTERVALS) + " |")
    print("|---|---|---|" + "---|" * len(INTERVALS))
    for name, tasks, seeds, uneven in product(STATISTICS, TASKS, SEEDS, (False, True)):
        if uneven and (tasks == 1 or seeds == 10 or name not in UNEVEN):
            continue
        cells = []
        for method in INTERVALS:
            share, width = covered(name, method, tasks, seeds, uneven, repetitions)
            cells.append(f"{share:.1%} ({width:.2f})")
        count = f"{seeds} and {seeds - 1}" if uneven else str(seeds)
        print(f"| {name} | {tasks} | {count} | " + " | ".join(cells) + " |", flush=True)
    print("\n| tasks | seeds | probability of improvement | difference of IQMs, percentile | difference of IQMs, t |")
    print("|---|---|---|---|---|")
    for tasks, seeds in product(TASKS, SEEDS):
        shares = differences(tasks, seeds, repetitions // 4)
        print(f"| {tasks} | {seeds} | " + " | ".join(f"{share:.1%}" for share in shares.values()) + " |", flush=True)
    print("\n| seeds | Student's t, one task | Welch's t, a difference |\n|---|---|---|")
    for seeds in SEEDS:
        one, two = students(seeds, repetitions)
        print(f"| {seeds} | {one:.1%} | {two:.1%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
