"""What is shown, and how: choice, order and labels of arms and tasks, the reference arm, limits of y axes.

By options of the command line, and under `display` in a sweep's file; an option goes first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from analysis.errors import InputError

Limits = tuple[float | None, float | None]


@dataclass(frozen=True)
class Display:
    """Empty fields stand for what is there: all arms and tasks in their own order, under their own names.

    Attributes:
        baseline: the arm that the others are compared with; without one, the first that is shown.
        labels: of arms and tasks, by name.
        ylim: lowest and highest y by figure; None leaves an end as it is.
    """

    baseline: str = ""
    arms: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    ylim: Mapping[str, Limits] = field(default_factory=dict)

    def over(self, other: Display) -> Display:
        """These options, and those of `other` that are not set here; labels and limits one by one."""
        labels, ylim = {**other.labels, **self.labels}, {**other.ylim, **self.ylim}
        return Display(
            self.baseline or other.baseline, self.arms or other.arms, self.tasks or other.tasks, labels, ylim
        )

    def check(self, study: str, arms: list[str], tasks: list[str]) -> None:
        """Raises InputError for a name that the study has not, or that is there twice."""
        for key, wanted, there in (
            ("baseline", [self.baseline] if self.baseline else [], list(self.arms) or arms),
            ("arms", self.arms, arms),
            ("tasks", self.tasks, tasks),
            ("labels", self.labels, [*arms, *tasks]),
        ):
            for name in wanted:
                if name not in there:
                    raise InputError(f"{key}={name}: {study} has no such name; expected one of {', '.join(there)}")
            if repeated := [name for name, count in Counter(list(wanted)).items() if count > 1]:
                raise InputError(f"{key}={','.join(wanted)}: names {repeated[0]} twice")


def limits(low: Any, high: Any) -> Limits:
    """Of a y axis, from numbers, or texts of them; nothing leaves an end as it is.

    Raises:
        ValueError, TypeError: one is no finite number.
    """
    ends = [None if end in (None, "") else float(end) for end in (low, high)]
    if not all(end is None or math.isfinite(end) for end in ends):
        raise ValueError
    return ends[0], ends[1]


def from_manifest(said: Any) -> Display:
    """The `display` of a sweep's manifest.

    Raises:
        ValueError: it is none.
    """
    known = {part.name for part in fields(Display)}
    if not isinstance(said, dict) or not set(said) <= known:
        raise ValueError(f"'display' is not a mapping of {', '.join(sorted(known))}")
    try:
        return Display(
            str(said.get("baseline", "")),
            tuple(map(str, said.get("arms", ()))),
            tuple(map(str, said.get("tasks", ()))),
            {str(name): str(label) for name, label in said.get("labels", {}).items()},
            {str(name): limits(*ends) for name, ends in said.get("ylim", {}).items()},
        )
    except (TypeError, ValueError, AttributeError):
        raise ValueError("'display' has a value of another type") from None
