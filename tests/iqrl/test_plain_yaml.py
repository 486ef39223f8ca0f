"""One reader of YAML: what a text means is the same in a configuration, a sweep, a profile and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablations import sweep_file
from iqrl import config, plain_yaml
from iqrl.errors import InputError
from slurm import profile

VALUES: dict[str, Any] = {
    "1e-4": 1e-4, "1e2": 100.0, "1.5E+3": 1500.0, "64.": 64.0, ".5": 0.5, "-3": -3, "+3": 3, "0": 0, "0.10": 0.1,
    "1_000": 1000, "12_345_678": 12345678, "true": True, "yes": True, "off": False, "null": None, "~": None,
    "walker-walk": "walker-walk", "0..4": "0..4", "1.2.3": "1.2.3", "1e": "1e", "0x": "0x",
    "'010'": "010", '"1:30"': "1:30", "'2024-01-01'": "2024-01-01", "[1, [2.5, x]]": [1, [2.5, "x"]],
    "{a: {b: 1e3}}": {"a": {"b": 1000.0}}, "[&x [1], *x]": [[1], [1]], "???": "???",
}  # fmt: skip
REFUSED = {
    "quote it": ["010", "08", "00.5", "0o10", "0x10", "0b1", "5_3", "10_00", "1:30", "24:00:00", "0:30", ".5e3", "-.5",
                 "2024-01-01", "2024-01-01 10:00:00", "[1, 010]"],
    "interpolation is not supported": ["${seed}", "'${oc.env:HOME}'", "['a${b}']"],
    "expected plain text": ["!!python/name:os.system", "!x 1", "!!binary aGk=", "!!set {a}", "="],
    "given twice": ["{a: 1, a: 2}", "{b: {a: 1, 'a': 1}}"],
    "expected a word": ["{1: 2}", "{yes: 2}", "{? [a] : 2}", "{5_3: x}", "{<<: {a: 1}}"],
    ": ": ["[", "a: b: c", "'", "*a", "&a [*a]", "@", "\x01", "!!int eight", "[" * 100_000, "{a: " * 5_000],
}  # fmt: skip


def in_a_configuration(text: str, folder: Path) -> Any:
    path = folder / "x.yaml"
    path.write_text(f"agent:\n  value: {text}\n")
    return config.load_file(path)["agent"]["value"]


def in_a_sweep(text: str, folder: Path) -> Any:
    path = folder / "x.yaml"
    path.write_text(
        "title: T\nquestion: Q\nfinding: F\ntasks: [walker-walk]\nseeds: 0\nenv_steps: 1\n"
        f"arms:\n  a:\n    agent.value: {text}\n"
    )
    return sweep_file.read(path)["arms"]["a"]["agent.value"]


def in_a_profile(text: str, folder: Path) -> Any:
    """As `profile.load` reads it, before it asks for numbers."""
    path = folder / "x.yaml"
    path.write_text(f"cpus:\n  {text}\n")
    return plain_yaml.load(path, str(path), as_written=["account"])["cpus"]


def on_the_command_line(text: str, folder: Path) -> Any:
    return config.parse_words([f"agent.value={text}"])["agent"]["value"]


READERS = [in_a_configuration, in_a_sweep, in_a_profile, on_the_command_line]
Reader = Callable[[str, Path], Any]


@pytest.mark.parametrize("read", READERS)
def test_a_text_has_one_value(read: Reader, tmp_path: Path) -> None:
    found = {text: read(text, tmp_path) for text in VALUES}
    assert found == VALUES
    assert {text: type(value) for text, value in found.items()} == {text: type(v) for text, v in VALUES.items()}


@pytest.mark.parametrize("read", READERS)
def test_what_is_refused_is_refused_everywhere_in_one_line(read: Reader, tmp_path: Path) -> None:
    for part, texts in REFUSED.items():
        for text in texts:
            with pytest.raises(InputError, match=part) as error:
                read(text, tmp_path)
            assert "\n" not in str(error.value) and ("x.yaml" in str(error.value) or read is on_the_command_line)


def test_messages_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for text, line in {
        "a: 1\nb: 010\n": 2,
        "a: 1\n\nb:\n  - ${x}": 4,
        "a:\n  c: 1\n  c: 2": 3,
        "a: [1\nb: 2": 2,
    }.items():
        path.write_text(text)
        with pytest.raises(InputError, match=f"x.yaml: line {line}: "):
            plain_yaml.load(path, str(path))


@pytest.mark.parametrize(
    "text", ["account: 1\naccount: 2", "account: x\n'account': y", "cpus: ${N}", "setup: [1, '${N}']", "time: !x 1"]
)
def test_what_a_profile_has_as_text_is_checked_too(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="p.yaml: ") as error:
        profile.load(str(path))
    assert "\n" not in str(error.value)


def test_comments_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 1  # ${HOME}, 010\n")
    assert plain_yaml.load(path, str(path)) == {"a": 1}
