"""Which faults a storm injects; tests/slurm/test_storm.py has a storm itself."""

import random

import pytest

from benchmarks.storm import FAULTS, drawn


@pytest.mark.parametrize("count", [0, 3, 11, 30])
def test_as_many_faults_as_asked_for_and_every_kind_as_far_as_they_go(count):
    faults = drawn(count, random.Random(0))
    assert len(faults) == count and len(set(faults)) == min(count, len(FAULTS))
