"""Replay of images: stacks and log against the observations that they come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from iqrl.agent import Batch, Slices
from iqrl.environments.tasks import TaskSpec
from iqrl.runs.replay_log import ReplayLog, frames_of
from iqrl.training.frames import Frames
from iqrl.training.replay import Replay
from iqrl.training.sampling import gather, gather_apart, sample_uniform

SPEC = TaskSpec("made-up@pixels", 3 * 2 * 3 * 2, 1, 2, 20, False, "easy", frame_shape=(2, 3, 2), stack=3)
TERMINATION, TIME_LIMIT = "termination", "time limit"
EPISODES = [(20, TIME_LIMIT), (2, TERMINATION), (1, TERMINATION), (13, TIME_LIMIT), (20, TERMINATION)] * 3


def observed(e: int, t: int) -> np.ndarray:
    """The stack at step t of episode e, whose picture is e, t, e, t, ...: oldest first, filled up with the first."""
    pictures = [np.resize([e, max(0, t - back)], SPEC.frame_shape) for back in (2, 1, 0)]
    return np.concatenate(pictures).astype(np.uint8)


def play(replay: Replay, place: int, episodes: list[tuple[int, str]], start: int = 0, log: ReplayLog | None = None):
    for e, (length, end) in enumerate(episodes, start):
        for t in range(length):
            last = t == length - 1
            action = np.array([t / 1000], np.float32)
            ends = (last and end == TERMINATION, last and end == TIME_LIMIT)
            rows = replay.add(place, observed(e, t), action, e + t / 100, *ends, observed(e, t + 1))
            if log is not None:
                log.append(*rows)


def every_slice(replay: Replay, place: int = 0) -> Batch:
    count = replay.available(place)
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tables = {k: v[place] for k, v in replay.tables().items()}
    return gather(tables, sample_uniform(tables["window"], replay.ring, uniform), replay.spec, replay.slices)


@pytest.mark.parametrize("capacity", [23, 200])
@pytest.mark.parametrize("cross", [False, True])
def test_stacks_are_what_the_agent_saw(capacity: int, cross: bool) -> None:
    replay = Replay(SPEC, 2, Slices(3, 4, cross_episodes=cross), capacity)
    seen = 0
    for e, episode in enumerate(EPISODES):
        play(replay, 1, [episode], start=e)
        batch = every_slice(replay, 1)
        assert batch.observation.dtype == torch.uint8
        for b in range(batch.action.shape[1]):
            for h in range(3):
                f = int(round(float(batch.reward[h, b]) - float(batch.action[h, b, 0]) * 10))
                t = round(float(batch.action[h, b, 0]) * 1000)
                if batch.alive[h, b]:
                    if h == 0 or not cross:
                        np.testing.assert_array_equal(batch.observation[h, b], observed(f, t))
                    np.testing.assert_array_equal(batch.observation[h + 1, b], observed(f, t + 1))
                    seen += 1
    assert seen > 500
    assert replay.available(0) == 0
    assert replay.ring % 16 == 0


@pytest.mark.parametrize("capacity", [23, 200])
@pytest.mark.parametrize("cross", [False, True])
def test_batches_are_the_same_wherever_pictures_live(capacity: int, cross: bool, tmp_path: Path) -> None:
    slices = Slices(3, 4, cross_episodes=cross)
    device, file, apart = (
        Replay(SPEC, 3, slices, capacity, frames=f) for f in ("device", tmp_path, "memory")
    )  # fmt: skip
    assert apart.apart and not device.apart and not file.apart and not list(tmp_path.iterdir())
    for replay in (device, file, apart):
        play(replay, 1, EPISODES)
        play(replay, 2, EPISODES[1:])
    expected = [every_slice(device, place) for place in (1, 2)]
    assert all(torch.equal(every_slice(file, p).observation, b.observation) for p, b in zip((1, 2), expected))
    window, count = apart.tables()["window"], min(apart.available(1), apart.available(2))
    drawn = torch.stack([(window[p, 0] + torch.arange(count)) % apart.ring for p in (1, 2)])
    observation = gather_apart(apart, [1, 2], drawn, slices)
    for n, whole in enumerate(expected):
        batch = gather({k: v[n + 1] for k, v in apart.tables().items()}, drawn[n], SPEC, slices, observation[n])
        for name in ("observation", "action", "reward", "terminated", "truncated"):
            assert torch.equal(getattr(batch, name), getattr(whole, name)[:, :count]), name
    for ours, theirs in zip(apart.newest(1, 20), device.newest(1, 20)):
        np.testing.assert_array_equal(ours, theirs)


def test_newest_are_the_pictures_of_the_running_episode() -> None:
    replay = Replay(SPEC, 1, Slices(1, 4), 5)
    play(replay, 0, [(20, TIME_LIMIT), (20, TIME_LIMIT)])
    for t in range(19):
        replay.add(0, observed(7, t), np.array([t / 1000]), 0.0, False, False, observed(7, t + 1))
    pictures, actions = replay.newest(0, 19)
    np.testing.assert_array_equal(pictures, [observed(7, t)[-2:] for t in range(19)])
    np.testing.assert_allclose(actions[:, 0], np.arange(19) / 1000, rtol=1e-6)


def test_a_replay_costs_what_it_says() -> None:
    slices = Slices(3, 4)
    spec = dataclasses.replace(SPEC, frame_shape=(3, 84, 84), observation_dim=9 * 84 * 84, episode_decisions=500)
    assert 1.0 < Replay.bytes_needed(spec, slices, 100_000) / (100_000 * 3 * 84 * 84) < 1.01
    replay = Replay(SPEC, 1, slices, 100)
    held = sum(v.numel() * v.element_size() for v in (replay.rows, replay.starts, *replay.frames.tables().values()))
    assert Replay.bytes_needed(SPEC, slices, 100) == held
    assert Frames.bytes_needed(dataclasses.replace(SPEC, frame_shape=None), 100) == 0


def test_rows_and_pictures_that_wait_are_written_together() -> None:
    """As on a device, with an episode of two seeds waiting at once."""
    waits, plain = (Replay(SPEC, 2, Slices(2, 4), 40) for _ in range(2))
    waits.patient = True
    for replay in (waits, plain):
        play(replay, 0, EPISODES[:6])
        play(replay, 1, EPISODES[2:9])
    for k, v in plain.tables().items():
        assert torch.equal(waits.tables()[k], v), k


# --- the log


def test_the_log_gives_the_identical_replay(tmp_path: Path) -> None:
    """Two sessions, the first of which wrote on after the checkpoint that the second goes on from."""
    whole, resumed = (Replay(SPEC, 1, Slices(3, 4), 30) for _ in range(2))
    first = ReplayLog(tmp_path, 1, whole.width, [])
    play(whole, 0, EPISODES[:4], log=first)
    first.sync()
    segments = first.segments
    play(Replay(SPEC, 1, Slices(3, 4), 30), 0, EPISODES[4:6], start=4, log=first)  # lost: killed
    second = ReplayLog(tmp_path, 2, whole.width, segments)
    play(whole, 0, EPISODES[4:], start=4, log=second)
    second.sync()
    ReplayLog.check(tmp_path, second.segments, whole.width)
    for rows, pictures in ReplayLog.read(tmp_path, second.segments, whole.width, SPEC.frame_shape):
        resumed.extend(0, rows, pictures)
    for k, v in whole.tables().items():
        assert torch.equal(resumed.tables()[k], v), k
    second.close()


def test_frames_that_are_short_or_damaged_are_named(tmp_path: Path) -> None:
    replay, log = Replay(SPEC, 1, Slices(3, 4), 100), ReplayLog(tmp_path, 1, 3, [])
    play(replay, 0, EPISODES, log=log)
    log.sync()
    file = frames_of(tmp_path / log.name)
    data = file.read_bytes()
    assert log.segments == [[log.name, sum(n + 1 for n, _ in EPISODES), len(data)]]
    assert len(data) < 0.5 * replay.written[0] * 12
    file.write_bytes(data[:10] + b"\xff" * (len(data) - 10))
    with pytest.raises(ValueError, match=r"00000001.frames.gz: damaged \(error\)"):
        list(ReplayLog.read(tmp_path, log.segments, 3, SPEC.frame_shape))
    file.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=f"{len(data) - 1} bytes, expected {len(data)}"):
        ReplayLog.check(tmp_path, log.segments, 3)
