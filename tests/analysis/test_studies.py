"""Which runs count: nothing missing, short, odd or doubled is used without being named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_manifest, write_run, write_study

from analysis import style
from analysis.building import build
from analysis.display import Display
from analysis.errors import InputError
from analysis.runs import load
from analysis.studies import Problem, Study


def studies(runs: Path, **options) -> dict[str, Study]:
    built, _ = build(load([runs]), [runs], **options)
    return {study.name: study for study in built}


def kinds(study: Study) -> dict[str, str]:
    return {problem.run: problem.kind for problem in study.problems}


def test_a_complete_sweep_has_no_problems(runs: Path) -> None:
    write_study(runs, seeds=3)
    study = studies(runs)["quickstart"]
    assert study.problems == []
    assert [arm.name for arm in study.arms] == ["iqrl", "td3"]
    assert study.seeds == (3, 3) and study.mark == 100_000
    assert study.grid("iqrl").tolist() == [0, 20_000, 40_000, 60_000, 80_000, 100_000]


def test_everything_that_can_be_wrong_is_named_and_not_used(tmp_path: Path) -> None:
    """A missing seed, a NaN, a run stopped half-way, another action repeat, a run in two folders."""
    runs, copies = tmp_path / "runs", tmp_path / "copies"
    made = write_study(runs, agents=("iqrl",), tasks=("walker-walk",), seeds=6)
    missing, nan, half, odd, doubled, good = made
    shutil.rmtree(missing)
    text = (nan / "evaluations.csv").read_text().splitlines(keepends=True)
    text[35] = "60000,4,nan,1000\n"
    (nan / "evaluations.csv").write_text("".join(text))
    (nan / "DONE").unlink()
    shutil.rmtree(half)
    write_run(runs, "iqrl", "walker-walk", 2, stop_at=40_000, end="interrupted")
    config = (odd / "config.yaml").read_text()
    (odd / "config.yaml").write_text(config + "action_repeat: 4\n")
    copies.mkdir()
    shutil.copytree(doubled, copies / doubled.name)
    (built,), _ = build(load([runs, copies]), [runs, copies])
    assert kinds(built) == {
        missing.name: "missing", nan.name: "nan", half.name: "short", odd.name: "action repeat",
        doubled.name: "duplicate",
    }  # fmt: skip
    effects = {problem.run: problem.effect for problem in built.problems}
    assert effects[nan.name] == effects[odd.name] == effects[doubled.name] == "left out"
    assert effects[half.name].startswith("cuts iqrl there")
    assert set(built.members["run"]) == {half.name, doubled.name, good.name}
    assert built.members["run"].is_unique
    assert built.mark == 40_000 and built.grid("iqrl").max() == 40_000


def test_short_runs_can_be_left_out_instead(runs: Path) -> None:
    made = write_study(runs, agents=("iqrl",), tasks=("walker-walk",), seeds=3)
    shutil.rmtree(made[1])
    write_run(runs, "iqrl", "walker-walk", 1, stop_at=40_000, end="running")
    assert studies(runs, short="cut")["quickstart"].mark == 40_000
    study = studies(runs, short="drop")["quickstart"]
    assert study.mark == 100_000 and kinds(study) == {made[1].name: "short"}
    assert len(study.members) == 2


def test_of_two_folders_the_more_complete_one_counts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    write_run(tmp_path / "a", stop_at=40_000, end="interrupted")
    write_run(tmp_path / "b")
    folders = [tmp_path / "a", tmp_path / "b"]
    (study,), _ = build(load(folders), folders)
    assert study.members["folder"].tolist() == [str(tmp_path / "b")]
    assert [problem.kind for problem in study.problems] == ["duplicate"]


def test_of_two_folders_the_failed_one_counts_last(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    write_run(tmp_path / "a", stop_at=60_000, end="failed", precision="float32")
    write_run(tmp_path / "b", stop_at=40_000, end="running")
    folders = [tmp_path / "a", tmp_path / "b"]
    (study,), _ = build(load(folders), folders)
    assert study.members["folder"].tolist() == [str(tmp_path / "b")]
    assert [problem.kind for problem in study.problems] == ["duplicate", "short"]
    assert study.problems[0].detail.endswith(" (float32, the other bfloat16)")


def test_a_sweep_in_two_folders_is_one(tmp_path: Path) -> None:
    """Seed 0 from one cluster, 1 and 2 from another; seed 2 is missing in both."""
    folders = [tmp_path / "a", tmp_path / "b"]
    arms = [{"name": "x", "label": "X", "agent": "iqrl"}]
    for folder, seeds in zip(folders, ((0,), (1, 2)), strict=True):
        made = [(write_run(folder, seed=seed), seed) for seed in seeds]
        write_manifest(folder, "s", arms, [(run.name, "x", "walker-walk", seed, 100_000) for run, seed in made])
    shutil.rmtree(made[-1][0])
    (study,), _ = build(load(folders), folders)
    assert study.members["seed"].tolist() == [0, 1] and kinds(study) == {made[-1][0].name: "missing"}
    write_manifest(folders[1], "s", [*arms, {"name": "y", "label": "Y", "agent": "td3"}], [])
    with pytest.raises(InputError, match="sweep=s: two of the given folders have it with different arms: x; and x, y"):
        build(load(folders), folders)


def test_a_copy_under_another_name_is_no_other_run(runs: Path) -> None:
    """Neither a copy as complete, nor one that got further, takes the run out of its sweep."""
    made = write_study(runs, agents=("iqrl",), tasks=("walker-walk",), seeds=3)
    shutil.copytree(made[0], runs / "backup")
    made[1].rename(runs / "a-finished-copy")
    write_run(runs, "iqrl", "walker-walk", 1, stop_at=40_000, end="interrupted")
    (study,), problems = build(load([runs]), [runs])
    assert study.members["run"].tolist() == [run.name for run in made] and not problems
    assert study.mark == 100_000
    assert study.members["key"].tolist() == [str(made[0]), str(runs / "a-finished-copy"), str(made[2])]
    assert kinds(study) == {made[0].name: "duplicate", made[1].name: "duplicate"}


def test_a_value_long_before_the_compared_step_is_named(runs: Path) -> None:
    write_run(runs, "iqrl", every=50_000)
    write_run(runs, "td3", every=20_000, stop_at=80_000, end="interrupted")
    study = studies(runs)["runs"]
    assert study.mark == 80_000
    assert str(study.problems[0]) == (
        "iqrl: old value: last evaluated at 50000, compared at 80000 (that of env step 50000 counts)"
    )
    assert studies(runs, at=52_000)["runs"].problems[0].run == "td3"  # 40k for 52k
    assert [problem.kind for problem in studies(runs, at=50_000)["runs"].problems] == ["old value", "short"]


def test_an_arm_of_unequal_evaluations_is_named(runs: Path) -> None:
    for seed in range(3):
        write_run(runs, seed=seed, episodes=3 if seed else 10, every=50_000 if seed else 20_000)
    assert list(map(str, studies(runs)["runs"].problems)) == [
        "iqrl: remark: runs of more than one number of evaluation episodes: 3 (2), 10 (1) (counted)",
        "iqrl: remark: runs of more than one interval of evaluations: 50000 (2), 20000 (1) (counted)",
    ]


def test_an_arm_of_two_precisions_or_commits_is_named(runs: Path) -> None:
    for seed in range(3):
        write_run(runs, seed=seed, precision="float32" if seed else "bfloat16", commit="a" * 20 if seed else "b" * 20)
    study = studies(runs)["runs"]
    assert len(study.members) == 3
    assert list(map(str, study.problems)) == [
        "iqrl: remark: runs of more than one precision: float32 (2), bfloat16 (1) (counted)",
        "iqrl: remark: runs of more than one commit: aaaaaaaaaaaa (2), bbbbbbbbbbbb (1) (counted)",
    ]


def test_runs_of_no_sweep_are_grouped_by_what_differs(runs: Path) -> None:
    for seed in range(2):
        write_run(runs, "iqrl", "walker-walk", seed, horizon=5)
        write_run(runs, "iqrl", "walker-walk", seed, horizon=3)
        write_run(runs, "td3", "walker-walk", seed)
    study = studies(runs)["runs"]
    assert [arm.label for arm in study.arms] == ["iqrl (horizon=3)", "iqrl (horizon=5)", "td3"]
    assert study.problems == [] and len(study.members) == 6


def test_a_preset_is_named_without_what_it_sets(runs: Path) -> None:
    """What differs between runs of one preset is named all the same."""
    write_run(runs, "mrq", batch_size=256)
    write_run(runs, "mrq", preset="small", batch_size=128, horizon=3)
    write_run(runs, "mrq", preset="small", batch_size=128, horizon=5)
    arms = studies(runs)["runs"].arms
    assert [arm.label for arm in arms] == [
        "mrq (default, horizon=default)", "mrq (small, horizon=3)", "mrq (small, horizon=5)",
    ]  # fmt: skip
    assert style.label(arms[1]) == "MR.Q (small, horizon=3)"


def test_settings_that_follow_the_task_make_no_arms(runs: Path) -> None:
    write_run(runs, "iqrl", "walker-walk", n_step=1)
    write_run(runs, "iqrl", "dog-run", n_step=3)
    assert [arm.label for arm in studies(runs)["runs"].arms] == ["iqrl"]


def test_a_setting_that_some_runs_do_not_have_is_at_its_default_there(runs: Path) -> None:
    write_run(runs, "mrq")
    write_run(runs, "mrq", released_gumbel=True)
    labels = [arm.label for arm in studies(runs)["runs"].arms]
    assert labels == ["mrq (released_gumbel=True)", "mrq (released_gumbel=default)"]


def test_a_seed_that_one_task_lacks_is_named(runs: Path) -> None:
    for seed in range(3):
        write_run(runs, "iqrl", "walker-walk", seed)
    write_run(runs, "iqrl", "dog-run", 0)
    problems = studies(runs)["runs"].problems
    assert [problem.run for problem in problems] == ["iqrl on dog-run, seed 1", "iqrl on dog-run, seed 2"]
    assert [problem.detail for problem in problems] == [
        "no run of seed 1, which iqrl has on other tasks",
        "no run of seed 2, which iqrl has on other tasks",
    ]


def test_a_run_may_be_in_several_sweeps_and_listed_runs_are_not_unlisted(runs: Path) -> None:
    run = write_run(runs)
    other = write_run(runs, seed=1)
    arms = [{"name": "a", "label": "A", "agent": "iqrl"}]
    for name in ("first", "second"):
        write_manifest(runs, name, arms, [(run.name, "a", "walker-walk", 0, 100_000)])
    built = studies(runs)
    assert set(built) == {"first", "second", "runs"}
    assert built["runs"].members["run"].tolist() == [other.name]
    assert set(studies(runs, sweep="second")) == {"second"}


def test_seeds_that_start_from_runs_of_their_own_seed_are_one_arm(runs: Path) -> None:
    members = []
    for seed in range(3):
        of_walk, of_stand = (f"iqrl-walker-{task}-s{seed}-{seed:08x}" for task in ("walk", "stand"))
        for arm, source in (("tuned", of_walk), ("other", of_stand)):
            run = write_run(runs, "iqrl", "walker-run", seed, init_from=source)
            members.append((run.name, arm, "walker-run", seed, 100_000))
    arms = [{"name": name, "label": name, "agent": "iqrl"} for name in ("tuned", "other")]
    write_manifest(runs, "transfer", arms, members)
    study = studies(runs)["transfer"]
    assert study.problems == [] and len(study.members) == 6
    shutil.rmtree(runs / "sweeps")
    study = studies(runs)["runs"]  # the same runs without the sweep that tells the arms
    assert study.problems == [] and study.seeds == (3, 3)
    assert {arm.label for arm in study.arms} == {
        "iqrl (init_from=iqrl-walker-stand)", "iqrl (init_from=iqrl-walker-walk)",
    }  # fmt: skip


def test_where_an_agents_file_lay_and_the_name_of_equal_values_make_no_other_arm(runs: Path) -> None:
    """The same identities but for the seed; a file that has changed is told, as a changed commit is."""
    for seed in range(3):
        first = {"preset": "mine", "profile": "mine"} if seed == 0 else {"profile": "default"}
        run = write_run(runs, "ddpg", seed=seed, source=f"/jobs/{seed // 2}/code/agents/ddpg.py", **first)
        provenance = json.loads((run / "provenance.json").read_text())
        provenance["sessions"][-1]["agent_file"] = "0123456789abcdef" if seed else "fedcba9876543210"
        (run / "provenance.json").write_text(json.dumps(provenance))
    write_manifest(
        runs, "mine", [{"name": "ddpg", "label": "DDPG", "agent": "ddpg"}],
        [(run.name, "ddpg", "walker-walk", i, 100_000) for i, run in enumerate(sorted(runs.glob("ddpg-*")))],
    )  # fmt: skip
    study = studies(runs)["mine"]
    assert len(study.members) == 3
    assert [str(problem) for problem in study.problems] == [
        "DDPG: remark: runs of more than one version of the agent's file: 0123456789ab (2), fedcba987654 (1) (counted)"
    ]


def test_no_such_sweep(runs: Path) -> None:
    write_study(runs)
    with pytest.raises(InputError, match="sweep=quikstart: no such sweep in the given runs; there are: quickstart"):
        studies(runs, sweep="quikstart")


def test_nothing_to_show(runs: Path) -> None:
    with pytest.raises(InputError, match="no run with an evaluation"):
        studies(runs)


ROW = {"run": "r", "arm": "a", "agent": "iqrl", "task": "walker-walk", "seed": 0, "env_steps": 1000}


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ('{"name": "broken"', "Expecting ',' delimiter: line 1 column 18 (char 17)"),
        ("[]", "the manifest is not a mapping"),
        ({"arms": None}, "the manifest: 'arms' is not of type list"),
        ({"runs": 5}, "the manifest: 'runs' is not of type list"),
        ({"arms": ["a"]}, "arms[0] is not a mapping"),
        ({"arms": [{"name": "a"}]}, "arms[0]: no key 'agent'"),
        ({"arms": 2 * [{"name": "a", "agent": "iqrl"}]}, "two arms of one name among a, a"),
        (
            {"runs": [ROW, {"run": "r", "agent": "iqrl", "task": "walker-walk", "env_steps": 1000}]},
            "runs[1]: no key 'arm'",
        ),
        ({"runs": [ROW | {"seed": None}]}, "runs[0]: 'seed' is not of type int"),
        ({"runs": [ROW | {"arm": "b"}]}, "runs[0]: arm 'b' is not among its arms"),
        ({"display": {"colour": "red"}}, "'display' is not a mapping of arms, baseline, labels, tasks, ylim"),
        ({"display": {"ylim": {"tasks": 3}}}, "'display' has a value of another type"),
        ({"name": "runs"}, "name 'runs' is that of the runs of no sweep"),
    ],
)
def test_a_damaged_manifest_is_named(runs: Path, fields: str | dict, detail: str) -> None:
    whole = {"name": "broken", "arms": [{"name": "a", "agent": "iqrl"}], "runs": [ROW]}
    text = fields if isinstance(fields, str) else json.dumps(whole | fields)
    (runs / "sweeps").mkdir()
    (runs / "sweeps" / "broken.json").write_text(text)
    run = write_run(runs)
    (study,), problems = build(load([runs]), [runs])
    assert study.members["run"].tolist() == [run.name]
    assert problems == [Problem("unreadable", "sweeps/broken.json", detail, "left out")]
    with pytest.raises(InputError, match="sweep=broken: no such sweep.*; sweeps/broken.json: unreadable: "):
        studies(runs, sweep="broken")


def test_arms_are_not_compared_beyond_what_all_have_reached(runs: Path) -> None:
    write_run(runs, "iqrl", env_steps=100_000)
    write_run(runs, "td3", env_steps=40_000)
    assert studies(runs, at=20_000)["runs"].problems == []
    study = studies(runs, at=100_000)["runs"]
    assert study.mark == 40_000
    assert list(map(str, study.problems)) == [
        "at=100000: not reached: the last common env step of td3 is 40000 (compared at 40000)"
    ]


def test_what_concerns_every_number_is_named_first(runs: Path) -> None:
    write_run(runs, "iqrl", every=50_000)
    write_run(runs, "td3", every=20_000, stop_at=80_000, end="interrupted")
    named = [problem.kind for problem in studies(runs, at=100_000)["runs"].problems]
    assert named == ["not reached", "old value", "short"]


def test_lite_scale_and_note_are_carried(runs: Path) -> None:
    write_study(runs, note="narrow networks (preset=small)", scale="lite")
    assert studies(runs)["quickstart"].note == "narrow networks (preset=small); scale: lite"


def test_each_run_gives_its_latest_evaluation_at_or_before_a_step(runs: Path) -> None:
    write_run(runs, seed=0, every=20_000, returns=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    write_run(runs, seed=1, every=50_000, returns=[0.0, 10.0, 20.0])
    study = studies(runs)["runs"]
    values = study.runs("iqrl", "walker-walk", "mean_return", np.array([0, 30_000, 50_000, 99_999, 100_000]))
    assert values.tolist() == [[0.0, 1.0, 2.0, 4.0, 5.0], [0.0, 0.0, 10.0, 10.0, 20.0]]
    assert study.grid("iqrl").tolist() == [0, 50_000, 100_000]


def test_a_seed_counts_once(runs: Path) -> None:
    first = write_run(runs, seed=0, every=20_000)
    write_run(runs, seed=0, every=50_000, stop_at=50_000, end="interrupted")
    study = studies(runs)["runs"]
    assert study.members["run"].tolist() == [first.name]
    assert [problem.kind for problem in study.problems] == ["duplicate"]


def test_gymnasium_tasks_have_no_known_scale(runs: Path) -> None:
    write_run(runs, task="gym:CartPole-v1")
    write_run(runs, task="walker-walk")
    study = studies(runs)["runs"]
    assert study.tasks == ["gym:CartPole-v1", "walker-walk"] and study.shared_tasks() == ["walker-walk"]


def test_tasks_of_the_comparison_are_those_that_all_arms_have(runs: Path) -> None:
    write_run(runs, "iqrl", "walker-walk")
    write_run(runs, "iqrl", "dog-run")
    write_run(runs, "td3", "walker-walk")
    assert studies(runs)["runs"].shared_tasks() == ["walker-walk"]


@pytest.mark.parametrize(("task", "seed"), [("walker-walk", 0), ("cheetah-run", 1)])
def test_a_manifest_does_not_rename_a_run(runs: Path, task: str, seed: int) -> None:
    right, wrong = write_run(runs, task="walker-walk", seed=5), write_run(runs, task="cheetah-run", seed=0)
    rows = [(right.name, "a", "walker-walk", 5, 100_000), (wrong.name, "a", task, seed, 100_000)]
    write_manifest(runs, "s", [{"name": "a", "label": "A", "agent": "iqrl"}], rows)
    (study,), _ = build(load([runs]), [runs], "s")
    assert study.members["run"].tolist() == [right.name]
    (problem,) = (p for p in study.problems if p.run == wrong.name)
    assert str(problem) == (
        f"{wrong.name}: configuration: cheetah-run, seed 0, by its own configuration; {task}, seed {seed} by the sweep "
        "(left out)"
    )


def test_arms_and_tasks_are_chosen_ordered_and_named(runs: Path) -> None:
    """By options, and before these by the sweep's file; colours stay those of the whole sweep."""
    said = {"baseline": "td3", "labels": {"walker-walk": "Walker", "td3": "their TD3"}, "arms": ["td3", "iqrl"]}
    made = write_study(runs, agents=("iqrl", "tcrl", "td3"), seeds=2, display=said)
    shutil.rmtree(made[5])  # an arm that is not shown lacks it
    study = studies(runs)["quickstart"]
    assert [(arm.name, arm.label) for arm in study.arms] == [("td3", "their TD3"), ("iqrl", "iqrl")]
    assert study.reference.name == "td3" and study.problems == [] and study.task_label("walker-walk") == "Walker"
    assert [arm.name for arm in study.listed] == ["iqrl", "tcrl", "td3"]
    wanted = Display(baseline="iqrl", arms=("iqrl", "tcrl"), tasks=("walker-walk",), labels={"iqrl": "Ours"})
    study = studies(runs, display=wanted)["quickstart"]
    assert [(arm.name, arm.label) for arm in study.arms] == [("iqrl", "Ours"), ("tcrl", "tcrl")]
    assert study.tasks == ["walker-walk"] and study.reference.name == "iqrl" and len(study.members) == 4
    study = studies(runs, display=Display(tasks=("walker-walk", "cartpole-swingup")))["quickstart"]
    assert study.tasks == ["walker-walk", "cartpole-swingup"] == study.shared_tasks()


def test_a_run_that_has_just_started_does_not_set_the_compared_step(runs: Path) -> None:
    """But where none is further, all count."""
    for agent in ("iqrl", "tcrl"):
        write_run(runs, agent, seed=0)
    just = write_run(runs, "tcrl", seed=1, stop_at=0, end="running")
    study = studies(runs)["runs"]
    assert study.mark == 100_000 and len(study.members) == 2
    assert str(next(p for p in study.problems if p.run == just.name)) == (
        f"{just.name}: short: only the evaluation before training yet (left out)"
    )
    (folder := runs / "all").mkdir()
    for seed in range(2):
        write_run(folder, seed=seed, stop_at=0, end="running")
    assert studies(folder)["runs"].mark == 0 and len(studies(folder)["runs"].members) == 2


def test_equal_returns_of_two_seeds_are_named(runs: Path) -> None:
    """A constant return may well be that of several seeds; a whole curve is not."""
    for seed, last in enumerate((5.0, 5.0, 6.0)):
        write_run(runs, "iqrl", seed=seed, returns=[0.0, 1.0, 2.0, 3.0, 4.0, last])
        write_run(runs, "td3", seed=seed, returns=[0.0, 1000.0, 1000.0, 1000.0, 1000.0, 1000.0])
    assert list(map(str, studies(runs)["runs"].problems)) == [
        "iqrl: identical: the returns of seeds 0, 1 on walker-walk are the same throughout: is it one run? (counted)"
    ]


@pytest.mark.parametrize("last", [5.0, 6.0])
def test_copies_of_one_run_that_differ_are_named(tmp_path: Path, last: float) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, final in zip(folders, (5.0, last), strict=True):
        folder.mkdir()
        write_run(folder, returns=[0.0, 1.0, 2.0, 3.0, 4.0, final])
    (study,), _ = build(load(folders), folders)
    (problem,) = study.problems
    assert problem.detail.endswith("; their returns differ from env step 100000 on") == (last != 5.0)


def test_arms_of_no_sweep_are_chosen_too(runs: Path) -> None:
    for agent in ("iqrl", "td3"):
        write_run(runs, agent)
    assert [arm.name for arm in studies(runs, display=Display(arms=("td3",)))["runs"].arms] == ["td3"]


@pytest.mark.parametrize(
    ("display", "message"),
    [
        (Display(baseline="mrq"), "baseline=mrq: quickstart has no such name; expected one of iqrl, td3"),
        (Display(baseline="iqrl", arms=("td3",)), "baseline=iqrl: quickstart has no such name; expected one of td3"),
        (Display(tasks=("dog-run",)), "tasks=dog-run: quickstart has no such name; expected one of cartpole-swingup"),
        (Display(labels={"x": "y"}), "labels=x: quickstart has no such name"),
    ],
)
def test_a_name_that_a_study_has_not_is_refused(runs: Path, display: Display, message: str) -> None:
    write_study(runs)
    with pytest.raises(InputError, match=message):
        studies(runs, display=display)


def test_a_run_that_never_learned_is_named(runs: Path) -> None:
    made = write_study(runs, agents=("iqrl",), tasks=("walker-walk",), seeds=3)
    timing = made[1] / "timing.csv"
    header, *lines = timing.read_text().splitlines()
    timing.write_text("\n".join([header, *(line.rpartition(",")[0] + ",0" for line in lines)]) + "\n")
    done = json.loads((made[1] / "DONE").read_text())
    done["files"]["timing.csv"] = timing.stat().st_size
    (made[1] / "DONE").write_text(json.dumps(done))
    study = studies(runs)["quickstart"]
    assert kinds(study) == {made[1].name: "untrained"} and len(study.members) == 3


def test_of_two_runs_of_one_seed_the_newer_counts(tmp_path: Path) -> None:
    """Of an agent's file that was edited, whose runs are others with every edit."""
    runs = [write_run(tmp_path, "iqrl", "walker-walk", seed, strength=0.5) for seed in range(4)]
    names = []
    for number, run in enumerate(runs):
        old = run.rename(run.with_name(f"{run.name[:-8]}b{number}000000"))
        new = shutil.copytree(old, run.with_name(f"{run.name[:-8]}{'f' if number % 2 else 'a'}{number}000000"))
        provenance = json.loads((new / "provenance.json").read_text())
        for folder, day in ((old, 20), (new, 21)):
            own = {**provenance, "identity": folder.name[-8:] * 8, "created": f"2026-11-{day}T08:00:00+00:00"}
            (folder / "provenance.json").write_text(json.dumps(own))
        names.append(new.name)
    (study,), _ = build(load([tmp_path]), [tmp_path])
    assert sorted(study.members["run"]) == sorted(names)
