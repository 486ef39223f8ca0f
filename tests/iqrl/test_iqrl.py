"""iQRL: golden losses, whole updates against a plain restatement, and what each loss updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_up import first_state, make, random_batch
from plain_iqrl import PlainIQRL
from plain_networks import agree, differences
from torch import Tensor

from iqrl.agent import Batch
from iqrl.consistency import step_weights
from iqrl.iqrl import IQRL, consistency

# --- consistency and masks (golden.md section 3)

PREDICTED = torch.tensor([[[1, 0], [0.6, 0.8]], [[0, -1], [1, 1]], [[1, 2], [-1, 0]]])  # (H, B, 2)
TARGET = torch.tensor([[[1.0, 0], [1, 0]], [[0, 1], [1, 0]], [[2, 4], [-2, 0]]])
GOLDEN = {  # -sum cosine, -mean cosine, sum MSE, mean MSE
    "none": (-1.478198, -0.492733, 2.54, 0.846667),
    "after_end": (-1.073198, -0.357733, 2.3375, 0.779167),
    "released": (-1.16, -0.386667, 2.315, 0.771667),
    "minimal": (-0.755, -0.251667, 2.1125, 0.704167),
}
ENDED = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])


@pytest.mark.parametrize("kind", ["truncated", "terminated"])
@pytest.mark.parametrize("mode", GOLDEN)
def test_consistency_with_masks(mode: str, kind: str) -> None:
    flags = {"truncated": torch.zeros(3, 2), "terminated": torch.zeros(3, 2), kind: ENDED}
    plain = torch.zeros(4, 2, 5), torch.zeros(3, 2, 2), torch.zeros(3, 2)
    batch = Batch(*plain, flags["terminated"], flags["truncated"])
    results = []
    for metric in ("cosine", "mse"):
        error = consistency(PREDICTED, TARGET, metric, -1)
        for reduction in ("sum", "mean"):
            agent = make(IQRL, horizon=3, mask_mode=mode, rep_reduction=reduction)
            results.append(float((step_weights(agent.config, batch) * error).mean(1).sum()))
    assert results == pytest.approx(GOLDEN[mode], abs=1e-5)
    released = consistency(PREDICTED, TARGET, "cosine", 1)
    assert float((step_weights(agent.config, batch) * released).mean(1).sum()) == pytest.approx(
        -GOLDEN[mode][1], abs=1e-5
    )


def test_cosines() -> None:
    expected = [[1, 0.6], [-1, 0.707107], [1, 1]]
    assert consistency(PREDICTED, TARGET, "cosine", 1).tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


def test_a_zero_code_gives_cosine_zero_and_a_finite_gradient() -> None:
    goal = torch.tensor([[1.0, 0.0]])
    z = torch.zeros(1, 2, requires_grad=True)
    error = consistency(z, goal, "cosine", -1)
    assert error.item() == 0
    error.sum().backward()
    assert torch.isfinite(z.grad).all() and z.grad[0, 0] == pytest.approx(-1e6)  # -goal / 1e-6: clipping tames it
    assert consistency(goal, torch.zeros(1, 2), "cosine", 1).item() == 0


def test_target_policy_smoothing() -> None:
    """pi + clip(0.2 eps, -0.3, 0.3), clipped to the action range; seen through a critic that reads the action."""
    noise = torch.tensor([0.5, -2.0, 1.2, 3.0])
    pi = torch.tensor([0.1, -0.9, 0.8, 0.95])
    agent = make(IQRL, nstep=1, discount=1.0)
    agent.policy = lambda actor, z: pi[:, None]
    seen: list[Tensor] = []

    def values(critic: Tensor, z: Tensor, action: Tensor, draw: Tensor | None) -> Tensor:
        seen.append(action[:, 0])
        return action.T

    agent.values = values
    batch = random_batch(5, 4, ends=0.0)
    state = first_state(agent)
    world = agent.world(state["world"])
    y = agent.target_value(state, batch, world, {"smoothing": noise[:, None]})
    assert seen[0].tolist() == pytest.approx([0.2, -1.0, 1.0, 1.0], abs=1e-6)
    assert (y - batch.reward[0]).tolist() == pytest.approx([0.2, -1.0, 1.0, 1.0], abs=1e-6)


# --- whole updates

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "n_step": {"nstep": 3},
    "n_step_beyond_the_horizon": {"nstep": 5, "horizon": 2},
    "horizon_1": {"horizon": 1},
    "released": {"profile": "released", "cross_episode_slices": False, "use_reward": True, "nstep": 3},
    "released_one_step": {"profile": "released", "cross_episode_slices": False},
    "no_fsq": {"quantizer": "none"},
    "unequal_levels": {"fsq_levels": [8, 5, 3]},
    "mse": {"rep_metric": "mse", "rep_reduction": "sum", "rep_discount": 0.7},
    "direct": {"dyn_mode": "direct"},
    "increment": {"dyn_mode": "increment"},
    "projection": {"use_projection": True, "projection_dim": 6},
    "reward": {"use_reward": True},
    "decoder": {"use_decoder": True, "mask_mode": "minimal"},
    "every_head": {"use_projection": True, "projection_dim": 6, "use_reward": True, "use_decoder": True},
    "reward_alone": {"use_reward": True, "use_tc": False},
    "no_momentum": {"enc_tau": 1.0},
    "five_critics": {"num_critics": 5, "q_sample": 2},
    "five_critics_average": {"num_critics": 5, "actor_q": "avg"},
    "ema_inputs": {"td_encoder": "ema"},
    "td_gradient": {"enc_grad_from": "td"},
    "both_gradients": {"enc_grad_from": "both", "td_encoder": "ema", "nstep": 3},
    "clipped_hard": {"enc_clip": 0.01},
    "not_clipped": {"enc_clip": 0.0, "enc_weight_decay": 0.3},
    "actor_every": {"actor_every": 1, "policy_noise": 1.0, "noise_clip": 0.5},
    "orthogonal": {"init": "orthogonal"},
}


def draw_noise(agent: IQRL, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    kinds = {"normal": torch.randn, "uniform": torch.rand}
    return {k: kinds[n.kind](n.shape, generator=g) for k, n in agent.stage("update_all").noise.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_updates_are_those_of_the_specification(variant: str) -> None:
    # A large learning rate, so that a wrong sign, order or target shows after one update.
    rates = {"lr": 1e-2, "enc_lr": 1e-2, "tau": 0.1, "enc_tau": 0.2}
    agent = make(IQRL, **{"batch_size": 8, **rates, **VARIANTS[variant]})
    state = first_state(agent)
    plain = PlainIQRL(agent, state)
    for number in range(1, 5):
        batch, noise = random_batch(agent.slices.horizon, 8, seed=number), draw_noise(agent, number)
        (stage,) = agent.stages(number)
        changed, metrics = agent.run_stage(stage, state, batch, noise, {})
        state = {**state, **changed}
        told = plain.update(batch, noise, number)
        for name, value in told.items():
            assert float(metrics[name]) == pytest.approx(value, rel=1e-5 if number == 1 else 1e-3, abs=1e-5), name
        assert ("actor_loss" in metrics) == ("actor_loss" in told)
        found = {n: differences(agent.world, state["world"], n, [net]) for n, net in plain.net.items()}
        found |= {f"{n} bar": differences(agent.target, state["target"], n, [net]) for n, net in plain.bar.items()}
        for key, net in (("actor", plain.actor), ("target_actor", plain.actor_bar)):
            found[key] = differences(agent.actor, state[key], "actor", [net])
        for key, critics in (("critic", plain.critics), ("target_critic", plain.critics_bar)):
            found[key] = differences(agent.critic, state[key], "critic", list(critics))
        tolerance = 1e-5 if number <= 2 else 1e-4
        assert [key for key, difference in found.items() if not agree(difference, tolerance, rates["lr"])] == []


# --- what each loss updates


def entries(changed: dict[str, Tensor]) -> set[str]:
    return {k.split("/")[0] for k in changed}


def test_what_an_update_changes() -> None:
    agent = make(IQRL)
    state = first_state(agent)
    batch, noise = random_batch(5, 16), draw_noise(agent, 0)
    critic_only, metrics = agent.update_critic(state, batch, noise, {})
    assert entries(critic_only) == {"world", "target", "critic", "target_critic"}
    assert "actor_loss" not in metrics
    everything, _ = agent.run_stage("update_all", state, batch, noise, {})
    assert entries(everything) == {"world", "target", "critic", "target_critic", "actor", "target_actor"}
    for k in critic_only:  # the delayed actor changes nothing else
        assert torch.equal(critic_only[k], everything[k])
    frozen = make(IQRL, freeze_encoder=True).update_critic(state, batch, noise, {})[0]
    assert entries(frozen) == {"critic", "target_critic"}


def test_the_representation_does_not_depend_on_actor_and_critics() -> None:
    agent = make(IQRL)
    state, other = first_state(agent, 0), first_state(agent, 1)
    batch, noise = random_batch(5, 16), draw_noise(agent, 0)
    mixed = {**state, **{k: other[k] for k in other if "actor" in k or "critic" in k}}
    ours, theirs = (agent.run_stage("update_all", s, batch, noise, {})[0] for s in (state, mixed))
    assert torch.equal(ours["world"], theirs["world"]) and torch.equal(ours["target"], theirs["target"])
    assert not torch.equal(ours["critic"], theirs["critic"])


def test_actor_loss_reaches_the_actor_and_critic_loss_the_critics_alone() -> None:
    agent = make(IQRL)
    state = first_state(agent)
    batch = random_batch(5, 16)
    z = agent.encode(agent.world(state["world"]), batch.observation[0])
    actor, critic = (state[k].clone().requires_grad_() for k in ("actor", "critic"))
    agent.actor_loss(actor, critic, z, None).backward()
    assert actor.grad.abs().sum() > 0  # the critic's gradient exists too; the update never asks for it
    before = state["critic"].clone()
    y = torch.randn(16)
    loss, _ = agent.critic_loss(critic, z, batch.action[0], y)
    assert loss.shape == ()
    changed, _ = agent.run_stage("update_all", state, batch, draw_noise(agent, 0), {})
    assert torch.equal(state["critic"], before)  # an update is pure: it changes nothing that it is given
    assert not torch.equal(changed["critic"], before)


def test_targets_start_as_exact_copies() -> None:
    agent = make(IQRL, use_projection=True)
    state = first_state(agent)
    assert torch.equal(state["target_actor"], state["actor"]) and torch.equal(state["target_critic"], state["critic"])
    assert torch.equal(state["target"], agent.world.extract(state["world"], agent.target))


def test_padding_stays_zero() -> None:
    agent = make(IQRL)
    state = first_state(agent)
    state = {**state, **agent.run_stage("update_all", state, random_batch(5, 16), draw_noise(agent, 0), {})[0]}
    for key, group in (("world", agent.world), ("actor", agent.actor), ("critic", agent.critic)):
        used = torch.zeros(group.size)
        for parameters in group.unpack(used).values():
            for view in parameters.values():
                view += 1
        assert (state[key][used == 0] == 0).all()


def test_acting_is_greedy_without_noise_and_clipped_with_it() -> None:
    agent = make(IQRL)
    state = first_state(agent)
    observation = torch.randn(7, 5)
    greedy, _ = agent.act(state, {}, observation, {}, {})
    assert greedy.shape == (7, 2) and greedy.abs().max() < 1
    noise = torch.randn(7, 2) * 3
    noisy, _ = agent.act(state, {}, observation, {"action": noise}, {"sigma": torch.tensor(0.5)})
    torch.testing.assert_close(noisy, (greedy + 0.5 * noise).clamp(-1, 1))
