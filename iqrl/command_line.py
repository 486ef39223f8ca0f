"""What all command lines have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from iqrl.errors import InputError


class Parser(argparse.ArgumentParser):
    """Answers what it does not understand with one line, as everything here does: raises InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{' '.join(message.split())}; {self.prog} --help tells more")

    def parse_mixed(self, words: Sequence[str] | None) -> argparse.Namespace:
        """As `parse_args`, with words after options too, `submit main --profile gpu runs=here`: argparse takes none."""
        arguments, after_options = self.parse_known_args(words)
        if strange := [w for w in after_options if w.startswith("-") or not hasattr(arguments, "words")]:
            self.error(f"unrecognized arguments: {' '.join(strange)}")
        if after_options:
            arguments.words += after_options
        return arguments
