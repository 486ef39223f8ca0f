"""Gradients in bfloat16 beside float32, of real short runs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks import precision
from iqrl import config
from iqrl.__main__ import main as iqrl

WORDS = [
    "task=cartpole-balance", "preset=tiny", "seeds=0", "train.env_steps=2400", "eval.every=2400", "eval.episodes=1",
    "train.compile=off", "train.threads=1", "train.workers=0", "train.precision=float32", "agent.warmup_decisions=600",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TD7 draws by priorities, which an update of one side must not change for the other."""
    runs = tmp_path_factory.mktemp("runs")
    assert iqrl(["train", "agent=td7", f"runs={runs}", *WORDS]) == 0
    (path,) = runs.glob("td7-*")
    return path


def test_bfloat16_turns_gradients_little_and_another_batch_much(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "precision.csv"
    assert precision.main([str(run), "batches=4", f"out={out}"]) == 0
    with open(out, newline="") as file:
        rows = {row["parameters"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["encoder", "critic", "actor"]
    for row in rows.values():
        assert (row["agent"], row["seed"], row["env_step"], row["batches"]) == ("td7", "0", "2400", "4")
        assert 0.9 < float(row["lowest"]) <= float(row["cosine"]) < 1.0
        assert float(row["norm_ratio"]) == pytest.approx(1.0, abs=0.1)
        assert float(row["other_batch"]) < float(row["cosine"])


def test_equal_precision_gives_equal_gradients_of_the_same_batches(run: Path) -> None:
    one, other = (precision.Side(run, config.load_run(run, {}), torch.float32) for _ in range(2))
    first = one.gradients(0)
    other.gradients(1)  # leaves no trace
    again = other.gradients(0)
    for name, gradient in first.items():
        assert torch.equal(gradient, again[name])
        assert not torch.equal(gradient, one.gradients(1)[name])


@pytest.mark.parametrize(
    "words, said", [([], "expected a run's folder"), (["batches=1"], "batches=1"), (["seeds=3"], "seeds=3")]
)
def test_bad_input_is_named(words: list[str], said: str) -> None:
    with pytest.raises(precision.InputError, match=said):
        precision.main(words)
