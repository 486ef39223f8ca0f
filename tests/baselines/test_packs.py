"""The baselines in a pack against alone, and compiled against eager: states, metrics, actions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from packs import (
    DISCRETE,
    PIXELS,
    SPEC,
    first_observation,
    make_agent,
    make_engine,
    relative_difference,
    update,
)

from iqrl.agent import Progress
from iqrl.environments.tasks import TaskSpec
from iqrl.training.engine import Engine


@dataclass
class Case:
    """An agent, and how exactly its compiled updates follow the eager ones."""

    name: str
    words: tuple[str, ...] = ()
    spec: TaskSpec = SPEC
    ends: str = "time limit"
    updates: int = 7
    tolerance: float = 1e-4
    stage: str = ""  # run once, at the end


LARGER_PIXELS = dataclasses.replace(PIXELS, frame_shape=(1, 31, 31), observation_dim=2 * 31 * 31)  # for strides of 8
MRQ = ("agent.target_every=3",)
VQ = ("agent.quantizer=vq", "agent.head_encoding=onehot")
CASES = {
    "td7": Case("td7", MRQ, ends="termination", stage="checkpoint_policy"),
    "mrq": Case("mrq", MRQ, ends="termination"),
    "mrq-discrete": Case("mrq", MRQ, DISCRETE, ends="termination"),
    "drq": Case("drq", MRQ, ends="termination"),
    "tcrl": Case("tcrl", updates=4, tolerance=1e-5),
    "dcwm": Case("dcwm", updates=4, tolerance=1e-5),
    "dcwm-vq": Case("dcwm", VQ, updates=4, tolerance=1e-5),
    "mrq-pixels": Case("mrq", MRQ, LARGER_PIXELS, ends="termination"),
    "drq-pixels": Case("drq", MRQ, LARGER_PIXELS, ends="termination"),
    "iqrl-pixels": Case("iqrl", spec=LARGER_PIXELS),
    "drqv2": Case("drqv2", spec=PIXELS),
    "taco": Case("taco", spec=PIXELS),
    "sac_ae": Case("sac_ae", ("agent.warmup_decisions=0",), PIXELS),
    "sac": Case("sac_ae", ends="termination"),
}


def trained(case: Case, seeds: list[int], updates: int, **options: Any) -> tuple[Engine, list[Progress]]:
    agent = make_agent(case.name, *case.words, spec=case.spec)
    engine, progress = make_engine(agent, seeds, ends=case.ends, **options)
    update(engine, progress, updates)
    if case.stage:
        engine.run(case.stage, range(len(seeds)), progress)
    return engine, progress


def explored(engine: Engine, progress: list[Progress]) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Actions for one observation each, after the warm-up, and what a planner carries on."""
    for p in progress:
        p.episodes, p.decisions = 12, 50_000
    spec = engine.agent.spec
    observation = np.stack([first_observation(spec, np.random.default_rng(s)) for s in engine.seeds])
    carry = engine.initial_carry(len(engine.seeds), 1)
    return engine.explore(range(len(engine.seeds)), observation.astype(spec.observation_dtype), carry, progress)


@pytest.mark.parametrize("case", CASES)
def test_a_pack_of_three_is_three_packs_of_one(case: str) -> None:
    pack, progress = trained(CASES[case], [3, 4, 5], 20, packed=True)
    actions, carry = explored(pack, progress)
    for place, seed in enumerate(pack.seeds):
        alone, own = trained(CASES[case], [seed], 20)
        for k, v in alone.state.items():
            assert relative_difference(pack.state[k][place], v[0]) < 1e-5, k
        if alone.replay.priority is not None and pack.replay.priority is not None:
            torch.testing.assert_close(pack.replay.priority.values[place], alone.replay.priority.values[0])
        assert pack.metrics(place) == pytest.approx(alone.metrics(0), rel=1e-4, abs=1e-6)
        action, after = explored(alone, own)
        np.testing.assert_allclose(actions[place], action[0], atol=1e-4)
        for k, v in after.items():
            torch.testing.assert_close(carry[k][place], v[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["drqv2", "mrq-pixels"])
def test_a_pack_whose_pictures_live_apart_learns_the_same(case: str) -> None:
    """Bitwise, uniformly and by priorities: the starts are the same, drawn within the stage or before it."""
    together, apart = (trained(CASES[case], [3, 4], 5, packed=True, frames=f)[0] for f in ("device", "memory"))
    assert apart.replay.apart and "pictures" not in apart.replay.tables()
    for k, v in together.state.items():
        assert torch.equal(apart.state[k], v), k


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]], ids=["one", "pack"])
@pytest.mark.parametrize("case", CASES)
def test_compiled_is_eager(case: str, seeds: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    eager, compiled = (trained(CASES[case], seeds, CASES[case].updates, packed=True, compiled=c) for c in (False, True))
    for k, v in eager[0].state.items():
        assert relative_difference(compiled[0].state[k], v) < CASES[case].tolerance, k
    np.testing.assert_allclose(explored(*compiled)[0], explored(*eager)[0], atol=1e-4)
    assert "warning" not in capfd.readouterr().err  # it did compile
