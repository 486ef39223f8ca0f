"""Schedules that several agents share."""

from __future__ import annotations

EXPLORATION_EPISODES = {"easy": 50, "medium": 150, "hard": 500}  # protocol.md section 5, by task group


def linear_by_episode(initial: float, final: float, episodes: int, index: int) -> float:
    """Entry `index` of `episodes` evenly spaced values from `initial` to `final`, held at both ends."""
    if episodes < 2:
        return final
    fraction = min(max(index, 0), episodes - 1) / (episodes - 1)
    return initial + (final - initial) * fraction
