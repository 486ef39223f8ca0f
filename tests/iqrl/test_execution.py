"""How a pack is executed."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from iqrl.config import parse_words, resolve
from iqrl.errors import InputError
from iqrl.training import execution
from iqrl.training.execution import decide, memory_estimate, pack_size, transitions_kept

ROUNDS = """
import ctypes, resource
from iqrl.training.execution import keep_freed_memory

keep_freed_memory()
libc, size = ctypes.CDLL(None), 20 * 2**20
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    places = [libc.malloc(size) for _ in range(10)]
    for place in places:
        ctypes.memset(place, 1, size)
    for place in places:
        libc.free(place)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_memory_given_back_is_there_for_the_next_who_asks() -> None:
    """Page faults of the fourth round: 51 thousand in 200 MB, if the memory went back to the system in between."""
    asked = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True)
    assert int(asked.stdout) < 15_000


def test_the_memory_of_a_planner_counts() -> None:
    """DC-MPC's logits are 15 times as wide as its latent's dimensions, and each environment that acts has them."""

    def estimate(*words: str) -> int:
        runs, _, _ = resolve([("test", parse_words(["agent=dcwm", "task=walker-walk", *words]))])
        return memory_estimate(runs[0])

    logits = 4 * 512 * 512 * 15
    assert estimate() - estimate("agent.mpc=false") == 3 * 10 * logits
    assert estimate("eval.episodes=20") - estimate() == 3 * 10 * logits
    assert estimate("agent.mpc=false") > 5 * 2 * logits  # an unroll keeps logits and weights of five steps


def test_runs_of_most_budgets_have_tables_of_the_same_size() -> None:
    """So they share compiled code. Pictures are kept as many as there will be."""

    def kept(*words: str) -> int:
        runs, _, _ = resolve([("test", parse_words(["agent=iqrl", *words]))])
        return transitions_kept(runs[0])

    walker = ["task=walker-walk", "train.env_steps"]
    short, longer, long = (kept(walker[0], f"{walker[1]}={n}") for n in (4000, 100_000, 200_000))
    assert short == longer == 2**16 and long == 2**17
    assert kept(walker[0], f"{walker[1]}=3000000") == 1_000_000  # agent.buffer_size
    assert kept(*walker[:1], "agent.buffer_size=2000") == 2000
    assert kept("task=walker-walk@pixels", f"{walker[1]}=4000") == 2000 + 500


def test_a_pack_is_as_large_as_the_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, settings, _ = resolve([("test", parse_words(["agent=iqrl", "task=walker-walk", "train.device=cpu"]))])
    plan = decide(settings, runs[0])
    each, room = memory_estimate(runs[0]), [0.0]
    monkeypatch.setattr(execution, "free_memory", lambda device: int(room[0] * each))
    for seeds, room[0] in ((5, 3.5), (2, 3.5), (100, 1000.0)):
        assert pack_size(settings, runs[0], plan, seeds, Path()) == (min(seeds, int(room[0]), 32), "device")
    room[0] = 0.5
    with pytest.raises(InputError, match="iqrl walker-walk: needs about"):
        pack_size(settings, runs[0], plan, 1, Path())
