"""Small things about files: written whole or not at all, and read as far as they are whole."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any


def read_json(path: Path | str) -> Any:
    """The content of a JSON file, or None if it is missing or torn.

    Raises:
        OSError: it cannot be read: it may be whole.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return None


def read_mapping(path: Path | str) -> dict[str, Any]:
    """The same of a JSON file that holds a mapping; empty if it is missing, torn or holds anything else."""
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def replace_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or the first above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def size(path: Path | str) -> int:
    """Of a file, in bytes; -1 if it does not exist."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return -1


def written(path: Path | str) -> float | None:
    """When a file was last written, in seconds by the file system's clock; None if it does not exist."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return None


def umask() -> int:
    """What new files of this process are not allowed."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def last_line(log: Path) -> str:
    """The last line of a log that says something, "" if there is none; srun's own if there is no other."""
    lines: list[str] = []
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
        lines = file.read().decode(errors="replace").splitlines()
    spoken = [line.strip() for line in lines if line.strip()]
    return next((line for line in reversed(spoken) if not line.startswith("srun: ")), spoken[-1] if spoken else "")


def now() -> str:
    """The time, as provenance holds it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
