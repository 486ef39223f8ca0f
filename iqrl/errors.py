"""The one error that a user can cause, how any other is given in a line, and the exit statuses of every command."""

import difflib
import errno
import traceback
from collections.abc import Iterable
from pathlib import Path

FAILED, BAD_INPUT = 1, 2
DISK = 74  # EX_IOERR: a file could not be written; what was saved before stands
INTERRUPTED = 75  # EX_TEMPFAIL: the same command goes on


class InputError(ValueError):
    """Something the user gave is wrong: a key, a value, a file.

    Its message is one line that names the key or file, the value, and what was expected. Entry points
    print it as ``error: ...`` and exit with status 2, before anything is written or submitted.
    """


def did_you_mean(word: str, known: Iterable[object], prefix: str = "") -> str:
    """The end of a message about an unknown word: the known one that it resembles, if any does."""
    close = difflib.get_close_matches(word, [str(k) for k in known], 1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def what_failed(error: OSError, where: object = "files") -> str:
    """An error of the file system: the file that it names, or else `where`, and the reason."""
    return f"{error.filename or where}: {error.strerror or error}"


def disk_message(error: OSError, folder: Path) -> str:
    """One line for an error while writing runs in `folder`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{folder}: the disk is full; the runs go on from their last checkpoints when there is room"
    return f"{what_failed(error, folder)}; the runs go on from their last checkpoints"


def of_file(error: BaseException, source: str) -> str:
    """The same as Python says it, without the traceback; and the line of a file of one's own where it was raised."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    return f"{type(error).__name__}: {error}" + (f" ({Path(source).name}:{lines[-1]})" if lines else "")


def one_line(error: BaseException) -> str:
    """Its type and the first line of its message, for a warning."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
