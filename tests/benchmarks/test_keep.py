"""Finished runs kept as tables: what is kept, what is left behind, and that the analysis says the same of both."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.errors import InputError as AnalysisError
from analysis.exports import rows
from analysis.runs import load
from benchmarks import keep
from iqrl.runs import group
from iqrl.runs.tables import TABLES

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from synthetic_runs import write_run, write_study

COMMAND = "python -m iqrl train config=/data/me/runs/sweeps/x/packs/a.yaml seeds=0 runs=/data/me/runs agent.horizon=3"
KEPT = ["evaluations.csv", "latents.csv", "runs.csv"]


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


def frames(*folders, without=()):
    """What the analysis reads, without where it was."""
    tables = load(list(folders), cache=False)
    kept = tables.runs.drop(columns=["key", "folder", "signature", *without])
    series = [table.drop(columns="key").astype({"run": str}) for table in (tables.evaluations, tables.latents)]
    return [frame.sort_values("run", kind="stable").reset_index(drop=True) for frame in (kept, *series)]


def assert_same(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_sweep_is_kept_with_its_runs(runs, tmp_path, capsys):
    out = tmp_path / "kept"
    assert keep.main([str(runs / "sweeps" / "quickstart.json"), f"out={out}"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [*KEPT, "sweeps"]
    assert (out / "sweeps" / "quickstart.json").read_text() == (runs / "sweeps" / "quickstart.json").read_text()
    kept = group.read_group(out)
    assert len(kept) == 2 and all(run.name in capsys.readouterr().out for run in kept[:1])
    for run in kept:
        assert run.ending() == ("done", "")
        (session,) = run.provenance()["sessions"]
        assert session["command"] == "python -m iqrl train config=a.yaml seeds=0 runs=runs agent.horizon=3"
        assert "host" not in session and "pid" not in session and session["threads"] == 4
    assert_same(*(frames(folder, without=("host", "job_id", "command")) for folder in (out, runs)))
    exported = [rows.rows(run) for run in rows.runs_of([out])]
    originals = [rows.rows(run) for run in sorted(rows.runs_of([runs]), key=lambda run: run.name)]
    for mine, theirs in zip(exported, originals, strict=True):
        assert mine == {**theirs, "training.csv": []}


def test_runs_of_any_kind_are_kept_and_read_beside_run_folders(tmp_path):
    """Whatever the analysis says of a run, it says of the kept one: its status, reason and remarks."""
    made = [
        write_run(tmp_path / "runs", seed=0),
        write_run(tmp_path / "runs", seed=1, end="failed", stop_at=40_000),
        write_run(tmp_path / "runs", seed=2, end="interrupted", stop_at=60_000),
        write_run(tmp_path / "runs", "td3", seed=3, returns=[10.0] * 5 + [1500.0]),
        write_run(tmp_path / "runs", seed=4, end="running", stop_at=0),
        write_run(tmp_path / "runs", seed=5),
    ]
    lines = (made[2] / "evaluations.csv").read_text().splitlines(keepends=True)
    (made[2] / "evaluations.csv").write_text("".join(lines[:-3]))  # an evaluation that is not whole
    (made[4] / "timing.csv").unlink()
    with open(made[5] / "training.csv", "a") as file:
        file.write("1,2,3,4,5,6\n")  # more than DONE says
    expected = frames(tmp_path / "runs", without=("host", "job_id"))
    assert set(expected[0]["status"]) == {"done", "failed", "unfinished", "torn"}
    assert keep.main([*map(str, made), f"out={tmp_path / 'kept'}", "incomplete=keep"]) == 0
    assert_same(frames(tmp_path / "kept", without=("host", "job_id")), expected)
    for run in made[::2]:  # half here, half there; and in one folder
        shutil.move(run, tmp_path / "kept" / run.name)
    with pytest.raises(AnalysisError, match="is a folder and a row"):
        load([tmp_path / "kept"], cache=False)
    for run in made[::2]:
        for name in KEPT:
            path = tmp_path / "kept" / name
            text = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in text if not line.startswith(run.name)))
    assert_same(frames(tmp_path / "kept", without=("host", "job_id")), expected)
    shutil.rmtree(tmp_path / "kept" / made[0].name)
    (tmp_path / "other").mkdir()
    write_run(tmp_path / "other", seed=0)
    assert_same(frames(tmp_path / "kept", tmp_path / "other", without=("host", "job_id")), expected)


def test_a_run_is_added_or_replaced_and_others_stay(runs, tmp_path):
    out = tmp_path / "kept"
    assert keep.main([str(runs / "sweeps" / "quickstart.json"), f"out={out}"]) == 0
    before = {name: (out / name).read_text() for name in KEPT}
    new = write_run(runs, seed=7, stop_at=40_000, end="interrupted")
    assert keep.main([str(new), f"out={out}", "incomplete=keep"]) == 0
    after = {name: (out / name).read_text() for name in KEPT}
    for name in KEPT:
        assert after[name].startswith(before[name]) and after[name].count(new.name) >= 1
    shutil.rmtree(new)
    write_run(runs, seed=7)  # it went on to its end
    assert keep.main([str(new), f"out={out}"]) == 0
    for name in KEPT:
        assert (out / name).read_text().startswith(before[name])
    assert [run.ending()[0] for run in group.read_group(out)] == ["done"] * 3
    assert load([out]).runs.set_index("run").loc[new.name].env_step == 100_000
    with open(new / "latents.csv", "r+") as file:  # of an agent with a diagnostic of its own
        lines = file.read().splitlines()
        file.seek(0)
        file.writelines(f"{line},{'own' if i == 0 else i}\n" for i, line in enumerate(lines))
    assert keep.main([str(new), f"out={out}", "incomplete=keep"]) == 0
    header, first, *_, last = (out / "latents.csv").read_text().splitlines()
    assert header.endswith(",own") and first.endswith(",") and last.endswith(",5")


def test_what_is_not_complete_is_not_kept(runs, tmp_path, capsys):
    unfinished = write_run(runs, seed=7, end="running")
    torn = runs / "sweeps" / "torn.json"
    torn.write_text('{"runs": [{')
    bare = write_run(runs, seed=8)
    (bare / "provenance.json").unlink()
    for words, expected in [
        ([str(unfinished), "out=kept"], "not a complete run"),
        ([str(bare), "out=kept"], "cannot be kept: provenance.json is missing"),
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
    (tmp_path / "taken" / "evaluations.csv").mkdir(parents=True)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "latents.csv").write_text("run,env_step\nx,5")
    for given, out, expected in [
        (run, runs, "is a folder there"),
        (manifest, runs, "already lies there"),
        (run, f"{runs}/../{runs.name}", "is a folder there"),
        (run, tmp_path / "file", f"out={tmp_path / 'file'}: "),
        (manifest, "/proc/kept", "out=/proc/kept: No such file"),
        (run, tmp_path / "taken", f"out={tmp_path / 'taken'}: Is a directory"),
        (run, tmp_path / "torn", "latents.csv: its last line is torn"),
        (run, "", "one out=FOLDER"),
    ]:
        assert keep.main([str(given), f"out={out}"]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.startswith("error: ") and error.count("\n") == 1
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("runs.csv", lambda text: text.replace("provenance", "other", 1), "no provenance of"),
        ("runs.csv", lambda text: text + text.splitlines(keepends=True)[-1], "is there twice"),
        ("evaluations.csv", lambda text: text[:-1], "torn"),
        ("evaluations.csv", lambda text: text + "x,1\n", "fields"),
        ("latents.csv", lambda text: text.replace("run", "name", 1), "no column run"),
    ],
)
def test_damaged_tables_are_named(runs, tmp_path, name, change, expected):
    assert keep.main([str(runs / "sweeps" / "quickstart.json"), f"out={tmp_path / 'kept'}"]) == 0
    path = tmp_path / "kept" / name
    path.write_text(change(path.read_text()))
    for read in (load, lambda folders: list(rows.runs_of(folders))):
        with pytest.raises(AnalysisError, match=expected) as error:
            read([tmp_path / "kept"])
        assert str(error.value).count("\n") == 0
