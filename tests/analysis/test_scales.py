"""Each suite's own score: MetaWorld's success rate, Gymnasium's return between random's and TD3's."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from synthetic_runs import write_run

from analysis import compare, published, scales, tables
from analysis.building import build
from analysis.figures.drawing import Context
from analysis.runs import load
from analysis.style import STYLES


def succeed(run: Path, percents: list[int]) -> None:
    """Give a run's evaluations a column that says which episodes succeeded: the first `percents` per cent of ten."""
    header, *lines = (run / "evaluations.csv").read_text().splitlines()
    steps = list(dict.fromkeys(line.split(",")[0] for line in lines))
    level = dict(zip(steps, percents, strict=True))
    marked = [f"{line},{int(int(line.split(',')[1]) < level[line.split(',')[0]] / 10)}" for line in lines]
    (run / "evaluations.csv").write_text("\n".join([f"{header},success", *marked, ""]))
    (run / "DONE").unlink()  # it says how long the file was


def test_scales() -> None:
    hopper = scales.scale("gym:Hopper-v4+sticky=0.1")
    assert hopper is not None and hopper.normalised(18.791) == 0.0 and hopper.normalised(3226.0) == 1.0
    assert scales.scale("gym:Hopper-v5") is None and scales.scale("dog-run") == scales.SUITE
    assert scales.said(["dog-run", "mw-reach"]) == "return / 1000; success rate, each suite by its own"
    assert scales.published_task("Hopper-v4") == scales.published_task("Gym-Hopper-v4") == "gym:Hopper-v4"
    assert scales.published_task("mw-reach") == "mw-reach" and scales.published_task("myo-hand-pose") == "myo-pose"


def test_metaworld_is_judged_by_success(tmp_path: Path) -> None:
    """The table, the curves and the aggregates; returns in the thousands are no error there."""
    for seed, last in enumerate((80, 60, 100)):
        run = write_run(tmp_path, "iqrl", "mw-reach", seed, returns=[100.0, 500.0, 900.0, 1200.0, 1500.0, 1800.0])
        succeed(run, [0, 10, 20, 30, 40, last])
    loaded = load([tmp_path])
    assert not loaded.runs["remarks"].str.contains("outside").any()
    (study,), _ = build(loaded, [tmp_path])
    ((_, steps, values),) = study.returns("mw-reach")
    assert values[:, -1].tolist() == [80.0, 60.0, 100.0] and values[0].tolist() == [0, 10, 20, 30, 40, 80]
    (scores,) = study.scores("iqrl", steps[-1:])
    np.testing.assert_allclose(scores[:, 0], [0.8, 0.6, 1.0])
    table = tables.scores(Context(study, STYLES["neurips"], 20))
    assert table.caption.startswith("Success rate in percent at 100k") and "aggregates of success rate" in table.caption
    assert table.rows[0][1].startswith("80")


def axis_titles(name: str, context: Context) -> str:
    """Every title of an axis and of the figure's sides, and its caption."""
    drawing = importlib.import_module(f"analysis.figures.{name}").draw(context)
    sides = [drawing.figure.get_supylabel(), *(text.get_text() for text in drawing.figure.texts)]
    axes = [text for ax in drawing.figure.axes for text in (ax.get_xlabel(), ax.get_ylabel())]
    return " | ".join([*filter(None, axes), *sides, drawing.caption.text])


def test_figures_say_what_their_scores_are(tmp_path: Path) -> None:
    """Of success no figure says "return", but for the studies' names of things; of both kinds "score"."""
    for agent, seed in itertools.product(("iqrl", "td3"), range(3)):
        succeed(write_run(tmp_path / "a", agent, "mw-reach", seed, returns=[900.0] * 6), [0, 10, 20, 30, 40, 60 + seed])
        write_run(tmp_path / "b", agent, "walker-walk", seed, returns=[0.0, 10.0, 20.0, 30.0, 40.0, 400.0 + seed])
    contexts = []
    for folders in ([tmp_path / "a"], [tmp_path / "b"], [tmp_path / "a", tmp_path / "b"]):
        (study,), _ = build(load(folders), folders)
        contexts.append(Context(study, STYLES["neurips"], 20))
    for name in ("iqm_return", "arms", "profiles", "rank_return", "gpu_hours", "aggregates", "tasks"):
        success, returns, both = (axis_titles(name, context).lower() for context in contexts)
        assert "success rate" in success and "return" not in success, name
        assert "success" not in returns and "return" in returns, name
        assert ("normalised score" if name != "tasks" else "mean return (of metaworld and myosuite, success") in both, (
            name
        )


def test_suites_are_mixed_only_normalised(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "iqrl", "walker-walk", seed, returns=[0.0, 0.0, 0.0, 0.0, 0.0, 400.0])
        succeed(write_run(tmp_path, "iqrl", "mw-reach", seed, returns=[1000.0] * 6), [0, 0, 0, 0, 0, 60])
        hopper = [0.0] * 5 + [18.791 + 0.8 * (3226.0 - 18.791)]
        run = write_run(tmp_path, "iqrl", "gym:Hopper-v4", seed, returns=hopper)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["train"]["action_repeat"] = 1  # as the suite has it, and as its runs say
        (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (study,), _ = build(load([tmp_path]), [tmp_path])
    assert not study.problems
    mark = np.array([study.mark])
    found = {task: study.scores("iqrl", mark, [task])[0][0, 0] for task in study.shared_tasks()}
    assert found == pytest.approx({"gym:Hopper-v4": 0.8, "mw-reach": 0.6, "walker-walk": 0.4})
    assert "each suite by its own" in tables.scores(Context(study, STYLES["neurips"], 20)).caption


def test_published_success_is_compared(tmp_path: Path) -> None:
    succeed(write_run(tmp_path / "runs", "dcwm", "mw-reach", returns=[1000.0] * 6), [0, 0, 0, 0, 0, 60])
    rows = [("here", "DC-MPC", "metaworld", "mw-reach", s, 100_000, 1500.0, 0.5 + 0.2 * s) for s in range(2)]
    columns = ["source", "algorithm", "suite", "task", "seed", "env_step", "episode_return", "success"]
    pd.DataFrame(rows, columns=columns).to_parquet(tmp_path / "published.parquet")
    (study,), _ = build(load([tmp_path / "runs"]), [tmp_path / "runs"])
    frame = compare.compare(study, published.load(tmp_path / "published.parquet"), (100_000,))
    row = frame.iloc[0]
    assert (row["own"], row["published_low"], row["published_high"]) == pytest.approx((60.0, 50.0, 70.0))
    assert row["verdict"] == "inside" and bool(row["same"])
