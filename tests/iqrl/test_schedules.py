"""Schedules of exploration noise, and which updates are due when."""

from __future__ import annotations

import pytest
from made_up import make

from baselines.td3 import TD3
from iqrl.agent import Progress
from iqrl.environments.tasks import TaskSpec
from iqrl.iqrl import IQRL
from iqrl.schedules import EXPLORATION_EPISODES, linear_by_episode

SUITE = TaskSpec("walker-walk", 24, 6, 2, 500, False, "easy")

# Episodes of the schedule: {0-based episode: sigma} (golden.md section 4).
SIGMA = {
    50: {0: 1.0, 9: 1.0, 10: 1.0, 11: 0.981633, 20: 0.816327, 34: 0.559184, 58: 0.118367, 59: 0.1, 500: 0.1},
    150: {10: 1.0, 11: 0.993960, 60: 0.697987, 159: 0.1, 160: 0.1},
    500: {11: 0.998196, 160: 0.729459, 300: 0.476954, 509: 0.1, 3000: 0.1},
}


@pytest.mark.parametrize("episodes", SIGMA)
@pytest.mark.parametrize("cls", [IQRL, TD3])
def test_exploration_noise_by_episode(cls, episodes: int) -> None:  # type: ignore[no-untyped-def]
    agent = make(cls, SUITE, noise_episodes=episodes)
    for episode, sigma in SIGMA[episodes].items():
        for inside in (0, 499):  # constant within an episode
            progress = Progress(episodes=episode, decisions=500 * episode + inside)
            assert agent.schedule(progress)["sigma"] == pytest.approx(sigma, abs=1e-6)


def test_groups_and_their_lengths() -> None:
    assert EXPLORATION_EPISODES == {"easy": 50, "medium": 150, "hard": 500}
    assert IQRL.task_defaults("dog-run", "hard")["noise_episodes"] == 500
    assert TD3.task_defaults("cheetah-run", "medium")["noise_episodes"] == 150


def test_linear_schedule_of_one_entry_is_its_end() -> None:
    assert linear_by_episode(1.0, 0.1, 1, 0) == 0.1
    assert [linear_by_episode(1.0, 0.0, 3, i) for i in (-1, 0, 1, 2, 3)] == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_iqrl_learns_after_episodes_as_much_as_it_decided() -> None:
    agent = make(IQRL, SUITE)
    for episodes, due in ((1, 0), (10, 0), (11, 500), (12, 500)):
        progress = Progress(decisions=500 * episodes, episodes=episodes, episode_decisions=500)
        assert agent.after_episode(progress, {}) == (due, ())
        assert agent.after_decision(progress) == 0
    assert make(IQRL, SUITE, utd=2.0).after_episode(Progress(episodes=11, episode_decisions=500), {})[0] == 1000
    assert make(IQRL, SUITE, utd=0.5).after_episode(Progress(episodes=11, episode_decisions=37), {})[0] == 18


def test_iqrl_acts_randomly_for_ten_episodes() -> None:
    agent = make(IQRL, SUITE)
    assert [agent.acts_randomly(Progress(episodes=e)) for e in (0, 9, 10)] == [True, True, False]
    assert not make(IQRL, SUITE, warmup="policy").acts_randomly(Progress(episodes=0))


def test_td3_protocol_learns_after_episodes_and_official_at_each_decision() -> None:
    protocol, official = make(TD3, SUITE), make(TD3, SUITE, profile="official")
    at = [Progress(decisions=500 * e, episodes=e, episode_decisions=500) for e in (10, 11)]
    assert [protocol.after_episode(p, {})[0] for p in at] == [0, 500]
    assert [protocol.after_decision(p) for p in at] == [0, 0]
    assert [protocol.acts_randomly(Progress(decisions=d)) for d in (0, 4_999, 5_000)] == [True, True, False]
    near = [Progress(decisions=d, episode_decisions=500) for d in (24_999, 25_000, 25_001)]
    assert [official.after_decision(p) for p in near] == [0, 0, 1]
    assert [official.after_episode(p, {})[0] for p in near] == [0, 0, 0]
    assert [official.acts_randomly(p) for p in near] == [True, False, False]
    assert {official.schedule(Progress(episodes=e))["sigma"] for e in (0, 60, 1000)} == {0.1}


def test_the_actor_learns_at_every_second_update() -> None:
    for cls in (IQRL, TD3):
        agent = make(cls, SUITE)
        assert [agent.stages(u) for u in (1, 2, 3, 4)] == [("update_critic",), ("update_all",)] * 2
        assert make(cls, SUITE, actor_every=1).stages(1) == ("update_all",)
