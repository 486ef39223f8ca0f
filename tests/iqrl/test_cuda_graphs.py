"""CUDA graphs against the same calls without them; where there is no CUDA device, with the recording imitated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from made_up import filled_replay, make
from torch import Tensor
from torch.utils import _pytree as pytree

from baselines.dcwm import DCWM
from baselines.mrq import MRQ
from baselines.tcrl import TCRL
from baselines.td3 import TD3
from baselines.td7 import TD7
from iqrl.agent import Agent, Progress
from iqrl.iqrl import IQRL
from iqrl.training import cuda_graphs
from iqrl.training.cuda_graphs import Recorded
from iqrl.training.engine import Engine

AGENTS: list[type[Agent[Any]]] = [IQRL, TD3, TD7, TCRL, DCWM, MRQ]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def imitated(self: Recorded, arguments: cuda_graphs.Arguments) -> tuple[Callable[[], None], Any]:
    """What recording does to its surroundings: calls to warm up, then repeats that read and write the same tensors."""
    for _ in range(cuda_graphs.WARM_UP):
        result = self.function(*arguments)
    kept = pytree.tree_map(lambda v: torch.empty_like(v, memory_format=torch.contiguous_format), result)

    def repeat() -> None:
        new = self.function(*arguments)
        pytree.tree_map(lambda old, v: old.copy_(v), kept, new)

    return repeat, kept


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the functions recorded, in order."""
    names: list[str] = []

    def capture(self: Recorded, arguments: cuda_graphs.Arguments) -> tuple[Callable[[], None], Any]:
        names.append(self.name)
        return imitated(self, arguments)

    monkeypatch.setattr(Recorded, "_capture", capture)
    yield names


def engine(cls: type[Agent[Any]], seeds: list[int], recorded: bool, device: str = "cpu", **options: Any) -> Engine:
    agent = make(cls, **({"target_every": 6} if cls in (TD7, MRQ) else {}))
    replay = filled_replay(agent.slices, seeds, device=device)
    return Engine(agent, seeds, replay, device=device, packed=True, recorded=recorded, **options)


def act(engine: Engine, progress: list[Progress], places: list[int]) -> np.ndarray:
    count, spec = 3, engine.agent.spec
    observation = np.random.default_rng(0).standard_normal((len(engine.seeds), count, spec.observation_dim))
    carry = engine.initial_carry(len(places), count)
    actions = []
    for step in range(2):
        noise = [engine.random.evaluation(s, 0, step, count) for s in places]
        action, carry = engine.act(places, observation[places].astype(np.float32), carry, noise, progress)
        actions.append(action.copy())  # off a device, `numpy` is a view of what the next call writes over
    return np.concatenate(actions)


def exercise(e: Engine) -> tuple[list[dict[str, float]], np.ndarray, np.ndarray]:
    """Twenty updates, with a seed that learns alone for a while and goes back to a checkpoint: metrics and actions."""
    progress, everyone = [Progress() for _ in e.seeds], list(range(len(e.seeds)))
    for _ in range(10):
        e.update(everyone, progress)
    saved = e.save(everyone[-1])
    for _ in range(4):
        e.update([everyone[-1]], progress)
    e.load(everyone[-1], saved)
    progress[-1].updates = 10
    for _ in range(10):
        e.update(everyone, progress)
    return [e.metrics(i) for i in everyone], act(e, progress, everyone), act(e, progress, everyone[1:] or everyone)


def compare(one: Engine, other: Engine, tolerance: float) -> None:
    """The same learning and acting, to a tolerance relative to each tensor's largest entry."""
    metrics, *actions = exercise(one)
    others, *other_actions = exercise(other)
    for k, v in one.state.items():
        difference = (v - other.state[k]).abs().max() / torch.clamp(v.abs().max(), min=1e-12)
        assert float(difference) <= tolerance, k
    for a, b in zip(metrics, others, strict=True):
        assert a == pytest.approx(b, rel=max(10 * tolerance, 1e-6), abs=1e-6)
    for x, y in zip(actions, other_actions, strict=True):
        np.testing.assert_allclose(x, y, atol=max(10 * tolerance, 1e-6))


@pytest.mark.parametrize("cls", [IQRL, TD3, TD7, DCWM])
def test_recording_changes_no_number(cls: type[Agent[Any]], recordings: list[str]) -> None:
    plain, recorded = (engine(cls, [4, 0, 7], flag) for flag in (False, True))
    compare(plain, recorded, 0.0)
    agent = recorded.agent
    learning = {part for u in range(1, 21) for stage in agent.stages(u) for part in agent.parts(stage)}
    # Each part for the pack, and for the seed that learned alone; acting for all, and for those but the first.
    assert set(recordings) == learning | {"act"}
    assert recordings.count("act") == 2
    assert all(recordings.count(part) <= 2 for part in learning)


@pytest.mark.parametrize("cls", [TD3, DCWM])
def test_seeds_that_are_not_neighbours_act_as_they_do_together(cls: type[Agent[Any]], recordings: list[str]) -> None:
    e = engine(cls, [4, 0, 7, 2], True)
    progress = [Progress() for _ in e.seeds]
    together = act(e, progress, [0, 1, 2, 3]).reshape(2, 4, 3, -1)
    apart = act(e, progress, [0, 2, 3]).reshape(2, 3, 3, -1)
    np.testing.assert_allclose(apart, together[:, [0, 2, 3]], atol=1e-6)
    assert recordings == ["act", "act", "act"]  # for four, for the first, for the last two


def test_a_pack_with_a_failed_seed_learns_by_neighbours(recordings: list[str]) -> None:
    e = engine(TD3, [4, 0, 7, 2], True)
    progress = [Progress() for _ in e.seeds]
    (stage,) = e.agent.stages(1)
    e.run(stage, [0, 2, 3], progress)  # they happen to stand at the same update: one by one
    assert recordings == [stage] * 3
    e.living = [0, 2, 3]
    e.run(stage, [0, 2, 3], progress)  # the first has its recording
    assert recordings == [stage] * 4
    one, other = engine(TD3, [4, 0, 7, 2], False), engine(TD3, [4, 0, 7, 2], False)
    one.living = [0, 2, 3]
    for each, groups in ((one, [[0, 2, 3]]), (other, [[0], [2], [3]])):
        for group in groups:
            each.update(group, [Progress() for _ in e.seeds])
    for k, v in one.state.items():
        torch.testing.assert_close(v, other.state[k], rtol=1e-5, atol=1e-6)


def test_new_addresses_and_shapes_are_recorded_anew(recordings: list[str]) -> None:
    def add(state: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
        state["sum"] += given["x"].sum()
        return {"twice": 2 * given["x"]}

    function = Recorded("add", add, fixed=1)
    state = {"sum": torch.zeros(())}
    for n in (2, 2, 3):
        assert function(state, {"x": torch.full((n,), float(n))})["twice"].tolist() == [2.0 * n] * n
    assert float(state["sum"]) == 4 + 4 + 9 and len(recordings) == 2
    other = {"sum": torch.ones(())}
    function(other, {"x": torch.ones(2)})
    assert float(other["sum"]) == 3 and float(state["sum"]) == 17 and len(recordings) == 3


def test_what_cannot_be_recorded_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: Recorded, arguments: cuda_graphs.Arguments) -> tuple[Callable[[], None], Any]:
        self.function(*arguments)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(Recorded, "_capture", fails)
    plain, fallen = (engine(TD3, [1, 2], flag) for flag in (False, True))
    compare(plain, fallen, 0.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines and all("without a CUDA graph" in line and "not permitted" in line for line in lines)
    assert len(lines) == len(set(lines)) + 1 + 1 + 1  # each stage for two groups, acting for two


# --- on a device


@needs_cuda
@pytest.mark.parametrize("cls", AGENTS)
@pytest.mark.parametrize("seeds", [[3], [4, 0, 7]])
def test_graphs_agree_with_eager_updates(
    cls: type[Agent[Any]], seeds: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    for compiled in (False, True):
        eager, graphs = engine(cls, seeds, False, "cuda"), engine(cls, seeds, True, "cuda", compiled=compiled)
        # Kernels that sum in another order may tip codes of FSQ, which 24 updates carry on; wrong is off by tenths.
        compare(eager, graphs, 1e-2)
    assert not [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]


@needs_cuda
@pytest.mark.parametrize("cls", AGENTS)
def test_an_update_does_not_wait_for_the_device(cls: type[Agent[Any]]) -> None:
    e = engine(cls, [0, 1], True, "cuda")
    progress = [Progress(), Progress()]
    for _ in range(70):  # over a chunk of random numbers
        e.update([0, 1], progress)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            e.update([0, 1], progress)
    finally:
        torch.cuda.set_sync_debug_mode("default")
