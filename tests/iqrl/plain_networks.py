"""Networks and parts of losses said again with torch.nn, torch.optim and loops, sharing no code with the agents."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from iqrl.agent import Batch
from iqrl.networks import MLP, ParameterGroup


class Net(nn.Module):
    """One MLP, or one member of an ensemble, with the parameters of a flat vector."""

    def __init__(self, net: MLP, parameters: dict[str, Tensor], member: int | None = None) -> None:
        super().__init__()
        self.linear, self.norm = nn.ModuleList(), nn.ModuleList()
        self.activation = {"mish": nn.functional.mish, "relu": torch.relu}[net.activation]
        pick = (lambda v: v.clone()) if member is None else (lambda v: v[member].clone())
        for i in range(len(net.sizes) - 1):
            layer = nn.Linear(net.sizes[i], net.sizes[i + 1])
            layer.weight.data = pick(parameters[f"{i}.weight"]).t().contiguous()
            layer.bias.data = pick(parameters[f"{i}.bias"]).flatten()
            self.linear.append(layer)
            if net.norm == "affine" and i < len(net.hidden):
                norm = nn.LayerNorm(net.sizes[i + 1])
                norm.weight.data = pick(parameters[f"{i}.scale"]).flatten()
                norm.bias.data = pick(parameters[f"{i}.shift"]).flatten()
                self.norm.append(norm)

    def forward(self, *inputs: Tensor) -> Tensor:
        x = torch.cat(inputs, -1)
        for i, layer in enumerate(self.linear[:-1]):
            x = layer(x)
            x = self.activation(self.norm[i](x) if self.norm else x)
        return self.linear[-1](x)

    def export(self) -> dict[str, Tensor]:
        """Parameters by the names that `MLP` has for them."""
        out: dict[str, Tensor] = {}
        for i, layer in enumerate(self.linear):
            out[f"{i}.weight"], out[f"{i}.bias"] = layer.weight.data.t(), layer.bias.data
            if i < len(self.norm):
                out[f"{i}.scale"], out[f"{i}.shift"] = self.norm[i].weight.data, self.norm[i].bias.data
        return out


def nets(group: ParameterGroup, flat: Tensor, name: str) -> list[Net]:
    """The members of the network `name` of a group."""
    net, parameters = group.networks[name], group.unpack(flat)[name]
    return [Net(net, parameters, k) for k in range(net.ensemble)] if net.ensemble else [Net(net, parameters)]


def differences(group: ParameterGroup, flat: Tensor, name: str, members: list[Net]) -> Tensor:
    """Absolute, between every parameter of a flat vector and its like in plain networks."""
    ours = group.unpack(flat)[name]
    ensemble = group.networks[name].ensemble
    found = []
    for k, member in enumerate(members):
        for key, value in member.export().items():
            mine = ours[key][k] if ensemble else ours[key]
            found.append((mine.reshape(value.shape) - value).abs().flatten())
    return torch.cat(found)


def agree(difference: Tensor, tolerance: float, learning_rate: float) -> bool:
    """All but a few parameters to the tolerance. Adam takes a gradient of 1e-9 for one of 1: where nothing but rounding
    is left of a gradient, a parameter may be anywhere within a step."""
    return float((difference > tolerance).float().mean()) < 0.01 and float(difference.max()) < learning_rate


def average(target: nn.Module, online: nn.Module, rate: float) -> None:
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.data = (1 - rate) * old.data + rate * new.data


def fsq(x: Tensor, levels: list[int]) -> Tensor:
    """Channel by channel; the straight-through gradient written out."""
    channels = []
    for i, level in enumerate(levels):
        half = (level - 1) * 1.001 / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        b = torch.tanh(x[..., i :: len(levels)] + math.atanh(offset / half)) * half - offset
        channels.append((b + (b.round() - b).detach()) / (level // 2))
    return torch.stack(channels, -1).flatten(-2)


def end(batch: Batch, h: int, b: int) -> bool:
    return bool(batch.terminated[h, b] or batch.truncated[h, b])


def masks(batch: Batch, horizon: int, mode: str) -> list[list[float]]:
    """m[h][b]."""
    rows = []
    for h in range(horizon):
        row = []
        for b in range(batch.reward.shape[1]):
            before = any(end(batch, j, b) for j in range(h))
            row.append(
                {
                    "after_end": 0.0 if before else 1.0,
                    "released": 0.0 if end(batch, h, b) else 1.0,
                    "minimal": 0.0 if before or end(batch, h, b) else 1.0,
                    "none": 1.0,
                }[mode]
            )
        rows.append(row)
    return rows


def bellman(batch: Batch, n: int, discount: float, value: Any, released: bool = False) -> Tensor:
    """y (B,), where `value(k)` gives the bootstrap values (B,) of the states after transition k."""
    values = [value(k) for k in range(n)]
    targets = []
    for b in range(batch.reward.shape[1]):
        total, factor, k = 0.0, 1.0, 0
        if released and n == 1:
            targets.append(float(batch.reward[0, b]) + (1 - float(batch.terminated[0, b])) * float(values[0][b]))
            continue
        while True:
            stop = end(batch, k, b)
            if not (released and stop):
                total += factor * float(batch.reward[k, b])
                factor *= discount
            if not released and batch.terminated[k, b]:
                factor = 0.0
            if stop or k == n - 1:
                break
            k += 1
        targets.append(total + factor * float(values[k][b]))
    return torch.tensor(targets)
