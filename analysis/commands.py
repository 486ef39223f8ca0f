"""What each command does: load, decide what counts, compute, write, and say what is missing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from analysis import runs, style
from analysis.errors import InputError
from analysis.figures import FIGURES
from analysis.figures.drawing import Context, Published
from analysis.study import Problem, Study, build

MOST_PROBLEMS = 12  # printed on the terminal; the rest is in problems.csv


def _studies(options: dict[str, Any]) -> tuple[list[Study], list[Problem], runs.RunTables]:
    tables = runs.load(options["runs"], cache=options["cache"])
    studies, problems = build(tables, options["runs"], options["sweep"], options["short"], options.get("at"))
    return studies, problems, tables


def _published(options: dict[str, Any]) -> Published | None:
    if not options.get("published"):
        return None
    from analysis import published

    return published.load(options["published"])


def _contexts(studies: list[Study], options: dict[str, Any]) -> list[Context]:
    overlay = _published(options)
    chosen = style.STYLES[options.get("style", "neurips")]
    return [
        Context(study, chosen, options["replicates"], overlay, options.get("caption", True)) for study in studies
    ]


def figures(options: dict[str, Any]) -> None:
    from analysis.render import render

    started = time.monotonic()
    only = _only(options["only"])
    studies, problems, tables = _studies(options)
    contexts = _contexts(studies, options)
    rendered = render(contexts, options["out"], svg=True, only=only)
    for study in studies:
        _print_study(study)
        own = [figure for figure in rendered if figure.study == study.name]
        drawn = [figure.name for figure in own if not figure.skipped]
        print(f"  {options['out'] / study.name}/: {', '.join(drawn)} (.pdf, .png)")
        for figure in own:
            if figure.skipped:
                print(f"  no {figure.name}: {figure.skipped}")
        _write_captions(options["out"] / study.name, own)
    _print_problems(problems)
    print(f"{time.monotonic() - started:.0f} s")


def _only(text: str | None) -> tuple[str, ...]:
    if text is None:
        return FIGURES
    names = tuple(text.split(","))
    for name in names:
        if name not in FIGURES:
            raise InputError(f"only={name}: no such figure; expected some of {', '.join(FIGURES)}")
    return names


def _write_captions(folder: Path, rendered: list[Any]) -> None:
    lines = [f"## {figure.name}\n\n{figure.caption}\n" for figure in rendered if not figure.skipped]
    (folder / "captions.md").write_text("\n".join(lines))


def _print_study(study: Study) -> None:
    low, high = study.seeds
    seeds = f"{high}" if low == high else f"{low} to {high}"
    arms = ", ".join(style.label(arm) for arm in study.arms)
    print(f"{study.name}: {len(study.members)} runs of {arms}; {len(study.tasks)} tasks, {seeds} seeds each")
    if study.note:
        print(f"  note: {study.note}")
    _print_problems(study.problems)


def _print_problems(problems: list[Problem]) -> None:
    for problem in problems[:MOST_PROBLEMS]:
        print(f"  {problem}")
    if len(problems) > MOST_PROBLEMS:
        print(f"  ... and {len(problems) - MOST_PROBLEMS} more, all in problems.csv")
