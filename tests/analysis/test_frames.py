"""What a notebook is given: tidy frames, studies and statistics as functions; and the notebook itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_run, write_study

from analysis import load, study
from analysis.errors import InputError
from analysis.frames import aggregate, curves, finals
from analysis.statistics import mean

ROOT = Path(__file__).parents[2]


def test_frames_are_tidy_and_joined_by_their_key(runs: Path) -> None:
    made = write_study(runs, seeds=3)
    (made[0] / "training.csv").write_text("env_step,episode,updates,episode_return\n0,0,0,1.5\n1000,1,5")
    (made[1] / "training.csv").unlink()
    tables = load(runs)
    assert len(tables.runs) == 12 and len(tables.evaluations) == 12 * 6 and len(tables.latents) == 12 * 5
    training = tables.training
    assert set(training["key"]) == {str(run) for run in made if run != made[1]} <= set(tables.runs["key"])
    assert {"env_step", "episode_return", "critic_loss", "q_mean"} <= set(training.columns)
    torn = training[training["key"] == str(made[0])]
    assert torn["episode_return"].tolist() == [1.5] and torn["critic_loss"].isna().all()


def test_statistics_of_frames_are_those_of_numpy(runs: Path) -> None:
    """Uneven: a run is missing on one task."""
    made = write_study(runs, seeds=4)
    shutil.rmtree(made[0])
    own = study(load(runs))
    rows = finals(own)
    assert list(rows.columns) == ["arm", "task", "seed", "key", "mean_return", "score"] and len(rows) == 15
    at = load(runs).evaluations
    at = at[at["env_step"] == 100_000].set_index("key")["mean_return"]
    assert rows["mean_return"].tolist() == [at[key] for key in rows["key"]]
    means = rows.groupby(["arm", "task"])["score"].mean()
    made_mean = aggregate(rows, "score", mean, replicates=50)
    assert made_mean["arm"].tolist() == ["iqrl", "td3"]
    assert made_mean["point"].tolist() == pytest.approx([means["iqrl"].mean(), means["td3"].mean()])
    assert made_mean["tasks"].tolist() == [2, 2] and made_mean["runs"].tolist() == [7, 8]
    curve = curves(own, "score", mean, replicates=50)
    last = curve[curve["env_step"] == 100_000].set_index("arm")["point"]
    assert last["td3"] == pytest.approx(means["td3"].mean())
    with pytest.raises(InputError, match="active_codebook_mean: no arm has it"):
        curves(study(load(runs), arms=["td3"]), "active_codebook_mean")


def test_one_study_is_taken_or_chosen(runs: Path) -> None:
    write_study(runs)
    assert study(load(runs), baseline="td3", tasks=["walker-walk"]).reference.name == "td3"
    write_run(runs, "mrq")
    with pytest.raises(InputError, match="several studies; expected one of quickstart, runs"):
        study(load(runs))
    assert [arm.name for arm in study(load(runs), "runs").arms] == ["mrq"]


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = json.loads((ROOT / "docs" / "examples" / "analysis.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert len(book["cells"]) == 10
    shutil.copytree(ROOT / "results/reference/lite", tmp_path / "results/reference/lite")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, "cell", "exec"), names)
    assert (tmp_path / "my_figure.pdf").stat().st_size > 5000
    rows = names["iqm"]
    assert len(rows) == 6 and np.isfinite(rows["low"]).all() and (rows["low"] < rows["point"]).all()
