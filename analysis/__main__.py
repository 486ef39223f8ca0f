"""The command line of the analysis: ``python -m analysis COMMAND key=value ...``."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.display import limits
from analysis.errors import InputError


def _paths(text: str) -> list[Path]:
    return [Path(part) for part in text.split(",") if part]


def _count(text: str) -> int:
    number = int(float(text)) if "e" in text.lower() else int(text)
    if number < 1:
        raise ValueError
    return number


def _switch(text: str) -> bool:
    return {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}[text.lower()]


def _names(text: str) -> tuple[str, ...]:
    """Separated by commas; an arm of no sweep has commas of its own, in brackets."""
    return tuple(name.strip() for name in re.split(r",(?![^(]*\))", text) if name.strip())


def _labels(text: str) -> dict[str, str]:
    pairs = [name.rpartition("=") for name in _names(text)]
    if not all(name and label for name, _, label in pairs):
        raise ValueError
    return {name: label for name, _, label in pairs}


def _limits(text: str) -> dict[str, tuple[float | None, float | None]]:
    return {figure: limits(*_ends(bounds)) for figure, bounds in _labels(text).items()}


def _ends(bounds: str) -> list[str]:
    ends = bounds.split(":")
    if len(ends) != 2:
        raise ValueError
    return ends


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError
        return text

    return parse


@dataclass(frozen=True)
class Key:
    """One key=value of a command: its default, how to read it, and what to expect."""

    default: Any
    parse: Callable[[str], Any]
    expected: str


RUNS = Key("runs", _paths, "folders of run directories, separated by commas")
KEYS = {
    "runs": RUNS,
    "out": Key("figures", Path, "the folder that results go to"),
    "sweep": Key(None, str, "the name of one sweep (runs/sweeps/NAME.json); without it, all, and the runs of none"),
    "style": Key("neurips", _one_of("neurips", "icml", "slides"), "neurips, icml or slides"),
    "published": Key(None, Path, "a checkout with published results, one of its files, or a tidy Parquet file"),
    "algorithms": Key(None, str, "published algorithms to show, separated by commas, or all"),
    "replicates": Key(2000, _count, "bootstrap replicates, a number of at least 1"),
    "interval": Key(
        "percentile",
        _one_of("percentile", "bca", "t"),
        "percentile or bca (bootstrap), or t (Student's, on the jackknife: wide enough with few seeds)",
    ),
    "short": Key("cut", _one_of("cut", "drop"), "cut (an arm ends where its shortest run does) or drop (short runs)"),
    "at": Key(
        None, _count, "the env step at which arms are compared (default, and at most: the last that all have reached)"
    ),
    "caption": Key(True, _switch, "on or off: print captions on the figures (they are in captions.md as well)"),
    "clean": Key(False, _switch, "on or off: no word below the axes, for a paper; all of them are in captions.md"),
    "baseline": Key(None, str, "the arm that the others are compared with (default: the first)"),
    "arms": Key(None, _names, "the arms to show, in this order, separated by commas"),
    "tasks": Key(None, _names, "the tasks to show, in this order, separated by commas"),
    "labels": Key(None, _labels, "names of arms and tasks, as NAME=LABEL,NAME=LABEL"),
    "ylim": Key(None, _limits, "limits of y axes, as FIGURE=LOW:HIGH,FIGURE=LOW: (either may be left out)"),
    "pvalues": Key(False, _switch, "on or off: Welch's p values in the table of differences, corrected after Holm"),
    "only": Key(None, str, "figures to draw, by name, separated by commas"),
    "every": Key(60, _count, "seconds between two looks at the runs"),
    "times": Key(None, _count, "stop after this many reports (default: when no run is left to wait for)"),
    "port": Key(8000, int, "a port of 127.0.0.1, or the next free one, that serves the report; 0 serves none"),
    "format": Key("parquet", _one_of("parquet", "csv"), "parquet or csv"),
    "cache": Key(True, _switch, "on or off: keep the tables in runs/.analysis"),
}
_STUDY = (
    "runs", "out", "sweep", "replicates", "short", "at", "cache", "interval", "baseline", "arms", "tasks", "labels",
    "ylim", "pvalues",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command: one line of help, its keys, and examples."""

    summary: str
    keys: tuple[str, ...]
    examples: tuple[str, ...]


COMMANDS = {
    "figures": Command(
        "draw every figure (PDF, PNG), the tables and the report: all that `make figures` makes",
        (*_STUDY, "style", "published", "algorithms", "caption", "clean", "only"),
        (
            "python -m analysis figures",
            "python -m analysis figures sweep=quickstart style=icml",
            "python -m analysis figures sweep=main baseline=td3 arms=td3,iqrl tasks=dog-run,dog-walk clean=on",
            "python -m analysis figures runs=runs,other/runs published=../tdmpc2 short=drop",
        ),
    ),
    "tables": Command(
        "write the tables (LaTeX, Markdown, CSV) and print the scores",
        _STUDY,
        ("python -m analysis tables sweep=fsq_levels at=500000",),
    ),
    "report": Command(
        "write report.html: one file with figures, tables, failures and commands",
        (*_STUDY, "style", "published", "algorithms"),
        ("python -m analysis report", "python -m analysis report sweep=quickstart out=page"),
    ),
    "watch": Command(
        "serve the report on this machine alone, and write it again and again while a sweep runs",
        (*_STUDY, "style", "published", "algorithms", "every", "times", "port"),
        ("python -m analysis watch every=30", "python -m analysis watch port=0"),
    ),
    "compare": Command(
        "set own results beside published ones at 100k, 500k and 1M env steps, or at=STEP",
        (*_STUDY, "published", "algorithms"),
        (
            "python -m analysis compare published=published.parquet",
            "python -m analysis compare published=../tdmpc2 algorithms=TD-MPC2,SAC sweep=quickstart",
        ),
    ),
    "status": Command(
        "list the runs: how far each is, and what is wrong with it",
        ("runs", "sweep", "short", "cache"),
        ("python -m analysis status",),
    ),
    "export": Command(
        "write the tidy tables: runs, evaluations, latents",
        ("runs", "out", "format", "cache"),
        ("python -m analysis export out=tables", "python -m analysis export format=csv"),
    ),
    "tensorboard": Command(
        "write TensorBoard event files, only what is new since the last time",
        ("runs", "out"),
        ("python -m analysis tensorboard out=tensorboard",),
    ),
    "wandb": Command(
        "write W&B offline runs, only what is new since the last time",
        ("runs", "out"),
        ("python -m analysis wandb out=wandb",),
    ),
}
OUT = {"export": "tables", "tensorboard": "tensorboard", "wandb": "wandb"}  # where `out` is not figures/


def usage() -> str:
    lines = ["usage: python -m analysis COMMAND [key=value ...]", "", "commands:"]
    lines += [f"  {name:12} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "python -m analysis COMMAND --help tells the keys of a command, with examples."])


def command_usage(name: str) -> str:
    command = COMMANDS[name]
    lines = [f"usage: python -m analysis {name} [key=value ...]", "", command.summary, "", "keys (default):"]
    for key in command.keys:
        default: Any = OUT.get(name, "figures") if key == "out" else KEYS[key].default
        shown = "on" if default is True else default or "none"
        lines.append(f"  {key:11} ({shown}) {KEYS[key].expected}")
    return "\n".join([*lines, "", "examples:", *(f"  {example}" for example in command.examples)])


def parse(name: str, arguments: list[str]) -> dict[str, Any]:
    """key=value arguments -> values; keys may be written in capitals, as in make's variables.

    Raises:
        InputError: an unknown key, or a value that its key does not take.
    """
    command = COMMANDS[name]
    options = {key: KEYS[key].parse(KEYS[key].default) if key == "runs" else KEYS[key].default for key in command.keys}
    if "out" in options:
        options["out"] = Path(OUT.get(name, "figures"))
    for argument in arguments:
        key, equals, text = argument.partition("=")
        key = key.lower()
        if not equals:
            raise InputError(f"{argument}: expected key=value (python -m analysis {name} --help lists the keys)")
        if key not in command.keys:
            close = difflib.get_close_matches(key, command.keys, 1)
            hint = f"did you mean {close[0]}?" if close else f"its keys are {', '.join(command.keys)}"
            raise InputError(f"{key}={text}: `{name}` has no such key; {hint}")
        if not text:  # make passes an unset variable as KEY=
            continue
        try:
            options[key] = KEYS[key].parse(text)
        except (ValueError, KeyError, OverflowError):
            raise InputError(f"{key}={text}: expected {KEYS[key].expected}") from None
    return options


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}"
            raise InputError(f"{name}: no such command; {hint}")
        if {"-h", "--help"} & set(rest):
            print(command_usage(name))
            return 0
        options = parse(name, rest)
        from analysis import commands  # late, so that help and mistakes answer at once

        getattr(commands, name)(options)
        return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
