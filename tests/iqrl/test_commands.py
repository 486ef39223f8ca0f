"""The command line: a thousand bad inputs, and what each command says."""

from __future__ import annotations

import dataclasses
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iqrl import __main__ as command_line
from iqrl import config
from iqrl.agents import AGENTS, agent_class
from iqrl.config import Evaluate, Execution, RunConfig, Train
from iqrl.environments import tasks
from iqrl.environments.environment_pool import WorkerError
from iqrl.runs import lease, reader
from iqrl.runs.directory import RunDirectory
from iqrl.training import checkpoint_evaluation, pack, trainer

Words = list[str]


# --- a thousand bad inputs


def settings_of(agent: str) -> list[tuple[str, dataclasses.Field[Any]]]:
    """Dotted keys and fields that a run of the agent has."""
    cls, _ = agent_class(agent)
    parts = (("agent", cls.Config), ("train", Train), ("train", Execution), ("eval", Evaluate))
    return [(f"{prefix}.{f.name}", f) for prefix, part in parts for f in dataclasses.fields(part)]


def misspelt(r: random.Random, word: str) -> str:
    i = r.randrange(len(word))
    letter = r.choice("abcdefghijklmnopqrstuvwxyz")
    return r.choice([word[:i] + word[i + 1 :], word[:i] + letter + word[i:], word[:i] + letter + word[i + 1 :]])


def wrong_value(r: random.Random, field: dataclasses.Field[Any]) -> str:
    """A value that no field of this kind takes."""
    low, high, kind = field.metadata["low"], field.metadata["high"], str(field.type)
    if kind == "bool":
        return r.choice(["3", "maybe", "[true]", "1.5", "null", "''"])
    anywhere = ["word", "[[1]]", "{a: 1}", "nan", "inf", "-inf", "''", "null", "!!python/name:os.system", "${x}", "???"]
    if kind.startswith("list"):
        return r.choice(
            ["[]", "8", "[1.5]", "[a]", "[8, nan]", f"[8, {low - 1}]", f"[{high + 1}]", "[true]", *anywhere]
        )
    if kind == "int":
        anywhere += ["1.5", "true", "[1]", "1e99"]
    elif kind == "float":
        anywhere += ["true", "[0.1]"]
    else:
        return r.choice(["[a]", "{a: 1}", "null", "1.5", "nan", "no_such_choice", "${oc.env:HOME}"])
    anywhere += [str(low - 1)] if low is not None else []
    anywhere += [str(high * 2 + 1)] if high is not None else []
    return r.choice(anywhere)


def unknown_keys(r: random.Random) -> Words:
    agent = r.choice(["iqrl", "td3"])
    keys = [key for key, _ in settings_of(agent)] + ["agent", "task", "seeds", "runs", "config", "preset"]
    while True:
        key = r.choice(keys)
        head, dot, leaf = key.rpartition(".")
        word = r.choice([head + dot + misspelt(r, leaf), misspelt(r, key), f"{key}.x", f"extra.{key}"])
        if word not in keys and word not in ("agent.name",):
            return ["train", f"agent={agent}", f"{word}=1"]


def wrong_values(r: random.Random) -> Words:
    agent = r.choice(["iqrl", "td3"])
    free = ("agent.init_from",)  # any word may name a run
    key, field = r.choice([(k, f) for k, f in settings_of(agent) if k not in free])
    return ["train", f"agent={agent}", f"{key}={wrong_value(r, field)}"]


def bad_tasks(r: random.Random) -> Words:
    while True:
        name = r.choice(tasks.names())
        name = r.choice(
            [
                misspelt(r, name),
                name.replace("-", "_"),
                name
                + r.choice(
                    [
                        "+",
                        "+x=1",
                        "+sticky=2",
                        "+obs_noise=-1",
                        "+sticky=nan",
                        "+action_noise=",
                        "+sticky=0.1+sticky=0.1",
                        " x",
                        "/../x",
                    ]
                ),
                name.upper(),
                "",
                "gym:",
                "gym:a/b/c",
                "gym:os:path:system",
                "-",
                "${task}",
                "../walker-walk",
            ]
        )
        try:
            tasks.parse(name)
        except ValueError:
            return ["train", f"task={name}"]


def bad_seeds(r: random.Random) -> Words:
    a, b = r.randrange(50), r.randrange(50)
    return [
        "train",
        "seeds="
        + r.choice(
            [
                f"{a + b + 1}..{a}",
                f"{a},{a}",
                "",
                f"-{a + 1}",
                f"{a}.5",
                f"{a}..",
                f"..{a}",
                f"{a}...{a + 1}",
                "x",
                "1e3",
                "0x1",
                f"{a};{b}",
                f"[{a}]",
                f"{2**32 + a}",
                "0..999999999",
                f"{a}..{a + 3},{a + 2}",
                f"{a} {b}",
                "None",
                ",",
            ]
        ),
    ]


def bad_words(r: random.Random) -> Words:
    return [
        "train",
        *r.choice(
            [
                ["walker-walk"],
                ["=3"],
                ["task"],
                ["agent.lr"],
                ["3=task"],
                ["a b=c"],
                ["task=walker-walk", "task=walker-walk"],
                ["agent.lr=1", "agent.lr=1"],
                ["task=walker-walk", "task.x=1"],
                ["train=3", "train.env_steps=1"],
                ["train=3"],
                ["agent.lr={"],
                ["agent.fsq_levels=[8"],
                ["eval=[1]"],
                ["agent.=3"],
                ["..=3"],
                ["agent..lr=3"],
                ["--no-such"],
                ["agent=no_such"],
                ["agent=./no_such.py"],
                ["agent=" + "x" * 300 + ".py"],
                ["preset=huge"],
                ["preset="],
                ["agent.profile=" + misspelt(r, "released")],
                ["agent.q_sample=3"],
                ["agent.use_tc=false"],
                ["agent.quantizer=simnorm", "agent.latent_dim=3"],
                ["agent=td3", "agent.schedule=decision", "agent.utd=1.5"],
                ["agent.init_from=../elsewhere"],
                ["agent.init_from=no-such-run"],
                ["task=gym:NoSuchTask-v0"],
                ["agent.mlp_dims=[65536,65536,65536,65536]"],
                ["agent.batch_size=1000000"],
                ["config=" + "x" * 300],
                ["agent.buffer_size=1000000000", "train.env_steps=1000000000"],
                ["train.device=cuda:99"],
                ["train.device=cpu", "train.precision=tf32"],
                ["runs=" + "r" * 300],
            ]
        ),
    ]


def bad_arguments(r: random.Random) -> Words:
    return r.choice(
        [
            [],
            ["trian"],
            ["--version"],
            ["resume"],
            ["evaluate"],
            ["evaluate", "a", "b"],
            ["resume", "no-such-run"],
            ["evaluate", "no-such-run"],
            ["evaluate", "no-such-run", "--episodes", r.choice(["0", "-3", "x", "1.5", "nan"])],
            ["evaluate", "no-such-run", "--video", r.choice(["a", "a.txt", "a.mp3"])],
            ["agents", "x"],
            ["tasks", "--all"],
            ["config", "agent=x"],
            ["config", "agent.lr=x"],
            ["evaluate", "x" * 300],
            ["resume", "y" * 300],
            ["resume", "train.device=cpu"],
            ["evaluate", "/dev/null"],
            ["resume", "/"],
        ]
    )


GOOD = "agent: {name: iqrl, lr: 0.0003}\ntask: walker-walk\nseeds: 0..1\ntrain: {env_steps: 1000}\n"


def bad_files(r: random.Random, folder: Path) -> Words:
    path = folder / f"{r.randrange(10**9)}.yaml"
    kind = r.randrange(8)
    if kind == 0:
        path.write_bytes(r.randbytes(r.randrange(1, 200)) + b"\xff")
    elif kind == 1:  # truncated within a mapping
        path.write_text(GOOD[: r.randrange(8, GOOD.index("}"))])
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.write_text(
            GOOD + r.choice(["- x\n", "task: walker-run\n", "\tx: 1\n", "config: other.yaml\n", "x: y: z\n", "&"])
        )
    elif kind == 4:
        path.write_text(r.choice(["", "[]", "3", "null", "'text'", "[" * 5000, "{" * 5000]))
    elif kind == 5:
        touched = f"[touch {folder / 'touched'}]"
        path.write_text(GOOD + f"preset: !!python/object/apply:os.system {touched}\n")
    elif kind == 6:
        path.write_text(GOOD.replace("walker-walk", r.choice(["${oc.env:HOME}", "[a]", "{}", "null", "3"])))
    else:
        key = r.choice(["runs: null", "runs: [a]", "seeds: {a: 1}", "agent: null", "train: 3", "preset: null", "1: 2"])
        path.write_text(key + "\n")
    return ["train", f"config={path}"]


def damaged_runs(r: random.Random, folder: Path, intact: Path) -> Words:
    """`resume` or `evaluate` of a run directory whose config.yaml is not what it was."""
    copy = folder / str(r.randrange(10**9)) / intact.name
    shutil.copytree(intact, copy)
    file = copy / "config.yaml"
    text = file.read_text()
    kind = r.randrange(6)
    if kind == 0:
        file.write_text(text[: r.randrange(text.index("mlp_dims"))])
    elif kind == 1:
        file.unlink()
    elif kind == 2:
        file.write_bytes(r.randbytes(300) + b"\xff")
    elif kind == 3:
        old, new = r.choice(
            [("seed: 0", "seed: 1"), ("walker-walk", "walker-run"), ("horizon: 5", "horizon: 4"), ("0.99", "0.98")]
        )
        assert old in text
        file.write_text(text.replace(old, new, 1))
    elif kind == 4:
        file.write_text(text + f"unheard_of: {r.random()}\n")
    else:
        copy = copy.rename(copy.with_name(misspelt(r, copy.name)))
    return [r.choice(["resume", "evaluate"]), str(copy)]


def generated(folder: Path, intact: Path) -> Iterator[Words]:
    r = random.Random(0)
    kinds: list[tuple[int, Callable[[], Words]]] = [
        (200, lambda: unknown_keys(r)),
        (350, lambda: wrong_values(r)),
        (100, lambda: bad_tasks(r)),
        (80, lambda: bad_seeds(r)),
        (100, lambda: bad_words(r)),
        (60, lambda: bad_arguments(r)),
        (60, lambda: bad_files(r, folder)),
        (60, lambda: damaged_runs(r, folder, intact)),
    ]
    for count, kind in kinds:
        for _ in range(count):
            yield kind()


@pytest.fixture
def intact(tmp_path: Path) -> Path:
    """A fresh run directory that nothing was trained in yet."""
    (run,), _, _ = config.resolve([("x", config.parse_words(["agent=iqrl", "task=walker-walk", "preset=tiny"]))])
    return RunDirectory.create(run, tmp_path / "intact").path


def contents(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*"))


def test_a_thousand_bad_inputs(
    tmp_path: Path, intact: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, here = tmp_path / "runs", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(command_line, "StopFlag", lambda *_, **__: lambda: False)

    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(trainer, "Trainer", train)
    wrong, count = [], 0
    for words in generated(tmp_path, intact):
        count += 1
        if words[:1] == ["train"] and not any(w.startswith("runs") for w in words):
            words.append(f"runs={runs}")
        before = contents(tmp_path)
        try:
            status: Any = command_line.main(words)
        except BaseException as error:  # argparse leaves by SystemExit
            status = repr(error)
        told = capfd.readouterr()
        lines = told.err.splitlines()
        if status != 2 or len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) > 1000:
            wrong.append((words, status, lines[:3]))
        elif told.out:
            wrong.append((words, "said", told.out[:100]))
        if contents(tmp_path) != before:
            wrong.append((words, "left", sorted(set(contents(tmp_path)) - set(before))[:3]))
            shutil.rmtree(runs, ignore_errors=True)
    assert count >= 1000
    assert not wrong, f"{len(wrong)} of {count}: " + "\n".join(map(str, wrong[:12]))


@pytest.mark.parametrize(
    "words, parts",
    [
        (["task=walker-wlak"], ["task=walker-wlak", "walker-walk"]),
        (["agent.fsq_levels=[8,1]"], ["agent.fsq_levels=[8, 1]", "at least 2"]),
        (["seeds=4..0"], ["seeds=4..0", "0..4"]),
        (["agent.horizn=3"], ["agent.horizn=3", "agent.horizon"]),
        (["agent=iqlr"], ["agent=iqlr", "iqrl"]),
        (["agent.discount=1.5"], ["agent.discount=1.5", "at most 1"]),
        (["agent.mask_mode=non"], ["agent.mask_mode=non", "after_end, released, minimal, none"]),
        (["train.env_steps=0"], ["train.env_steps=0", "at least 1"]),
        (["train.env_stepss=5"], ["train.env_stepss=5", "train.env_steps"]),
        (["runs=/dev/null/x"], ["runs=/dev/null/x", "cannot be written"]),
        (["runs=/proc/x"], ["runs=/proc/x", "No such file"]),
        (["task=gym:Reacher-v5", "agent.horizon=60"], ["slices of 60 decisions", "an episode of 50", "agent.horizon"]),
    ],
)
def test_messages_name_the_key_the_value_and_what_was_expected(
    words: Words, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["train", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in parts:
        assert part in line


# --- real processes


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-m", "iqrl", *words], cwd=root, capture_output=True, text=True, timeout=300, **options
    )


def test_bad_input_of_real_processes(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    for words in (
        ["train", "task=walker-wlak"],
        ["train", f"runs={taken}/runs"],
        ["train", f"runs={taken}"],
        ["train", f"config={tmp_path / 'none.yaml'}"],
        ["evaluate", str(tmp_path)],
        ["train", "task=gym:NoSuchTask-v0", f"runs={tmp_path / 'runs'}"],
    ):
        done = run(*words)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr
    assert contents(tmp_path) == [str(taken)]


def test_environments_that_cannot_start_fail_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: Any) -> None:
        raise WorkerError("environment worker 0 died (exit status 1), 3 times in a row")

    monkeypatch.setattr(pack, "EnvironmentPool", start)
    assert command_line.main(["train", "agent=td3", "preset=tiny", f"runs={tmp_path}"]) == 1
    said = capsys.readouterr()
    assert "FAILED: environment workers: environment worker 0" in said.out and not said.err
    (run,) = tmp_path.iterdir()
    assert "3 times" in reader.failure(run) and not lease.alive(lease.newest_writer(run)[1])


@pytest.mark.parametrize("agent", ["mrq", "td3"])
def test_without_a_warm_up_nothing_is_learned_before_there_is_data(
    agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"agent={agent}", "agent.warmup_decisions=0", "task=cartpole-balance", "preset=tiny", f"runs={tmp_path}"]
    words += ["agent.profile=official"] if agent == "td3" else []
    words += ["train.env_steps=40", "eval.episodes=1", "train.threads=1", "train.workers=0"]
    assert command_line.main(["train", *words]) == 0, capsys.readouterr().out
    (run,) = tmp_path.iterdir()
    updates = int((run / "timing.csv").read_text().splitlines()[-1].split(",")[-1])
    horizon = {"mrq": 5, "td3": 1}[agent]  # a slice is there once the row after it is
    assert updates == 20 - horizon


def test_a_finished_run_is_evaluated_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["agent=td3", "task=cartpole-balance", "preset=tiny", f"runs={tmp_path}", "train.env_steps=40"]
    assert command_line.main(["train", *words, "eval.episodes=1", "train.threads=1", "train.workers=0"]) == 0
    (run,) = tmp_path.iterdir()
    told = []
    for how in ([], [], ["train.precision=float32"]):
        capsys.readouterr()
        assert command_line.main(["evaluate", str(run), "--episodes", "2", *how]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    *episodes, summary = told[0].splitlines()
    returns = [float(line.split()[-1]) for line in episodes]
    assert len(returns) == 2 and 0 < min(returns) <= max(returns) <= 1000
    assert float(summary.split()[1]) == pytest.approx(sum(returns) / 2, abs=0.01)


def test_a_finished_run_acts_by_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["agent=dcwm", "task=cartpole-balance", "preset=tiny", f"runs={tmp_path}", "train.env_steps=40",
             "train.action_repeat=8", "train.compile=off", "train.threads=1", "train.workers=0"]  # fmt: skip
    assert command_line.main(["train", *words, "eval.episodes=1"]) == 0
    (run,) = tmp_path.iterdir()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    told = {}
    for word in ("agent.plan_samples=12", "agent.plan_samples=40", "agent.released_pi_noise=true"):
        capsys.readouterr()
        assert command_line.main(["evaluate", str(run), "--episodes", "1", word, "train.compile=off"]) == 0
        *episodes, summary = capsys.readouterr().out.splitlines()
        assert summary.endswith(f"  {word}")
        told[word] = episodes
    first, *others = told.values()  # the first is the run's own value
    assert all(other != first for other in others)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    for word, part in (
        ("agent.latent_dim=16", "does not fit"),
        ("agent.plan_sample=40", "no such key"),
        ("agent.plan_samples=1", "plan_samples"),
        ("agent.profile=released", "cannot change in a finished run"),
        ("agent.name=td3", "cannot change in a finished run"),
    ):
        assert command_line.main(["evaluate", str(run), "--episodes", "1", word]) == 2
        assert part in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_films_have_every_frame_at_its_time(tmp_path: Path, kind: str) -> None:
    import imageio.v3 as imageio

    frames = [np.full((64, 96, 3), 25 * i, np.uint8) for i in range(8)]
    checkpoint_evaluation.write_video(tmp_path / f"walk.{kind}", frames, rate=12.5)
    film = imageio.imread(tmp_path / f"walk.{kind}")
    assert film.shape == (8, 64, 96, 3)
    assert np.abs(film.mean((1, 2, 3)) - [25 * i for i in range(8)]).max() < 5  # what compression changes
    told = imageio.immeta(tmp_path / f"walk.{kind}")
    assert (told["fps"] if kind == "mp4" else 1000.0 / told["duration"]) == pytest.approx(12.5)


def test_evaluation_takes_one_run_and_how_to_execute_it(intact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in (str(intact), "agent=td3", "preset=tiny", "train.env_steps=10", "train.workers=2"):
        assert command_line.main(["evaluate", str(intact), "--episodes", "1", word]) == 2
        assert f"{word}: expected one run, and how to execute it" in capsys.readouterr().err
    assert command_line.main(["evaluate", str(intact), "train.threads=many"]) == 2
    assert "train.threads" in capsys.readouterr().err


def test_films_are_refused_before_anything_is_played(intact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, part in (("x.webm", ".mp4 or .gif"), ("nowhere/x.mp4", "no folder")):
        assert command_line.main(["evaluate", str(intact), "--video", str(intact / name)]) == 2
        assert part in capsys.readouterr().err


def test_help_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["train"], ["resume"], ["evaluate"], ["agents"], ["tasks"], ["config"]):
        with pytest.raises(SystemExit) as end:
            command_line.main([*words, "--help"])
        assert end.value.code == 0
        said = capsys.readouterr().out
        assert "python -m iqrl" in said
        assert not words or "example" in said


def test_agents_and_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["agents"]) == 0
    said = capsys.readouterr().out
    for name in AGENTS:
        assert any(line.startswith(f"{name} ") and len(line) > 30 for line in said.splitlines())
    assert command_line.main(["tasks"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("walker-walk", "cup-catch", "dog-run", "humanoid-stand"))


def test_config_shows_every_value_and_where_it_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("agent: {name: iqrl, lr: 1e-3}\n")
    assert command_line.main(["config", f"config={study}", "task=dog-run", "agent.horizon=3", "seeds=1,2"]) == 0
    said = capsys.readouterr().out.splitlines()
    lines = {line.split(" = ")[0]: line for line in said if " = " in line}
    assert lines.keys() == {key for key, _ in settings_of("iqrl")}
    assert "0.001" in lines["agent.lr"] and str(study) in lines["agent.lr"]
    assert "1024" in lines["agent.latent_dim"] and "[task dog-run]" in lines["agent.latent_dim"]
    assert "[command line]" in lines["agent.horizon"] and "[default]" in lines["agent.tau"]
    assert not list(tmp_path.glob("runs*"))


def test_output_into_a_closed_pipe_is_no_error() -> None:
    root = Path(__file__).resolve().parents[2]
    line = f"{sys.executable} -m iqrl tasks | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_the_same_run_named_twice_is_refused(intact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["resume", str(intact), str(intact) + "/"]) == 2
    assert "twice" in capsys.readouterr().err


def test_a_runs_configuration_is_fixed(intact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("train.env_steps=5", "agent.lr=1", "eval.every=3", "seeds=3"):
        assert command_line.main(["resume", str(intact), word]) == 2
        assert word in capsys.readouterr().err


def test_runs_of_different_configuration_are_not_resumed_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[RunConfig] = []
    for word in ("agent.horizon=3", "agent.horizon=4"):
        made += config.resolve([("x", config.parse_words([word]))])[0]
    paths = [str(RunDirectory.create(run, tmp_path).path) for run in made]
    assert command_line.main(["resume", *paths]) == 2
    assert "more than their seed" in capsys.readouterr().err


OWN = """
import torch
from baselines.td3 import TD3
from iqrl.agent import register

@register("careless")
class Careless(TD3):
    def act(self, state, carry, observation, noise, schedule):
        action, carry = super().act(state, carry, observation, noise, schedule)
        return {action}, carry

    def update_critic(self, *given):
        changed, metrics = super().update_critic(*given)
        return changed, {{**metrics, {metric}: metrics["critic_loss"]}}
"""


@pytest.mark.parametrize(
    ("action", "metric", "told"),
    [
        ("2.0 + 0 * action", "'x'", "an action is 2, outside [-1, 1], while evaluating"),
        ("action / 0 * 0", "'x'", "an action is not finite, while evaluating"),
        ("action * (10 if noise else 1) + 1 * bool(noise)", "'x'", "outside [-1, 1] at env step 40"),
        ("action", "'episode_return'", "a metric is called 'episode_return', which is no name for a column of its own"),
        ("action", "'a,b'", "a metric is called 'a,b'"),
        ("self.nothing", "'x'", "AttributeError: 'Careless' object has no attribute 'nothing' (careless.py:10)"),
    ],
)
def test_an_agent_of_ones_own_that_goes_wrong_fails_its_run_in_a_line(
    action: str, metric: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "careless.py").write_text(OWN.format(action=action, metric=metric))
    words = [f"agent={tmp_path / 'careless.py'}", "agent.warmup_decisions=20", "task=cartpole-balance", "preset=tiny"]
    words += ["train.env_steps=2200", "eval.episodes=1", "train.threads=1", "train.workers=0", "agent.utd=0.01"]
    assert command_line.main(["train", *words, f"runs={tmp_path / 'runs'}"]) == 1
    (run,) = (tmp_path / "runs").iterdir()
    assert told in reader.failure(run)
    assert "FAILED: " in capsys.readouterr().out


def test_a_budget_that_ends_within_the_warm_up_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=cartpole-balance", "preset=tiny", "eval.episodes=1", "train.threads=1", "train.workers=0"]
    words += [f"runs={tmp_path}", "train.compile=off", "train.env_steps=2000"]
    for agent, named in (("agent=iqrl", True), ("agent=td3", True), ("agent.warmup_decisions=999", False)):
        agent_words = ["agent=td3", agent] if "." in agent else [agent]
        assert command_line.main(["train", *agent_words, *words]) == 0
        assert ("no update will be made" in capsys.readouterr().err) == named
