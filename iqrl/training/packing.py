"""Which runs can train in one pack."""

from __future__ import annotations

from collections.abc import Hashable, Sequence, Set


def groups_of_one_point(checkpoints: Sequence[Set[Hashable]], size: int) -> list[list[int]]:
    """Numbers of runs of equal configuration, in groups of at most `size` that can go on from one point.

    Args:
        checkpoints: of each run, the points (decisions and updates) where it has a checkpoint; none if it is new.
    """
    groups: list[tuple[Set[Hashable], list[int]]] = []  # with the points that all of a group have
    for i, points in enumerate(checkpoints):
        for g, (common, group) in enumerate(groups):
            if len(group) < size and (common & points or common == points):
                groups[g] = (common & points, [*group, i])
                break
        else:
            groups.append((points, [i]))
    return [group for _, group in groups]
