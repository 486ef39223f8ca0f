"""Command line: run, submit, status, why, logs, retry, cancel, gc, clean, profile."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iqrl.command_line import Parser
from iqrl.errors import BAD_INPUT, INTERRUPTED, InputError, what_failed

EXAMPLES = {
    "run": """examples:
  python -m slurm run quickstart
  python -m slurm run fsq_levels scale=lite jobs=4 runs=/scratch/runs
  python -m slurm run main train.precision=float32 train.device=cuda

Ctrl-C saves and stops; the same command goes on, and leaves alone what is done.
exit status: 0 all runs are complete, 1 some are not, 2 bad input, 75 interrupted""",
    "submit": """examples:
  python -m slurm submit main --profile gpu --dry-run
  python -m slurm submit main scale=lite --profile ./my_cluster.yaml --yes
  python -m slurm submit main --profile gpu train.precision=bfloat16

Submitting again submits only what is neither done nor queued.""",
    "status": """examples:
  python -m slurm status
  python -m slurm status fsq_levels --watch
  python -m slurm status main --json | jq '.[] | select(.state == "lost")'""",
    "why": "example:\n  python -m slurm why main",
    "logs": """examples:
  python -m slurm logs iqrl-walker-walk-s0-3f2a91bc
  python -m slurm logs iqrl-walker-walk-s0 --lines 200""",
    "retry": """examples:
  python -m slurm retry main
  python -m slurm retry main --failed
  python -m slurm retry main --lost --profile gpu --yes

Without a choice: failed, lost, cancelled and stopped runs.
Runs go where they were before, unless --profile says otherwise.
Edit a sweep's file or an agent's, and its runs are others: the sweep's own command starts them.""",
    "cancel": """examples:
  python -m slurm cancel main
  python -m slurm cancel main --pending
  python -m slurm cancel main iqrl-walker-walk-s0-3f2a91bc""",
    "gc": "examples:\n  python -m slurm gc\n  python -m slurm gc main --yes",
    "clean": "example:\n  python -m slurm clean runs=runs",
    "profile": "examples:\n  python -m slurm profile\n  python -m slurm profile my_cluster",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = Parser(
        prog="python -m slurm",
        description="Run sweeps, here or through Slurm, and say what became of every run.",
        epilog="python -m slurm COMMAND --help shows examples.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, doc: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=doc, description=doc, epilog=EXAMPLES[name], formatter_class=argparse.RawDescriptionHelpFormatter
        )

    for name, doc in (
        ("run", "Run what a sweep lacks, on this machine."),
        ("submit", "Submit what a sweep lacks to Slurm."),
    ):
        command = add(name, doc)
        command.add_argument("sweep", metavar="SWEEP", help="a name (python -m ablations list) or a .yaml file")
        extra = " | jobs=N" if name == "run" else ""
        command.add_argument(
            "words", nargs="*", default=[], metavar=f"scale=full|lite | runs=FOLDER{extra} | train.KEY=VALUE"
        )
        if name == "submit":
            command.add_argument("--profile", help="name in slurm/profiles, or a .yaml file")
            _consent(command)
        _dry_run(command)
    command = add("status", "What became of every run.")
    _chosen(command)
    command.add_argument("--watch", action="store_true", help="again every 5 seconds")
    command.add_argument("--json", action="store_true", help="one record a run")
    _chosen(add("why", "Why runs failed or were lost: their last error lines, grouped."))
    command = add("logs", "The end of a run's log, and where it lies.")
    command.add_argument("run", metavar="RUN", help="a run's name, or its beginning")
    command.add_argument("words", nargs="*", default=[], metavar="runs=FOLDER")
    command.add_argument("--lines", type=int, default=40)
    command = add("retry", "Run or submit again what failed or was lost.")
    _chosen(command)
    for state in ("failed", "lost", "cancelled", "stopped"):
        command.add_argument(f"--{state}", action="store_true", help=f"{state} runs only")
    command.add_argument(
        "--unknown", action="store_true", help="runs only whose Slurm is gone, or cannot be asked here"
    )
    command.add_argument("--profile", help="submit with this cluster profile, whatever was used before")
    _consent(command)
    _dry_run(command)
    command = add("cancel", "Take a sweep's jobs out of the queue; running ones save first.")
    command.add_argument("sweep", metavar="SWEEP")
    command.add_argument("words", nargs="*", default=[], metavar="RUN | runs=FOLDER")
    command.add_argument("--pending", action="store_true", help="only jobs that have not begun")
    command = add("gc", "Remove old checkpoints and the replay of finished runs.")
    _chosen(command)
    _consent(command)
    command = add("clean", "Remove all runs.")
    command.add_argument("words", nargs="*", default=[], metavar="runs=FOLDER")
    _consent(command)
    command = add("profile", "Write a first cluster profile from what Slurm says about this cluster.")
    command.add_argument("name", nargs="?", default="default", help="of the cluster profile (default: default)")

    asked = None
    try:
        asked = parser.parse_mixed(words)
        return _dispatch(asked)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # `python -m slurm status | head`
        sys.stderr.close()
        return 1 if asked and asked.command in ("run", "retry", "submit") else 0
    except OSError as error:
        print(f"error: {what_failed(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _chosen(command: argparse.ArgumentParser) -> None:
    command.add_argument("words", nargs="*", default=[], metavar="SWEEP | runs=FOLDER")


def _consent(command: argparse.ArgumentParser) -> None:
    command.add_argument("--yes", action="store_true", help="do not ask")


def _dry_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="say what would be run, and stop")


def _dispatch(a: argparse.Namespace) -> int:
    """Only what a command needs is imported: `status` must not wait for PyTorch."""
    if a.command in ("run", "submit"):
        options, words, rest = _options(a.words, ("scale", "runs", "jobs") if a.command == "run" else ("scale", "runs"))
        if rest:
            raise InputError(f"{rest[0]!r}: expected key=value, such as scale=lite or train.device=cpu")
        return _start(a, options, words)
    if a.command == "profile":
        from slurm import profile

        return profile.write_first(a.name)
    options, words, rest = _options([getattr(a, "sweep", ""), *getattr(a, "words", [])], ("runs",))
    # A sweep of one's own goes by its file's name without the ending.
    rest = [Path(word).stem if word.endswith((".yaml", ".yml")) else word for word in rest if word]
    if words:
        raise InputError(f"{words[0]}: expected a sweep, or runs=FOLDER")
    runs = Path(options.get("runs", "runs"))
    from slurm import housekeeping, reports

    if a.command == "status":
        return _status(runs, rest, a.watch, a.json)
    if not runs.is_dir():
        raise InputError(f"runs={runs}: no such folder")
    if a.command == "why":
        return reports.why(runs, rest)
    if a.command == "logs":
        return reports.logs(runs, a.run, a.lines)
    if a.command == "cancel":
        if not rest:
            raise InputError("cancel: expected a sweep")
        return housekeeping.cancel(runs, rest[0], rest[1:], a.pending)
    if a.command == "gc":
        return housekeeping.collect(runs, rest, a.yes)
    if a.command == "clean":
        if rest:
            raise InputError(f"clean {rest[0]}: it removes all runs of a folder; expected runs=FOLDER and nothing else")
        return housekeeping.clean(runs, a.yes)
    chosen = [s for s in ("failed", "lost", "cancelled", "stopped", "unknown") if getattr(a, s)]
    return _retry(runs, rest, chosen, a.profile, a.yes, a.dry_run)


def _options(words: Sequence[str], known: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Values of the known keys (in capitals, too: as make takes them), other key=value words, words without `=`."""
    options: dict[str, str] = {}
    others, rest = [], []
    for word in words:
        key, equals, value = word.partition("=") if re.match(r"[\w.]+=", word) else (word, "", "")
        key = key.lower() if key.lower() in known else key
        if equals and key in known:
            if key in options:
                raise InputError(f"{word}: given twice")
            if not value:
                raise InputError(f"{word}: expected a value")
            options[key] = value
        elif equals:
            others.append(word)
        else:
            rest.append(word)
    return options, others, rest


def _start(a: argparse.Namespace, options: dict[str, str], words: list[str]) -> int:
    if a.command == "submit":
        from slurm import queue

        queue.require()
        if not a.profile:
            raise InputError(
                "--profile: missing; python -m slurm profile writes a first one from what this cluster says"
            )
    import ablations
    from ablations.sweep_file import is_path
    from iqrl import config
    from slurm.remaining import execution_words

    sweep = ablations.load(a.sweep, options.get("scale"))
    how, execution = execution_words(words)
    runs = Path(options.get("runs", "runs"))
    config.runs_folder_writable(runs)
    _only_file_of_its_name(runs, sweep.name, a.sweep)
    # `retry` may stand in another folder. A link stays one: the sweep has its name.
    source = str(Path(a.sweep).absolute()) if is_path(a.sweep) else a.sweep
    if a.command == "submit":
        from slurm import submit

        return submit.submit(sweep, runs, a.profile, how, execution, dry_run=a.dry_run, yes=a.yes, source=source)
    from slurm import local

    return local.run(sweep, runs, options.get("jobs", "auto"), how, execution, dry_run=a.dry_run, source=source)


def _only_file_of_its_name(runs: Path, name: str, given: str) -> None:
    """A sweep's manifest and jobs go by its name.

    Raises:
        InputError: if the sweep called `name` in this folder came from another file, which is still there.
    """
    from ablations.sweep_file import find, path_of
    from slurm.submissions import submissions

    handed_out = submissions(runs, name)
    if not handed_out:
        return
    before = path_of(handed_out[-1].content.get("source", ""))
    if before.is_absolute() and before.is_file() and not before.samefile(find(given)):
        raise InputError(
            f"sweep={given}: {name} in {runs} is {before}; "
            "expected that file, one of another name, or another runs=FOLDER"
        )


def _status(runs: Path, sweeps: Sequence[str], watch: bool, machine: bool) -> int:
    from slurm import reports

    while True:
        text = reports.status(runs, sweeps, machine)
        if watch and sys.stdout.isatty():
            text = "\x1b[H\x1b[J" + text
        print(text, flush=True)
        if not watch:
            return 0
        time.sleep(5)


def _retry(
    runs: Path, sweeps: Sequence[str], chosen: Sequence[str], profile: str | None, yes: bool, dry_run: bool
) -> int:
    import ablations
    from slurm import queue, reports
    from slurm.remaining import execution_words
    from slurm.states import require_silence

    report = reports.Report(runs, sweeps)
    reclaim_unknown = "unknown" in chosen
    states = chosen or ("failed", "lost", "cancelled", "stopped")
    wanted = {s.run for s in report.states if s.state in states}
    if reclaim_unknown:
        if report.queue.error and queue.available():
            raise InputError(f"retry --unknown: Slurm cannot be asked what is queued: {report.queue.error}")
        require_silence("retry --unknown", [s for s in report.states if s.state == "unknown"])
    outcome = 0
    for name, (last, names) in report.by_sweep(wanted).items():
        wanted -= names
        content, scale = last.content if last else {}, report.known[name]["scale"]
        source = content.get("source", name.removesuffix(f"-{scale}"))  # without: copied from elsewhere
        sweep = ablations.load(source, scale)
        if gone := names - {run.name for run in sweep.unique_runs()}:
            print(
                f"{name}: {len(gone)} runs are of an earlier version of the sweep's file or its agent; "
                "the sweep's own command starts the new ones",
                flush=True,
            )
            outcome = outcome or 1
            continue
        how, execution = execution_words(content.get("words", []))
        same: dict[str, Any] = {"dry_run": dry_run, "only": names, "source": source, "reclaim_unknown": reclaim_unknown}
        gone_with_slurm = reclaim_unknown and not queue.available()  # the folder was moved to a machine without
        if profile or (last and last.kind == "slurm" and not gone_with_slurm):
            from slurm import submit

            queue.require()
            status = submit.submit(sweep, runs, profile or content["profile"], how, execution, yes=yes, **same)
        else:
            from slurm import local

            jobs = content.get("processes", content.get("places", "auto"))  # places: its former name
            status = local.run(sweep, runs, jobs, how, execution, **same)
            if status == INTERRUPTED:
                return status
        outcome = outcome or status
    if wanted:
        print(f"{len(wanted)} runs of no sweep: python -m iqrl resume {runs / min(wanted)} goes on with one")
    elif not any(s.state in states for s in report.states):
        print("nothing to retry" if report.manifests else "no sweeps here yet")
    return outcome


if __name__ == "__main__":
    sys.exit(main())
