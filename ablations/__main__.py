"""Command line: python -m ablations list | show | check."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from ablations import check
from ablations.hours import estimate
from ablations.sweep import Sweep, load
from ablations.sweep_file import find, names, read
from iqrl import processes
from iqrl.command_line import Parser
from iqrl.errors import BAD_INPUT, InputError

EXAMPLES = """examples:
  python -m ablations list
  python -m ablations show fsq_levels
  python -m ablations show fsq_levels scale=lite
  python -m ablations check
  python -m ablations check horizon my_sweep.yaml

docs/ablations.md says what a sweep file holds."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 for bad input and for sweeps that are not right."""
    parser = Parser(
        prog="python -m ablations",
        description="Look at the sweeps of this folder, or at any sweep file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="every sweep: arms, runs, question")
    show_parser = commands.add_parser("show", help="one sweep: arms x tasks x seeds = runs, and how long they take")
    show_parser.add_argument("sweep", metavar="NAME", help="a sweep's name, or a .yaml file")
    show_parser.add_argument("words", nargs="*", metavar="scale=lite|full | runs=FOLDER")
    check_parser = commands.add_parser(
        "check", help="whether keys and tasks exist, arms differ, and every change changes a value"
    )
    check_parser.add_argument("sweeps", nargs="*", metavar="NAME", help="sweeps or .yaml files; default: all")
    try:
        arguments = parser.parse_args(words)
        return {
            "list": show_list,
            "show": lambda: show(arguments.sweep, arguments.words),
            "check": lambda: check_all(arguments.sweeps or names()),
        }[arguments.command]()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # `python -m ablations list | head`
        sys.stderr.close()
        return 0


def show_list() -> int:
    print(f"{'sweep':18s} {'arms':>4s} {'runs':>6s} {'lite':>5s}  question")
    broken = []
    for name in names():
        try:
            full = load(name, "full")
            lite = len(load(name, "lite").unique_runs()) if "lite" in read(find(name)) else "-"
        except InputError as error:
            broken.append(str(error))
            continue
        print(f"{name:18s} {len(full.arms):4d} {len(full.unique_runs()):6d} {lite:>5}  {full.question}")
    for line in broken:
        print(f"error: {line}", file=sys.stderr)
    return 2 if broken else 0


def show(name: str, words: Sequence[str]) -> int:
    given = {"scale": "", "runs": ""}
    for word in words:
        key, equals, value = word.partition("=")
        if key.lower() not in given or not equals:
            raise InputError(f"{word}: expected scale=full, scale=lite or runs=FOLDER")
        given[key.lower()] = value
    sweep = load(name, given["scale"] or None)  # make passes an unset variable as SCALE=
    print(f"{sweep.name}: {sweep.title} ({sweep.scale}{': ' + sweep.note if sweep.note else ''})")
    for title, text in (("question", sweep.question), ("finding", sweep.finding), ("figure", sweep.figure)):
        print(_paragraph(title, text))
    print("arms")
    for arm in sweep.arms:
        changes = [f"{k}={_value(v)}" for k, v in arm.delta.items()]
        changes += [f"start_from={'/'.join(arm.start_from)}"] if arm.start_from else []
        print(f"  {arm.name:16s} {arm.label:28s} {' '.join(changes) or '(the base)'}")
    for remark in sweep.remarks():
        print(f"note      {remark}")
    print("\n".join(_sizes(sweep, Path(given["runs"] or "runs"))))
    return 0


def _paragraph(title: str, text: str) -> str:
    return textwrap.fill(text, 110, initial_indent=f"{title:9s} ", subsequent_indent=" " * 10, break_on_hyphens=False)


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def _sizes(sweep: Sweep, runs: Path) -> list[str]:
    """Tasks, seeds, runs, and how long they take."""
    tasks = list(dict.fromkeys(run.config.task for run in sweep.runs))
    seeds = sorted({run.config.seed for run in sweep.runs})
    budgets = sorted({run.config.train.env_steps for run in sweep.runs})
    unique = sweep.unique_runs()
    steps = sum(run.config.train.env_steps for run in unique)
    shared = f", {len(unique)} different ones" if len(unique) < len(sweep.runs) else ""
    counts = {"arm": len(sweep.arms), "task": len(tasks), "seed": len(seeds)}
    size = " x ".join(_count(number, thing) for thing, number in counts.items())
    return [
        _paragraph("tasks", ", ".join(tasks)),
        f"seeds     {', '.join(map(str, seeds))}",
        f"budget    {' or '.join(f'{b:,}' for b in budgets)} env steps a run",
        f"runs      {size}: {_count(len(sweep.runs), 'run')}{shared}, {steps / 1e6:,.1f}M env steps",
        f"time      {estimate(unique, runs, 'cuda' if processes.gpus() else 'cpu').words()}",
    ]


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def check_all(sweeps: Sequence[str]) -> int:
    found = [problem for name in sweeps for problem in check.problems(name)]
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    if found:
        return BAD_INPUT
    print(f"{_count(len(sweeps), 'sweep')}: keys and tasks exist, arms differ, every change changes a value")
    return 0


if __name__ == "__main__":
    sys.exit(main())
