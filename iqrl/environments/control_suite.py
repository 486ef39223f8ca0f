"""DeepMind Control tasks, stepped without the parts of dm_control that training does not need.

On small models dm_control spends as long in Python as in physics. Here an observation is built once a
decision, names of model elements are looked up once, reward shapings of scalars are computed on scalars, and
nothing is copied or validated a second time. Rewards and observations stay bitwise those of `suite.load(...)`
stepped plainly; a test compares them.
"""

# ruff: noqa: E402

import os

# dm_control reads this as it is imported, and is to load no renderer: rendering.py draws, where anything is drawn.
_RENDERER = os.environ.get("MUJOCO_GL", "disable")
os.environ["MUJOCO_GL"] = "disable"

from typing import Any

import absl.logging
import mujoco
import numpy as np
from dm_control import suite
from dm_control.mujoco import index
from dm_control.rl import control
from dm_control.suite import base
from dm_control.utils import rewards

from iqrl.environments import custom_tasks
from iqrl.environments.rendering import Renderer
from iqrl.environments.tasks import TaskRef
from iqrl.errors import InputError

os.environ["MUJOCO_GL"] = _RENDERER

# Only lqr has no time limit of its own; it gets the suite's usual one.
_DEFAULT_EPISODE_STEPS = 1000


class ControlSuiteTask:
    """One task of the suite (or of custom_tasks.py): physics, rewards and episode starts.

    Attributes:
        observation_dim: entries of the flat observation, dict entries in the task's own order.
        action_low, action_high: native bounds, (A,) float64.
        discrete: False.
        episode_steps: env steps of an episode.
        step_seconds: simulated time of an env step.
        reports_success: False: no task of the suite says whether it is solved.
        frame_shape: of a task observed as images, (3, height, width).
    Raises:
        InputError: of a task observed as images: no OpenGL on this machine, or no such camera.
    """

    discrete = False
    reports_success = False

    def __init__(self, ref: TaskRef):
        # lqr draws its springs when it is built: always the same, for episodes depend on keys alone.
        random = np.random.RandomState(0)
        # The dog's model makes MuJoCo's compiler complain about an attribute of its own file.
        verbosity = absl.logging.get_verbosity()
        absl.logging.set_verbosity(absl.logging.ERROR)
        try:
            if ref.custom:
                environment = custom_tasks.load(ref.domain, ref.task, random)
            else:
                environment = suite.load(ref.domain, ref.task, task_kwargs={"random": random})
        finally:
            absl.logging.set_verbosity(verbosity)
        self._environment = environment
        self._task: Any = environment.task
        self._physics: Any = environment.physics
        # quadruped-escape uploads its new terrain to a rendering context, which would create one.
        self._physics.__class__ = type("Physics", (type(self._physics),), {"contexts": None})
        _remember_names(self._physics)

        self._model = self._physics.model.ptr
        self._data = self._physics.data.ptr
        self._control = self._data.ctrl
        self._substeps: int = environment._n_sub_steps
        self._runge_kutta = self._model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4.value
        self._own_before_step = type(self._task).before_step is not base.Task.before_step
        self._own_after_step = type(self._task).after_step is not base.Task.after_step
        self._own_termination = type(self._task).get_termination is not control.Task.get_termination
        self._warnings: np.ndarray = self._physics._warnings  # counts by kind, live
        self._warnings_at_reset = self._warnings.tobytes()

        action_spec = environment.action_spec()
        # lqr's motors have no limits: there, an action of 1 is a control of 1.
        unlimited = action_spec.maximum >= mujoco.mjMAXVAL
        self.action_low = np.where(unlimited, -1.0, action_spec.minimum)
        self.action_high = np.where(unlimited, 1.0, action_spec.maximum)
        limit = environment._step_limit
        self._step_limit = _DEFAULT_EPISODE_STEPS if limit == float("inf") else limit
        self.episode_steps = int(np.ceil(self._step_limit))
        self.step_seconds: float = environment.control_timestep()
        self._steps = 0

        entries = [np.asarray(value) for value in self._task.get_observation(self._physics).values()]
        self.observation_dim = sum(entry.size for entry in entries)
        self._observation = np.zeros(self.observation_dim, np.float32)
        ends = np.cumsum([entry.size for entry in entries])
        self._observation_entries = [
            self._observation[end - entry.size : end].reshape(entry.shape) for end, entry in zip(ends, entries)
        ]
        self._name = f"{ref.domain}/{ref.task}"
        self._film: Renderer | None = None
        if ref.pixels is not None:
            size = ref.pixels.size
            self.frame_shape = (3, size, size)
            try:
                fast = ref.pixels.render == "fast"
                self._eye = Renderer(self._name, self._model, size, size, ref.pixels.camera, fast)
            except InputError as error:
                raise InputError(f"task={ref.name}: {error}") from None

    def reset(self, seeds: np.random.SeedSequence) -> np.ndarray:
        """Start the episode that `seeds` determines; its first observation, (O,) float32."""
        self._task._random = np.random.RandomState(np.random.MT19937(seeds))
        observation = self._environment.reset().observation
        self._warnings_at_reset = self._warnings.tobytes()
        self._steps = 0
        return self._flat(observation)

    def step(self, action: np.ndarray, repeat: int) -> tuple[np.ndarray, float, bool, bool]:
        """Hold a native action (A,) for `repeat` env steps, fewer where the episode ends.

        Returns: observation (O,) float32, summed reward, terminated, truncated.
        Raises:
            dm_control.rl.control.PhysicsError: the simulation diverged.
        """
        task, physics, model, data = self._task, self._physics, self._model, self._data
        reward = 0.0
        terminated = truncated = False
        if not self._own_before_step:
            self._control[:] = action
        for _ in range(repeat):
            if self._own_before_step:
                task.before_step(action, physics)
            # As Physics.step with legacy_step: derived quantities are those of the state that is observed.
            if self._runge_kutta:
                mujoco.mj_step(model, data, self._substeps)
            else:
                mujoco.mj_step2(model, data)
                if self._substeps > 1:
                    mujoco.mj_step(model, data, self._substeps - 1)
            mujoco.mj_step1(model, data)
            if self._warnings.tobytes() != self._warnings_at_reset:
                raise control.PhysicsError(self._warning_text())
            if self._own_after_step:
                task.after_step(physics)
            reward += task.get_reward(physics)
            self._steps += 1
            if self._steps >= self._step_limit:
                truncated = True
                break
            if self._own_termination:
                discount = task.get_termination(physics)
                if discount is not None:
                    terminated = discount == 0.0
                    truncated = not terminated
                    break
        return self._flat(task.get_observation(physics)), float(reward), terminated, truncated

    def render(self, height: int, width: int) -> np.ndarray:
        """The scene from the task's first camera, (height, width, 3) uint8.

        Raises:
            InputError: no renderer on this machine, or a picture larger than the model allows.
        """
        if self._film is None or (self._film.height, self._film.width) != (height, width):
            self._film = Renderer(self._name, self._model, height, width, camera=0)
        return self._film.draw(self._data)

    def frame(self, observation: np.ndarray) -> np.ndarray:
        """What an agent sees of the current state, whose `observation` says nothing more: (height, width, 3) uint8."""
        return self._eye.draw(self._data)

    def close(self) -> None:
        self._film = None

    def _flat(self, observation: dict[str, Any]) -> np.ndarray:
        for entry, value in zip(self._observation_entries, observation.values()):
            entry[...] = value
        return self._observation.copy()

    def _warning_text(self) -> str:
        before = np.frombuffer(self._warnings_at_reset, self._warnings.dtype)
        kinds = [
            kind
            for kind, count, count_before in zip(mujoco.mjtWarning.__members__, self._warnings, before)
            if count > count_before
        ]
        return f"physics state is invalid: {', '.join(kinds)}"


class _RememberingIndexer(index.FieldIndexer):
    """A field of the model or its state by element names, each name looked up once.

    Sizes and names of a model never change, so a converted key stays right.
    """

    __slots__ = ("_keys",)

    def __init__(self, indexer: index.FieldIndexer):
        for slot in index.FieldIndexer.__slots__:
            setattr(self, slot, getattr(indexer, slot))
        self._keys: dict[Any, Any] = {}

    def __getitem__(self, key: Any) -> Any:
        remembered = key
        if type(key) is not str:
            parts = key if type(key) is tuple else (key,)
            remembered = (type(key), *map(_hashable, parts))
        try:
            converted = self._keys.get(remembered)
        except TypeError:  # an array
            return super().__getitem__(key)
        if converted is None:
            converted = self._keys[remembered] = self._convert_key(key)
        return self._field[converted]


def _hashable(part: Any) -> Any:
    if type(part) is list:
        return tuple(part)
    if type(part) is slice:
        return (slice, part.start, part.stop, part.step)
    return part


def _remember_names(physics: Any) -> None:
    """Let `physics.named` remember the names it has looked up."""
    for struct in physics.named:
        for name, indexer in struct._asdict().items():
            setattr(type(struct), name, _RememberingIndexer(indexer))


_library_tolerance = rewards.tolerance
_FALL_TO_ZERO = ("linear", "quadratic")


def tolerance(
    x: Any,
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: float = 0.0,
    sigmoid: str = "gaussian",
    value_at_margin: float = 0.1,
) -> Any:
    """`dm_control.utils.rewards.tolerance`, several times faster for one number and bitwise equal to it."""
    shape: tuple[int, ...] = ()
    number = x
    if type(x) is np.ndarray and x.size == 1:
        shape = x.shape
        number = x.reshape(())[()]
    if (type(number) is np.float64 or type(number) is float) and bounds[0] <= bounds[1]:
        value = _tolerance_of_one(number, bounds, margin, sigmoid, value_at_margin, squares=bool(shape))
        if value is not None:
            return np.full(shape, value) if shape else value
    return _library_tolerance(x, bounds, margin, sigmoid, value_at_margin)


def _tolerance_of_one(
    x: float,
    bounds: tuple[float, float],
    margin: float,
    sigmoid: str,
    value_at_margin: float,
    squares: bool,
) -> float | None:
    """None where the library has to say. NumPy squares arrays (`squares`), but calls pow for scalars."""
    lower, upper = bounds
    if lower <= x <= upper:
        return 1.0
    if margin == 0:
        return 0.0
    if margin < 0 or not 0 < value_at_margin < 1 and not (value_at_margin == 0 and sigmoid in _FALL_TO_ZERO):
        return None
    distance = np.float64((lower - x if x < lower else x - upper) / margin)
    if sigmoid == "linear":
        scaled = distance * (1 - value_at_margin)
        return float(1 - scaled) if abs(scaled) < 1 else 0.0
    if sigmoid == "quadratic":
        scaled = distance * np.sqrt(1 - value_at_margin)
        return float(1 - (scaled * scaled if squares else scaled**2)) if abs(scaled) < 1 else 0.0
    if sigmoid == "gaussian":
        scaled = distance * np.sqrt(-2 * np.log(value_at_margin))
        return float(np.exp(-0.5 * (scaled * scaled if squares else scaled**2)))
    return None


# The suite's tasks look it up in its module at each call.
rewards.tolerance = tolerance
