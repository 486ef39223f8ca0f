"""Vector quantisation: numbers worked by hand, and as iQRL uses it (iqrl.md section 9)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.func import grad

from iqrl.agent import Progress
from iqrl.config import parse_words, resolve
from iqrl.environments.tasks import TaskSpec
from iqrl.quantisers import VQ, make_quantiser
from iqrl.training.engine import Engine
from iqrl.training.replay import Replay

CODEBOOK = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
QUANTISER = VQ(codes=3, channels=2, decay=0.9, beta=0.25)
LATENT = torch.tensor([[0.4, 0.1, 0.9, -0.2], [0.1, 1.5, -1.0, -1.0]])  # (M, Z): two dimensions of two channels


def test_nearest_codes() -> None:
    assert QUANTISER.indices(LATENT, CODEBOOK).tolist() == [[0, 1], [2, 0]]
    assert QUANTISER(LATENT, CODEBOOK).tolist() == [[0, 0, 1, 0], [0, 2, 0, 0]]
    assert QUANTISER.lookup(torch.tensor([[2, 1]]), CODEBOOK).tolist() == [[0, 2, 1, 0]]


def test_gradient_passes_straight_through() -> None:
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    gradient = grad(lambda x: (QUANTISER(x, CODEBOOK) * upstream).sum())(LATENT)
    assert torch.equal(gradient, upstream)
    assert not grad(lambda k: (QUANTISER(LATENT, k) ** 2).sum() * 0)(CODEBOOK).any()


def test_commitment() -> None:
    codes = QUANTISER(LATENT, CODEBOOK)
    expected = [0.25 * (0.16 + 0.01 + 0.01 + 0.04) / 4, 0.25 * (0.01 + 0.25 + 1 + 1) / 4]
    np.testing.assert_allclose(QUANTISER.commitment(LATENT, codes), expected, rtol=1e-6)
    gradient = grad(lambda x: QUANTISER.commitment(x, QUANTISER(x, CODEBOOK)).sum())(LATENT)
    torch.testing.assert_close(gradient, 0.25 * 2 * (LATENT - codes) / 4)  # to the latent, none to the codes


def test_moving_averages() -> None:
    state = {"codebook": CODEBOOK, "codebook/count": torch.tensor([2.0, 1.0, 1.0]),
             "codebook/total": CODEBOOK * torch.tensor([[2.0], [1.0], [1.0]])}  # fmt: skip
    after = QUANTISER.learn(state, [LATENT[:1], LATENT[1:]])
    # Code 0 met (0.4, 0.1) and (-1, -1), code 1 met (0.9, -0.2), code 2 met (0.1, 1.5).
    np.testing.assert_allclose(after["codebook/count"], [0.9 * 2 + 0.1 * 2, 1.0, 1.0], rtol=1e-6)
    totals = [[-0.06, -0.09], [0.9 + 0.09, -0.02], [0.01, 1.8 + 0.15]]
    np.testing.assert_allclose(after["codebook/total"], totals, atol=1e-6)
    np.testing.assert_allclose(after["codebook"], np.array(totals) / [[2.0], [1.0], [1.0]], atol=1e-4)
    once = QUANTISER.learn(state, [LATENT])
    assert all(torch.allclose(once[k], after[k]) for k in after)


def test_codebook_becomes_the_means_of_what_it_meets() -> None:
    source = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.8, 0.8], [-0.8, 0.8], [0.0, -0.8]])
    quantiser = VQ(3, 2, decay=0.9)
    state = quantiser.initialise(source)
    state["codebook"] = centres + 0.3 * torch.randn(3, 2, generator=source)
    for _ in range(100):
        points = centres[torch.randint(3, (64,), generator=source)] + 0.05 * torch.randn(64, 2, generator=source)
        state |= quantiser.learn(state, [points.reshape(32, 4)])
    torch.testing.assert_close(state["codebook"], centres, atol=0.03, rtol=0)


def test_code_that_is_never_met_stays_finite() -> None:
    state = QUANTISER.initialise(torch.Generator().manual_seed(0))
    state["codebook"] = CODEBOOK + 5.0 * torch.tensor([[0.0], [1.0], [1.0]])
    for _ in range(2000):
        state |= QUANTISER.learn(state, [torch.zeros(4, 4)])
    assert all(torch.isfinite(v).all() for v in state.values())


def test_made_by_name() -> None:
    assert make_quantiser("vq", [8, 8], 32, 0.5, 0.9) == VQ(32, 2, 0.9, 0.5)


# --- in iQRL

SPEC = TaskSpec("made-up", 5, 2, 2, 40, False, "easy")


def make(seeds: list[int], *words: str, packed: bool = False) -> tuple[Engine, list[Progress]]:
    run = resolve([("test", parse_words(["agent=iqrl", "preset=tiny", "agent.quantizer=vq", *words]))])[0][0]
    agent = run.agent(run.settings, SPEC)
    replay = Replay(SPEC, len(seeds), agent.slices, 1000)
    for place, seed in enumerate(seeds):
        source = np.random.default_rng(seed)
        for _ in range(4):
            observation = source.normal(size=5)
            for t in range(40):
                after = 0.9 * observation + 0.3 * source.normal(size=5)
                replay.add(place, observation, source.uniform(-1, 1, 2), observation[0], False, t == 39, after)
                observation = after
    return Engine(agent, seeds, replay, packed=packed), [Progress() for _ in seeds]


def train(engine: Engine, progress: list[Progress], count: int) -> dict[str, float]:
    for _ in range(count):
        engine.update(range(len(progress)), progress)
    return engine.metrics(0)


def test_iqrl_learns_with_a_codebook() -> None:
    # The minus: with plus, latents are driven apart, and their distance to the codes grows at first.
    engine, progress = make([0], "agent.vq_codes=16", "agent.enc_lr=1e-3", "agent.profile=corrected")
    before = {k: v.clone() for k, v in engine.state.items()}
    first = train(engine, progress, 5)
    train(engine, progress, 100)
    last = train(engine, progress, 5)
    assert last["commitment_loss"] < first["commitment_loss"] and last["consistency_loss"] < first["consistency_loss"]
    assert all(not torch.equal(engine.state[k], before[k]) for k in ("codebook", "codebook/count", "codebook/total"))
    state, agent = {k: v[0] for k, v in engine.state.items()}, engine.agent
    latent = agent.latent(state, torch.randn(50, 5))
    codes = agent.codes(state, latent)
    assert codes is not None and codes[1] == 16 and codes[0].shape == (50, 8)
    torch.testing.assert_close(state["codebook"][codes[0]].flatten(-2), latent)
    assert len(codes[0].unique()) > 1
    # Each update meets the latents of six observations of 16 slices, in 8 dimensions.
    assert float(state["codebook/count"].sum()) == pytest.approx(6 * 16 * 8 * (1 - 0.99**110), rel=0.02)


def test_iqrl_commitment_trains_encoder_and_dynamics() -> None:
    engine, _ = make([0], "agent.use_tc=false", "agent.use_reward=true", "agent.vq_beta=1")
    agent: Any = engine.agent
    state = {k: v[0] for k, v in engine.state.items()}
    with_commitment, without = [], []
    for beta, norms in ((1.0, with_commitment), (0.0, without)):
        other: Any = make([0], "agent.use_tc=false", "agent.use_reward=true", f"agent.vq_beta={beta}")[0].agent
        batch = batch_of(engine)
        loss = grad(other.representation_loss, has_aux=True)
        gradient, _ = loss(state["world"], state["target"], batch, state["codebook"])
        parts = agent.world.unpack(gradient)
        norms += [float(parts[n]["1.weight"].norm()) for n in ("encoder", "dynamics")]
    assert all(a != b and a > 0 for a, b in zip(with_commitment, without, strict=True))


def batch_of(engine: Engine) -> Any:
    from iqrl.training.sampling import gather

    memory = {k: v[0] for k, v in engine.replay.tables().items()}
    return gather(memory, torch.arange(16), SPEC, engine.agent.slices)


def test_iqrl_pack_equals_packs_of_one() -> None:
    pack, together = make([0, 1, 2], packed=True)
    train(pack, together, 20)
    for seed in (0, 1, 2):
        alone, progress = make([seed])
        train(alone, progress, 20)
        for k, v in alone.state.items():
            difference = (pack.state[k][seed] - v[0]).norm() / torch.clamp(v[0].norm(), min=1e-12)
            assert float(difference) < 1e-5, (k, seed)


@pytest.mark.parametrize("word", ["agent.dyn_mode=increment", "agent.enc_grad_from=both", "agent.use_decoder=true",
                                  "agent.td_encoder=ema", "agent.use_projection=true"])  # fmt: skip
def test_iqrl_with_other_switches(word: str) -> None:
    engine, progress = make([0], word)
    assert all(np.isfinite(v) for v in train(engine, progress, 3).values())
    state = {k: v[0] for k, v in engine.state.items()}
    assert len(engine.agent.hidden(state, torch.randn(7, 5), torch.zeros(7, 2))) == 7


@pytest.mark.slow
def test_iqrl_compiled_equals_eager() -> None:
    eager, progress = make([0])
    train(eager, progress, 4)
    compiled, other = make([0])
    compiled.compiled = True
    train(compiled, other, 4)
    for k, v in eager.state.items():
        assert float((compiled.state[k] - v).norm() / torch.clamp(v.norm(), min=1e-12)) < 1e-5, k
