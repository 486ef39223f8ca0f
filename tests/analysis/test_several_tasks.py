"""Runs of one agent on several tasks, shown beside runs of one task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_manifest, write_run

from analysis import frames
from analysis.exports import rows
from analysis.figures import gpu_hours, iqm_return, latent_rank, training_curves
from analysis.figures.drawing import Context
from analysis.runs import load
from analysis.statistics import Together, interval, mean
from analysis.style import STYLES
from benchmarks import keep
from iqrl.runs.reader import Run

BOTH = "walker-walk,walker-run"


def write_both(runs: Path, seed: int) -> Path:
    """One agent's run, which ends with about 150 on the first task and 750 on the second."""
    run = write_run(runs, task=BOTH, seed=seed, env_steps=200_000, every=40_000, episodes=2)
    rows = ["env_step,episode,episode_return,length,task"]
    for step in range(0, 200_001, 40_000):
        for episode, (task, last) in enumerate(2 * [("walker-walk", 150), ("walker-run", 750)]):
            rows.append(f"{step},{episode},{(last + 2 * seed - 1) * step / 200_000!r},1000,{task}")
    (run / "evaluations.csv").write_text("\n".join(rows) + "\n")
    done = json.loads((run / "DONE").read_text())
    done["files"]["evaluations.csv"] = (run / "evaluations.csv").stat().st_size
    (run / "DONE").write_text(json.dumps(done))
    return run


def test_each_task_has_a_curve_over_its_own_env_steps(tmp_path: Path) -> None:
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    members = []
    for seed in range(2):
        members.append((write_both(runs, seed).name, "one", BOTH, seed, 200_000))
        for task in BOTH.split(","):
            run = write_run(runs, task=task, seed=seed, every=20_000, episodes=2)
            members.append((run.name, "two", task, seed, 100_000))
    arms = [{"name": name, "label": name, "agent": "iqrl"} for name in ("one", "two")]
    manifest = write_manifest(runs, "multitask", arms, members)
    for _ in range(2):  # the second time by the cache
        own = frames.study(frames.load(runs), "multitask")
        assert not own.problems and own.tasks == sorted(BOTH.split(",")) and own.mark == 100_000
        ends = frames.finals(own, "mean_return", "score", "rank_0.01")
        one = ends[ends["arm"] == "one"]
        returns = one.groupby("task")["mean_return"].mean().to_dict()
        assert returns == {"walker-walk": 150.0, "walker-run": 750.0} and one["rank_0.01"].notna().all()
        means = frames.aggregate(ends, "score", mean).set_index("arm")
        assert means.loc["one", "point"] == pytest.approx(0.45) and (means["tasks"] == 2).all()
    training = frames.load(runs).training  # losses are those of the whole run, over one task's env steps
    assert training["key"].nunique() == 8 and training["env_step"].max() == 100_000
    context = Context(own, STYLES["neurips"], 100)
    ranks = latent_rank.data(context).groupby("arm").last()
    assert ranks["runs"].to_dict() == {"one": 2, "two": 4}  # an agent has one latent, however many its tasks
    losses = training_curves.data(context, lambda name: name == "critic_loss").groupby("arm").last()
    assert losses["runs"].to_dict() == {"one": 2, "two": 4} and losses.loc["one", "env_step"] == 100_000
    hours = gpu_hours.data(context).groupby("arm")["env_step"].max()
    assert hours["one"] == pytest.approx(hours["two"], rel=0.02)  # made up with about equal seconds an env step
    assert "resampled with all of them" in iqm_return.draw(context).caption.text
    scores = own.scores("one", np.array([100_000]), own.tasks)
    assert isinstance(scores, Together) and not isinstance(own.scores("two", np.array([100_000])), Together)
    width = frames.aggregate(ends, "score", mean, "t").set_index("arm").loc["one"]
    exact = interval(scores, mean, method="t")
    assert (width["low"], width["high"]) == pytest.approx((exact.low[0], exact.high[0]))
    manifest.unlink()
    assert len(frames.study(frames.load(runs)).arms) == 2  # told apart by what their agent learns
    assert keep.main([*map(str, sorted(runs.glob("iqrl-*"))), f"out={kept}"]) == 0
    here, there = load([runs], cache=False), load([kept], cache=False)
    assert sorted(here.runs["run"]) == sorted(there.runs["run"])
    assert sorted(here.evaluations["mean_return"]) == sorted(there.evaluations["mean_return"])


def test_exports_name_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_both(tmp_path, 0)
    lines = (run / "training.csv").read_text().splitlines()
    named = [f"{line},{'task' if n == 0 else BOTH.split(',')[n % 2]}" for n, line in enumerate(lines)]
    (run / "training.csv").write_text("\n".join(named) + "\n")
    found = rows.rows(Run(run))
    assert not capsys.readouterr().err
    step, last = found["evaluations.csv"][-1]
    assert step == 200_000
    assert last["evaluation/walker-walk/mean_return"] == 149.0 and last["evaluation/walker-run/max_return"] == 749.0
    assert {"training/walker-run/episode_return", "training/critic_loss"} <= found["training.csv"][-2][1].keys() | (
        found["training.csv"][-1][1].keys()
    )
