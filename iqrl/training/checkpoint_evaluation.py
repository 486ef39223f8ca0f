"""Evaluating a run's newest checkpoint outside training, with a film and what its decoder gives back if wanted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iqrl.agent import Agent, Progress, State
from iqrl.config import Execution, RunConfig
from iqrl.doctor.verdicts import known
from iqrl.environments.environment import CHECKPOINT_EVALUATION, make_environment
from iqrl.errors import InputError
from iqrl.runs import checkpoints
from iqrl.training.engine import Engine
from iqrl.training.execution import decide
from iqrl.training.replay import Replay

FRAME_SIZE = (480, 480)
STRIP = 8  # images of a strip, evenly over the episode


def evaluate_checkpoint(
    run: RunConfig,
    path: Path,
    execution: Execution,
    episodes: int,
    video: Path | None = None,
    reconstruction: Path | None = None,
) -> Iterator[tuple[float, bool | None]]:
    """Return of each greedy episode, as it ends, and whether it succeeded (None: the task does not say).

    Episodes are seeded by the run's seed and apart from every episode of training.

    Args:
        video: a file for a film of the first episode.
        reconstruction: a picture file for what the decoder gives back of some images of the first episode.

    Raises:
        InputError: without a usable checkpoint, if an episode cannot be played, or a film or picture not be made here.
    """
    spec, plan = run.spec, known(decide(execution, run), run)
    agent = run.agent(run.settings, spec, plan.dtype)
    replay = Replay(spec, 1, agent.slices, 1000, plan.device)
    engine = Engine(agent, [run.seed], replay, device=plan.device, compiled=plan.compiled, recorded=plan.recorded)
    _, saved = next(checkpoints.usable(path, 0, needs_replay=False), (None, None))
    if saved is None:
        raise InputError(f"{path}: has no usable checkpoint to evaluate")
    try:
        engine.load(0, saved["engine"])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    progress = [Progress(**saved["progress"])]
    state = {k: v[0] for k, v in engine.state.items()}
    if reconstruction is not None:
        image = torch.zeros(1, *spec.observation_shape, device=plan.device)
        if spec.frame_shape is None or agent.reconstruction(state, image) is None:
            raise InputError(f"--reconstruction {reconstruction}: {path.name} has no decoder of images")
    environment = make_environment(run.task, spec.action_repeat)
    for episode in range(episodes):
        frames: list[np.ndarray] = []
        seen: list[np.ndarray] = []
        observation = environment.reset((run.seed, CHECKPOINT_EVALUATION, progress[0].decisions, episode))
        carry, total, step, ended = engine.initial_carry(1, 1), 0.0, 0, False
        while not ended:
            if episode == 0:
                seen.append(observation)
                if video is not None:
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
        if reconstruction is not None and episode == 0:
            write_strip(reconstruction, agent, state, seen)
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


def write_strip(path: Path, agent: Agent[Any], state: State, seen: list[np.ndarray]) -> None:
    """Draw the newest pictures of some of the images `seen` above what the agent's decoder gives back of them.

    Raises:
        InputError: if the file cannot be written.
    """
    from matplotlib.image import imsave

    some = np.stack([seen[i] for i in np.linspace(0, len(seen) - 1, STRIP).astype(int)])
    with torch.no_grad():
        back = agent.reconstruction(state, torch.from_numpy(some).to(next(iter(state.values())).device))
    assert back is not None and agent.spec.frame_shape is not None
    channels = agent.spec.frame_shape[0]
    rows = [np.concatenate(list(x[:, -channels:].transpose(0, 2, 3, 1)), 1) for x in (some, back.cpu().numpy())]
    strip = np.concatenate(rows).round().astype(np.uint8)
    try:
        imsave(path, np.repeat(strip, 3, -1) if channels == 1 else strip)
    except OSError as error:
        raise InputError(f"--reconstruction {path}: {error}") from error
