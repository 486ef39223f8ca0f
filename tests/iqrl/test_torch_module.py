"""Modules of torch.nn as networks of a group: equal to the plain module, packed, compiled; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import SPEC, filled_replay, first_state, make, random_batch
from torch import Tensor, nn

from iqrl.agent import Progress
from iqrl.agents import agent_class
from iqrl.errors import InputError
from iqrl.iqrl import IQRL
from iqrl.networks import MLP, ParameterGroup
from iqrl.torch_module import TorchModule
from iqrl.training.engine import Engine

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "gru_dynamics.py"


class Convolution(nn.Module):
    """Over the entries of a vector, as over time; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.norm(self.conv(x[:, None]))).mean(-1)
        return self.head(y), y


def mixed(**options: Any) -> ParameterGroup:
    return ParameterGroup({"mlp": MLP(3, (4,), 2), "net": TorchModule(Convolution, **options)}, torch.bfloat16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_group_computes_what_the_module_does_and_so_do_gradients() -> None:
    group, plain, x = mixed(), Convolution(), torch.randn(5, 9)
    flat = group.initialise(generator())
    plain.load_state_dict(dict(group.unpack(flat)["net"]))
    for ours, theirs in zip(group(flat).net(x), plain(x), strict=True):
        assert torch.equal(ours, theirs)
    gradient = torch.func.grad(lambda v: group(v).net(x)[0].square().sum())(flat)
    plain(x)[0].square().sum().backward()
    views = group.unpack(gradient)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(views["net"][name], parameter.grad)
    assert not any(v.any() for v in views["mlp"].values())


def test_initialisation_depends_on_the_generator_alone_and_leaves_the_global_one() -> None:
    group = mixed()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = group.initialise(generator())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(mixed().initialise(generator()), first)
    assert not torch.equal(group.unpack(group.initialise(generator(1)))["net"]["conv.weight"],
                           group.unpack(first)["net"]["conv.weight"])  # fmt: skip
    assert float(group.unpack(first)["net"]["norm.weight"].mean()) == 1.0  # as the module itself does it


def test_low_precision_is_of_parameters_and_inputs() -> None:
    group = mixed(low_precision=True)
    flat, x = group.initialise(generator()), torch.randn(5, 9)
    low, high = group(flat).net(x)[0], mixed()(mixed().initialise(generator())).net(x)[0]
    assert group(flat).net.parameters["conv.bias"].dtype == torch.bfloat16 and low.dtype == torch.float32
    assert 0 < float((low - high).abs().max()) < 0.05
    assert mixed()(flat).net.parameters["conv.weight"].dtype == torch.float32


class Dropping(nn.Module):
    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(2, 2), nn.Dropout(rate)


def frozen() -> nn.Module:
    return nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "Sequential: '1.running_mean' is a buffer"),
        (Dropping, "Dropping: 'dropout' drops out at random; expected a rate of 0"),
        (lambda: nn.MultiheadAttention(4, 2, dropout=0.1), "MultiheadAttention: 'MultiheadAttention' drops out"),
        (frozen, "Linear: 'weight' is frozen; expected"),
        (nn.ReLU, "ReLU: has no parameters"),
    ],
)
def test_what_is_no_function_of_its_parameters_is_refused(build: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(TypeError) as error:
        TorchModule(build)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_dropout_that_is_off_is_none() -> None:
    assert TorchModule(lambda: Dropping(0.0)).shapes() == TorchModule(lambda: Dropping().eval()).shapes()


# --- the example


def example() -> type[IQRL]:
    return agent_class(str(EXAMPLE))[0]  # type: ignore[return-value]


def engine(seeds: list[int], **options: Any) -> Engine:
    agent = make(example(), use_reward=True)
    return Engine(agent, seeds, filled_replay(agent.slices, seeds), **options)


def train(learner: Engine, updates: int = 6) -> None:
    places = list(range(len(learner.seeds)))
    progress = [Progress() for _ in places]
    for _ in range(updates):
        learner.update(places, progress)


def test_the_example_unrolls_its_cell() -> None:
    agent = make(example())
    state, batch = first_state(agent), random_batch(agent.slices.horizon, 16)
    world = agent.world(state["world"])
    cell = nn.GRUCell(SPEC.action_dim, agent.width)
    cell.load_state_dict({k.removeprefix("cell."): v for k, v in world.dynamics.parameters.items()})
    z = agent.encode(world, batch.observation[0])
    for action in batch.action:
        expected = agent.quantise(cell(action, z))
        following = agent.step(world, z, action)
        assert float((following != expected).float().mean()) < 0.01  # z + (h - z) may round to the other code
        z = expected


def test_the_example_learns_packed_as_alone() -> None:
    pack = engine([4, 0, 7], packed=True)
    train(pack)
    for place, seed in enumerate(pack.seeds):
        alone = engine([seed])
        before = alone.state["world"].clone()
        train(alone)
        torch.testing.assert_close(pack.state["world"][place], alone.state["world"][0], rtol=1e-4, atol=1e-5)
        moved = alone.agent.world.unpack((alone.state["world"] - before)[0])["dynamics"]
        assert all(v.any() for v in moved.values())


@pytest.mark.slow
def test_the_example_learns_compiled_as_eager(capfd: pytest.CaptureFixture[str]) -> None:
    compiled, eager = engine([2], compiled=True), engine([2])
    train(compiled)
    train(eager)
    assert "warning" not in capfd.readouterr().err  # it did not fall back
    for k, v in eager.state.items():
        torch.testing.assert_close(compiled.state[k], v, rtol=1e-4, atol=1e-5)


# --- agents of before


def test_a_hook_of_an_old_name_is_told(tmp_path: Path) -> None:
    text = EXAMPLE.read_text() + "\n    def clock(self, progress):\n        return {}\n"
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=r"mine.py: TypeError: GRUIQRL.clock: is called `schedule` now"):
        agent_class(str(tmp_path / "mine.py"))
