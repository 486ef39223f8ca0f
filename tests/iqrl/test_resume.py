"""A run that is killed at any instant ends with the files of one that never was."""

from __future__ import annotations

import builtins
import errno
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from training import (
    IQRL,
    TD3_DECISION,
    assert_same_runs,
    finish,
    fork,
    forks,
    kill,
    run,
    run_directories,
    start,
    wait_for,
)

from iqrl import __main__ as command_line
from iqrl import processes
from iqrl.errors import DISK, INTERRUPTED
from iqrl.runs import checkpoints as saved
from iqrl.runs.directory import RunDirectory
from iqrl.training.execution import fast_bfloat16

AGENTS = {"iqrl": [*IQRL, "seeds=0,1"], "td3": TD3_DECISION}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of an agent's runs that nothing happened to; trained once."""

    @functools.cache
    def train(agent: str) -> Path:
        folder = tmp_path_factory.mktemp(f"undisturbed_{agent}")
        finish(["train", *AGENTS[agent], f"runs={folder / 'runs'}"], folder / "said")
        return folder / "runs"

    return train


def words(agent: str, runs: Path, *more: str) -> list[str]:
    given = {word.split("=")[0] for word in more}
    usual = [word for word in AGENTS[agent] if word.split("=")[0] not in given]
    return ["train", *usual, f"runs={runs}", *more]


def decisions(directory: Path) -> list[int]:
    """At which its checkpoints were made, in order."""
    return sorted(int(p.name.split("-")[0]) for p in (directory / "checkpoint").glob("*.pt"))


def env_step(directory: Path) -> int:
    """Of the newest checkpoint; -1 without one."""
    return max(decisions(directory), default=-1)


# --- kill -9


@pytest.mark.parametrize("agent", ["iqrl", pytest.param("td3", marks=pytest.mark.slow)])
def test_ten_kills_at_random_instants(agent: str, tmp_path: Path, undisturbed: Any) -> None:
    expected, runs, r = undisturbed(agent), tmp_path / "runs", random.Random(0)
    kills = 0
    for attempt in range(40):
        process = fork(words(agent, runs), tmp_path / f"said{attempt}")
        process.join(r.uniform(0.2, 1.5))
        if process.exitcode is not None:
            break
        kill(process)
        kills += 1
        if kills == 10:
            break
    assert kills >= 3  # a fast machine is done before the tenth
    finish(words(agent, runs), tmp_path / "last")
    assert_same_runs(runs, expected)


def die_at_operation(number: int) -> None:
    """From now on, SIGKILL oneself right before the file system operation of that number."""
    count = 0

    def counted(function: Any) -> Any:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("write", "rename", "replace", "unlink", "link", "fsync", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))


def test_kills_between_file_operations(tmp_path: Path, undisturbed: Any) -> None:
    """Instants that clocks hardly ever hit: within a checkpoint, a claim, the making of a directory, the end."""
    expected, runs, r = undisturbed("iqrl"), tmp_path / "runs", random.Random(1)
    for attempt, operation in enumerate([1, 2, 3, *(r.randrange(4, 60) for _ in range(9))]):
        process = fork(words("iqrl", runs), tmp_path / f"said{attempt}", functools.partial(die_at_operation, operation))
        process.join(300)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, (tmp_path / f"said{attempt}").read_text()
    finish(words("iqrl", runs), tmp_path / "last")
    for left in runs.glob(".new-*"):  # a directory that was never given its name; nothing reads it
        for file in left.iterdir():
            file.unlink()
        left.rmdir()
    assert_same_runs_but_temporary_files(runs, expected)


def assert_same_runs_but_temporary_files(runs: Path, expected: Path) -> None:
    for file in [p for p in runs.rglob(".*") if p.is_file()]:
        file.unlink()
    assert_same_runs(runs, expected)


@pytest.mark.slow
def test_ten_kills_of_the_real_command(tmp_path: Path, undisturbed: Any) -> None:
    expected, runs, r = undisturbed("iqrl"), tmp_path / "runs", random.Random(2)
    for _ in range(10):
        process = start(words("iqrl", runs))
        try:
            process.wait(r.uniform(3.0, 7.0))
            break
        except Exception:
            kill(process)
    finish(words("iqrl", runs), tmp_path / "last")
    assert_same_runs(runs, expected)


def test_killed_environment_workers_are_replaced(tmp_path: Path, undisturbed: Any) -> None:
    expected, runs = undisturbed("iqrl"), tmp_path / "runs"
    process = start(words("iqrl", runs, "train.workers=2"))
    killed = 0
    for mark in (0, 700):
        wait_for(lambda mark=mark: any(env_step(p) > mark for p in runs.glob("*")), process)  # type: ignore[misc]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children[:1]:
            os.kill(int(child), signal.SIGKILL)
            killed += 1
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert killed == 2 and errors.count("died") >= 1
    assert_same_runs(runs, expected)


# --- asked to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_asked_to_stop(number: signal.Signals, tmp_path: Path, undisturbed: Any) -> None:
    expected, runs = undisturbed("td3"), tmp_path / "runs"
    process = start(words("td3", runs))
    wait_for(lambda: any(env_step(p) > 0 for p in runs.glob("*")), process)
    process.send_signal(number)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 75, (said, errors)
    assert "interrupted" in said.splitlines()[-1] and not errors
    (directory,) = run_directories(runs)
    assert json.loads((directory / "provenance.json").read_text())["sessions"][-1]["ended"] == "interrupted"
    stopped = env_step(directory)
    said = finish(["resume", str(directory), "train.checkpoint_seconds=0.2"], tmp_path / "said")
    assert f"resumed at step {2 * stopped:,}" in said  # where it stopped, not earlier
    assert_same_runs(runs, expected)
    ended = [s["ended"] for s in json.loads((directory / "provenance.json").read_text())["sessions"]]
    assert ended == ["interrupted", "done"]


def test_a_finished_run_is_left_alone(tmp_path: Path, undisturbed: Any) -> None:
    runs = undisturbed("td3")
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in runs.rglob("*") if p.is_file()}
    said = finish(words("td3", runs), tmp_path / "said")
    assert "complete" in said
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in runs.rglob("*") if p.is_file()} == before


# --- an older version's folder, and damage


def test_a_run_with_the_records_of_an_older_version_goes_on(halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Records that have no more keys than those of a committed run, and a lease that says less of its writer."""
    runs, directory, expected = halfway
    (old,) = (Path(__file__).parents[1] / "data" / "runs").glob("mrq-*/provenance.json")
    record, known = json.loads((directory / "provenance.json").read_text()), json.loads(old.read_text())
    (session,) = record["sessions"]
    record = {key: record[key] for key in known} | {"sessions": [{key: session[key] for key in known["sessions"][0]}]}
    record["sessions"][0] |= {"commit": None, "dirty": None}
    (directory / "provenance.json").write_text(json.dumps(record))
    max((directory / "lease").iterdir()).write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    finish(["resume", str(directory)], tmp_path / "said")
    assert_same_runs(runs, expected)
    assert len(json.loads((directory / "provenance.json").read_text())["sessions"]) == 2


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, killed about half way, with two checkpoints and rows to replay after each."""
    runs = tmp_path_factory.mktemp("killed") / "runs"
    process = fork(words("td3", runs), runs.with_name("said"))
    wait_for(lambda: any(len(d := decisions(p)) == 2 and d[0] > 0 and d[1] > 600 for p in runs.glob("td3*")))
    kill(process)
    (directory,) = run_directories(runs)
    for left in directory.glob("checkpoint/.*"):
        left.unlink()
    return runs


@pytest.fixture
def halfway(tmp_path: Path, killed: Path, undisturbed: Any) -> tuple[Path, Path, Path]:
    """A copy of them; the directory of the one run; the undisturbed."""
    runs = tmp_path / "runs"
    shutil.copytree(killed, runs)
    return runs, run_directories(runs)[0], undisturbed("td3")


def checkpoints(directory: Path) -> list[Path]:
    """Oldest first."""
    return sorted((directory / "checkpoint").glob("*.pt"))


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "bit_flipped": lambda data: data[:1000] + bytes([data[1000] ^ 4]) + data[1001:],
    "garbage": lambda data: random.Random(0).randbytes(len(data)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    kind: str, halfway: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    runs, directory, expected = halfway
    older, newest = checkpoints(directory)
    newest.write_bytes(DAMAGE[kind](newest.read_bytes()))
    said = finish(words("td3", runs), tmp_path / "said")
    (line,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert newest.name in line and "damaged" in line
    assert f"resumed at step {2 * int(older.name.split('-')[0]):,}" in said
    assert_same_runs(runs, expected)


def test_both_checkpoints_damaged(halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    runs, directory, expected = halfway
    for file in checkpoints(directory):
        file.write_bytes(file.read_bytes()[:-1])
    names = [file.name for file in checkpoints(directory)]
    said = finish(words("td3", runs), tmp_path / "said")
    warnings = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert all(any(name in line for line in warnings) for name in names)
    assert "starts over" in warnings[-1] and directory.name in warnings[-1]
    assert_same_runs(runs, expected)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_checkpoint_loads_no_code(halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A pickle that would run a command, its checksum right: refused, in one line, and the one before it used."""
    runs, directory, expected = halfway
    newest = checkpoints(directory)[-1]
    mark = tmp_path / "mark"
    torch.save({"engine": Bomb(mark), "rows": {}, "replay": []}, newest)
    data = newest.read_bytes()
    newest.rename(newest.with_name(re.sub(r"[0-9a-f]{8}\.pt", f"{zlib.crc32(data):08x}.pt", newest.name)))
    said = finish(words("td3", runs), tmp_path / "said")
    assert not mark.exists()
    warnings = [line for line in said.splitlines() if "warning" in line.lower()]
    assert len(warnings) == 1 and newest.name[:21] in warnings[0]
    stray = [line for line in said.splitlines() if not line.startswith(("warning: ", "td3 "))]
    assert not stray, stray
    assert_same_runs(runs, expected)


def test_a_checkpoint_of_another_run_is_not_used(halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    runs, directory, expected = halfway
    other = tmp_path / "other"
    finish(["train", *training.TD3, f"runs={other}", "seeds=5"], tmp_path / "said")
    (stranger,) = run_directories(other)
    newest = checkpoints(stranger)[-1]
    (directory / "checkpoint" / newest.name).write_bytes(newest.read_bytes())
    said = finish(words("td3", runs), tmp_path / "said")
    assert any(line.startswith("warning: ") and newest.name in line for line in said.splitlines())
    assert_same_runs(runs, expected)


def test_a_checkpoint_of_other_code_fails_the_run_and_loses_nothing(
    halfway: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Parameters in another order, as an earlier version of the code may have had them."""
    runs, directory, expected = halfway
    kept = {file: file.read_bytes() for file in checkpoints(directory)}
    for file in kept:
        content = torch.load(file, weights_only=True)
        content["engine"]["layout"]["actor"] = "0" * 16
        torch.save(content, file)
        file.rename(file.with_name(re.sub(r"[0-9a-f]{8}\.pt", f"{zlib.crc32(file.read_bytes()):08x}.pt", file.name)))
    tables = {name: (directory / name).read_bytes() for name in (*training.CLOCKLESS, "provenance.json")}
    said = finish(words("td3", runs), tmp_path / "said", status=1)
    assert "another version of the code" in said
    assert "does not fit" in json.loads((directory / "FAILED").read_text())["reason"]
    assert all((directory / name).read_bytes() == content for name, content in tables.items())
    for file in checkpoints(directory):
        file.unlink()
    for file, data in kept.items():  # the code that made them comes back
        file.write_bytes(data)
    (directory / "FAILED").unlink(missing_ok=True)
    assert "resumed at step" in finish(words("td3", runs), tmp_path / "again")
    assert_same_runs(runs, expected)


def test_torn_and_surplus_lines(halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    runs, directory, expected = halfway
    for name, torn in (("evaluations.csv", "1400,0,12"), ("training.csv", "77,1,2,3\n99,"), ("timing.csv", "5")):
        with open(directory / name, "a") as file:
            file.write(torn)
    said = finish(words("td3", runs), tmp_path / "said")
    torn_named = [line for line in said.splitlines() if line.startswith("warning: ") and "torn" in line]
    for name in ("evaluations.csv", "training.csv", "timing.csv"):
        assert any(name in line for line in torn_named), name
    assert_same_runs(runs, expected)


@pytest.mark.parametrize("name", ["evaluations.csv", "training.csv"])
@pytest.mark.parametrize("how", ["short", "missing", "no_text"])
def test_a_csv_file_shorter_than_a_checkpoint_says(
    name: str, how: str, halfway: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Every checkpoint that counts on the missing rows is named and passed over."""
    runs, directory, expected = halfway
    path = directory / name
    lines = path.read_text().splitlines(keepends=True)
    if how == "short":
        path.write_text("".join(lines[:1]))
    elif how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"\xff\xfe" + random.Random(0).randbytes(200))
    said = finish(words("td3", runs), tmp_path / "said")
    warnings = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert any(name in line for line in warnings)
    assert_same_runs(runs, expected)


@pytest.mark.parametrize("how", ["short", "missing"])
def test_a_replay_segment_that_is_short(how: str, halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    runs, directory, expected = halfway
    (segment,) = (directory / "replay").iterdir()
    newest = checkpoints(directory)[-1]
    ((_, rows),) = torch.load(newest, weights_only=True)["replay"]
    if how == "short":
        width = 4 * (5 + 1 + 2)
        os.truncate(segment, rows * width - 1)  # one byte short for the newest, enough for the one before it
    else:
        segment.unlink()
    said = finish(words("td3", runs), tmp_path / "said")
    warnings = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert any(segment.name in line for line in warnings)
    assert ("starts over" in warnings[-1]) == (how == "missing")
    assert_same_runs(runs, expected)


def test_nothing_half_written_is_left_in_the_end(halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    runs, directory, expected = halfway
    for name in ("checkpoint/.writing-1", "lease/.claim-abc", ".progress.json-elsewhere-7"):
        (directory / name).write_text("{")
    finish(words("td3", runs), tmp_path / "said")
    assert_same_runs(runs, expected)


def test_what_others_put_into_a_run_directory_does_no_harm(tmp_path: Path, undisturbed: Any) -> None:
    """A folder of Jupyter's, and one where a run would be."""
    expected, runs = undisturbed("td3"), tmp_path / "runs"
    (name,) = [p.name for p in run_directories(expected)]
    (runs / name).mkdir(parents=True)
    (runs / name / "notes.txt").write_text("")
    said = finish(words("td3", runs), tmp_path / "said", status=2)
    assert "no run directory" in said and len(said.splitlines()) == 1
    (runs / name).rename(tmp_path / "away")
    process = fork(words("td3", runs), tmp_path / "first")
    wait_for(lambda: (runs / name).is_dir())
    (runs / name / ".ipynb_checkpoints").mkdir()
    process.join(300)
    assert process.exitcode == 0, (tmp_path / "first").read_text()
    (runs / name / ".ipynb_checkpoints").rmdir()
    assert_same_runs(runs, expected)


def test_an_episode_that_cannot_be_played_again_is_told(halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """As on another processor: the first observation of what is logged differs in its last bit."""
    runs, directory, _ = halfway
    older, newest = checkpoints(directory)
    within = decisions(directory)[-1] % 500
    listed = torch.load(newest, weights_only=True)["replay"]
    segment, width = directory / "replay" / listed[-1][0], 5 + 1 + 2
    log = np.fromfile(segment, "<f4").reshape(-1, width)
    log[listed[-1][1] - within :, 0] += 1e-3
    log.tofile(segment)
    said = finish(words("td3", runs), tmp_path / "said")
    assert ("played again" in said) == (within > 0)


def test_done_with_shorter_files_is_not_done(tmp_path: Path, undisturbed: Any) -> None:
    expected, runs = undisturbed("td3"), tmp_path / "runs"
    finish(words("td3", runs), tmp_path / "said")
    (directory,) = run_directories(runs)
    lines = (directory / "evaluations.csv").read_text().splitlines(keepends=True)
    (directory / "evaluations.csv").write_text("".join(lines[:-1]))
    said = finish(words("td3", runs), tmp_path / "said")
    assert "complete" not in said
    assert_same_runs(runs, expected)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"env_step": 1}', "\x00\x01"])
def test_a_done_that_says_nothing_is_not_done(content: str, halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    runs, directory, expected = halfway
    (directory / "DONE").write_text(content)
    for name in ("provenance.json", "progress.json"):
        (directory / name).write_text("{")
    for file in (directory / "lease").iterdir():
        file.write_text('{"host": 3, "pid": "x"}')
    finish(words("td3", runs), tmp_path / "said")
    assert_same_runs(runs, expected)


@pytest.mark.parametrize("gone", ["lease", "lease/*"])
def test_without_its_leases_a_run_keeps_its_replay(gone: str, halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Somebody took the lease for a stale lock: no segment may be written again that a checkpoint counts on."""
    runs, directory, expected = halfway
    for path in directory.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "resumed at step" in finish(words("td3", runs), tmp_path / "said")
    assert_same_runs(runs, expected)


# --- the pack that runs were in does not matter


def test_runs_go_on_in_another_pack(tmp_path: Path, undisturbed: Any) -> None:
    """Begun alone, then named with one that is new: each goes on from where it was."""
    expected, runs = undisturbed("iqrl"), tmp_path / "runs"
    alone = [w for w in words("iqrl", runs) if not w.startswith("seeds")]
    process = fork([*alone, "seeds=1"], tmp_path / "first")
    wait_for(lambda: any(env_step(p) > 700 for p in runs.glob("iqrl*")))
    kill(process)
    said = finish(words("iqrl", runs), tmp_path / "said")
    assert re.findall(r"s(\d)  resumed", said) == ["1"]
    assert_same_runs(runs, expected)


def test_a_run_that_starts_over_costs_its_pack_nothing(tmp_path: Path, undisturbed: Any) -> None:
    """Begun together; one of them has lost both its checkpoints, which costs the other nothing."""
    expected, runs = undisturbed("iqrl"), tmp_path / "runs"
    process = fork(words("iqrl", runs), tmp_path / "first")
    wait_for(lambda: sum(len(decisions(p)) == 2 and env_step(p) > 700 for p in runs.glob("iqrl*")) == 2)
    kill(process)
    for file in checkpoints(run_directories(runs)[0]):
        file.write_bytes(file.read_bytes()[:-1])
    said = finish(words("iqrl", runs), tmp_path / "said")
    assert "starts over" in said
    assert re.findall(r"s(\d)  resumed", said) == ["1"]
    assert_same_runs_but_temporary_files(runs, expected)


# --- one writer


def test_a_second_process_on_this_machine_is_refused(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    asked = words("td3", runs, "train.env_steps=1000000")  # still going, however long the second takes to start
    process = fork(asked, tmp_path / "said")
    wait_for(lambda: any(p.glob("lease/*") and env_step(p) >= 0 for p in runs.glob("td3*")))
    second = run(asked)
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert line.startswith("error: ") and str(process.pid) in line
    process.terminate()
    process.join(300)
    assert process.exitcode == INTERRUPTED


def test_a_process_is_known_by_its_start_or_without_proc_by_its_number() -> None:
    started = processes.started(os.getpid())
    assert processes.lives(os.getpid(), started) and not processes.lives(os.getpid(), (started or 0) + 1)
    process = forks.Process()
    process.start()
    process.join()
    assert processes.lives(os.getpid(), None) and not processes.lives(process.pid, None)


def test_a_killed_process_that_nobody_has_asked_after_does_not_live() -> None:
    process = subprocess.Popen(["sleep", "600"])
    started = processes.started(process.pid)
    assert processes.lives(process.pid, started)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    assert not processes.lives(process.pid, started)
    process.wait()


def test_a_process_whose_run_was_taken_over_leaves_it(tmp_path: Path, undisturbed: Any) -> None:
    """As when a node that was believed lost comes back: the later writer wins and nothing is doubled."""
    expected, runs = undisturbed("td3"), tmp_path / "runs"
    first = fork(words("td3", runs), tmp_path / "first")
    wait_for(lambda: any(env_step(p) > 100 for p in runs.glob("td3*")))
    (directory,) = run_directories(runs)
    (lease,) = (directory / "lease").iterdir()
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "host": "elsewhere"}))
    said = finish(words("td3", runs), tmp_path / "second")
    assert "resumed" in said
    first.join(300)
    told = (tmp_path / "first").read_text()
    assert "taken" in told and "Traceback" not in told
    assert first.exitcode != 0
    assert_same_runs(runs, expected)


# --- a disk that fills


def test_a_disk_that_fills(tmp_path: Path, undisturbed: Any) -> None:
    import subprocess

    expected, disk = undisturbed("iqrl"), tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    try:
        statuses = []
        for room in (60, 120, 200, 300, 900):  # KiB left at first: it fills at another instant each time
            free = os.statvfs(disk).f_bavail * 4096 // 1024
            (disk / "ballast").write_bytes(b"\0" * max(0, (free - room) * 1024))
            process = fork(words("iqrl", disk / "runs"), tmp_path / "said")
            process.join(300)
            said = (tmp_path / "said").read_text()
            statuses.append(process.exitcode)
            if process.exitcode:
                assert process.exitcode == DISK, said
                errors = [line for line in said.splitlines() if line.startswith(("error: ", "warning: "))]
                assert len(errors) == 1 and "disk is full" in errors[0], said
            assert "Traceback" not in said, said
            (disk / "ballast").unlink()
        assert statuses[0] == DISK
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        finish(words("iqrl", disk / "runs"), tmp_path / "said")
        assert_same_runs(disk / "runs", expected)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("file", ["training.csv", "checkpoint", "replay"])
def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(
    file: str, halfway: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage target is down while a job resumes: it ends with one line, changes nothing, and goes on later."""
    runs, directory, expected = halfway
    path = {"training.csv": directory / file, "checkpoint": checkpoints(directory)[-1]}.get(file)
    path = path or next((directory / file).iterdir())
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.parent.name != "lease"}

    def fails(usual: Any) -> Any:
        def call(file: Any, *args: Any, **options: Any) -> Any:
            if str(file) == str(path):
                raise OSError(errno.EIO, "Input/output error", str(path))
            return usual(file, *args, **options)

        return call

    with monkeypatch.context() as patched:
        for owner, name in ((builtins, "open"), (os, "stat"), (Path, "read_bytes")):
            patched.setattr(owner, name, fails(getattr(owner, name)))
        assert command_line.main(words("td3", runs)) == DISK
    after = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.parent.name != "lease"}
    assert after == before
    finish(words("td3", runs), tmp_path / "said")
    assert_same_runs(runs, expected)


def test_what_cannot_be_used_is_set_aside(halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    runs, directory, expected = halfway
    damaged = {file.name: file.read_bytes()[:-1] for file in checkpoints(directory)}
    for name, data in damaged.items():
        (directory / "checkpoint" / name).write_bytes(data)
    rows = (directory / "training.csv").read_text()
    finish(words("td3", runs), tmp_path / "said")
    (lost,) = directory.glob("lost-*")
    assert {file.name: file.read_bytes() for file in (lost / "checkpoint").iterdir()} == damaged
    assert (lost / "training.csv").read_text() == rows and list((lost / "replay").iterdir())


def test_a_run_without_its_checkpoints_keeps_what_it_had(tmp_path: Path, undisturbed: Any) -> None:
    """Somebody made room, or copied tables alone."""
    expected, runs = undisturbed("td3"), tmp_path / "runs"
    process = fork(words("td3", runs), tmp_path / "first")
    wait_for(lambda: any("\n2000," in path.read_text() for path in runs.glob("td3*/evaluations.csv")))
    kill(process)
    (directory,) = run_directories(runs)
    shutil.rmtree(directory / "checkpoint")
    rows = (directory / "evaluations.csv").read_text()
    assert "starts over, with what was there set aside" in finish(words("td3", runs), tmp_path / "said")
    (lost,) = directory.glob("lost-*")
    assert (lost / "evaluations.csv").read_text() == rows
    assert_same_runs(runs, expected)


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_table_that_another_file_has_replaced_is_no_end_of_its_run(how: str, tmp_path: Path) -> None:
    """An editor writes a file anew: rows since then are in one without a name, and DONE must not vouch for it."""
    directory = RunDirectory(tmp_path)
    directory.claim()
    directory.open({}, [], 3)
    row = {"env_step": 0, "episode": 0, "episode_return": 1.0, "length": 500}
    directory.append("evaluations.csv", row)
    table = tmp_path / "evaluations.csv"
    text = table.read_text()
    table.unlink()
    if how == "replaced":
        table.write_text(text)
    directory.append("evaluations.csv", {**row, "env_step": 1000})
    for end in (lambda: directory.finish(1000), lambda: directory.append("evaluations.csv", {**row, "new": 1})):
        with pytest.raises(OSError, match="was replaced or removed while its run wrote to it"):
            end()
    assert not directory.done()
    directory.release()


@pytest.mark.parametrize("last", ["checkpoint", "evaluations.csv"])
def test_setting_aside_may_be_killed(last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What says that there is something to set aside, checkpoints or evaluations, goes last."""
    directory = RunDirectory(tmp_path)
    directory.claim()
    directory.open({}, [], 3)
    if last == "checkpoint":
        directory.save((1, 1), {})
    else:
        row = {"env_step": 5000, "episode": 0, "episode_return": 1.0, "length": 500}
        directory.append("evaluations.csv", row)
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == last:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        directory.set_aside()
    assert directory.trained() and not (tmp_path / "training.csv").exists() and not (tmp_path / "replay").exists()
    directory.release()


@pytest.mark.parametrize("torn", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "\0" * len(text)])
def test_a_torn_configuration_is_written_anew(torn: Any, halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    runs, directory, expected = halfway
    text = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(torn(text))
    assert "config.yaml: damaged; written anew" in finish(words("td3", runs), tmp_path / "said")
    assert (directory / "config.yaml").read_text() == text
    assert_same_runs(runs, expected)


def test_a_run_keeps_its_precision_and_says_what_has_changed(halfway: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A requeued job may get another kind of device, and a tree may have moved on."""
    runs, directory, _ = halfway
    record = json.loads((directory / "provenance.json").read_text())
    was, other = ("bfloat16", "float32") if fast_bfloat16(torch.device("cpu")) else ("float32", "bfloat16")
    record["sessions"][-1] |= {"precision": other, "commit": "0" * 40}
    (directory / "provenance.json").write_text(json.dumps(record))
    apart, early = tmp_path / "apart", tmp_path / "early"
    shutil.copytree(runs, apart)
    shutil.copytree(runs, early)
    shutil.rmtree(early / directory.name / "checkpoint")  # of which there is nothing to go on with
    said = finish(words("td3", early, "train.precision=auto"), tmp_path / "said")
    assert f"on cpu {was}" in said and "another precision" not in said
    said = finish(words("td3", runs, "train.precision=auto", "seeds=0..1"), tmp_path / "said")
    assert f"1 runs in packs of 1, on cpu {was}" in said  # the new one
    assert f"on cpu {other}" in said and "another precision" not in said
    if record["sessions"][0]["commit"]:
        assert "goes on with another code: " in said and f"was {'0' * 40}" in said
    said = finish(words("td3", apart, f"train.precision={was}"), tmp_path / "said")
    assert f"on cpu {was}" in said and f"goes on with another precision: {was}, was {other}" in said


@pytest.mark.parametrize("what", ["signal", "full disk"])
def test_what_ends_a_command_ends_it_for_runs_of_another_precision_too(
    what: str, halfway: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is half done in another precision than a new one gets; it goes first."""
    runs, directory, _ = halfway
    record = json.loads((directory / "provenance.json").read_text())
    other = "float32" if fast_bfloat16(torch.device("cpu")) else "bfloat16"
    record["sessions"][-1]["precision"] = other
    (directory / "provenance.json").write_text(json.dumps(record))
    finished = RunDirectory.finish

    def finish_and_be_told_to_stop(self: RunDirectory, env_step: int) -> None:
        finished(self, env_step)
        os.kill(os.getpid(), signal.SIGTERM)

    def save(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if what == "signal":
        monkeypatch.setattr(RunDirectory, "finish", finish_and_be_told_to_stop)
    else:
        monkeypatch.setattr(RunDirectory, "save", save)
    status = command_line.main(words("td3", runs, "train.precision=auto", "seeds=0..1"))
    said, errors = capsys.readouterr()
    assert f"on cpu {other}" in said
    (new,) = [path for path in run_directories(runs) if path != directory]
    tables = [path.read_text() for path in new.glob("*.csv")]
    assert not (new / "DONE").exists() and all(len(table.splitlines()) == 1 for table in tables)  # heads alone
    if what == "signal":
        assert status == 75 and said.splitlines()[-1] == "interrupted; the same command goes on from here"
    else:
        assert status == DISK and errors.splitlines()[-1].endswith("when there is room") and "complete" not in said


def test_others_may_read_who_writes(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        directory = RunDirectory(tmp_path)
        directory.claim()
    finally:
        os.umask(umask)
    (lease,) = (tmp_path / "lease").iterdir()
    assert lease.stat().st_mode & 0o777 == 0o640


def test_a_checkpoint_replaces_others_of_its_instant_and_of_a_lost_future(tmp_path: Path) -> None:
    """Before and after an evaluation the counts are the same; what could not be resumed must not outlive what can."""
    directory = RunDirectory(tmp_path)
    directory.claim()
    directory.open({}, [], 3)
    for key, mark in (((10, 5), 1), ((10, 5), 2), ((20, 5), 3), ((30, 5), 4), ((12, 5), 5)):
        directory.save(key, {"mark": mark})
        if mark == 2:
            assert len(directory.checkpoints()) == 1
        newest = directory.checkpoints()[0][1]
        assert saved.load(newest, 3)["mark"] == mark
    assert [key for key, _ in directory.checkpoints()] == [(12, 5)]
    directory.release()
