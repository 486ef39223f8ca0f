"""What the command lines of all rooms have in common."""

from __future__ import annotations

import argparse
from typing import NoReturn

from iqrl.errors import InputError


class Parser(argparse.ArgumentParser):
    """Answers what it does not understand with one line, as everything here does: raises InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{' '.join(message.split())}; {self.prog} --help tells more")
