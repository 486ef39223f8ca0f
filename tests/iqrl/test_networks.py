"""Networks and optimisers of flat vectors against torch.nn and torch.optim."""

from __future__ import annotations

import math

import pytest
import torch
from made_up import make
from torch import Tensor, nn

from baselines.td3 import TD3
from iqrl.environments.tasks import TaskSpec
from iqrl.iqrl import IQRL
from iqrl.networks import ALIGNMENT, MLP, Adam, ParameterGroup, layer_norm, mish, soft_update

WALKER = TaskSpec("walker-walk", 24, 6, 2, 500, False, "easy")
DOG = TaskSpec("dog-run", 223, 38, 2, 500, False, "hard")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- sizes (golden.md section 8)


@pytest.mark.parametrize(
    "spec, d, encoder, dynamics, actor, critic, totals",
    [
        (WALKER, 512, 270_080, 1_317_888, 792_582, 793_089, {2: 3_966_728, 5: 6_345_995}),
        (DOG, 1024, 584_192, 2_383_872, 1_333_286, 1_333_761, {2: 6_968_872, 5: 10_970_155}),
    ],
)
def test_iqrl_parameter_counts(
    spec: TaskSpec, d: int, encoder: int, dynamics: int, actor: int, critic: int, totals: dict[int, int]
) -> None:
    for critics, total in totals.items():
        agent = make(IQRL, spec, latent_dim=d, mlp_dims=[512, 512], enc_mlp_dims=[256], num_critics=critics)
        assert ParameterGroup({"encoder": agent.world.networks["encoder"]}).count == encoder
        assert ParameterGroup({"dynamics": agent.world.networks["dynamics"]}).count == dynamics
        assert agent.actor.count == actor
        assert agent.critic.count == critics * critic
        assert agent.world.count + agent.actor.count + agent.critic.count == total


@pytest.mark.parametrize(
    "profile, spec, actor, critics",
    [
        ("official", WALKER, 73_734, 147_970),
        ("official", DOG, 132_902, 266_242),
        ("protocol", WALKER, 280_582, 562_178),
        ("protocol", DOG, 398_886, 798_722),
    ],
)
def test_td3_parameter_counts(profile: str, spec: TaskSpec, actor: int, critics: int) -> None:
    widths = {"official": [256, 256], "protocol": [512, 512]}[profile]
    agent = make(TD3, spec, profile=profile, mlp_dims=widths)
    assert (agent.actor.count, agent.critic.count) == (actor, critics)


# --- initialisation


def test_torch_initialisation_has_the_statistics_of_nn_linear() -> None:
    net = MLP(400, (300,), 200, ensemble=3)
    values = net.initialise(generator())
    for member in range(3):
        for layer, n_in in ((0, 400), (1, 300)):
            weight, bias = values[f"{layer}.weight"][member], values[f"{layer}.bias"][member]
            theirs = nn.Linear(n_in, weight.shape[1])
            bound = 1 / math.sqrt(n_in)
            assert weight.abs().max() <= bound and weight.abs().max() > 0.999 * bound
            assert weight.std() == pytest.approx(float(theirs.weight.detach().std()), rel=0.02)
            assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
            assert weight.mean().abs() < 0.01 * bound * 3
            assert bias.abs().max() <= bound and bias.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)
        assert values["0.scale"][member].unique().tolist() == [1.0]
        assert values["0.shift"][member].unique().tolist() == [0.0]


@pytest.mark.parametrize("ensemble", [0, 4])
def test_orthogonal_initialisation_is_orthogonal_in_every_member(ensemble: int) -> None:
    values = MLP(30, (20,), 50, ensemble=ensemble, initialisation="orthogonal").initialise(generator())
    weights = [values["0.weight"], values["1.weight"]]
    for weight in (w for w in weights for w in (w if ensemble else [w])):
        n_in, n_out = weight.shape
        product = weight.t() @ weight if n_in >= n_out else weight @ weight.t()
        torch.testing.assert_close(product, torch.eye(min(n_in, n_out)), rtol=0, atol=1e-5)
    assert values["0.bias"].abs().sum() == 0 and values["1.bias"].abs().sum() == 0


@pytest.mark.parametrize("scheme", ["torch", "orthogonal", "xavier_relu"])
def test_members_of_an_ensemble_are_independent(scheme: str) -> None:
    """A stacked ensemble must not start as copies, and its fan-in must not count the ensemble's axis."""
    values = MLP(64, (64,), 64, ensemble=5, initialisation=scheme).initialise(generator())
    single = MLP(64, (64,), 64, initialisation=scheme).initialise(generator(1))
    weight = values["1.weight"]
    for i in range(5):
        assert weight[i].std() == pytest.approx(float(single["1.weight"].std()), rel=0.05)
        for j in range(i):
            correlation = torch.corrcoef(torch.stack([weight[i].flatten(), weight[j].flatten()]))[0, 1]
            assert abs(float(correlation)) < 0.1


def test_the_same_generator_gives_the_same_parameters() -> None:
    group = ParameterGroup({"a": MLP(5, (7,), 3), "b": MLP(3, (4,), 1, ensemble=2)})
    assert torch.equal(group.initialise(generator(3)), group.initialise(generator(3)))
    assert not torch.equal(group.initialise(generator(3)), group.initialise(generator(4)))


# --- forward


def plain(net: MLP, values: dict[str, Tensor], member: int | None = None) -> nn.Sequential:
    """The same network of torch.nn layers."""
    layers: list[nn.Module] = []
    pick = (lambda v: v) if member is None else (lambda v: v[member].squeeze(0) if v[member].dim() == 2 else v[member])
    for i, (n_in, n_out) in enumerate(zip(net.sizes[:-1], net.sizes[1:], strict=True)):
        layer = nn.Linear(n_in, n_out)
        weight = values[f"{i}.weight"] if member is None else values[f"{i}.weight"][member]
        layer.weight.data, layer.bias.data = weight.t().clone(), pick(values[f"{i}.bias"]).clone()
        layers.append(layer)
        if i < len(net.hidden):
            if net.norm != "none":
                norm = nn.LayerNorm(n_out, elementwise_affine=net.norm == "affine")
                if net.norm == "affine":
                    norm.weight.data = pick(values[f"{i}.scale"]).clone()
                    norm.bias.data = pick(values[f"{i}.shift"]).clone()
                layers.append(norm)
            layers.append({"mish": nn.Mish, "relu": nn.ReLU, "elu": nn.ELU, "tanh": nn.Tanh}[net.activation]())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("norm", ["affine", "plain", "none"])
@pytest.mark.parametrize("activation", ["mish", "relu", "elu", "tanh"])
@pytest.mark.parametrize("ensemble", [0, 3])
def test_forward_is_that_of_torch_layers(norm: str, activation: str, ensemble: int) -> None:
    net = MLP(6, (9, 8), 4, activation=activation, norm=norm, ensemble=ensemble)
    values = {k: v + 0.1 * torch.randn(v.shape, generator=generator(9)) for k, v in net.initialise(generator()).items()}
    x = 3 * torch.randn(11, 6, generator=generator(2))
    hidden: list[Tensor] = []
    y = net(values, x, hidden=hidden)
    assert [h.shape[-2:] for h in hidden] == [(11, 9), (11, 8)]
    if ensemble:
        expected = torch.stack([plain(net, values, m)(x) for m in range(3)])
    else:
        expected = plain(net, values)(x)
        doubled = net(values, x.reshape(11, 1, 6).expand(11, 2, 6))[:, 1]
        torch.testing.assert_close(doubled, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


def test_mish_and_its_gradient_over_a_wide_range() -> None:
    x = torch.cat([torch.linspace(-90, 90, 2001), torch.tensor([-1e4, 1e4, 0.0])]).requires_grad_()
    theirs = torch.nn.functional.mish(x)
    torch.testing.assert_close(mish(x), theirs, rtol=1e-5, atol=1e-6)
    (mine,), (expected,) = torch.autograd.grad(mish(x).sum(), x), torch.autograd.grad(theirs.sum(), x)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_layer_norm_of_a_constant_row_is_finite() -> None:
    assert layer_norm(torch.full((2, 5), 3.0)).abs().max() < 1e-3


# --- groups


def test_unpacking_gives_back_what_was_laid_out() -> None:
    networks = {"a": MLP(5, (7,), 3, precise_input=True), "b": MLP(3, (4,), 1, ensemble=2)}
    group = ParameterGroup(networks)
    flat = group.initialise(generator(5))
    g = generator(5)
    expected = {n: net.initialise(g) for n, net in networks.items()}
    views = group.unpack(flat)
    for n in networks:
        assert views[n].keys() == expected[n].keys()
        for k in expected[n]:
            assert torch.equal(views[n][k], expected[n][k])
    assert group.count == sum(v.numel() for n in expected.values() for v in n.values()) < group.size == len(flat)
    marked = torch.zeros(group.size)
    for n in networks:
        for view in group.unpack(marked)[n].values():
            assert view.untyped_storage().data_ptr() == marked.untyped_storage().data_ptr()
            assert view.storage_offset() % ALIGNMENT == 0
            view += 1.0
    assert marked.sum() == group.count and marked.max() == 1  # no element belongs to two parameters


def test_bfloat16_is_for_matrices_but_not_for_precise_layers() -> None:
    group = ParameterGroup({"a": MLP(5, (7,), 3, precise_input=True), "c": MLP(3, (4,), 1, precise_output=True)})
    views = group.unpack(group.initialise(generator()), torch.bfloat16)
    low = {(n, k) for n in views for k, v in views[n].items() if v.dtype == torch.bfloat16}
    assert low == {("a", "1.weight"), ("c", "0.weight")}


def test_extract_takes_the_part_of_another_group() -> None:
    encoder, dynamics = MLP(5, (7,), 3), MLP(6, (4,), 3)
    world, target = ParameterGroup({"encoder": encoder, "dynamics": dynamics}), ParameterGroup({"encoder": encoder})
    flat = world.initialise(generator())
    part = target.unpack(world.extract(flat, target))["encoder"]
    for k, v in world.unpack(flat)["encoder"].items():
        assert torch.equal(part[k], v)


# --- optimiser and moving averages


@pytest.mark.parametrize(
    "decay, decoupled, clip", [(0.0, True, 0.0), (0.01, True, 0.5), (0.01, False, 0.0), (0.0, True, 100.0)]
)
def test_adam_is_that_of_torch(decay: float, decoupled: bool, clip: float) -> None:
    mine = Adam(1e-2, weight_decay=decay, decoupled=decoupled, clip=clip)
    parameter = nn.Parameter(torch.randn(50, generator=generator()))
    kind = torch.optim.AdamW if decay and decoupled else torch.optim.Adam
    theirs = kind([parameter], lr=1e-2, weight_decay=decay)
    state = mine.initialise("p", parameter.detach().clone())
    for step in range(20):
        gradient = torch.randn(50, generator=generator(step)) * 10 ** (step % 3 - 1)
        gradient[:5] = 0.0
        parameter.grad = gradient.clone()
        expected_norm = float(gradient.norm())
        if clip:
            torch.nn.utils.clip_grad_norm_([parameter], clip)
        theirs.step()
        entries, norm = mine.step("p", state, gradient)
        state = {**state, **entries}
        assert float(norm) == pytest.approx(expected_norm, rel=1e-5)  # before clipping
        torch.testing.assert_close(state["p"], parameter.detach(), rtol=1e-5, atol=1e-6)
    assert float(state["p/steps"]) == 20


def test_moving_average() -> None:
    target, online = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 2.0, 0.5])
    for rate, expected in ((0.005, [1.01, -1.98, 0.5]), (0.01, [1.02, -1.96, 0.5]), (0.05, [1.1, -1.8, 0.5])):
        assert soft_update(target, online, rate).tolist() == pytest.approx(expected, abs=1e-6)
    for _ in range(3):
        target = soft_update(target, online, 0.005)
    assert target.tolist() == pytest.approx([1.02985, -1.9403, 0.5], abs=1e-5)
    assert torch.equal(soft_update(target, online, 1.0), online)
