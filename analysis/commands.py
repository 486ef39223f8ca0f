"""What each command does: load, decide what counts, compute, write, and say what is missing."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import runs, style
from analysis.building import build
from analysis.display import Display
from analysis.errors import InputError
from analysis.figures import BARS, FIGURES
from analysis.figures.drawing import Context
from analysis.manifests import progress, read_manifests
from analysis.published import Published
from analysis.render import make_folder, render
from analysis.server import LivePage
from analysis.studies import UNLISTED, Problem, Study

MOST_PROBLEMS = 12  # of a study, printed on the terminal; all are in its problems.csv


def _studies(options: dict[str, Any]) -> tuple[list[Study], list[Problem], runs.RunTables]:
    tables = runs.load(options["runs"], cache=options["cache"])
    return *_build(tables, options), tables


def _build(tables: runs.RunTables, options: dict[str, Any]) -> tuple[list[Study], list[Problem]]:
    display = Display(
        options.get("baseline") or "",
        options.get("arms") or (),
        options.get("tasks") or (),
        options.get("labels") or {},
        options.get("ylim") or {},
    )
    for figure in display.ylim:
        if figure not in FIGURES or figure in BARS:
            known = ", ".join(name for name in FIGURES if name not in BARS)
            raise InputError(f"ylim={figure}: no such figure with a y axis of values; expected one of {known}")
    return build(tables, options["runs"], options["sweep"], options["short"], options.get("at"), display)


def _published(options: dict[str, Any]) -> Published | None:
    if not options.get("published"):
        return None
    from analysis import published

    return published.select(published.load(options["published"]), options["algorithms"])


def _contexts(studies: list[Study], options: dict[str, Any]) -> list[Context]:
    overlay = _published(options)
    chosen = style.STYLES[options.get("style", "neurips")]
    own: dict[str, Any] = {key: options[key] for key in ("caption", "clean", "pvalues") if key in options}
    own["method"] = options["interval"]
    return [Context(study, chosen, options["replicates"], overlay, **own) for study in studies]


def figures(options: dict[str, Any]) -> None:
    """Everything for a paper: figures, tables and the report."""
    started = time.monotonic()
    only = _only(options["only"])
    studies, problems, tables = _studies(options)
    contexts = _contexts(studies, options)
    rendered = render(contexts, options["out"], svg=True, only=only)
    made = _tables(contexts, options)
    for study in studies:
        own = [figure for figure in rendered if figure.study == study.name]
        _write_captions(options["out"] / study.name, own)
        _print_study(study, _listing(options))
        drawn = ", ".join(figure.name for figure in own if not figure.skipped)
        print(f"  {options['out'] / study.name}/: {drawn} (.pdf, .png; their numbers in data/)")
        for figure in own:
            if figure.skipped:
                print(f"  no {figure.name}: {figure.skipped}")
    page = _write_report(options, studies, problems, tables, rendered, made)
    _print_problems("other", problems, _listing(options))
    print(f"{page} and tables/ beside the figures; {time.monotonic() - started:.0f} s")


def tables(options: dict[str, Any]) -> None:
    from analysis.typesetting import markdown

    studies, problems, _ = _studies(options)
    for name, made in _tables(_contexts(studies, options), options).items():
        print(f"## {name}\n")
        for table in made:
            print(markdown(table))
        print(f"{options['out'] / name / 'tables'}/: {', '.join(t.name for t in made)} (.tex, .md, .csv)\n")
    _write_problems(options["out"], studies, problems)
    for study in studies:
        _print_problems(study.name, study.problems, _listing(options))
    _print_problems("other", problems, _listing(options))


def report(options: dict[str, Any]) -> None:
    studies, problems, tables = _studies(options)
    contexts = _contexts(studies, options)
    rendered = render(contexts, None, svg=True)
    for study in studies:
        _print_study(study, _listing(options))
    page = _write_report(options, studies, problems, tables, rendered, _tables(contexts, options, write=False))
    _print_problems("other", problems, _listing(options))
    print(page)


def watch(options: dict[str, Any]) -> None:
    """The report, again whenever a run has written something; ends when no run is left to wait for.

    Meanwhile it is served on this machine alone, unless port=0.
    """
    page = LivePage(options["out"] / "report.html", options["port"]) if options["port"] else None
    if page:
        print(f"{page.address} shows it, on this machine alone", flush=True)
    try:
        _watch(options, page)
    finally:
        if page:
            page.close()


def _watch(options: dict[str, Any], live: LivePage | None) -> None:
    before: Any = None
    reports = 0
    while True:
        loaded = runs.load(options["runs"], cache=options["cache"])
        state, waiting = tuple(loaded.runs["signature"]), bool(_awaited(options, loaded))
        if state != before:
            before = state
            reports += _watch_once(options, loaded, waiting, live)
        if live:
            live.state = {"reports": reports, "progress": progress(options["runs"], loaded, options["sweep"])}
        if not waiting or (options["times"] is not None and reports >= options["times"]):
            return
        time.sleep(options["every"])


def _watch_once(options: dict[str, Any], loaded: runs.RunTables, waiting: bool, live: LivePage | None) -> int:
    counts = ", ".join(f"{count} {status}" for status, count in loaded.runs["status"].value_counts().items())
    try:
        studies, problems = _build(loaded, options)
    except InputError as error:
        if not waiting:
            raise
        # Before the first evaluation there is nothing to show; it will come.
        print(f"{counts or 'no run yet'}: {error}", flush=True)
        return 0
    contexts = _contexts(studies, options)
    rendered = render(contexts, None, svg=True, processes=1 if live else None)  # no fork beside the server's thread
    made = _tables(contexts, options, write=False)
    page = _write_report(options, studies, problems, loaded, rendered, made, refresh=None if live else options["every"])
    print(f"{time.strftime('%H:%M:%S')} {page}: {counts}", flush=True)
    return 1


def _awaited(options: dict[str, Any], loaded: runs.RunTables) -> set[str]:
    """Runs that are unfinished, and those that a sweep lists and that have no directory yet: of the chosen sweep."""
    manifests, _ = read_manifests(options["runs"])
    listed = {m["name"]: {row["run"] for row in m["runs"]} for m in manifests}
    there, of_sweeps = set(loaded.runs["run"]), set().union(*listed.values())
    unfinished = set(loaded.runs.loc[loaded.runs["status"] == "unfinished", "run"])
    if options["sweep"] is None:
        return unfinished | (of_sweeps - there)
    if options["sweep"] == UNLISTED:
        return unfinished - of_sweeps
    wanted = listed.get(options["sweep"], set())
    return wanted & unfinished | wanted - there


def compare(options: dict[str, Any]) -> None:
    """Own means beside published ones.

    Raises:
        InputError: nothing is published for any task and env step that own runs have.
    """
    from analysis import compare as comparison
    from analysis.typesetting import markdown, write

    overlay = _published(options)
    if overlay is None:
        raise InputError("published=: expected the path of published results (a checkout, a file, a tidy Parquet file)")
    studies, problems, _ = _studies(options | {"at": None})  # here `at` is a mark, not where arms are compared
    marks = comparison.MARKS if options["at"] is None else (options["at"],)
    nothing = []
    for study in studies:
        frame = comparison.compare(study, overlay, marks)
        if frame.empty:
            steps = ", ".join(style.steps(mark) for mark in marks)
            reached = study.members["env_step"]
            ends = " to ".join(style.steps(step) for step in sorted({reached.min(), reached.max()}))
            nothing.append(
                f"{study.name}: no task with own and published results at {steps} env steps (own runs end at {ends})"
            )
            continue
        table = comparison.table(study, overlay, frame)
        make_folder(options["out"] / study.name / "tables")
        write([table], options["out"] / study.name / "tables")
        print(f"## {study.name}\n\n{markdown(table)}")
        own = frame[frame["same"]]
        for arm, verdicts in own.groupby("arm")["verdict"]:
            counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.value_counts().items())
            print(f"{arm} against its own algorithm's published seeds: {counts}")
    if len(nothing) == len(studies):
        raise InputError(f"published={options['published']}: nothing to compare; {'; '.join(nothing)}")
    for line in nothing:
        print(line)
    for study in studies:
        _print_problems(study.name, study.problems, _listing(options))
    _print_problems("other", problems, _listing(options))


def status(options: dict[str, Any]) -> None:
    studies, problems, tables = _studies(options)
    counts = ", ".join(f"{count} {status}" for status, count in tables.runs["status"].value_counts().items())
    print(f"{style.counted(len(tables.runs), 'run')}: {counts}")
    for study in studies:
        _print_study(study)
    _print_problems("other", problems)


def export(options: dict[str, Any]) -> None:
    tables = runs.load(options["runs"], cache=options["cache"])
    out: Path = options["out"]
    make_folder(out)
    for name in ("runs", "evaluations", "latents"):
        path = out / f"{name}.{options['format']}"
        frame = getattr(tables, name)
        frame.to_csv(path, index=False) if options["format"] == "csv" else frame.to_parquet(path, index=False)
        print(f"{path}: {style.counted(len(frame), 'row')}")
    damaged = tables.runs[tables.runs["status"].isin(["unreadable", "torn", "failed"]) | (tables.runs["remarks"] != "")]
    for row in runs.records(damaged):
        print(f"  {row.run}: {row.status}: {'; '.join(filter(None, [row.reason, row.remarks]))}")


def tensorboard(options: dict[str, Any]) -> None:
    from analysis.exports import tensorboard as target

    _print_export(target.export(options["runs"], options["out"]), options["out"])


def wandb(options: dict[str, Any]) -> None:
    from analysis.exports import wandb as target

    _print_export(target.export(options["runs"], options["out"]), options["out"])


def _print_export(written: dict[str, int], out: Path) -> None:
    new = sum(1 for rows in written.values() if rows)
    rows, others = style.counted(sum(written.values()), "new row"), style.counted(len(written) - new, "run")
    print(f"{out}: {rows} of {style.counted(new, 'run')}; {others} had nothing new")


def _tables(contexts: list[Context], options: dict[str, Any], write: bool = True) -> dict[str, list[Any]]:
    from analysis import tables as module
    from analysis import typesetting

    made = {context.study.name: module.tables(context) for context in contexts}
    if write:
        for name, own in made.items():
            make_folder(options["out"] / name / "tables")
            typesetting.write(own, options["out"] / name / "tables")
    return made


def _write_report(
    options: dict[str, Any], studies: list[Study], problems: list[Problem], tables: runs.RunTables,
    rendered: list[Any], made: dict[str, list[Any]], refresh: int | None = None,
) -> Path:  # fmt: skip
    """`<out>/report.html`, and the problems.csv that its captions name."""
    from analysis import report as page

    path = options["out"] / "report.html"
    make_folder(options["out"])
    _write_problems(options["out"], studies, problems)
    keys = (
        "runs", "sweep", "style", "published", "algorithms", "at", "short", "replicates", "interval", "baseline",
        "arms", "tasks", "labels", "ylim", "pvalues",
    )  # fmt: skip
    command = " ".join(["python -m analysis report", *_typed(options, keys)])
    page.write(path, studies, rendered, made, problems, tables.runs, command, refresh)
    return path


def _typed(options: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """Those of the options that have a value, as one types them."""
    return [f"{key}={shlex.quote(_text(options[key]))}" for key in keys if options.get(key) not in (None, False)]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={_text(part)}" for name, part in value.items())
    if isinstance(value, tuple) and not all(isinstance(part, str) for part in value):  # limits of an axis
        return ":".join("" if end is None else f"{end:g}" for end in value)
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "on" if value is True else str(value)


def _listing(options: dict[str, Any]) -> str:
    """The command that lists every problem of these runs, without the keys that are at their defaults."""
    defaults: dict[str, Any] = {"runs": [Path("runs")], "sweep": None, "short": "cut"}
    given = [key for key, default in defaults.items() if options[key] != default]
    return " ".join(["python -m analysis status", *_typed(options, given)])


def _write_problems(out: Path, studies: list[Study], problems: list[Problem]) -> None:
    """`<out>/<study>/problems.csv`: all problems of a study and those of none; no file where there are none."""
    for study in studies:
        path = out / study.name / "problems.csv"
        rows = [(p.run, p.kind, p.detail, p.effect) for p in [*study.problems, *problems]]
        if not rows:
            path.unlink(missing_ok=True)  # of an earlier call
        else:
            make_folder(path.parent)
            pd.DataFrame(rows, columns=["run", "kind", "detail", "effect"]).to_csv(path, index=False)


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


def _print_study(study: Study, listing: str = "") -> None:
    low, high = study.seeds
    seeds = style.counted(high, "seed") if low == high else f"{low} to {high} seeds"
    arms = ", ".join(style.label(arm) for arm in study.arms)
    runs, tasks = style.counted(len(study.members), "run"), style.counted(len(study.tasks), "task")
    print(f"{study.name}: {runs} of {arms}; {tasks}, {seeds} each")
    if study.note:
        print(f"  note: {study.note}")
    _print_problems("", study.problems, listing)


def _print_problems(title: str, problems: list[Problem], listing: str = "") -> None:
    """The first few, and the command `listing` for the others; without one, all."""
    if title and problems:
        print(f"{title}:")
    shown = problems[:MOST_PROBLEMS] if listing else problems
    for problem in shown:
        print(f"  {problem}")
    if len(problems) > len(shown):
        print(f"  ... and {len(problems) - len(shown)} more: {listing} lists them all")
