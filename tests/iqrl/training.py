"""Short real trainings in processes of their own, and what they leave on disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
CLOCKLESS = ("evaluations.csv", "training.csv", "latents.csv")

COMMON = [
    "task=cartpole-balance",
    "preset=tiny",
    "train.env_steps=3000",
    "eval.every=2000",
    "eval.episodes=1",
    "train.compile=off",
    "train.threads=1",
    "train.workers=0",
    "train.precision=float32",
    "train.checkpoint_seconds=0.2",
]
IQRL = ["agent=iqrl", "agent.warmup_episodes=1", "agent.utd=0.2", *COMMON]
TD3 = ["agent=td3", "agent.warmup_decisions=500", "agent.utd=0.2", *COMMON]
# Updates within episodes
TD3_DECISION = ["agent=td3", "agent.profile=official", "agent.warmup_decisions=1200", *COMMON]

# Forks of a process that has imported everything: real processes, without seconds of imports each.
forks = multiprocessing.get_context("forkserver")
preload = ["torch", "iqrl.__main__", "iqrl.training.trainer", "iqrl.iqrl", "baselines.td3", "dm_control.suite"]
forks.set_forkserver_preload(preload)


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "iqrl", *words]


def start(words: list[str]) -> subprocess.Popen[str]:
    """`python -m iqrl ...`"""
    return subprocess.Popen(command(words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(words: list[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(words), cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def _child(words: list[str], output: str, prepare: Callable[[], None] | None) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    from iqrl.__main__ import main

    sys.exit(main(words))


def fork(words: list[str], output: Path, prepare: Callable[[], None] | None = None) -> Any:
    """The same in a fork; its output goes to a file."""
    process = forks.Process(target=_child, args=(words, str(output), prepare))
    process.start()
    return process


def finish(words: list[str], output: Path, status: int = 0, prepare: Callable[[], None] | None = None) -> str:
    """Run to the end; what it said."""
    process = fork(words, output, prepare)
    process.join(300)
    said = output.read_text()
    assert process.exitcode == status, said
    assert "Traceback" not in said, said
    return said


def wait_for(condition: Callable[[], bool], process: Any = None, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def run_directories(runs: Path) -> list[Path]:
    return sorted(p for p in runs.iterdir() if (p / "config.yaml").is_file())


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint, which is the final one in a finished run."""
    newest = max((directory / "checkpoint").glob("*.pt"))
    state: dict[str, torch.Tensor] = torch.load(newest, weights_only=True)["engine"]["state"]
    return state


def timed_steps(directory: Path) -> list[str]:
    """The first column of timing.csv; the others are clocks."""
    return [line.split(",")[0] for line in (directory / "timing.csv").read_text().splitlines()]


def assert_same_runs(runs: Path, expected: Path) -> None:
    """Equal to the last bit: the CSV files without clocks, and the final weights, targets and optimisers."""
    assert [p.name for p in run_directories(runs)] == [p.name for p in run_directories(expected)]
    for directory in run_directories(runs):
        other = expected / directory.name
        assert (directory / "DONE").is_file() and not (directory / "FAILED").exists()
        for name in CLOCKLESS:
            assert (directory / name).read_bytes() == (other / name).read_bytes(), (directory.name, name)
        assert timed_steps(directory) == timed_steps(other)
        ours, theirs = weights(directory), weights(other)
        assert ours.keys() == theirs.keys()
        for k in ours:
            assert torch.equal(ours[k], theirs[k]), (directory.name, k)
        left = [p.name for p in directory.rglob("*") if p.name.startswith(".")]
        assert not left, left
    assert not [p for p in runs.iterdir() if p.name.startswith(".")]


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join() if hasattr(process, "join") else process.wait()


class StopAt:
    """Makes a training in another process stop itself, as by a signal, when it has made so many decisions."""

    def __init__(self, decisions: int) -> None:
        self.decisions = decisions

    def __call__(self) -> None:
        from iqrl.training.trainer import Trainer

        inner = Trainer._loop

        def loop(trainer: Trainer) -> str:
            trainer.stop = lambda: trainer.pack.progress[0].decisions >= self.decisions
            return inner(trainer)

        Trainer._loop = loop  # type: ignore[method-assign]


def assert_stops_change_nothing(words: list[str], stops: Sequence[int], folder: Path) -> tuple[Path, str]:
    """A run that is stopped at these decisions, and gone on with, ends as one that was not.

    Returns: the run directory of the latter, and what that command said.
    """
    said = finish([*words, f"runs={folder / 'whole'}"], folder / "output")
    for decisions in stops:
        finish([*words, f"runs={folder / 'parts'}"], folder / "output", 75, prepare=StopAt(decisions))
    finish([*words, f"runs={folder / 'parts'}"], folder / "output")
    assert_same_runs(folder / "parts", folder / "whole")
    (run,) = run_directories(folder / "whole")
    return run, said
