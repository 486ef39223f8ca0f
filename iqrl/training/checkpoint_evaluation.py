"""Evaluating a run's newest checkpoint outside training, with a film if wanted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from iqrl.agent import Progress
from iqrl.config import Execution, RunConfig
from iqrl.doctor.verdicts import known
from iqrl.environments.environment import CHECKPOINT_EVALUATION, make_environment
from iqrl.errors import InputError
from iqrl.runs import checkpoints
from iqrl.training.engine import Engine
from iqrl.training.execution import decide
from iqrl.training.multi_task_replay import new_replay

FRAME_SIZE = (480, 480)


def evaluate_checkpoint(
    run: RunConfig, path: Path, execution: Execution, episodes: int, video: Path | None = None
) -> Iterator[tuple[float, bool | None]]:
    """Return of each greedy episode, as it ends, and whether it succeeded (None: the task does not say).

    Episodes are seeded by the run's seed and apart from every episode of training.

    Raises:
        InputError: without a usable checkpoint, if an episode cannot be played, or a film not be made here.
    """
    spec, plan = run.spec, known(decide(execution, run), run)
    agent = run.agent(run.settings, spec, plan.dtype)
    replay = new_replay(spec, 1, agent.slices, 1000, plan.device)
    engine = Engine(agent, [run.seed], replay, device=plan.device, compiled=plan.compiled, recorded=plan.recorded)
    _, saved = next(checkpoints.usable(path, 0, needs_replay=False), (None, None))
    if saved is None:
        raise InputError(f"{path}: has no usable checkpoint to evaluate")
    try:
        engine.load(0, saved["engine"])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    progress = [Progress(**saved["progress"])]
    environment = make_environment(run.task, spec.action_repeat)
    for episode in range(episodes):
        frames: list[np.ndarray] = []
        observation = environment.reset((run.seed, CHECKPOINT_EVALUATION, progress[0].decisions, episode))
        carry, total, step, ended = engine.initial_carry(1, 1), 0.0, 0, False
        while not ended:
            if video is not None and episode == 0:
                frames.append(environment.render(*FRAME_SIZE))
            noise = [engine.random.evaluation(0, progress[0].decisions + episode + 1, step, 1)]
            action, carry = engine.act([0], observation[None, None], carry, noise, progress)
            try:
                observation, reward, terminated, truncated = environment.step(action[0, 0])
            except Exception as error:  # of the simulator: it diverged, or an action is NaN
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise InputError(f"{path}: episode {episode}, decision {step}: {reason}") from error
            total, step, ended = total + reward, step + 1, terminated or truncated
        if video is not None and episode == 0:
            write_video(video, frames, 1.0 / environment.decision_seconds)
        yield total, environment.success[0] if spec.reports_success else None


def write_video(path: Path, frames: list[np.ndarray], rate: float) -> None:
    """Frames (height, width, 3) uint8 as a film of `rate` frames a second.

    Raises:
        InputError: if the optional packages for it are missing, or the file cannot be written.
    """
    try:
        import imageio.v3 as imageio
    except ImportError as error:
        raise InputError(f"--video {path}: needs two more packages: pip install imageio imageio-ffmpeg") from error
    try:
        imageio.imwrite(path, np.stack(frames), fps=rate)
    except OSError as error:
        raise InputError(f"--video {path}: {error}") from error
