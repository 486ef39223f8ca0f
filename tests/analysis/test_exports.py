"""Exports: every column, and only what is new."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from synthetic_runs import write_run

from analysis.errors import InputError
from analysis.exports import rows, tensorboard, wandb
from iqrl.runs.reader import Run


def test_every_column_of_every_file(runs: Path) -> None:
    found = rows.rows(Run(write_run(runs, returns=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])))
    assert found["evaluations.csv"][1] == (
        20_000,
        {"evaluation/mean_return": 2.0, "evaluation/min_return": 2.0, "evaluation/max_return": 2.0,
         "evaluation/mean_length": 1000.0},
    )  # fmt: skip
    assert {"training/critic_loss", "training/updates"} <= found["training.csv"][1][1].keys()
    assert "training/critic_loss" not in found["training.csv"][0][1]  # blank before the first update
    assert "latents/rank_0.01" in found["latents.csv"][0][1] and "timing/wall_seconds" in found["timing.csv"][0][1]


def test_only_what_is_new(runs: Path, tmp_path: Path) -> None:
    run = write_run(runs, stop_at=40_000, end="running")
    first = rows.rows(Run(run))
    rows.remember(first, tmp_path)
    assert sum(map(len, rows.fresh(first, tmp_path).values())) == 0
    with open(run / "training.csv", "a") as file:
        file.write("41000,3,20500,5.0,0.1,0.2\n42000,4,210")
    new = rows.fresh(rows.rows(Run(run)), tmp_path)
    assert [step for step, _ in new["training.csv"]] == [41_000] and new["evaluations.csv"] == []


def test_an_evaluation_that_is_still_written_waits(runs: Path) -> None:
    run = write_run(runs, stop_at=40_000, end="running")
    with open(run / "evaluations.csv", "a") as file:
        file.write("60000,0,12.5,1000\n")
    assert [step for step, _ in rows.rows(Run(run))["evaluations.csv"]] == [0, 20_000, 40_000]


@pytest.mark.parametrize(("module", "package"), [(tensorboard, "tensorboard"), (wandb, "wandb")])
def test_a_package_that_is_not_there_is_named(runs: Path, tmp_path: Path, monkeypatch, module, package: str) -> None:
    write_run(runs)
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(package + ".")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=f"{package}: this export needs the package: pip install {package}"):
        module.export([runs], tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard (an extra) is not installed")
def test_tensorboard_reads_it_back(runs: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = write_run(runs, returns=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert tensorboard.export([runs], tmp_path)[run.name] == 24
    assert tensorboard.export([runs], tmp_path)[run.name] == 0
    events = EventAccumulator(str(tmp_path / run.name))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("evaluation/mean_return")][-1] == (100_000, 6.0)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb (an extra) is not installed")
def test_wandb_writes_offline_runs_once(runs: Path, tmp_path: Path) -> None:
    run = write_run(runs)
    assert wandb.export([runs], tmp_path)[run.name] == 24
    assert wandb.export([runs], tmp_path)[run.name] == 0
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
