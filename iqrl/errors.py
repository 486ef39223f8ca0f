"""The one error that a user can cause."""


class InputError(ValueError):
    """Something the user gave is wrong: a key, a value, a file.

    Its message is one line that names the key or file, the value, and what was expected. Entry points
    print it as ``error: ...`` and exit with status 2, before anything is written or submitted.
    """
