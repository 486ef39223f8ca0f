"""Twelve real runs on a real three-node Slurm without accounting; and again while things go wrong."""

import json
import random

import pytest

from benchmarks.storm import Storm, compare, sessions
from benchmarks.storm_cluster import Cluster, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"the storm: {missing()}")

SIZE = {"env_steps": 2000, "updates": 60, "seeds": 3}
FAULTS = ["cancel_pending", "lose_slurmd", "kill_trainer", "requeue", "limit", "crash_node"]


@pytest.fixture(scope="module")
def cluster():
    with Cluster(cpus=1) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    sweep = Storm(cluster, tmp_path_factory.mktemp("calm"), **SIZE)
    assert "12 runs in 4 packs, 4 jobs" in sweep.submit()
    sweep.calm(400)
    return sweep


def test_runs_submitted_once_all_end(cluster, undisturbed):
    assert undisturbed.complete() == 12
    assert sessions(undisturbed.runs) == 12  # none was begun twice
    # Without sacct, from run files and squeue alone.
    said = cluster.sweep("status", "storm", "--json", f"runs={undisturbed.runs}").stdout
    assert [record["state"] for record in json.loads(said)] == ["done"] * 12


def test_a_short_storm(cluster, undisturbed, tmp_path):
    """Six faults: complete after one retry, every row there once, and all equal to the last bit."""
    storm = Storm(cluster, tmp_path, **SIZE)
    storm.submit()
    left = storm.rage(FAULTS, (0.5, 2.0), random.Random(0))
    storm.calm(200)
    assert not left and sum(storm.injected.values()) == 6
    assert storm.complete() < 12  # one job was cancelled
    storm.retry()
    storm.calm(200)
    assert storm.complete() == 12, storm.why()
    assert sessions(storm.runs) > 12
    names = {path.name for path in storm.runs.glob("*-s*-*")}
    assert len(names) == 12
    assert compare(storm.runs, undisturbed.runs) == []
