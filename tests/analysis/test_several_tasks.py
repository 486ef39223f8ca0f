"""Runs of one agent on several tasks, shown beside runs of one task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_runs import write_manifest, write_run

from analysis import frames
from analysis.runs import load
from analysis.statistics import mean
from benchmarks import keep

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
    assert frames.load(runs).training["key"].nunique() == 8  # losses are those of the whole run
    manifest.unlink()
    assert len(frames.study(frames.load(runs)).arms) == 2  # told apart by what their agent learns
    assert keep.main([*map(str, sorted(runs.glob("iqrl-*"))), f"out={kept}"]) == 0
    here, there = load([runs], cache=False), load([kept], cache=False)
    assert sorted(here.runs["run"]) == sorted(there.runs["run"])
    assert sorted(here.evaluations["mean_return"]) == sorted(there.evaluations["mean_return"])
