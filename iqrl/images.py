"""What agents that see images share: convolutions as networks of a `ParameterGroup`, and random shifts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from iqrl.agent import Batch, Noise, Slices
from iqrl.errors import InputError
from iqrl.networks import ACTIVATIONS, MLP, Network, Parameters

KERNEL = 3  # height and width of every convolution


@dataclass(frozen=True)
class Convolutions:
    """3x3 convolutions without padding, an activation after each; what comes out is laid flat.

    Attributes:
        shape: of an image, (C, height, width).
        filters: channels of every layer's output.
        strides: of each layer.
        activation: of each layer.
        initialisation: "orthogonal" or "xavier_relu", of a layer's weights laid out (out, in x 9), or
            "delta_orthogonal", where only the kernel's centre is not zero (arXiv 1806.05393). Biases are zero.

    Raises:
        InputError: the image is smaller than the kernels take.
    """

    shape: tuple[int, int, int]
    filters: int
    strides: tuple[int, ...]
    activation: str = "relu"
    initialisation: str = "orthogonal"

    def __post_init__(self) -> None:
        if min(min(size) for size in self.sizes) < 1:
            strides = ", ".join(map(str, self.strides))
            raise InputError(
                f"images of {self.shape[1]}x{self.shape[2]}: too small for convolutions of stride {strides}"
            )

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of the image, and of each layer's output."""
        sizes = [self.shape[1:]]
        for stride in self.strides:
            height, width = sizes[-1]
            sizes.append(((height - KERNEL) // stride + 1, (width - KERNEL) // stride + 1))
        return sizes

    @property
    def channels(self) -> list[int]:
        """Of the image, and of each layer's output."""
        return [self.shape[0], *[self.filters] * len(self.strides)]

    @property
    def outputs(self) -> int:
        """Width of the output."""
        return self.filters * math.prod(self.sizes[-1])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (n_in, n_out) in enumerate(zip(self.channels[:-1], self.channels[1:], strict=True)):
            shapes |= {f"{i}.weight": (n_out, n_in, KERNEL, KERNEL), f"{i}.bias": (n_out,)}
        return shapes

    def castable(self, name: str) -> bool:
        return name.endswith("weight")

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        return initialise_kernels(self.shapes(), self.initialisation, generator)

    def __call__(self, parameters: Parameters, *inputs: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """(..., C, height, width) -> (..., outputs) in the kernels' type, as the matrix of a linear layer takes it.

        To `hidden` goes every layer's output as (images * height * width, filters): a unit is a filter.
        """
        (images,) = inputs
        x = images.flatten(0, -4)
        for i, stride in enumerate(self.strides):
            weight = parameters[f"{i}.weight"]
            bias = parameters[f"{i}.bias"].to(weight.dtype)
            x = ACTIVATIONS[self.activation](F.conv2d(x.to(weight.dtype), weight, bias, stride))
            if hidden is not None:
                hidden.append(x.movedim(1, -1).flatten(0, -2).float())
        return x.reshape(*images.shape[:-3], self.outputs)


@dataclass(frozen=True)
class ImageEncoder:
    """Convolutions and what follows them as one network, of images in bytes.

    Attributes:
        convolutions: of images divided by 255, less 0.5.
        head: takes their output.
    """

    convolutions: Convolutions
    head: MLP

    @property
    def parts(self) -> dict[str, Network]:
        return {"convolutions": self.convolutions, "head": self.head}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"{part}.{k}": v for part, network in self.parts.items() for k, v in network.shapes().items()}

    def castable(self, name: str) -> bool:
        part, _, rest = name.partition(".")
        return self.parts[part].castable(rest)

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {f"{p}.{k}": v for p, network in self.parts.items() for k, v in network.initialise(generator).items()}

    def __call__(self, parameters: Parameters, *inputs: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """(..., C, height, width) uint8 -> (..., head.outputs) in float32; `hidden` as of its parts."""
        (images,) = inputs
        own = {part: {k: parameters[f"{part}.{k}"] for k in network.shapes()} for part, network in self.parts.items()}
        features = self.convolutions(own["convolutions"], images / 255.0 - 0.5, hidden=hidden)
        return self.head(own["head"], features, hidden=hidden)


@dataclass(frozen=True)
class TransposedConvolutions:
    """The way back of some convolutions: an activation after each layer but the last, which gives the image.

    Attributes:
        of: what they reverse, layer by layer; also activation and initialisation are the same.
    """

    of: Convolutions

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        channels = self.of.channels[::-1]
        for i, (n_in, n_out) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
            shapes |= {f"{i}.weight": (n_in, n_out, KERNEL, KERNEL), f"{i}.bias": (n_out,)}
        return shapes

    def castable(self, name: str) -> bool:
        return name.endswith("weight")

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        return initialise_kernels(self.shapes(), self.of.initialisation, generator)

    def __call__(self, parameters: Parameters, *inputs: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """(B, of.outputs) -> (B, C, height, width) in float32; `hidden` as of `Convolutions`."""
        (x,) = inputs
        sizes, strides = self.of.sizes[::-1], self.of.strides[::-1]
        x = x.unflatten(-1, (self.of.filters, *sizes[0]))
        for i, stride in enumerate(strides):
            # A stride may have left out the last row or column, which is then made here.
            missing = [n - ((m - 1) * stride + KERNEL) for m, n in zip(sizes[i], sizes[i + 1], strict=True)]
            weight = parameters[f"{i}.weight"]
            bias = parameters[f"{i}.bias"].to(weight.dtype)
            x = F.conv_transpose2d(x.to(weight.dtype), weight, bias, stride, output_padding=missing)
            if i < len(strides) - 1:
                x = ACTIVATIONS[self.of.activation](x)
                if hidden is not None:
                    hidden.append(x.movedim(1, -1).flatten(0, -2).float())
        return x.float()


def initialise_kernels(
    shapes: dict[str, tuple[int, ...]], scheme: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """Weights (a, b, 3, 3) and zero biases; see `Convolutions` for the schemes."""
    gain = math.sqrt(2.0)
    parameters: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        value = parameters[name] = torch.zeros(shape)
        if not name.endswith("weight"):
            continue
        if scheme == "orthogonal":
            torch.nn.init.orthogonal_(value, gain, generator=generator)
        elif scheme == "delta_orthogonal":
            centre = torch.empty(shape[:2])
            value[:, :, KERNEL // 2, KERNEL // 2] = torch.nn.init.orthogonal_(centre, gain, generator=generator)
        elif scheme == "xavier_relu":
            torch.nn.init.xavier_uniform_(value, gain, generator=generator)
        else:
            raise ValueError(f"initialisation {scheme!r}: expected orthogonal, delta_orthogonal or xavier_relu")
    return parameters


def random_shift(images: Tensor, uniform: Tensor, pad: int) -> Tensor:
    """Each image shifted by a whole number of pixels from -pad to pad in either direction (DrQ-v2's augmentation).

    What a shift brings in repeats the border.

    Args:
        images: (..., C, height, width), of any type.
        uniform: (..., 2) in [0, 1); draws the shifts, horizontal ones first.
    """
    flat, device = images.flatten(0, -4), images.device
    count, _, height, width = flat.shape
    shift = torch.clamp((uniform.view(count, 2) * (2 * pad + 1)).long(), max=2 * pad) - pad
    row = torch.clamp(torch.arange(height, device=device) + shift[:, 1:], 0, height - 1)  # (count, height)
    column = torch.clamp(torch.arange(width, device=device) + shift[:, :1], 0, width - 1)  # (count, width)
    moved = flat.gather(2, row[:, None, :, None].expand(flat.shape))
    return moved.gather(3, column[:, None, None, :].expand(flat.shape)).view(images.shape)


def shift_noise(slices: Slices) -> Noise:
    """What `shifted` draws from, an amount for every image of a batch."""
    return Noise((slices.horizon + 1, slices.batch_size, 2), "uniform")


def shifted(batch: Batch, noise: Mapping[str, Tensor], pad: int) -> Batch:
    """The batch with every image shifted by an amount of its own, if `noise` has "shift"; as it is otherwise."""
    if "shift" not in noise:
        return batch
    return replace(batch, observation=random_shift(batch.observation, noise["shift"], pad))
