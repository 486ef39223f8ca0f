"""Run folders in every state, and what each part of the project makes of them: one verdict, the same for all."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis import runs as analysis
from analysis.exports import rows as exports
from benchmarks import keep
from iqrl import config
from iqrl.errors import InputError
from iqrl.processes import started
from iqrl.runs import lease, reader
from iqrl.runs.directory import RunDirectory
from slurm import queue, states

SLURM = {  # of a run that no sweep has handed out
    "done": "done", "training": "running", "failed": "failed", "torn": "lost", "stopped": "stopped", "begun": "lost",
    "new": "planned",
}  # fmt: skip
ENDED = ("done", "failed", "torn")  # for the analysis every other run is unfinished


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A complete run, as the trainer leaves it: two evaluations of two episodes."""
    words = ["agent=td3", "task=walker-walk", "seeds=0", "eval.episodes=2", "eval.every=500", "train.env_steps=1000"]
    ((made,), _, _) = config.resolve([("words", config.parse_words(words))])
    directory = RunDirectory.create(made, tmp_path / "runs")
    directory.claim()
    directory.open({}, [], 3)
    directory.begin_session({"precision": "float32", "command": "python -m iqrl train"})
    for step in (0, 1000):
        for episode in range(2):
            row = {"env_step": step, "episode": episode, "episode_return": step / 3, "length": 1000}
            directory.append("evaluations.csv", row)
        directory.append("timing.csv", {"env_step": step, "wall_seconds": 1.5, "updates": step // 2})
    directory.append("training.csv", {"env_step": 1000, "episode": 0, "updates": 1, "episode_return": 1.0})
    directory.finish(1000)
    directory.end_session("done")
    directory.release()
    return directory.path


@pytest.fixture
def process() -> Iterator[int]:
    """The number of another process of this host that lives."""
    with subprocess.Popen(["sleep", "600"]) as sleeping:
        yield sleeping.pid
        sleeping.kill()


def write_lease(path: Path, **record: object) -> None:
    text = json.dumps({"host": lease.HERE, "pid": os.getpid(), "started": 1, "job_id": None, **record})
    (path / "lease" / "00000007").write_text(text)


def done(path: Path, text: str) -> None:
    (path / "DONE").write_text(text)


def not_done(path: Path) -> None:
    (path / "DONE").unlink()


def failed(path: Path, age: float = 0.0, text: str = '{"env_step": 1000, "reason": "loss is NaN"}') -> None:
    """Without DONE, and failed so many seconds after (or, below 0, before) the lease was claimed."""
    not_done(path)
    (path / "FAILED").write_text(text)
    when = lease.claimed(path, lease.newest_token(path)) or 0.0
    os.utime(path / "FAILED", (when + age, when + age))


def add(path: Path, name: str, text: str) -> None:
    with open(path / name, "a") as file:
        file.write(text)


def cut(path: Path, name: str, count: int) -> None:
    os.truncate(path / name, (path / name).stat().st_size - count)


def no_lease(path: Path) -> None:
    not_done(path)
    for file in (path / "lease").iterdir():
        file.unlink()


def disagree(path: Path) -> None:
    """A manifest that says something else of the run than its configuration."""
    row = {"run": path.name, "arm": "a", "agent": "iqrl", "task": "dog-run", "seed": 9, "env_steps": 77}
    manifest = {"name": "s", "title": "", "scale": "full", "note": "", "arms": [{"name": "a", "agent": "iqrl"}]}
    (path.parent / "sweeps").mkdir()
    (path.parent / "sweeps" / "s.json").write_text(json.dumps({**manifest, "runs": [row]}))


CASES: dict[str, tuple[str, Callable[[Path, int], object]]] = {
    "done": ("done", lambda p, pid: None),
    "a table is longer than DONE says": ("torn", lambda p, pid: add(p, "training.csv", "2000,1,2,1.0\n")),
    "a table is shorter": ("torn", lambda p, pid: cut(p, "training.csv", 1)),
    "a table is gone": ("torn", lambda p, pid: (p / "latents.csv").unlink()),
    "DONE without files": ("torn", lambda p, pid: done(p, '{"env_step": 1000}')),
    "DONE with no file": ("torn", lambda p, pid: done(p, '{"env_step": 1000, "files": {}}')),
    "DONE is torn": ("torn", lambda p, pid: cut(p, "DONE", 3)),
    "DONE is empty": ("torn", lambda p, pid: done(p, "")),
    "DONE is torn, begun again": ("training", lambda p, pid: (done(p, ""), write_lease(p, pid=pid, started=None))),
    "failed": ("failed", lambda p, pid: failed(p)),
    "FAILED is torn": ("failed", lambda p, pid: failed(p, text="{")),
    "failed, its process trains others": (
        "failed", lambda p, pid: (write_lease(p, pid=pid, started=started(pid)), failed(p, 5.0)),
    ),
    "failed, begun again": ("training", lambda p, pid: (write_lease(p, pid=pid, started=None), failed(p, -5.0))),
    "failed, begun again, killed": ("failed", lambda p, pid: (write_lease(p), failed(p, -5.0))),
    "torn last line": ("stopped", lambda p, pid: (not_done(p), cut(p, "evaluations.csv", 1))),
    "released": ("stopped", lambda p, pid: not_done(p)),
    "alive": ("training", lambda p, pid: (not_done(p), write_lease(p, pid=pid, started=started(pid)))),
    "alive, without /proc": ("training", lambda p, pid: (not_done(p), write_lease(p, pid=pid, started=None))),
    "released, though its process lives": (
        "stopped", lambda p, pid: (not_done(p), write_lease(p, pid=pid, started=None, released=True)),
    ),
    "another process of that number": ("begun", lambda p, pid: (not_done(p), write_lease(p, pid=pid, started=1))),
    "killed, without /proc": ("begun", lambda p, pid: (not_done(p), write_lease(p, pid=2**22 + 1, started=None))),
    "another host": ("begun", lambda p, pid: (not_done(p), write_lease(p, host="elsewhere", pid=pid))),
    "a lease that is torn": ("begun", lambda p, pid: (not_done(p), (p / "lease" / "00000007").write_text("{"))),
    "no lease": ("new", lambda p, pid: no_lease(p)),
    "a manifest says otherwise": ("done", lambda p, pid: disagree(p)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_all_say_the_same(case: str, run: Path, process: int, capsys: pytest.CaptureFixture[str]) -> None:
    verdict, change = CASES[case]
    change(run, process)
    runs = run.parent
    assert reader.look(run, now=0.0).state == verdict
    # The trainer, and a run that starts from this one.
    assert RunDirectory(run).done() == (verdict == "done")
    assert (reader.look(run, 0.0).reason != "") == (verdict in ("failed", "torn"))
    # Slurm's tables.
    (state,) = states.look(runs, [run.name], [], queue.Queue())
    assert state.state == SLURM[verdict] and bool(state.reason) == (verdict in ("failed", "torn"))
    # The analysis, from the files and from its cache.
    for _ in range(2):
        tables = analysis.load([runs])
        (row,) = tables.runs.itertuples()
        assert row.status == (verdict if verdict in ENDED else "unfinished")
        assert (row.agent, row.task, row.seed, row.budget) == ("td3", "walker-walk", 0, 1000)  # as it is configured
    # Exports: the rows that are whole, as the analysis has them, whatever became of the run.
    evaluations = exports.rows(next(exports.runs_of([runs])))["evaluations.csv"]
    assert [step for step, _ in evaluations] == tables.evaluations["env_step"].tolist()
    assert len(evaluations) == (1 if case == "torn last line" else 2)
    # What is kept is complete.
    assert (keep.main([str(run), f"out={runs.parent / 'kept'}"]) == 0) == (verdict == "done")
    # Who claims it, last: that changes it.
    if verdict == "training" or "its process trains others" in case:
        with pytest.raises(InputError, match="is training this run"):
            RunDirectory(run).claim()
    else:
        RunDirectory(run).claim()
        assert lease.newest_writer(run)[1] == lease.myself()


def test_only_a_sweeps_job_takes_a_run_from_a_living_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interactive job is no sign that the queue has ended the other."""
    other = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / "lease").mkdir()
        write_lease(tmp_path, pid=other.pid, started=started(other.pid))
        monkeypatch.setenv("SLURM_JOB_ID", "42")
        with pytest.raises(InputError, match="is training this run"):
            RunDirectory(tmp_path).claim()
        monkeypatch.setenv("SWEEP_SCRATCH", "")  # as the script of every job of a sweep does
        RunDirectory(tmp_path).claim()
    finally:
        other.kill()
        other.wait()


def test_a_folder_that_is_not_there_is_new(tmp_path: Path) -> None:
    assert reader.look(tmp_path / "none", now=0.0) == reader.RunState("new")
    assert not RunDirectory(tmp_path / "none").done()


def test_what_cannot_be_read_is_not_done_and_not_new(tmp_path: Path) -> None:
    (tmp_path / "DONE").mkdir()
    found = reader.look(tmp_path, now=0.0)
    assert found.state == "torn" and str(tmp_path / "DONE") in found.reason
    with pytest.raises(OSError):
        RunDirectory(tmp_path).done()


def test_a_failure_of_before_the_run_was_handed_out_does_not_count(run: Path) -> None:
    failed(run)
    when = (run / "FAILED").stat().st_mtime
    assert reader.look(run, 0.0, since=when).state == "failed"
    assert reader.look(run, 0.0, since=when + 1).state == "stopped"
