"""Tables of a study: scores, differences, sample efficiency, an ablation's answer, hyperparameters."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics, style
from analysis.figures import arms
from analysis.figures.drawing import Context, Skip, bootstrap_text, by_arm, describe, not_in, problem_line
from analysis.runs import records
from analysis.scales import normalised_name, quantity, said, score_name
from analysis.statistics import Estimate
from analysis.studies import Arm, Study
from analysis.typesetting import Table

FEW_STEPS = 10  # from here on trapezia are near the area under a learning curve
SHARE = 0.9  # of the best arm's final mean, for "steps to reach"


def tables(context: Context) -> list[Table]:
    """All tables of a study."""
    made = [scores(context), efficiency(context)]
    if len(context.study.arms) > 1:
        made.append(differences(context))
        with contextlib.suppress(Skip):
            made.append(ablation(context))
    return [*made, hyperparameters(context)]


def _final(study: Study, arm: Arm, task: str) -> np.ndarray:
    """Mean return of each run of an arm on a task at the compared env step: (runs,)."""
    return study.runs(arm.name, task, quantity(task), np.array([study.mark]))[:, 0]


def _score_name(study: Study) -> str:
    return score_name(study.tasks).capitalize()


def scores(context: Context) -> Table:
    """Per-task mean return with its half interval, and the aggregates; the best and all within its interval bold."""
    study = context.study
    rows: list[list[str]] = []
    numbers: list[dict[str, Any]] = []
    bold: set[tuple[int, int]] = set()
    for task in study.tasks:
        estimates = [_mean(_final(study, arm, task)) for arm in study.arms]
        bold |= {(len(rows), 1 + i) for i in _best(estimates)}
        rows.append([study.task_label(task), *(_plus_minus(estimate) for estimate in estimates)])
        numbers += [_number(task, arm, estimate) for arm, estimate in zip(study.arms, estimates, strict=True)]
    first_aggregate = len(rows)
    shared = study.shared_tasks()
    if shared:
        at_once = statistics.several(list(statistics.AGGREGATES.values()))
        mark = np.array([study.mark])
        by_arm = [context.interval(study.scores(arm.name, mark, shared), at_once) for arm in study.arms]
        for k, name in enumerate(statistics.AGGREGATES):
            estimates = [Estimate(e.point[k : k + 1], e.low[k : k + 1], e.high[k : k + 1]) for e in by_arm]
            bold |= {(len(rows), 1 + i) for i in _best(estimates, sign=-1 if name == "Optimality gap" else 1)}
            rows.append([f"{name} (normalised)", *(_bounds(estimate, 3) for estimate in estimates)])
            numbers += [_number(name, arm, estimate) for arm, estimate in zip(study.arms, estimates, strict=True)]
    below = (
        f"; below, aggregates of {said(shared)} over {style.counted(len(shared), 'shared task')} with "
        f"{bootstrap_text(context)}"
    )
    caption = (
        f"{_score_name(study)} at {style.steps(study.mark)} environment steps, with Student's t 95% intervals over "
        f"seeds{_few(study)}{below if shared else ''}.{not_in(study, shared)} {_what(study)} Bold: "
        f"the best mean, and every mean within its interval."
    )
    columns = ["Task", *map(style.label, study.arms)]
    return Table("scores", caption, columns, rows, pd.DataFrame(numbers), bold, (first_aggregate,), *_origin(study))


def differences(context: Context) -> Table:
    """Each arm minus the reference, task by task (Welch), and the difference of their IQMs (bootstrap)."""
    study = context.study
    reference = study.reference
    others = [arm for arm in study.arms if arm != reference]
    rows: list[list[str]] = []
    numbers: list[dict[str, Any]] = []
    bold: set[tuple[int, int]] = set()
    for task in study.tasks:
        first, finals = _final(study, reference, task), [_final(study, arm, task) for arm in others]
        if not len(first) or not any(map(len, finals)):
            continue
        row = [study.task_label(task)]
        for i, (arm, final) in enumerate(zip(others, finals, strict=True)):
            if not len(final):
                row.append("")
                continue
            estimate = statistics.welch(final, first)
            if estimate.low[0] > 0 or estimate.high[0] < 0:
                bold.add((len(rows), 1 + i))
            row.append(_bounds(estimate, 0, sign=True))
            numbers.append(_number(task, arm, estimate) | {"p": statistics.welch_p(final, first)})
        rows.append(row)
    if context.pvalues:
        _with_p_values(rows, numbers, others)
    last = len(rows)
    shared = study.shared_tasks()
    if shared:
        row = ["IQM (normalised)"]
        enough = study.seeds[0] >= statistics.FEWEST_RUNS  # an interval of two seeds is no evidence
        for i, arm in enumerate(others):
            mark = np.array([study.mark])
            estimate = statistics.aggregate_difference(
                study.scores(arm.name, mark, shared),
                study.scores(reference.name, mark, shared),
                replicates=context.replicates,
                method=context.method,
            )
            if enough and (estimate.low[0] > 0 or estimate.high[0] < 0):
                bold.add((len(rows), 1 + i))
            row.append(_bounds(estimate, 3, sign=True))
            numbers.append(_number("IQM", arm, estimate))
        rows.append(row)
    below = f"; for the IQM, {bootstrap_text(context, difference=True)}"
    caption = (
        f"{_score_name(study)} minus that of {style.label(reference)} at {style.steps(study.mark)} environment "
        f"steps, with Welch's t 95% intervals over seeds{_few(study)}"
        f"{below if shared else ''}.{not_in(study, shared)} {_what(study)} Bold: intervals without zero, "
        "of three seeds or more (each taken alone: not corrected for the number of comparisons)."
    )
    columns_of_numbers = ["row", "arm", "point", "low", "high"]
    if context.pvalues:
        caption += " p: Welch's test, corrected after Holm for all comparisons of the table but the IQM's."
        columns_of_numbers += ["p", "p_holm"]
    columns = ["Task", *map(style.label, others)]
    frame = pd.DataFrame(numbers, columns=columns_of_numbers)  # with its header, if no arms meet
    return Table("differences", caption, columns, rows, frame, bold, (last,), *_origin(study))


def _with_p_values(rows: list[list[str]], numbers: list[dict[str, Any]], arms: list[Arm]) -> None:
    """Write Holm's p value behind each difference, and into its number."""
    corrected = statistics.holm(np.array([number["p"] for number in numbers]))
    for number, p in zip(numbers, corrected, strict=True):
        number["p_holm"] = p
    cells = iter(corrected)
    for row in rows:
        for i in range(1, 1 + len(arms)):
            if row[i] and np.isfinite(p := next(cells)):
                row[i] += " p < 0.001" if p < 0.001 else f" p = {p:.3f}"


def ablation(context: Context) -> Table:
    """An ablation's answer: IQM, latent rank and codebook use at the compared env step, an arm a row.

    Raises:
        Skip: the arms share no task with a known return scale.
    """
    study, digits = context.study, {"score": 3, "rank_0.01": 0, "active_codebook_mean": 0}
    frame = arms.data(context)
    shown = arms.titles(study, frame)
    cells = {(row.arm, row.quantity): row for row in records(frame)}

    def cell(arm: Arm, name: str) -> str:
        row = cells.get((arm.name, name))
        if row is None:
            return ""
        return _bounds(Estimate(*(np.array([value]) for value in (row.point, row.low, row.high))), digits[name])

    rows = [[style.label(arm), *(cell(arm, name) for name in shown)] for arm in study.arms]
    numbers = frame.rename(columns={"quantity": "row"})[["row", "arm", "point", "low", "high"]]
    caption = (
        f"Score, rank and codebook use at {style.steps(study.mark)} environment steps, with {bootstrap_text(context)}. "
        f"Rank at tolerance 0.01; rank and codebook are means over tasks.{not_in(study, study.shared_tasks())} "
        f"{_what(study)}"
    )
    return Table(
        "ablation",
        caption,
        ["Arm", *shown.values()],
        rows,
        numbers,
        set(),
        (),
        *_origin(study),
    )


def hyperparameters(context: Context) -> Table:
    """The configuration of every arm, for an appendix; bold where the reference has another value.

    A key whose value differs by task has the values that occur; a dash stands where an agent has no such key.
    """
    study = context.study
    values: dict[str, dict[str, list[str]]] = {}
    for row in records(study.members):
        for key, value in json.loads(row.config).items():
            if key not in ("seed", "task", "agent.name", "agent.source", "agent.init_from"):
                text = json.dumps(value) if isinstance(value, list | dict | bool) else str(value)
                own = values.setdefault(key, {}).setdefault(row.arm, [])
                own.extend([text] if text not in own else [])
    cells = {key: [" or ".join(own.get(arm.name, ["--"])) for arm in study.arms] for key, own in values.items()}
    keys = sorted(cells, key=lambda key: (not key.startswith("agent."), list(cells).index(key)))
    place = study.arms.index(study.reference)
    rows = [[key.removeprefix("agent.").replace("_", " "), *cells[key]] for key in keys]
    bold = {
        (i, 1 + j)
        for i, key in enumerate(keys)
        for j, text in enumerate(cells[key])
        if text != cells[key][place] and "--" not in (text, cells[key][place])
    }
    numbers = pd.DataFrame(
        [(key, arm.name, text) for key in keys for arm, text in zip(study.arms, cells[key], strict=True)],
        columns=["row", "arm", "value"],
    )
    caption = "Hyperparameters."
    if len(study.arms) > 1:
        caption += f" Bold: other than with {style.label(study.reference)}. A dash: the agent has none."
    columns = ["Hyperparameter", *map(style.label, study.arms)]
    return Table("hyperparameters", caption, columns, rows, numbers, bold, (), study.name)


def efficiency(context: Context) -> Table:
    """Env steps to reach a share of the best arm's final mean (median over seeds), and area under the curve."""
    study = context.study
    rows: list[list[str]] = []
    numbers: list[dict[str, Any]] = []
    bold: set[tuple[int, int]] = set()
    unreachable: list[str] = []
    for task in study.tasks:
        finals = [_final(study, arm, task) for arm in study.arms]
        best = max((final.mean() for final in finals if len(final)), default=np.nan)
        if not best > 0:  # no share of it is on the way there
            unreachable.append(task)
            continue
        threshold = SHARE * best
        cells, medians = [], []
        for arm in study.arms:
            steps = _until_mark(study, arm, task)
            reached = statistics.first_reaching(study.runs(arm.name, task, quantity(task), steps), steps, threshold)
            middle = float(np.median(reached)) if len(reached) else np.inf
            count = int(np.isfinite(reached).sum())
            shown = style.steps(middle) if np.isfinite(middle) else "not"
            cells.append(f"{shown} ({count}/{len(reached)})" if len(reached) else "")
            medians.append(middle)
            numbers.append({"row": task, "arm": arm.name, "point": middle, "low": np.nan, "high": np.nan})
        if np.isfinite(min(medians)):
            bold |= {(len(rows), 1 + i) for i, value in enumerate(medians) if value == min(medians)}
        rows.append([study.task_label(task), *cells])
    last = len(rows)
    shared = study.shared_tasks()
    common = reduce(np.intersect1d, [_until_mark(study, arm) for arm in study.arms])  # an area grows with their number
    coarse = " (so few that a steep curve has too small an area)" if len(common) < FEW_STEPS else ""
    if shared:
        estimates = []
        for arm in study.arms:
            scores = study.scores(arm.name, common, shared)
            areas = statistics.like(scores, (statistics.area_under_curve(task, common) for task in scores))
            estimates.append(context.interval(areas, statistics.iqm))
            numbers.append(_number("area under curve", arm, estimates[-1]))
        bold |= {(last, 1 + i) for i in _best(estimates)}
        rows.append(["IQM of area under curve", *(_bounds(estimate, 3) for estimate in estimates)])
    below = (
        f"; below, the mean {normalised_name(shared)} over {style.steps(study.mark)} environment steps, by the "
        f"evaluations at the {len(common)} steps that all arms have in common{coarse}, with {bootstrap_text(context)}"
    )
    without = (
        f" (without {', '.join(map(study.task_label, unreachable))}, where that mean is not above 0)"
        if unreachable
        else ""
    )
    caption = (
        f"Environment steps until an evaluation first reaches {SHARE:.0%} of the best arm's "
        f"{score_name(study.tasks)} at {style.steps(study.mark)} steps: median over seeds, with the seeds that reached "
        f"it{without}"
        f"{below if shared else ''}.{not_in(study, shared)}{_intervals(study)} {_what(study)}"
    )
    columns = ["Task", *map(style.label, study.arms)]
    return Table("efficiency", caption, columns, rows, pd.DataFrame(numbers), bold, (last,), *_origin(study))


def _until_mark(study: Study, arm: Arm, task: str | None = None) -> np.ndarray:
    """The env steps of an arm's curve (on a task) up to the compared one, and that one, whoever went further."""
    steps = study.grid(arm.name, task) if len(study.of(arm.name, task)) else np.empty(0)
    return np.unique(np.append(steps[steps <= study.mark], study.mark))


def _intervals(study: Study) -> str:
    """How often arms were evaluated, where they differ: one seen more rarely is seen to reach a return later."""
    every = by_arm(study, "every")
    return f" Evaluated every {', '.join(every)} environment steps." if len(every) > 1 else ""


def _few(study: Study) -> str:
    few = study.seeds[0] < statistics.FEWEST_RUNS
    return " (none where an arm has one or two seeds on a task)" if few else ""


def _mean(values: np.ndarray) -> Estimate:
    if not len(values):
        nothing = np.array([np.nan])
        return Estimate(nothing, nothing, nothing)
    return statistics.student_t(values[:, None])


def _best(estimates: list[Estimate], sign: int = 1) -> list[int]:
    """The best point estimate and all that lie within its interval."""
    points = np.array([sign * estimate.point[0] for estimate in estimates])
    if np.isnan(points).all() or len(points) < 2:
        return []
    best = int(np.nanargmax(points))
    edge = estimates[best].low[0] if sign > 0 else -estimates[best].high[0]
    return [i for i, value in enumerate(points) if value >= (edge if np.isfinite(edge) else points[best])]


def _plus_minus(estimate: Estimate) -> str:
    if np.isnan(estimate.point[0]):
        return ""
    half = (estimate.high[0] - estimate.low[0]) / 2
    return f"{estimate.point[0]:.0f}" + (f" ± {half:.0f}" if np.isfinite(half) else "")


def _bounds(estimate: Estimate, digits: int, sign: bool = False) -> str:
    form = f"{'+' if sign else ''}.{digits}f"
    text = format(estimate.point[0], form)
    if np.isnan(estimate.low[0]):
        return text
    return f"{text} [{format(estimate.low[0], form)}, {format(estimate.high[0], form)}]"


def _number(row: str, arm: Arm, estimate: Estimate) -> dict[str, object]:
    values = {"point": estimate.point[0], "low": estimate.low[0], "high": estimate.high[0]}
    return {"row": row, "arm": arm.name, **values}


def _what(study: Study) -> str:
    text = describe(study)
    parts = [text[0].upper() + text[1:] + "."]
    parts += [problem_line(study)] if study.problems else []
    parts += [f"Note: {study.note}."] if study.note else []
    return " ".join(filter(None, parts))


def _origin(study: Study) -> tuple[str, str, str]:
    """The last three fields of a table."""
    kinds = Counter(problem.kind for problem in study.problems if problem.kind != "remark")
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return study.name, problem_line(study), f"Incomplete: {counts}." if counts else ""
