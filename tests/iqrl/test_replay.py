"""Replay and priorities: slices against the episodes they come from, draws against their priorities."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from iqrl.agent import Batch, Slices
from iqrl.environments.tasks import TaskSpec
from iqrl.training.priorities import Priorities
from iqrl.training.replay import Replay
from iqrl.training.sampling import gather, sample, sample_uniform

SPEC = TaskSpec("made-up", 2, 1, 2, 20, False, "easy")
TERMINATION, TIME_LIMIT = "termination", "time limit"


def play(replay: Replay, seed: int, episodes: list[tuple[int, str]], start: int = 0) -> np.ndarray:
    """Episodes of the given lengths and ends, and the rows written.

    The observation at step t of episode e is (e, t), its reward e + t / 100, the action that follows it
    t / 1000: a slice tells where it comes from.
    """
    written = []
    for e, (length, end) in enumerate(episodes, start):
        for t in range(length):
            last = t == length - 1
            written.append(
                replay.add(
                    seed,
                    np.array([e, t], np.float32),
                    np.array([t / 1000], np.float32),
                    e + t / 100,
                    last and end == TERMINATION,
                    last and end == TIME_LIMIT,
                    np.array([e, t + 1], np.float32),
                )[0]
            )
    return np.concatenate(written)


def memory(replay: Replay, seed: int = 0) -> dict[str, torch.Tensor]:
    return {k: v[seed] for k, v in replay.tables().items()}


def every_slice(replay: Replay, seed: int = 0) -> Batch:
    """One slice from each place that uniform sampling reaches."""
    n = replay.available(seed)
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    places = sample_uniform(memory(replay, seed)["window"], replay.ring, uniform)
    assert len(set(places.tolist())) == n
    return gather(memory(replay, seed), places, SPEC, replay.slices)


def starts(batch: Batch) -> list[tuple[int, int]]:
    return [(int(e), int(t)) for e, t in batch.observation[0].tolist()]


# --- slices


@pytest.mark.parametrize("horizon", [1, 3, 5])
def test_slices_lie_within_one_episode(horizon: int) -> None:
    lengths = [20, 7, 3, 1, 12]
    replay = Replay(SPEC, 1, Slices(horizon, 4), 1000)
    play(replay, 0, [(n, TIME_LIMIT) for n in lengths])
    batch = every_slice(replay)
    expected = [(e, t) for e, n in enumerate(lengths) for t in range(n - horizon + 1)]
    assert starts(batch) == expected  # oldest first; none that would run past a time limit
    for b, (e, t) in enumerate(expected):
        for h in range(horizon):
            assert batch.observation[h, b].tolist() == [e, t + h]
            assert batch.observation[h + 1, b].tolist() == [e, t + h + 1]
            assert batch.action[h, b, 0] == pytest.approx((t + h) / 1000)
            assert batch.reward[h, b] == pytest.approx(e + (t + h) / 100)
            assert batch.truncated[h, b] == float(t + h == lengths[e] - 1)
    assert batch.terminated.sum() == 0
    assert (batch.alive == 1).all()


def test_slices_may_start_near_a_termination_and_are_masked_after_it() -> None:
    replay = Replay(SPEC, 1, Slices(5, 4), 1000)
    lengths = [8, 3, 1, 6]
    play(replay, 0, [(n, TERMINATION) for n in lengths])
    batch = every_slice(replay)
    expected = [(e, t) for e, n in enumerate(lengths) for t in range(n)]
    assert starts(batch) == expected
    for b, (e, t) in enumerate(expected):
        left = min(5, lengths[e] - t)  # transitions up to the terminating one
        assert batch.alive[:, b].tolist() == [1.0] * left + [0.0] * (5 - left)
        assert batch.terminated[:left, b].tolist() == [float(t + h == lengths[e] - 1) for h in range(left)]
        for h in range(left):
            assert batch.observation[h + 1, b].tolist() == [e, t + h + 1]  # the final observation included


def test_the_two_kinds_of_end_differ_only_near_the_end() -> None:
    replay = Replay(SPEC, 1, Slices(4, 4), 1000)
    play(replay, 0, [(6, TIME_LIMIT), (6, TERMINATION), (2, TIME_LIMIT), (6, TIME_LIMIT)])
    near = [(0, t) for t in range(3)] + [(1, t) for t in range(6)] + [(3, t) for t in range(3)]
    assert starts(every_slice(replay)) == near


def test_running_episode_gives_slices_as_soon_as_they_are_complete() -> None:
    replay = Replay(SPEC, 1, Slices(3, 4), 1000)
    counts = []
    for t in range(6):
        replay.add(0, np.array([0, t]), np.array([0.0]), 0.0, False, False, np.array([0, t + 1]))
        counts.append(replay.available(0))
    # The observation after action t is a row of its own only once action t + 1 follows it.
    assert counts == [0, 0, 0, 1, 2, 3]


def test_ring_keeps_the_newest() -> None:
    capacity, horizon = 40, 3
    replay = Replay(SPEC, 1, Slices(horizon, 4), capacity)
    lengths = [20, 5, 13, 1, 20, 9, 20, 20, 2, 17] * 5
    everything = []
    for e, n in enumerate(lengths):
        end = TERMINATION if e % 3 == 0 else TIME_LIMIT
        play(replay, 0, [(n, end)], start=e)
        everything += [(e, t) for t in range(n if end == TERMINATION else n - horizon + 1)]
        batch = every_slice(replay)
        kept = starts(batch)
        assert kept == everything[-len(kept) :]  # the newest, in order, none missing
        assert len(kept) <= capacity
        for b, (f, t) in enumerate(kept):
            for h in range(int(batch.alive[:, b].sum())):
                assert batch.observation[h + 1, b].tolist() == [f, t + h + 1]
        if e > 5:
            assert len(kept) >= capacity - 6  # short episodes take more final rows than the margin has


def test_full_episodes_fill_the_capacity_exactly() -> None:
    replay = Replay(SPEC, 1, Slices(1, 4), 100)
    play(replay, 0, [(20, TIME_LIMIT)] * 12)
    assert replay.available(0) == 100
    assert starts(every_slice(replay))[0] == (7, 0)


def test_episodes_of_any_length_fill_the_capacity() -> None:
    """A task whose episodes terminate: every transition is kept, however many final rows there are."""
    replay = Replay(dataclasses.replace(SPEC, terminates=True), 1, Slices(1, 4), 100)
    play(replay, 0, [(1, TERMINATION)] * 99)
    assert starts(every_slice(replay))[0] == (0, 0)
    play(replay, 0, [(1, TERMINATION)] * 51, start=99)
    assert replay.available(0) == 100
    assert starts(every_slice(replay))[0] == (50, 0)


def test_cross_episode_slices_are_successive_transitions() -> None:
    replay = Replay(SPEC, 1, Slices(4, 4, cross_episodes=True), 1000)
    lengths = [6, 2, 5]
    play(replay, 0, [(n, TIME_LIMIT) for n in lengths])
    transitions = [(e, t) for e, n in enumerate(lengths) for t in range(n)]
    batch = every_slice(replay)
    assert starts(batch) == transitions[: len(transitions) - 3]
    for b in range(len(transitions) - 3):
        for h, (e, t) in enumerate(transitions[b : b + 4]):
            assert batch.reward[h, b] == pytest.approx(e + t / 100)
            assert batch.observation[h + 1, b].tolist() == [e, t + 1]  # what followed the action, end or not
    assert batch.ended.sum() == 0


def test_uniform_sampling_is_uniform_and_stays_in_the_window() -> None:
    replay = Replay(SPEC, 1, Slices(2, 4), 30)
    play(replay, 0, [(20, TIME_LIMIT)] * 4)
    uniform = torch.rand(60_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = sample_uniform(memory(replay)["window"], replay.ring, uniform)
    counts = np.bincount(places.numpy(), minlength=replay.ring)
    assert (counts > 0).sum() == replay.available(0) == 30
    assert stats.chisquare(counts[counts > 0]).pvalue > 1e-4
    last = sample_uniform(memory(replay)["window"], replay.ring, torch.tensor([1 - 2.0**-53], dtype=torch.float64))
    assert gather(memory(replay), last, SPEC, replay.slices).observation[0].tolist() == [[3, 18]]


# --- resuming


@pytest.mark.parametrize("slices", [Slices(3, 8), Slices(3, 8, prioritised=True), Slices(3, 8, cross_episodes=True)])
@pytest.mark.parametrize("capacity", [15, 40, 1000])
def test_extend_with_the_log_gives_the_identical_replay(slices: Slices, capacity: int) -> None:
    first, second = Replay(SPEC, 2, slices, capacity), Replay(SPEC, 2, slices, capacity)
    generator = torch.Generator().manual_seed(1)
    rows = [np.zeros((0, first.width), np.float32)] * 2
    for e, n in enumerate([20, 4, 11, 1, 20, 2, 20, 7]):
        for seed in (0, 1):
            end = TERMINATION if (e + seed) % 2 else TIME_LIMIT
            rows[seed] = np.concatenate([rows[seed], play(first, seed, [(n + seed, end)], start=e)])
            if first.priority is not None and first.available(seed):
                uniform = torch.rand(8, generator=generator, dtype=torch.float64)
                places = first.priority.sample(first.priority.values[seed], first.priority.block_sums[seed], uniform)
                first.priority.update(slice(seed, seed + 1), places[None], 1 + torch.rand(1, 8, generator=generator))
    replay_partial = [r[:-3] for r in rows]  # the end of the log comes on its own
    for seed in (0, 1):
        second.extend(seed, replay_partial[seed])
        second.extend(seed, rows[seed][-3:])
        second.load(seed, first.save(seed))
        assert second.available(seed) == first.available(seed)
        a, b = every_slice(first, seed), every_slice(second, seed)
        for field in dataclasses.fields(Batch):
            assert torch.equal(getattr(a, field.name), getattr(b, field.name))
    for k, v in first.tables().items():
        assert torch.equal(v, second.tables()[k]), k
    if first.priority is not None and second.priority is not None:
        assert torch.equal(first.priority.highest, second.priority.highest)
    for seed in (0, 1):  # and both go on alike
        assert np.array_equal(play(first, seed, [(9, TIME_LIMIT)], 90), play(second, seed, [(9, TIME_LIMIT)], 90))
        assert starts(every_slice(first, seed)) == starts(every_slice(second, seed))
    for k, v in first.tables().items():
        assert torch.equal(v, second.tables()[k]), k


def test_foreign_priorities_are_refused() -> None:
    slices = Slices(1, 4, prioritised=True)
    first, second, third = (Replay(SPEC, 1, slices, n) for n in (1000, 1000, 2000))
    play(first, 0, [(20, TIME_LIMIT)])
    play(second, 0, [(19, TIME_LIMIT)])
    for other in (second, third):
        with pytest.raises(ValueError, match="priorities"):
            other.load(0, first.save(0))


def test_priorities_of_a_shorter_table_that_never_was_full_go_on_in_a_longer() -> None:
    slices = Slices(1, 4, prioritised=True)
    short, long = Replay(SPEC, 1, slices, 300), Replay(SPEC, 1, slices, 1000)
    for replay in (short, long):
        play(replay, 0, [(20, TIME_LIMIT), (7, TERMINATION)])
    assert short.priority is not None and long.priority is not None
    drawn, priority = torch.tensor([[3, 5, 25]]), torch.tensor([[2.0, 9.0, 4.0]])
    short.priority.update(slice(0, 1), drawn, priority)
    long.load(0, short.save(0))
    uniform = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = [r.priority.sample(r.priority.values[0], r.priority.block_sums[0], uniform) for r in (short, long)]
    assert torch.equal(*samples) and len(samples[0].unique()) > 10
    with pytest.raises(ValueError, match="priorities"):
        short.load(0, long.save(0))


def test_newest_of_the_running_episode() -> None:
    replay = Replay(SPEC, 1, Slices(1, 4), 25)
    play(replay, 0, [(20, TIME_LIMIT)])
    for t in range(15):
        replay.add(0, np.array([1, t]), np.array([t / 1000]), 0.0, False, False, np.array([1, t + 1]))
    observations, actions = replay.newest(0, 15)
    assert observations.tolist() == [[1, t] for t in range(15)]
    np.testing.assert_allclose(actions[:, 0], np.arange(15) / 1000, rtol=1e-6)


def test_a_buffer_smaller_than_an_episode_still_has_its_rows() -> None:
    replay = Replay(SPEC, 1, Slices(1, 4), 5)
    for t in range(19):
        replay.add(0, np.array([1, t]), np.array([t / 1000]), 0.0, False, False, np.array([1, t + 1]))
    assert replay.newest(0, 19)[0].tolist() == [[1, t] for t in range(19)]
    assert replay.available(0) == 5


def test_statistics_are_of_the_transitions_kept() -> None:
    replay = Replay(SPEC, 2, Slices(5, 4), 1000)
    play(replay, 0, [(3, TERMINATION), (4, TIME_LIMIT)], start=-2)
    rewards = [-2 + t / 100 for t in range(3)] + [-1 + t / 100 for t in range(4)]
    found = replay.statistics(0)
    assert float(found["mean_absolute_reward"]) == pytest.approx(np.abs(rewards).mean(), rel=1e-6)
    assert float(found["terminations"]) == 1
    play(replay, 1, [(20, TIME_LIMIT)])
    assert float(replay.statistics(1)["terminations"]) == 0


@pytest.mark.parametrize("slices", [Slices(5, 4), Slices(3, 4, cross_episodes=True), Slices(2, 4, prioritised=True)])
def test_rows_that_wait_are_there_when_they_are_read(slices: Slices) -> None:
    """As on a device: whoever looks, sees what a replay that never waits holds."""
    looks = [
        lambda r: memory(r, 1),
        lambda r: {"available": torch.tensor(r.available(1))},
        lambda r: {"actions": torch.from_numpy(r.newest(1, 3)[1])},
        lambda r: r.statistics(1),
        lambda r: r.save(1),
    ]
    for look in looks:
        replays = [Replay(SPEC, 2, slices, 50) for _ in range(2)]
        replays[1].patient = True
        for episodes in ([(20, TIME_LIMIT)], [(9, TERMINATION), (20, TIME_LIMIT), (1, TERMINATION), (18, TIME_LIMIT)]):
            for replay in replays:
                play(replay, 1, episodes)
            now, waited = (look(replay) for replay in replays)
            assert now.keys() == waited.keys()
            assert all(torch.equal(v, waited[k]) for k, v in now.items())
    waiting = Replay(SPEC, 2, slices, 50)
    waiting.patient = True
    play(waiting, 1, [(4, TIME_LIMIT)])
    assert not waiting.rows.any()  # nothing has been read


@pytest.mark.parametrize("slices", [Slices(3, 4), Slices(3, 4, prioritised=True), Slices(2, 4, cross_episodes=True)])
def test_rows_of_a_pack_are_written_together(slices: Slices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that wait with different episodes, through several turns of the ring; copies do not grow with seeds."""
    one_by_one, together = Replay(SPEC, 4, slices, 30), Replay(SPEC, 4, slices, 30)
    together.patient = True
    usual, copies = torch.from_numpy, [0]

    def counted(array: np.ndarray) -> torch.Tensor:
        copies[0] += 1
        return usual(array)

    source = np.random.default_rng(0)
    for e in range(40):
        for seed in range(4):
            if source.random() < 0.8:
                episode = (int(source.integers(1, 21)), TERMINATION if source.random() < 0.5 else TIME_LIMIT)
                for replay in (one_by_one, together):
                    play(replay, seed, [episode], start=e)
        expected = one_by_one.tables()
        with monkeypatch.context() as patched:
            patched.setattr(torch, "from_numpy", counted)
            written = together.tables()
        for k, v in expected.items():
            assert torch.equal(v, written[k]), k
        if together.priority is not None:
            assert torch.equal(one_by_one.priority.highest, together.priority.highest)
    assert copies[0] <= 40 * (3 if slices.prioritised else 2) * 2  # twice where a block is full


# --- memory


@pytest.mark.parametrize("slices", [Slices(5, 256), Slices(1, 256, prioritised=True)])
def test_a_million_walker_transitions_take_little_more_than_their_numbers(slices: Slices) -> None:
    walker = TaskSpec("walker-walk", 24, 6, 2, 500, False, "easy")
    replay = Replay(walker, 1, slices, 1_000_000)
    taken = sum(v.nbytes for v in replay.tables().values())
    raw = 1_000_000 * (4 * (24 + 6 + 1) + 2)  # each observation, action and reward once, and two flags
    assert taken <= 1.15 * raw
    assert taken == pytest.approx(Replay.bytes_needed(walker, slices, 1_000_000), rel=1e-4)


# --- priorities


def prioritised(values: list[float] | np.ndarray, seeds: int = 1) -> Priorities:
    priorities = Priorities(seeds, len(values), "cpu")
    none, all_of_them = np.zeros(0, np.int64), np.arange(len(values))
    priorities.replace(range(seeds), [none] * seeds, [all_of_them] * seeds)
    places = torch.arange(len(values)).expand(seeds, -1)
    priorities.update(
        slice(0, seeds), places, torch.as_tensor(np.asarray(values), dtype=torch.float32).expand(seeds, -1)
    )
    return priorities


def draw(priorities: Priorities, uniform: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return Priorities.sample(priorities.values[seed], priorities.block_sums[seed], uniform)


def test_golden_lap_draws() -> None:
    priorities = prioritised([1.319508, 1.0, 1.551846, 2.511886])
    uniform = torch.tensor([0.0, 0.1, 0.5, 0.99], dtype=torch.float64)
    assert draw(priorities, uniform).tolist() == [0, 0, 2, 3]
    assert float(priorities.block_sums.sum()) == pytest.approx(6.383240, abs=1e-5)


def test_draws_are_the_exact_inverse_of_the_cumulative_sum() -> None:
    generator = np.random.default_rng(0)
    values = (1 + 30 * generator.random(5000) ** 4).astype(np.float32)
    values[generator.integers(0, 5000, 500)] = 0.0
    priorities = Priorities(1, 5000, "cpu")
    priorities.update(slice(0, 1), torch.arange(5000)[None], torch.from_numpy(values)[None])
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cumulative = np.cumsum(values.astype(np.float64))
    expected = np.searchsorted(cumulative, uniform.numpy() * cumulative[-1], side="right")
    assert np.array_equal(draw(priorities, uniform).numpy(), expected)


def test_frequencies_follow_priorities() -> None:
    generator = np.random.default_rng(1)
    values = np.concatenate([generator.uniform(1, 10, 300), np.zeros(100), generator.uniform(1, 3, 200)])
    priorities = Priorities(1, 600, "cpu")
    priorities.update(slice(0, 1), torch.arange(600)[None], torch.tensor(values, dtype=torch.float32)[None])
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    counts = np.bincount(draw(priorities, uniform).numpy(), minlength=600)
    assert counts[300:400].sum() == 0
    kept = values > 0
    assert stats.chisquare(counts[kept], 200_000 * values[kept] / values.sum()).pvalue > 1e-4


def test_extreme_priorities_never_lead_to_an_empty_place() -> None:
    values = np.zeros(2000, np.float32)
    values[[3, 130, 700, 1100, 1990]] = [1e-30, 1e30, 1.0, 1e-6, 3e7]
    priorities = Priorities(1, 2000, "cpu")
    priorities.update(slice(0, 1), torch.arange(2000)[None], torch.from_numpy(values)[None])
    edges = torch.tensor([0.0, 2.0**-53, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    uniform = torch.cat([edges, torch.rand(5000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)])
    assert (values[draw(priorities, uniform).numpy()] > 0).all()


def test_a_block_whose_sum_is_rounded_differently_from_its_cumulative_sum() -> None:
    values = np.zeros(300, np.float32)
    values[:128] = [2.0**53] + [1.0] * 127  # one by one, the ones vanish; in parallel sums some do not
    priorities = Priorities(1, 300, "cpu")
    priorities.update(slice(0, 1), torch.arange(300)[None], torch.from_numpy(values)[None])
    assert float(priorities.block_sums.sum()) > 2.0**53
    drawn = draw(priorities, torch.tensor([0.5, 1 - 2.0**-53], dtype=torch.float64))
    assert (values[drawn.numpy()] > 0).all()


def test_a_place_drawn_twice_gets_its_largest_priority_in_any_order() -> None:
    places, new = torch.tensor([[5, 9, 5, 5, 200]]), torch.tensor([[2.0, 4.0, 7.0, 3.0, 6.0]])
    for order in ([0, 1, 2, 3, 4], [2, 0, 3, 1, 4], [4, 3, 2, 1, 0]):
        priorities = prioritised(np.ones(300))
        priorities.update(slice(0, 1), places[:, order], new[:, order])
        assert priorities.values[0, [5, 9, 200, 6]].tolist() == [7.0, 4.0, 6.0, 1.0]
        assert priorities.block_sums[0].tolist() == [128 + 6 + 3, 128 + 5, 44, 0]
        assert float(priorities.highest) == 7.0


def test_new_starts_get_the_highest_priority_until_it_is_reset() -> None:
    replay = Replay(SPEC, 1, Slices(1, 4, prioritised=True), 30)
    assert replay.priority is not None
    play(replay, 0, [(5, TIME_LIMIT)])
    assert replay.priority.values[0, :6].tolist() == [1.0] * 5 + [0.0]
    replay.priority.update(slice(0, 1), torch.tensor([[1, 2]]), torch.tensor([[4.0, 1.5]]))
    play(replay, 0, [(2, TIME_LIMIT)])
    assert replay.priority.values[0, :7].tolist() == [1.0, 4.0, 1.5, 1.0, 1.0, 4.0, 4.0]
    replay.priority.update(slice(0, 1), torch.tensor([[1, 5, 6]]), torch.tensor([[1.0, 1.25, 1.0]]))
    play(replay, 0, [(1, TIME_LIMIT)])  # the running maximum is still 4
    assert float(replay.priority.values[0, 7]) == 4.0
    replay.priority.update(slice(0, 1), torch.tensor([[7]]), torch.tensor([[1.0]]))
    replay.priority.reset_highest(slice(0, 1))
    assert float(replay.priority.highest) == 1.5


def test_ring_drops_the_priorities_of_what_it_overwrites() -> None:
    capacity = 40
    replay = Replay(SPEC, 1, Slices(2, 4, prioritised=True), capacity)
    assert replay.priority is not None
    generator = torch.Generator().manual_seed(0)
    for e in range(30):
        play(replay, 0, [(1 + e % 20, TERMINATION if e % 4 == 0 else TIME_LIMIT)], start=e)
        n, values = replay.available(0), replay.priority.values[0]
        places = sample_uniform(memory(replay)["window"], replay.ring, (torch.arange(n, dtype=torch.float64) + 0.5) / n)
        assert sorted(places.tolist()) == torch.nonzero(values)[:, 0].tolist()  # exactly the starts kept
        drawn = draw(replay.priority, torch.rand(16, generator=generator, dtype=torch.float64))
        replay.priority.update(slice(0, 1), drawn[None], 1 + 5 * torch.rand(1, 16, generator=generator))
        assert torch.equal(replay.priority.block_sums[0], values.view(-1, Priorities.BLOCK).double().sum(-1))


def test_priorities_of_a_pack_are_those_of_each_seed_alone() -> None:
    generator = torch.Generator().manual_seed(4)
    slices = Slices(2, 16, prioritised=True)
    packed, alone = Replay(SPEC, 3, slices, 60), [Replay(SPEC, 1, slices, 60) for _ in range(3)]
    for e in range(8):
        for seed in range(3):
            for replay, place in ((packed, seed), (alone[seed], 0)):
                play(replay, place, [(5 + 3 * seed + e, TIME_LIMIT)], start=e)
        uniform = torch.rand(3, 16, generator=generator, dtype=torch.float64)
        assert packed.priority is not None
        together = torch.func.vmap(Priorities.sample)(packed.priority.values, packed.priority.block_sums, uniform)
        new = 1 + torch.rand(3, 16, generator=generator)
        packed.priority.update(slice(0, 3), together, new)
        for seed, replay in enumerate(alone):
            assert replay.priority is not None
            places = draw(replay.priority, uniform[seed])
            assert torch.equal(places, together[seed])
            replay.priority.update(slice(0, 1), places[None], new[seed : seed + 1])
            assert torch.equal(replay.priority.values[0], packed.priority.values[seed])
            assert torch.equal(replay.priority.block_sums[0], packed.priority.block_sums[seed])
            assert torch.equal(replay.priority.highest[0], packed.priority.highest[seed])


# --- fading


@pytest.mark.parametrize("floor", [0.1, 0.0])
@pytest.mark.parametrize("end", [TERMINATION, TIME_LIMIT])
def test_draws_fade_with_age_in_decisions(floor: float, end: str) -> None:
    """Against every weight worked out one by one, in a ring that has been written over twice."""
    slices = Slices(3, 4, prioritised=True, fade=0.99, fade_floor=floor)
    replay, generator = Replay(SPEC, 2, slices, 900), torch.Generator().manual_seed(0)
    assert replay.priority is not None
    lengths = [1 + (7 * e) % 20 for e in range(270)]
    before = np.concatenate([[0], np.cumsum(lengths)])  # decisions before each episode
    for e, length in enumerate(lengths):
        for seed in (0, 1):
            play(replay, seed, [(length, end)], start=e)
        if e % 30 == 0 and replay.available(1) > 0:
            kept = torch.nonzero(replay.priority.values[1])[:, 0]
            drawn = kept[torch.randint(len(kept), (1, 64), generator=generator)]
            replay.priority.update(slice(1, 2), drawn, 1 + 5 * torch.rand(1, 64, generator=generator))
        if e < 150 or e % 40:
            continue
        tables, values = memory(replay, 1), replay.priority.values[1].double().numpy()
        episode, step = replay.rows[1, replay.starts[1] % replay.ring, :2].long().numpy().T
        age = np.where(values[: replay.ring] > 0, before[e + 1] - 1 - (before[episode] + step), 0)
        weights = values[: replay.ring] * np.maximum(0.99**age, floor)
        cumulative, uniform = np.cumsum(weights), torch.rand(4000, generator=generator, dtype=torch.float64)
        expected = np.searchsorted(cumulative, uniform.numpy() * cumulative[-1], side="right")
        close = np.abs(cumulative[expected] / cumulative[-1] - uniform.numpy()) < 1e-12
        found = sample(tables, slices, replay.ring, uniform).numpy()
        assert age.max() > 500 and np.array_equal(found[~close], expected[~close])


def test_fading_of_a_pack_and_after_a_resume_is_that_of_one_run() -> None:
    slices = Slices(2, 16, prioritised=True, fade=0.9, fade_floor=0.1)
    pack, alone, resumed = Replay(SPEC, 2, slices, 60), Replay(SPEC, 1, slices, 60), Replay(SPEC, 1, slices, 60)
    for e in range(8):
        play(pack, 0, [(3 + e, TIME_LIMIT)], start=e)
        play(pack, 1, [(5 + e, TERMINATION)], start=e)
        resumed.extend(0, play(alone, 0, [(5 + e, TERMINATION)], start=e))
    uniform = torch.rand(2, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    draws = torch.func.vmap(lambda tables, u: sample(tables, slices, pack.ring, u))(pack.tables(), uniform)
    for replay in (alone, resumed):
        assert torch.equal(sample(memory(replay), slices, replay.ring, uniform[1]), draws[1])
