"""Every agent through the trainer: stopped and gone on with, on a discrete task, evaluated side by side."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from iqrl import __main__ as command_line
from iqrl.config import parse_words, resolve
from iqrl.environments.environment import CHECKPOINT_EVALUATION, Environment
from iqrl.errors import InputError
from iqrl.runs import reader
from iqrl.runs.directory import RunDirectory
from iqrl.training import execution
from iqrl.training.trainer import Trainer

COMMON = [
    "preset=tiny", "train.compile=off", "train.precision=float32", "train.threads=1", "train.workers=0",
    "train.device=cpu",
]  # fmt: skip
BALANCE = ["task=cartpole-balance", "train.action_repeat=4", "train.env_steps=2200", "eval.every=2200",
           "eval.episodes=1", *COMMON]  # fmt: skip
CARTPOLE = ["task=gym:CartPole-v1", "train.action_repeat=2", "train.env_steps=800", "eval.every=400",
            "eval.episodes=3", *COMMON]  # fmt: skip
PIXELS = ["task=cartpole-balance@pixels+render=fast+repeat=8+size=16+stack=2", "train.env_steps=2400",
          "eval.every=2400", "eval.episodes=1", *COMMON]  # fmt: skip
IMAGES = ["task=cartpole-balance@pixels+render=fast+repeat=8+size=31+stack=2", "train.env_steps=2000",
          "eval.every=2000", "eval.episodes=1", *COMMON]  # fmt: skip
CASES = {  # configuration with a short warm-up, and after how many decisions and updates to stop, in three sessions
    "td7": ([*BALANCE, "agent.warmup_decisions=250", "agent.target_every=35", "agent.checkpoint_late=150",
             "agent.checkpoint_episodes=2"], (50, 600, 250)),
    "tcrl": ([*BALANCE, "agent.warmup_episodes=1", "agent.utd=0.1"], (50, 600, 162)),
    "dcwm": ([*BALANCE, "agent.warmup_episodes=1", "agent.utd=0.1", "agent.plan_iterations=1"], (50, 512, 100)),
    "mrq": ([*BALANCE, "agent.warmup_decisions=350", "agent.target_every=20"], (50, 550, 150)),
    "drq": ([*BALANCE, "agent.warmup_decisions=350", "agent.target_every=20"], (50, 550, 150)),
    "drqv2": ([*PIXELS, "agent.warmup_decisions=100"], (60, 330, 100)),
    "taco": ([*PIXELS, "agent.warmup_decisions=100"], (60, 330, 100)),
    "sac_ae": ([*PIXELS, "agent.warmup_decisions=100"], (60, 330, 100)),
    "mrq images": ([*IMAGES, "agent.warmup_decisions=180", "agent.target_every=20"], (60, 250, 60)),
    "iqrl images": ([*IMAGES, "agent.warmup_episodes=0", "agent.utd=0.3"], (60, 230, 60)),
    "mrq discrete": ([*CARTPOLE, "agent.warmup_decisions=200", "agent.target_every=40"], (5, 200, 250)),
}  # fmt: skip
CLOCKLESS = ("evaluations.csv", "training.csv", "latents.csv")


def begin(
    case: str, folder: Path, stop: Callable[[Trainer], bool], seeds: str, frames: execution.Place = "device"
) -> Trainer:
    """A trainer of some seeds, which stops when `stop` says so."""
    words = [f"agent={case.split()[0]}", f"seeds={seeds}", *CASES[case][0]]
    runs, settings, _ = resolve([("test", parse_words(words))])
    directories = [RunDirectory.create(run, folder) for run in runs]
    for directory in directories:
        directory.claim()
    plan = dataclasses.replace(execution.decide(settings, runs[0]), frames=frames)
    trainer = Trainer(runs, directories, plan, stop=lambda: stop(trainer))
    return trainer


def train(case: str, folder: Path, calls: int = 10**9, frames: execution.Place = "device") -> Trainer:
    """Train a run until the trainer has asked `calls` times whether to stop, or to the end."""
    left = iter(range(calls))
    trainer = begin(case, folder, lambda _: next(left, None) is None, "0", frames)
    assert trainer.run() == ("interrupted" if calls < 10**9 else "done")
    return trainer


def test_whoever_watches_is_told_how_far_things_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iqrl.training.reporting.WATCHED_SECONDS", 0.0)
    monkeypatch.setattr("iqrl.training.reporting.REPORT_SECONDS", 0.0)
    trainer = begin("mrq discrete", tmp_path, lambda t: t.pack.runs[0].progress.decisions == 90, seeds="0..1")
    told: list[str] = []
    trainer.reporter.watched = told.append
    assert trainer.run() == "interrupted"
    line = r"mrq gym:CartPole-v1 s0 and 1 more  step +180 of 800  [\d,]+ steps/s  warm-up"
    assert re.fullmatch(line, told[-1]), told[-1]


def skip_without_renderer() -> None:
    try:
        Environment("cartpole-balance@pixels+render=fast+size=16")
    except InputError:
        pytest.skip("no renderer on this machine")


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case.endswith("images") else case for case in CASES]
)
def test_stopped_runs_go_on_bitwise(case: str, tmp_path: Path) -> None:
    """Stopped within the first evaluation, within an episode, and among updates or decisions after the first.

    What is stopped keeps its pictures apart from the rows, as beside a GPU.
    """
    if "@pixels" in CASES[case][0][0]:
        skip_without_renderer()
    whole = train(case, tmp_path / "whole")
    evaluating, *calls = CASES[case][1]
    first = train(case, tmp_path / "parts", evaluating, "memory").pack.runs[0]
    assert first.progress.decisions == 0 and not rows(first.directory.path / "evaluations.csv")
    stopped = [train(case, tmp_path / "parts", n, "memory").pack.runs[0].progress for n in calls]
    assert any(p.episode_decisions for p in stopped) and 0 < stopped[1].updates < whole.pack.runs[0].progress.updates
    if case in ("td7", "tcrl", "dcwm"):
        assert any(p.pending for p in stopped)
    parts = train(case, tmp_path / "parts", frames="memory")
    assert parts.pack.replay.apart == ("@pixels" in CASES[case][0][0]) and not whole.pack.replay.apart
    for k, v in whole.pack.engine.state.items():
        assert torch.equal(parts.pack.engine.state[k], v), k
    ours, theirs = (trainer.pack.runs[0].directory.path for trainer in (parts, whole))
    for file in CLOCKLESS:
        assert (ours / file).read_bytes() == (theirs / file).read_bytes()
    evaluations = rows(theirs / "evaluations.csv")
    assert len(evaluations) == (9 if case == "mrq discrete" else 2)
    assert (ours / "DONE").is_file()
    looked = rows(theirs / "latents.csv")[-1]
    assert looked["rank_0.01"] and bool(looked["active_codebook_mean"]) == (case in ("dcwm", "iqrl images"))
    if case == "mrq discrete":
        assert float(parts.pack.engine.state["terminations_seen"]) == 1.0
        assert max(int(row["length"]) for row in evaluations) < 500  # they do end


def test_an_episode_that_ends_earlier_when_played_again_fails_its_run_alone(tmp_path: Path) -> None:
    """As on another processor: what seed 0 is said to have done lets the pole fall sooner."""
    pytest.importorskip("gymnasium")
    first = begin("mrq discrete", tmp_path, lambda t: t.pack.runs[0].progress.episode_decisions >= 12, "0..1")
    assert first.run() == "interrupted"
    within, directory = first.pack.runs[0].progress.episode_decisions, first.pack.runs[0].directory.path
    (segment,) = (directory / "replay").iterdir()
    log = np.fromfile(segment, "<f4").reshape(-1, 4 + 2 + 2)
    log[-within:, 4:6] = [-1.0, 1.0]  # pushes to the right
    log.tofile(segment)
    second = begin("mrq discrete", tmp_path, lambda t: False, "0..1")
    assert second.run() == "done"
    reason = reader.failure(directory)
    assert reason is not None and f"of {within} decisions" in reason and "played again, ended after" in reason
    assert second.pack.runs[1].directory.done() and not second.pack.runs[0].directory.done()


def test_a_pack_is_diagnosed_side_by_side_as_one_by_one(tmp_path: Path) -> None:
    trainer = begin("dcwm", tmp_path, lambda t: t.pack.runs[0].progress.decisions >= 300, "0..1")
    trainer.run()
    alone = [trainer.evaluator.diagnose(run) for run in trainer.pack.runs]
    together = [looked() for looked in trainer.evaluator.diagnose_all(trainer.pack.runs)]
    assert torch.get_num_threads() == trainer.pack.plan.threads
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys() and one["active_codebook_mean"] is not None
        assert one == pytest.approx(other, rel=1e-6)


def test_a_strip_of_what_the_decoder_gives_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skip_without_renderer()
    trainer = train("sac_ae", tmp_path, 250)
    agent, (run,) = trainer.pack.agent, trainer.pack.runs
    strip, words = tmp_path / "strip.png", ["evaluate", str(run.directory.path), "--episodes", "1"]
    assert (
        command_line.main([*words, "train.device=cpu", "train.precision=float32", "--reconstruction", str(strip)]) == 0
    )
    picture = (255 * imread(strip)[..., :3]).round()
    assert picture.shape == (32, 8 * 16, 3)
    seen, back = picture[:16, :16].transpose(2, 0, 1), picture[16:, :16].transpose(2, 0, 1)
    environment = Environment(trainer.pack.spec.name, trainer.pack.spec.action_repeat)
    first = environment.reset((0, CHECKPOINT_EVALUATION, run.progress.decisions, 0))  # its two pictures are the same
    assert (seen == first[3:]).all() and (seen == first[:3]).all() and seen.std() > 10
    state = {k: v[0] for k, v in trainer.pack.engine.state.items()}
    z = agent.latent(state, torch.from_numpy(first)[None])
    net = agent.decoder(state["decoder"])
    expected = 256.0 * (net.convolutions(net.linear(z))[0, 3:] + 0.5)
    assert np.abs(back - expected.clamp(0, 255).numpy()).max() <= 0.51
    assert len({picture[:16, 16 * i : 16 * i + 16].tobytes() for i in range(8)}) == 8
    other = train("tcrl", tmp_path, 60).pack.runs[0].directory.path
    capsys.readouterr()
    assert command_line.main(["evaluate", str(other), "--reconstruction", str(strip)]) == 2
    assert f"--reconstruction {strip}: {other.name} has no decoder of images" in capsys.readouterr().err
    assert command_line.main([*words, "--reconstruction", "strip.pdf"]) == 2
    assert "expected a name ending in .png" in capsys.readouterr().err
