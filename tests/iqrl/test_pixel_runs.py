"""Runs from images: killed and gone on with, and refused where their frames do not fit."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from training import COMMON, assert_same_runs, finish, fork, kill, run_directories, wait_for

from iqrl.config import Execution, parse_words, resolve
from iqrl.environments.environment import Environment
from iqrl.errors import InputError
from iqrl.training import execution

TASK = "cartpole-balance@pixels+render=fast+repeat=8+size=16"
WORDS = ["agent=drqv2", f"task={TASK}", "preset=tiny", "agent.warmup_decisions=60", "train.env_steps=2000",
         "eval.every=1000", "eval.episodes=1", "seeds=0,1"]  # fmt: skip
EXECUTION = [word for word in COMMON if word.startswith("train.") and "env_steps" not in word]


@pytest.fixture(scope="module", autouse=True)
def renderer() -> None:
    try:
        Environment(TASK)
    except InputError:
        pytest.skip("no renderer on this machine")


def with_frames(runs: Path) -> set[str]:
    """Checkpoints of later than the start."""
    return {file.name for file in runs.rglob("*.pt") if not file.name.startswith("0000000000-")}


def test_kills_leave_the_files_of_a_run_that_was_never_killed(tmp_path: Path) -> None:
    """Once there is a checkpoint, so that frames are read back from the log. Those of the killed ones are in a file."""
    finish(["train", *WORDS, *EXECUTION, f"runs={tmp_path / 'whole'}"], tmp_path / "said")
    runs, wait = tmp_path / "runs", random.Random(0)
    resumable: set[str] = set()
    words = ["train", *WORDS, *EXECUTION, "train.frames=disk", f"runs={runs}"]
    for attempt in range(2):
        process = fork(words, tmp_path / f"said{attempt}")
        wait_for(lambda p=process, old=frozenset(resumable): p.exitcode is not None or with_frames(runs) - old)
        resumable |= with_frames(runs)
        process.join(wait.uniform(0.0, 0.4))
        kill(process)
    finish(words, tmp_path / "last")
    assert_same_runs(runs, tmp_path / "whole")
    assert "resumed" in (tmp_path / "last").read_text() and ", pictures in a file" in (tmp_path / "last").read_text()
    for directory in run_directories(runs):
        assert len(list(directory.glob("replay/*.frames.gz"))) > 1
        assert sum(log.stat().st_size for log in directory.glob("replay/*.frames.gz")) < 300 * 3 * 16 * 16


def test_frames_that_do_not_fit_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["agent=drqv2", "task=cartpole-balance@pixels"]
    (run,), settings, _ = resolve([("test", parse_words(words))])
    plan = execution.decide(settings, run)
    pictures, room = execution.frames_estimate(run), {"memory": 2 * 2**30, "disk": 10**15}
    monkeypatch.setattr(execution, "free_memory", lambda device: room["memory"])
    monkeypatch.setattr(execution, "free_disk", lambda folder: room["disk"])

    def size(seeds: int, **words: str) -> tuple[int, str]:
        return execution.pack_size(Execution(**words), run, plan, seeds, Path("runs"))

    assert pictures > 9 * 2**30 and size(1) == (1, "disk")
    with pytest.raises(
        InputError, match=r"needs about \d+\.\d GiB, cpu has 2.0 GiB free; expected less of agent.buffer"
    ):
        size(1, frames="memory")
    room["disk"] = pictures - 1
    with pytest.raises(InputError, match=r"needs about \d+\.\d GiB for pictures, the disk of runs has \d+\.\d GiB"):
        size(1)
    room |= {"memory": 10**12, "disk": 2 * pictures}
    assert size(3) == (3, "device") and size(3, frames="disk") == (2, "disk")
    room["memory"] = 2**20
    with pytest.raises(InputError, match="cpu has 0.0 GiB free"):
        size(1)


def test_pictures_that_a_gpu_has_no_room_for_go_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,), settings, _ = resolve([("test", parse_words(["agent=drqv2", "task=cartpole-balance@pixels"]))])
    plan = dataclasses.replace(execution.decide(settings, run), device=torch.device("cuda"))
    whole, pictures = execution.memory_estimate(run), execution.frames_estimate(run)
    room = {"cuda": 2 * whole, "cpu": 3 * pictures, "disk": 10**15}
    monkeypatch.setattr(execution, "free_memory", lambda device: room[device.type])
    monkeypatch.setattr(execution, "free_disk", lambda folder: room["disk"])

    def size(**words: str) -> tuple[int, str]:
        return execution.pack_size(Execution(**words), run, plan, 32, Path("runs"))

    assert size() == (2, "device") and size(frames="memory") == (3, "memory")
    room["cuda"] = pictures
    assert size() == (3, "memory") and size(frames="disk")[1] == "disk"
    with pytest.raises(InputError, match=r"needs about \d+\.\d GiB, cuda has \d+\.\d GiB free"):
        size(frames="device")
    room["cpu"] = pictures - 1
    assert size()[1] == "disk"
    with pytest.raises(InputError, match=r"about \d+\.\d GiB for pictures, the host's memory has \d+\.\d GiB free"):
        size(frames="memory")


def test_a_file_of_pictures_is_of_image_tasks_on_a_cpu() -> None:
    (run,), settings, _ = resolve([("test", parse_words(["agent=td3", "task=walker-walk", "train.frames=disk"]))])
    with pytest.raises(InputError, match="train.frames=disk: expected auto, of a task that is not observed as images"):
        execution.pack_size(settings, run, execution.decide(settings, run), 1, Path("runs"))
