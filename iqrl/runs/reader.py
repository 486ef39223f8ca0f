"""What a run's folder says about its run: the one reading of its files, for whoever asks.

It loads neither PyTorch nor pandas: `status` looks at ten thousand runs, and figures are made on a laptop.
`iqrl.runs.directory` writes these files.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqrl.runs import lease
from iqrl.runs.files import read_json, read_mapping, size, written
from iqrl.runs.tables import Damaged, Rows, read_rows


@dataclass(frozen=True)
class RunState:
    """What became of a run, and how far it is.

    Attributes:
        state:
            done      DONE is whole and lists its files, and each is exactly as long as it says
            training  by a process that lives on this host
            failed    FAILED is there, of the newest attempt as far as one can tell here
            torn      DONE is there but does not fit, or a file cannot be read; `reason` names it
            stopped   its writer left in order
            begun     its writer is on another host, or was killed
            new       nobody has claimed it
        env_step, env_steps: reached, and the budget where known.
        speed: env steps a second that its last writer reported; 0 until it has, or once it has stopped.
        doing: what it does before its speed tells how long it will take ("warm-up", "compiling ..."), or "".
        last_return: of the last training episode.
        wall_seconds: of training so far.
        age: seconds since it last said something, by the file system's clock; None if never.
        reason: why it is failed or torn.
        writer: whoever claimed it last: {"host", "pid", "started", "job_id"}, or empty.
    """

    state: str
    env_step: int = 0
    env_steps: int = 0
    speed: float = 0.0
    doing: str = ""
    last_return: float | None = None
    wall_seconds: float = 0.0
    age: float | None = None
    reason: str = ""
    writer: Mapping[str, Any] | None = None


def complete(run: Path | str) -> bool:
    """Whether a run is done.

    Raises:
        OSError: a file is there and cannot be read.
    """
    return _completeness(run)[0]


def _completeness(run: Path | str) -> tuple[bool, str, Mapping[str, Any]]:
    """Whether a run is complete; what is wrong with a DONE that does not show it; and what DONE says."""
    marker = read_json(f"{run}/DONE")
    if not isinstance(marker, dict):
        return False, "" if size(f"{run}/DONE") < 0 else "DONE is damaged", {}
    sizes = marker.get("files")
    if not isinstance(sizes, dict) or not sizes:
        return False, "DONE lists no files", marker
    for name, promised in sizes.items():
        if (found := size(f"{run}/{name}")) != promised:
            return False, f"{name} has {max(found, 0)} bytes where DONE says {promised}", marker
    return True, "", marker


def ending(run: Path | str, since: float = 0.0) -> tuple[str, str]:
    """(state, reason) of a run by what ends one: done, failed, torn; "" if none did, or if it is being trained again.

    Raises:
        OSError: a file is there and cannot be read.
    """
    return _ending(run, since)[:2]


def _ending(run: Path | str, since: float) -> tuple[str, str, Mapping[str, Any]]:
    """The same, and what the DONE or FAILED of a run that is done or failed says."""
    whole, wrong, marker = _completeness(run)
    if whole:
        return "done", "", marker
    failed = failed_since(run, since)
    if not failed and not wrong:
        return "", "", {}
    token, writer = lease.newest_writer(run)
    if lease.alive(writer) and not failed_since(run, lease.claimed(run, token) or 0.0):
        return "", "", {}  # a living process has claimed it since
    return ("failed", failure(run), read_mapping(f"{run}/FAILED")) if failed else ("torn", wrong, {})


def look(run: Path | str, now: float, since: float = 0.0) -> RunState:
    """Look at a run's folder; one that does not exist is a new run. Never raises.

    Args:
        now: time.time(), once for a whole look-around.
        since: when it was handed out last: a FAILED from before is of another attempt, and does not count.
    """
    base = os.fspath(run)
    try:
        return _look(base, now, since)
    except OSError as error:
        return RunState("torn", reason=f"{error.filename or base}: {error.strerror or error}")


def _look(base: str, now: float, since: float) -> RunState:
    state, reason, marker = _ending(base, since)
    progress = read_mapping(f"{base}/progress.json")
    said: dict[str, Any] = {
        "env_step": progress.get("env_step", 0),
        "env_steps": progress.get("env_steps", 0),
        "last_return": progress.get("last_return"),
        "wall_seconds": progress.get("wall_seconds", 0.0),
    }
    said["env_step"] = marker.get("env_step", said["env_step"])
    if state == "done":
        return RunState("done", **said)
    token, writer = lease.newest_writer(base)
    if state == "failed":
        return RunState("failed", reason=reason, writer=writer, **said)
    reported, claimed = written(f"{base}/progress.json"), lease.claimed(base, token)  # by one clock
    age = None if reported is None else max(0.0, now - reported)
    fresh = reported is not None and claimed is not None and reported >= claimed
    speed = progress.get("env_steps_per_second", 0.0) if fresh else 0.0
    doing = str(progress.get("doing", "")) if fresh else ""
    if lease.alive(writer):
        return RunState("training", speed=speed, doing=doing, age=age, writer=writer, **said)
    if state == "torn":
        return RunState("torn", reason=reason, writer=writer, **said)
    if not token:
        return RunState("new")
    if writer.get("released"):
        return RunState("stopped", age=age, writer=writer, **said)
    return RunState("begun", speed=speed, doing=doing, age=age, writer=writer, **said)


def failure(run: Path | str) -> str:
    """Why a run failed, in one line; "" if it has no FAILED."""
    marker = read_json(f"{run}/FAILED")
    if isinstance(marker, dict):
        return str(marker.get("reason", "unknown")).split("\n")[0]
    return "" if size(f"{run}/FAILED") < 0 else "FAILED is damaged"


def failed_since(run: Path | str, since: float) -> bool:
    """Whether a run's FAILED is there and not from before `since`."""
    when = written(f"{run}/FAILED")
    return when is not None and when >= since


def taken_since(run: Path | str, since: float, job: str) -> bool:
    """Whether another Slurm job than `job` was the last to claim a run, after `since`."""
    token, writer = lease.newest_writer(run)
    claimed = lease.claimed(run, token)
    return writer.get("job_id") not in (None, job) and claimed is not None and claimed >= since


def checkpoints(run: Path | str) -> list[tuple[tuple[int, int], Path]]:
    """Keys (decisions, updates) and files of the checkpoints there are, newest first; not yet checked."""
    folder, found = Path(run, "checkpoint"), []
    with contextlib.suppress(FileNotFoundError):  # another error is no sign that there are none
        for name in os.listdir(folder):
            match = re.fullmatch(r"(\d+)-(\d+)-[0-9a-f]{8}\.pt", name)
            if match:
                found.append(((int(match[1]), int(match[2])), folder / name))
    return sorted(found, reverse=True)


def progress(run: Path | str) -> tuple[object, ...]:
    """Changes whenever a run gets further: its checkpoints and how it ended."""
    return (*checkpoints(run), *(name for name in ("DONE", "FAILED") if written(f"{run}/{name}")))


class Run:
    """The parts of a run that describe it and its results.

    Args:
        path: its folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = os.fspath(path)
        self.name = os.path.basename(self.path)

    def config(self) -> dict[str, Any]:
        """The resolved configuration.

        Raises:
            Damaged: there is none, or it is no YAML mapping.
        """
        import yaml  # late: `status` reads none

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same safe loader, in C where built so
        try:
            with open(f"{self.path}/config.yaml", "rb") as file:
                config = yaml.load(file, Loader=loader)
        except FileNotFoundError:
            raise Damaged("config.yaml is missing") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise Damaged(f"config.yaml is not YAML: {str(error).splitlines()[0]}") from None
        if not isinstance(config, dict):
            raise Damaged("config.yaml lacks a usable mapping of keys")
        return config

    def provenance(self) -> dict[str, Any]:
        """Where and how it ran; its "sessions" are a list of mappings.

        Raises:
            Damaged: there is none, or it is torn.
        """
        content = read_json(f"{self.path}/provenance.json")
        if content is None and size(f"{self.path}/provenance.json") < 0:
            raise Damaged("provenance.json is missing")
        sessions = (content.get("sessions") or []) if isinstance(content, dict) else None
        if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
            raise Damaged("provenance.json is damaged")
        return {**content, "sessions": sessions}

    def rows(self, table: str) -> Rows:
        """The complete rows of one of its CSV files, such as "evaluations.csv".

        Raises:
            Damaged: a row has other fields than the header.
        """
        return read_rows(f"{self.path}/{table}")

    def ending(self) -> tuple[str, str]:
        """(state, reason) as `ending` gives them."""
        return ending(self.path)

    def last_session(self) -> dict[str, Any]:
        """What the newest session said of itself; empty before the first, and if the record is torn."""
        with contextlib.suppress(Damaged):
            sessions = self.provenance()["sessions"]
            return dict(sessions[-1]) if sessions else {}
        return {}
