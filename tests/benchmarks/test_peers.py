"""Official code to time against: an adapter for every agent, fair windows, plain errors."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import peer, speed
from benchmarks.worker import update_period
from iqrl import config
from iqrl.agents import AGENTS
from iqrl.environments.environment import task_spec
from iqrl.errors import InputError


def test_every_agent_has_a_peer():
    assert set(peer.PEERS) == set(speed.PEERS)
    assert {agent for agent, _ in speed.PEERS.values()} == set(AGENTS)


@pytest.mark.parametrize("words, expected", [
    (["peer=sac:/"], "iqrl:/path/to/checkout, td3:/path/to/checkout, leanrl:/path/to/checkout, td7:/path/to/checkout, "
                     "tcrl:/path/to/checkout, dcwm:/path/to/checkout, mrq:/path/to/checkout, drq:/path/to/checkout, "
                     "drqv2:/path/to/checkout, sac_ae:/path/to/checkout, "
                     "taco:/path/to/checkout"),
    (["peer=mrq:/nowhere"], "no such folder"),
    (["--seconds=1"], "--seconds=1: expected one of agents=, packs="),
    (["packs=1,a"], "packs=1,a: expected numbers of seeds"),
    (["seconds=nan"], "seconds=nan: expected a number above 0"),
    (["agents=td3,td9"], "agent=td9: no such agent; did you mean td"),
    (["peer=mrq:/", "agents=td3,td7"], "expected mrq among them"),
    (["peer=leanrl:/", "agents=td7"], "expected td3 among them"),
    (["peer=mrq:/", "preset=small"], "preset=small: expected default"),
    (["peer=mrq:/", "task=dog-run"], "task=dog-run: expected walker-walk"),
])  # fmt: skip
def test_what_cannot_be_compared_is_said(words, expected):
    with pytest.raises(InputError, match=expected):
        speed.parse(words)


def test_the_adapters_name_themselves():
    words = [sys.executable, str(Path(peer.__file__)), "sac", "/", "1"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: sac / 1: expected NAME[@pixels] PATH THREADS [FILE], NAME one of iqrl, td3, leanrl, td7, tcrl, dcwm, "
        "mrq, drq, drqv2, sac_ae, taco\n"
    )


@pytest.mark.parametrize(
    ("peer_name", "task", "fine"),
    [("mrq", "walker-walk@pixels", True), ("td3", "walker-walk@pixels", False), ("mrq", "walker-run", False)],
)
def test_official_code_is_timed_at_the_sizes_that_it_is_built_with(peer_name, task, fine, tmp_path):
    words = [f"peer={peer_name}:{tmp_path}", f"task={task}"]
    if fine:
        assert speed.parse(words)["task"] == task
    else:
        with pytest.raises(InputError, match=f"task={task}: expected walker-walk, whose sizes"):
            speed.parse(words)


def test_what_a_checkout_imports_and_is_not_there_is_named(tmp_path):
    (tmp_path / "TD3.py").write_text("import nothing_there")
    words = [sys.executable, str(Path(peer.__file__)), "td3", str(tmp_path), "1"]
    done = subprocess.run(words, capture_output=True, text=True)
    lacking = f"error: td3: no module nothing_there in {tmp_path}, nor in {sys.executable}; expected a checkout of "
    lacking += "the official code, and peer_python=PYTHON with what it imports\n"
    assert (done.returncode, done.stderr) == (1, lacking)


def test_a_peer_that_does_not_start_is_one_line():
    with pytest.raises(speed.WorkerEnded, match="import nothing_there: ended with status 1 before it answered"):
        speed.Worker([sys.executable, "-c", "import nothing_there"], 1)


def bench(monkeypatch, out, *measured):
    """Status of a benchmark that measures these (agent, pack, updates/s), and ends badly at None."""

    def measure(_):
        for each in measured:
            if each is None:
                raise speed.WorkerEnded("python: ended with status 9 before it answered")
            agent, pack, rate = each
            given = {"agent": agent, "pack": pack, "updates_per_second": rate, "ratio_to_eager": 1.0, "machine": "here"}
            yield dict.fromkeys(speed.COLUMNS, "") | given

    monkeypatch.setattr(speed, "measure", measure)
    return speed.main([f"out={out}"])


def test_rows_that_were_not_measured_anew_stay(tmp_path, monkeypatch, capsys):
    def rates():
        return [(r["agent"], r["pack"], r["updates_per_second"]) for r in speed.read(tmp_path / "results.csv")]

    assert bench(monkeypatch, tmp_path, ("iqrl", 1, 10.0), ("iqrl", 2, 9.0), ("td3", 1, 90.0)) == 0
    assert bench(monkeypatch, tmp_path, ("iqrl", 1, 11.0), None) == 1  # what it measured before is kept
    assert rates() == [("iqrl", "2", "9"), ("td3", "1", "90"), ("iqrl", "1", "11")]
    (tmp_path / "results.csv").write_text("agent,rate\niqrl,1\n")
    assert bench(monkeypatch, tmp_path, ("iqrl", 1, 12.0)) == 2
    assert "expected the columns that the benchmark writes; move it away" in capsys.readouterr().err
    assert (tmp_path / "results.csv").read_text() == "agent,rate\niqrl,1\n"


def test_help_is_printed(capsys):
    assert speed.main(["--help"]) == 0
    assert "python -m benchmarks.speed" in capsys.readouterr().out


@pytest.mark.parametrize("name, period", [("td7", 250), ("mrq", 250), ("tcrl", 1), ("dcwm", 2)])
def test_a_window_counts_everything_in_its_share(name, period):
    """Whatever update a whole period begins with; the official code's bursts recur after as many."""
    words = config.parse_words([f"agent={name}", "task=walker-walk", *speed.PEERS[name][1]])
    run = config.resolve([("bench", words)])[0][0]
    agent = run.agent(run.settings, task_spec(run.task), torch.float32)
    assert update_period(agent) == period
    shares = {tuple(sorted(sum((agent.stages(u) for u in range(i, i + period)), ()))) for i in (1, 2, 100, 250, 251)}
    assert len(shares) == 1
