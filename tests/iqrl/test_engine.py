"""Packs, compiled and low-precision updates against single eager ones; random numbers as functions of a key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_up import SPEC, filled_replay, make
from torch import Tensor

from baselines.td3 import TD3
from iqrl.agent import Agent, Noise, Progress, Slices, Stage
from iqrl.iqrl import IQRL
from iqrl.training.engine import Engine
from iqrl.training.random_numbers import draw, generator

CASES: dict[str, tuple[type[Agent[Any]], dict[str, Any]]] = {
    "iqrl": (IQRL, {"nstep": 3}),
    "iqrl_released": (IQRL, {"profile": "released"}),
    "td3": (TD3, {}),
    "td3_official": (TD3, {"profile": "official"}),
}


def engine(case: str, seeds: list[int], scale: dict[int, float] | None = None, **options: Any) -> Engine:
    cls, values = CASES[case]
    values = values | options.pop("values", {})
    agent = make(cls, dtype=options.pop("dtype", torch.float32), **values)
    return Engine(agent, seeds, filled_replay(agent.slices, seeds, scale=scale), **options)


def train(engine: Engine, updates: int = 20, progress: list[Progress] | None = None) -> list[dict[str, float]]:
    progress = progress or [Progress() for _ in engine.seeds]
    group = list(range(len(engine.seeds)))
    for _ in range(updates):
        engine.update(group, progress)
    assert {p.updates for p in progress} == {updates}
    return [engine.metrics(place) for place in group]


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of the parameters and targets, relative to the largest entry of each."""
    keys = [k for k in one if "/" not in k]
    assert one.keys() == other.keys() and keys
    return max(float((one[k] - other[k]).abs().max() / other[k].abs().max()) for k in keys)


def one_seed(engine: Engine, place: int) -> dict[str, Tensor]:
    return {k: v[place] for k, v in engine.state.items()}


# --- packs


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_a_pack_of_three_is_three_packs_of_one(case: str, packed: bool) -> None:
    seeds = [4, 0, 7]
    together = engine(case, seeds, packed=packed)
    metrics = train(together)
    for place, seed in enumerate(seeds):
        alone = engine(case, [seed])
        (expected,) = train(alone)
        difference = largest_difference(one_seed(together, place), one_seed(alone, 0))
        assert difference <= (1e-5 if packed else 0.0)  # one after the other it is bitwise the same
        assert metrics[place] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert largest_difference(one_seed(together, 0), one_seed(together, 1)) > 1e-2  # seeds differ


@pytest.mark.parametrize("packed", [True, False])
def test_each_seed_is_clipped_by_its_own_norm(packed: bool) -> None:
    """One seed whose gradients are far over the clip, one far under: neither may notice the other."""
    seeds, scale = [0, 1, 2], {0: 1.0, 1: 300.0, 2: 0.01}
    values = {"use_decoder": True, "enc_clip": 4.0}
    together = engine("iqrl", seeds, scale, packed=packed, values=values)
    metrics = train(together)
    norms = [m["representation_gradient_norm"] for m in metrics]
    assert norms[1] > 40 * 4.0 and norms[2] < 4.0
    for place, seed in enumerate(seeds):
        alone = engine("iqrl", [seed], scale, values=values)
        train(alone)
        assert largest_difference(one_seed(together, place), one_seed(alone, 0)) <= (1e-5 if packed else 0.0)


def test_a_seed_of_nothing_but_nan_leaves_the_others_as_they_are() -> None:
    seeds = [0, 1, 2]
    for packed in (True, False):
        broken = engine("iqrl", seeds, {1: float("nan")}, packed=packed)
        train(broken)
        healthy = engine("iqrl", seeds, packed=packed)
        train(healthy)
        assert not torch.isfinite(broken.state["critic"][1]).all()
        for place in (0, 2):
            for k, v in one_seed(healthy, place).items():
                assert torch.equal(v, broken.state[k][place])


def test_runs_at_different_updates_use_their_own_random_numbers() -> None:
    """Seed 1 is three updates behind in its pack; alone, it comes to the same."""
    together = engine("iqrl", [0, 1], packed=True)
    progress = [Progress(), Progress()]
    for _ in range(3):
        together.update([0], progress)
    for _ in range(5):
        together.update([1], progress)
    for _ in range(2):
        together.update([0], progress)
    for place, seed in enumerate([0, 1]):
        alone = engine("iqrl", [seed])
        train(alone, 5)
        assert largest_difference(one_seed(together, place), one_seed(alone, 0)) == 0


def test_acting_in_a_pack() -> None:
    seeds = [3, 5]
    observation = torch.randn(2, 4, 5).numpy()
    for case in CASES:
        results = {}
        for packed in (True, False):
            together = engine(case, seeds, packed=packed)
            progress = [Progress(decisions=9), Progress(decisions=11)]
            greedy, _ = together.act([0, 1], observation, {}, [{}, {}], progress)
            alone, _ = together.act([1], observation[1:], {}, [{}], progress)
            assert abs(greedy[1] - alone[0]).max() < 1e-6
            results[packed] = greedy
        assert abs(results[True] - results[False]).max() < 1e-6


# --- random numbers


def test_random_numbers_are_functions_of_their_key() -> None:
    a = torch.randn(5, generator=generator("cpu", 1, 2, 3))
    assert torch.equal(a, torch.randn(5, generator=generator("cpu", 1, 2, 3)))
    for other in ((1, 2, 4), (3, 2, 1), (1, 2), (1, 2, 3, 1)):
        assert not torch.equal(a, torch.randn(5, generator=generator("cpu", *other)))


@pytest.mark.parametrize("kind", ["normal", "uniform", "uniform64", "bits"])
def test_kinds_of_random_numbers(kind: str) -> None:
    x = draw(Noise((50,), kind), 400, generator("cpu", 0))
    assert x.shape == (400, 50)
    assert x.dtype == {"uniform64": torch.float64, "bits": torch.int32}.get(kind, torch.float32)
    if kind == "normal":
        assert abs(float(x.mean())) < 0.03 and abs(float(x.std()) - 1) < 0.03
    elif kind != "bits":
        assert x.min() >= 0 and x.max() < 1 and abs(float(x.mean()) - 0.5) < 0.01


def test_a_saved_engine_goes_on_bitwise() -> None:
    """Within a chunk of random numbers, between actor updates, with metrics half summed."""
    for case in CASES:
        whole = engine(case, [6])
        expected = train(whole, 90)  # chunks are of 64
        first = engine(case, [6])
        progress = [Progress()]
        for _ in range(71):
            first.update([0], progress)
        second = engine(case, [6])
        second.load(0, first.save(0))
        for _ in range(19):
            second.update([0], progress)
        for k, v in whole.state.items():
            assert torch.equal(v, second.state[k])
        assert [second.metrics(0)] == expected


def test_a_saved_engine_does_not_change_with_the_living_one() -> None:
    living = engine("iqrl", [0])
    train(living, 2)
    saved = living.save(0)
    before = {k: v.clone() for k, v in saved["state"].items()}
    train(living, 2)
    assert all(torch.equal(before[k], v) for k, v in saved["state"].items())


def test_a_saved_engine_of_other_networks_is_refused() -> None:
    other = make(IQRL, mlp_dims=[8])
    with pytest.raises(ValueError, match="does not fit"):
        Engine(other, [0], filled_replay(other.slices, [0])).load(0, engine("iqrl", [0]).save(0))


def test_a_saved_engine_of_other_code_is_refused() -> None:
    """Equal sizes are not enough: a matrix may have moved within its group's vector."""
    saved = engine("iqrl", [0]).save(0)
    saved["layout"]["actor"] = "0" * 16
    with pytest.raises(ValueError, match="another version of the code"):
        engine("iqrl", [0]).load(0, saved)


def test_exploration_noise_does_not_depend_on_the_pack_or_on_when_it_starts() -> None:
    observation = torch.randn(2, 5).numpy()
    together, alone = engine("td3", [3, 5], packed=False), engine("td3", [5])
    for decision in (0, 511, 512, 6000, 6001):
        progress = [Progress(decisions=decision, episodes=decision // SPEC.episode_decisions) for _ in range(2)]
        both, _ = together.explore([0, 1], observation, {}, progress)
        one, _ = alone.explore([0], observation[1:], {}, progress)
        assert (both[1] == one[0]).all()
        assert (both[0] != both[1]).any()


# --- precision and compilation


@pytest.mark.parametrize("case", ["iqrl", "td3"])
def test_bfloat16_is_close_to_float32(case: str) -> None:
    low, full = engine(case, [0], dtype=torch.bfloat16), engine(case, [0])
    (coarse,), (fine,) = train(low), train(full)
    for name in ("critic_loss", "target_mean", "q_mean"):
        assert coarse[name] == pytest.approx(fine[name], rel=0.1, abs=0.05)
    assert all(v.dtype == torch.float32 for v in low.state.values())
    difference = largest_difference(one_seed(low, 0), one_seed(full, 0))
    assert 0 < difference < 0.05


@pytest.mark.parametrize("case", [pytest.param("iqrl", marks=pytest.mark.slow), "td3"])
def test_compiled_is_eager_and_compiles_once(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, compiled = engine(case, [2]), engine(case, [2], compiled=True)
    (expected,), (metrics,) = train(eager), train(compiled)
    assert "warning" not in capsys.readouterr().err  # it did not fall back
    assert largest_difference(one_seed(compiled, 0), one_seed(eager, 0)) < 1e-5
    assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 2  # with and without the actor
    train(compiled, 20, [Progress()])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert not torch._dynamo.utils.counters["recompiles"]


def test_what_cannot_be_compiled_runs_eager_with_one_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(function: Any, **_: Any) -> Any:
        def call(*_: Any) -> Any:
            raise RuntimeError("no compiler\nhere")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    fallen = engine("td3", [0], compiled=True)
    train(fallen)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("no compiler" in line and "eager" in line for line in lines)
    plain = engine("td3", [0])
    train(plain)
    assert largest_difference(one_seed(fallen, 0), one_seed(plain, 0)) == 0


# --- stages of several parts


class Halves(TD3):
    """One stage of two parts, the first of which turns all priorities over."""

    @property
    def slices(self) -> Slices:
        return Slices(2, 16, prioritised=True)

    def stages(self, update: int) -> tuple[str, ...]:
        return ("first",) if update % 2 else ("both",)

    def stage(self, name: str) -> Stage:
        noise = {"first": ["a"], "second": ["b"]}.get(name, ["a", "b"])
        return Stage(noise={k: Noise((3,)) for k in noise}, parts=("first", "second") if name == "both" else ())

    def first(self, state: Any, batch: Any, noise: Any, schedule: Any) -> Any:
        assert set(noise) - {"slices", "sampled"} == {"a"}
        q = batch.reward.sum().expand(state["critic"].shape)
        return {"critic": q, "target_critic": state["critic"]}, {"priority": torch.exp(batch.reward[0])}

    def second(self, state: Any, batch: Any, noise: Any, schedule: Any) -> Any:
        assert set(noise) - {"slices", "sampled"} == {"b"}
        return {"actor": batch.reward.sum().expand(state["actor"].shape)}, {"b": noise["b"].sum()}


@pytest.mark.parametrize("packed", [True, False])
def test_parts_of_a_stage_share_a_batch_and_see_what_was_changed(packed: bool) -> None:
    agent = Halves(make(TD3).config, SPEC)
    learner = Engine(agent, [4, 7], filled_replay(agent.slices, [4, 7]), packed=packed)
    metrics = train(learner, 6)
    state = learner.state
    assert torch.equal(state["actor"][:, 0], state["critic"][:, 0])  # both are of the last batch
    assert (state["critic"][:, 0] != state["target_critic"][:, 0]).all()  # which is not the one before
    assert metrics[0]["b"] != metrics[1]["b"]
    assert [counts == {"first": 3, "both": 3} for counts in learner.stage_counts] == [True, True]


def test_a_method_that_its_stage_does_not_call_is_told() -> None:
    class Old(TD3):
        def update_all(self, *given: Any) -> Any:
            return super().update_critic(*given)

    agent = Old(make(TD3).config, SPEC)
    with pytest.raises(TypeError, match=r"Old.update_all: is never called; expected update_critic and update_actor"):
        train(Engine(agent, [0], filled_replay(agent.slices, [0])), 2)


# --- what an agent of one's own may get wrong


class Careless(TD3):
    """TD3 with something else in the place of what `wrong` says."""

    def __init__(self, wrong: Any, *given: Any) -> None:
        super().__init__(*given)
        self.wrong = wrong

    def update_critic(self, *given: Any) -> Any:
        return self.wrong(super().update_critic(*given))


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"compiled": True}])
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda result: result[0], "expected to return (changed state, metrics), two dicts"),
        (lambda result: None, "expected to return (changed state, metrics), two dicts"),
        (lambda result: (result[0], [0.0]), "expected to return (changed state, metrics), two dicts"),
        (lambda result: ({**result[0], "citric": result[0]["critic"]}, {}), "changes 'citric'; expected one of actor,"),
        (lambda result: ({"critic": result[0]["critic"][:1]}, {}), "the state's 'critic' has shape (1,); expected a"),
        (lambda result: ({"critic": 0.0}, {}), "the state's 'critic' is a float; expected a tensor of shape ("),
        (lambda result: ({}, {"loss": 1.0}), "the metric 'loss' is a float; expected a tensor of shape ()"),
        (lambda result: ({}, {"loss": result[0]["critic"][:2]}), "the metric 'loss' has shape (2,); expected a tensor"),
        (lambda result: ({}, {"priority": result[0]["critic"][:2]}), "the metric 'priority' has shape (2,); expected"),
    ],
)
def test_what_a_stage_returns_wrongly_is_told(wrong: Any, told: str, options: dict[str, Any]) -> None:
    """A smaller tensor would be broadcast into the state without a word."""
    settings = make(TD3).config
    agent = Careless(wrong, settings, SPEC)
    learner = Engine(agent, [0, 1], filled_replay(agent.slices, [0, 1]), **options)
    with pytest.raises(TypeError) as error:
        train(learner, 1)
    assert "stage 'update_" in str(error.value) and told in str(error.value)


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda action, carry: (action[:, :1], carry), r"the actions has shape \(3, 1\); expected .* \(3, 2\)"),
        (lambda action, carry: (action, {"plan": action}), r"carries \['plan'\]; expected \[\]"),
    ],
)
def test_what_act_returns_wrongly_is_told(act: Any, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = TD3.act
    monkeypatch.setattr(TD3, "act", lambda self, *given: act(*usual(self, *given)))
    learner = engine("td3", [0])
    with pytest.raises(TypeError, match=told):
        learner.act([0], np.zeros((1, 3, SPEC.observation_dim), np.float32), {}, [{}], [Progress()])
