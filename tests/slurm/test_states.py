"""What became of a run, from its files, from who was given it, and from Slurm's queue."""

import calendar
import json
import os
import pwd
import shutil
import socket
import time

import pytest
from sweep_files import TINY, fake_command, slurm

import ablations
from iqrl import processes
from iqrl.errors import INTERRUPTED
from slurm import queue, reports, states
from slurm.submissions import Job, Submission, submissions

TABLES = ("evaluations.csv", "training.csv")


def make_run(runs, name, *, done=False, failed=None, lease=None, released=False, step=500):
    folder = runs / name
    (folder / "lease").mkdir(parents=True)
    (folder / "config.yaml").write_text("agent: {name: td3}\n")
    for table in TABLES:
        (folder / table).write_text("env_step\n0\n")
    progress = {
        "env_step": step,
        "env_steps": 2000,
        "last_return": 7.5,
        "env_steps_per_second": 100.0,
        "wall_seconds": 5,
    }
    if lease:
        record = {"job_id": None, **lease, **({"released": True} if released else {})}
        (folder / "lease" / "00000001").write_text(json.dumps(record))
    (folder / "progress.json").write_text(json.dumps(progress))
    if done:
        (folder / "DONE").write_text(json.dumps({"env_step": 2000, "files": dict.fromkeys(TABLES, 11)}))
    if failed:
        (folder / "FAILED").write_text(json.dumps({"env_step": 300, "reason": failed, "traceback": "Traceback: x"}))
    return folder


ME = {"host": socket.gethostname(), "pid": os.getpid(), "started": processes.started(os.getpid())}
GONE = {**ME, "started": 1}
AWAY = {"host": "elsewhere", "pid": 1, "started": 1}


def make_sweep(runs, names, name="s"):
    rows = [{"run": n, "arm": "a", "agent": "td3", "task": "t", "seed": 0, "env_steps": 2000} for n in names]
    manifest = {"name": name, "title": "", "scale": "full", "note": "", "runs": rows}
    manifest["arms"] = [{"name": "a", "label": "a", "agent": "td3"}]
    (runs / "sweeps").mkdir(parents=True, exist_ok=True)
    (runs / "sweeps" / f"{name}.json").write_text(json.dumps(manifest))


def submit_to(runs, kind, jobs, name="s", **content):
    submission = Submission.create(runs, name, kind)
    submission.jobs = [Job(id, [{"name": f"pack-{i}", "runs": names}]) for i, (id, names) in enumerate(jobs)]
    submission.content |= content
    submission.save()
    return submission


def states_of(runs):
    return {state.run: state.state for state in reports.Report(runs).states}


def fake_slurm(tmp_path, monkeypatch, squeue, sacct="exit 1"):
    fake_command(tmp_path / "bin", "sbatch", "true")
    fake_command(tmp_path / "bin", "squeue", squeue)
    fake_command(tmp_path / "bin", "sacct", sacct)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


def test_a_run_of_another_host_is_running_while_it_speaks(tmp_path):
    """Every other state that files alone tell is in tests/test_run_folder.py."""
    make_run(tmp_path, "td3-t-s7-a", lease=AWAY)
    make_run(tmp_path, "td3-t-s8-a", lease=AWAY)
    os.utime(tmp_path / "td3-t-s8-a" / "progress.json", (1, 1))
    (tmp_path / "not-a-run").mkdir()
    assert list(states_of(tmp_path).values()) == ["running", "lost"]


def test_a_local_queue(tmp_path):
    names = [f"r{i}" for i in range(4)]
    make_sweep(tmp_path, names)
    make_run(tmp_path, "r0", done=True)
    make_run(tmp_path, "r1", lease=ME)
    make_run(tmp_path, "r2", lease=GONE)
    jobs = [("", [name]) for name in names]
    submit_to(tmp_path, "local", jobs, queue=ME)
    assert list(states_of(tmp_path).values()) == ["done", "running", "queued", "queued"]
    submit_to(tmp_path, "local", jobs, queue=GONE)  # a later one speaks for its runs
    assert list(states_of(tmp_path).values()) == ["done", "running", "lost", "planned"]
    given_up = submit_to(tmp_path, "local", jobs, queue=GONE, left=["pack-0", "pack-3"])  # before a directory was made
    given_up.log("pack-3").write_text("error: train.device=cuda: no CUDA\n")
    report = reports.Report(tmp_path)
    assert [state.state for state in report.states] == ["done", "running", "lost", "lost"]
    assert states.with_reasons(report.states)[3].reason == "error: train.device=cuda: no CUDA"


def test_slurm_first_by_files_then_by_the_queue(tmp_path, monkeypatch):
    names = [f"r{i}" for i in range(6)]
    make_sweep(tmp_path, names)
    make_run(tmp_path, "r0", done=True)
    make_run(tmp_path, "r1", lease=AWAY)
    make_run(tmp_path, "r3", lease=AWAY)
    make_run(tmp_path, "r4", failed="x", lease=AWAY)
    submission = submit_to(tmp_path, "slurm", [(f"7_{i}", [name]) for i, name in enumerate(names)])
    submission.record_cancelled(["7_5"])
    fake_slurm(tmp_path, monkeypatch, "echo '7_0|RUNNING'; echo '7_1|RUNNING'; echo '7_2|PENDING'")
    assert list(states_of(tmp_path).values()) == ["done", "running", "queued", "lost", "failed", "cancelled"]


def test_a_failure_from_before_a_retry_is_not_its_result(tmp_path, monkeypatch):
    names = ["r0", "r1", "r2", "r3"]
    make_sweep(tmp_path, names)
    for name in names:
        marker = make_run(tmp_path, name, failed="old", lease=AWAY, released=True) / "FAILED"
        os.utime(marker, (1, 1))
    submission = submit_to(tmp_path, "slurm", [(f"8_{i}", [name]) for i, name in enumerate(names)])
    for i in range(len(names)):
        (submission.folder / "packs" / f"pack-{i}.yaml").touch()
    os.utime(tmp_path / "r3" / "FAILED")  # by the retry
    fake_slurm(tmp_path, monkeypatch, "echo '8_0|RUNNING'; echo '8_1|PENDING'")
    states = reports.Report(tmp_path).states
    assert [(s.state, s.reason) for s in states] == [("running", ""), ("queued", ""), ("lost", ""), ("failed", "old")]
    submission.kind = "local"
    submission.content["queue"] = ME
    submission.save()
    assert list(states_of(tmp_path).values()) == ["queued", "queued", "queued", "failed"]


def test_a_process_that_outlives_its_job_does_not_keep_its_run(tmp_path, monkeypatch):
    """Left behind on a lost node: the job that `retry` submits fences it off."""
    make_sweep(tmp_path, ["r0", "r1", "r2"])
    make_run(tmp_path, "r0", lease={**ME, "job_id": "7_0"})
    make_run(tmp_path, "r1", lease={**ME, "job_id": "7_1"})
    make_run(tmp_path, "r2", lease=ME)  # by hand
    submission = submit_to(tmp_path, "slurm", [("7_0", ["r0"]), ("7_1", ["r1"]), ("7_2", ["r2"])])
    submission.record_cancelled(["7_1"])
    fake_slurm(tmp_path, monkeypatch, "true")
    assert list(states_of(tmp_path).values()) == ["lost", "cancelled", "running"]
    fake_slurm(tmp_path, monkeypatch, "exit 1")
    assert list(states_of(tmp_path).values()) == ["running"] * 3


def test_runs_of_other_hosts_are_seen_from_here(tmp_path, monkeypatch):
    """Whether their processes live is unknown, but what they report is not."""
    make_sweep(tmp_path, ["r0", "r1"])
    for name in ("r0", "r1"):
        make_run(tmp_path, name, lease=AWAY)
    os.utime(tmp_path / "r0" / "lease" / "00000001", (1, 1))
    os.utime(tmp_path / "r1" / "progress.json", (1, 1))  # of the writer before
    submit_to(tmp_path, "slurm", [("7_0", ["r0", "r1"])])
    fake_slurm(tmp_path, monkeypatch, "echo '7_0|RUNNING'")
    reported, fresh = slurm("status", f"runs={tmp_path}").stdout.splitlines()[-2:]
    assert reported.split()[1:] == "500/2,000 100 steps/s return 7.5 15 s left 7_0".split()
    assert fresh.split()[1:] == "500/2,000 starting 7_0".split()


def test_how_a_job_ended_is_known_before_accounting_is_told(tmp_path, monkeypatch):
    make_sweep(tmp_path, ["r0", "r1"])
    submit_to(tmp_path, "slurm", [("7_0", ["r0"]), ("7_1", ["r1"])])
    fake_slurm(tmp_path, monkeypatch, "echo '7_0|OUT_OF_MEMORY'; echo '7_1|FAILED'; echo '8|COMPLETED'", "exit 0")
    assert [(s.state, s.reason) for s in reports.Report(tmp_path).states] == [
        ("lost", "OUT_OF_MEMORY"), ("lost", "FAILED"),
    ]  # fmt: skip


def test_a_node_failure_is_not_final(tmp_path, monkeypatch):
    """sacct says NODE_FAIL for good while the requeued job goes on: squeue is asked first."""
    make_sweep(tmp_path, ["r0", "r1"])
    submit_to(tmp_path, "slurm", [("7_0", ["r0"]), ("7_1", ["r1"])])
    sacct = "echo '7_0|NODE_FAIL'; echo '7_1|NODE_FAIL'"
    fake_slurm(tmp_path, monkeypatch, "echo '7_0|PENDING'", sacct)
    report = reports.Report(tmp_path)
    assert [state.state for state in report.states] == ["queued", "lost"]
    assert report.states[1].reason == "NODE_FAIL"


def test_a_cancelled_pending_element_is_cancelled_though_slurm_forgot_it(tmp_path, monkeypatch):
    make_sweep(tmp_path, ["r0", "r1"])
    submit_to(tmp_path, "slurm", [("7_0", ["r0"]), ("7_1", ["r1"])])
    asked = tmp_path / "asked"
    fake_slurm(tmp_path, monkeypatch, "echo '7_0|PENDING'; echo '7_1|PENDING'")
    fake_command(tmp_path / "bin", "scancel", f'echo "$@" > {asked}')
    assert slurm("cancel", "s", "r1", f"runs={tmp_path}").returncode == 0
    assert asked.read_text() == "7_1\n"
    fake_slurm(tmp_path, monkeypatch, "echo '7_0|PENDING'")
    assert list(states_of(tmp_path).values()) == ["queued", "cancelled"]


def fake_scancel(tmp_path, then=""):
    """Writes what it was asked for to the file that this returns."""
    fake_command(tmp_path / "bin", "scancel", f'echo "$@" >> {tmp_path / "asked"}; {then}')
    return tmp_path / "asked"


def test_jobs_of_an_earlier_version_of_a_sweep_are_shown_and_cancelled(tmp_path, monkeypatch):
    make_sweep(tmp_path, ["r0"])
    submit_to(tmp_path, "slurm", [("7_0", ["old"])])
    submit_to(tmp_path, "slurm", [("8_0", ["r0"])])
    fake_slurm(tmp_path, monkeypatch, "echo '7_0|PENDING'; echo '8_0|RUNNING'")
    asked = fake_scancel(tmp_path)
    said = slurm("status", "s", f"runs={tmp_path}").stdout
    assert "1 jobs of an earlier version of its file are in the queue, too, such as 7_0; python -m slurm cancel" in said
    assert slurm("cancel", "s", "old", f"runs={tmp_path}").returncode == 0 and asked.read_text() == "7_0\n"
    assert slurm("cancel", "s", f"runs={tmp_path}").returncode == 0
    assert asked.read_text().split() == ["7_0", "7_0", "8_0"]


def test_jobs_of_another_sweep_stay_unless_their_run_is_named(tmp_path, monkeypatch):
    make_sweep(tmp_path, ["r0"])
    make_sweep(tmp_path, ["r0", "r1"], "other")
    submit_to(tmp_path, "slurm", [("7_0", ["r0", "r1"])], "other")
    fake_slurm(tmp_path, monkeypatch, "echo '7_0|PENDING'")
    asked = fake_scancel(tmp_path)
    said = slurm("cancel", "s", f"runs={tmp_path}").stdout
    assert f"1 jobs of other hold runs of s, and stay: python -m slurm cancel other runs={tmp_path}\n" in said
    assert "nothing to cancel" in said and not asked.exists()
    assert slurm("cancel", "s", "r0", f"runs={tmp_path}").returncode == 0 and asked.read_text() == "7_0\n"


def test_a_job_that_ends_meanwhile_does_not_stop_cancelling(tmp_path, monkeypatch):
    make_sweep(tmp_path, ["r0", "r1"])
    submit_to(tmp_path, "slurm", [("7_0", ["r0"])])
    submit_to(tmp_path, "slurm", [("8_0", ["r1"])])
    fake_slurm(tmp_path, monkeypatch, "echo '7_0|PENDING'; echo '8_0|PENDING'")
    asked = fake_scancel(tmp_path, 'test "$1" = 8_0 || { echo "scancel: error: Invalid job id" >&2; exit 1; }')
    result = slurm("cancel", "s", f"runs={tmp_path}")
    assert result.returncode == 2 and "of 2 jobs some stay, or had ended" in result.stderr
    assert "Invalid job id" in result.stderr and asked.read_text() == "7_0\n8_0\n"
    fake_slurm(tmp_path, monkeypatch, "true")
    assert list(states_of(tmp_path).values()) == ["cancelled"] * 2


def test_the_jobs_of_all_who_submitted_are_asked_for(tmp_path, monkeypatch):
    """Two users of one folder; one who has left makes squeue refuse, so nobody asks for him."""
    make_sweep(tmp_path, ["r0", "r1"])
    submit_to(tmp_path, "slurm", [("7_0", ["r0"])], user=1)
    submit_to(tmp_path, "slurm", [("8_0", ["r1"])], user=54321)
    fake_slurm(tmp_path, monkeypatch, f"echo \"$@\" > {tmp_path / 'asked'}; echo '7_0|PENDING'")
    assert list(states_of(tmp_path).values()) == ["queued", "lost"]
    assert f"--user={','.join(map(str, sorted({1, os.getuid()})))} " in (tmp_path / "asked").read_text()
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # nobody has a name
    assert queue.look(["7_0"]).states == {"7_0": "PENDING"}
    assert submit_to(tmp_path, "slurm", []).user == os.getuid()


def test_without_accounting(tmp_path, monkeypatch):
    make_sweep(tmp_path, ["r0"])
    submission = submit_to(tmp_path, "slurm", [("7_0", ["r0"])])
    submission.log("pack-0").write_text("starting\nerror: the disk is full\n\n")
    fake_slurm(tmp_path, monkeypatch, "true", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    result = slurm("why", f"runs={tmp_path}")
    assert "1 lost  error: the disk is full" in result.stdout and str(submission.log("pack-0")) in result.stdout


def test_why_says_what_a_job_died_of_before_it_trained(tmp_path, monkeypatch):
    make_sweep(tmp_path, ["r0", "r1"])
    submission = submit_to(tmp_path, "slurm", [("7_0", ["r0"]), ("7_1", ["r1"])])
    said = submission.folder / "submitit"
    said.mkdir()
    (said / "7_0_0_log.out").touch()
    (said / "7_0_0_log.err").write_text("execve(): /x/python: No such file\nsrun: error: n2: task 0: Exited with 2\n")
    (said / "7_1_0_log.out").write_text("12:00:00  pack-1  given up: needs r9, which is not complete\n")
    fake_slurm(tmp_path, monkeypatch, "true", "echo '7_0|FAILED'")
    result = slurm("why", f"runs={tmp_path}").stdout
    assert f"1 lost  FAILED: execve(): /x/python: No such file\n      such as r0  log: {said}/7_0_0_log.err" in result
    assert "needs r9, which is not complete" in result and f"log: {said}/7_1_0_log.out" in result


def test_without_the_controller_nothing_is_called_lost(tmp_path, monkeypatch):
    make_sweep(tmp_path, ["r0", "r1"])
    make_run(tmp_path, "r0", done=True)
    submit_to(tmp_path, "slurm", [("7_0", ["r0"]), ("7_1", ["r1"])])
    fake_slurm(tmp_path, monkeypatch, "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert list(states_of(tmp_path).values()) == ["done", "unknown"]
    assert "Unable to contact" in slurm("status", f"runs={tmp_path}").stdout
    monkeypatch.setenv("PATH", "/nowhere")
    assert queue.look(["7_0"]).error == "no Slurm on this machine"


def test_status_why_and_logs(tmp_path):
    make_sweep(tmp_path, ["r0", "r1", "r2"])
    make_run(tmp_path, "r0", failed="loss is nan", lease=GONE)
    make_run(tmp_path, "r1", failed="loss is nan", lease=GONE)
    make_run(tmp_path, "r2", lease=ME)
    text = slurm("status", "s", f"runs={tmp_path}").stdout
    assert (
        "2 failed" in text
        and "python -m slurm retry s" in text
        and "500/2,000  100 steps/s  return 7.5  15 s left" in text
    )
    records = {r["run"]: r for r in json.loads(slurm("status", "--json", f"runs={tmp_path}").stdout)}
    assert records["r2"]["state"] == "running" and records["r2"]["seconds_left"] == pytest.approx(15)
    assert "    2 failed  loss is nan" in slurm("why", f"runs={tmp_path}").stdout
    assert "Traceback: x" in slurm("logs", "r0", f"runs={tmp_path}").stdout


def test_a_sweep_may_be_named_by_its_file(tmp_path):
    make_sweep(tmp_path, ["r0"])
    make_run(tmp_path, "r0", done=True)
    assert "  done" in slurm("status", "there/s.yaml", f"runs={tmp_path}").stdout
    assert "nothing to cancel" in slurm("cancel", "s.yaml", f"runs={tmp_path}").stdout
    assert slurm("cancel", f"runs={tmp_path}").returncode == 2


def test_what_helps_runs_of_no_sweep(tmp_path):
    make_sweep(tmp_path, ["r0"])
    make_run(tmp_path, "r0", done=True, lease=GONE)
    make_run(tmp_path, "by-hand", failed="loss is nan", lease=GONE)
    said = slurm("status", f"runs={tmp_path}").stdout
    assert said.endswith(f"of no sweep, and not complete: 1\n  again: python -m iqrl resume {tmp_path}/by-hand\n")
    said = slurm("retry", f"runs={tmp_path}").stdout
    assert said == f"1 runs of no sweep: python -m iqrl resume {tmp_path}/by-hand goes on with one\n"


def test_a_sweep_that_was_copied_without_its_submissions_is_tried_again(tmp_path):
    name = ablations.load("horizon", "lite").runs[0].name
    make_sweep(tmp_path, [name], "horizon-lite")
    file = tmp_path / "sweeps" / "horizon-lite.json"
    file.write_text(file.read_text().replace('"full"', '"lite"'))
    make_run(tmp_path, name, lease=GONE)
    result = slurm("retry", "--dry-run", f"runs={tmp_path}")
    assert result.returncode == 0 and result.stdout.startswith("horizon-lite (")
    assert "1 runs, 0 already done; 1 packs" in result.stdout


def test_runs_of_an_earlier_version_of_the_file_are_not_tried_again(tmp_path):
    """Their names are no more in the file: nothing is run, the manifest stays, and the way out is said."""
    file, runs = tmp_path / "mine.yaml", tmp_path / "runs"
    file.write_text(TINY)
    names = [run.name for run in ablations.load(str(file)).unique_runs()]
    make_sweep(runs, names, "mine")
    make_run(runs, names[0], failed="loss is nan", lease=GONE)
    make_run(runs, names[1], done=True, lease=GONE)
    submit_to(runs, "local", [("", names)], "mine", queue=GONE, source=str(file))
    before = (runs / "sweeps" / "mine.json").read_text()
    assert "1 runs, 0 already done; 1 packs" in slurm("retry", "mine", "--dry-run", f"runs={runs}").stdout
    file.write_text(TINY.replace("env_steps: 2000", "env_steps: 4000"))
    result = slurm("retry", "mine", f"runs={runs}")
    assert result.returncode == 1 and result.stdout == (
        "mine: 1 runs are of an earlier version of the sweep's file or its agent; "
        "the sweep's own command starts the new ones\n"
    )
    assert (runs / "sweeps" / "mine.json").read_text() == before


def test_a_local_retry_that_is_interrupted_leaves_the_sweeps_after_it(tmp_path, monkeypatch):
    from slurm import __main__, local

    runs, asked = tmp_path / "runs", []
    for name, steps in (("one", 2000), ("two", 4000)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(TINY.replace("env_steps: 2000", f"env_steps: {steps}"))
        names = [run.name for run in ablations.load(str(file)).unique_runs()]
        make_sweep(runs, names, name)
        make_run(runs, names[0], failed="loss is nan", lease=GONE)
        submit_to(runs, "local", [("", names)], name, queue=GONE, source=str(file))
    monkeypatch.setattr(local, "run", lambda sweep, *_, **__: asked.append(sweep.name) or INTERRUPTED)
    assert __main__.main(["retry", f"runs={runs}"]) == INTERRUPTED and asked == ["one"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"scale": "full", "runs": 5}', '{"scale": "full", "runs": [{"run": "r0"}]}']
)
def test_a_damaged_manifest_is_named_and_left_out(tmp_path, text):
    make_sweep(tmp_path, ["r0"])
    (tmp_path / "sweeps" / "bad.json").write_text(text)
    result = slurm("status", f"runs={tmp_path}")
    assert result.returncode == 0 and "bad" not in result.stdout and result.stdout.startswith("s\n")
    assert result.stderr.startswith(f"warning: {tmp_path}/sweeps/bad.json: not a sweep's manifest")
    assert result.stderr.count("\n") == 1


def test_a_plan_is_shown_and_nothing_written(tmp_path):
    result = slurm("run", "quickstart", "SCALE=lite", "--dry-run", f"RUNS={tmp_path / 'runs'}")
    assert result.returncode == 0 and "8 runs, 0 already done" in result.stdout and not (tmp_path / "runs").exists()


def test_a_local_plan_says_that_slurm_cannot_be_asked(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    names = [run.name for run in ablations.load(str(tmp_path / "tiny.yaml")).unique_runs()]
    submit_to(tmp_path / "runs", "slurm", [("7_0", names)], "tiny")
    fake_slurm(tmp_path, monkeypatch, "echo 'no controller' >&2; exit 1")
    result = slurm("run", str(tmp_path / "tiny.yaml"), f"runs={tmp_path / 'runs'}")
    assert result.returncode == 1 and "0 packs" in result.stdout
    assert "(perhaps: 2 are unknown, since Slurm cannot be asked: no controller)" in result.stdout


def test_runs_of_a_cluster_that_is_gone_can_be_taken_over(tmp_path, monkeypatch):
    """By another cluster, or on a machine without any."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    sweep, runs = str(tmp_path / "tiny.yaml"), f"runs={tmp_path / 'runs'}"
    names = [run.name for run in ablations.load(sweep).unique_runs()]
    make_sweep(tmp_path / "runs", names, "tiny")
    how = {"cluster": "old", "source": sweep, "words": [], "profile": "cpu"}
    submit_to(tmp_path / "runs", "slurm", [("7_0", names)], "tiny", **how)
    fake_slurm(tmp_path, monkeypatch, "true")
    fake_command(tmp_path / "bin", "scontrol", "echo 'ClusterName             = new'")
    said = slurm("status", runs).stdout
    assert "2 unknown: ask on a login node of old" in said and "python -m slurm retry tiny --unknown" in said
    assert "nothing to submit" in slurm("submit", sweep, runs, "--profile", "cpu", "--dry-run").stdout
    assert "nothing to retry" in slurm("retry", runs, "--dry-run").stdout
    take = ("retry", "tiny", "--unknown", runs, "--dry-run")
    said = slurm(*take)
    assert said.returncode == 0 and "2 runs in " in said.stdout, said.stderr
    (tmp_path / "empty").mkdir()
    said = slurm(*take, path=str(tmp_path / "empty"))
    assert said.returncode == 0 and "2 runs, 0 already done" in said.stdout, said.stderr
    fake_command(tmp_path / "bin", "scontrol", "exit 1")  # then job 7 of the old one could be taken for an own
    said = slurm(*take)
    assert said.returncode == 2 and "scontrol does not say which cluster this is" in said.stderr
    fake_command(tmp_path / "bin", "scontrol", "echo 'ClusterName             = new'")
    folder = make_run(tmp_path / "runs", names[0], lease=AWAY)  # it is not gone
    said = slurm(*take)
    assert said.returncode == 2 and f"{names[0]} was trained on another machine" in said.stderr
    shutil.rmtree(folder)
    submit_to(tmp_path / "runs", "slurm", [("8_0", names[:1])], "tiny", **how | {"cluster": "new"})
    submit_to(tmp_path / "runs", "local", [("", names[1:])], "tiny", **how, queue=GONE)
    fake_slurm(tmp_path, monkeypatch, "echo 'no controller' >&2; exit 1")
    said = slurm(*take)  # job 8 may be in the queue
    assert said.returncode == 2 and "cannot be asked what is queued: no controller" in said.stderr


def test_gc_and_clean_ask_first(tmp_path):
    runs = tmp_path / "runs"
    for name, done in (("r0", True), ("r1", False)):
        folder = make_run(runs, name, done=done, lease=GONE)
        (folder / "checkpoint").mkdir()
        (folder / "replay").mkdir()
        for n in (1, 2):
            (folder / "checkpoint" / f"{n:010d}-{n:010d}-00000000.pt").write_bytes(b"x" * 1024)
        (folder / "replay" / "00000001.f32").write_bytes(b"x" * 2048)
    make_sweep(runs, ["r0", "r1"])
    (runs / "notes.txt").write_text("mine")
    refused = slurm("gc", f"runs={runs}")
    assert refused.returncode == 1 and "3.0 KiB" in refused.stdout and (runs / "r0" / "replay").is_dir()
    assert slurm("gc", "--yes", f"runs={runs}").returncode == 0
    assert [p.name[:10] for p in (runs / "r0" / "checkpoint").iterdir()] == ["0000000002"]
    assert not (runs / "r0" / "replay").exists() and (runs / "r1" / "replay").is_dir()
    assert slurm("clean", f"runs={runs}").returncode == 1 and (runs / "r0").is_dir()
    assert slurm("clean", f"runs={runs}", "--yes").returncode == 0
    assert [p.name for p in runs.iterdir()] == ["notes.txt"]


def test_nothing_is_cleaned_under_a_running_process(tmp_path):
    make_run(tmp_path, "r0", lease=ME)
    result = slurm("clean", "--yes", f"runs={tmp_path}")
    assert result.returncode == 2 and "r0" in result.stderr and (tmp_path / "r0").is_dir()


def test_clean_takes_a_folder_only(tmp_path):
    make_run(tmp_path, "r0", done=True)
    result = slurm("clean", "old", "--yes", f"runs={tmp_path}")
    assert result.returncode == 2 and "clean old" in result.stderr and (tmp_path / "r0").is_dir()


@pytest.mark.parametrize("squeue", ["echo 'no controller' >&2; exit 1", "echo '7_0|PENDING'"])
def test_nothing_is_cleaned_under_jobs(tmp_path, monkeypatch, squeue):
    """Neither while Slurm cannot be asked, nor under jobs whose runs no manifest lists any more."""
    make_sweep(tmp_path, ["r0"])
    make_run(tmp_path, "r0", done=True)
    submit_to(tmp_path, "slurm", [("7_0", ["old"])])
    fake_slurm(tmp_path, monkeypatch, squeue)
    assert slurm("clean", "--yes", f"runs={tmp_path}").returncode == 2 and (tmp_path / "sweeps").is_dir()
    fake_slurm(tmp_path, monkeypatch, "true")
    assert slurm("clean", "--yes", f"runs={tmp_path}").returncode == 0 and not (tmp_path / "sweeps").exists()


def test_nothing_is_cleaned_that_may_train_where_this_machine_cannot_see(tmp_path, monkeypatch):
    """A job that this queue does not know may be another's; what its host writes is seen."""
    fake_slurm(tmp_path, monkeypatch, "true")
    folder = make_run(tmp_path, "r0", lease={**AWAY, "job_id": "7_0"})
    submit_to(tmp_path, "slurm", [("7_0", ["r0"])])
    said = slurm("clean", "--yes", f"runs={tmp_path}")
    assert said.returncode == 2 and "r0 was trained on another machine" in said.stderr and folder.is_dir()
    os.utime(folder / "progress.json", (1000, 1000))
    assert slurm("clean", "--yes", f"runs={tmp_path}").returncode == 0 and not folder.exists()


def test_jobs_of_another_cluster_are_not_known_here(tmp_path, monkeypatch):
    """Two login nodes may see one folder, and both clusters have a job 7."""
    fake_slurm(tmp_path, monkeypatch, "echo '7_0|RUNNING|None'; echo '8_0|PENDING|Priority'")
    fake_command(tmp_path / "bin", "scontrol", "echo 'ClusterName             = here'")
    fake_command(tmp_path / "bin", "scancel", f"echo $@ >> {tmp_path}/cancelled")
    make_sweep(tmp_path, ["r0", "r1", "r2"])
    make_run(tmp_path, "r2", done=True)
    submit_to(tmp_path, "slurm", [("7_0", ["r0"]), ("9_0", ["r2"])], cluster="there")
    submit_to(tmp_path, "slurm", [("8_0", ["r1"])], cluster="here")
    assert states_of(tmp_path) == {"r0": "unknown", "r1": "queued", "r2": "done"}
    assert "1 unknown: ask on a login node of there" in slurm("status", f"runs={tmp_path}").stdout
    said = slurm("cancel", "s", f"runs={tmp_path}")
    assert said.returncode == 2 and "r0 was handed to another cluster" in said.stderr
    assert (tmp_path / "cancelled").read_text() == "8_0\n"
    fake_slurm(tmp_path, monkeypatch, "true")
    said = slurm("clean", "--yes", f"runs={tmp_path}")
    assert said.returncode == 2 and "r0 was handed to another cluster" in said.stderr


def test_a_run_that_no_sweep_lists_may_be_another_clusters(tmp_path, monkeypatch):
    """An earlier version of a sweep's file had it. Where that cluster is gone, its submission can go."""
    fake_slurm(tmp_path, monkeypatch, "true")
    fake_command(tmp_path / "bin", "scontrol", "echo 'ClusterName             = here'")
    make_sweep(tmp_path, ["r0"])
    make_run(tmp_path, "r0", done=True)
    submission = submit_to(tmp_path, "slurm", [("7_0", ["old"])], cluster="there")
    said = slurm("clean", "--yes", f"runs={tmp_path}")
    assert said.returncode == 2 and "old was handed to another cluster, there, which may" in said.stderr
    assert f"if it is gone, remove {submission.folder} first" in said.stderr
    shutil.rmtree(submission.folder)
    assert slurm("clean", "--yes", f"runs={tmp_path}").returncode == 0 and not (tmp_path / "r0").exists()


def test_a_local_sweep_does_not_need_slurm_s_word(tmp_path, monkeypatch):
    """Though another sweep of the folder went there."""
    fake_slurm(tmp_path, monkeypatch, "exit 1")
    fake_command(tmp_path / "bin", "scontrol", "exit 1")
    make_sweep(tmp_path, ["r0"], "here")
    make_sweep(tmp_path, ["r1"], "there")
    submit_to(tmp_path, "local", [("", ["r0"])], "here", queue=GONE)
    submit_to(tmp_path, "slurm", [("7_0", ["r1"])], "there", cluster="c")
    said = slurm("cancel", "here", f"runs={tmp_path}")
    assert said.returncode == 0 and said.stdout == "here: nothing to cancel\n", said.stderr
    assert slurm("cancel", "there", f"runs={tmp_path}").returncode == 2


@pytest.mark.parametrize("reason", ["JobHeldUser", "launch failed requeued held", "JobHeldAdmin"])
def test_what_helps_a_held_job(tmp_path, monkeypatch, reason):
    fake_slurm(tmp_path, monkeypatch, f"echo '7_0|PENDING|{reason}'; echo '7_1|PENDING|{reason}'")
    make_sweep(tmp_path, ["r0", "r1"])
    submit_to(tmp_path, "slurm", [("7_0", ["r0"]), ("7_1", ["r1"])])
    hint = "ask the cluster's support" if reason == "JobHeldAdmin" else "scontrol release 7"
    assert f"2 jobs wait: {reason}; {hint}\n" in slurm("status", f"runs={tmp_path}").stdout + "\n"


def test_submissions_are_in_the_order_in_which_they_were_made(tmp_path):
    """Whatever the time zone: folders of old are named by local time, those of now by UTC."""
    made = submit_to(tmp_path, "slurm", [])
    assert abs(calendar.timegm(time.strptime(made.folder.name, "%Y%m%d-%H%M%S")) - time.time()) < 60
    old = made.folder.with_name("99991231-235959")
    shutil.copytree(made.folder, old)
    file = old / "submission.json"
    content = json.loads(file.read_text())
    content["created"] = time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(time.time() - 3600))
    file.write_text(json.dumps(content))
    assert [s.folder for s in submissions(tmp_path)] == [old, made.folder]


def test_submissions_get_folders_of_their_own(tmp_path):
    """submitit keys its result files by job id, which a cluster that was set up anew repeats."""
    folders = {submit_to(tmp_path, "slurm", []).folder for _ in range(3)}
    assert len(folders) == 3


def test_a_file_in_place_of_the_folder_is_told_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    done = slurm("status", f"runs={tmp_path / 'file'}")
    assert done.returncode and len(done.stderr.splitlines()) == 1 and str(tmp_path / "file") in done.stderr
