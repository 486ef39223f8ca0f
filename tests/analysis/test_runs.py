"""Run directories -> tables: every ending, every kind of damage, and the cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import write_run

from analysis import runs as module
from analysis.errors import InputError
from analysis.runs import load


def row(tables: module.RunTables, run: Path):
    return tables.runs.set_index("run").loc[run.name]


def test_reads_what_the_trainer_wrote(runs: Path) -> None:
    run = write_run(runs, "iqrl", "dog-run+sticky=0.25", seed=3, returns=[10.0, 20.5, 300.25, 4.0, 5.0, 6.0], pack=4)
    tables = load([runs])
    found = row(tables, run)
    assert (found.agent, found.task, found.seed, found.status) == ("iqrl", "dog-run+sticky=0.25", 3, "done")
    assert (found.budget, found.every, found.episodes, found.env_step) == (100_000, 20_000, 10, 100_000)
    assert (found.device_name, found.precision, found["pack"]) == ("NVIDIA H100", "bfloat16", 4)
    assert json.loads(found.packages)["torch"] == "2.13.0"
    assert json.loads(found.config)["agent.latent_dim"] == 512
    assert found.hours == pytest.approx((3.1 + 400) / 3600)
    assert tables.evaluations["env_step"].tolist() == [0, 20_000, 40_000, 60_000, 80_000, 100_000]
    assert tables.evaluations["mean_return"].tolist() == [10.0, 20.5, 300.25, 4.0, 5.0, 6.0]
    assert tables.evaluations["wall_seconds"].iloc[-1] == pytest.approx(403.1)
    assert tables.evaluations["updates"].iloc[-1] == 50_000
    assert tables.latents["rank_0.01"].between(1, 512).all()


def test_means_over_episodes_are_those_of_the_file(runs: Path) -> None:
    run = write_run(runs, episodes=7)
    raw = np.loadtxt(run / "evaluations.csv", delimiter=",", skiprows=1)
    tables = load([runs])
    for step, values in tables.evaluations.groupby("env_step"):
        own = raw[raw[:, 0] == step, 2]
        assert values["mean_return"].item() == pytest.approx(own.mean())
        assert values["std_return"].item() == pytest.approx(own.std(ddof=1))
        assert (values["min_return"].item(), values["max_return"].item()) == (own.min(), own.max())


def test_blank_and_infinite_fields(runs: Path) -> None:
    write_run(runs, "td3")
    collapsed = write_run(runs, "iqrl", rank=0.05)
    tables = load([runs])
    td3 = tables.latents[tables.latents["run"].str.startswith("td3")]
    assert td3["rank_0.01"].isna().all() and td3["dormant_percent"].notna().all()
    own = tables.latents[tables.latents["run"] == collapsed.name]
    assert np.isinf(own["condition_number"]).sum() >= 4


@pytest.mark.parametrize(
    ("end", "status"), [("running", "unfinished"), ("interrupted", "unfinished"), ("failed", "failed")]
)
def test_runs_that_are_not_done(runs: Path, end: str, status: str) -> None:
    run = write_run(runs, end=end, stop_at=40_000)
    found = row(load([runs]), run)
    assert (found.status, found.env_step) == (status, 40_000)
    expected = {
        "running": "running, or killed",
        "interrupted": "interrupted",
        "failed": "critic loss is NaN",
    }[end]
    assert expected in found.reason


def test_a_torn_last_line_is_left_out_and_named(runs: Path) -> None:
    run = write_run(runs, end="running", stop_at=40_000)
    with open(run / "evaluations.csv", "a") as file:
        file.write("60000,0,12.")
    with open(run / "latents.csv", "a") as file:
        file.write("600")
    found = row(load([runs]), run)
    assert found.env_step == 40_000
    assert "evaluations.csv: torn last line (11 bytes) left out" in found.remarks
    assert "latents.csv: torn last line (3 bytes) left out" in found.remarks


def test_an_incomplete_evaluation_is_left_out_and_named(runs: Path) -> None:
    run = write_run(runs, end="running", stop_at=40_000)
    lines = (run / "evaluations.csv").read_text().splitlines(keepends=True)
    (run / "evaluations.csv").write_text("".join(lines[:-3]))
    found = row(load([runs]), run)
    assert found.env_step == 20_000
    assert "incomplete evaluation left out at env step 40000 (7 of 10 episodes)" in found.remarks


def test_repeated_rows_count_once_and_are_named(runs: Path) -> None:
    run = write_run(runs, returns=[100.0] * 6, episodes=2, end="interrupted")
    with (run / "evaluations.csv").open("a") as file:
        file.write("100000,0,0.0,1000\n100000,1,0.0,1000\n")
    tables = load([runs])
    assert tables.evaluations["mean_return"].tolist() == [100.0] * 6
    assert "more than 2 episodes at env step 100000" in row(tables, run).remarks


def test_more_episodes_than_configured_are_left_out(runs: Path) -> None:
    run = write_run(runs, returns=[100.0] * 6, episodes=2, end="interrupted")
    with (run / "evaluations.csv").open("a") as file:
        file.write("100000,2,0.0,1000\n")
    assert load([runs]).evaluations["mean_return"].tolist() == [100.0] * 6


@pytest.mark.parametrize(("value", "told"), [(1000.0, False), (0.0, False), (1000.5, True), (-3.0, True)])
def test_returns_that_cannot_be_are_remarked(runs: Path, value: float, told: bool) -> None:
    run = write_run(runs, returns=[10.0] * 5 + [value])
    assert ("a return outside [0, 1000] at env step 100000" in row(load([runs]), run).remarks) == told
    other = write_run(runs, task="gym:Hopper-v5", returns=[10.0] * 5 + [value])
    assert row(load([runs]), other).remarks == ""


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.yaml", "agent: [", "config.yaml is not YAML"),
        ("config.yaml", "task: walker-walk\n", "config.yaml lacks a usable 'agent.name'"),
        ("config.yaml", "", "config.yaml lacks a usable"),
        ("evaluations.csv", "env_step,episode\n0,0\n", "no column 'episode_return' in its header"),
        ("evaluations.csv", "env_step,episode,episode_return,length\n0,0,x,1000\n", "could not convert"),
        ("evaluations.csv", "env_step,episode,episode_return,length\n0,0,1000\n", "line 2 has 3 fields"),
        (
            "evaluations.csv",
            "env_step,episode,episode_return,length\n9,0,1,1\n5,0,1,1\n",
            "env_step is not ascending",
        ),
        ("evaluations.csv", "\x00\xff\x00\n", "no column"),
    ],
)
def test_damage_is_named_and_spares_the_others(runs: Path, file: str, content: str, reason: str) -> None:
    good, bad = write_run(runs, seed=0), write_run(runs, seed=1)
    (bad / file).write_text(content, encoding="latin-1")
    tables = load([runs])
    assert row(tables, good).status == "done"
    assert row(tables, bad).status == "unreadable" and reason in row(tables, bad).reason


def test_a_run_without_provenance_counts(runs: Path) -> None:
    run = write_run(runs)
    (run / "provenance.json").write_text("{")
    found = row(load([runs]), run)
    assert found.status == "done" and found.remarks == "provenance.json is damaged"


def test_what_changed_between_sessions_is_told(runs: Path) -> None:
    run = write_run(runs)
    record = json.loads((run / "provenance.json").read_text())
    (session,) = record["sessions"]
    changed = {**session, "precision": "bfloat16", "commit": "1" * 40}
    record["sessions"] = [{**session, "precision": "float32", "commit": "0" * 40}, changed, changed]
    (run / "provenance.json").write_text(json.dumps(record))
    found = row(load([runs]), run)
    assert "precision changed between sessions: float32, bfloat16" in found.remarks
    assert f"code changed between sessions: {'0' * 12}, {'1' * 12}" in found.remarks
    assert found.precision == "bfloat16"


def test_folders_that_are_no_runs_are_passed_over(runs: Path) -> None:
    write_run(runs)
    (runs / "sweeps").mkdir()
    (runs / "notes").mkdir()
    (runs / "notes" / "todo.txt").write_text("x")
    assert len(load([runs]).runs) == 1


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load([tmp_path / "absent"])


def test_an_empty_folder_gives_empty_tables(runs: Path) -> None:
    tables = load([runs])
    assert len(tables.runs) == len(tables.evaluations) == len(tables.latents) == 0


def test_only_changed_runs_are_read_again(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [write_run(runs, seed=seed, stop_at=40_000, end="running") for seed in range(4)]
    first = load([runs])
    read: list[str] = []
    original = module.read_run
    monkeypatch.setattr(module, "read_run", lambda run: read.append(run.name) or original(run))
    again = load([runs])
    assert read == []
    for name in ("runs", "evaluations", "latents"):
        own, other = getattr(first, name), getattr(again, name)
        assert own.astype(object).where(own.notna(), None).equals(other.astype(object).where(other.notna(), None))
    with open(made[2] / "evaluations.csv", "a") as file:
        file.write("".join(f"60000,{episode},77.0,1000\n" for episode in range(10)))
    shutil.rmtree(made[0])
    later = load([runs])
    assert read == [made[2].name]
    assert set(later.runs["run"]) == {run.name for run in made[1:]}
    own = later.evaluations[later.evaluations["run"] == made[2].name]
    assert own["env_step"].tolist() == [0, 20_000, 40_000, 60_000] and own["mean_return"].iloc[-1] == 77.0
    assert len(later.evaluations) == 3 + 3 + 4
    uncached = load([runs], cache=False)
    columns = ["run", "env_step", "mean_return"]
    assert (
        later.evaluations[columns].astype({"run": str}).sort_values(columns).to_numpy().tolist()
        == uncached.evaluations[columns].astype({"run": str}).sort_values(columns).to_numpy().tolist()
    )


def test_a_damaged_cache_is_only_a_cache(runs: Path) -> None:
    write_run(runs)
    load([runs])
    (table,) = (runs / ".analysis").glob("evaluations-*.parquet")
    table.write_bytes(b"PAR1 no")
    assert len(load([runs]).evaluations) == 6


def test_two_at_once_leave_the_cache_of_one(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read the run when it was short and writes its tables while the other, which read more, writes its own."""
    run = write_run(runs, stop_at=40_000, end="running")
    early = load([runs], cache=False)
    shutil.rmtree(run)
    write_run(runs)
    original = pd.DataFrame.to_parquet

    def interrupted(frame: pd.DataFrame, path: Path, **options: bool) -> None:
        if "evaluations" in path.name:
            monkeypatch.undo()
            module._write_cache(runs, early)
        original(frame, path, **options)

    monkeypatch.setattr(pd.DataFrame, "to_parquet", interrupted)
    load([runs])
    again = load([runs])
    assert again.runs["env_step"].tolist() == [100_000] and len(again.evaluations) == len(again.latents) + 1 == 6


def test_hours_without_clocks_are_unknown(runs: Path) -> None:
    (write_run(runs) / "timing.csv").unlink()
    assert load([runs]).runs["hours"].isna().all()


def test_two_processes_read_the_same(runs: Path) -> None:
    for seed in range(6):
        write_run(runs, seed=seed)
    one, two = load([runs], cache=False, processes=1), load([runs], cache=False, processes=2)
    assert one.evaluations.equals(two.evaluations) and one.runs["status"].equals(two.runs["status"])


def test_several_folders_are_one_table(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, seed=0)
    tables = load([tmp_path / "a", tmp_path / "b"])
    assert len(tables.runs) == 2 and tables.runs["key"].nunique() == 2
    assert tables.evaluations["key"].nunique() == 2
