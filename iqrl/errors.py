"""The one error that a user can cause, and how any other is told in a line."""

import errno
from pathlib import Path


class InputError(ValueError):
    """Something the user gave is wrong: a key, a value, a file.

    Its message is one line that names the key or file, the value, and what was expected. Entry points
    print it as ``error: ...`` and exit with status 2, before anything is written or submitted.
    """


def what_failed(error: OSError, where: object = "files") -> str:
    """An error of the file system: the file that it names, or else `where`, and the reason."""
    return f"{error.filename or where}: {error.strerror or error}"


def disk_message(error: OSError, folder: Path) -> str:
    """One line for an error while writing runs in `folder`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{folder}: the disk is full; the runs go on from their last checkpoints when there is room"
    return f"{what_failed(error, folder)}; the runs go on from their last checkpoints"


def one_line(error: BaseException) -> str:
    """Its type and the first line of its message, for a warning."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
