"""The pool: equal to single environments to the last bit, whatever happens to its workers."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from iqrl.environments import environment_pool
from iqrl.environments.environment import Environment
from iqrl.environments.environment_pool import EnvironmentPool, WorkerError

TASK = "walker-walk+action_noise=0.1+sticky=0.2"
COUNT = 3
ROOT = Path(__file__).resolve().parents[2]


def actions(decisions: int, count: int = COUNT, action_dim: int = 6) -> np.ndarray:
    generator = np.random.default_rng(21)
    return generator.uniform(-1, 1, (decisions, count, action_dim)).astype(np.float32)


def play(pool: EnvironmentPool, before_decision=lambda pool, t: None):
    """Overlapping episodes: all start together, environment 1 starts anew, environment 2 rests a while."""
    results = [pool.reset([(1, 0, i) for i in range(COUNT)])]
    for t, row in enumerate(actions(40)):
        before_decision(pool, t)
        if t == 15:
            results.append(pool.reset([None, (1, 0, 77), None]))
        active = np.array([True, True, not 20 <= t < 25])
        results.extend(pool.step(row, active))
    return results


@pytest.fixture(scope="module")
def undisturbed():
    with EnvironmentPool(TASK, COUNT, workers=0) as pool:
        return play(pool)


def assert_equal(results, expected):
    assert len(results) == len(expected)
    for result, other in zip(results, expected):
        assert result.dtype == other.dtype
        np.testing.assert_array_equal(result, other)


def pids(pool: EnvironmentPool) -> list[int]:
    return [worker._process.pid for worker in pool._crew]


def wait_until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_in_process_pool_is_the_single_environments(undisturbed):
    environments = [Environment(TASK) for _ in range(COUNT)]
    last = np.array([environment.reset((1, 0, i)) for i, environment in enumerate(environments)])
    expected = [last.copy()]
    for t, row in enumerate(actions(40)):
        if t == 15:
            last[1] = environments[1].reset((1, 0, 77))
            expected.append(last.copy())
        rewards = np.zeros(COUNT)
        for i, environment in enumerate(environments):
            if i < 2 or not 20 <= t < 25:
                last[i], rewards[i], _, _ = environment.step(row[i])
        expected += [last.copy(), rewards, np.zeros(COUNT, bool), np.zeros(COUNT, bool)]
    assert_equal(undisturbed, expected)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_are_bitwise_the_in_process_pool(workers, undisturbed):
    with EnvironmentPool(TASK, COUNT, workers=workers) as pool:
        assert pool.workers == min(workers, COUNT)
        assert_equal(play(pool), undisturbed)
        assert pool.errors == {}


def test_whole_episodes_end_by_truncation_and_start_again():
    results = []
    for workers in (0, 2):
        with EnvironmentPool("pendulum-swingup", 2, action_repeat=10, workers=workers) as pool:
            returns = []
            for episode in range(2):
                pool.reset([(3, episode, 0), (3, episode, 1)])
                for row in actions(100, 2, 1):
                    observations, rewards, terminated, truncated = pool.step(row)
                    returns.append(rewards)
                assert truncated.all() and not terminated.any()
                with pytest.raises(RuntimeError, match=r"environments \[0, 1\] have no running episode"):
                    pool.step(actions(1, 2, 1)[0], np.ones(2, bool))
            results.append((np.array(returns), observations))
    assert_equal(results[0], results[1])


def test_killed_workers_change_nothing(undisturbed, capfd):
    deaths = {3: 0, 14: 1, 15: 0, 22: 1, 23: 0, 39: 1}  # decision: worker

    def kill(pool, t):
        if t in deaths:
            os.kill(pids(pool)[deaths[t]], signal.SIGKILL)

    with EnvironmentPool(TASK, COUNT, workers=2) as pool:
        first = pids(pool)
        assert_equal(play(pool, kill), undisturbed)
        assert pool.errors == {} and not set(first) & set(pids(pool))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(deaths)
    label = f"environment worker 0 of {TASK} died (signal 9); starting another"
    assert lines[0] == f"{label}, 2 episodes to bring back (6 decisions)"


def test_workers_killed_at_any_instant_change_nothing():
    """Signals from outside, while a step is under way or not; on a task whose steps take long."""
    rows = actions(60, 4, 38)
    results = []
    for disturbed in (False, True):
        with EnvironmentPool("dog-walk", 4, workers=2 if disturbed else 0) as pool:
            generator, done = np.random.default_rng(), threading.Event()
            kills = 0

            def killer(pool=pool, generator=generator, done=done):
                nonlocal kills
                while kills < 6 and not done.wait(generator.uniform(0.01, 0.1)):
                    worker = pool._crew[generator.integers(2)]
                    if not worker.starting:
                        worker._process.kill()
                        kills += 1

            thread = threading.Thread(target=killer)
            observed = [pool.reset([(8, i) for i in range(4)])]
            if disturbed:
                thread.start()
            for row in rows:
                observed += pool.step(row)
            done.set()
            if disturbed:
                thread.join()
                assert kills > 0
            results.append(observed)
    assert_equal(results[1], results[0])


def test_a_worker_that_keeps_dying_fails_the_pool(monkeypatch, capfd):
    pool = EnvironmentPool("pendulum-swingup", 2, workers=2)
    pool.reset([(1,), (2,)])
    healthy = pids(pool)[1]
    os.kill(pids(pool)[0], signal.SIGKILL)
    monkeypatch.setattr(environment_pool.sys, "executable", "/bin/false")
    with pytest.raises(WorkerError, match=r"environment worker 0 of pendulum-swingup died \(.*\), 3 times in a"):
        pool.step(np.zeros((2, 1), np.float32))
    wait_until(lambda: not psutil.pid_exists(healthy))
    with pytest.raises(RuntimeError, match="closed"):
        pool.reset([(1,), (2,)])


def test_workers_that_cannot_start_fail_the_pool(monkeypatch):
    monkeypatch.setattr(environment_pool.sys, "executable", "/bin/false")
    with pytest.raises(WorkerError, match="3 times in a row"):
        EnvironmentPool("pendulum-swingup", 2, workers=1)


def test_a_worker_without_an_answer_is_replaced(undisturbed, monkeypatch, capfd):
    def stop(pool, t):
        if t == 17:
            os.kill(pids(pool)[0], signal.SIGSTOP)
            pool._reply_timeout_s = 1.0  # enough for the other worker's step, not for another worker's start

    with EnvironmentPool(TASK, COUNT, workers=2) as pool:
        replace = pool._replace

        def patient_replace(worker):
            pool._reply_timeout_s = 60.0
            replace(worker)

        monkeypatch.setattr(pool, "_replace", patient_replace)
        assert_equal(play(pool, stop), undisturbed)
    assert "died (no answer for 1 s)" in capfd.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_stays_in_its_environment(workers, undisturbed):
    with EnvironmentPool(TASK.replace("+sticky=0.2", ""), COUNT, workers=workers) as pool:
        pool.reset([(1, 0, i) for i in range(COUNT)])
        rows = actions(10)
        with EnvironmentPool(pool.spec.name, COUNT, workers=0) as sound:
            expected = [sound.reset([(1, 0, i) for i in range(COUNT)])]
            expected += [sound.step(row)[0] for row in rows]
        for t, row in enumerate(rows):
            if t == 4:
                row = row.copy()
                row[1] = np.nan
            observations, rewards, terminated, truncated = pool.step(row)
            np.testing.assert_array_equal(observations[[0, 2]], expected[t + 1][[0, 2]])
            assert np.isnan(observations[1]).all() == np.isnan(rewards[1]) == (t >= 4)
            assert np.isfinite(rewards[[0, 2]]).all() and not (terminated | truncated).any()
        assert pool.errors == {1: "PhysicsError: physics state is invalid: mjWARN_BADCTRL"}
        observations = pool.reset([None, (1, 0, 1), None])
        np.testing.assert_array_equal(observations[1], expected[0][1])
        assert pool.errors == {} and np.isfinite(pool.step(rows[0])[0]).all()


def test_gymnasium_discrete_actions_and_terminations():
    pytest.importorskip("gymnasium")
    played = []
    for workers in (0, 2):
        with EnvironmentPool("gym:CartPole-v1", 2, action_repeat=1, workers=workers) as pool:
            assert pool.spec.discrete and pool.spec.action_dim == 2
            results = [pool.reset([(1,), (2,)])]
            push = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
            ended = np.zeros(2, bool)
            while not ended.all():
                results += pool.step(push)  # None: those whose episode is running
                ended |= results[-2]
                assert not results[-1].any()
            played.append(results)
    assert_equal(played[1], played[0])


def test_wrong_shapes_and_keys():
    with EnvironmentPool("pendulum-swingup", 2, workers=0) as pool:
        with pytest.raises(ValueError, match="1 keys for 2"):
            pool.reset([(1,)])
        with pytest.raises(ValueError, match="episode key"):
            pool.reset([(1,), (-1,)])
        pool.reset([(1,), (2,)])
        with pytest.raises(ValueError, match=r"actions of shape \(1, 1\)"):
            pool.step(np.zeros((1, 1), np.float32))


def test_workers_are_light_single_threaded_and_leave_signals_to_their_parent():
    with EnvironmentPool("pendulum-swingup", 2, workers=2) as pool:
        pool.reset([(1,), (2,)])
        before = pids(pool)
        for pid in before:
            assert psutil.Process(pid).num_threads() == 1
            libraries = Path(f"/proc/{pid}/maps").read_text()
            assert "torch" not in libraries and "libEGL" not in libraries and "mujoco" in libraries
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                os.kill(pid, number)
        pool.step(np.zeros((2, 1), np.float32))
        assert pids(pool) == before
    assert not any(psutil.pid_exists(pid) for pid in before)


def test_workers_outlive_the_thread_that_started_them():
    pools = []
    thread = threading.Thread(target=lambda: pools.append(EnvironmentPool("pendulum-swingup", 2, workers=2)))
    thread.start()
    thread.join()
    before = pids(pools[0])
    pools[0].reset([(1,), (2,)])
    pools[0].step(np.zeros((2, 1), np.float32))
    assert pids(pools[0]) == before
    pools[0].close()


@pytest.mark.parametrize("ending", ["SIGKILL", "SIGTERM", "exception", "forgotten"])
def test_nothing_is_left_when_the_parent_ends(ending):
    script = (
        "import sys, time, numpy as np\nfrom iqrl.environments.environment_pool import EnvironmentPool\n"
        "pool = EnvironmentPool('walker-walk', 4, workers=2)\n"
        "pool.reset([(i,) for i in range(4)])\n"
        "print(*(worker._process.pid for worker in pool._crew), flush=True)\n"
        f"if {ending!r} == 'exception': raise SystemExit('on purpose')\n"
        f"if {ending!r} == 'forgotten': del pool; sys.exit()\n"
        "while True: pool.step(np.zeros((4, 6), np.float32)); pool.reset([(i,) for i in range(4)])\n"
    )
    shared_memory = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    if ending.startswith("SIG"):
        assert all(psutil.pid_exists(pid) for pid in workers)
        parent.send_signal(getattr(signal, ending))
    parent.wait(30)
    parent.stdout.close()
    wait_until(lambda: not any(alive(pid) for pid in workers))
    if os.path.isdir("/dev/shm"):
        assert set(os.listdir("/dev/shm")) <= shared_memory


def alive(pid: int) -> bool:
    """A zombie that waits for a slow init is not alive."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_automatic_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    with EnvironmentPool("pendulum-swingup", 1) as pool:
        assert pool.workers == 0
    spec = pool.spec
    # Free messages: one worker a core; dear ones: none.
    monkeypatch.setattr(environment_pool, "_MESSAGE_S", 0.0)
    assert environment_pool._automatic_workers(8, spec, 0) == 4
    assert environment_pool._automatic_workers(8, spec, 2) == 2  # as many as train.threads gives
    monkeypatch.setattr(environment_pool, "_MESSAGE_S", 1.0)
    assert environment_pool._automatic_workers(8, spec, 0) == 0
    monkeypatch.setattr(environment_pool, "_MESSAGE_S", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert environment_pool._automatic_workers(8, spec, 0) == 0


def test_an_episode_that_comes_back_differently_is_an_error(capfd):
    with EnvironmentPool("walker-walk", 2, workers=1) as pool:
        pool.reset([(1,), (2,)])
        for row in actions(5, 2):
            expected = pool.step(row)[0]
        pool._slots.actions[0, 2] += 0.01
        os.kill(pids(pool)[0], signal.SIGKILL)
        observations = pool.reset([None, None])
        assert pool.errors == {0: "came back in another state after its worker died"}
        assert np.isnan(observations[0]).all()
        np.testing.assert_array_equal(observations[1], expected[1])
