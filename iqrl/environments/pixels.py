"""Tasks observed as images: what a task's name says of its pictures.

``walker-walk@pixels`` is walker-walk seen as the newest 3 pictures of 84x84 RGB. What differs from the default is named
after it, before the modifiers: ``cartpole-swingup@pixels+repeat=8+render=fast+sticky=0.25``. Importing this loads no
simulator; `image_task` makes the observations.
"""

import re
from dataclasses import dataclass, fields, replace
from typing import Any

from iqrl.environments.suites import suite_of
from iqrl.errors import InputError

# As in DrQ-v2 and MR.Q: quadruped's third camera follows it from near, every other domain's first shows the task.
_CAMERAS = {"quadruped": 2}
_RENDERS = ("exact", "fast")
_LIMITS = {"camera": (0, 99), "repeat": (1, 100), "size": (16, 480), "stack": (1, 16)}


@dataclass(frozen=True)
class Pixels:
    """How a task is seen. Alphabetical, which is the order of the parts in a canonical name."""

    camera: int = 0  # of the model
    render: str = "exact"  # dm_control's picture, bitwise; "fast" is without multisampling, shadows and reflections
    repeat: int = 2  # env steps a decision; 1 on Gymnasium
    size: int = 84  # height and width of a picture
    stack: int = 3  # pictures in an observation


NAMES = tuple(field.name for field in fields(Pixels))


def parse(task: str, domain: str, words: list[str]) -> tuple[Pixels, str, list[str]]:
    """The parts of an image task's name.

    Args:
        task: the name as given, for messages.
        domain: as of `tasks.TaskRef`.
        words: what stands between the plus signs after ``@pixels``.
    Returns: how the task is seen, the parts in canonical form, and the words that are none of its parts.
    Raises:
        InputError: a part is doubled, out of range, or not for this task.
    """
    given: dict[str, Any] = {}
    if domain in ("mw", "myo"):
        raise InputError(f"task={task}: {suite_of(task).title}'s tasks are observed as states only")
    default = Pixels(camera=_CAMERAS.get(domain, 0), repeat=suite_of(task).action_repeat)
    for word in words:
        key, _, text = word.partition("=")
        if key not in NAMES:
            continue
        if key in given:
            raise InputError(f"task={task}: {key} is given twice")
        if domain == "gym" and key in ("camera", "render", "size"):
            raise InputError(f"task={task}: {key}={text}: a Gymnasium task draws its own pictures")
        if key == "render":
            if text not in _RENDERS:
                raise InputError(f"task={task}: render={text}: expected one of {', '.join(_RENDERS)}")
            given[key] = text
            continue
        low, high = _LIMITS[key]
        if not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not low <= int(text) <= high:
            raise InputError(f"task={task}: {key}={text}: expected a whole number from {low} to {high}")
        given[key] = int(text)
    pixels = replace(default, **given)
    changed = [name for name in NAMES if getattr(pixels, name) != getattr(default, name)]
    parts = "".join(f"+{name}={getattr(pixels, name)}" for name in changed)
    return pixels, parts, [word for word in words if word.partition("=")[0] not in NAMES]
