"""The folder of a run, as the process that trains it writes it.

    config.yaml provenance.json progress.json
    evaluations.csv training.csv latents.csv timing.csv
    checkpoint/  replay/  lease/
    DONE | FAILED

Whoever trains a run first claims its lease. From then on a former writer can do no harm, even one that does not know
yet: the CSV files have been replaced by copies (what it still appends goes to files without a name), its replay goes to
segments that nobody lists, and its checkpoints can only describe states that this deterministic run passes through
anyway.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from iqrl.config import RunConfig
from iqrl.errors import InputError
from iqrl.runs import checkpoints, files, reader
from iqrl.runs.files import now, read_json, replace_text, warn
from iqrl.runs.lease import Lease, myself
from iqrl.runs.replay_log import ReplayLog
from iqrl.runs.tables import TABLES, Table, read_lines


class RunDirectory:
    """One run's files.

    Args:
        path: the directory; `create` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lease = Lease(path)
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
                os.chmod(fresh, 0o777 & ~files.umask())
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

    def done(self) -> bool:
        """Whether the run is complete: DONE is there, and every file is as long as it says."""
        return reader.complete(self.path)

    def trained(self) -> bool:
        """Whether it holds what is not to be overwritten: checkpoints, or evaluations of more than the start."""
        last = read_lines(self.path / "evaluations.csv")[0][-1:]
        return bool(self.checkpoints()) or any(line.split(",")[0] not in ("0", "env_step") for line in last)

    def checkpoints(self) -> list[tuple[tuple[int, int], Path]]:
        """As `reader.checkpoints`."""
        return reader.checkpoints(self.path)

    def last_session(self) -> dict[str, Any]:
        """As `reader.Run.last_session`."""
        return reader.Run(self.path).last_session()

    # --- the right to write

    def claim(self) -> None:
        """Become the run's only writer, as `Lease.claim`."""
        self.lease.claim()

    def release(self) -> None:
        """Close every file, and say that this process has stopped writing."""
        for table in self.tables.values():
            table.close()
        if self.replay is not None:
            self.replay.close()
        self.lease.release()

    # --- writing; each raises LeaseLost if the run has been claimed by another process

    def open(self, counts: Mapping[str, int], replay_segments: Sequence[Sequence[Any]], row_width: int) -> None:
        """Open every file for appending after the rows that a checkpoint knows of; whatever follows them is dropped."""
        self.lease.check()
        (self.path / "FAILED").unlink(missing_ok=True)
        (self.path / "DONE").unlink(missing_ok=True)
        for name, columns in TABLES.items():
            self.tables[name] = Table(self.path / name, columns, counts.get(name, 0))
        self.replay = ReplayLog(self.path / "replay", self.lease.token, row_width, replay_segments)

    def append(self, table: str, row: Mapping[str, Any]) -> None:
        """Append a row to one of the CSV files."""
        self.lease.check()
        with self._if_still_ours():
            self.tables[table].append(row)

    def save(self, key: tuple[int, int], content: Mapping[str, Any]) -> None:
        """Make a checkpoint durable, and all that it counts on; see `checkpoints.save`."""
        self.lease.check()
        assert self.replay is not None
        with self._if_still_ours():
            for table in self.tables.values():
                table.sync()
            self.replay.sync()
        rows = {name: table.rows for name, table in self.tables.items()}
        whole = {**content, "rows": rows, "replay": self.replay.segments}
        checkpoints.save(self.path, key, whole, self.lease.token, self.lease.check)

    @contextlib.contextmanager
    def _if_still_ours(self) -> Iterator[None]:
        """Who takes a run over replaces its files: their loss is that of the lease then."""
        try:
            yield
        except OSError:
            self.lease.check()
            raise

    def set_aside(self) -> None:
        """Move what no checkpoint here can use, tables and replay too, into a folder of its own: lost-<token>.

        What `trained` looks at goes last: killed before that, the next session finds it, and moves the rest.
        """
        self.lease.check()
        folder = self.path / f"lost-{self.lease.token:08d}"
        folder.mkdir(exist_ok=True)
        others = [name for name in TABLES if name != "evaluations.csv"]
        for name in (*others, "replay", "evaluations.csv", "checkpoint"):
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).rename(folder / name)

    def finish(self, env_step: int) -> None:
        """Mark the run as complete."""
        self.lease.check()
        with self._if_still_ours():
            for table in self.tables.values():
                table.sync()
        for stale in [p for folder in (".", "checkpoint", "lease") for p in (self.path / folder).glob(".*")]:
            with contextlib.suppress(OSError):  # a folder, such as Jupyter's, is not ours
                stale.unlink()  # half-written by processes that were killed
        sizes = {name: files.size(self.path / name) for name in TABLES}
        replace_text(self.path / "DONE", json.dumps({"env_step": env_step, "files": sizes}), durable=True)

    def fail(self, env_step: int, reason: str, traceback: str = "") -> None:
        """Mark the run as failed, with a reason of one line."""
        self.lease.check()
        content = {"env_step": env_step, "reason": " ".join(reason.split()), "traceback": traceback}
        replace_text(self.path / "FAILED", json.dumps(content, indent=1), durable=True)

    # --- what it says of itself

    def report(self, progress: Mapping[str, Any]) -> None:
        """Replace progress.json, for whoever watches."""
        replace_text(self.path / "progress.json", json.dumps({**progress, "time": now()}))

    def begin_session(self, session: Mapping[str, Any]) -> None:
        """Add a session to provenance.json."""
        content = read_json(self.path / "provenance.json")
        if not isinstance(content, dict):
            content = {"identity": None, "created": None, "sessions": []}
        started = {"start": now(), "end": None, "ended": None, **myself(), **session}
        content["sessions"] = [*content.get("sessions", []), started]
        replace_text(self.path / "provenance.json", json.dumps(content, indent=1), durable=True)
        self.in_session = True

    def end_session(self, ended: str) -> None:
        """Say how the session that this process began ended: "done", "interrupted" or "failed"."""
        if not self.in_session:  # the last one on record is another process's
            return
        content = read_json(self.path / "provenance.json")
        if isinstance(content, dict) and content.get("sessions"):
            content["sessions"][-1] |= {"end": now(), "ended": ended}
            replace_text(self.path / "provenance.json", json.dumps(content, indent=1), durable=True)


def _torn_yaml(path: Path, text: str) -> bool:
    """Whether a file is no YAML mapping, or only the beginning of `text`."""
    found = path.read_text(errors="replace")
    try:
        return not isinstance(yaml.safe_load(found), dict) or (found != text and text.startswith(found))
    except yaml.YAMLError:
        return True
