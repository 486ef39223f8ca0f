"""The agent interface: what every algorithm offers, and all that the trainer knows of it.

An agent is written for **one seed**. Its learning stages are pure functions of (state, batch, random numbers,
schedule); `iqrl.training.engine` lifts them over a pack of seeds, compiles them and keeps the state. An agent holds its
configuration and the descriptions of its networks, never tensors, files, environments or random generators.

Adding one: a module with a `Config` dataclass and an `Agent` subclass under ``@register("name")``; see docs/agents.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from iqrl import multi_task
from iqrl.multi_task import Told
from iqrl.networks import ParameterGroup

if TYPE_CHECKING:
    from iqrl.environments.tasks import TaskSpec

Tensors = Mapping[str, Tensor]  # by name, one seed's
State = Tensors  # every tensor an agent learns or keeps
Metrics = dict[str, Tensor]  # scalars
Update = tuple[dict[str, Tensor], Metrics]  # what a learning stage returns: changed entries of the state, and metrics


def setting(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
    hint: str = "",
    omit_default_from_identity: bool = False,
) -> Any:
    """A configuration field: default, documentation (with unit and source), and the values it accepts.

    Bounds apply to each element of a list; `hint` says what was expected where the bound alone would not. A setting
    with `omit_default_from_identity`, added when there were runs without it, is part of a run's configuration, and so
    of its identity, only where it is not at its default, which is how those runs were made and never changes.
    """
    metadata = {
        "doc": doc,
        "low": low,
        "high": high,
        "choices": choices,
        "hint": hint,
        "omit_default_from_identity": omit_default_from_identity,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Batch:
    """Slices of H successive transitions, time-major.

    Attributes:
        observation: (H + 1, B, O); entry 0 is the slice's first observation, entry h + 1 follows action h. Of images
            (H + 1, B, C, height, width) uint8. Of several tasks, its last number tells which (`Agent.told`).
        action: (H, B, A) in [-1, 1].
        reward: (H, B), summed over the action repeat.
        terminated: (H, B), 1.0 where transition h ended its episode by a termination.
        truncated: (H, B), 1.0 where it was cut by a time limit (values bootstrap through it).

    Slices lie within one episode, except that a slice may run past a *termination*; everything after a
    transition with an end flag is meaningless and must be masked (`alive`).
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor

    @property
    def ended(self) -> Tensor:
        """(H, B), 1.0 where transition h was the last of its episode."""
        return torch.clamp(self.terminated + self.truncated, max=1.0)

    @property
    def alive(self) -> Tensor:
        """(H, B), 1.0 up to and including the transition that ends the episode, 0.0 after it."""
        going = torch.cumprod(1.0 - self.ended, 0)
        return torch.cat([torch.ones_like(going[:1]), going[:-1]])

    def at(self, index: Tensor) -> Batch:
        """The slices with indices (n,)."""
        return Batch(*(getattr(self, f.name)[:, index] for f in dataclasses.fields(self)))


@dataclass(frozen=True)
class Noise:
    """Random numbers that a function wants: shape, and kind.

    Kinds: "normal"; "uniform" and "uniform64" on [0, 1); "bits", int32 (a key for `iqrl.counter_random`).
    """

    shape: tuple[int, ...]
    kind: str = "normal"


@dataclass(frozen=True)
class Stage:
    """What one learning stage wants from the engine: a batch or none, and random numbers by name.

    With `parts`, it is these methods in turn, on the same batch and random numbers, each on the state that the one
    before left. Each is compiled once, whichever stages it is a part of, and gets those of the random numbers that
    `stage` of its own name asks for.
    """

    batch: bool = True
    noise: Mapping[str, Noise] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    reset_priority: bool = False  # afterwards, the highest priority is that of the items still kept
    statistics: bool = False  # the schedule holds `Replay.statistics`, of the transitions kept


@dataclass(frozen=True)
class Slices:
    """How an agent samples its replay.

    Attributes:
        horizon: H, transitions in a slice.
        batch_size: B.
        prioritised: sample in proportion to priorities that the learning stages return under the metric
            name "priority" (B,); uniform otherwise.
        cross_episodes: let slices run over an episode's end into the next (a released code's behaviour).
        fade, fade_floor: with priorities, a slice that starts d decisions before the newest transition counts
            max(fade ** d, fade_floor) times its priority. 1.0 is no fading.
    """

    horizon: int
    batch_size: int
    prioritised: bool = False
    cross_episodes: bool = False
    fade: float = 1.0
    fade_floor: float = 0.0

    @property
    def fades(self) -> bool:
        return self.prioritised and self.fade < 1.0

    @property
    def held_back(self) -> int:
        """Newest starts not to be sampled: across episodes a slice is H successive starts."""
        return self.horizon - 1 if self.cross_episodes else 0


@dataclass
class Progress:
    """How far one seed has come. Counts since its start."""

    decisions: int = 0
    episodes: int = 0  # finished training episodes
    episode_decisions: int = 0  # decisions in the current episode
    episode_return: float = 0.0
    updates: int = 0  # gradient updates done
    pending: int = 0  # gradient updates due before the next decision
    evaluated: int = -1  # decisions at the last evaluation; -1 before the first

    def state(self) -> dict[str, float]:
        return dataclasses.asdict(self)


C = TypeVar("C")
RENAMED = {"clock": "schedule", "remember": "counters"}  # hooks that agents of one's own may still have by old names


class Agent(Generic[C]):
    """Base class of ``class MyAgent(Agent[Config])``, Config being its flat dataclass of `setting` fields.

    Args:
        config: a resolved `Config`.
        spec: the task's sizes.
        dtype: compute type of the large matrix products, float32 or bfloat16.
    """

    Config: ClassVar[type] = object
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # named sets of configuration values: "small", ...
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # likewise, chosen by the key `profile`
    name: ClassVar[str] = ""
    sees_images: ClassVar[bool] = False  # learns from tasks observed as images
    sees_states: ClassVar[bool] = True  # learns from tasks observed as vectors
    takes_several_tasks: ClassVar[bool] = False  # learns several tasks at once
    compile_act: ClassVar[bool] = False  # compile `act` too, where learning is compiled: for planners
    act_bytes: int = 0  # of the largest tensor that `act` makes for one environment, where that is megabytes

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for old, new in RENAMED.items():
            if old in vars(cls):
                raise TypeError(f"{cls.__name__}.{old}: is called `{new}` now")
        # Its own: a subclass of an agent keeps its Config, or sets one.
        for base in vars(cls).get("__orig_bases__", ()):
            cls.Config = next(iter(typing.get_args(base)), cls.Config)

    def __init__(self, config: C, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        self.config = config
        self.spec = spec
        self.dtype = dtype

    @classmethod
    def observed(cls, task: str) -> str:
        """A task of states by its name, as this agent can observe it: as images, if it sees nothing else."""
        name, plus, modifiers = task.partition("+")
        return task if cls.sees_states or "@" in name else f"{name}@pixels{plus}{modifiers}"

    @classmethod
    def task_defaults(cls, task: str, group: str) -> dict[str, Any]:
        """Configuration values that depend on the task's name or group (easy, medium, hard)."""
        return {}

    @classmethod
    def validate(cls, config: C) -> None:
        """Raises InputError for values that do not go together."""

    # --- several tasks (iqrl.multi_task)

    def told(self, observation: Tensor) -> Told:
        """What networks are told of the task that observations (..., O) are of; nothing of a single one."""
        return multi_task.told(self.spec, observation)

    def without_task(self, observation: Tensor) -> Tensor:
        """Observations without what tells the task."""
        return multi_task.without_task(self.spec, observation)

    def own(self, action: Tensor, of_task: Told) -> Tensor:
        """Actions (..., A) with zeros where the task has no such entry."""
        return multi_task.own(action, [task.action_dim for task in self.spec.tasks], of_task)

    def rounds(self, progress: Progress) -> int:
        """Finished training episodes of each task."""
        return progress.episodes // self.spec.task_count

    def groups(self) -> dict[str, ParameterGroup]:
        """The agent's parameter groups, by the attribute that holds each."""
        return {k: v for k, v in vars(self).items() if isinstance(v, ParameterGroup)}

    def layout(self) -> dict[str, str]:
        """A digest of each group's order of parameters: a vector of the same length but another order does not fit."""
        return {k: hashlib.sha256(repr(v.layout).encode()).hexdigest()[:16] for k, v in self.groups().items()}

    # --- learning

    @property
    def slices(self) -> Slices:
        raise NotImplementedError(f"{type(self).__name__} has no slices")

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The state of one seed before training, drawn from its own generator."""
        raise NotImplementedError(f"{type(self).__name__} has no initialise")

    def stages(self, update: int) -> tuple[str, ...]:
        """Names of the methods that make up gradient update number `update` (1, 2, ...), in order.

        Each is called as ``stage(state, batch, noise, schedule) -> (changed, metrics)``: a pure function of one
        seed's tensors that returns the changed entries of the state and scalar metrics.
        """
        return ("update",)

    def stage(self, name: str) -> Stage:
        """What the stage `name` wants."""
        return Stage()

    def parts(self, name: str) -> tuple[str, ...]:
        """Names of the methods that make up the stage `name`."""
        parts = self.stage(name).parts
        if parts and hasattr(self, name):
            raise TypeError(f"{type(self).__name__}.{name}: is never called; expected {' and '.join(parts)}, its parts")
        return parts or (name,)

    def run_stage(self, name: str, state: State, batch: Batch | None, noise: Tensors, schedule: Tensors) -> Update:
        """What the whole stage `name` changes and says of one seed."""
        changed, metrics = dict[str, Tensor](), Metrics()
        for part in self.parts(name):
            more, said = getattr(self, part)({**state, **changed}, batch, noise, schedule)
            changed, metrics = {**changed, **more}, {**metrics, **said}
        return changed, metrics

    def start_from(self, state: State, source: State) -> dict[str, Tensor]:
        """The entries of a first `state` that a run takes over from the final state of another (`init_from`)."""
        raise NotImplementedError(f"{type(self).__name__} has no start_from")

    # --- acting

    def act(
        self, state: State, carry: Tensors, observation: Tensor, noise: Tensors, schedule: Tensors
    ) -> tuple[Tensor, Tensors]:
        """Actions (N, A) in [-1, 1] for observations (N, O), and what to carry to the next decision.

        Of a task observed as images, the observations are (N, C, height, width) uint8.

        `noise` is empty for a greedy action, and holds (N, *shape) entries of `act_noise` otherwise.
        """
        raise NotImplementedError(f"{type(self).__name__} has no act")

    def act_noise(self, explore: bool) -> Mapping[str, Noise]:
        """Random numbers for one decision, when exploring or when evaluating."""
        return {"action": Noise((self.spec.action_dim,))} if explore else {}

    def carry(self) -> dict[str, Tensor]:
        """What a planner carries between decisions, at an episode's start (one environment's)."""
        return {}

    # --- schedule, on the host

    def schedule(self, progress: Progress) -> dict[str, float]:
        """Scalars that change with progress (exploration noise, temperatures, ...)."""
        return {}

    def acts_randomly(self, progress: Progress) -> bool:
        """Whether the next decision is uniform in [-1, 1] (warm-up)."""
        raise NotImplementedError(f"{type(self).__name__} has no acts_randomly")

    def counters(self) -> dict[str, float]:
        """The agent's own counters at the start of training."""
        return {}

    def after_decision(self, progress: Progress) -> int:
        """Gradient updates due after a decision (`progress` already counts it)."""
        return 0

    def after_episode(self, progress: Progress, counters: dict[str, float]) -> tuple[int, tuple[str, ...]]:
        """Gradient updates due after an episode, and stages to run once before them.

        `progress.episode_return` and `.episode_decisions` are still those of the episode that ended;
        `progress.episodes` already counts it. May change `counters`.
        """
        return 0, ()

    # --- looking inside

    def latent(self, state: State, observation: Tensor) -> Tensor | None:
        """Latents (M, Z) of observations (M, O), or None for an agent without a representation."""
        return None

    def codes(self, state: State, latent: Tensor) -> tuple[Tensor, int] | None:
        """Code indices (M, d) of latents and the codebook's size, or None without a codebook."""
        return None

    def target_latent(self, state: State, observation: Tensor) -> Tensor | None:
        """Latents (M, Z) that predictions are compared with, or None for an agent without such targets."""
        return None

    def predicted_latent(self, state: State, latent: Tensor, action: Tensor, *told: Tensor) -> Tensor | None:
        """The dynamics' next latents (M, Z) after latents (M, Z) and actions (M, A), or None without dynamics.

        An agent of several tasks is told which, as `told` gives it.
        """
        return None

    def reconstruction(self, state: State, observation: Tensor) -> Tensor | None:
        """What a decoder gives back of images (M, C, height, width), in grey levels 0 to 255, or None without one."""
        return None

    def latent_width(self) -> int:
        """Z; also how many samples the rank is taken of. 0 without a representation."""
        return 0

    def hidden(self, state: State, observation: Tensor, action: Tensor) -> list[Tensor]:
        """Outputs of every hidden layer of the networks in use, each (..., M, n), for dormant units."""
        return []


A = TypeVar("A", bound=type[Agent])
REGISTRY: dict[str, type[Agent]] = {}


def register(name: str) -> Callable[[A], A]:
    """Class decorator: makes an agent known under `name`."""

    def add(cls: A) -> A:
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return add
