"""`python -m ablations`: what it says of right and of broken sweeps."""

import re

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

import ablations
from ablations import __main__ as command
from ablations import check, hours, sweep_file
from iqrl.errors import InputError

RIGHT = """\
title: Horizon
question: How far?
finding: Not reported.
figure: arms
base: {agent: iqrl, eval.every: 10000}
arms:
  h5: {label: "H = 5"}
  h1: {label: "H = 1", agent.horizon: 1}
  td3: {label: TD3, agent: td3}
tasks: [walker-walk, cheetah-run]
seeds: 0..2
env_steps: 100000
lite:
  note: narrow networks
  preset: small
  tasks: [walker-walk]
  arms: {h1: {label: "H = 2", agent.horizon: 2}}
"""

# (what to replace, by what, what the message must name: the arm and key where there is one)
BROKEN = [
    ("agent.horizon: 1", "agent.horizn: 1", "arm h1 .. agent.horizn .. did you mean agent.horizon"),
    ("agent.horizon: 1", "agent.horizon: one", "arm h1 .. agent.horizon=one .. whole number"),
    ("agent.horizon: 1", "agent.horizon: 0", "arm h1 .. agent.horizon=0 .. at least 1"),
    ("agent.horizon: 1", "agent.quantizer: fsk", "arm h1 .. agent.quantizer=fsk .. fsq"),
    ("agent.horizon: 1", "agent.use_tc: false", "arm h1 .. agent.use_tc"),
    ("agent.horizon: 1", "horizon: 1", "arm h1 .. horizon: no such key"),
    ("agent: td3}", "agent: td3, agent.fsq_levels: [8]}", "arm td3 .. agent.fsq_levels"),
    ("agent.horizon: 1", "agent.horizon: 5, agent.nstep: 3", "arm h1 .. agent.horizon=5 .. default"),
    ("agent.horizon: 1", "agent: iqrl, agent.horizon: 1", "arm h1 .. agent=iqrl .. default"),
    ("{label: TD3, agent: td3}", '{label: "H = 1 again", agent.horizon: 1}', "arm td3 .. same configuration as arm h1"),
    ("label: TD3,", 'label: "H = 5",', "arm td3 .. label=H = 5 .. arm h5"),
    ("agent: td3}", "agent: td33}", "arm td3 .. agent=td33 .. did you mean td3"),
    ("cheetah-run", "cheetah-rnu", "tasks .. cheetah-rnu .. did you mean cheetah-run"),
    ("[walker-walk, cheetah-run]", "[walker-walk, walker-walk]", "tasks .. walker-walk is named twice"),
    ("cheetah-run]", "cheetah-run+wind=1]", "tasks .. no modifier 'wind'"),
    ("[walker-walk, cheetah-run]", "walker-walk", "tasks=walker-walk .. expected a list"),
    ("0..2", "2..0", "seeds=2..0 .. is empty"),
    ("env_steps: 100000", "env_steps: -5", "env_steps=-5 .. whole number"),
    ("env_steps: 100000", "env_steps: {easy: 9}", "env_steps.medium .. cheetah-run"),
    ("agent.horizon: 1", "train.env_steps: 7", "arm h1 .. train.env_steps .. `env_steps`"),
    ("figure: arms", "figur: arms", "figur: no such key .. did you mean figure"),
    ("figure: arms", "figure: pie", "figure=pie .. expected one of arms"),
    ("question: How far?\n", "", "question: missing"),
    ("finding: Not reported.", "finding:", "finding: missing"),
    (RIGHT[RIGHT.index("arms:\n") : RIGHT.index("tasks:")], "", "arms: missing"),
    (RIGHT[RIGHT.index("arms:\n") : RIGHT.index("tasks:")], "arms: [a, b]\n", "arms .. mapping"),
    ('  h1: {label: "H = 1", agent.horizon: 1}\n  td3: {label: TD3, agent: td3}\n', "", "lite.arms.h1: no such arm"),
    ("eval.every: 10000", "eval.evry: 10000", "base .. eval.evry .. did you mean eval.every"),
    ("eval.every: 10000", "eval.every: 20000", "base .. eval.every=20000 .. default"),
    ("preset: small", "preset: smal", "preset=smal .. small"),
    ("  note: narrow networks\n", "", "lite.note: missing"),
    ("arms: {h1:", "arms: {h2:", "lite.arms.h2 .. no such arm"),
    ("agent.horizon: 2", "agent.horizon: 5", "lite .. arm h1 .. same configuration as arm h5"),
    ("agent.horizon: 1", "start_from: {arm: h9, task: walker-walk}", "arm h1 .. start_from.arm=h9"),
    ("agent.horizon: 1", "start_from: {arm: h5, task: cup-catch}", "arm h1 .. start_from.task=cup-catch"),
    ("agent: td3}", "agent: td3, start_from: {arm: h5, task: walker-walk}}", "arm td3 .. start_from"),
    (
        "preset: small",
        "preset: small, train.env_steps: 7".replace(", ", "\n  "),
        "lite: train.env_steps .. `env_steps`",
    ),
    ("arms: {h1:", "arms: {h5: null, td3: null, h1: null, h1x:", "lite.arms.h1x"),
    ('arms: {h1: {label: "H = 2", agent.horizon: 2}}', "arms: {h5: null, td3: null, h1: null}", "no arm is left"),
    (RIGHT[RIGHT.index("lite:\n") :], "lite:\n", "lite.note: missing"),
    (RIGHT, "- a\n- b\n", "expected a mapping"),
    ("title: Horizon\n", "", "title: missing"),
]


def run(words, capsys):
    status = command.main(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_right_sweep_passes(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(RIGHT)
    assert run(["check", str(path)], capsys)[::2] == (0, "")


@pytest.mark.parametrize(("old", "new", "named"), BROKEN, ids=[named for _, _, named in BROKEN])
def test_check_names_file_arm_and_key(old, new, named, tmp_path, capsys):
    assert old in RIGHT
    path = tmp_path / "mine.yaml"
    path.write_text(RIGHT.replace(old, new, 1))
    status, _, err = run(["check", str(path)], capsys)
    assert status == 2
    lines = err.splitlines()
    assert lines and all(line.startswith("error: ") and "mine.yaml" in line for line in lines), err
    assert any(all(word in line for word in named.split(" .. ")) for line in lines), err


def test_a_damaged_file_is_right_or_is_told_in_one_line(tmp_path):
    """Words dropped, doubled, exchanged or cut short: never anything but an answer."""
    random = np.random.default_rng(0)
    words = re.findall(r"\S+|\s+", RIGHT)
    spare = 'null|[]|{}|-1|1e99|010|true|"|:|~|arms:|agent:|0.5|[1, [2]]|{a: b}'.split("|")
    path, told = tmp_path / "mine.yaml", 0
    for _ in range(400):
        damaged = list(words)
        for _ in range(random.integers(1, 4)):
            i, j = random.integers(len(damaged), size=2)
            match random.integers(4):
                case 0:
                    damaged[i] = ""
                case 1:
                    damaged[i] = str(random.choice(spare))
                case 2:
                    damaged[i], damaged[j] = damaged[j], damaged[i]
                case 3:
                    damaged = damaged[: i + 1]
        path.write_text("".join(damaged))
        problems = check.problems(str(path))
        assert all("mine.yaml" in problem and "\n" not in problem for problem in problems), problems
        told += bool(problems)
    assert told > 200


def test_check_tells_every_problem_at_once(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(RIGHT.replace("agent.horizon: 1", "agent.horizon: 5").replace("10000}", "20000}"))
    err = run(["check", str(path)], capsys)[2]
    assert "base: eval.every=20000" in err and "arm h1: agent.horizon=5" in err and "same configuration" in err


@pytest.mark.parametrize("name", ablations.names())
def test_every_sweep_is_right(name, capsys):
    status, _, err = run(["check", name], capsys)
    assert (status, err) == (0, "")


def test_list_names_every_sweep_with_its_runs(capsys):
    status, out, _ = run(["list"], capsys)
    assert status == 0
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert set(rows) == set(ablations.names())
    assert rows["horizon"].split()[1:4] == ["5", "125", "15"]


def test_show(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(["show", "horizon", "scale=lite"], capsys)
    assert status == 0
    assert "horizon-lite: Horizon (lite: preset=small (narrow networks" in out
    assert "5 arms x 1 task x 3 seeds: 15 runs, 0.8M env steps" in out
    assert "agent.horizon=8" in out and "there is no `make bench`" in out
    assert run(["show", "horizon"], capsys)[1] == run(["show", "horizon", "SCALE="], capsys)[1]


@pytest.mark.parametrize(
    "words", [["show", "horizn"], ["show", "horizon", "lite"], ["show", "horizon", "scale=big"], ["check", "x.yaml"]]
)
def test_bad_words_end_with_one_line_and_status_2(words, capsys):
    status, out, err = run(words, capsys)
    assert status == 2 and len(err.splitlines()) == 1 and err.startswith("error: ") and not out


def test_hours_follow_the_benchmark(tmp_path):
    runs = ablations.load("quickstart", "full").unique_runs()  # 10 runs of each agent, 50 000 decisions each
    path = tmp_path / "results.csv"

    def said(scale, device="cpu"):
        return hours.estimate(ablations.load("quickstart", scale).unique_runs(), tmp_path, device, path).words()

    path.write_text(
        "agent,preset,pack,decisions_per_second\niqrl,default,1,10\niqrl,default,5,50\niqrl,tiny,1,900\ntd3,,1,\n"
    )
    assert said("full") == "about 2.8 hours; without 10 runs of td3, never timed"  # 10 x 50 000 / 50 s
    assert "by default widths for iqrl" in said("lite")
    path.write_text("agent,machine,decisions_per_second\niqrl,fast,900\niqrl,here,50\n")
    assert "about 2.8 hours" in said("full")
    # A run that has ended here knows better: on its device, and in a pack each seed has its share.
    folder = tmp_path / runs[0].name
    folder.mkdir()
    (folder / "DONE").write_text('{"env_step": 1000, "files": {"latents.csv": 0}}')
    (folder / "latents.csv").touch()
    (folder / "config.yaml").write_text(
        yaml.safe_dump(runs[0].config.resolved(), default_flow_style=None, sort_keys=False)
    )
    (folder / "progress.json").write_text('{"wall_seconds": 720, "env_step": 1000}')
    (folder / "provenance.json").write_text('{"sessions": [{"device": "cuda:0", "pack": 2}]}')
    assert runs[0].config.agent.name == "iqrl"
    assert "about 100.0 hours" in said("full", "cuda") and "about 2.8 hours" in said("full")  # 10 x 100 000 x 0.36 s
    path.write_text("name,speed\n1,2\n")
    with pytest.raises(InputError, match="expected the table that `make bench` writes"):
        said("full")


def test_findings_name_their_source_and_files_are_short():
    for name in ablations.names():
        text = (sweep_file.FOLDER / f"{name}.yaml").read_text()
        content = OmegaConf.create(text)
        assert any(word in content.finding for word in ("paper", "code", "Not reported")), name
        assert not any(word in text for word in ("/work", "/tmp", "shared/", "spec/")), name
        assert len(text.splitlines()) < 70 and max(map(len, text.splitlines())) <= 125, name
