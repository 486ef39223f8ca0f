"""What agents of several tasks share: which task an observation is of, masks of padding, and a learned embedding.

An observation of several tasks is the task's own numbers, zeros up to the widest task's, and the task's number
(`iqrl.environments.environment.MultiTaskEnvironment`). `Told` is what a network is told of it: the task as a one-hot
vector (..., N), or nothing of a single task, whose agent is then as if there were none of this.

Sources: masks and embedding are those of TD-MPC2 (tdmpc2/common/world_model.py), but that each network here learns an
embedding of its own, with the loss that trains it; there one is shared.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iqrl.networks import MLP, Network, Parameters

if TYPE_CHECKING:
    from iqrl.environments.tasks import TaskSpec

Told = tuple[Tensor, ...]

# What an agent's Config says of its two settings, `task_dim: int = setting(96, **TASK_DIM)` and so on. At their
# defaults they leave the identity of a run as it is.
TASK_DIM: dict[str, Any] = {
    "doc": "of several tasks: width of a task's embedding", "low": 1, "high": 65536, "omit_default_from_identity": True,
}  # fmt: skip
TASK_IN_ENCODER: dict[str, Any] = {
    "doc": "of several tasks: the encoder is told the task, too", "omit_default_from_identity": True,
}  # fmt: skip


def told(spec: TaskSpec, observation: Tensor) -> Told:
    """(..., O) -> the task as a one-hot vector (..., N); nothing of a single task."""
    if not spec.tasks:
        return ()
    return ((observation[..., -1:] == torch.arange(len(spec.tasks), device=observation.device)).float(),)


def without_task(spec: TaskSpec, observation: Tensor) -> Tensor:
    """The observation without the task's number: (..., O) -> (..., O - 1); as it is of a single task."""
    return observation[..., :-1] if spec.tasks else observation


def own(x: Tensor, widths: list[int], of_task: Told) -> Tensor:
    """`x` (..., W) with zeros beyond the task's own width; as it is of a single task. Widths are by task."""
    if not of_task:
        return x
    entry = torch.arange(x.shape[-1], device=x.device)
    mask = torch.stack([(entry < width).to(x.dtype) for width in widths])  # (N, W)
    return x * (of_task[0].to(x.dtype) @ mask)


def own_mean(x: Tensor, widths: list[int], of_task: Told) -> Tensor:
    """Mean of `x` (..., W) over the task's own entries: (...)."""
    if not of_task:
        return x.mean(-1)
    own_width = sum(width * of_task[0][..., n] for n, width in enumerate(widths))
    return own(x, widths, of_task).sum(-1) / own_width


@dataclass(frozen=True)
class ToldTheTask:
    """A network whose last input is the task, one-hot (..., N), in whose place it reads an embedding (..., D).

    Attributes:
        network: with D more inputs. Each member of an ensemble has an embedding of its own.
        tasks: N.
        width: D.

    As `torch.nn.Embedding` with `max_norm=1`, rows are normal at first, and read with a norm of at most 1.
    """

    network: MLP
    tasks: int
    width: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        lead = (self.network.ensemble,) if self.network.ensemble else ()
        return {**self.network.shapes(), "embedding": (*lead, self.tasks, self.width)}

    def castable(self, name: str) -> bool:
        return name != "embedding" and self.network.castable(name)

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        parameters = self.network.initialise(generator)
        return {**parameters, "embedding": torch.randn(self.shapes()["embedding"], generator=generator)}

    def __call__(self, parameters: Parameters, *inputs: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        *others, task = inputs
        rows = parameters["embedding"]
        rows = rows / torch.clamp(torch.linalg.vector_norm(rows, dim=-1, keepdim=True), min=1.0)
        embedding = task @ rows  # (..., D), or (E, B, D)
        x = torch.cat(others, -1)
        return self.network(parameters, x.expand(*embedding.shape[:-1], x.shape[-1]), embedding, hidden=hidden)


def told_the_task(network: MLP, tasks: int, width: int) -> Network:
    """The network as one that is told which of N tasks it is; itself where there is a single one (0)."""
    if not tasks:
        return network
    return ToldTheTask(dataclasses.replace(network, inputs=network.inputs + width), tasks, width)
