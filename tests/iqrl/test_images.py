"""Convolutions and random shifts against torch.nn, NumPy's padding and the official augmentation's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iqrl.errors import InputError
from iqrl.images import Convolutions, TransposedConvolutions, random_shift
from iqrl.networks import ParameterGroup


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bytes_of(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=seeded(), dtype=torch.uint8)


# --- random shifts


@pytest.mark.parametrize("height, width", [(12, 12), (7, 10)])
def test_a_shift_is_a_crop_of_the_padded_image(height: int, width: int) -> None:
    images, uniform = bytes_of(40, 2, height, width), torch.rand(40, 2, generator=seeded())
    shifted = random_shift(images, uniform, 4)
    assert shifted.dtype == torch.uint8
    places = set()
    for image, (across, down), ours in zip(images.numpy(), uniform.tolist(), shifted.numpy(), strict=True):
        x, y = math.floor(9 * across), math.floor(9 * down)
        places |= {("x", x), ("y", y)}
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="edge")
        np.testing.assert_array_equal(ours, padded[:, y : y + height, x : x + width])
    assert len(places) == 18
    assert torch.equal(random_shift(images, uniform, 0), images)


def test_a_shift_is_that_of_the_released_code_but_for_interpolation() -> None:
    """DrQ-v2 interpolates at points that are whole pixels up to rounding; bytes are 255 apart, at most."""
    size, pad, images = 84, 4, bytes_of(16, 3, 84, 84)
    uniform = torch.rand(16, 2, generator=seeded())
    whole = size + 2 * pad
    line = torch.linspace(-1 + 1 / whole, 1 - 1 / whole, whole)[:size]
    grid = torch.stack([line.expand(size, size), line[:, None].expand(size, size)], -1)
    offset = (uniform * (2 * pad + 1)).floor() * 2 / whole
    padded = F.pad(images.float(), (pad,) * 4, "replicate")
    theirs = F.grid_sample(padded, grid + offset[:, None, None, :], padding_mode="zeros", align_corners=False)
    assert float((random_shift(images, uniform, pad) - theirs).abs().max()) < 0.01


# --- convolutions


def plain(convolutions: Convolutions, parameters: dict[str, Tensor]) -> nn.Sequential:
    activation = {"relu": nn.ReLU, "elu": nn.ELU}[convolutions.activation]
    layers: list[nn.Module] = []
    for i, stride in enumerate(convolutions.strides):
        layers += [nn.Conv2d(convolutions.channels[i], convolutions.filters, 3, stride), activation()]
        layers[-2].weight.data, layers[-2].bias.data = parameters[f"{i}.weight"], parameters[f"{i}.bias"]
    return nn.Sequential(*layers, nn.Flatten())


def random_parameters(network: Convolutions | TransposedConvolutions) -> dict[str, Tensor]:
    return {k: 0.2 * torch.randn(shape, generator=seeded()) for k, shape in network.shapes().items()}


@pytest.mark.parametrize("strides, activation", [((2, 1, 1, 1), "relu"), ((2, 2, 2, 1), "elu")])
def test_convolutions_are_those_of_torch(strides: tuple[int, ...], activation: str) -> None:
    network = Convolutions((4, 40, 37), 6, strides, activation)
    parameters, image = random_parameters(network), torch.randn(3, 4, 40, 37, generator=seeded())
    layers: list[Tensor] = []
    output = network(parameters, image, hidden=layers)
    torch.testing.assert_close(output, plain(network, parameters)(image))
    assert output.shape == (3, network.outputs)
    assert [x.shape for x in layers] == [(3 * h * w, 6) for h, w in network.sizes[1:]]
    torch.testing.assert_close(layers[-1].unflatten(0, (3, -1)).movedim(-1, 1).flatten(1), output)


def test_sizes_are_the_published_ones() -> None:
    shape = (9, 84, 84)
    assert [s for s, _ in Convolutions(shape, 32, (2, 1, 1, 1)).sizes] == [84, 41, 39, 37, 35]
    assert Convolutions(shape, 32, (2, 1, 1, 1)).outputs == 39_200
    assert Convolutions(shape, 32, (2, 2, 2, 1)).outputs == 1568
    with pytest.raises(InputError, match="images of 16x16: too small for convolutions of stride 2, 2, 2, 1"):
        Convolutions((9, 16, 16), 32, (2, 2, 2, 1))


@pytest.mark.parametrize("size", [(84, 84), (21, 21), (22, 25)])
def test_the_way_back_leads_to_the_image(size: tuple[int, int]) -> None:
    network = TransposedConvolutions(Convolutions((3, *size), 4, (2, 1, 1, 1)))
    parameters, h = random_parameters(network), torch.randn(2, network.of.outputs, generator=seeded())
    left_out = (1 - size[0] % 2, 1 - size[1] % 2)  # by the stride of 2
    layers = [nn.ConvTranspose2d(4, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3), nn.ReLU()]
    layers += [nn.ConvTranspose2d(4, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3, 2, output_padding=left_out)]
    for i, layer in enumerate(layers[::2]):
        layer.weight.data, layer.bias.data = parameters[f"{i}.weight"], parameters[f"{i}.bias"]
    x = nn.Sequential(*layers)(h.view(2, 4, *network.of.sizes[-1]))
    torch.testing.assert_close(network(parameters, h), x)
    assert x.shape == (2, 3, *size)


def test_initialisations() -> None:
    for scheme in ("orthogonal", "delta_orthogonal", "xavier_relu"):
        network = Convolutions((3, 20, 20), 8, (2, 1), initialisation=scheme)
        found = network.initialise(seeded())
        assert {k: tuple(v.shape) for k, v in found.items()} == network.shapes()
        assert not found["0.bias"].any() and not found["1.bias"].any()
        weight = found["1.weight"]
        if scheme == "orthogonal":
            rows = weight.flatten(1)
            torch.testing.assert_close(rows @ rows.T, 2.0 * torch.eye(8), atol=1e-5, rtol=0)
        elif scheme == "delta_orthogonal":
            centre = weight[:, :, 1, 1].clone()
            torch.testing.assert_close(centre @ centre.T, 2.0 * torch.eye(8), atol=1e-5, rtol=0)
            weight[:, :, 1, 1] = 0.0
            assert not weight.any()
        else:
            bound = math.sqrt(2.0) * math.sqrt(6.0 / (9 * 8 + 9 * 8))
            assert 0.98 * bound < float(weight.abs().max()) <= bound
        assert torch.equal(network.initialise(seeded())["0.weight"], found["0.weight"])


def test_a_pack_is_single_seeds_with_gradients() -> None:
    """Lifted over three seeds; in bfloat16, sums may round."""
    network = Convolutions((2, 11, 11), 4, (2, 1))
    back = TransposedConvolutions(network)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        group = ParameterGroup({"encoder": network, "decoder": back}, dtype)
        flat = torch.stack([group.initialise(seeded(s)) for s in range(3)])
        images, uniform = bytes_of(3, 5, 2, 11, 11), torch.rand(3, 5, 2, generator=seeded())

        def loss(flat: Tensor, image: Tensor, uniform: Tensor, group: ParameterGroup = group) -> Tensor:
            net, image = group(flat), random_shift(image, uniform, 2) / 255.0 - 0.5
            return (net.decoder(net.encoder(image)) - image).square().mean()

        gradient = torch.func.grad_and_value(loss)
        together = torch.func.vmap(gradient)(flat, images, uniform)
        for s in range(3):
            alone = gradient(flat[s], images[s], uniform[s])
            for a, b in zip(alone, together, strict=True):
                torch.testing.assert_close(b[s], a, atol=tolerance, rtol=tolerance)
