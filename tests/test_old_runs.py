"""Run folders that older versions of the project left, as they were committed: they load, go on and are drawn.

Their checkpoints were not kept: `tests/iqrl/test_resume.py` resumes a run of now with the records of such a folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from analysis import __main__ as analysis_command
from analysis.runs import load
from iqrl import __main__ as command
from iqrl import config
from iqrl.runs import lease, reader
from iqrl.runs.directory import RunDirectory

# Status, reason, env step, hours, sum of the mean returns, sum of the ranks at 0.01: as of the version of 2026-11-24.
FOLDERS = {
    "iqrl-cartpole-swingup-s0-0019cc1a": ("done", "", 50_000, 0.082514, 2567.186, 996),
    "iqrl-dog-stand-s0-f26ab139": ("unfinished", "running, or killed", 190_000, None, 6250.488, 14_137),
    "mrq-cartpole-swingup-s1-0de2070b": ("done", "", 50_000, 0.153873, 2558.951, 427),
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / "data" / "runs", tmp_path / "runs"))


def test_they_load(runs: Path) -> None:
    tables = load([runs])
    assert sorted(tables.runs["run"]) == sorted(FOLDERS)
    for row in tables.runs.itertuples():
        status, reason, env_step, hours, returns, ranks = FOLDERS[str(row.run)]
        assert (row.status, row.reason, row.env_step) == (status, reason, env_step)
        assert row.hours == pytest.approx(hours or float("nan"), rel=1e-4, nan_ok=True)
        evaluations, latents = (t[t["run"] == row.run] for t in (tables.evaluations, tables.latents))
        assert evaluations["mean_return"].sum() == pytest.approx(returns) and latents["rank_0.01"].sum() == ranks
        assert config.load_run(runs / str(row.run)).identity == row.identity


def test_they_are_drawn(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    assert analysis_command.main(["figures", f"runs={runs}", f"out={out}", "only=tasks", "replicates=50"]) == 0
    assert (out / "runs" / "tasks.pdf").stat().st_size > 1000


def test_complete_ones_are_complete_and_others_are_set_aside(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (status, *_) in FOLDERS.items():
        path, directory = runs / name, RunDirectory(runs / name)
        assert directory.done() == (status == "done")
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        if status == "done":
            assert command.main(["resume", str(path), "train.device=cpu"]) == 0
            assert f"{path}: complete" in capsys.readouterr().out
            assert {file.name: file.read_bytes() for file in path.iterdir()} == before
            continue
        assert directory.trained() and not directory.checkpoints()
        directory.claim()
        directory.set_aside()
        directory.open({}, [], 3)
        directory.release()
        kept = path / "lost-00000001"
        assert all((kept / table).read_bytes() == before[table] for table in ("evaluations.csv", "latents.csv"))
        assert reader.look(path, now=0.0).state == "stopped" and lease.newest_token(path) == 1
