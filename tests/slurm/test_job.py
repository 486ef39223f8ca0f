"""What a job does when it is asked to leave, with a stand-in for the trainer and for `scontrol`."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from sweep_files import ROOT, fake_command

from iqrl.config import Execution
from iqrl.runs.directory import RunDirectory
from slurm import crew, local, submit, tables
from slurm.packs import Pack

# `work` in a process of its own, as submitit calls it; the trainer is a shell script that saves when told to.
JOB = """
import sys
from slurm import crew, job
trainer = "trap 'touch {folder}/saved; exit 75' USR2; touch {folder}/ready; while :; do sleep 0.05; done"
crew.train_command = lambda *_: ["sh", "-c", trainer]
pack = dict(name="p", runs=("r",), seeds=(0,), words=(), after=(), env_steps=1)
job.work(dict(packs=[pack], slots=1, runs="{folder}", folder="{folder}"))
"""


@pytest.fixture
def signalled(tmp_path):
    """Starts a job, sends it a signal, and returns what it asked of Slurm once the trainer has saved."""
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "p.yaml").touch()

    def start(number, state):
        asked = tmp_path / "asked"
        for name in ("asked", "ready", "saved"):
            (tmp_path / name).unlink(missing_ok=True)
        # Slurm takes a job away as soon as it is requeued.
        script = f'case "$*" in requeue*) echo "$@" > {asked}; kill -9 $PPID;; *) echo "{state}";; esac'
        fake_command(tmp_path / "bin", "scontrol", script)
        environment = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": "3",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", JOB.format(folder=tmp_path)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        process.wait(60)
        assert (tmp_path / "saved").exists()
        return asked.read_text().strip() if asked.exists() else ""

    return start


def test_time_limits_are_not_counted(signalled):
    """submitit calls every limit under ten minutes a time-out, and gives up after a few; here there is no count."""
    for _ in range(5):
        assert signalled(signal.SIGUSR2, "JobState=RUNNING") == "requeue 7_3"


def test_preemption_requeues_and_cancelling_does_not(signalled):
    """Both come as SIGTERM, which submitit ignores; Slurm says which it is."""
    assert signalled(signal.SIGTERM, "JobState=RUNNING PreemptTime=2026-01-01T00:00:00") == "requeue 7_3"
    assert signalled(signal.SIGTERM, "JobState=PREEMPTED PreemptTime=None") == "requeue 7_3"
    assert signalled(signal.SIGTERM, "JobState=CANCELLED PreemptTime=None") == ""


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("JobState=COMPLETING Reason=None", ""),  # cancelled
        ("JobState=CANCELLED Reason=None", ""),
        ("JobState=COMPLETING Reason=TimeLimit", "requeue 7_3"),  # the limit came before the save was over
        ("JobState=COMPLETING Reason=None PreemptTime=2026-01-01T00:00:00", "requeue 7_3"),
        ("slurm_load_jobs error: Unable to contact slurm controller", "requeue 7_3"),
    ],
)
def test_a_cancel_during_the_save_is_not_undone(signalled, said, asked):
    assert signalled(signal.SIGUSR2, said) == asked


def test_the_local_queue_gives_each_process_a_gpu_of_its_own(monkeypatch):
    """submitit's LocalExecutor starts everything at once, all on device 0."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    slots, _, size = local.slots_and_words("auto", Execution())
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1"] and size > 1
    assert len(local.slots_and_words("5", Execution())[0]) == 5


def test_a_full_disk_under_the_logs_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "p.yaml").touch()
    (tmp_path / "logs").touch()  # no folder, so nothing can be written there
    monkeypatch.setattr(crew, "LONGEST_PAUSE", 0.0)
    said = []
    pack = Pack("p", {}, ("r",), (0,), (), (), 1)
    made = crew.Crew([pack], [{}], tmp_path, tmp_path, tmp_path / "logs", said.append)
    made.run(lambda: False)
    assert made.members[0].state == "given_up" and "10 attempts" in made.members[0].reason and len(said) == 10


@pytest.mark.parametrize("state", ["RUNNING PreemptTime=2026-01-01T00:00:00", "CANCELLED PreemptTime=None"])
def test_a_job_leaves_nothing_in_the_nodes_scratch_folder(signalled, tmp_path, monkeypatch, state):
    monkeypatch.setenv("SWEEP_SCRATCH", str(tmp_path / "scratch"))
    signalled(signal.SIGTERM, f"JobState={state}")
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.fixture
def shared_pack(tmp_path, monkeypatch):
    """The crew of job 7 with a pack of r0 and r1, which job 7 has trained and where r1 was claimed as `lease` says."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    (tmp_path / "p.yaml").touch()
    os.utime(tmp_path / "p.yaml", (1000, 1000))
    pack = Pack("p", {}, ("r0", "r1"), (0, 1), (), (), 1)

    def make(job, claimed, released=False):
        for name, token, id, when in (("r0", 1, "7", 2000), ("r1", 1, "7", 2000), ("r1", 2, job, claimed)):
            lease = tmp_path / name / "lease" / f"{token:08d}"
            lease.parent.mkdir(parents=True, exist_ok=True)
            record = {"host": "elsewhere", "pid": 1, "started": 1, "job_id": id}
            lease.write_text(json.dumps({**record, "released": True} if released else record))
            os.utime(lease, (when, when))
        made = crew.Crew([pack], [{}], tmp_path, tmp_path, tmp_path / "logs", lambda line: None)
        made.members[0].tokens = {"r0": 1, "r1": 1}
        return made

    return make


@pytest.mark.parametrize("released", [False, True])
def test_a_run_that_a_later_job_has_claimed_is_left_to_it(shared_pack, released):
    """It failed in job 7, was mended, and job 9 got it; job 7 goes on with the others, now and when requeued."""
    made = shared_pack("9", 3000, released)
    (member,) = made.members
    assert made._seeds(member.pack) == [0]
    made._after(member, crew.INTERRUPTED, pid=1)
    assert member.state == "waiting"
    made.stopping = True
    made._after(member, crew.INTERRUPTED, pid=1)
    assert member.state == "stopped"


@pytest.mark.parametrize(("job", "claimed"), [("7", 3000), ("5", 500)])
def test_runs_of_this_job_and_of_jobs_before_it_are_its_own(shared_pack, job, claimed):
    made = shared_pack(job, claimed)
    assert made._seeds(made.members[0].pack) == [0, 1]


def test_a_release_leaves_the_lease_as_old_as_the_claim(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.claim()
    (lease,) = (tmp_path / "lease").iterdir()
    os.utime(lease, (1000, 1000))
    directory.release()
    assert lease.stat().st_mtime == 1000 and json.loads(lease.read_text())["released"]


def test_signals_wait_until_submitted_jobs_are_written_down():
    done, before = [], signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), submit._undisturbed():
            signal.raise_signal(signal.SIGINT)
            done.append("saved")
        assert done == ["saved"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_hang_up_that_nohup_has_switched_off_stays_so():
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        stop = local._stop_flag()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        stop = local._stop_flag()
        signal.raise_signal(signal.SIGHUP)
        assert stop()
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def test_a_sweep_goes_on_when_nobody_reads_what_it_says(tmp_path):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as out:
        view = tables.Live([], out)
        os.close(reading)
        for line in ("first", "second"):
            view.announce(line)
