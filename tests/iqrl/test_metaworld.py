"""MetaWorld's tasks against the package's own environments, its scripted policies, and a training that reports success.

Needs metaworld: `pip install --no-deps metaworld==3.1.1`.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training import assert_stops_change_nothing

from iqrl.environments import tasks
from iqrl.environments.environment import Environment, task_spec
from iqrl.environments.environment_pool import EnvironmentPool
from iqrl.errors import InputError

pytest.importorskip("metaworld")
NAMES = [name for name in tasks.names() if name.startswith("mw-")]
QUICK = ("mw-reach", "mw-door-open", "mw-stick-push")
DECISIONS, REPEAT = 100, 2


def plain(name: str) -> Any:
    """The suite's own environment: goal observed, and drawn anew at each reset from what `seed` seeds."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    environment = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{name.removeprefix('mw-')}-v3-goal-observable"](seed=5)
    environment._freeze_rand_vec, environment.seeded_rand_vec = False, True
    return environment


def scripted(name: str) -> Any:
    from metaworld.policies import ENV_POLICY_MAP

    policy = ENV_POLICY_MAP[f"{name.removeprefix('mw-')}-v3"]()
    return lambda seen: np.clip(policy.get_action(seen.astype(np.float64)), -1, 1).astype(np.float32)


def assert_equal_to_plain_loop(name: str, choose: Any, episodes: int) -> int:
    """Play episodes here and there, `choose` mapping observations to actions; how many were solved."""
    ours, theirs, solved = Environment(name), plain(name), 0
    for episode in range(episodes):
        key = (3, 0, episode)
        observation = ours.reset(key)
        theirs.seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        expected, _ = theirs.reset()
        theirs.step(np.zeros(4, np.float32))
        seen = []
        for decision in range(DECISIONS):
            np.testing.assert_array_equal(observation, expected.astype(np.float32))
            assert ours.success == (any(seen), bool(seen and seen[-1]))
            action = choose(observation)
            observation, reward, terminated, truncated = ours.step(action)
            total = 0.0
            for _ in range(REPEAT):
                expected, one, ended, cut, info = theirs.step(action)
                assert not ended and not cut  # its own limit is 500 env steps
                total += float(one)  # some tasks give float32
                seen.append(bool(info["success"]))
            assert reward == total and not terminated and truncated == (decision == DECISIONS - 1)
        assert ours.success == (any(seen), seen[-1])
        solved += any(seen)
    return solved


def random_actions() -> Any:
    generator = np.random.default_rng(0)
    return lambda observation: generator.uniform(-1, 1, 4).astype(np.float32)


def test_table_is_the_whole_suite() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert NAMES == sorted(f"mw-{name.removesuffix('-v3')}" for name in ALL_V3_ENVIRONMENTS)
    spec = task_spec("mw-reach")
    assert (spec.observation_dim, spec.action_dim, spec.episode_decisions) == (39, 4, DECISIONS)
    assert spec.reports_success and not spec.terminates and not task_spec("walker-walk").reports_success


@pytest.mark.parametrize("name", QUICK)
def test_equals_the_suites_own_environment(name: str) -> None:
    assert_equal_to_plain_loop(name, random_actions(), episodes=5)  # 1,000 env steps
    assert assert_equal_to_plain_loop(name, scripted(name), episodes=2) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_task_equals_the_suites_own_and_is_solved_by_its_scripted_policy(name: str) -> None:
    assert_equal_to_plain_loop(name, random_actions(), episodes=5)
    assert assert_equal_to_plain_loop(name, scripted(name), episodes=4) > 0


def test_goals_change_from_episode_to_episode_and_depend_on_the_key_alone() -> None:
    environment, fresh = Environment("mw-push"), Environment("mw-push")
    goals = [environment.reset((1, 0, episode))[-3:] for episode in range(4)]
    assert len({goal.tobytes() for goal in goals}) == 4
    np.testing.assert_array_equal(environment.reset((1, 0, 2)), fresh.reset((1, 0, 2)))


def test_action_repeat_that_does_not_divide_the_episode() -> None:
    environment = Environment("mw-reach", action_repeat=3)
    environment.reset((0,))
    ends = [environment.step(np.zeros(4, np.float32))[3] for _ in range(environment.spec.episode_decisions)]
    assert ends == [False] * 66 + [True]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pool_tells_which_episodes_succeeded(workers: int) -> None:
    choose, still = scripted("mw-reach"), np.zeros(4, np.float32)
    with EnvironmentPool("mw-reach", 2, workers=workers) as pool:
        observation = pool.reset([(0,), (1,)])
        assert not pool.success.any()
        for _ in range(DECISIONS):
            observation, _, _, _ = pool.step(np.stack([choose(observation[0]), still]))
        assert pool.success.tolist() == [[True, True], [False, False]]
        pool.reset([(2,), None])
        assert not pool.success.any()


def test_without_metaworld_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(InputError, match=r"mw-reach: needs metaworld.*pip install --no-deps metaworld==3.1.1"):
        Environment("mw-reach")


def test_training_writes_success_and_resumes_bitwise(tmp_path: Path) -> None:
    """Both stops are within an episode."""
    words = [
        "train", "agent=td3", "task=mw-reach", "preset=tiny", "train.env_steps=600", "eval.every=400",
        "eval.episodes=2", "agent.warmup_decisions=100", "agent.utd=0.2", "train.compile=off", "train.threads=1",
        "train.workers=0", "train.precision=float32",
    ]  # fmt: skip
    run, said = assert_stops_change_nothing(words, (130, 250), tmp_path)
    assert "success" in said
    evaluations, training = (list(csv.DictReader((run / f).open())) for f in ("evaluations.csv", "training.csv"))
    assert [row["env_step"] for row in evaluations] == ["0", "0", "400", "400", "600", "600"]
    assert len(training) == 3 and {row["length"] for row in evaluations} == {"200"}
    for row in [*evaluations, *training]:
        assert row["success"] in ("0", "1")
    assert all(row["success_at_end"] <= row["success"] for row in evaluations)
