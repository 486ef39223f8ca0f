"""The one error that a user of the analysis can cause."""


class InputError(ValueError):
    """A key, value or file that the user gave is wrong; the message is one line that says what was expected.

    The analysis keeps its own: of the training code it imports the reader of runs alone. The command
    line prints it as ``error: ...`` and exits with status 2.
    """
