"""Networks as plain functions of one flat parameter vector.

A network here is a description: the shapes and the initialisation of its parameters, and a function
``network(parameters, x)``. It holds no tensors. A `ParameterGroup` lays all the parameters that share an
optimiser into one vector of length P, so that an optimiser step, a clip, a moving average or a cast to
bfloat16 is one operation on one vector whatever the number of layers. Called with such a vector, a group gives
its networks with their parameters: ``group(flat).actor(z)``.

Everything is written for one seed. A pack of seeds is the same code lifted over a leading axis
(`iqrl.training.engine`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Parameters = Mapping[str, Tensor]
Activation = Callable[[Tensor], Tensor]

ALIGNMENT = 32  # elements; each parameter starts on a 64-byte boundary even in bfloat16


def mish(x: Tensor) -> Tensor:
    """Mish, x tanh(softplus(x)), with a single exponential: three times faster once compiled on a CPU."""
    e = torch.exp(torch.clamp(x, max=20.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


ACTIVATIONS: dict[str, Activation] = {
    "mish": mish,
    "relu": torch.relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "none": lambda x: x,
}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Affine map; the product is in the weight's dtype, and the bias, in its own, widens the result.

    Args:
        x: (..., B, I), or (B, I) shared by every member of an ensemble.
        weight: (I, O), or (E, I, O) for an ensemble of E.
        bias: (O,) or (E, 1, O).
    """
    x = x.to(weight.dtype)
    if weight.dim() == 2:
        y = torch.mm(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], weight.shape[-1])
    elif x.dim() == 2 and x.device.type == "cpu":  # a batched product would copy x for every member there
        y = torch.stack([torch.mm(x, w) for w in weight.unbind()])
    else:
        y = torch.bmm(x.expand(weight.shape[0], *x.shape[-2:]), weight)
    return y if bias is None else y + bias


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Layer normalisation over the last axis in float32, eps 1e-5; affine parameters may carry (E, 1, n)."""
    y = F.layer_norm(x.float(), x.shape[-1:])
    return y if weight is None or bias is None else y * weight + bias


class Network(Protocol):
    """What a `ParameterGroup` is made of."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter."""

    def castable(self, name: str) -> bool:
        """Whether a parameter may be used in bfloat16."""

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh float32 parameters on the CPU, of numbers from the generator alone."""

    def __call__(self, parameters: Parameters, *inputs: Tensor, hidden: list[Tensor] | None = None) -> Any:
        """The output, in float32 if nothing else is said; every hidden layer's goes to `hidden`, if a list is given."""


@dataclass(frozen=True)
class MLP:
    """Fully connected network: hidden layers ``Linear [-> LayerNorm] -> activation``, plain linear output.

    Attributes:
        inputs, outputs: widths; no outputs (0) means that the last hidden layer is the network's output.
        hidden: hidden widths.
        activation: of the hidden layers.
        norm: layer normalisation before each activation: "affine", "plain" (no parameters) or "none".
        ensemble: number of independent members; 0 means a single network without that axis.
        initialisation: "torch" (PyTorch's default Linear), "orthogonal" (gain 1, biases zero), or
            "xavier_relu" (Xavier uniform with gain sqrt 2, biases zero).
        precise_input: keep the first layer in float32 when the rest runs in bfloat16. For networks
            that read raw observations, whose scale is arbitrary; the layer is small.
        precise_output: likewise the last layer. For scalars that are compared or summed: bfloat16 would
            round a value of 100 to a multiple of 0.5.
    """

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    activation: str = "mish"
    norm: str = "affine"
    ensemble: int = 0
    initialisation: str = "torch"
    precise_input: bool = False
    precise_output: bool = False

    @property
    def sizes(self) -> list[int]:
        """Widths from the input to the output."""
        return [self.inputs, *self.hidden, *([self.outputs] if self.outputs else [])]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the order of the forward pass."""
        lead = (self.ensemble,) if self.ensemble else ()
        vector = (self.ensemble, 1) if self.ensemble else ()
        sizes = self.sizes
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            shapes[f"{i}.weight"] = (*lead, n_in, n_out)
            shapes[f"{i}.bias"] = (*vector, n_out)
            if self.norm == "affine" and i < len(self.hidden):
                shapes[f"{i}.scale"] = (*vector, n_out)
                shapes[f"{i}.shift"] = (*vector, n_out)
        return shapes

    def castable(self, name: str) -> bool:
        """Whether a parameter may be used in bfloat16: matrices, but for a precise input or output layer."""
        first, last = name.startswith("0."), name.startswith(f"{len(self.hidden)}.")
        return name.endswith("weight") and not (self.precise_input and first or self.precise_output and last)

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh parameters on the CPU; every ensemble member is drawn on its own."""
        members = [self._initialise_member(generator) for _ in range(max(self.ensemble, 1))]
        if not self.ensemble:
            return members[0]
        shapes = self.shapes()
        return {k: torch.stack([m[k] for m in members]).reshape(shapes[k]) for k in shapes}

    def _initialise_member(self, generator: torch.Generator) -> dict[str, Tensor]:
        sizes = self.sizes
        parameters: dict[str, Tensor] = {}
        for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            weight, bias = initialise_linear(n_in, n_out, self.initialisation, generator)
            parameters[f"{i}.weight"], parameters[f"{i}.bias"] = weight, bias
            if self.norm == "affine" and i < len(self.hidden):
                parameters[f"{i}.scale"] = torch.ones(n_out)
                parameters[f"{i}.shift"] = torch.zeros(n_out)
        return parameters

    def __call__(self, parameters: Parameters, *inputs: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """(..., B, inputs) -> (..., B, outputs) in float32; with an ensemble (B, inputs) -> (E, B, outputs).

        Several inputs are concatenated. Appends every hidden layer's output to `hidden` if a list is given.
        """
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1)
        activation = ACTIVATIONS[self.activation]
        for i in range(len(self.hidden)):
            x = linear(x, parameters[f"{i}.weight"], parameters[f"{i}.bias"])
            if self.norm != "none":
                x = layer_norm(x, parameters.get(f"{i}.scale"), parameters.get(f"{i}.shift"))
            x = activation(x.float())
            if hidden is not None:
                hidden.append(x)
        if not self.outputs:
            return x
        last = len(self.hidden)
        return linear(x, parameters[f"{last}.weight"], parameters[f"{last}.bias"]).float()


def initialise_linear(n_in: int, n_out: int, scheme: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight (n_in, n_out) and bias (n_out,) of one linear layer; see `MLP` for the schemes."""
    if scheme == "torch":  # Kaiming uniform with a = sqrt 5 is U(-1/sqrt n_in, 1/sqrt n_in), as is the bias
        bound = 1.0 / math.sqrt(n_in)
        weight = torch.empty(n_in, n_out).uniform_(-bound, bound, generator=generator)
        return weight, torch.empty(n_out).uniform_(-bound, bound, generator=generator)
    if scheme == "orthogonal":
        weight = torch.empty(n_out, n_in)
        torch.nn.init.orthogonal_(weight, generator=generator)
        return weight.t().contiguous(), torch.zeros(n_out)
    if scheme == "xavier_relu":
        bound = math.sqrt(2.0) * math.sqrt(6.0 / (n_in + n_out))
        return torch.empty(n_in, n_out).uniform_(-bound, bound, generator=generator), torch.zeros(n_out)
    raise ValueError(f"initialisation {scheme!r}: expected torch, orthogonal or xavier_relu")


@dataclass(frozen=True)
class ParameterGroup:
    """Networks whose parameters form one flat float32 vector (P,), the unit of an optimiser.

    Called with a vector, it gives the networks with its parameters. Matrices that may run in bfloat16 come first, so
    that one operation casts them.

    Attributes:
        networks: by name.
        dtype: of castable matrices in use.
    """

    networks: Mapping[str, Network]
    dtype: torch.dtype = torch.float32
    layout: tuple[tuple[str, str, tuple[int, ...], int], ...] = field(init=False)  # network, name, shape, padding
    cast_entries: int = field(init=False)  # entries of the layout that may be cast, which come first
    cast: int = field(init=False)  # and their elements
    size: int = field(init=False)  # P

    def __post_init__(self) -> None:
        entries = [(n, k, s) for n, net in self.networks.items() for k, s in net.shapes().items()]
        entries.sort(key=lambda e: not self.networks[e[0]].castable(e[1]))  # stable: castable ones first
        layout = tuple((n, k, s, -math.prod(s) % ALIGNMENT) for n, k, s in entries)
        size = sum(math.prod(s) + pad for _, _, s, pad in layout)
        cast_entries = sum(self.networks[n].castable(k) for n, k, _, _ in layout)
        cast = sum(math.prod(s) + pad for _, _, s, pad in layout[:cast_entries])
        object.__setattr__(self, "layout", layout)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "cast_entries", cast_entries)
        object.__setattr__(self, "cast", cast)

    @property
    def count(self) -> int:
        """Number of learnable parameters, without padding."""
        return sum(math.prod(s) for _, _, s, _ in self.layout)

    def initialise(self, generator: torch.Generator) -> Tensor:
        """A fresh flat vector (P,); padding is zero and stays zero."""
        values = {n: net.initialise(generator) for n, net in self.networks.items()}
        pieces: list[Tensor] = []
        for n, k, _, pad in self.layout:
            pieces += [values[n][k].reshape(-1), torch.zeros(pad)]
        return torch.cat(pieces)

    def __call__(self, flat: Tensor) -> BoundNetworks:
        """The networks with the parameters of a flat vector (P,), each an attribute by its name."""
        return BoundNetworks(self.networks, self.unpack(flat, self.dtype))

    def unpack(self, flat: Tensor, dtype: torch.dtype | None = None) -> dict[str, dict[str, Tensor]]:
        """Views of a flat vector by network and name; castable matrices in `dtype` if one is given."""
        parts: list[Tensor] = []
        low, high = flat.split([self.cast, self.size - self.cast])
        low = low if dtype is None else low.to(dtype)
        for piece, entries in ((low, self.layout[: self.cast_entries]), (high, self.layout[self.cast_entries :])):
            parts += piece.split([math.prod(s) + pad for _, _, s, pad in entries]) if entries else []
        out: dict[str, dict[str, Tensor]] = {n: {} for n in self.networks}
        for (n, k, shape, pad), part in zip(self.layout, parts, strict=True):
            out[n][k] = (part[: part.shape[0] - pad] if pad else part).view(shape)
        return out

    def extract(self, flat: Tensor, other: ParameterGroup) -> Tensor:
        """The part of a flat vector that belongs to the networks of `other`, laid out as there."""
        views = self.unpack(flat)
        pieces: list[Tensor] = []
        for n, k, _, pad in other.layout:
            pieces += [views[n][k].reshape(-1), flat.new_zeros(pad)]
        return torch.cat(pieces)


@dataclass(frozen=True)
class BoundNetwork:
    """A network with its parameters: a function of the inputs alone."""

    network: Network
    parameters: Parameters

    def __call__(self, *inputs: Tensor, hidden: list[Tensor] | None = None) -> Any:
        return self.network(self.parameters, *inputs, hidden=hidden)

    def drawn(self, uniform: Tensor | None, count: int) -> BoundNetwork:
        """Of an ensemble, `count` different members that uniform numbers (E,) draw; without these, the whole."""
        if uniform is None:
            return self
        index = torch.argsort(uniform)[:count]
        return BoundNetwork(self.network, {k: v.index_select(0, index) for k, v in self.parameters.items()})


class BoundNetworks:
    """A group's networks with one vector's parameters, by name: ``bound.encoder(observation)``."""

    def __init__(self, networks: Mapping[str, Network], parameters: Mapping[str, Parameters]) -> None:
        for name, network in networks.items():
            setattr(self, name, BoundNetwork(network, parameters[name]))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> BoundNetwork: ...


def mean_min_max(name: str, x: Tensor) -> dict[str, Tensor]:
    """These of a tensor, as metrics: without gradient."""
    x = x.detach()
    return {f"{name}_mean": x.mean(), f"{name}_min": x.min(), f"{name}_max": x.max()}


def soft_update(target: Tensor, online: Tensor, rate: float) -> Tensor:
    """Exponential moving average (1 - rate) target + rate online."""
    return torch.lerp(target, online, rate)


@dataclass(frozen=True)
class Adam:
    """Adam on one flat parameter vector, with an optional global-norm clip and weight decay.

    Attributes:
        decoupled: weight decay as in AdamW (multiplies the parameters) or, if False, added to the gradient.
        clip: largest global gradient norm, 0 for none.
    """

    learning_rate: float
    weight_decay: float = 0.0
    decoupled: bool = True
    clip: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def initialise(self, name: str, flat: Tensor) -> dict[str, Tensor]:
        """The state entries of the parameters `name` and of their optimiser."""
        return {
            name: flat,
            f"{name}/mean": torch.zeros_like(flat),
            f"{name}/square": torch.zeros_like(flat),
            f"{name}/steps": torch.zeros((), device=flat.device),
        }

    def step(self, name: str, state: Mapping[str, Tensor], gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """New entries of the state after one step, and the gradient's norm before clipping."""
        norm = torch.linalg.vector_norm(gradient)
        if self.clip:
            gradient = gradient * torch.clamp(self.clip / (norm + 1e-6), max=1.0)
        flat, steps = state[name], state[f"{name}/steps"] + 1.0
        if self.weight_decay and not self.decoupled:
            gradient = gradient + self.weight_decay * flat
        mean = torch.lerp(state[f"{name}/mean"], gradient, 1.0 - self.beta1)
        square = self.beta2 * state[f"{name}/square"] + (1.0 - self.beta2) * gradient * gradient
        correction1 = 1.0 - torch.exp(steps * math.log(self.beta1))
        correction2 = torch.sqrt(1.0 - torch.exp(steps * math.log(self.beta2)))
        if self.weight_decay and self.decoupled:
            flat = flat * (1.0 - self.learning_rate * self.weight_decay)
        flat = flat - (self.learning_rate / correction1) * mean / (torch.sqrt(square) / correction2 + self.eps)
        entries = {name: flat, f"{name}/mean": mean, f"{name}/square": square, f"{name}/steps": steps}
        return entries, norm
