"""Finite scalar quantisation against golden numbers, and its rivals."""

from __future__ import annotations

import math

import pytest
import torch

from iqrl.quantisers import FSQ, VQ, Continuous, make_quantiser

Z = [-3, -2, -1, -0.5, -0.25, -0.1, 0, 0.1, 0.25, 0.5, 1, 2, 3]

# Level: half range, offset, shift, symbols, thresholds in z (golden.md section 1).
TABLE = {
    8: (3.5035, 0.5, 0.143695, range(-4, 4), [-1.4230, -0.7925, -0.4373, -0.1437, 0.1499, 0.5051, 1.1356]),
    5: (2.0020, 0.0, 0.0, range(-2, 3), [-0.9712, -0.2551, 0.2551, 0.9712]),
    6: (2.5025, 0.5, 0.202524, range(-3, 3), [-1.2989, -0.6257, -0.2025, 0.2206, 0.8939]),
    3: (1.0010, 0.0, 0.0, range(-1, 2), [-0.5486, 0.5486]),
    4: (1.5015, 0.5, 0.346199, range(-2, 2), [-1.1497, -0.3462, 0.4573]),
    7: (3.0030, 0.0, 0.0, range(-3, 4), [-1.1962, -0.5486, -0.1681, 0.1681, 0.5486, 1.1962]),
}

BOUNDS = {
    8: [-3.9804, -3.8365, -2.9327, -1.6980, -0.8710, -0.3470, 0, 0.3373, 0.8122, 1.4879, 2.3576, 2.9085, 2.9905],
    5: [-1.9921, -1.9300, -1.5247, -0.9252, -0.4903, -0.1995, 0, 0.1995, 0.4903, 0.9252, 1.5247, 1.9300, 1.9921],
    6: [-2.9840, -2.8687, -2.1582, -1.2232, -0.6187, -0.2443, 0, 0.2348, 0.5610, 1.0164, 1.5881, 1.9421, 1.9942],
}
CODES = {
    8: [-1, -1, -0.75, -0.5, -0.25, 0, 0, 0, 0.25, 0.25, 0.5, 0.75, 0.75],
    5: [-1, -1, -1, -0.5, 0, 0, 0, 0, 0, 0.5, 1, 1, 1],
    6: [-1, -1, -2 / 3, -1 / 3, -1 / 3, 0, 0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3],
}
GRADIENTS = {
    8: [0.0115, 0.0815, 0.4536, 0.7735, 0.8661, 0.8742, 0.8580, 0.8259, 0.7530, 0.5939, 0.2932, 0.0468, 0.0065],
    5: [0.0099, 0.0707, 0.4204, 0.7872, 0.9410, 0.9911, 1.0010, 0.9911, 0.9410, 0.7872, 0.4204, 0.0707, 0.0099],
}


@pytest.mark.parametrize("level", TABLE)
def test_constants_and_symbols(level: int) -> None:
    half, offset, shift, symbols, _ = TABLE[level]
    fsq = FSQ((level,))
    assert fsq.half_range == pytest.approx((half,), abs=1e-4)
    assert fsq.offset == (offset,)
    assert fsq.shift == pytest.approx((shift,), abs=1e-6)
    met = torch.unique(fsq(torch.linspace(-6, 6, 20_001)[:, None]))
    assert met.tolist() == pytest.approx([s / (level // 2) for s in symbols], abs=1e-6)


@pytest.mark.parametrize("level", TABLE)
def test_codes_change_at_the_thresholds_and_nowhere_else(level: int) -> None:
    fsq, thresholds = FSQ((level,)), TABLE[level][4]
    grid = torch.arange(-30_000, 30_001) / 10_000.0
    codes = fsq(grid[:, None])[:, 0]
    changes = grid[1:][codes[1:] != codes[:-1]].tolist()
    assert changes == pytest.approx(thresholds, abs=2e-4)


@pytest.mark.parametrize("level", BOUNDS)
def test_bound_code_and_straight_through_gradient(level: int) -> None:
    fsq = FSQ((level,))
    z = torch.tensor(Z, dtype=torch.float32, requires_grad=True)
    assert fsq.bound(z[:, None])[:, 0].tolist() == pytest.approx(BOUNDS[level], abs=1e-4)
    codes = fsq(z[:, None])[:, 0]
    assert codes.tolist() == pytest.approx(CODES[level], abs=1e-6)
    (gradient,) = torch.autograd.grad(codes.sum(), z)
    if level in GRADIENTS:
        assert gradient.tolist() == pytest.approx(GRADIENTS[level], abs=1e-4)
    half, _, shift, *_ = TABLE[level]
    slope = half * (1 - torch.tanh(z.detach() + shift) ** 2) / (level // 2)
    assert gradient.tolist() == pytest.approx(slope.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "levels, size, known",
    [
        ((8, 8), 64, {0: [-1, -1], 1: [-0.75, -1], 7: [0.75, -1], 8: [-1, -0.75], 36: [0, 0], 63: [0.75, 0.75]}),
        ((5, 3), 15, {1: [-0.5, -1], 5: [-1, 0], 7: [0, 0], 14: [1, 1]}),
        ((8, 6, 5), 240, {9: [-0.75, -2 / 3, -1], 48: [-1, -1, -0.5], 123: [-0.25, 0, 0], 239: [0.75, 2 / 3, 1]}),
        ((8, 5, 5, 5), 1000, {499: [-0.25, 0, 0, 0]}),
    ],
)
def test_indices(levels: tuple[int, ...], size: int, known: dict[int, list[float]]) -> None:
    fsq = FSQ(levels)
    assert fsq.codebook_size == size
    book = fsq.codebook()
    assert book.shape == (size, len(levels))
    for index, code in known.items():
        assert book[index].tolist() == pytest.approx(code, abs=1e-6)
        assert fsq.indices(torch.tensor(code)).tolist() == [index]
    assert fsq.indices(book).flatten().tolist() == list(range(size))  # a bijection
    assert len(torch.unique(book, dim=0)) == size


def test_vector_of_several_latent_dimensions() -> None:
    fsq = FSQ((8, 8))
    codes = fsq(torch.tensor([0.3, -1.2, 2.5, 0.05]))
    assert codes.tolist() == [0.25, -0.75, 0.75, 0.0]
    assert fsq.indices(codes).tolist() == [13, 39]
    assert fsq.codebook()[[13, 39]].flatten().tolist() == codes.tolist()


def test_unequal_levels_quantise_each_channel_by_its_own_level() -> None:
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    together = FSQ((8, 5, 3))(x).reshape(3, 4, 2, 3)
    for channel, level in enumerate((8, 5, 3)):
        alone = FSQ((level,))(x.reshape(3, 4, 2, 3)[..., channel])
        assert torch.equal(together[..., channel], alone)


@pytest.mark.parametrize("quantise", [FSQ((5, 3)), FSQ((8, 8)), FSQ((8, 6, 5)), FSQ((4,)), VQ(16, 2)])
def test_a_latent_has_the_class_of_its_code(quantise: FSQ | VQ) -> None:
    generator = torch.Generator().manual_seed(0)
    codebook = quantise.initialise(generator).get("codebook")
    x = 2.0 * torch.randn(50, 7, 6 * quantise.channels, generator=generator)
    found = quantise.classify(x, codebook)
    assert found.dtype == torch.int32 and found.shape == (50, 7, 6)
    assert torch.equal(found.long(), quantise.indices(quantise(x, codebook), codebook))


def test_codes_are_float32_whatever_comes_in() -> None:
    x = torch.randn(7, 4)
    assert FSQ((8, 8))(x.bfloat16()).dtype == torch.float32
    assert torch.equal(FSQ((8, 8))(x.bfloat16()), FSQ((8, 8))(x.bfloat16().float()))


def test_rounding_is_half_to_even() -> None:
    fsq = FSQ((3,))
    x = torch.atanh(torch.tensor([0.5, -0.5], dtype=torch.float64) / 1.001)  # b is exactly +-0.5, up to rounding
    b = fsq.bound(x[:, None])
    assert torch.round(torch.tensor([0.5, 1.5, -0.5])).tolist() == [0.0, 2.0, 0.0]
    assert b[:, 0].tolist() == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize("levels", [(2,), (8, 2), (), (8, 1), (0,)])
def test_degenerate_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 3"):
        FSQ(levels)


def test_continuous_rivals() -> None:
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(make_quantiser("none", [8, 8])(x), x)
    tanh = make_quantiser("tanh", [8, 5])(x).reshape(6, 8, 2)
    for channel, (half, offset, shift, level) in enumerate([(3.5035, 0.5, 0.143695, 8), (2.002, 0.0, 0.0, 5)]):
        expected = (half * torch.tanh(x.reshape(6, 8, 2)[..., channel] + shift) - offset) / (level // 2)
        torch.testing.assert_close(tanh[..., channel], expected, rtol=1e-4, atol=1e-5)
    norm = make_quantiser("l2", [8, 8])(x)
    assert torch.linalg.vector_norm(norm, dim=-1).tolist() == pytest.approx([1.0] * 6, abs=1e-6)
    assert torch.equal(make_quantiser("l2", [8, 8])(torch.zeros(2, 16)), torch.zeros(2, 16))


def test_simnorm_golden() -> None:
    z = torch.tensor([1.0, 2.0, 0.0, -1.0])
    e = [math.exp(float(v)) for v in z]
    assert [v / sum(e) for v in e] == pytest.approx([0.236883, 0.643914, 0.087144, 0.032059], abs=1e-6)
    x = torch.cat([z, torch.full((4,), -1e9)])[None].repeat(1, 2)  # two groups of 8, four entries of weight 0 each
    y = Continuous("simnorm", FSQ((8, 8)))(x)
    assert y.tolist()[0] == pytest.approx(([v / sum(e) for v in e] + [0.0] * 4) * 2, abs=1e-6)
