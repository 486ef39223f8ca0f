"""Runs that start from another run: real runs, tiny networks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iqrl import __main__ as command
from iqrl import config
from iqrl.errors import InputError
from iqrl.runs import checkpoints
from iqrl.runs.directory import RunDirectory
from iqrl.training.random_numbers import INITIALISATION, generator
from iqrl.training.transfer import inherited

ROOT = Path(__file__).parents[2]
TINY = [
    "agent=iqrl",
    "preset=tiny",
    "train.env_steps=1000",
    "agent.warmup_episodes=0",
    "agent.utd=0.02",
    "agent.enc_lr=0.01",
    "eval.every=1000",
    "eval.episodes=1",
    "train.device=cpu",
    "train.workers=0",
    "train.threads=1",
    "train.compile=off",
]


def with_defaults(words):
    return [w for w in TINY if not w.startswith(tuple(x.split("=")[0] + "=" for x in words))] + list(words)


def train(folder, *words):
    command = [sys.executable, "-m", "iqrl", "train", f"runs={folder}", *with_defaults(words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def resolved(*words):
    return config.resolve([("", config.parse_words(with_defaults(words)))])[0][0]


def final_state(folder, run):
    directory = RunDirectory(folder / run.directory_name)
    assert directory.done()
    _, file = directory.checkpoints()[0]
    return checkpoints.load(file, 0, needs_replay=False)["engine"]["state"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished run on walker-walk, and the folder that it is in."""
    folder = tmp_path_factory.mktemp("runs")
    run = resolved("task=walker-walk", "seeds=0")
    result = train(folder, "task=walker-walk", "seeds=0")
    assert result.returncode == 0, result.stderr
    return folder, run


def test_a_frozen_start_keeps_the_sources_representation_and_learns_a_policy(source):
    folder, first = source
    words = [
        "task=walker-run",
        "seeds=3",
        f"agent.init_from={first.directory_name}",
        "agent.freeze_encoder=true",
    ]
    result = train(folder, *words)
    assert result.returncode == 0, result.stderr
    run = resolved(*words)
    before, after = final_state(folder, first), final_state(folder, run)
    assert torch.equal(before["world"], after["world"]) and torch.equal(before["target"], after["target"])
    assert after["critic/steps"] == 10
    assert not torch.equal(after["critic"], before["critic"])
    assert config.load_run(folder / run.directory_name).identity == run.identity  # its config.yaml says all


def test_a_tuned_start_begins_there_and_moves_on(source):
    folder, first = source
    words = ["task=walker-stand", "seeds=3", f"agent.init_from={first.directory_name}"]
    result = train(folder, *words)
    assert result.returncode == 0, result.stderr
    before, after = final_state(folder, first), final_state(folder, resolved(*words))
    assert not torch.equal(before["world"], after["world"])
    # Ten steps of Adam at 0.01 move no parameter further than about 0.1; a fresh start is elsewhere.
    assert (before["world"] - after["world"]).abs().max() < 0.2
    assert after["world/steps"] == 10  # the optimiser starts anew


def test_the_final_policy_is_not_what_is_taken_over(source):
    folder, first = source
    run = resolved("task=walker-run", "seeds=0", f"agent.init_from={first.directory_name}")
    assert set(inherited(run, folder)) == {"world", "target"}
    assert inherited(resolved("task=walker-run"), folder) == {}


@pytest.mark.parametrize(
    "words, named",
    [
        (["agent.init_from=iqrl-walker-walk-s9-00000000"], "not a run directory"),
        (["agent.init_from=runs/SOURCE"], "without a path"),
        (["agent.init_from=../SOURCE"], "without a path"),
        (["agent.init_from=SOURCE", "agent.latent_dim=16"], "its world has shape"),
        (["agent.init_from=SOURCE", "agent.use_reward=true"], "its world has shape"),
        (["agent.init_from=SOURCE", "task=cheetah-run"], "equal observations"),
        (["agent.init_from=UNFINISHED"], "not complete"),
    ],
)
def test_a_source_that_will_not_do_leaves_no_directory(source, words, named, capsys, monkeypatch):
    folder, first = source
    unfinished = resolved("task=walker-walk", "seeds=5")
    RunDirectory.create(unfinished, folder)
    names = {"SOURCE": first.directory_name, "UNFINISHED": unfinished.directory_name}
    for name, real in names.items():
        words = [word.replace(name, real) for word in words]
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    task = [] if any(word.startswith("task=") for word in words) else ["task=walker-run"]
    assert command.main(["train", f"runs={folder}", *TINY, "seeds=0", *task, *words]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and message.startswith("error: agent.init_from="), message
    assert named in message
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_source_of_another_agent_is_refused(source):
    folder, first = source
    other = config.resolve([("", config.parse_words(["agent=td3", "preset=tiny", "task=walker-walk"]))])[0][0]
    RunDirectory.create(other, folder)
    with pytest.raises(InputError, match="is a run of td3; expected one of iqrl"):
        inherited(resolved("task=walker-run", f"agent.init_from={other.directory_name}"), folder)


def test_an_agent_s_file_may_lie_elsewhere_by_now(tmp_path):
    """Each submission has a copy of it."""
    copies = [tmp_path / name / "mine.py" for name in ("first", "second", "other")]
    for path in copies:
        path.parent.mkdir()
        path.write_text(
            "from iqrl.agent import register\nfrom iqrl.iqrl import IQRL\n\n"
            f"@register('mine_{'b' if path.parent.name == 'other' else 'a'}')\nclass Mine(IQRL):\n    pass\n"
        )
    first = train(tmp_path, f"agent={copies[0]}", "task=walker-walk", "seeds=0")
    assert first.returncode == 0, first.stderr
    (source,) = tmp_path.glob("mine_a-*")
    second = resolved(f"agent={copies[1]}", "task=walker-run", f"agent.init_from={source.name}")
    assert set(inherited(second, tmp_path)) == {"world", "target"}
    with pytest.raises(InputError, match="is a run of mine_a; expected one of mine_b"):
        inherited(resolved(f"agent={copies[2]}", "task=walker-run", f"agent.init_from={source.name}"), tmp_path)


def test_runs_that_start_from_different_runs_make_one_pack():
    runs = [
        resolved("task=walker-run", f"seeds={s}", f"agent.init_from=iqrl-walker-walk-s{s}-0000000{s}") for s in (0, 1)
    ]
    assert config.pack_key(runs[0]) == config.pack_key(runs[1])
    assert runs[0].identity != runs[1].identity
    assert config.pack_key(runs[0]) != config.pack_key(resolved("task=walker-run"))


def test_the_representation_of_several_tasks_is_the_start_of_another(tmp_path):
    """Its encoder is, and stays when frozen; dynamics, which were told the task, begin anew, as without a source."""
    several = resolved("task=walker-walk,walker-stand", "seeds=0", "train.env_steps=2000", "eval.every=2000")
    result = train(tmp_path, "task=walker-walk,walker-stand", "seeds=0", "train.env_steps=2000", "eval.every=2000")
    assert result.returncode == 0, result.stderr
    start = [f"agent.init_from={several.directory_name}", "agent.freeze_encoder=true"]
    run = resolved("task=walker-run", "seeds=3", *start)
    state, spec, other = inherited(run, tmp_path), run.spec, several.agent(several.settings, several.spec)
    agent = run.agent(run.settings, spec)
    begun = agent.initialise(generator("cpu", 3, INITIALISATION))
    there = final_state(tmp_path, several)
    found, learned = agent.world.unpack(state["world"]), other.world.unpack(there["world"])
    assert all(torch.equal(v, learned["encoder"][k]) for k, v in found["encoder"].items())
    assert all(torch.equal(v, agent.world.unpack(begun["world"])["dynamics"][k]) for k, v in found["dynamics"].items())
    assert torch.equal(state["target"], there["target"])
    result = train(tmp_path, "task=walker-run", "seeds=3", *start)
    assert result.returncode == 0, result.stderr
    assert torch.equal(final_state(tmp_path, run)["world"], state["world"])
    with pytest.raises(InputError, match="its encoder does not fit; expected tasks of equal obs"):
        inherited(resolved("task=cup-catch", *start), tmp_path)
