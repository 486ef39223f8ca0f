"""Which runs of a study count; each decision is a `Problem`, printed on the terminal, the figures and the report.

* failed, unreadable and NaN runs are left out;
* of two folders with one identity the more complete one counts, a failed one last;
* inside one arm and task, a run whose configuration (seed aside) is not that of the majority is left out;
* a run that has only its evaluation before training is left out, unless no run has more;
* a run that has not reached its budget yet cuts its arm at the last common env step (``short=cut``), or is
  left out (``short=drop``).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from analysis.runs import RunTables, records
from analysis.statistics import is_recent
from analysis.studies import Problem, Study

# Latent quantities that figures draw.
DRAWN = (
    "rank_0.01", "condition_number", "active_codebook_mean", "active_codebook_min", "active_codebook_max",
    "dormant_percent", "effective_rank", "target_cosine", "prediction_cosine", "drift", "observation_r2", "reward_r2",
)  # fmt: skip


def telling(config: str) -> dict[str, Any]:
    """What of a run's configuration may make an arm: not what names the run, nor how it is only looked at.

    An agent's file is at another place for every submission; the run that one starts from is of the same seed.
    """
    kept = {
        key: value
        for key, value in json.loads(config).items()
        if key not in ("seed", "task", "agent.source") and not key.startswith("eval.")
    }
    if kept.get("agent.init_from"):
        kept["agent.init_from"] = re.sub(r"-s\d+-[0-9a-f]{8}$", "", kept["agent.init_from"])
    return kept


def _first_difference(tables: RunTables, first: str, second: str) -> int | None:
    """The first env step at which two runs were evaluated and have other returns; on one machine there is none."""
    table = tables.evaluations
    one, other = (table[table["key"] == key].set_index("env_step")["mean_return"] for key in (first, second))
    both = one.index.intersection(other.index)
    unequal = both[~np.isclose(one[both], other[both], rtol=1e-9, equal_nan=True)]
    return int(unequal[0]) if len(unequal) else None


def without_duplicates(runs: pd.DataFrame, tables: RunTables) -> tuple[pd.DataFrame, list[Problem]]:
    """Of runs with one identity keep the most complete; name the others.

    A copy that would be left out for how it ended is kept only where there is no other, however far it got. Whatever
    its folder is called, the one kept has the name that ends in the identity, if one has: by that sweeps list it.
    """
    identity = runs["identity"].where(runs["identity"] != "", runs["run"])
    named = [bool(i) and run.endswith(f"-{i[:8]}") for run, i in zip(runs["run"], runs["identity"], strict=True)]
    names = runs["run"][named].groupby(identity[named]).first()
    runs = runs.assign(run=identity.map(names).fillna(runs["run"]))
    usable = ~runs["status"].isin(["failed", "unreadable"])
    columns: dict[str, Any] = {"identity": identity, "usable": usable, "done": runs["status"] == "done", "named": named}
    order = runs.assign(**columns).sort_values(
        ["usable", "done", "env_step", "named", "created", "key"], ascending=[False] * 4 + [True] * 2, kind="stable"
    )
    repeated = order.duplicated("identity")
    kept = order[~repeated].set_index("identity")
    problems = []
    for row in records(order[repeated]):
        other = kept.loc[row.identity]
        differs = f" ({row.precision}, the other {other['precision']})" if row.precision != other["precision"] else ""
        unequal = _first_difference(tables, row.key, str(other["key"]))
        differs += f"; their returns differ from env step {unequal} on" if unequal is not None else ""
        detail = f"{row.key} has the identity of {other['key']}{differs}"
        problems.append(Problem("duplicate", row.run, detail, "left out"))
    return runs.loc[order.index[~repeated]].sort_index(), problems


def absent_seeds(members: pd.DataFrame) -> list[Problem]:
    """Seeds that an arm has on one task and not on another."""
    problems = []
    for arm, group in members.groupby("arm"):
        seeds = set(group["seed"])
        for task, rows in group.groupby("task"):
            for seed in sorted(seeds - set(rows["seed"])):
                detail = f"no run of seed {seed}, which {arm} has on other tasks"
                problems.append(Problem("missing", f"{arm} on {task}, seed {seed}", detail, "not there"))
    return problems


def checked(study: Study, short: str) -> Study:
    """Decide which runs count; name every one that does not."""
    members, problems = study.members, study.problems
    keep = pd.Series(True, index=members.index)

    def leave_out(index: Any, kind: str, detail: str) -> None:
        problems.append(Problem(kind, str(members.at[index, "run"]), detail, "left out"))
        keep[index] = False

    evaluations = study.tables.evaluations
    spoiled = evaluations[~np.isfinite(evaluations["mean_return"])].groupby("key", observed=True)["env_step"].min()
    updates = evaluations.groupby("key", observed=True)["updates"].max()
    begun = (members["env_step"] > 0).any()  # one run that has just started would put every comparison at step 0
    for row in records(members):
        if row.status in ("failed", "unreadable"):
            leave_out(
                row.Index,
                row.status,
                row.reason + (f" at env step {row.env_step:.0f}" if row.env_step > 0 else ""),
            )
        elif row.env_step < 0 or (row.env_step == 0 and begun):
            what = "no evaluation" if row.env_step < 0 else "only the evaluation before training"
            leave_out(row.Index, "short", f"{what} yet")
        elif row.key in spoiled.index:
            leave_out(row.Index, "nan", f"return is not finite at env step {spoiled[row.key]}")
        if keep[row.Index] and row.env_step >= row.budget and updates.get(row.key) == 0:
            problems.append(
                Problem("untrained", row.run, "made no update: its budget ends within its warm-up", "counted")
            )
        if row.remarks:
            problems.append(Problem("remark", row.run, row.remarks, "counted" if keep[row.Index] else "left out"))
    for index, kind, detail in _odd_configurations(members[keep]):
        leave_out(index, kind, detail)
    furthest = members[keep].sort_values(["env_step", "created"], ascending=False, kind="stable")
    for index in furthest.index[furthest.duplicated(["arm", "task", "seed"])]:
        row = members.loc[index]
        what = f"a second run of {row['arm']} on {row['task']}, seed {row['seed']:.0f}"
        leave_out(index, "duplicate", f"{what}; one that went as far and began later counts")
    for row in records(members[keep]):
        if row.status != "torn" and row.env_step >= row.budget:
            continue
        kind = "torn" if row.status == "torn" else "short"
        detail = f"{row.env_step:.0f} of {row.budget:.0f} env steps" + (f", {row.reason}" if row.reason else "")
        if short == "drop":
            leave_out(row.Index, kind, detail)
        elif row.env_step < row.budget:
            problems.append(Problem(kind, str(row.run), detail, f"cuts {row.arm} there; short=drop leaves it out"))
        else:
            problems.append(Problem(kind, str(row.run), detail, "counted"))
    study.members = members[keep].astype({"seed": int, "budget": int, "env_step": int, "key": str, "pack": int})
    problems += [*_mixed(study), *_identical(study), *_latents(study)]
    present = set(study.members["arm"])
    for arm in study.arms:
        if arm.name not in present:
            problems.append(Problem("missing", arm.label, "no run of this arm can be shown", "not drawn"))
    study.arms = [arm for arm in study.arms if arm.name in present]
    beyond = list[Problem]()
    if study.arms and study.at is not None and study.at > study.mark:
        ended = ", ".join(arm.label for arm in study.arms if study.common_step(arm.name) == study.mark)
        detail = f"the last common env step of {ended} is {study.mark}"
        beyond = [Problem("not reached", f"at={study.at}", detail, f"compared at {study.mark}")]
    problems[:0] = [*beyond, *_old_values(study)]  # a shortened list lacks the last: these concern every number
    return study


def _old_values(study: Study) -> list[Problem]:
    """Arms with a run whose latest evaluation before the compared env step is not recent; evaluated at other intervals
    than the others, say.
    """
    problems = []
    for arm in study.arms:
        before = (steps[steps <= study.mark] for steps in study.evaluated(arm.name))
        oldest = min(steps.max(initial=-1) for steps in before)
        if 0 <= oldest and not is_recent(oldest, study.mark):
            detail = f"last evaluated at {oldest}, compared at {study.mark}"
            problems.append(Problem("old value", arm.label, detail, f"that of env step {oldest} counts"))
    return problems


def _mixed(study: Study) -> list[Problem]:
    """Arms whose runs differ in what is no part of their configuration and may change numbers all the same."""
    problems = []
    for arm in study.arms:
        own = study.of(arm.name)
        for column, what in (
            ("precision", "precision"),
            ("commit", "commit"),
            ("agent_file", "version of the agent's file"),
            ("episodes", "number of evaluation episodes"),
            ("every", "interval of evaluations"),
        ):
            counts = Counter(str(value)[:12] for value in own[column] if value not in ("", -1))
            if len(counts) > 1:
                shown = ", ".join(f"{value} ({count})" for value, count in counts.most_common())
                problems.append(Problem("remark", arm.label, f"runs of more than one {what}: {shown}", "counted"))
    return problems


def _identical(study: Study) -> list[Problem]:
    """Seeds of an arm on a task with the same returns throughout, at three different values or more."""
    problems = []
    for arm in study.arms:
        for task in sorted(set(study.of(arm.name)["task"])):
            own = study.of(arm.name, task).sort_values("seed", kind="stable")
            curves: dict[bytes, list[Any]] = {}
            for row in records(own):
                steps, returns = study.series(row.key, "mean_return")
                if len(set(returns.tolist())) >= 3:
                    curves.setdefault(steps.tobytes() + returns.tobytes(), []).append(row)
            for rows in curves.values():
                if len(rows) > 1:
                    seeds = ", ".join(str(row.seed) for row in rows)
                    detail = f"the returns of seeds {seeds} on {task} are the same throughout: is it one run?"
                    problems.append(Problem("identical", arm.label, detail, "counted"))
    return problems


def _latents(study: Study) -> list[Problem]:
    """Runs without a quantity that others of their arm have, and rows in which one is not a number."""
    problems = []
    latents = study.latents
    quantities = [name for name in DRAWN if name in latents.columns]
    known = latents[quantities].notna().assign(key=latents["key"].astype(str)).groupby("key")
    some, every = known.any(), known.all()
    for arm in study.arms:
        keys = [key for task in study.tasks for key in study.keys(arm.name, task)]
        there = [key for key in keys if key in some.index]
        having = [name for name in quantities if some.loc[there, name].any()] if there else []
        names = dict(zip(study.of(arm.name)["key"], study.of(arm.name)["run"], strict=True))
        begun = {row.key for row in records(study.of(arm.name)) if row.env_step > 0}
        for key in (key for key in keys if having and key in begun):
            without = [name for name in having if key not in some.index or not some.at[key, name]]
            if len(without) == len(having):
                detail = "no row in latents.csv, which other runs of its arm have"
            elif without:
                detail = f"no {', '.join(without)} in latents.csv, which other runs of its arm have"
            else:
                detail = ""
            if detail:
                problems.append(Problem("latents", names[key], detail, "not in figures of latents"))
            for name in (name for name in having if name not in without and not every.at[key, name]):
                rows = latents[latents["key"] == key]
                at = ", ".join(map(str, rows.loc[rows[name].isna(), "env_step"].tolist()[:3]))
                effect = "no curve of its arm there"
                problems.append(Problem("nan", names[key], f"{name} is not a number at env step {at}", effect))
    return problems


def _odd_configurations(members: pd.DataFrame) -> list[tuple[Any, str, str]]:
    """Runs that differ from the majority of their arm and task in any value, or of their task in the action repeat, by
    which all count env steps: (index, kind, what differs).
    """
    odd: list[tuple[Any, str, str]] = []
    names = ("preset", "agent.profile")  # of values, which are compared themselves
    configs = {
        index: {key: value for key, value in telling(text).items() if key not in names}
        for index, text in members["config"].items()
    }

    def differences(indices: list[Any], keys: set[str]) -> None:
        for key in sorted(keys):
            values = {index: json.dumps(configs[index].get(key), default=str) for index in indices}
            usual, count = Counter(values.values()).most_common(1)[0]
            if count == len(indices):
                continue
            kind = "action repeat" if key.endswith("action_repeat") else "configuration"
            for index, value in values.items():
                if value != usual and index not in {index for index, _, _ in odd}:
                    odd.append((index, kind, f"{key}={value} where {count} of {len(indices)} runs have {usual}"))

    for _, group in members.groupby("task"):  # suites have repeats of their own
        keys = set().union(*(configs[index] for index in group.index))
        differences(list(group.index), {key for key in keys if key.endswith("action_repeat")})
    for _, group in members.groupby(["arm", "task"]):
        if len({json.dumps(configs[index], sort_keys=True) for index in group.index}) > 1:
            differences(list(group.index), set().union(*(configs[index] for index in group.index)))
    return odd
