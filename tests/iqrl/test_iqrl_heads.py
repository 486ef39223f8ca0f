"""iQRL's optional losses and quantisers: what each gradient reaches (iqrl.md sections 3 and 9)."""

import pytest
import torch

from iqrl.agent import Batch
from iqrl.environments.tasks import TaskSpec
from iqrl.iqrl import IQRL, Config
from iqrl.quantisers import FSQ, make_quantiser

SPEC = TaskSpec("walker-walk", 24, 6, 2, 500, False, "easy")
TINY = {**IQRL.presets["tiny"], "horizon": 3, "nstep": 3}


def make(**values):
    return IQRL(Config(**{**TINY, **values}), SPEC)


def state_of(agent, seed=0):
    return agent.initialise(torch.Generator().manual_seed(seed))


def batch(seed=0, size=16, horizon=3):
    g = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(horizon + 1, size, 24, generator=g),
        torch.rand(horizon, size, 6, generator=g) * 2 - 1,
        torch.rand(horizon, size, generator=g),
        torch.zeros(horizon, size),
        torch.zeros(horizon, size),
    )


def noise(agent, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(n.shape, generator=g) for k, n in agent.stage("update_all").noise.items()}


def reached(group, gradient):
    """Networks with a gradient that is not zero, and finite everywhere."""
    assert torch.isfinite(gradient).all()
    views = group.unpack(gradient)
    return {name for name, parameters in views.items() if any(p.abs().max() > 0 for p in parameters.values())}


def representation_gradient(agent, state):
    def loss(world):
        return agent.representation_loss(world, state["target"], batch(), state.get("codebook"))[0]

    return torch.func.grad(loss)(state["world"])


PLAIN = {"encoder", "dynamics"}


@pytest.mark.parametrize(
    "values, networks",
    [
        ({}, PLAIN),
        ({"rep_metric": "mse"}, PLAIN),
        ({"rep_cos_sign": 1}, PLAIN),
        ({"dyn_mode": "direct"}, PLAIN),
        ({"dyn_mode": "increment"}, PLAIN),
        ({"use_projection": True}, PLAIN | {"projection"}),
        ({"use_reward": True}, PLAIN | {"reward"}),
        ({"use_reward": True, "use_tc": False}, PLAIN | {"reward"}),
        ({"use_reward": True, "use_tc": False, "horizon": 1}, {"encoder", "reward"}),  # r_0 is read from z_0
        (
            {"use_reward": True, "use_tc": False, "horizon": 1, "released_reward_align": True},
            PLAIN | {"reward"},
        ),
        ({"use_decoder": True}, PLAIN | {"decoder"}),
        ({"use_decoder": True, "use_tc": False}, {"encoder", "decoder"}),  # a plain autoencoder
        (
            {"use_projection": True, "use_reward": True, "use_decoder": True},
            PLAIN | {"projection", "reward", "decoder"},
        ),
    ],
)
def test_what_the_representation_loss_reaches(values, networks):
    agent = make(**values)
    state = state_of(agent)
    assert reached(agent.world, representation_gradient(agent, state)) == networks


@pytest.mark.parametrize("head", ["use_reward", "use_decoder"])
def test_a_head_reads_latents_that_it_also_trains(head):
    """A head's own loss: the gradient to the encoder is the whole loss's less the consistency's."""
    both, alone = make(**{head: True}), make()
    state = state_of(both)
    short = {"world": both.world.extract(state["world"], alone.world), "target": state["target"]}
    difference = both.world.unpack(representation_gradient(both, state))["encoder"]
    plain = alone.world.unpack(representation_gradient(alone, short))["encoder"]
    assert any((difference[k] - plain[k]).abs().max() > 1e-6 for k in plain)


@pytest.mark.parametrize("values", [{}, {"use_projection": True}, {"rep_metric": "mse"}])
def test_targets_get_no_gradient(values):
    agent = make(**values)
    state = state_of(agent)
    gradient = torch.func.grad(lambda t: agent.representation_loss(state["world"], t, batch())[0])(state["target"])
    assert gradient.abs().max() == 0
    # and yet the loss depends on them
    other = state_of(agent, 1)["target"]
    losses = [agent.representation_loss(state["world"], t, batch())[0] for t in (state["target"], other)]
    assert losses[0] != losses[1]


def test_projection_has_an_average_copy_and_the_other_heads_have_none():
    agent = make(use_projection=True, use_reward=True, use_decoder=True)
    assert set(agent.target.networks) == {"encoder", "projection"}
    assert agent.world.networks["projection"].outputs == agent.width // 16
    assert make(use_projection=True, projection_dim=5).world.networks["projection"].outputs == 5


def test_the_critic_reaches_the_representation_only_where_it_is_asked_to():
    agent = make()
    state = state_of(agent)
    other = {**state, "critic": state_of(agent, 5)["critic"], "target_critic": state_of(agent, 6)["critic"]}
    for mode, depends in (("rep", False), ("td", True), ("both", True)):
        agent = make(enc_grad_from=mode)
        worlds = [agent.update_critic(s, batch(), noise(agent), {})[0]["world"] for s in (state, other)]
        assert bool((worlds[0] != worlds[1]).any()) == depends, mode


def test_the_critics_gradient_reaches_the_encoder_alone():
    agent = make(enc_grad_from="td", use_projection=True, use_reward=True, use_decoder=True)
    assert reached(agent.world, agent._td_gradient(state_of(agent), batch(), noise(agent))) == {"encoder"}


def test_the_critics_gradient_flows_through_the_online_latent_and_not_through_the_target():
    agent = make(enc_grad_from="td")
    state, data, random = state_of(agent), batch(), noise(agent)
    world = state["world"].clone().requires_grad_()

    def encode(flat, observation):
        return agent.encode(agent.world(flat), observation)

    with torch.no_grad():  # y, written out for N = H = 3 without ends
        z = encode(state["world"], data.observation[3])
        smoothing = (0.2 * random["smoothing"]).clamp(-0.3, 0.3)
        action = (agent.policy(state["target_actor"], z) + smoothing).clamp(-1, 1)
        total = data.reward[0] + 0.99 * data.reward[1] + 0.99**2 * data.reward[2]
        y = total + 0.99**3 * agent.values(state["target_critic"], z, action).min(0).values
    q = agent.values(state["critic"], encode(world, data.observation[0]), data.action[0])
    ((q - y) ** 2).mean().backward()
    torch.testing.assert_close(agent._td_gradient(state, data, random), world.grad)


def test_both_is_the_sum_of_the_two():
    agent = make(enc_grad_from="both", enc_clip=0.0)
    state, data, random = state_of(agent), batch(), noise(agent)
    total = representation_gradient(agent, state) + agent._td_gradient(state, data, random)
    mean = agent.update_critic(state, data, random, {})[0]["world/mean"]  # (1 - beta_1) g after the first step
    torch.testing.assert_close(mean, 0.1 * total, rtol=1e-4, atol=1e-8)


def test_td_alone_leaves_dynamics_to_weight_decay():
    agent = make(enc_grad_from="td")
    state = state_of(agent)
    after = agent.update_critic(state, batch(), noise(agent), {})[0]["world"]
    before, now = (agent.world.unpack(w)["dynamics"] for w in (state["world"], after))
    for name in before:
        torch.testing.assert_close(now[name], before[name] * (1 - 1e-4 * 0.01))


def test_the_actors_loss_changes_the_actor_alone():
    agent = make()
    state, data, random = state_of(agent), batch(), noise(agent)
    critic, every = (agent.run_stage(stage, state, data, random, {})[0] for stage in ("update_critic", "update_all"))
    assert {k.split("/")[0] for k in every.keys() - critic.keys()} == {"actor", "target_actor"}
    assert all(torch.equal(every[k], critic[k]) for k in critic)


def test_a_frozen_representation_does_not_change():
    for more in ({}, {"enc_grad_from": "both"}, {"td_encoder": "ema"}, {"quantizer": "vq"}):
        agent = make(freeze_encoder=True, **more)
        changed, metrics = agent.run_stage("update_all", state_of(agent), batch(), noise(agent), {})
        assert {k.split("/")[0] for k in changed} == {"actor", "critic", "target_actor", "target_critic"}
        assert "representation_loss" not in metrics and torch.isfinite(metrics["critic_loss"])


def test_a_run_that_starts_from_another_takes_its_representation_and_nothing_else():
    agent = make(use_projection=True, use_reward=True)
    fresh, source = state_of(agent, 0), state_of(agent, 1)
    taken = agent.start_from(fresh, source)
    assert set(taken) == {"world", "target"}
    assert all(torch.equal(taken[k], source[k]) for k in taken)
    learned = make(quantizer="vq")
    codebook = {"codebook", "codebook/count", "codebook/total"}
    assert set(learned.start_from(state_of(learned, 0), state_of(learned, 1))) == {"world", "target"} | codebook


# --- quantisers


def test_tanh_is_fsq_without_the_rounding():
    levels = [8, 5]
    fsq, tanh = FSQ((8, 5)), make_quantiser("tanh", levels)
    x = torch.linspace(-4, 4, 202).requires_grad_()
    soft, hard = tanh(x), fsq(x)
    spacing = torch.tensor([1 / 4, 1 / 2]).repeat(101)  # of neighbouring codes: 1 / floor(L / 2)
    assert ((soft - hard).abs() <= spacing / 2 + 1e-6).all() and (soft - hard).abs().max() > 0.2
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (soft, hard)]
    torch.testing.assert_close(*gradients)  # the straight-through gradient is the bound's


def test_simnorm_makes_groups_of_eight_that_sum_to_one():
    x = torch.randn(5, 16)
    z = make_quantiser("simnorm", [8, 8])(x)
    torch.testing.assert_close(z.reshape(5, 2, 8).sum(-1), torch.ones(5, 2))
    torch.testing.assert_close(z[:, :8], x[:, :8].exp() / x[:, :8].exp().sum(-1, keepdim=True))


def test_l2_makes_unit_vectors_whose_gradient_is_tangent():
    x = torch.randn(5, 16).requires_grad_()
    z = make_quantiser("l2", [8, 8])(x)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(5))
    (gradient,) = torch.autograd.grad((z * torch.randn(5, 16)).sum(), x)
    torch.testing.assert_close((gradient * x).sum(-1), torch.zeros(5), atol=1e-5, rtol=0)
    assert torch.isfinite(make_quantiser("l2", [8])(torch.zeros(2, 8))).all()


def test_none_is_the_identity():
    x = torch.randn(3, 16).requires_grad_()
    z = make_quantiser("none", [8, 8])(x)
    assert torch.equal(z, x) and torch.equal(torch.autograd.grad(z.sum(), x)[0], torch.ones(3, 16))


@pytest.mark.parametrize("kind", ["fsq", "vq", "tanh", "simnorm", "l2", "none"])
def test_every_quantiser_trains_at_the_same_width(kind):
    agent = make(quantizer=kind)
    assert agent.width == 8 * 2 == make().width
    state = state_of(agent)
    assert reached(agent.world, representation_gradient(agent, state)) == PLAIN
    changed, metrics = agent.run_stage("update_all", state, batch(), noise(agent), {})
    assert all(torch.isfinite(v).all() for v in (*changed.values(), *metrics.values()))
    z = agent.latent({**state, **changed}, batch().observation[0])
    assert z.shape == (16, 16)
    codes = agent.codes(state, z)
    assert (codes is not None) == (kind in ("fsq", "vq"))


def test_without_a_quantiser_the_width_may_be_that_of_the_released_code():
    assert make(quantizer="none", nofsq_width="latent_dim").width == 8
    assert make(quantizer="tanh", nofsq_width="latent_dim").width == 16  # only `none` has no channels
