"""A run's directory: its files, its checkpoints, its replay log, and the right to write them.

    config.yaml provenance.json progress.json
    evaluations.csv training.csv latents.csv timing.csv
    checkpoint/  replay/  lease/
    DONE | FAILED

Whoever trains a run first claims its lease, which gives a token larger than any before. From then on a
former writer can do no harm, even one that does not know yet: the CSV files have been replaced by copies
(what it still appends goes to files without a name), its replay goes to segments that nobody lists, and its
checkpoints can only describe states that this deterministic run passes through anyway. No clock is read and
no file is locked, so this holds on network file systems too.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from iqrl import processes
from iqrl.config import RunConfig
from iqrl.errors import InputError

EVALUATION_COLUMNS = ["env_step", "episode", "episode_return", "length"]
TRAINING_COLUMNS = ["env_step", "episode", "updates", "episode_return"]
TIMING_COLUMNS = ["env_step", "wall_seconds", "updates"]
LATENT_COLUMNS = [
    "env_step",
    "samples",
    "width",
    "rank_0.1",
    "rank_0.01",
    "rank_0.001",
    "condition_number",
    "active_codebook_mean",
    "active_codebook_min",
    "active_codebook_max",
    "dormant_percent",
    "dormant_count",
]
TABLES = {
    "evaluations.csv": EVALUATION_COLUMNS,
    "training.csv": TRAINING_COLUMNS,
    "latents.csv": LATENT_COLUMNS,
    "timing.csv": TIMING_COLUMNS,
}
KEPT_CHECKPOINTS = 2
ROOT = Path(__file__).resolve().parents[2]  # of the code that runs


class LeaseLost(Exception):
    """Another process has taken this run over; this one must not write any more."""


class RunDirectory:
    """One run's files.

    Args:
        path: the directory; `create` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = 0
        self.tables: dict[str, Table] = {}
        self.replay: ReplayLog | None = None
        self.in_session = False

    @classmethod
    def create(cls, config: RunConfig, runs: Path) -> RunDirectory:
        """The directory of a run below `runs`, made at once with its configuration if it is new.

        Raises:
            InputError: if something else has its name.
        """
        path = runs / config.directory_name
        text = yaml.safe_dump(config.resolved(), sort_keys=False, default_flow_style=None, width=100)
        if not (path / "config.yaml").is_file():
            runs.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=runs))
            try:
                os.chmod(fresh, 0o777 & ~_umask())
                (fresh / "config.yaml").write_text(text)
                provenance = {"identity": config.identity, "created": now(), "sessions": []}
                (fresh / "provenance.json").write_text(json.dumps(provenance, indent=1))
                with contextlib.suppress(OSError):  # another process was first
                    fresh.rename(path)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
            if not (path / "config.yaml").is_file():
                raise InputError(f"{path}: is there, but is no run directory; move it away")
        elif _torn_yaml(path / "config.yaml", text):  # its name says what it held
            warn(f"{path / 'config.yaml'}: damaged; written anew")
            replace_text(path / "config.yaml", text)
        return cls(path)

    # --- what became of it

    def done(self) -> bool:
        """Whether the run is complete: DONE is there, and every file is as long as it says."""
        marker = read_json(self.path / "DONE")
        sizes = marker.get("files") if isinstance(marker, dict) else None
        if not isinstance(sizes, dict) or not sizes:
            return False
        return all(_size(self.path / name) == size for name, size in sizes.items())

    def failure(self) -> str | None:
        """The reason why the run failed, or None."""
        marker = read_json(self.path / "FAILED")
        return str(marker.get("reason", "unknown")) if isinstance(marker, dict) else None

    # --- the right to write

    def writer(self) -> dict[str, Any] | None:
        """Who claimed the lease last: {"host", "pid", "started", "job_id"}."""
        token = self._newest_token()
        record = read_json(self.path / "lease" / f"{token:08d}") if token else None
        return record if isinstance(record, dict) else None

    def writer_alive(self) -> bool:
        """Whether the last writer is a process that lives on this host. False when it is elsewhere: unknown."""
        record = self.writer()
        if record is None or record.get("host") != socket.gethostname() or record.get("released"):
            return False
        return processes.lives(int(record["pid"]), record.get("started"))

    def claim(self) -> None:
        """Become the run's only writer.

        Inside a Slurm job, the queue has said that it is this process's turn: whoever still writes was left
        behind on a node that Slurm lost, and is fenced off. Elsewhere two writers are a mistake.

        Raises:
            InputError: if a living process on this host is the writer, and this is no Slurm job.
        """
        myself = self._myself()
        if myself["job_id"] is None and self.writer_alive() and self.writer() != myself:
            raise InputError(f"{self.path}: process {(self.writer() or {}).get('pid')} is training this run")
        folder = self.path / "lease"
        folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".claim-", delete=False) as file:
            json.dump(self._myself(), file)
        os.chmod(file.name, 0o666 & ~_umask())  # others of a shared folder read who writes
        try:
            while True:
                token = max(self._newest_token(), self._newest_kept()) + 1
                with contextlib.suppress(FileExistsError):
                    os.link(file.name, folder / f"{token:08d}")
                    break
        finally:
            os.unlink(file.name)
        self.token = token
        for old in folder.glob("[0-9]*"):
            if int(old.name) < token - 1:
                old.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises LeaseLost if another process has claimed the run since."""
        if self._newest_token() != self.token:
            raise LeaseLost(f"{self.path.name}: another process has taken this run over")

    def release(self) -> None:
        """Say that this process has stopped writing. The lease stays as old as the claim."""
        for table in self.tables.values():
            table.close()
        if self.replay is not None:
            self.replay.close()
        if self.token and self._newest_token() == self.token:
            lease = self.path / "lease" / f"{self.token:08d}"
            with contextlib.suppress(OSError):
                claimed = lease.stat().st_mtime_ns
                replace_text(lease, json.dumps({**self._myself(), "released": True}))
                os.utime(lease, ns=(claimed, claimed))

    def _newest_token(self) -> int:
        try:
            names = os.listdir(self.path / "lease")
        except FileNotFoundError:
            return 0
        return max((int(n) for n in names if n.isdigit()), default=0)

    def _newest_kept(self) -> int:
        """The newest token in the name of a replay segment or a folder of lost files, should lease/ be gone."""
        kept = [path.stem for path in (self.path / "replay").glob("*.f32")]
        kept += [path.name.removeprefix("lost-") for path in self.path.glob("lost-*")]
        return max((int(name) for name in kept if name.isdigit()), default=0)

    @staticmethod
    def _myself() -> dict[str, Any]:
        pid, job = os.getpid(), processes.job_id() or None
        return {"host": socket.gethostname(), "pid": pid, "started": processes.started(pid), "job_id": job}

    # --- writing

    def open(self, counts: Mapping[str, int], replay_segments: Sequence[Sequence[Any]], row_width: int) -> None:
        """Open every file for appending after the rows that a checkpoint knows of; whatever follows them is dropped."""
        self.check()
        (self.path / "FAILED").unlink(missing_ok=True)
        (self.path / "DONE").unlink(missing_ok=True)
        for name, columns in TABLES.items():
            self.tables[name] = Table(self.path / name, columns, counts.get(name, 0))
        self.replay = ReplayLog(self.path / "replay", self.token, row_width, replay_segments)

    def append(self, table: str, row: Mapping[str, Any]) -> None:
        """Append a row to one of the CSV files."""
        self.check()
        self.tables[table].append(row)

    def save(self, key: tuple[int, int], content: Mapping[str, Any]) -> None:
        """Make a checkpoint durable, then drop all but this one and the one before it.

        Args:
            key: (decisions, updates), which orders checkpoints.
            content: plain data and tensors.
        """
        self.check()
        assert self.replay is not None
        for table in self.tables.values():
            table.sync()
        self.replay.sync()
        rows = {name: table.rows for name, table in self.tables.items()}
        buffer = io.BytesIO()
        torch.save({**content, "rows": rows, "replay": self.replay.segments}, buffer)
        data = buffer.getvalue()
        folder = self.path / "checkpoint"
        folder.mkdir(exist_ok=True)
        temporary = folder / f".writing-{self.token}"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.check()
            newest = temporary.rename(folder / f"{key[0]:010d}-{key[1]:010d}-{zlib.crc32(data):08x}.pt")
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(folder)
        # Others with this key are from before an evaluation or a row; larger keys are of a past that could not be
        # resumed, and would outlive all that comes from here.
        kept = [newest, *[old for other, old in self.checkpoints() if other < key][: KEPT_CHECKPOINTS - 1]]
        for _, old in self.checkpoints():
            if old not in kept:
                old.unlink(missing_ok=True)

    def checkpoints(self) -> list[tuple[tuple[int, int], Path]]:
        """Keys and files of the checkpoints there are, newest first; not yet checked."""
        folder, found = self.path / "checkpoint", []
        with contextlib.suppress(FileNotFoundError):  # another error is no sign that there are none
            for name in os.listdir(folder):
                match = re.fullmatch(r"(\d+)-(\d+)-[0-9a-f]{8}\.pt", name)
                if match:
                    found.append(((int(match[1]), int(match[2])), folder / name))
        return sorted(found, reverse=True)

    def usable(self, row_width: int, needs_replay: bool = True) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
        """Keys and contents of the checkpoints that `load` takes, newest first; warns of each other one.

        Raises:
            OSError: a file is there and cannot be read: it may be whole, so nothing must be done as if it were not.
        """
        for key, file in self.checkpoints():
            try:
                content = self.load(file, row_width, needs_replay)
            except (ValueError, FileNotFoundError) as error:
                warn(f"{error}; going back to the checkpoint before it")
                continue
            yield key, content

    def load(self, file: Path, row_width: int, needs_replay: bool = True) -> dict[str, Any]:
        """A checkpoint, if it and everything that it counts on are whole; to look at it, no replay is needed.

        Raises:
            ValueError: naming what is damaged.
            OSError: a file cannot be read.
        """
        data = file.read_bytes()
        if f"{zlib.crc32(data):08x}" != file.stem[-8:]:
            raise ValueError(f"{file}: damaged (its checksum does not fit)")
        try:  # what else it raises is no damage: the memory is short, say
            content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # something else than tensors and plain data; in many lines
            raise ValueError(f"{file}: damaged ({type(error).__name__})") from None
        for name, rows in content["rows"].items() if needs_replay else ():
            present = count_rows(self.path / name)
            if present < rows:
                raise ValueError(f"{self.path / name}: {present} rows, but {file.name} was made after {rows}")
        if needs_replay:
            ReplayLog.check(self.path / "replay", content["replay"], row_width)
        return content

    def trained(self) -> bool:
        """Whether it holds what is not to be overwritten: checkpoints, or evaluations of more than the start."""
        last = read_lines(self.path / "evaluations.csv")[-1:]
        return bool(self.checkpoints()) or any(line.split(",")[0] not in ("0", "env_step") for line in last)

    def set_aside(self) -> None:
        """Move what no checkpoint here can use, tables and replay too, into a folder of its own: lost-<token>.

        What `trained` looks at goes last: killed before that, the next session finds it, and moves the rest.
        """
        self.check()
        folder = self.path / f"lost-{self.token:08d}"
        folder.mkdir(exist_ok=True)
        others = [name for name in TABLES if name != "evaluations.csv"]
        for name in (*others, "replay", "evaluations.csv", "checkpoint"):
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).rename(folder / name)

    def report(self, progress: Mapping[str, Any]) -> None:
        """Replace progress.json, for whoever watches."""
        replace_text(self.path / "progress.json", json.dumps({**progress, "time": now()}))

    def finish(self, env_step: int) -> None:
        """Mark the run as complete."""
        self.check()
        for table in self.tables.values():
            table.sync()
        for stale in [p for folder in (".", "checkpoint", "lease") for p in (self.path / folder).glob(".*")]:
            with contextlib.suppress(OSError):  # a folder, such as Jupyter's, is not ours
                stale.unlink()  # half-written by processes that were killed
        sizes = {name: _size(self.path / name) for name in TABLES}
        replace_text(self.path / "DONE", json.dumps({"env_step": env_step, "files": sizes}), durable=True)

    def fail(self, env_step: int, reason: str, traceback: str = "") -> None:
        """Mark the run as failed, with a reason of one line."""
        self.check()
        content = {"env_step": env_step, "reason": " ".join(reason.split()), "traceback": traceback}
        replace_text(self.path / "FAILED", json.dumps(content, indent=1), durable=True)

    def begin_session(self, session: Mapping[str, Any]) -> None:
        """Add a session to provenance.json."""
        content = read_json(self.path / "provenance.json")
        if not isinstance(content, dict):
            content = {"identity": None, "created": None, "sessions": []}
        started = {"start": now(), "end": None, "ended": None, **self._myself(), **session}
        content["sessions"] = [*content.get("sessions", []), started]
        replace_text(self.path / "provenance.json", json.dumps(content, indent=1), durable=True)
        self.in_session = True

    def last_session(self) -> dict[str, Any]:
        """What the newest session said of itself; empty before the first, and if the record is torn."""
        content = read_json(self.path / "provenance.json")
        sessions = content.get("sessions") if isinstance(content, dict) else None
        return sessions[-1] if isinstance(sessions, list) and sessions and isinstance(sessions[-1], dict) else {}

    def end_session(self, ended: str) -> None:
        """Say how the session that this process began ended: "done", "interrupted" or "failed"."""
        if not self.in_session:  # the last one on record is another process's
            return
        content = read_json(self.path / "provenance.json")
        if isinstance(content, dict) and content.get("sessions"):
            content["sessions"][-1] |= {"end": now(), "ended": ended}
            replace_text(self.path / "provenance.json", json.dumps(content, indent=1), durable=True)


class Table:
    """A CSV file that rows are appended to.

    Opening keeps the first `rows` rows and drops what follows, in a new file that takes the old one's name.
    Columns that appear later are added at the end, blank in earlier rows.
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: int) -> None:
        self.path = path
        if torn(path):
            warn(f"{path}: its last line is torn; dropped")
        lines = read_lines(path)[: rows + 1] if rows else []
        self.columns = lines[0].split(",") if lines else list(columns)
        self.rows = max(0, len(lines) - 1)
        if self.rows != rows:
            raise ValueError(f"{path}: {self.rows} rows, expected {rows}")
        self._open([",".join(self.columns), *lines[1:]])

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row at once."""
        new = [c for c in row if c not in self.columns]
        if new:
            lines = read_lines(self.path)[1 : self.rows + 1]
            self.columns += new
            self.close()
            self._open([",".join(self.columns), *(line + "," * len(new) for line in lines)])
        line = ",".join(format_cell(row.get(c)) for c in self.columns) + "\n"
        data = line.encode()
        written = os.write(self.descriptor, data)
        if written != len(data):  # a disk that fills takes a part; the next attempt says why
            os.write(self.descriptor, data[written:])
        self.rows += 1

    def _open(self, lines: Sequence[str]) -> None:
        # Durable: the file that it replaces was, and checkpoints count on its rows.
        replace_text(self.path, "".join(line + "\n" for line in lines), durable=True)
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def sync(self) -> None:
        os.fsync(self.descriptor)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


class ReplayLog:
    """Rows of a run's replay on disk, append-only: each session writes a segment of its own.

    A checkpoint lists the segments and how many rows of each it counts on, so a resume copies nothing.
    """

    def __init__(self, folder: Path, token: int, width: int, segments: Sequence[Sequence[Any]]) -> None:
        self.folder, self.width = folder, width
        self.kept = [[str(name), int(rows)] for name, rows in segments]
        self.name = f"{token:08d}.f32"
        self.rows = 0
        folder.mkdir(exist_ok=True)
        self.file = open(folder / self.name, "wb", buffering=1 << 16)

    @property
    def segments(self) -> list[list[Any]]:
        """[name, rows] of every segment, in order."""
        return [*self.kept, [self.name, self.rows]] if self.rows else list(self.kept)

    def append(self, rows: np.ndarray) -> None:
        """Append rows (n, width) float32."""
        self.file.write(rows.astype("<f4", copy=False).tobytes())
        self.rows += len(rows)

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.file.close()

    @staticmethod
    def check(folder: Path, segments: Sequence[Sequence[Any]], width: int) -> None:
        """Raises ValueError if a listed segment is missing or short."""
        for name, rows in segments:
            size = _size(folder / name)
            if size < rows * width * 4:
                raise ValueError(f"{folder / name}: {size} bytes, expected {rows * width * 4}")

    @staticmethod
    def read(folder: Path, segments: Sequence[Sequence[Any]], width: int) -> np.ndarray:
        """All rows that the segments list: (n, width) float32."""
        parts = [np.fromfile(folder / n, "<f4", count=r * width).reshape(r, width) for n, r in segments]
        return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)


# --- small things about files


def format_cell(value: Any) -> str:
    """A CSV cell: floats by their shortest exact form, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return repr(float(value))
    return str(value)


def read_lines(path: Path) -> list[str]:
    """The complete lines of a file, without a torn last one; none if it does not exist."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    return text.split("\n")[:-1]


def torn(path: Path) -> bool:
    """Whether a file ends within a line."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return size > 0 and file.read(1) != b"\n"
    return False


def count_rows(path: Path) -> int:
    """Complete rows of a CSV file, without its header."""
    return max(0, len(read_lines(path)) - 1)


def _torn_yaml(path: Path, text: str) -> bool:
    """Whether a file is no YAML mapping, or only the beginning of `text`."""
    found = path.read_text(errors="replace")
    try:
        return not isinstance(yaml.safe_load(found), dict) or (found != text and text.startswith(found))
    except yaml.YAMLError:
        return True


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if it is missing or torn.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def replace_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        with open(temporary, "w") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _sync_folder(path.parent)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def code_version() -> dict[str, Any]:
    """Commit of the tree that this package runs from, and whether it was changed since; None where unknown."""
    snapshot = read_json(ROOT / "SNAPSHOT.json")
    if isinstance(snapshot, dict):
        return {"commit": snapshot.get("commit"), "dirty": snapshot.get("dirty")}
    try:
        commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run(
            ["git", "-C", ROOT, "status", "--porcelain"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}
    if commit.returncode:
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
