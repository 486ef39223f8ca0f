"""The local queue with real training processes."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_files import BROKEN_AGENT, ROOT, TINY, slurm

from iqrl import processes
from iqrl.config import Execution
from iqrl.runs import lease
from slurm import crew, local
from slurm.packs import Pack


def start(*words):
    """`python -m slurm WORDS` in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "slurm", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
    return found


def trainers(runs):
    """Processes that hold a lease in `runs`."""
    writers = [lease.newest_writer(path.parent)[1] for path in Path(runs).glob("*/lease")]
    return [w["pid"] for w in writers if lease.alive(w)]


def results(runs):
    return {p.relative_to(runs): p.read_bytes() for p in Path(runs).glob("*-s*/*.csv") if p.name != "timing.csv"}


def test_stop_kill_and_go_on(tmp_path):
    """Ctrl-C saves, the same command goes on, a killed process is started again: the files are the same."""
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(TINY)
    quiet = slurm("run", str(sweep), f"runs={tmp_path / 'quiet'}")
    assert quiet.returncode == 0 and "2 of 2 runs complete" in quiet.stdout

    runs = tmp_path / "runs"
    words = ["run", str(sweep), f"runs={runs}", "jobs=2"]
    first = start(*words)
    wait_for(lambda: len(trainers(runs)) == 2)
    os.kill(first.pid, signal.SIGINT)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 75 and "the same command goes on" in said
    assert not trainers(runs)

    second = start(*words)
    victims = wait_for(lambda: trainers(runs))
    os.kill(victims[0], signal.SIGKILL)
    said, _ = second.communicate(timeout=240)
    assert second.returncode == 0 and "killed by signal 9; starting again" in said
    assert results(runs) == results(tmp_path / "quiet") and len(results(runs)) == 6

    third = slurm(*words)
    assert third.returncode == 0 and "2 runs, 2 already done" in third.stdout
    manifest = json.loads((runs / "sweeps" / "tiny.json").read_text())
    assert sorted(row["run"] for row in manifest["runs"]) == sorted(p.parent.name for p in runs.glob("*/DONE"))


def test_an_agents_file_may_be_edited_while_its_sweep_runs(tmp_path):
    """Here by the first process that trains it: the second one still trains the run that was planned."""
    mine = tmp_path / "mine.py"
    edit = f"if 'train' in sys.argv: open({str(mine)!r}, 'a').write('# edited\\n')"
    agent = BROKEN_AGENT.split("@register")[0] + "import sys\n\n@register('mine')\nclass Mine(TD3):\n    pass"
    mine.write_text(f"{agent}\n\n{edit}\n")
    (tmp_path / "own.yaml").write_text(TINY.replace("agent: td3", f"agent: {mine}"))
    words = ("run", str(tmp_path / "own.yaml"), f"runs={tmp_path / 'runs'}", "jobs=1", "train.pack=1")
    said = slurm(*words)
    assert "# edited" in mine.read_text()
    assert said.returncode == 0 and "2 of 2 runs complete" in said.stdout
    assert len(list((tmp_path / "runs").glob("*/DONE"))) == 2


def test_runs_of_another_queue_count_until_they_are_complete(tmp_path):
    sweep, runs = tmp_path / "tiny.yaml", tmp_path / "runs"
    sweep.write_text(TINY)
    assert slurm("run", str(sweep), f"runs={runs}").returncode == 0
    other = next(runs.glob("*-s1-*"))
    (other / "DONE").unlink()
    next(runs.glob("*-s0-*/DONE")).unlink()
    token = lease.newest_token(other) + 1
    (other / "lease" / f"{token:08d}").write_text(json.dumps(lease.myself()))  # this living process
    said = slurm("run", str(sweep), f"runs={runs}")
    assert said.returncode == 1 and "1 of 1 runs complete" in said.stdout
    assert "1 more of its runs are another queue's" in said.stdout


def test_a_failed_run_is_reported_and_the_others_go_on(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN_AGENT)
    sweep = tmp_path / "mixed.yaml"
    arm = f"arms: {{bad: {{agent: {tmp_path / 'broken.py'}, agent.warmup_decisions: 900}}, td3: {{agent: td3, "
    sweep.write_text(TINY.replace("arms: {td3: {agent: td3, ", arm).replace("seeds: 0..1", 'seeds: "0"'))
    result = slurm("run", str(sweep), f"runs={tmp_path / 'runs'}", "jobs=2")
    assert result.returncode == 1
    assert "1 of 2 runs complete, 1 failed" in result.stdout and "ArithmeticError: nothing adds up" in result.stdout
    assert "1 failed  ArithmeticError: nothing adds up" in slurm("why", f"runs={tmp_path / 'runs'}").stdout


# --- what the crew makes of a process's end, with stand-ins for the trainer


@pytest.fixture
def make_crew(tmp_path, monkeypatch):
    """A crew whose `trainer` is a shell script; `$RUN` is the run's directory."""

    def make(script, after=()):
        (tmp_path / "run" / "lease").mkdir(parents=True)
        (tmp_path / "pack.yaml").touch()
        monkeypatch.setattr(crew, "train_command", lambda *_: ["sh", "-c", f"RUN={tmp_path / 'run'}; {script}"])
        monkeypatch.setattr(crew, "LONGEST_PAUSE", 0.0)
        said = []
        pack = Pack("pack", {}, ("run",), (0,), (), tuple(after), 100)
        return crew.Crew([pack], [{}], tmp_path, tmp_path, tmp_path / "logs", said.append), said

    return make


DONE = """printf x > $RUN/t.csv; printf '{"env_step": 100, "files": {"t.csv": 1}}' > $RUN/DONE"""


@pytest.mark.parametrize(
    ("script", "state", "reason", "starts"),
    [
        (DONE, "ended", "", 1),
        ("echo 'error: train.device=cuda: no CUDA'; exit 2", "given_up", "train.device=cuda: no CUDA", 1),
        ("echo 'Boom: bang'; exit 1", "given_up", "Boom: bang (3 attempts)", 3),
        ("echo 'error: the disk is full'; exit 74", "given_up", "error: the disk is full (10 attempts)", 10),
        ("exit 74", "given_up", "exit status 74 (10 attempts)", 10),  # no room in the log, either
        (f"test -e $RUN/once && {{ {DONE}; exit; }}; touch $RUN/once; kill -9 $$", "ended", "", 2),
        (f"test -e $RUN/once && {{ {DONE}; exit; }}; touch $RUN/once; exit 75", "ended", "", 2),
        ('printf \'{"host": "else", "pid": 1}\' > $RUN/lease/00000007; exit 1', "given_up", "another process", 1),
    ],
)
def test_ends_of_a_process(make_crew, tmp_path, script, state, reason, starts):
    made, _ = make_crew(f"echo x >> {tmp_path / 'starts'}; {script}")
    made.run(lambda: False)
    (member,) = made.members
    assert member.state == state and reason in member.reason
    assert (tmp_path / "starts").read_text().count("x") == starts


def test_a_file_that_cannot_be_read_is_the_trouble_of_its_pack(make_crew, tmp_path, monkeypatch):
    """The storage of a cluster fails now and then: other packs go on, and this one is tried again."""
    made, said = make_crew(f"echo x >> {tmp_path / 'starts'}; {DONE}")
    broken = [OSError(errno.EIO, "Input/output error", "lease")] * 2
    monkeypatch.setattr(
        crew, "newest_token", lambda run: lease.newest_token(run) if not broken else _raise(broken.pop())
    )
    made.run(lambda: False)
    assert made.members[0].state == "ended" and (tmp_path / "starts").read_text() == "x\n"
    assert sum("lease: Input/output error; starting again" in line for line in said) == 2


def _raise(error):
    raise error


OLD = """printf '{"reason": "old"}' > $RUN/FAILED; touch -d @1 $RUN/FAILED"""


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'error: train.device=cuda: no CUDA'; exit 2", "train.device=cuda: no CUDA"),
        (f"test -e $RUN/once && {{ {DONE}; exit; }}; touch $RUN/once; exit 75", ""),
    ],
)
def test_a_failure_from_before_the_pack_was_handed_out_is_not_its_end(make_crew, script, reason):
    """A retry that is stopped, or is given no GPU, before it opens the run."""
    made, said = make_crew(f"{OLD}; {script}")
    made.run(lambda: False)
    assert made.members[0].reason == reason and not any("FAILED" in line for line in said)


def test_a_pack_whose_runs_have_all_failed_is_not_started_again(make_crew, tmp_path):
    """In a job that was requeued for its other packs."""
    made, _ = make_crew(f"touch {tmp_path / 'started'}")
    (tmp_path / "run" / "FAILED").write_text('{"reason": "loss is nan"}')
    made.run(lambda: False)
    assert made.members[0].state == "ended" and not (tmp_path / "started").exists()


def test_a_process_that_gets_further_is_started_for_ever(make_crew, tmp_path):
    """Twelve times killed, each time after a new checkpoint."""
    script = f"mkdir -p $RUN/checkpoint; n=$(ls $RUN/checkpoint | wc -l); test $n = 12 && {{ {DONE}; exit; }}"
    made, _ = make_crew(f"{script}; touch $RUN/checkpoint/$((n + 10))-0-00000000.pt; kill -9 $$")
    made.run(lambda: False)
    assert made.members[0].state == "ended"


def test_a_pack_waits_for_the_run_that_it_starts_from(make_crew):
    made, said = make_crew(DONE, after=["source"])
    made.run(lambda: False)
    assert made.members[0].state == "given_up" and "needs source" in said[0]


def test_a_stopped_crew_starts_nothing(make_crew, tmp_path):
    made, _ = make_crew(f"touch {tmp_path / 'started'}")
    made.run(lambda: True)
    assert made.members[0].state == "stopped" and not (tmp_path / "started").exists()


@pytest.mark.parametrize("visible", ["2,3", "GPU-8f,GPU-a0"])
def test_only_gpus_that_were_given_are_used(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(processes, "cores", lambda: 7)
    slots, words, size = local.slots_and_words("3", Execution())
    assert words == {"train.threads": "2"}  # the cores are shared out, too
    first, second = visible.split(",")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == [first, second, first] and size > 1
