"""Gymnasium's MuJoCo tasks: the same as a plain loop over Gymnasium's own, and agents on episodes that terminate."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from training import finish, run_directories

from iqrl.__main__ import main
from iqrl.config import load_run, parse_words, resolve
from iqrl.environments.environment import Environment, task_spec
from iqrl.runs import reader
from iqrl.runs.group import read_group

gymnasium = pytest.importorskip("gymnasium")

LOCOMOTION = ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid")
KEPT = Path(__file__).parents[2] / "results" / "reference" / "discrete"


@pytest.mark.parametrize("version", ["v4", "v5"])
@pytest.mark.parametrize("task", LOCOMOTION)
def test_equals_gymnasiums_own_environment(task: str, version: str) -> None:
    """Observations, rewards, terminations and truncations for 1,000 random env steps, at no action repeat."""
    name, generator = f"{task}-{version}", np.random.default_rng(0)
    run = resolve([("test", parse_words([f"task=gym:{name}"]))])[0][0]
    ours, theirs = Environment(run.task, run.train.action_repeat), gymnasium.make(name)
    scale = float(theirs.action_space.high[0])
    steps, episode, ends = 0, 0, []
    while steps < 1000:
        key = (7, 0, episode)
        observation = ours.reset(key)
        expected, _ = theirs.reset(seed=int(np.random.SeedSequence(key).generate_state(1)[0]))
        ended, episode = False, episode + 1
        while not ended:
            np.testing.assert_array_equal(observation, expected.astype(np.float32))
            action = generator.uniform(-1, 1, ours.spec.action_dim).astype(np.float32)
            observation, reward, terminated, truncated = ours.step(action)
            native = (np.float64(scale) * action).astype(np.float32)
            expected, one, ends_here, cut_here, _ = theirs.step(native)
            assert (reward, terminated, truncated) == (one, ends_here, cut_here)
            steps, ended = steps + 1, terminated or truncated
        ends.append(terminated)
    assert ends[0] == (task != "HalfCheetah")  # which never falls
    assert (ours.spec.action_repeat, ours.spec.episode_decisions, ours.spec.terminates) == (1, 1000, True)


def test_action_repeat_is_the_suites_unless_said() -> None:
    def repeat(*words: str) -> tuple[int, bool]:
        run = resolve([("test", parse_words(words))])[0][0]
        return run.train.action_repeat, "action_repeat" in run.resolved()["train"]

    assert repeat("task=walker-walk") == repeat("task=mw-reach") == (2, False)
    assert repeat("task=gym:Hopper-v4+sticky=0.1") == (1, True)
    assert repeat("task=gym:Hopper-v4", "train.action_repeat=2") == (2, False)
    assert repeat("task=walker-walk", "train.action_repeat=4") == (4, True)


def test_a_run_from_before_there_was_a_choice_keeps_its_action_repeat(tmp_path: Path) -> None:
    """Gymnasium's tasks had an action repeat of 2 then, and their folders do not say so."""
    kept = {run.name: run for run in read_group(KEPT)}["mrq-gym_CartPole-v1-s0-edb8d3fe"]
    assert "action_repeat" not in kept.config()["train"]
    folder = tmp_path / kept.name
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(kept.config()))
    run = load_run(folder)
    assert run.train.action_repeat == 2 and run.spec.episode_decisions == 250
    assert run.identity == kept.provenance()["identity"]
    assert task_spec(run.task, 1).episode_decisions == 500


@pytest.mark.parametrize(
    "agent, words",
    [
        ("td7", ["agent.warmup_decisions=200", "agent.target_every=50"]),
        ("td3", ["agent.warmup_decisions=200"]),
        ("iqrl", ["agent.warmup_episodes=5"]),
        pytest.param("td3", ["agent.profile=official", "agent.warmup_decisions=300"], marks=pytest.mark.slow),
        pytest.param("tcrl", ["agent.warmup_episodes=5"], marks=pytest.mark.slow),
        pytest.param("mrq", ["agent.warmup_decisions=300", "agent.target_every=50"], marks=pytest.mark.slow),
    ],
)
def test_agents_learn_from_episodes_that_terminate(agent: str, words: list[str], tmp_path: Path) -> None:
    """Of a few decisions each: every episode ends where it does, and updates keep their number of decisions."""
    finish(
        ["train", f"agent={agent}", "task=gym:Hopper-v4", "preset=tiny", "train.env_steps=500", "eval.every=250",
         "eval.episodes=2", "train.compile=off", "train.threads=1", "train.workers=0", "train.precision=float32",
         f"runs={tmp_path / 'runs'}", *words],
        tmp_path / "output",
    )  # fmt: skip
    (run,) = run_directories(tmp_path / "runs")
    training = list(csv.DictReader((run / "training.csv").open()))
    ends = [int(row["env_step"]) for row in training]
    lengths = np.diff(ends, prepend=0)
    assert len(ends) > 8 and lengths.max() < 200 and lengths.min() >= 1
    updates = int(training[-1]["updates"])
    after = next(i for i, row in enumerate(training) if int(row["updates"]) > 0)
    if agent == "tcrl":
        assert updates > 0
    else:  # one a decision since learning began; TD7 may still assess its policy
        learned_from = ends[-1] - ends[after]
        assert 0 < updates <= ends[-1] and abs(updates - learned_from) <= ends[after]
    evaluations = list(csv.DictReader((run / "evaluations.csv").open()))
    assert [row["env_step"] for row in evaluations] == ["0", "0", "250", "250", "500", "500"]
    assert all(0 < int(row["length"]) < 1000 for row in evaluations)
    assert "success" not in evaluations[0] and "success" not in training[0]


class Raises(gymnasium.Env):  # type: ignore[type-arg]
    """A task whose file is lacking."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        raise KeyError("goal file missing")


def test_an_environment_that_cannot_be_reset_is_named_and_not_the_agent(tmp_path: Path) -> None:
    gymnasium.register("raises-v0", Raises, max_episode_steps=20)
    words = ["task=gym:raises-v0", "agent=td3", "preset=tiny", "train.env_steps=200", "train.workers=0"]
    assert main(["train", *words, "train.compile=off", "train.threads=1", f"runs={tmp_path}"]) == 1
    (run,) = tmp_path.iterdir()
    assert reader.failure(run).startswith("environment, while evaluating: KeyError: 'goal file missing'")
