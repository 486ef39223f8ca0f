"""Published formats, each in a made-up file of its own shape, and its step convention."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from synthetic_runs import write_run, write_study

from analysis import compare, published
from analysis.__main__ import main
from analysis.building import build
from analysis.errors import InputError
from analysis.runs import load


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def rows(path: Path) -> list[tuple]:
    frame = published.load(path).frame
    return [tuple(row) for row in frame[["algorithm", "task", "seed", "env_step", "episode_return"]].to_numpy()]


def test_tdmpc2(tmp_path: Path) -> None:
    write(tmp_path / "results" / "tdmpc2" / "dog-run.csv", "step,reward,seed\n0,4.5,2\n100000,7.5,2\n")
    write(tmp_path / "results" / "tdmpc2-pixels" / "dog-run.csv", "step,reward,seed\n0,1.0,2\n")
    write(tmp_path / "results" / "sac" / "mw-assembly.csv", "step,success,seed\n0,0.0,3\n100000,0.3,3\n")
    write(tmp_path / "results" / "sac" / "myo-hand-pose-hard.csv", "step,success,seed\n0,0.1,1\n")
    assert rows(tmp_path) == [
        ("SAC", "mw-assembly", 3, 0, 0.0), ("SAC", "mw-assembly", 3, 100_000, 30.0),
        ("SAC", "myo-pose-hard", 1, 0, 10.0),
        ("TD-MPC2", "dog-run", 2, 0, 4.5), ("TD-MPC2", "dog-run", 2, 100_000, 7.5),
    ]  # fmt: skip


def test_mrq_counts_decisions(tmp_path: Path) -> None:
    text = "-----\nEnv: Dmc-cup-catch\nTimestep\tSeed 0\t\tSeed 1\n0\t\t1.5\t\t2.5\n5000\t\t10.0\t20.0\n"
    text += "-----\nEnv: Dmc-visual-cup-catch\nTimestep\tSeed 0\n0\t\t9.0\n"
    text += "-----\nEnv: Gym-Ant-v4\nTimestep\tSeed 0\n5000\t5.0\n"
    write(tmp_path / "results" / "dmc_results.txt", text)
    assert rows(tmp_path) == [
        ("MR.Q", "cup-catch", 0, 0, 1.5), ("MR.Q", "cup-catch", 1, 0, 2.5),
        ("MR.Q", "cup-catch", 0, 10_000, 10.0), ("MR.Q", "cup-catch", 1, 10_000, 20.0),
        ("MR.Q", "gym:Ant-v4", 0, 5000, 5.0),  # where a decision is an env step
    ]  # fmt: skip


def test_tcrl(tmp_path: Path) -> None:
    header = ",env_step,episode,episode_reward,frame,step,env,seed,agent\n"
    write(tmp_path / "tcrl.csv", header + "0,1000.0,0.0,19.5,1000.0,500.0,reacher-hard,767,TCRL\n")
    assert rows(tmp_path / "tcrl.csv") == [("TCRL", "reacher-hard", 767, 1000, 19.5)]


def test_dcmpc_main_results_only(tmp_path: Path) -> None:
    text = "agent,env,env_step,episode_reward,seed\nDCWM,dog-run,25000.0,13.5,1\n"
    write(tmp_path / "results" / "data" / "dmc-dcmpc.csv", text)
    write(tmp_path / "results" / "data" / "ablations" / "latent-space.csv", text)
    assert rows(tmp_path) == [("DC-MPC", "dog-run", 1, 25_000, 13.5)]


def test_simba(tmp_path: Path) -> None:
    text = ",exp_name,env_name,seed,metric,env_step,value\n0,TD7,dog_trot,1,avg_return,25000,2.5\n"
    write(tmp_path / "results" / "td7.csv", text + "1,TD7,dog_trot,1,unique_coordinates,25000,9.0\n")
    found = published.load(tmp_path)
    assert rows(tmp_path) == [("TD7", "dog-trot", 1, 25_000, 2.5)]
    assert "TD7's labels" in found.remarks[0]


def test_success_takes_the_place_of_the_return_where_tasks_are_judged_by_it(tmp_path: Path) -> None:
    """In percent; a task that is judged by it has no row without it."""
    text = "agent,env,env_step,episode_reward,episode_success,seed\nDCWM,mw-assembly,0.0,85.1,0.4,2\n"
    write(tmp_path / "results" / "data" / "mw-dcmpc.csv", text)
    assert rows(tmp_path) == [("DC-MPC", "mw-assembly", 2, 0, 40.0)]
    lines = ["myo_pose,3,avg_return,0,7.0", "myo_pose,3,avg_success,0,0.5",
             "dog_run,3,avg_return,0,8.0", "dog_run,3,avg_success,0,0.0"]  # fmt: skip
    text = ",exp_name,env_name,seed,metric,env_step,value\n" + "".join(f"{i},sac,{x}\n" for i, x in enumerate(lines))
    assert rows(write(tmp_path / "simba" / "sac.csv", text)) == [
        ("SAC", "myo-pose", 3, 0, 50.0),
        ("SAC", "dog-run", 3, 0, 8.0),
    ]
    frame = pd.DataFrame(
        {"algorithm": "SAC", "task": ["mw-push", "dog-run"], "seed": 0, "env_step": 0, "episode_return": 5.0}
    )
    frame.to_parquet(tmp_path / "tidy.parquet")
    assert rows(tmp_path / "tidy.parquet") == [("SAC", "dog-run", 0, 0, 5.0)]


def test_two_runs_under_one_seed_stay_two(tmp_path: Path) -> None:
    text = "agent,env,env_step,episode_reward,seed\n" + "DCWM,dog-run,0,1.0,1\nDCWM,dog-run,0,3.0,1\n"
    assert published.load(write(tmp_path / "dmc.csv", text)).frame["seed"].nunique() == 2


def test_one_algorithm_of_two_sources_keeps_both_names(tmp_path: Path) -> None:
    frame = pd.DataFrame({
        "source": ["a", "b"], "algorithm": "SAC", "variant": "", "suite": "dmc", "task": "dog-run", "seed": 0,
        "env_step": 0, "episode_return": [1.0, 2.0],
    })  # fmt: skip
    frame.to_parquet(tmp_path / "tidy.parquet")
    assert [row[0] for row in rows(tmp_path / "tidy.parquet")] == ["SAC [a]", "SAC [b]"]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        published.load(tmp_path / "absent")
    write(tmp_path / "notes.csv", "a,b\n1,2\n")
    with pytest.raises(InputError, match="no results in a known format"):
        published.load(tmp_path)
    write(tmp_path / "bad.parquet", "PAR")
    with pytest.raises(InputError, match="not a Parquet file"):
        published.load(tmp_path / "bad.parquet")
    pd.DataFrame({"task": ["x"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no column 'algorithm'"):
        published.load(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no results in a known format"):
        published.load(tmp_path)  # a folder may hold other tables
    header = "agent,env,env_step,episode_reward,seed\n"
    for row in (
        "DCWM,dog-run,0,1.0,one\n",
        "DCWM,dog-run,0,much,1\n",
        "DCWM,dog-run,0,1.0,1,1\nDCWM,dog-run,0,1.0,1,1,1\n",
    ):
        damaged = write(tmp_path / "dmc.csv", header + row)
        for place in (damaged, tmp_path):
            with pytest.raises(InputError, match=r"published=.*dmc.csv: cannot be read"):
                published.load(place)


def test_an_unknown_algorithm_is_refused(tmp_path: Path) -> None:
    text = "agent,env,env_step,episode_reward,seed\nDCWM,dog-run,0,1.0,1\n"
    found = published.load(write(tmp_path / "dmc.csv", text))
    with pytest.raises(InputError, match="algorithms=TD9: not in the published results"):
        published.select(found, "TD9")


def test_remarks_are_of_the_formats_that_are_shown(tmp_path: Path) -> None:
    write(tmp_path / "dmc.csv", "agent,env,env_step,episode_reward,seed\nDCWM,dog-run,0,1.0,1\n")
    write(tmp_path / "sac" / "dog-run.csv", "step,reward,seed\n0,4.5,2\n")
    found = published.load(tmp_path)
    assert found.remarks == ["DC-MPC files count env steps", "tdmpc2 files count env steps"]
    assert published.select(found, None).remarks == ["DC-MPC files count env steps"]
    assert published.select(found, "SAC").remarks == ["tdmpc2 files count env steps"]


def test_nothing_to_compare_is_an_error(tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs, "td7", "walker-walk", env_steps=40_000)
    write_run(runs, "td7", "dog-run", env_steps=80_000)
    text = "agent,env,env_step,episode_reward,seed\nDCWM,walker-walk,100000,1.0,1\n"
    path = write(tmp_path / "dmc.csv", text)
    arguments = [f"runs={runs}", f"published={path}", f"out={tmp_path / 'out'}"]
    assert main(["compare", *arguments]) == 2
    assert capsys.readouterr().err == (
        f"error: published={path}: nothing to compare; runs: no task with own and published results at "
        "100k, 500k, 1M env steps (own runs end at 40k to 80k)\n"
    )
    write_study(runs)  # of two studies one can be compared
    assert main(["compare", *arguments]) == 0
    assert "runs: no task with own and published results" in capsys.readouterr().out


def test_compare_says_inside_above_or_below(tmp_path: Path, runs: Path) -> None:
    for seed, level in enumerate((100.0, 120.0)):
        write_run(runs, "tcrl", "walker-walk", seed, returns=[0.0, 1.0, 2.0, 3.0, 4.0, level])
    header = ",env_step,episode_reward,env,seed,agent,frame\n"
    lines = [f"0,{step},{value},walker-walk,{seed},TCRL,0" for seed, (step, value) in enumerate(
        [(101_000, 105.0), (101_000, 115.0), (101_000, 111.0)])]  # fmt: skip
    overlay = published.load(write(tmp_path / "tcrl.csv", header + "\n".join(lines) + "\n"))
    (study,), _ = build(load([runs]), [runs])
    (row,) = compare.compare(study, overlay).to_dict("records")
    assert (row["own"], row["published_low"], row["published_high"]) == (110.0, 105.0, 115.0)
    assert row["verdict"] == "inside" and row["same"] and row["env_step"] == 100_000
    early = published.Published(overlay.frame.assign(env_step=90_000), [])
    assert not len(compare.compare(study, early, (90_000,)))  # own values there are of 80k
    for path in runs.glob("*/evaluations.csv"):
        rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join(row for row in rows if not row.startswith("0,")))
    (later,), _ = build(load([runs]), [runs])
    assert not len(compare.compare(later, published.Published(overlay.frame.assign(env_step=10_000), []), (10_000,)))
    lower = overlay.frame.assign(episode_return=[1.0, 2.0, 3.0])
    assert compare.compare(study, published.Published(lower, []))["verdict"].tolist() == ["above"]
