"""Agents of states that learn from images too: their encoder, and the shifts of their batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from packs import PIXELS, initial_state, make_agent, random_batch, random_noise

from iqrl.errors import InputError
from iqrl.images import random_shift

SPEC = dataclasses.replace(PIXELS, frame_shape=(1, 31, 31), observation_dim=2 * 31 * 31)


def convolved(parameters: dict[str, torch.Tensor], images: torch.Tensor, activation: Any) -> torch.Tensor:
    x = images.float() / 255 - 0.5
    for i, stride in enumerate((2, 2, 2, 1)):
        x = activation(
            F.conv2d(x, parameters[f"convolutions.{i}.weight"], parameters[f"convolutions.{i}.bias"], stride)
        )
    return x.flatten(1)


def test_the_encoder_of_mrq() -> None:
    agent = make_agent("mrq", spec=SPEC)
    state, images = initial_state(agent), random_batch(agent).observation[0]
    p = agent.encoder.unpack(state["encoder"])["f"]
    h = convolved(p, images, F.elu) @ p["head.0.weight"] + p["head.0.bias"]
    expected = F.elu((h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, keepdim=True, unbiased=False) + 1e-5))
    torch.testing.assert_close(agent.latent(state, images), expected)


def test_the_encoder_of_iqrl() -> None:
    agent = make_agent("iqrl", "agent.quantizer=none", spec=SPEC)
    state, images = initial_state(agent), random_batch(agent).observation[0]
    p = agent.world.unpack(state["world"])["encoder"]
    h = convolved(p, images, F.mish) @ p["head.0.weight"] + p["head.0.bias"]
    h = F.mish(F.layer_norm(h, h.shape[-1:]))
    torch.testing.assert_close(agent.latent(state, images), h @ p["head.1.weight"] + p["head.1.bias"])
    with pytest.raises(InputError, match="use_decoder=true: reconstructs states; made-up@pixels is observed as images"):
        make_agent("iqrl", "agent.use_decoder=true", spec=SPEC)


@pytest.mark.parametrize("name, stages", [
    ("mrq", ["update_encoder", "update_rl"]), ("drq", ["update_encoder"]), ("iqrl", ["update_all"]),
])  # fmt: skip
def test_an_update_is_that_of_a_batch_that_was_shifted_before(name: str, stages: list[str]) -> None:
    shifting, still = (make_agent(name, f"agent.pad={pad}", spec=SPEC) for pad in (4, 0))
    state, batch = initial_state(shifting), random_batch(shifting)
    for stage in stages:
        noise = random_noise(shifting, stage)
        assert noise["shift"].shape == (shifting.slices.horizon + 1, shifting.slices.batch_size, 2)
        before = dataclasses.replace(batch, observation=random_shift(batch.observation, noise["shift"], 4))
        changed, expected, apart = (
            agent.run_stage(stage, state, given, noise, {})[0]
            for agent, given in ((shifting, batch), (still, before), (still, batch))
        )
        assert all(torch.equal(changed[k], expected[k]) for k in expected)
        assert any(not torch.equal(changed[k], apart[k]) for k in apart)


@pytest.mark.parametrize("name", ["mrq", "drq", "iqrl"])
def test_states_draw_no_shifts(name: str) -> None:
    agent = make_agent(name)
    assert all("shift" not in agent.stage(stage).noise for update in (1, 2, 3) for stage in agent.stages(update))
