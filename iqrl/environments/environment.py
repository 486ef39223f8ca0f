"""One environment: episodes as pure functions of a key and the actions taken.

A decision holds an action for `action_repeat` env steps and sums their rewards (protocol.md section 1).
"""

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from iqrl.environments import tasks
from iqrl.environments.image_task import ImageTask
from iqrl.environments.suites import suite_of
from iqrl.environments.tasks import TaskRef, TaskSpec
from iqrl.errors import InputError

if TYPE_CHECKING:
    from iqrl.environments.apart import TaskApart
    from iqrl.environments.control_suite import ControlSuiteTask
    from iqrl.environments.gymnasium_suite import GymnasiumTask
    from iqrl.environments.metaworld_suite import MetaWorldTask
    from iqrl.environments.myosuite_suite import MyoSuiteTask

    Task = ControlSuiteTask | GymnasiumTask | MetaWorldTask | MyoSuiteTask | TaskApart

# Second entry of an episode's key: in training, in an evaluation during training, in one of a checkpoint afterwards.
TRAINING, EVALUATION, CHECKPOINT_EVALUATION = 0, 1, 2
_LARGEST_REPEAT = 100


def check_key(key: tuple[int, ...]) -> None:
    """Raise ValueError for an episode key with an entry outside 0 to 2**32 - 1.

    `np.random.SeedSequence` splits a larger entry into two words, and two keys could become one.
    """
    if not all(0 <= entry < 2**32 for entry in key):
        raise ValueError(f"episode key {key}: expected entries from 0 to {2**32 - 1}")


def load(ref: TaskRef) -> "Task":
    """The task itself. Simulators are imported here: much is asked of tasks where none is needed."""
    suite = suite_of(ref.name)
    if suite.may_be_apart and not suite.here:
        from iqrl.environments.apart import TaskApart

        return TaskApart(ref)
    if ref.domain == "gym":
        from iqrl.environments.gymnasium_suite import GymnasiumTask

        return GymnasiumTask(ref)
    if ref.domain == "mw":
        from iqrl.environments.metaworld_suite import MetaWorldTask

        return MetaWorldTask(ref)
    if ref.domain == "myo":
        from iqrl.environments.myosuite_suite import MyoSuiteTask

        return MyoSuiteTask(ref)
    from iqrl.environments.control_suite import ControlSuiteTask

    return ControlSuiteTask(ref)


class Environment:
    """A task with action repeat, an action range of [-1, 1] and the modifiers of its name.

    Args:
        task_name: as `tasks.parse` takes it.
        action_repeat: env steps a decision; None is as the task's name says.
    Attributes:
        spec: what an agent needs to know of the task.
        decision_seconds: simulated time of a decision.
        success: whether the task was solved at any env step of the episode, and at its last; False, False where the
            task does not say.
    Raises:
        InputError: the task, a modifier or the action repeat cannot be.
    """

    def __init__(self, task_name: str, action_repeat: int | None = None):
        ref = tasks.parse(task_name)
        if action_repeat is None:
            action_repeat = ref.action_repeat
        if not isinstance(action_repeat, int) or not 1 <= action_repeat <= _LARGEST_REPEAT:
            raise InputError(f"action_repeat={action_repeat}: expected a whole number from 1 to {_LARGEST_REPEAT}")
        self._task: Any = load(ref)
        if ref.pixels:
            self._task = ImageTask(self._task, ref.pixels.stack)
        self._modifiers = ref.modifiers
        if self._task.discrete and ref.modifiers.action_noise:
            raise InputError(f"task={ref.name}: action_noise needs continuous actions; sticky takes both")
        self.spec = TaskSpec(
            name=ref.name,
            observation_dim=self._task.observation_dim,
            action_dim=len(self._task.action_low),
            action_repeat=action_repeat,
            episode_decisions=-(-self._task.episode_steps // action_repeat),
            discrete=self._task.discrete,
            group=ref.group,
            terminates=ref.domain in ("gym", "lqr"),
            reports_success=self._task.reports_success,
            frame_shape=self._task.frame_shape if ref.pixels else None,
            stack=ref.pixels.stack if ref.pixels else 1,
        )
        self.decision_seconds = action_repeat * self._task.step_seconds
        self._action_shape = (self.spec.action_dim,)
        # Affine to native bounds. Bounds of -1 and 1 leave an action as it is, to the last bit.
        self._centre = (self._task.action_high + self._task.action_low) / 2
        self._half_range = (self._task.action_high - self._task.action_low) / 2
        self._running = False
        self.success = (False, False)

    def reset(self, seed_sequence_key: tuple[int, ...]) -> np.ndarray:
        """Start the episode of a key.

        Args:
            seed_sequence_key: such as (seed, TRAINING, episode); entries from 0 to 2**32 - 1.
                Keys that differ in trailing zeros alone are the same key, as in `np.random.SeedSequence`.
        Returns: the first observation, (O,) float32; of images, (C, height, width) uint8, as `spec` says.
        """
        check_key(seed_sequence_key)
        self._running, self.success = False, (False, False)
        observation = self._task.reset(np.random.SeedSequence(seed_sequence_key))
        self._running = True
        # A stream for each modifier: switching one on leaves the others' draws as they were.
        self._action_noise, self._observation_noise, self._sticky = (
            np.random.default_rng(np.random.SeedSequence(seed_sequence_key, spawn_key=(stream,))) for stream in range(3)
        )
        self._command: np.ndarray | None = None
        return self._observed(observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """Take one decision.

        Args:
            action: (A,) float32 in [-1, 1]; it is not clipped here. Of a discrete task, the argmax is taken.
        Returns: observation as of `reset`, reward summed over the repeats, terminated, truncated.
        Raises:
            RuntimeError: the episode has ended, or none was begun.
            dm_control.rl.control.PhysicsError: the simulation diverged.
        """
        if not self._running:
            raise RuntimeError("the episode has ended or failed: reset the environment first")
        if action.shape != self._action_shape:
            raise ValueError(f"action of shape {action.shape}: expected {self._action_shape}")
        self._running = False  # stays so if the simulation raises
        command = self._executed(action)
        native = self._centre + self._half_range * command  # float64
        observation, reward, terminated, truncated = self._task.step(native, self.spec.action_repeat)
        self._running = not (terminated or truncated)
        if self.spec.reports_success:
            at_any, at_last = self._task.solved
            self.success = self.success[0] or at_any, at_last
        return self._observed(observation), reward, terminated, truncated

    def render(self, height: int = 240, width: int = 320) -> np.ndarray:
        """A picture of the current state, (height, width, 3) uint8; of a task observed as images, what the agent sees.

        Raises:
            InputError: this machine or this task cannot draw.
        """
        return self._task.render(height, width)

    def close(self) -> None:
        """Let go of the renderer and of windows, if any."""
        self._task.close()

    def _executed(self, action: np.ndarray) -> np.ndarray:
        """The command after sticky actions and action noise, (A,)."""
        modifiers = self._modifiers
        if modifiers.sticky:
            # Drawn at every decision, so that the stream does not depend on what happened before.
            stuck = self._sticky.random() < modifiers.sticky
            if stuck and self._command is not None:
                action = self._command
            else:
                self._command = action = action.copy()
        if modifiers.action_noise:
            noise = modifiers.action_noise * self._action_noise.standard_normal(self._action_shape)
            action = np.clip(action + noise, -1.0, 1.0)
        return action

    def _observed(self, observation: np.ndarray) -> np.ndarray:
        """The observation with its noise."""
        if self._modifiers.obs_noise:
            noise = self._observation_noise.standard_normal(observation.shape, np.float32)
            observation = observation + np.float32(self._modifiers.obs_noise) * noise
        return observation


def make_environment(task_name: str, action_repeat: int | None = None) -> "Environment | MultiTaskEnvironment":
    """The environment of a task, or of several. Arguments and errors as of `Environment`."""
    several = tasks.parse(task_name).members
    return (MultiTaskEnvironment if several else Environment)(task_name, action_repeat)


class MultiTaskEnvironment:
    """Several tasks behind one agent, in turn: the episode whose key ends in k is of task k mod N.

    Otherwise as `Environment`. An observation is the task's own, zeros up to the largest task's width, and the task's
    number in the list, from 0. Of an action the task's own entries reach the simulator, which are the first.

    Raises:
        InputError: as `Environment`; or a task chooses among discrete actions, which cannot be padded.
    """

    def __init__(self, task_name: str, action_repeat: int | None = None):
        ref = tasks.parse(task_name)
        repeat = ref.members[0].action_repeat if action_repeat is None else action_repeat
        own = tuple(task_spec(member.name, repeat) for member in ref.members)
        if discrete := [spec.name for spec in own if spec.discrete]:
            raise InputError(f"task={ref.name}: {discrete[0]} has discrete actions; expected continuous ones")
        self.spec = TaskSpec(
            name=ref.name,
            observation_dim=max(spec.observation_dim for spec in own) + 1,
            action_dim=max(spec.action_dim for spec in own),
            action_repeat=repeat,
            episode_decisions=max(spec.episode_decisions for spec in own),
            discrete=False,
            group=ref.group,
            terminates=any(spec.terminates for spec in own),
            reports_success=any(spec.reports_success for spec in own),
            tasks=own,
        )
        self._environments: dict[int, Environment] = {}  # made when their first episode starts
        self._task = 0

    @property
    def _running(self) -> Environment:
        if self._task not in self._environments:
            own = self.spec.tasks[self._task]
            self._environments[self._task] = Environment(own.name, own.action_repeat)
        return self._environments[self._task]

    @property
    def success(self) -> tuple[bool, bool]:
        return self._running.success

    @property
    def decision_seconds(self) -> float:
        return self._running.decision_seconds

    def reset(self, seed_sequence_key: tuple[int, ...]) -> np.ndarray:
        """Start the episode of a key. Returns: the first observation, (O,) float32."""
        self._task = self.spec.task_of(seed_sequence_key[-1])
        return self._padded(self._running.reset(seed_sequence_key))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """Take one decision by the action (A,), as `Environment.step`."""
        own = action[: self.spec.tasks[self._task].action_dim]
        observation, reward, terminated, truncated = self._running.step(own)
        return self._padded(observation), reward, terminated, truncated

    def render(self, height: int = 240, width: int = 320) -> np.ndarray:
        """A picture of the running task, as of `Environment`."""
        return self._running.render(height, width)

    def close(self) -> None:
        """Let go of every task's renderer."""
        for environment in self._environments.values():
            environment.close()

    def _padded(self, observation: np.ndarray) -> np.ndarray:
        padded = np.zeros(self.spec.observation_dim, np.float32)
        padded[: len(observation)], padded[-1] = observation, self._task
        return padded


@functools.cache
def task_spec(name: str, action_repeat: int | None = None) -> TaskSpec:
    """Sizes of a task, measured once on an environment that is built and dropped.

    Args:
        action_repeat: as of `Environment`.
    Raises:
        InputError: as `Environment`.
    """
    return make_environment(name, action_repeat).spec
