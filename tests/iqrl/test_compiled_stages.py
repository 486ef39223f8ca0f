"""What compiling a stage must not change: entries handed over, and how many stages and sizes there may be."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from iqrl.engine import _unaliased, with_fallback


@pytest.mark.slow
def test_entries_handed_over_keep_their_old_value(capfd: pytest.CaptureFixture[str]) -> None:
    """ "a takes b's value, b a new one", in any order: what a stage that copies to its targets does."""

    def stage(state: dict[str, Tensor]) -> None:
        first = {k: v[0] for k, v in state.items()}
        changed = _unaliased({"a": first["b"], "b": first["b"] + 6.0}, first)
        for k, v in changed.items():
            state[k].copy_(v[None])

    for names in ("ab", "ba"):
        state = {k: torch.full((1, 5), float(k == "b")) for k in names}
        with_fallback("stage", stage)(state)
        assert state["a"].tolist() == [[1.0] * 5] and state["b"].tolist() == [[7.0] * 5]
    assert capfd.readouterr().err == ""


def test_many_stages_and_sizes_are_compiled(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))

    def make(number: int) -> Callable[[Tensor], Tensor]:
        def stage(x: Tensor) -> Tensor:
            return x + number

        return stage

    for number in range(10):
        stage = with_fallback(f"stage {number}", make(number))
        for size in range(1, 11) if number == 9 else [1]:
            assert stage(torch.zeros(size)).tolist() == [float(number)] * size
    assert capfd.readouterr().err == ""  # no stage fell back
