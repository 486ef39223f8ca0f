"""Examinations in processes of their own: one that dies or hangs is a finding, and the next way gets a new one."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from iqrl.doctor.ways import Way
from iqrl.runs.code import ROOT

WAY_SECONDS = 1800.0  # longest that one way may take: on busy cores, compiling can take most of it
POLL_SECONDS = 0.5


class Stopped(Exception):
    """Whoever waits was asked to stop."""


@dataclass(frozen=True)
class Order:
    """What to examine.

    Attributes:
        layer: configuration of the run, as `config.resolve` takes it.
        device: cpu, cuda or cuda:N.
        threads: of tensors on a CPU, 0 for all.
        capacity: of the replay, transitions.
        seconds: to measure each way for; 0 to compare it alone.
        often: have agents that copy to their targets every so many updates do it every 6.
    """

    layer: Mapping[str, Any]
    device: str
    threads: int
    capacity: int
    seconds: float
    often: bool


def examined(
    order: Order, ways: Sequence[Way], stop: Callable[[], bool] = lambda: False, limit: float = WAY_SECONDS
) -> Iterator[tuple[Way, dict[str, Any]]]:
    """Each way and what was found, as it comes; see `examination.examine`.

    Raises:
        Stopped: when `stop` says so.
    """
    left = list(ways)
    while left:
        for way, result in _one_process(order, left, stop, limit):
            left.remove(way)
            yield way, result


def _one_process(
    order: Order, ways: Sequence[Way], stop: Callable[[], bool], limit: float
) -> Iterator[tuple[Way, dict[str, Any]]]:
    """Findings of one process; the last is its end, where it ends before it has examined all."""
    given = {**vars(order), "ways": [w.plain() for w in ways], "parent": os.getpid()}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "iqrl.doctor.examination"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
        )  # fmt: skip
        lines: queue.Queue[str] = queue.Queue()
        assert process.stdin is not None and process.stdout is not None
        threading.Thread(target=_hand_on, args=(process.stdout, lines), daemon=True).start()
        try:
            process.stdin.write(json.dumps(given) + "\n")
            process.stdin.flush()
            under_way, done = ways[0], 0
            while done < len(ways):
                line = _wait(lines, stop, limit)
                if line is None or not line:
                    process.kill() if line is None else None
                    ended = f"did not end in {limit:.0f} s" if line is None else _end(process.wait(), said)
                    yield under_way, {"wrong": ended}
                    return
                found = json.loads(line)
                if "begins" in found:
                    under_way = Way.from_plain(found["begins"])
                else:
                    done += 1
                    yield Way.from_plain(found.pop("way")), found
        except BrokenPipeError:
            yield ways[0], {"wrong": _end(process.wait(), said)}
        finally:
            process.kill()
            process.wait()


def _hand_on(stream: IO[str], lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _wait(lines: queue.Queue[str], stop: Callable[[], bool], limit: float) -> str | None:
    """The next line, "" at the process's end; None if none comes in time. Raises Stopped."""
    for _ in range(max(1, round(limit / POLL_SECONDS))):
        if stop():
            raise Stopped
        try:
            return lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
    return None


def _end(status: int, said: IO[str]) -> str:
    """How a process ended, in a line."""
    said.seek(0)
    last = next((line.strip() for line in reversed(said.read().splitlines()) if line.strip()), "")
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return f"its process {how}: {last}"[:300]
