"""What a run directory says about its run, without loading PyTorch: `status` reads ten thousand of them.

iqrl/runs/directory.py writes these files and documents them.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqrl import processes

HERE = socket.gethostname()


@dataclass(frozen=True)
class RunFiles:
    """A run as its own files show it.

    Attributes:
        state: done, failed, training (by a living process of this host), stopped (its writer left in order),
            begun (its writer is on another host, or was killed), or new.
        env_step, env_steps: reached, and the budget where known.
        speed: env steps a second that its last writer reported; 0 until it has, or once it has stopped.
        last_return: of the last training episode.
        wall_seconds: of training so far.
        age: seconds since it last said something, by the file system's clock; None if never.
        writer: whoever claimed it last: {"host", "pid", "started", "job_id"}, or empty.
    """

    state: str
    env_step: int = 0
    env_steps: int = 0
    speed: float = 0.0
    last_return: float | None = None
    wall_seconds: float = 0.0
    age: float | None = None
    reason: str = ""
    writer: dict[str, Any] | None = None


def read(directory: Path | str, now: float, since: float = 0.0) -> RunFiles:
    """Look at a run directory; one that does not exist is a new run.

    Args:
        now: time.time(), once for a whole look-around.
        since: when it was handed out last: a FAILED from before is of another attempt, and does not count.
    """
    base = os.fspath(directory)
    done = _json(f"{base}/DONE")
    progress = _json(f"{base}/progress.json") or {}
    said: dict[str, Any] = {
        "env_step": progress.get("env_step", 0),
        "env_steps": progress.get("env_steps", 0),
        "last_return": progress.get("last_return"),
        "wall_seconds": progress.get("wall_seconds", 0.0),
    }
    if done and all(_size(f"{base}/{name}") == size for name, size in done.get("files", {}).items()):
        return RunFiles("done", **{**said, "env_step": done.get("env_step", 0)})
    token, writer = newest_writer(base)
    reported, claimed = _time(f"{base}/progress.json"), _claimed(base, token)  # by one clock
    age = None if reported is None else max(0.0, now - reported)
    fresh = reported is not None and claimed is not None and reported >= claimed
    speed = progress.get("env_steps_per_second", 0.0) if fresh else 0.0
    failed = _json(f"{base}/FAILED") if failed_since(base, since) else None
    ended = failed is not None and failed_since(base, claimed or 0.0)  # though its process trains others of its pack
    if writer and not writer.get("released") and alive(writer) and not ended:
        return RunFiles("training", speed=speed, age=age, writer=writer, **said)
    if failed is not None:
        said["env_step"] = failed.get("env_step", said["env_step"])
        return RunFiles("failed", reason=str(failed.get("reason", "")), writer=writer, **said)
    if done:
        return RunFiles("begun", reason="DONE is there, but files are not as long as it says", writer=writer, **said)
    if not token:
        return RunFiles("new")
    if writer.get("released"):
        return RunFiles("stopped", age=age, writer=writer, **said)
    return RunFiles("begun", speed=speed, age=age, writer=writer, **said)


def failed_since(directory: Path | str, since: float) -> bool:
    """Whether a run's FAILED is there and not from before `since`."""
    when = _time(f"{directory}/FAILED")
    return when is not None and when >= since


def taken_since(directory: Path | str, since: float, job: str) -> bool:
    """Whether another Slurm job than `job` was the last to claim a run, after `since`."""
    token, writer = newest_writer(directory)
    claimed = _claimed(directory, token)
    return writer.get("job_id") not in (None, job) and claimed is not None and claimed >= since


def written(file: Path) -> float:
    """When a file was last written, by the file system's clock; 0 if it is not there."""
    return _time(str(file)) or 0.0


def newest_writer(base: Path | str) -> tuple[int, dict[str, Any]]:
    """The lease's newest token, and who holds it; (0, {}) before the first."""
    try:
        token = max((int(n) for n in os.listdir(f"{base}/lease") if n.isdigit()), default=0)
    except OSError:
        return 0, {}
    return token, _json(f"{base}/lease/{token:08d}") or {} if token else {}


def alive(writer: dict[str, Any]) -> bool:
    """Whether a recorded process lives. False on another host: unknown."""
    pid, started = int(writer.get("pid", -1)), writer.get("started")
    return writer.get("host") == HERE and started is not None and processes.lives(pid, started)


def checkpoints(directory: Path) -> list[str]:
    """Names of its checkpoints, oldest first."""
    try:
        return sorted(n for n in os.listdir(directory / "checkpoint") if n.endswith(".pt"))
    except OSError:
        return []


def marks(directory: Path) -> tuple[str, ...]:
    """Changes whenever a run gets further: its checkpoints and how it ended."""
    ended = [name for name in ("DONE", "FAILED") if (directory / name).exists()]
    return (*checkpoints(directory), *ended)


def last_line(log: Path) -> str:
    """The last line of a log that says something, "" if there is none; srun's own if there is no other."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    spoken = [line.strip() for line in lines if line.strip()]
    return next((line for line in reversed(spoken) if not line.startswith("srun: ")), spoken[-1] if spoken else "")


def _claimed(directory: Path | str, token: int) -> float | None:
    """When a lease was claimed: releasing it leaves its time as it is."""
    return _time(f"{directory}/lease/{token:08d}")


def _json(path: str) -> dict[str, Any] | None:
    try:
        with open(path) as file:
            content = json.load(file)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _time(path: str) -> float | None:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return None
