"""One HTML file that holds everything: what was run, figures with hover values, sortable tables, failures, commands.

The file loads nothing from anywhere: figures are inline SVG, style and script are inlined from `page/`.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import style
from analysis.render import Rendered, as_json
from analysis.runs import records
from analysis.studies import Problem, Study
from analysis.typesetting import Table

MOST_RUNS = 2000  # rows in the list of runs; a browser sorts more only slowly
PAGE = Path(__file__).parent / "page"


def write(
    path: Path,
    studies: list[Study],
    rendered: list[Rendered],
    tables: dict[str, list[Table]],
    problems: list[Problem],
    runs: pd.DataFrame,
    command: str,
    refresh: int | None = None,
) -> None:
    """Write the report; it replaces the old one only when it is complete.

    Args:
        tables: the tables of each study, by its name.
        problems: those that belong to no study.
        runs: all runs that were found (`RunTables.runs`).
        command: the command line that makes this report again.
        refresh: seconds after which the page loads itself again, while a sweep runs.
    """
    parts = [_head(refresh), _header(studies, runs, command), _navigation(studies)]
    for study in studies:
        own = [figure for figure in rendered if figure.study == study.name]
        parts.append(_study(study, own, tables.get(study.name, [])))
    if problems:
        parts.append(f'<section><h2 id="other">Other problems</h2>{_problems(problems)}</section>')
    parts.append(_run_list(runs))
    parts.append(f"</main><script>{(PAGE / 'report.js').read_text()}</script></body></html>")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text("\n".join(parts), encoding="utf-8")
    fresh.replace(path)


def _text(value: Any) -> str:
    return html.escape(str(value))


def _anchor(*names: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", "-".join(names))


def _head(refresh: int | None) -> str:
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'{again}<link rel="icon" href="data:,"><title>Report</title>'
        f"<style>{(PAGE / 'report.css').read_text()}</style></head><body><main>"
    )


def _header(studies: list[Study], runs: pd.DataFrame, command: str) -> str:
    counts = Counter(runs["status"])
    order = ("done", "unfinished", "failed", "torn", "unreadable")
    chips = "".join(
        f'<span class="chip {status}">{counts[status]} {status}</span>' for status in order if counts[status]
    )
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return (
        f'<header><h1>Self-predictive RL: report</h1><p>{chips}</p><div id="progress"></div>'
        f"<p>Made {made} by <code>{_text(command)}</code></p></header>"
    )


def _navigation(studies: list[Study]) -> str:
    links = "".join(f'<a href="#{_anchor(study.name)}">{_text(study.title or study.name)}</a>' for study in studies)
    return f'<nav>{links}<a href="#runs-list">All runs</a></nav>'


def _study(study: Study, rendered: list[Rendered], tables: list[Table]) -> str:
    anchor = _anchor(study.name)
    parts = [f'<section><h2 id="{anchor}">{_text(study.title or study.name)}</h2>']
    if study.note:
        parts.append(f'<p class="note">Note: {_text(study.note)}</p>')
    if study.question:
        parts.append(f"<p><b>Question.</b> {_text(study.question)}</p>")
    if study.finding:
        parts.append(f"<p><b>Finding, as the sweep file states it.</b> {_text(study.finding)}</p>")
    parts.append(_facts(study))
    counted = [problem for problem in study.problems if problem.kind != "remark"]
    if study.problems:
        word = f"{len(counted)} incomplete or left out" if counted else ""
        remarks = len(study.problems) - len(counted)
        words = ", ".join(filter(None, [word, style.counted(remarks, "remark") if remarks else ""]))
        opened = " open" if len(study.problems) <= 10 else ""
        parts.append(f"<details{opened}><summary>Runs: {words}</summary>{_problems(study.problems)}</details>")
    parts += [_figure(figure) for figure in rendered if not figure.skipped]
    skipped = [figure for figure in rendered if figure.skipped]
    if skipped:
        items = "".join(f"<li>{_text(figure.title)}: {_text(figure.skipped)}</li>" for figure in skipped)
        parts.append(f"<p>Not drawn:</p><ul>{items}</ul>")
    parts += [_table(study.name, table) for table in tables]
    parts.append(_commands(study))
    parts.append("</section>")
    return "\n".join(parts)


def _facts(study: Study) -> str:
    members = study.members
    low, high = study.seeds
    budgets = " or ".join(style.steps(value) for value in sorted(set(members["budget"])))
    packages: Counter[str] = Counter()
    for text in members["packages"]:
        packages.update(f"{name} {version}" for name, version in json.loads(text).items())
    hours = members["hours"] / members["pack"]
    devices = [row.device_name or row.device for row in records(members)]
    facts = {
        "Arms": ", ".join(style.label(arm) for arm in study.arms),
        "Tasks": f"{len(study.tasks)}: {', '.join(study.tasks)}",
        "Seeds": str(high) if low == high else f"{low} to {high} (see below)",
        "Budget": f"{budgets} environment steps; arms are compared at {style.steps(study.mark)}",
        "Device": _several(devices),
        "Hosts": _several(members["host"]),
        "Precision": _several(members["precision"]),
        "Seeds a device": _several(members["pack"].astype(str)),
        "Hours": "" if hours.isna().all() else
                 f"{hours.sum():.1f} device hours in all, evaluations included, {hours.median():.2f} a run"
                 + (f" (of {hours.count()} runs)" if hours.isna().any() else ""),
        "Commit": _several(commit[:12] + (" + changes" if dirty else "")
                           for commit, dirty in zip(members["commit"], members["dirty"], strict=True)),
        "Versions": ", ".join(sorted(packages)) or "unknown",
    }  # fmt: skip
    items = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items() if value)
    return f'<dl class="facts">{items}</dl>'


def _several(values: Any, limit: int = 4) -> str:
    """Distinct values, the most frequent first, with their counts where there are several."""
    counts = Counter(value for value in values if value)
    shown = counts.most_common(limit)
    if len(counts) == 1:
        return shown[0][0]
    text = ", ".join(f"{value} ({style.counted(count, 'run')})" for value, count in shown)
    return text + (f" and {len(counts) - limit} more" if len(counts) > limit else "")


def _figure(figure: Rendered) -> str:
    anchor = _anchor(figure.study, figure.name)
    hover = f'<script type="application/json">{as_json(figure.hover)}</script>' if figure.hover else ""
    hint = '<p class="hint">Point at the curves for values.</p>' if figure.hover else ""
    return (
        f'<figure id="{anchor}"><h3>{_text(figure.title)}</h3>'
        f'<div class="plot" tabindex="0">{figure.svg}{hover}</div>'
        f"{hint}<figcaption>{_text(figure.caption)}</figcaption></figure>"
    )


def _table(study: str, table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in table.columns)
    body = "".join(
        "<tr>" + "".join(
            f"<td{' class=best' if (i, j) in table.bold else ''}>{_text(cell)}</td>"
            for j, cell in enumerate(row)
        ) + "</tr>"
        for i, row in enumerate(table.rows)
    )  # fmt: skip
    return (
        f'<figure id="{_anchor(study, "table", table.name)}"><h3>Table: {_text(table.name)}</h3>'
        f'<div class="scroll" tabindex="0"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div><figcaption>{_text(table.caption)}</figcaption></figure>"
    )


def _plain_table(columns: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<div class="scroll" tabindex="0"><table class="sortable left"><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _problems(problems: list[Problem]) -> str:
    rows = [[problem.run, problem.kind, problem.detail, problem.effect] for problem in problems]
    return _plain_table(["Run", "What", "Detail", "Done about it"], rows)


def _commands(study: Study) -> str:
    """The distinct commands of the runs, seeds folded together."""
    folded = Counter(re.sub(r"\s+seeds=\S+", " seeds=...", text) for text in study.members["command"] if text)
    if not folded:
        return ""
    seeds = ", ".join(str(seed) for seed in sorted(set(study.members["seed"])))
    lines = "\n".join(text for text, _ in sorted(folded.items()))
    return (
        f"<details><summary>Commands that ran it ({len(folded)})</summary><p>Seeds: {_text(seeds)}.</p>"
        f"<pre>{_text(lines)}</pre></details>"
    )


def _run_list(runs: pd.DataFrame) -> str:
    rows = [
        [row.run, row.status, f"{max(row.env_step, 0)}", f"{max(row.budget, 0)}",
         "" if pd.isna(row.hours) else f"{row.hours:.2f}", row.device_name or row.device,
         row.reason or row.remarks]
        for row in records(runs.head(MOST_RUNS))
    ]  # fmt: skip
    more = f"<p>The first {MOST_RUNS} of {len(runs)} runs.</p>" if len(runs) > MOST_RUNS else ""
    columns = ["Run", "Status", "Env step", "Budget", "Hours", "Device", "Reason"]
    count = style.counted(len(runs), "run")
    return (
        f'<section><h2 id="runs-list">All runs</h2>{more}<details><summary>{count}</summary>'
        f"{_plain_table(columns, rows)}</details></section>"
    )
