"""The loader: from a file to runs, arms, budgets and a manifest."""

import dataclasses
import re

import pytest

import ablations
from ablations import __main__ as command_line
from ablations import sweep_file
from iqrl import config
from iqrl.errors import InputError

SWEEP = """
title: T
question: Q?
finding: F.
base: {agent.horizon: 3, train.precision: float32}
arms:
  a: {label: A}
  b: {agent.fsq_levels: [5, 3], preset: tiny}
  c: {label: C, agent: td3, agent.lr: 1e-4}
tasks: [walker-walk, dog-run]
seeds: 0..2
env_steps: {easy: 2000, dog-run: 5000}
lite:
  note: small
  preset: small
  tasks: [walker-walk]
  seeds: "7"
  env_steps: 1000
  eval.episodes: 2
  arms: {b: {agent.fsq_levels: [8], preset: null}, c: null}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(SWEEP)
    return path


def by_arm(sweep, arm):
    return [run for run in sweep.runs if run.arm == arm]


def test_arms_tasks_seeds_and_budgets(file):
    sweep = ablations.load(str(file))
    assert (sweep.name, sweep.scale, sweep.note, sweep.figure) == ("mine", "full", "", "arms")
    assert [(arm.name, arm.label, arm.agent) for arm in sweep.arms] == [
        ("a", "A", "iqrl"),
        ("b", "b", "iqrl"),
        ("c", "C", "td3"),
    ]
    assert len(sweep.runs) == 3 * 2 * 3
    places = [(run.config.task, run.config.seed, run.config.train.env_steps) for run in by_arm(sweep, "a")]
    assert places == [(t, s, b) for t, b in (("walker-walk", 2000), ("dog-run", 5000)) for s in range(3)]


def test_an_arm_is_the_base_and_its_delta(file):
    sweep = ablations.load(str(file))
    a, b, c = (by_arm(sweep, name)[0].config for name in "abc")
    assert (a.settings.horizon, a.settings.fsq_levels, a.settings.latent_dim) == (3, [8, 8], 512)
    assert (b.settings.horizon, b.settings.fsq_levels, b.preset, b.settings.latent_dim) == (3, [5, 3], "tiny", 8)
    assert c.agent.name == "td3" and c.settings.lr == 1e-4  # and the base's agent.horizon is not TD3's
    assert all(run.words == ("train.precision=float32",) for run in sweep.runs)
    assert [run.config.settings.latent_dim for run in by_arm(sweep, "a")] == [512] * 3 + [1024] * 3  # dog's own


def test_lite_changes_what_it_says_and_no_more(file):
    sweep = ablations.load(str(file), "lite")
    assert (sweep.name, sweep.scale, sweep.note) == ("mine-lite", "lite", "small")
    assert [arm.name for arm in sweep.arms] == ["a", "b"]
    assert [(r.config.task, r.config.seed, r.config.train.env_steps) for r in sweep.runs] == [
        ("walker-walk", 7, 1000)
    ] * 2
    a, b = (run.config for run in sweep.runs)
    assert (a.preset, a.settings.latent_dim, a.settings.horizon, a.evaluate.episodes) == ("small", 64, 3, 2)
    assert (b.preset, b.settings.latent_dim, b.settings.fsq_levels) == ("small", 64, [8])


def test_a_run_is_the_one_that_the_command_line_makes(file):
    run = by_arm(ablations.load(str(file)), "b")[4]
    words = "task=dog-run seeds=1 agent.horizon=3 agent.fsq_levels=[5,3] preset=tiny train.env_steps=5000".split()
    assert config.resolve([("", config.parse_words(words))])[0][0].directory_name == run.name


def test_manifest(file):
    manifest = ablations.load(str(file), "lite").manifest()
    runs = manifest.pop("runs")
    assert manifest == {
        "name": "mine-lite",
        "title": "T",
        "question": "Q?",
        "finding": "F.",
        "figure": "arms",
        "scale": "lite",
        "note": "small",
        "arms": [{"name": "a", "label": "A", "agent": "iqrl"}, {"name": "b", "label": "b", "agent": "iqrl"}],
    }
    assert runs[0].pop("run").startswith("iqrl-walker-walk-s7-")
    assert runs[0] == {"arm": "a", "agent": "iqrl", "task": "walker-walk", "seed": 7, "env_steps": 1000}


def test_how_it_is_shown_is_in_the_manifest(file):
    display = "display: {baseline: b, arms: [b, c], labels: {dog-run: Dog}, ylim: {tasks: [0, null]}}"
    file.write_text(file.read_text() + display + "\n")
    said = ablations.load(str(file)).manifest()["display"]
    assert said == {"baseline": "b", "arms": ["b", "c"], "labels": {"dog-run": "Dog"}, "ylim": {"tasks": [0, None]}}
    lite = ablations.load(str(file), "lite").manifest()["display"]  # without arm c and dog-run
    assert lite == {"baseline": "b", "arms": ["b"], "labels": {}, "ylim": {"tasks": [0, None]}}
    from analysis.display import from_manifest

    assert from_manifest(said).ylim == {"tasks": (0, None)}


@pytest.mark.parametrize(
    ("display", "message"),
    [
        ("{colour: red}", "expected a mapping of baseline, arms, tasks, labels, ylim"),
        ("{baseline: x}", "display.baseline: x: not in this sweep"),
        ("{arms: b}", "display.arms=b: expected a list of names"),
        ("{tasks: [dog-walk]}", "display.tasks: dog-walk: not in this sweep"),
        ("{labels: [b]}", "expected a mapping"),
        ("{ylim: {tasks: 3}}", "display.ylim.tasks=3: expected"),
    ],
)
def test_a_display_of_something_else_is_refused(file, display, message):
    file.write_text(file.read_text() + f"display: {display}\n")
    with pytest.raises(InputError, match=re.escape(message)):
        ablations.load(str(file))


def test_runs_that_arms_share_are_executed_once(tmp_path):
    path = tmp_path / "shared.yaml"
    arms = "{a: {}, b: {agent.nstep: 1}, c: {agent.nstep: 3}}"
    path.write_text(
        f"{{title: t, question: q, finding: f, arms: {arms}, tasks: [walker-walk, dog-run], seeds: 0, env_steps: 9}}"
    )
    sweep = ablations.load(str(path))
    assert len(sweep.runs) == 6
    assert len(sweep.unique_runs()) == 4  # walker-walk: a = b; dog-run, whose own is N = 3: a = c
    assert {run.name for run in sweep.runs} == {run.name for run in sweep.unique_runs()}


def test_the_same_default_run_serves_many_sweeps():
    names = {
        name: {run.name for run in by_arm(ablations.load(name, "lite"), arm)}
        for name, arm in (
            ("fsq_levels", "l8_8"),
            ("horizon", "h5"),
            ("quantizer", "fsq"),
            ("paper_or_release", "paper"),
            ("latent_dim", "d512"),
            ("value", "default"),
            ("heads", "plain"),
        )
    }
    assert len(set(map(frozenset, names.values()))) == 1 and all(len(runs) == 3 for runs in names.values())


def test_ten_thousand_runs_resolve_each_arm_and_task_once(tmp_path, monkeypatch):
    path = tmp_path / "big.yaml"
    arms = ", ".join(f"h{h}: {{agent.horizon: {h}}}" for h in range(1, 21))
    path.write_text(
        f"{{title: t, question: q, finding: f, arms: {{{arms}}},"
        " tasks: [walker-walk, walker-run, cup-catch, dog-run, dog-walk], seeds: 0..99, env_steps: 1000}"
    )
    calls = []
    resolve = config.resolve
    monkeypatch.setattr(config, "resolve", lambda layers: calls.append(1) or resolve(layers))
    sweep = ablations.load(str(path))
    assert len(sweep.unique_runs()) == 10_000
    assert len(calls) == 20 * 5 + 1  # and the base alone


TRANSFER = """
title: T
question: Q?
finding: F.
base: {preset: tiny}
arms:
  tuned: {start_from: {arm: scratch, task: walker-walk}, tasks: [walker-run]}
  scratch: {}
tasks: [walker-walk, walker-run]
seeds: 0..1
env_steps: 1000
"""


def test_runs_start_from_a_run_of_the_same_seed_which_comes_first(tmp_path):
    path = tmp_path / "transfer.yaml"
    path.write_text(TRANSFER)
    sweep = ablations.load(str(path))
    sources = {run.config.seed: run.name for run in by_arm(sweep, "scratch") if run.config.task == "walker-walk"}
    tuned = by_arm(sweep, "tuned")
    assert [run.after for run in tuned] == [sources[0], sources[1]]
    assert [run.config.settings.init_from for run in tuned] == [sources[0], sources[1]]
    order = [run.name for run in sweep.unique_runs()]
    assert all(order.index(run.after) < order.index(run.name) for run in tuned)
    assert len(order) == 6
    # What the source's result depends on, this run's identity depends on.
    path.write_text(TRANSFER.replace("{preset: tiny}", "{preset: tiny, agent.horizon: 3}"))
    assert not {run.name for run in ablations.load(str(path)).runs} & set(order)
    # And runs of several seeds still train side by side.
    assert len({config.pack_key(run.config) for run in tuned}) == 1


def test_starting_from_a_run_changes_the_identity_and_nothing_else(tmp_path):
    path = tmp_path / "transfer.yaml"
    path.write_text(TRANSFER)
    sweep = ablations.load(str(path))
    tuned, scratch = by_arm(sweep, "tuned")[0].config, by_arm(sweep, "scratch")[2].config
    assert scratch.task == tuned.task and tuned.identity != scratch.identity
    assert (
        dataclasses.replace(tuned, settings=dataclasses.replace(tuned.settings, init_from="")).identity
        == scratch.identity
    )


@pytest.mark.parametrize("name", ablations.names())
def test_every_sweep_loads_at_both_scales(name):
    full, lite = ablations.load(name, "full"), ablations.load(name, "lite")
    assert len(full.arms) >= 2 and len(full.unique_runs()) > len(lite.unique_runs()) > 0
    assert lite.note
    assert {full.name, lite.name} in ({name, f"{name}-lite"}, {name, f"{name}-full"})


def test_the_figures_that_sweeps_may_name_are_there():
    analysis = pytest.importorskip("analysis.figures")
    assert set(sweep_file.FIGURES) <= set(analysis.FIGURES)


def test_a_sweep_that_is_not_there_is_named():
    with pytest.raises(InputError, match="sweep=fsq_level: no such sweep; did you mean fsq_levels"):
        ablations.load("fsq_level")
    with pytest.raises(InputError, match="sweep=/nowhere/x.yaml: no such sweep"):
        ablations.load("/nowhere/x.yaml")
    with pytest.raises(InputError, match="scale=tiny: expected one of full, lite"):
        ablations.load("horizon", "tiny")


def test_an_agents_name_stands_for_one_file(tmp_path):
    """Tables and figures go by it."""
    for name in ("one", "other"):
        text = "from baselines.td3 import TD3\nfrom iqrl.agent import register\n"
        (tmp_path / f"{name}.py").write_text(text + "@register('mine_in_arms')\nclass Mine(TD3):\n    pass\n")
    arms = ", ".join(f"{name}: {{agent: {tmp_path / name}.py}}" for name in ("one", "other"))
    (tmp_path / "s.yaml").write_text(
        f"{{title: T, question: Q, finding: F, arms: {{{arms}}}, tasks: [walker-walk], seeds: 0, env_steps: 1000}}"
    )
    with pytest.raises(InputError, match=r"arm other: .*other.py registers 'mine_in_arms', as another arm's file does"):
        ablations.load(str(tmp_path / "s.yaml"))


@pytest.mark.parametrize("name", ["runs", "top%j"])
def test_names_that_a_sweep_cannot_have(tmp_path, name):
    text = "{title: T, question: Q, finding: F, arms: {a: {}}, tasks: [walker-walk], seeds: 0, env_steps: 1000}"
    (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(InputError, match="is no name for a sweep"):
        ablations.load(str(tmp_path / f"{name}.yaml"))


def test_what_an_arm_of_another_agent_lacks_is_said(tmp_path, capsys):
    """It has no keys of the base's agent, a shorter warm-up say."""
    text = """
title: T
question: Q?
finding: F.
base: {agent: td3, agent.warmup_decisions: 500, agent.batch_size: 64, preset: tiny}
arms: {td3: {}, other: {agent: iqrl}, own: {agent: td7, agent.warmup_decisions: 500, agent.batch_size: 32}}
tasks: [walker-walk]
seeds: "0"
env_steps: 4000
"""
    (tmp_path / "noise.yaml").write_text(text)
    sweep = ablations.load(str(tmp_path / "noise.yaml"))
    said = "other: another agent, without the base's agent.warmup_decisions, agent.batch_size"
    assert sweep.remarks() == [said]
    assert command_line.main(["show", str(tmp_path / "noise.yaml")]) == 0
    assert f"note      {said}" in capsys.readouterr().out
