"""Tasks by name: the table, task modifiers, and what an agent needs to know of a task.

A name is ``walker-walk``, ``mw-reach`` (MetaWorld), ``myo-reach`` (MyoSuite), or ``gym:CartPole-v1`` for a Gymnasium
task (``gym:module:id`` for one that a module registers), followed by modifiers that make the task stochastic:
``walker-walk+action_noise=0.2+sticky=0.25``.
Modifiers act once a decision, in this order:

* ``sticky=p``: with probability p the agent's action is ignored and the command of the decision before is
  given again (never at an episode's first decision);
* ``action_noise=s``: normal noise of standard deviation s is added to every entry of the command, which is
  then clipped to [-1, 1] (continuous actions only; the noise is not part of what ``sticky`` repeats);
* ``obs_noise=s``: normal noise of standard deviation s, in the observation's own units, is added to every
  entry of every observation, the first one included. Rewards see the true state.

A modifier of strength 0 is the plain task and is dropped from the name. ``walker-walk@pixels`` is the task observed as
images (pixels.py). ``walker-walk,walker-run`` is one agent's several tasks, in turn (environment.py).
Nothing here imports a simulator, so that names can be checked where none is installed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from iqrl.environments import pixels
from iqrl.environments.pixels import Pixels
from iqrl.environments.suites import suite_of
from iqrl.errors import InputError, did_you_mean

GYMNASIUM_PREFIX = "gym:"
_GYMNASIUM_ID = re.compile(r"([^\W\d]\w*(\.[^\W\d]\w*)*:)?(\w[\w-]*/)?\w[\w.-]*")  # [module:][namespace/]name

# Suite domains whose usual task name differs from the module's name.
_SHORT_DOMAINS = {"ball_in_cup": "cup", "humanoid_CMU": "humanoid-cmu"}

# Group = iQRL's exploration schedule (protocol.md section 5); tasks that it does not list are medium.
_EASY = """
cartpole-balance cartpole-balance-sparse cartpole-swingup cup-catch cup-spin finger-spin hopper-stand
pendulum-spin pendulum-swingup walker-stand walker-walk
"""
_HARD = """
cartpole-swingup-sparse dog-run dog-stand dog-trot dog-walk humanoid-run humanoid-stand humanoid-walk
"""

# Every task of the DeepMind Control suite, by domain.
_SUITE = {
    "acrobot": "swingup swingup_sparse",
    "ball_in_cup": "catch",
    "cartpole": "balance balance_sparse swingup swingup_sparse two_poles three_poles",
    "cheetah": "run",
    "dog": "stand walk trot run fetch",
    "finger": "spin turn_easy turn_hard",
    "fish": "upright swim",
    "hopper": "stand hop",
    "humanoid": "stand walk run run_pure_state",
    "humanoid_CMU": "stand walk run",
    "lqr": "lqr_2_1 lqr_6_2",
    "manipulator": "bring_ball bring_peg insert_ball insert_peg",
    "pendulum": "swingup",
    "point_mass": "easy hard",
    "quadruped": "walk run escape fetch",
    "reacher": "easy hard",
    "stacker": "stack_2 stack_4",
    "swimmer": "swimmer6 swimmer15",
    "walker": "stand walk run",
}

# The additional tasks of TD-MPC2 on suite models (protocol.md section 6); built in custom_tasks.py.
_CUSTOM = {
    "ball_in_cup": "spin",
    "cheetah": "run_backwards run_front run_back jump",
    "hopper": "hop_backwards",
    "pendulum": "spin",
    "walker": "walk_backwards run_backwards",
}

# Every task of MetaWorld. DC-MPC explores longer in three, which are "hard".
_METAWORLD = """
assembly basketball bin-picking box-close button-press button-press-topdown button-press-topdown-wall button-press-wall
coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open door-unlock drawer-close
drawer-open faucet-close faucet-open hammer hand-insert handle-press handle-press-side handle-pull handle-pull-side
lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide plate-slide-back
plate-slide-back-side plate-slide-side push push-back push-wall reach reach-wall shelf-place soccer stick-pull
stick-push sweep sweep-into window-close window-open
"""
_METAWORLD_HARD = ("assembly", "pick-place", "stick-pull")

# MyoSuite's tasks of the hand, by the names that TD-MPC2 gives them; in "hard" ones the goal is drawn anew.
_MYOSUITE = {"reach": "Reach", "pose": "Pose", "obj-hold": "ObjHold", "key-turn": "KeyTurn", "pen-twirl": "PenTwirl"}


@dataclass(frozen=True)
class TaskRow:
    """One task of the table."""

    name: str  # as users type it
    domain: str  # module of dm_control's suite, "mw" or "myo"
    task: str  # function of that module, or of custom_tasks.py; MetaWorld's name, MyoSuite's id
    group: str  # "easy" | "medium" | "hard"
    custom: bool  # not one of the suite's own


def _table() -> dict[str, TaskRow]:
    easy, hard = _EASY.split(), _HARD.split()
    rows = {}
    for custom, domains in ((False, _SUITE), (True, _CUSTOM)):
        for domain, tasks in domains.items():
            for task in tasks.split():
                name = f"{_SHORT_DOMAINS.get(domain, domain)}-{task}".replace("_", "-")
                group = "easy" if name in easy else "hard" if name in hard else "medium"
                rows[name] = TaskRow(name, domain, task, group, custom)
    for task in _METAWORLD.split():
        group = "hard" if task in _METAWORLD_HARD else "medium"
        rows[f"mw-{task}"] = TaskRow(f"mw-{task}", "mw", task, group, custom=False)
    for task, name in _MYOSUITE.items():
        for suffix, goal in (("", "Fixed"), ("-hard", "Random")):
            id = f"myoHand{name}{goal}-v0"
            rows[f"myo-{task}{suffix}"] = TaskRow(f"myo-{task}{suffix}", "myo", id, "medium", custom=False)
    return dict(sorted(rows.items()))


TASKS: dict[str, TaskRow] = _table()


@dataclass(frozen=True)
class Modifiers:
    """Strength of each modifier; 0 is off. Alphabetical, which is their order in a canonical name."""

    action_noise: float = 0.0  # standard deviation, of the action range [-1, 1]
    obs_noise: float = 0.0  # standard deviation, in the observation's units
    sticky: float = 0.0  # probability


# Largest strength of each: noise wider than the action range, or an agent never heard, is a typing error.
_LIMITS = {"action_noise": 1.0, "obs_noise": 10.0, "sticky": 0.99}


@dataclass(frozen=True)
class TaskRef:
    """A checked task name."""

    name: str  # canonical: modifiers in alphabetical order, numbers in shortest form
    domain: str  # "gym" for Gymnasium, "mw" for MetaWorld, "myo" for MyoSuite; "" of several tasks
    task: str
    group: str  # "easy" | "medium" | "hard"
    modifiers: Modifiers
    custom: bool = False
    pixels: Pixels | None = None  # how it is seen, if as images
    members: "tuple[TaskRef, ...]" = ()  # of several tasks: each of them

    @property
    def action_repeat(self) -> int:
        """Env steps a decision, unless `train.action_repeat` says otherwise, which it cannot of images."""
        return self.pixels.repeat if self.pixels else suite_of(self.name).action_repeat


@dataclass(frozen=True)
class TaskSpec:
    """What an agent and a replay need to know of a task, or of several that one agent learns (environment.py)."""

    name: str
    observation_dim: int  # of several tasks: of the largest, and one more, which says of which task it is
    # Of several tasks: of the largest. Of a discrete task: number of actions; the argmax of the vector is taken.
    action_dim: int
    action_repeat: int  # env steps a decision
    episode_decisions: int  # decisions of a full-length episode
    discrete: bool
    group: str
    terminates: bool = False  # episodes may be of any length
    reports_success: bool = False  # the task says when it is solved
    frame_shape: tuple[int, int, int] | None = None  # of a task observed as images: channels, height, width of one
    stack: int = 1  # images in an observation, oldest first
    tasks: "tuple[TaskSpec, ...]" = ()  # of several tasks: each one's own sizes

    @property
    def feature_dim(self) -> int:
        """Numbers of an observation, without the one that says of which task it is."""
        return self.observation_dim - bool(self.tasks)

    @property
    def task_count(self) -> int:
        """How many tasks it is of: 1 of a single one."""
        return max(1, len(self.tasks))

    def task_of(self, episode: int) -> int:
        """Which of its tasks an episode is of, from 0: they take turns. 0 of a single task."""
        return episode % self.task_count

    def task_name(self, episode: int) -> str:
        """Name of the task that an episode is of; "" of a single task."""
        return self.tasks[self.task_of(episode)].name if self.tasks else ""

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """(O,), or (stack * channels, height, width) of images."""
        return (self.observation_dim,) if self.frame_shape is None else self.image_shape

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(stack * channels, height, width), of a task observed as images."""
        assert self.frame_shape is not None
        channels, height, width = self.frame_shape
        return self.stack * channels, height, width

    @property
    def observation_dtype(self) -> str:
        return "float32" if self.frame_shape is None else "uint8"


def names() -> list[str]:
    """Every task of the table, sorted. Gymnasium's own come on top as ``gym:<id>``."""
    return list(TASKS)


def parse(name: str | Sequence[str]) -> TaskRef:
    """Check a task name, or a list of several, and bring it to its canonical form.

    Args:
        name: ``walker-walk``; of several tasks a list, or the text ``[walker-walk,walker-run]`` or
            ``walker-walk,walker-run``, which is the canonical one.

    Raises:
        InputError: unknown task, or a modifier or a part of ``@pixels`` that is unknown, doubled or out of range; of
            several, one that is named twice, is of images, or of another suite than the first.
    """
    if isinstance(name, str):
        text = name.strip()
        listed: list[Any] = (text[1:-1] if text.startswith("[") and text.endswith("]") else text).split(",")
    else:
        listed = list(name) if isinstance(name, list | tuple) else [name]
    blank = len(listed) > 1 and any(isinstance(each, str) and not each.strip() for each in listed)
    if not listed or blank or not all(isinstance(each, str) for each in listed):
        raise InputError(f"task={name!r}: expected a task's name such as walker-walk, or a list of names")
    members = tuple(_parse_one(each) for each in listed)
    return members[0] if len(members) == 1 else _several(members)


def _several(members: "tuple[TaskRef, ...]") -> TaskRef:
    names = [member.name for member in members]
    name = ",".join(names)
    suite = suite_of(names[0])
    for member in members:
        if names.count(member.name) > 1:
            raise InputError(f"task={name}: {member.name} is there twice")
        if member.pixels:
            raise InputError(f"task={name}: {member.name} is of images; several tasks are learned from states alone")
        if (other := suite_of(member.name)) != suite:
            raise InputError(
                f"task={name}: {names[0]} is of {suite.title}, {member.name} of {other.title}; expected one suite"
            )
    group = next(group for group in ("hard", "medium", "easy") if any(member.group == group for member in members))
    return TaskRef(name, "", "", group, Modifiers(), members=members)


def _parse_one(name: str) -> TaskRef:
    base, *words = name.strip().split("+")
    base, at, observed = base.partition("@")
    seen, parts = None, ""
    if at:
        if observed != "pixels":
            raise InputError(f"task={name}: @{observed}: expected @pixels, or nothing to observe states")
        domain = "gym" if base.startswith(GYMNASIUM_PREFIX) else TASKS[base].domain if base in TASKS else ""
        seen, parts, words = pixels.parse(name, domain, words)
    modifiers = _parse_modifiers(name, words)
    if seen and modifiers.obs_noise:
        raise InputError(f"task={name}: obs_noise is in the units of states; from pixels, use action_noise or sticky")
    canonical = f"{base}{at}{observed}{parts}" + "".join(
        f"+{field.name}={_shortest(getattr(modifiers, field.name))}"
        for field in fields(modifiers)
        if getattr(modifiers, field.name)
    )
    if base.startswith(GYMNASIUM_PREFIX):
        if not _GYMNASIUM_ID.fullmatch(base[len(GYMNASIUM_PREFIX) :]):
            raise InputError(
                f"task={name}: expected gym:<id> or gym:<module>:<id>, such as gym:CartPole-v1 or gym:my_tasks:Maze-v0"
            )
        return TaskRef(canonical, "gym", base[len(GYMNASIUM_PREFIX) :], "medium", modifiers, pixels=seen)
    if base not in TASKS:
        raise InputError(f"task={name}: no such task{_suggestion(base)} (python -m iqrl tasks lists them)")
    row = TASKS[base]
    return TaskRef(canonical, row.domain, row.task, row.group, modifiers, row.custom, seen)


def _parse_modifiers(name: str, words: list[str]) -> Modifiers:
    values: dict[str, float] = {}
    for word in words:
        key, _, text = word.partition("=")
        if key in pixels.NAMES and "@" not in name:
            raise InputError(f"task={name}: {key} is of tasks seen as images; expected @pixels before it")
        if key not in _LIMITS:
            raise InputError(f"task={name}: no modifier {key!r}; expected one of {', '.join(_LIMITS)}")
        if key in values:
            raise InputError(f"task={name}: modifier {key} is given twice")
        limit = _LIMITS[key]
        number = float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII) else -1.0
        if not 0 <= number <= limit:
            raise InputError(f"task={name}: {key}={text}: expected a number from 0 to {_shortest(limit)}")
        values[key] = number
    return Modifiers(**values)


def _shortest(number: float) -> str:
    """0.2, 1, 1e-05."""
    return repr(int(number) if number == int(number) else number)


def _suggestion(base: str) -> str:
    usual = base.lower().replace("_", "-").replace("ball-in-cup", "cup")
    return did_you_mean(base, [usual]) if usual in TASKS else did_you_mean(usual, TASKS)
