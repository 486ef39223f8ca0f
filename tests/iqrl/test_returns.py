"""N-step returns: golden numbers and a plain loop."""

from __future__ import annotations

import pytest
import torch
from made_up import random_batch

from iqrl.agent import Batch
from iqrl.returns import n_step, n_step_iqrl_released

REWARDS, VALUES, GAMMA = [1.0, 2.0, 4.0, 8.0], [10.0, 20.0, 30.0, 40.0], 0.99

# N, end (kind, k); faithful R, factor, bootstrap index, y; released y (golden.md section 2).
CASES = [
    (3, None, 6.9004, 0.970299, 2, 36.00937, (6.9004, 0.970299, 2, 36.00937)),
    (3, ("truncated", 1), 2.98, 0.9801, 1, 22.582, (1.0, 0.99, 1, 20.8)),
    (3, ("terminated", 1), 2.98, 0.0, 1, 2.98, (1.0, 0.99, 1, 20.8)),
    (3, ("truncated", 0), 1.0, 0.99, 0, 10.9, (0.0, 1.0, 0, 10.0)),
    (3, ("terminated", 0), 1.0, 0.0, 0, 1.0, (0.0, 1.0, 0, 10.0)),
    (3, ("truncated", 2), 6.9004, 0.970299, 2, 36.00937, (2.98, 0.9801, 2, 32.383)),
    (1, None, 1.0, 0.99, 0, 10.9, (1.0, 1.0, 0, 11.0)),
    (1, ("truncated", 0), 1.0, 0.99, 0, 10.9, (1.0, 1.0, 0, 11.0)),
    (1, ("terminated", 0), 1.0, 0.0, 0, 1.0, (1.0, 0.0, 0, 1.0)),
    (4, None, 14.662792, 0.960596, 3, 53.086632, (14.662792, 0.960596, 3, 53.086632)),
]


def golden_batch(end: tuple[str, int] | None, horizon: int = 5) -> Batch:
    """Observation h + 1 is the value of the state after transition h; two copies side by side."""
    observation = torch.tensor([0.0, *VALUES, 99.0])[:, None, None].expand(-1, 2, 1)
    reward = torch.tensor([*REWARDS, 99.0])[:, None].expand(-1, 2)
    flags = {"terminated": torch.zeros(horizon, 2), "truncated": torch.zeros(horizon, 2)}
    if end:
        flags[end[0]][end[1]] = 1.0
    return Batch(observation, torch.zeros(horizon, 2, 1), reward, flags["terminated"], flags["truncated"])


@pytest.mark.parametrize("n, end, total, factor, index, y, released", CASES)
def test_golden(n, end, total, factor, index, y, released) -> None:  # type: ignore[no-untyped-def]
    for function, expected in ((n_step, (total, factor, index, y)), (n_step_iqrl_released, released)):
        r, f, last = function(golden_batch(end), n, GAMMA)
        assert r.tolist() == pytest.approx([expected[0]] * 2, abs=1e-4)
        assert f.tolist() == pytest.approx([expected[1]] * 2, abs=1e-5)
        assert last.flatten().tolist() == [VALUES[expected[2]]] * 2
        assert (r + f * last[:, 0]).tolist() == pytest.approx([expected[3]] * 2, abs=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_against_a_loop(n: int) -> None:
    batch = random_batch(5, 200, seed=n, ends=0.3)
    total, factor, last = n_step(batch, n, 0.9)
    for b in range(200):
        r, discount, k = 0.0, 1.0, 0
        while True:
            r += discount * float(batch.reward[k, b])
            discount *= 0.9
            if batch.terminated[k, b]:
                discount = 0.0
            k += 1
            if k == n or batch.terminated[k - 1, b] or batch.truncated[k - 1, b]:
                break
        assert float(total[b]) == pytest.approx(r, abs=1e-5)
        assert float(factor[b]) == pytest.approx(discount, abs=1e-6)
        assert torch.equal(last[b], batch.observation[k, b])


def test_what_follows_an_end_does_not_count() -> None:
    batch = random_batch(4, 50, ends=0.4)
    ended_before = batch.alive == 0
    assert ended_before.any()
    other = Batch(
        batch.observation,
        batch.action,
        torch.where(ended_before, 1e6, batch.reward),
        torch.where(ended_before, 1 - batch.terminated, batch.terminated),
        batch.truncated,
    )
    for a, b in zip(n_step(batch, 4, 0.9), n_step(other, 4, 0.9), strict=True):
        assert torch.equal(a, b)


def test_alive_counts_the_ending_transition_and_nothing_after_it() -> None:
    batch = golden_batch(("truncated", 1))
    assert batch.alive[:, 0].tolist() == [1, 1, 0, 0, 0]
    assert batch.ended[:, 0].tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("discount, expected", [(0.9, 10.0), (0.99, 12.673090)])
def test_value_of_a_trajectory(discount: float, expected: float) -> None:
    zeros = torch.zeros(3, 1)
    batch = Batch(torch.full((4, 1, 1), 10.0), torch.zeros(3, 1, 1), torch.ones(3, 1), zeros, zeros)
    total, factor, last = n_step(batch, 3, discount)
    assert float(total + factor * last[:, 0]) == pytest.approx(expected, abs=1e-5)
