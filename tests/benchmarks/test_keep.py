"""Copies of finished runs: what is kept, what is left behind, and that figures can be drawn from them."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import keep
from iqrl.runs.directory import TABLES, RunDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from synthetic_runs import write_run, write_study

COMMAND = "python -m iqrl train config=/data/me/runs/sweeps/x/packs/a.yaml seeds=0 runs=/data/me/runs agent.horizon=3"


@pytest.fixture
def runs(tmp_path):
    made = write_study(tmp_path / "runs", seeds=1, tasks=("walker-walk",))
    for run in made:
        for name in TABLES:
            (run / name).touch()
        (run / "checkpoint").mkdir(exist_ok=True)
        provenance = json.loads((run / "provenance.json").read_text())
        provenance["sessions"][0]["command"] = COMMAND
        (run / "provenance.json").write_text(json.dumps(provenance))
    return tmp_path / "runs"


def test_a_sweep_is_kept_with_its_runs(runs, tmp_path, capsys):
    out = tmp_path / "kept"
    assert keep.main([str(runs / "sweeps" / "quickstart.json"), f"out={out}"]) == 0
    copies = sorted(p.name for p in out.iterdir() if p.name != "sweeps")
    assert len(copies) == 2 and all(str(out / name) in capsys.readouterr().out for name in copies[:1])
    assert (out / "sweeps" / "quickstart.json").read_text() == (runs / "sweeps" / "quickstart.json").read_text()
    for name in copies:
        assert RunDirectory(out / name).done()
        assert {p.name for p in (out / name).iterdir()} == {"config.yaml", "DONE", "provenance.json", *TABLES}
        (session,) = json.loads((out / name / "provenance.json").read_text())["sessions"]
        assert session["command"] == "python -m iqrl train config=a.yaml seeds=0 runs=runs agent.horizon=3"
        assert "host" not in session and "pid" not in session and session["threads"] == 4


def test_what_is_not_complete_is_not_kept(runs, tmp_path, capsys):
    unfinished = write_run(runs, seed=7, end="running")
    torn = runs / "sweeps" / "torn.json"
    torn.write_text('{"runs": [{')
    for words, expected in [
        ([str(unfinished), "out=kept"], "not a complete run"),
        ([str(torn), "out=kept"], "not a sweep's manifest"),
        ([str(runs / "sweeps" / "none.json"), "out=kept"], "not a sweep's manifest"),
        (["out=kept"], "expected run directories"),
        ([str(unfinished)], "one out=FOLDER"),
    ]:
        assert keep.main(words) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1
    assert not Path("kept").exists()


def test_a_folder_that_cannot_be_kept_in_is_one_line(runs, tmp_path, capsys):
    manifest = runs / "sweeps" / "quickstart.json"
    run = next(path.parent for path in runs.glob("*/DONE"))
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / run.name / "DONE").mkdir(parents=True)
    for given, out, expected in [
        (run, runs, "already lies there"),
        (manifest, runs, "already lies there"),
        (run, f"{runs}/../{runs.name}", "already lies there"),
        (run, tmp_path / "file", f"out={tmp_path / 'file'}: Not a directory"),
        (manifest, "/proc/kept", "out=/proc/kept: No such file"),
        (run, tmp_path / "taken", f"out={tmp_path / 'taken'}: Is a directory"),
        (run, "", "one out=FOLDER"),
    ]:
        assert keep.main([str(given), f"out={out}"]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.startswith("error: ") and error.count("\n") == 1
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before
