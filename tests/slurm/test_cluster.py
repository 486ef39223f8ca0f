"""What Slurm and submitit do to jobs, on a real three-node cluster with accounting."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_files import ROOT, TINY

from benchmarks.storm import processes
from benchmarks.storm_cluster import Cluster, missing
from iqrl.errors import InputError
from iqrl.runs import lease
from slurm import profile, submit

pytestmark = pytest.mark.skipif(bool(missing(True)), reason=f"Slurm: {missing(True)}")

PROFILE = {"gpus": 0, "cpus": 1, "memory_gb": 1.5, "time": "'10:00'", "grace_seconds": 60}
PARTITIONS = """PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL PriorityTier=1 GraceTime=20 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF"""
SLOW_AGENT = '''
"""TD3 whose updates take a while, so that there is time to disturb it."""

import time

from baselines.td3 import TD3
from iqrl.agent import register


@register("slow")
class Slow(TD3):
    def target_value(self, *args, **kwargs):
        time.sleep(0.05)
        return super().target_value(*args, **kwargs)
'''


@pytest.fixture(scope="module")
def cluster():
    with Cluster(accounting=True, cpus=1, extra=PARTITIONS) as running:
        yield running


class Sweep:
    """A sweep of tiny runs for the cluster."""

    def __init__(self, cluster, folder, text=TINY, **wants):
        self.cluster, self.runs = cluster, folder / "runs"
        self.file, self.profile = folder / "tiny.yaml", folder / "p.yaml"
        self.file.write_text(text)
        self.profile.write_text("\n".join(f"{k}: {v}" for k, v in {**PROFILE, **wants}.items()))

    def slurm(self, *words, check=True, **more):
        return self.cluster.sweep(*words, f"runs={self.runs}", check=check, **more)

    def submit(self, *words, check=True):
        return self.slurm("submit", str(self.file), "--profile", str(self.profile), "--yes", *words, check=check)

    def states(self):
        records = json.loads(self.slurm("status", "tiny", "--json").stdout)
        return [record["state"] for record in sorted(records, key=lambda record: record["run"])]

    def wait(self, states, seconds=200):
        """Until the runs are in these states; returns every picture on the way there."""
        seen, end = [], time.monotonic() + seconds
        while not seen or seen[-1] != states:
            assert time.monotonic() < end, seen[-1]
            seen.append(self.states())
        return seen

    def writer(self, token, seconds=200):
        """Who claims a run as number `token`, once it has saved something."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for run in self.runs.glob("*-s*"):
                newest, writer = lease.newest_writer(run)
                if newest >= token and list((run / "checkpoint").glob("*.pt")):
                    return writer
            time.sleep(0.1)
        raise AssertionError(f"no writer {token}: {self.slurm('status').stdout}")

    def log(self):
        return "".join(path.read_text() for path in self.runs.glob("sweeps/*/*/logs/*.log"))

    def sessions(self):
        (path,) = self.runs.glob("*/provenance.json")
        return json.loads(path.read_text())["sessions"]


def wait_for(condition, seconds=200):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
    return found


def slow_sweep(folder):
    (folder / "slow.py").write_text(SLOW_AGENT)
    arm = f"{{slow: {{agent: {folder / 'slow.py'}, agent.warmup_decisions: 400, agent.utd: 0.5"
    text = TINY.replace("{td3: {agent: td3, agent.warmup_decisions: 900", arm).replace("seeds: 0..1", 'seeds: "0"')
    return text.replace("train.compile", "train.checkpoint_seconds: 0.5, train.compile")


def test_one_run_through_a_limit_a_preemption_and_a_lost_node(cluster, tmp_path):
    """USR2 arrives (through srun); preemption is told from cancelling; NODE_FAIL is not final; two never write."""
    sweep = Sweep(cluster, tmp_path, slow_sweep(tmp_path), partition="low")
    sweep.submit()
    sweep.writer(1)
    (job,) = cluster.jobs()
    cluster.command("scancel", "--signal=USR2", job)  # as --signal=USR2@grace does before the limit
    sweep.wait(["queued"])

    sweep.writer(2)
    for _ in range(3):
        cluster.command("sbatch", "--partition=urgent", "--output=/dev/null", "--wrap=sleep 2")
    sweep.wait(["queued"])

    old = sweep.writer(3)
    node = cluster.jobs()[job][1]
    cluster.node(node, "kill")  # its daemon alone: what it trains goes on
    new = sweep.writer(4)
    assert new["pid"] != old["pid"]
    wait_for(lambda: not lease.alive(old))
    assert "another process has taken this run over" in sweep.log()
    seen = sweep.wait(["done"])
    assert {state for picture in seen for state in picture} <= {"running", "queued", "done"}
    cluster.node(node, "start")

    ended = cluster.command("sacct", "--duplicates", "--noheader", "--allocations", f"--jobs={job}", "--format=State")
    assert ended.split()[:3] == ["REQUEUED", "REQUEUED", "NODE_FAIL"]  # and yet it ended well
    assert [session["ended"] for session in sweep.sessions()] == ["interrupted", "interrupted", None, "done"]


def test_killed_cancelled_and_tried_again(cluster, tmp_path):
    """A pending element that is cancelled leaves no trace in Slurm; pending ones hide nothing that has ended."""
    sweep = Sweep(cluster, tmp_path, TINY.replace("seeds: 0..1", "seeds: 0..2"), throttle=1)
    said = sweep.submit().stdout
    assert "3 runs in 3 packs, 3 jobs" in said and "status tiny --watch" in said
    sweep.wait(["done", "running", "queued"])
    assert "nothing to submit" in sweep.submit().stdout  # all of it is done or on its way
    assert "1 jobs cancelled" in sweep.slurm("cancel", "tiny", "--pending").stdout
    (victim,) = wait_for(lambda: processes(["submitit.core._submit"], tmp_path))
    os.kill(victim, signal.SIGKILL)
    sweep.wait(["done", "lost", "cancelled"])
    why = sweep.slurm("why").stdout
    assert "1 lost  FAILED" in why and "  log: " in why  # the training's, or the job's if that one had said nothing yet
    assert "retry tiny" in sweep.slurm("status", "tiny").stdout
    assert "2 runs in 2 packs" in sweep.slurm("retry", "tiny", "--dry-run").stdout
    assert sweep.states() == ["done", "lost", "cancelled"]
    sweep.slurm("retry", "tiny", "--yes")
    sweep.wait(["done"] * 3)
    assert "nothing to submit" in sweep.submit().stdout


def test_jobs_run_the_code_as_it_was_and_from_anywhere(cluster, tmp_path):
    """submitit pickles modules by reference: a job would run edited code, or find none at all."""
    sweep = Sweep(cluster, tmp_path, slow_sweep(tmp_path).replace("utd: 0.5", "utd: 0.01"), options="[hold]")
    agent = tmp_path / "slow.py"
    subprocess.run(
        [sys.executable, "-m", "slurm", "submit", "tiny.yaml", "--profile", "p.yaml", "--yes", "runs=runs"],
        cwd=tmp_path,
        env={**cluster.environment, "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    agent.write_text("raise SystemExit('this is not the agent that was submitted')\n")
    (job,) = cluster.jobs()
    cluster.command("scontrol", "release", job)
    sweep.wait(["done"])
    (session,) = sweep.sessions()
    (code,) = sweep.runs.glob("sweeps/tiny/*/code")
    assert Path(session["code"]).resolve() == code.resolve()
    assert session["job_id"] == job and session["commit"]


@pytest.mark.parametrize(
    ("wants", "words"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"cpus": 500}, "Requested node configuration is not available"),
        ({"constraint": "h100"}, "Invalid feature specification"),
        ({"options": "[frobnicate=1]"}, "unrecognized option '--frobnicate=1'"),
    ],
)
def test_what_slurm_would_refuse_is_refused_in_its_own_words(cluster, tmp_path, monkeypatch, wants, words):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    made = Sweep(cluster, tmp_path, **wants)
    with pytest.raises(InputError, match="Slurm would refuse these jobs") as error:
        submit._test(profile.load(str(made.profile)), "tiny", 3)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_refused_sweep_leaves_nothing(cluster, tmp_path):
    sweep = Sweep(cluster, tmp_path, partition="nowhere")
    result = sweep.submit(check=False)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "nowhere" in result.stderr
    assert not sweep.runs.exists() or not list(sweep.runs.iterdir())
    assert not cluster.jobs()


def test_jobs_are_queued_while_nodes_are_drained(cluster, tmp_path):
    """`sbatch --test-only` refuses then what sbatch takes; what waits for somebody is shown."""
    sweep = Sweep(cluster, tmp_path)
    cluster.command("scontrol", "update", "NodeName=ALL", "State=DRAIN", "Reason=test")
    try:
        said = sweep.submit()
        assert "warning: while 3 of 3 nodes are drained" in said.stderr and "submitted 2 jobs" in said.stdout
        assert sweep.states() == ["queued"] * 2
        cluster.command("scontrol", "hold", *cluster.jobs())
        wait_for(lambda: "2 jobs wait: JobHeldAdmin; ask the cluster's support" in sweep.slurm("status").stdout, 60)
        sweep.slurm("cancel", "tiny")
    finally:
        cluster.command("scontrol", "update", "NodeName=ALL", "State=RESUME")
    impossible = Sweep(cluster, tmp_path, cpus=500).submit(check=False)
    assert impossible.returncode == 2 and "Requested node configuration" in impossible.stderr


def test_the_users_shell_changes_nothing_about_jobs(cluster, tmp_path):
    """sbatch's, srun's and squeue's settings, and those of a job that one submits from; nor do options hinder."""
    hostile = {
        **{"SBATCH_EXPORT": "NONE", "SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "nowhere", "SBATCH_WAIT": "1"},
        **{"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_PER_TASK": "7", "SLURM_NTASKS": "9", "SRUN_MPI": "none"},
        **{"SQUEUE_STATES": "SUSPENDED", "SQUEUE_PARTITION": "urgent", "SACCT_FORMAT": "User"},
    }  # fmt: skip
    setup = f"['export SLURM_CONF={cluster.environment['SLURM_CONF']}']"
    wants = {"partition": "main", "options": "[export=NONE, mem-per-cpu=1500]", "setup": setup}
    sweep = Sweep(cluster, tmp_path, TINY.replace("seeds: 0..1", 'seeds: "0"'), **wants)
    sweep.slurm("submit", str(sweep.file), "--profile", str(sweep.profile), "--yes", more=hostile)
    (job,) = cluster.jobs()
    shown = cluster.command("scontrol", "show", "job", job)
    assert "TimeLimit=00:10:00" in shown and "MinMemoryCPU=1500M" in shown and "Partition=main" in shown
    assert json.loads(sweep.slurm("status", "--json", more=hostile).stdout)[0]["state"] in ("queued", "running")
    sweep.wait(["done"])


def test_a_first_profile_fits_its_cluster(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setattr(profile, "FOLDER", tmp_path)
    assert profile.write_first("mine") == 0
    made = profile.load("mine")
    assert (made.partition, made.gpus, made.cpus) == ("main", 0, 1)
    submit._test(made, "tiny", 3)  # taken
    with pytest.raises(InputError, match="exists"):
        profile.write_first("mine")
    assert Path(capsys.readouterr().out.split()[1].rstrip(";")).is_file()
