"""Tasks in a Python of their own: equal to tasks here; MyoSuite against its own environments (`make myosuite`)."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training import ROOT, assert_stops_change_nothing, wait_for

from iqrl import processes
from iqrl.environments import tasks
from iqrl.environments.apart import TaskApart
from iqrl.environments.environment import Environment, task_spec
from iqrl.environments.environment_pool import EnvironmentPool
from iqrl.environments.suites import SUITES
from iqrl.errors import InputError

MYOSUITE = SUITES["myosuite"]
myosuite = pytest.mark.skipif(bool(MYOSUITE.missing()), reason=f"MyoSuite: {MYOSUITE.missing()}")
NAMES = [name for name in tasks.names() if name.startswith("myo-")]
QUICK = ("myo-reach", "myo-key-turn-hard")


@pytest.fixture
def metaworld_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """MetaWorld in another process of this Python, which has it too."""
    pytest.importorskip("metaworld")
    monkeypatch.setenv("IQRL_METAWORLD_PYTHON", sys.executable)


def test_a_task_apart_is_the_task_here(metaworld_apart: None) -> None:
    from iqrl.environments.metaworld_suite import MetaWorldTask

    here, one, other = (make(tasks.parse("mw-reach")) for make in (MetaWorldTask, TaskApart, TaskApart))
    assert (one.episode_steps, one.observation_dim, one.discrete, one.reports_success) == (200, 39, False, True)
    np.testing.assert_array_equal(one.action_low, here.action_low)
    other.reset(np.random.SeedSequence((9,)))  # in the same process, and of no consequence
    random = np.random.default_rng(0)
    for key in ((1, 0, 2), (1, 0, 3)):
        expected, observation = (task.reset(np.random.SeedSequence(key)) for task in (here, one))
        for _ in range(100):
            np.testing.assert_array_equal(observation, expected)
            action = random.uniform(-1, 1, 4)
            (expected, *theirs), (observation, *ours) = here.step(action, 2), one.step(action, 2)
            other.step(-action, 1)
            assert ours == theirs and one.solved == here.solved
    assert ours[2]


def test_what_goes_wrong_there_is_said_here(metaworld_apart: None) -> None:
    task = TaskApart(tasks.parse("mw-reach"))
    task.reset(np.random.SeedSequence(0))
    with pytest.raises(RuntimeError, match="operands could not be broadcast|shape|size"):
        task.step(np.zeros(7), 1)
    task.step(np.zeros(4), 1)  # it goes on
    task._host.process.kill()
    task._host.process.wait()
    with pytest.raises(RuntimeError, match="a Python of its own died"):
        task.step(np.zeros(4), 1)
    TaskApart(tasks.parse("mw-reach")).reset(np.random.SeedSequence(0))  # in another process


def processes_of(word: str, parent: int) -> list[int]:
    """Living children of a process that have a word on their command line."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children if word in Path(f"/proc/{pid}/cmdline").read_text()]


def test_it_ends_with_its_parent_even_by_kill_9(metaworld_apart: None) -> None:
    code = "from iqrl.environments import apart, tasks; apart.TaskApart(tasks.parse('mw-reach')); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE)
    wait_for(lambda: bool(processes_of("apart_worker", parent.pid)))
    (child,) = processes_of("apart_worker", parent.pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: processes.started(child) is None)


def test_without_it_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IQRL_MYOSUITE_PYTHON", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"task=myo-reach: needs myosuite, which is not installed \(make myosuite\)"):
        Environment("myo-reach")
    (tmp_path / "none").write_text("")
    with pytest.raises(InputError, match="MyoSuite: .*none does not start: Permission denied"):
        Environment("myo-pose")
    with pytest.raises(InputError, match="MyoSuite's tasks are observed as states only"):
        Environment("myo-reach@pixels")


PLAIN = """
import sys, numpy as np, myosuite
from myosuite.utils import gym
id, key, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
environment = gym.make(id).unwrapped
random = np.random.default_rng(0)
observations, rewards, solved = [environment.reset(seed=key)[0]], [], []
for _ in range(100):
    observation, reward, _, _, info = environment.step(random.uniform(-1, 1, 39).astype(np.float32))
    observations.append(observation), rewards.append(float(reward)), solved.append(bool(info["solved"]))
np.savez(out, observations=np.array(observations, np.float32), rewards=rewards, solved=solved)
"""


def assert_equal_to_plain_loop(name: str, folder: Path) -> None:
    """An episode of random actions here, after another one, and by the suite's own environment, in its own Python."""
    ours = Environment(name)
    ours.reset((7,))
    ours.step(np.ones(39, np.float32))
    key = (3, 0, 1)
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    words = [str(MYOSUITE.interpreter), "-c", PLAIN, tasks.parse(name).task, str(seed), str(folder / "plain.npz")]
    subprocess.run(words, check=True, capture_output=True)
    plain = np.load(folder / "plain.npz")
    random, seen = np.random.default_rng(0), [ours.reset(key)]
    for i in range(100):
        observation, reward, terminated, truncated = ours.step(random.uniform(-1, 1, 39).astype(np.float32))
        seen.append(observation)
        assert reward == plain["rewards"][i] and not terminated and truncated == (i == 99)
        assert ours.success == (plain["solved"][: i + 1].any(), plain["solved"][i])
    np.testing.assert_array_equal(seen, plain["observations"])


@myosuite
def test_sizes() -> None:
    assert len(NAMES) == 10
    spec = task_spec("myo-key-turn")
    assert (spec.observation_dim, spec.action_dim, spec.action_repeat, spec.episode_decisions) == (93, 39, 1, 100)
    assert spec.reports_success and not spec.terminates


@myosuite
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_equals_the_suites_own_environment(name: str, tmp_path: Path) -> None:
    assert_equal_to_plain_loop(name, tmp_path)


@myosuite
@pytest.mark.slow
def test_training_writes_success_and_resumes_bitwise(tmp_path: Path) -> None:
    words = [
        "train", "agent=td3", "task=myo-reach", "preset=tiny", "train.env_steps=250", "eval.every=200",
        "eval.episodes=2", "agent.warmup_decisions=50", "agent.utd=0.2", "train.compile=off", "train.threads=1",
        "train.precision=float32", "train.workers=0",
    ]  # fmt: skip
    run, _ = assert_stops_change_nothing(words, [150], tmp_path)
    rows: list[dict[str, Any]] = list(csv.DictReader((run / "evaluations.csv").open()))
    assert {row["length"] for row in rows} == {"100"} and {row["success"] for row in rows} <= {"0", "1"}


@myosuite
def test_a_pool_with_workers_is_single_environments() -> None:
    random = np.random.default_rng(1)
    alone = [Environment("myo-reach-hard") for _ in range(3)]
    with EnvironmentPool("myo-reach-hard", 3, workers=2) as pool:
        expected = np.stack([e.reset((i,)) for i, e in enumerate(alone)])
        np.testing.assert_array_equal(pool.reset([(0,), (1,), (2,)]), expected)
        for _ in range(20):
            actions = random.uniform(-1, 1, (3, 39)).astype(np.float32)
            observation, reward, _, _ = pool.step(actions)
            own = [e.step(a) for e, a in zip(alone, actions, strict=True)]
            np.testing.assert_array_equal(observation, [o[0] for o in own])
            np.testing.assert_array_equal(reward, np.array([o[1] for o in own], reward.dtype))
