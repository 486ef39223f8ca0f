"""What compiling a stage must not change, how many stages and sizes there may be, and that one process does it."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iqrl.training.compilation import BEGUN, Compiled, alone, drop_libraries
from iqrl.training.lifting import unaliased


@pytest.mark.slow
def test_entries_handed_over_keep_their_old_value(capfd: pytest.CaptureFixture[str]) -> None:
    """ "a takes b's value, b a new one", in any order: what a stage that copies to its targets does."""

    def stage(state: dict[str, Tensor]) -> None:
        first = {k: v[0] for k, v in state.items()}
        changed = unaliased({"a": first["b"], "b": first["b"] + 6.0}, first)
        for k, v in changed.items():
            state[k].copy_(v[None])

    for names in ("ab", "ba"):
        state = {k: torch.full((1, 5), float(k == "b")) for k in names}
        Compiled("stage", stage)(state)
        assert state["a"].tolist() == [[1.0] * 5] and state["b"].tolist() == [[7.0] * 5]
    assert capfd.readouterr().err == ""


def test_a_size_that_cannot_be_compiled_runs_eager_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A later one, too: the compiler is asked again whenever another number of seeds runs together."""
    compiled: list[int] = []

    def compiler(function: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        def call(given: dict[str, Tensor]) -> Tensor:
            compiled.append(len(given["x"]))
            if len(given["x"]) == 3:
                raise RuntimeError("out of registers")
            return function(given)

        return call

    monkeypatch.setattr(torch, "compile", compiler)
    stage = Compiled("critic", lambda given: given["x"] + 1.0)
    for size in (1, 3, 3, 2, 1):
        assert stage({"x": torch.zeros(size)}).tolist() == [1.0] * size
    assert compiled == [1, 3, 3, 2, 1]
    assert capfd.readouterr().err == (
        "warning: critic runs eager, compiling it failed: RuntimeError: out of registers\n"
    )


def test_a_compiler_that_was_killed_is_started_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C reaches it too, while the command itself saves and stops; what it saves must be a compiled update's."""
    calls: list[str] = []

    def compiler(function: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        def call(given: dict[str, Tensor]) -> Tensor:
            calls.append("compiled")
            if len(calls) == 1:
                raise RuntimeError("cc1plus: Interrupt")
            return function(given) + 1.0

        return call

    monkeypatch.setattr(torch, "compile", compiler)
    stage = Compiled("critic", lambda given: given["x"])
    assert [stage({"x": torch.zeros(1)}).item() for _ in range(2)] == [1.0, 1.0] and len(calls) == 3
    assert capfd.readouterr().err == ""


def test_many_stages_and_sizes_are_compiled(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))

    def make(number: int) -> Callable[[dict[str, Tensor]], Tensor]:
        def stage(given: dict[str, Tensor]) -> Tensor:
            return given["x"] + number

        return stage

    for number in range(10):
        stage = Compiled(f"stage {number}", make(number))
        for size in range(1, 11) if number == 9 else [1]:
            assert stage({"x": torch.zeros(size)}).tolist() == [float(number)] * size
    assert capfd.readouterr().err == ""  # no stage fell back


def test_a_decision_with_noise_is_not_the_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exploring and evaluating differ in the random numbers given alone."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))

    def decide(observed: dict[str, Tensor], noise: dict[str, Tensor]) -> Tensor:
        return observed["x"] + noise["action"] if "action" in noise else observed["x"]

    act, x = Compiled("act", decide), {"x": torch.zeros(1)}
    for _ in range(2):
        assert act(x, {}).item() == 0.0 and act(x, {"action": torch.ones(1)}).item() == 1.0


def test_what_another_process_compiles_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here another thread: a lock belongs to whoever has opened its file."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    said: list[str] = []
    waits, compiled = threading.Event(), threading.Event()

    def watch(what: str) -> None:
        said.append(what)
        if what.startswith("waiting"):
            waits.set()

    def other() -> None:
        with alone("key", "critic", watch):
            assert compiled.is_set()

    with alone("key", "critic", said.append):
        thread = threading.Thread(target=other)
        thread.start()
        assert waits.wait(60)
        compiled.set()
    thread.join(60)
    assert said == [
        "compiling critic, for the first time here",
        "waiting for another process to compile critic, for the first time here",
        "",
        "compiling critic, 0 s last time",
        "",
    ]


@pytest.mark.slow
def test_what_a_killed_compiler_left_half_written_is_compiled_again(tmp_path: Path) -> None:
    """To load a library that is cut short is SIGBUS: no exception tells of it."""
    code = (
        "import torch; from iqrl.training.compilation import Compiled;"
        "print(Compiled('stage', lambda x: x['x'] + 1.0)({'x': torch.ones(8)}).sum().item())"
    )

    def compute() -> tuple[int, str]:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert compute() == (0, "16.0\n")
    (library,), (lock,) = tmp_path.rglob("*.main.so"), (tmp_path / "compiling").iterdir()
    whole = library.stat().st_size
    os.truncate(library, 1000)
    assert compute()[0] == -signal.SIGBUS  # which leaves the word that it began, as whoever was killed has
    assert lock.read_text().endswith(BEGUN)
    os.utime(lock, (0, library.stat().st_mtime - 1))
    assert compute() == (0, "16.0\n") and library.stat().st_size == whole and lock.read_text().isdigit()


def test_what_cannot_be_compiled_at_all_costs_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries are dropped between its two attempts, and never again."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    dropped: list[float] = []
    monkeypatch.setattr("iqrl.training.compilation.drop_libraries", lambda cache, since: dropped.append(since))
    for _ in range(2):
        with pytest.raises(RuntimeError), alone("key", "critic", lambda what: None):
            raise RuntimeError("no such operation")
    assert len(dropped) == 1 and (tmp_path / "compiling" / "key").read_text() == ""


def test_only_what_came_since_is_dropped(tmp_path: Path) -> None:
    for name, time in (("old.so", 90), ("torn.so", 110), ("torn.h.gch", 100), ("source.cpp", 120)):
        (tmp_path / "ab").mkdir(exist_ok=True)
        (tmp_path / "ab" / name).touch()
        os.utime(tmp_path / "ab" / name, (time, time))
    drop_libraries(tmp_path, 100.0)
    assert {path.name for path in (tmp_path / "ab").iterdir()} == {"old.so", "source.cpp"}
