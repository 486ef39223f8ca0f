"""make gpu: rows as they come, nothing done twice, nothing started that has no time."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Command

WAITS = """
import signal, sys, time
def stop(*_):
    print("saved")
    sys.exit(75)
signal.signal(signal.SIGINT, stop)
print("begun", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def rows(out: Path) -> list[tuple[str, ...]]:
    with open(out / "steps.csv", newline="") as file:
        return [(r["step"], r["what"], r["outcome"], r["said"]) for r in csv.DictReader(file)]


def call(out: Path, **options: str) -> int:
    return gpu.main(["device=cpu", f"out={out}", *(f"{k}={v}" for k, v in options.items())])


def test_a_second_call_does_what_the_first_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = {"doctor": "print('well')", "graphs": "import sys; print('1 failed'); sys.exit(1)", "speed": WAITS}

    def commands(step: str, options: dict[str, str]) -> list[Command]:
        return [Command(step, "it", ["-c", scripts[step]])]

    monkeypatch.setattr(gpu, "commands", commands)
    monkeypatch.setattr(gpu, "LEAST", 0.5)
    assert call(tmp_path, steps="doctor,graphs,speed", minutes="0.2") == 1
    first = [("doctor", "it", "done", "well"), ("graphs", "it", "failed", "1 failed")]
    cut = ("speed", "it", "out of time", "saved")
    assert rows(tmp_path) == [*first, cut]
    scripts["speed"] = "print('1 update/s')"
    assert call(tmp_path, steps="doctor,graphs,speed", minutes="0.2") == 1  # what failed at this commit still has
    assert rows(tmp_path) == [*first, cut, ("speed", "it", "done", "1 update/s")]
    monkeypatch.setattr(gpu, "code_version", lambda: {"commit": "another"})
    scripts["graphs"] = "print('1 passed')"
    assert call(tmp_path, steps="doctor,graphs,speed", minutes="0.2") == 0
    assert rows(tmp_path)[-1] == ("graphs", "it", "done", "1 passed") and len(rows(tmp_path)) == 5


def test_what_has_no_time_is_not_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, steps="walker,dog-stand", minutes="0.01") == 75
    assert capsys.readouterr().out.count("not started") == 2
    assert not (tmp_path / "steps.csv").exists()


def test_training_goes_from_trial_to_rows(tmp_path: Path) -> None:
    assert call(tmp_path, steps="dog-stand", size="trial", minutes="5") == 0
    ((step, what, outcome, said),) = rows(tmp_path)
    assert (step, what, outcome) == ("dog-stand", "train", "done") and "2,000" in said
    (run,) = (tmp_path / "runs").glob("iqrl-dog-stand-s0-*")
    assert (run / "DONE").exists()


def test_every_step_has_commands_that_their_programs_understand(tmp_path: Path) -> None:
    from benchmarks import speed
    from iqrl import config
    from iqrl.doctor import command

    options: dict[str, Any] = gpu.DEFAULTS | {"device": "cpu", "out": str(tmp_path), "peers": f"iqrl:{tmp_path}"}
    for size in ("full", "trial"):
        options["size"] = size
        for step in gpu.STEPS:
            found = gpu.commands(step, options)
            assert found
            for words in (c.words for c in found):
                if words[1] == "benchmarks.speed":
                    speed.parse(words[2:])
                elif words[2:3] == ["doctor"]:
                    command.parse(words[3:])
                elif words[2:3] == ["train"]:
                    config.resolve([("test", config.parse_words(words[3:]))])
                else:
                    assert words[1] == "pytest" and any(Path(w).is_file() for w in words)


@pytest.mark.parametrize(
    "words, named",
    [
        (["device=cuda"], "device=cuda"),
        (["device=tpu"], "device=tpu"),
        (["device=cpu", "steps=doctor,speeed"], "did you mean speed?"),
        (["device=cpu", "minutes=soon"], "minutes=soon"),
        (["device=cpu", "size=huge"], "size=huge"),
        (["device=cpu", "agents=td4"], "td4"),
        (["device=cpu", "peers=iqrl:/nowhere"], "peer=iqrl:/nowhere"),
        (["hours=2"], "hours=2"),
    ],
)
def test_bad_input_is_one_line(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and named in line
