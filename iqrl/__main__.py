"""Command line: python -m iqrl train | resume | evaluate | agents | tasks | config | doctor."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from iqrl.command_line import Parser
from iqrl.errors import BAD_INPUT, DISK, INTERRUPTED, InputError, disk_message, of_file, what_failed
from iqrl.processes import StopFlag

if TYPE_CHECKING:
    from iqrl.config import RunConfig
    from iqrl.runs.directory import RunDirectory
    from iqrl.training.trainer import Trainer

    Pack = Sequence[tuple[RunConfig, RunDirectory]]

EVALUATE_KEYS = ("train.device", "train.precision", "train.compile", "train.threads")

TRAIN_EXAMPLES = """examples:
  python -m iqrl train agent=iqrl task=walker-walk seeds=0..4 train.env_steps=100000
  python -m iqrl train agent=iqrl task=dog-run seeds=3,7 agent.horizon=3 agent.fsq_levels=[8,6,5] runs=/scratch/runs
  python -m iqrl train agent=td3 agent.profile=official task=cheetah-run preset=small
  python -m iqrl train agent=./my_agent.py task=cup-catch+action_noise=0.2
  python -m iqrl train config=study.yaml seeds=0

keys: agent, task, seeds, preset, runs, config, agent.*, train.*, eval.*  (python -m iqrl config shows them all)
The same command after an interruption goes on where it stopped; finished runs are left alone.
exit status: 0 all runs are complete, 1 some failed, 2 bad input, 74 a file could not be written, 75 interrupted (both
go on from the last checkpoint)"""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = Parser(
        prog="python -m iqrl",
        description="Train and look at agents on continuous control.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="python -m iqrl COMMAND --help shows examples.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, doc: str, epilog: str) -> Parser:
        return commands.add_parser(
            name, help=doc, description=doc, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    add("train", "Train runs, one a seed, or go on with them.", TRAIN_EXAMPLES).add_argument(
        "words", nargs="*", default=[], metavar="key=value"
    )
    resume = add(
        "resume",
        "Go on with existing run directories of equal configuration.",
        "examples:\n  python -m iqrl resume runs/iqrl-walker-walk-s0-3f2a91bc\n"
        "  python -m iqrl resume runs/iqrl-walker-walk-s*-* train.device=cuda",
    )
    resume.add_argument("words", nargs="+", metavar="RUN | train.key=value")
    evaluate = add(
        "evaluate",
        "Evaluate the newest checkpoint of a run, executed as training here would be.",
        "examples:\n  python -m iqrl evaluate runs/iqrl-walker-walk-s0-3f2a91bc --episodes 20\n"
        "  python -m iqrl evaluate runs/iqrl-walker-walk-s0-3f2a91bc --episodes 1 --video walk.mp4\n"
        "  python -m iqrl evaluate runs/sac_ae-walker-walk@pixels-s0-5d1c09aa --episodes 1 --reconstruction strip.png\n"
        "  python -m iqrl evaluate runs/iqrl-walker-walk-s0-3f2a91bc train.device=cpu train.threads=1\n"
        "  python -m iqrl evaluate runs/dcwm-walker-walk-s0-a0d08d8e agent.plan_samples=256",
    )
    evaluate.add_argument("run", type=Path)
    evaluate.add_argument(
        "words", nargs="*", default=[], metavar="key=value",
        help=f"{', '.join(EVALUATE_KEYS)}; agent.KEY, to act by another value than the run was trained with",
    )  # fmt: skip
    evaluate.add_argument("--episodes", type=int, default=10, help="how many (default 10)")
    evaluate.add_argument("--video", type=Path, help="film the first episode, in real time (needs a renderer)")
    evaluate.add_argument(
        "--reconstruction", type=Path, help="draw what the decoder gives back of images of the first episode (.png)"
    )
    add("agents", "List the agents.", "example:\n  python -m iqrl agents")
    add("tasks", "List the tasks.", "example:\n  python -m iqrl tasks")
    config = add(
        "config",
        "Print the resolved configuration, and where each value comes from.",
        "examples:\n  python -m iqrl config agent=iqrl task=dog-run\n"
        "  python -m iqrl config agent=td3 agent.profile=official",
    )
    config.add_argument("words", nargs="*", default=[], metavar="key=value")
    doctor = add(
        "doctor",
        "Check what this machine computes, and how fast: agents compiled, packed, as CUDA graphs, in low precision.",
        "examples:\n  python -m iqrl doctor\n  python -m iqrl doctor agents=iqrl,td3 device=cuda compile=all\n"
        "exit status: 0 all is well, 1 something is wrong, 2 bad input",
    )
    doctor.add_argument(
        "words", nargs="*", default=[],
        metavar="agents=A,B | device=auto|cpu|cuda[:N] | compile=auto|all|none|A,B | preset=P | seconds=S | out=FOLDER",
    )  # fmt: skip

    try:
        arguments = parser.parse_mixed(words)
        return {
            "train": lambda: train(arguments.words),
            "resume": lambda: resume_runs(arguments.words),
            "evaluate": lambda: evaluate_run(
                arguments.run, arguments.words, arguments.episodes, arguments.video, arguments.reconstruction
            ),
            "agents": show_agents,
            "tasks": show_tasks,
            "config": lambda: show_config(arguments.words),
            "doctor": lambda: run_doctor(arguments.words),
        }[arguments.command]()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # `python -m iqrl tasks | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        print(f"error: {what_failed(error)}", file=sys.stderr)
        return 1


def train(words: Sequence[str]) -> int:
    from iqrl import config

    runs, execution, folder = config.resolve(_layers(words))
    config.runs_folder_writable(folder)
    return _train(runs, execution, folder)


def resume_runs(words: Sequence[str]) -> int:
    from iqrl import config

    paths = [Path(w) for w in words if "=" not in w or os.path.isdir(w)]
    twice = [path for path in paths if sum(path.absolute() == other.absolute() for other in paths) > 1]
    if twice:
        raise InputError(f"{twice[0]}: named twice; expected each run once")
    runs = [config.load_run(path) for path in paths]
    if not runs:
        raise InputError("resume: expected at least one run directory")
    settings = [w for w in words if Path(w) not in paths]
    fixed = tuple(f"train.{f.name}" for f in dataclasses.fields(config.Train))
    strange = [w for w in settings if not w.startswith("train.") or w.startswith(fixed)]
    if strange:
        longer = strange[0].startswith("train.env_steps=")
        raise InputError(
            f"{strange[0]}: a run's configuration is fixed; expected how to execute it, such as train.device=cpu"
            + (" (a longer run starts anew: choose a budget that is enough, and stop it with Ctrl-C)" if longer else "")
        )
    layers = [("last session", last_execution(paths[0])), ("command line", config.parse_words(settings))]
    execution = config.resolve(layers)[1]
    folders = {path.resolve().parent for path in paths}
    kinds = {config.pack_key(run) for run in runs}
    if len(folders) > 1 or len(kinds) > 1:
        raise InputError(
            "resume: these runs differ in more than their seed, or lie in different folders; resume them apart"
        )
    return _train(runs, execution, folders.pop())


def last_execution(path: Path) -> dict[str, dict[str, object]]:
    """How the last session of a run was executed, as settings: going on likewise gives the same numbers, bitwise."""
    from iqrl.runs.reader import Run

    session = Run(path).last_session()
    try:
        settings = {"precision": session["precision"], "threads": session["threads"]}
        return {"train": {**settings, "compile": "on" if session["compile"] else "off"}}
    except KeyError:  # never started, or torn
        return {}


def _layers(words: Sequence[str]) -> list[tuple[str, dict[str, object]]]:
    from iqrl import config

    given = config.parse_words(words)
    file = given.pop("config", None)
    if not isinstance(file, str | None):
        raise InputError(f"config={file}: expected a file")
    layers = [(str(file), config.load_file(Path(file)))] if file is not None else []
    return [*layers, ("command line", given)]


def _train(runs: Sequence, how, folder: Path) -> int:  # type: ignore[no-untyped-def, type-arg]
    """Train runs of equal configuration, `how` being an Execution; see TRAIN_EXAMPLES for the exit status."""
    from iqrl.runs.directory import RunDirectory
    from iqrl.training import execution as executing
    from iqrl.training.transfer import inherited

    usual, stop = (
        executing.decide(how, runs[0]),
        StopFlag("SIGINT", "SIGTERM", "SIGUSR2", "SIGXCPU", at_once=_interrupt_at_once),
    )
    try:
        complete = [RunDirectory(folder / run.directory_name).done() for run in runs]
        new = [run for run, done in zip(runs, complete, strict=True) if not done]
        size, frames = executing.pack_size(how, runs[0], usual, len(new), folder) if new else (1, how.frames)
        if new:  # they differ in their seeds alone
            executing.check(new[0])
            if not executing.learns(new[0]):
                steps = f"train.env_steps={new[0].train.env_steps}"
                print(f"warning: {steps} ends within the warm-up: no update will be made", file=sys.stderr, flush=True)
        for run in new:  # a run that cannot start leaves no directory
            if not (folder / run.directory_name).exists():
                inherited(run, folder)
        groups: dict[str, list] = {}  # type: ignore[type-arg]
        for run, done in zip(runs, complete, strict=True):
            directory = RunDirectory.create(run, folder)
            if done:
                print(f"{directory.path}: complete", flush=True)
            else:
                precision = _precision(directory, usual) if how.precision == "auto" else usual.precision
                groups.setdefault(precision, []).append((run, directory))
        outcome = 0
        for precision, group in groups.items():
            alike = dataclasses.replace(how, precision=precision, frames=frames)
            status = _train_alike(group, alike, size, stop)
            if status == INTERRUPTED:
                print("interrupted; the same command goes on from here", flush=True)
                return status
            outcome = outcome or status
    except OSError as error:
        with contextlib.suppress(OSError):  # of a log on the same disk
            print(f"error: {disk_message(error, folder)}", file=sys.stderr)
        return DISK
    return outcome


def _precision(directory: RunDirectory, usual) -> str:  # type: ignore[no-untyped-def]
    """Of a run for which none is asked, `usual` being the machine's Plan.

    What has begun goes on in that of its last session: a requeued job may get another kind of device.
    """
    if not directory.checkpoints():  # there is nothing to go on from
        return str(usual.precision)
    begun = str(last_execution(directory.path).get("train", {}).get("precision", ""))
    possible = begun in ("float32", "bfloat16") or (begun == "tf32" and usual.device.type == "cuda")
    return begun if possible else str(usual.precision)


def _train_alike(todo: Pack, how, size: int, stop: StopFlag) -> int:  # type: ignore[no-untyped-def]
    """Train runs of equal configuration and precision in packs of up to `size`."""
    import torch

    from iqrl.doctor.verdicts import trusted
    from iqrl.environments.environment_pool import WorkerError
    from iqrl.training import execution as executing
    from iqrl.training.trainer import Trainer

    size = min(size, len(todo))
    plan = trusted(executing.decide(how, todo[0][0]), todo[0][0], size, _say, stop, how.doctor == "auto")
    watched = _say if sys.stdout.isatty() else lambda line: None  # in a log evaluations do
    failed = 0
    print(f"{todo[0][0].agent.name} {todo[0][0].task}: {len(todo)} runs in packs of {size}, on {plan}", flush=True)
    for i in range(0, len(todo), size):
        pack = todo[i : i + size]
        for _, directory in pack:
            directory.claim()
        trainer = None  # of the pack before: this one wants its memory
        gc.collect()
        torch.cuda.empty_cache()
        outcome = "done"
        try:
            configs, directories = [r for r, _ in pack], [d for _, d in pack]
            trainer = Trainer(configs, directories, plan, stop=stop, announce=_say, watched=watched)
            outcome = trainer.run()
        except (OSError, InputError):
            raise
        except WorkerError as error:
            _fail(trainer, pack, f"environment workers: {error}")
        except Exception as error:  # of the whole pack, in an update say; to start again would repeat it
            _fail(trainer, pack, of_file(error, pack[0][0].source), traceback.format_exc())
        failed += sum(not d.done() for _, d in pack) if outcome == "done" else 0
        if outcome == "interrupted":
            return INTERRUPTED
    return 1 if failed else 0


def _fail(trainer: Trainer | None, pack: Pack, reason: str, trace: str = "") -> None:
    """Mark the runs of a pack that have not ended as failed: all of them if there is no trainer yet."""
    from iqrl.runs.lease import LeaseLost

    if trainer is not None:
        trainer.fail_all(reason, trace)
        return
    for _, directory in pack:
        with contextlib.suppress(LeaseLost):
            directory.fail(0, reason, trace)
        directory.release()
    first = pack[0][0]
    _say(f"{first.agent.name} {first.task}  FAILED: {reason}")


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt_at_once() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def evaluate_run(
    path: Path, words: Sequence[str], episodes: int, video: Path | None, reconstruction: Path | None
) -> int:
    if episodes < 1:
        raise InputError(f"--episodes {episodes}: expected at least 1")
    for word in words:
        key = word.partition("=")[0]
        if key not in EVALUATE_KEYS and not key.startswith("agent."):
            expected = f"{', '.join(EVALUATE_KEYS)} or agent.KEY"
            raise InputError(f"{word}: expected one run, and how to execute it: {expected}")
        if key in ("agent.name", "agent.profile"):
            raise InputError(f"{word}: cannot change in a finished run; expected single keys of its agent")
    for option, file, kinds in (("--video", video, (".mp4", ".gif")), ("--reconstruction", reconstruction, (".png",))):
        if file is not None and file.suffix not in kinds:
            raise InputError(f"{option} {file}: expected a name ending in {' or '.join(kinds)}")
        if file is not None and not file.parent.is_dir():
            raise InputError(f"{option} {file}: there is no folder {file.parent}")
    from iqrl import config
    from iqrl.training.checkpoint_evaluation import evaluate_checkpoint

    given = config.parse_words(words)
    changes = {key: values for key, values in given.items() if key == "agent"}
    run = config.load_run(path, changes)
    execution = config.resolve([("command line", {k: v for k, v in given.items() if k not in changes})])[1]
    names = [task.name for task in run.spec.tasks]  # of several tasks, which take turns
    returns: list[float] = []
    successes: list[bool] = []
    for value, success in evaluate_checkpoint(run, path, execution, episodes, video, reconstruction):
        said = "" if success is None else "  success" if success else "  no success"
        task = run.spec.task_name(len(returns))
        said += f"  {task}" if task else ""
        print(f"episode {len(returns):3d}  return {value:8.2f}{said}", flush=True)
        returns.append(value)
        successes += [] if success is None else [success]
    for n, name in enumerate(names[: len(returns)]):
        print(f"mean {fmean(returns[n :: len(names)]):.2f}  {name}")
    rate = f"  success {fmean(successes):.0%}" if successes else ""
    changed = "".join(f"  {word}" for word in words if word.startswith("agent."))
    print(f"mean {fmean(returns):.2f}  standard deviation {pstdev(returns):.2f}{rate}  episodes {episodes}{changed}")
    return 0


def show_agents() -> int:
    from iqrl.agents import AGENTS, agent_class

    for name, module in AGENTS.items():
        cls, _ = agent_class(name)
        doc = (sys.modules[module].__doc__ or "").strip().splitlines()[0]
        profiles = f"  profiles: {', '.join(cls.profiles)}" if cls.profiles else ""
        print(f"{name:8s} {doc}{profiles}")
    return 0


def show_tasks() -> int:
    from iqrl.environments import tasks
    from iqrl.environments.suites import SUITES, suite_of

    for suite in SUITES.values():
        listed = [name for name in tasks.names() if suite_of(name) is suite]
        print(f"{suite.title}: {suite.missing() or 'installed'}")
        for name in listed:
            print(f"  {name:28s} {tasks.parse(name).group}")
    print("  gym:ID, such as gym:HalfCheetah-v4; gym:MODULE:ID of one that a module of your own registers\n")
    print("task=[TASK,TASK] is one agent on several tasks of one suite, seen as states.")
    print("Add +action_noise=S, +obs_noise=S or +sticky=P to make a task stochastic; TASK@pixels is observed as images")
    print("(docs/tasks.md).")
    return 0


def run_doctor(words: Sequence[str]) -> int:
    from iqrl.doctor.command import run

    return run(words)


def show_config(words: Sequence[str]) -> int:
    import dataclasses

    from iqrl import config

    runs, execution, folder = config.resolve(_layers(words))
    run = runs[0]
    print(
        f"agent: {run.agent.name}\ntask: {run.task}\nseeds: {[r.seed for r in runs]}\n"
        f"preset: {run.preset}\nruns: {folder}"
    )
    for prefix, part in (("agent", run.settings), ("train", run.train), ("train", execution), ("eval", run.evaluate)):
        for field in dataclasses.fields(part):
            key = f"{prefix}.{field.name}"
            value = getattr(part, field.name)
            print(f"{key} = {value}".ljust(42) + f" [{run.origins[key]}]".ljust(22) + f" {field.metadata['doc']}")
    print(f"run directory: {run.directory_name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
