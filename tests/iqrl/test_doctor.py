"""The doctor says what is wrong, with the right feature's name, and nothing that is wrong is used."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cuda_graphs import imitated
from torch import Tensor

from iqrl import config
from iqrl.doctor import children, examination, surroundings, verdicts
from iqrl.doctor.children import Order, Stopped, examined
from iqrl.doctor.examination import Subject, examine, gaps, share
from iqrl.doctor.ways import COMPILE, GRAPHS, PACKS, Way, blamed, every_way, isolating_ways, short_ways
from iqrl.training import engine as engines
from iqrl.training.cuda_graphs import Recorded
from iqrl.training.execution import Plan, decide

ROOT = Path(__file__).parents[2]

BROKEN_AGENT = """
import torch
from baselines.td3 import TD3, Config
from iqrl.agent import register


@register("broken")
class Broken(TD3):
    def update_critic(self, state, batch, noise, clock):
        changed, metrics = super().update_critic(state, batch, noise, clock)
        if self.dtype == torch.bfloat16:
            FAULT
        return changed, metrics
"""


def agent_file(folder: Path, fault: str) -> Path:
    path = folder / "broken.py"
    path.write_text(BROKEN_AGENT.replace("FAULT", fault))
    return path


def subject(agent: str = "td3", *words: str) -> Subject:
    given = [f"agent={agent}", "preset=tiny", "train.env_steps=2000", "train.threads=1", "train.device=cpu", *words]
    runs, execution, _ = config.resolve([("test", config.parse_words(given))])
    return Subject(runs[0], decide(dataclasses.replace(execution, precision="float32"), runs[0]), 1500)


def wrong(way: Way, agent: str = "td3") -> str:
    return str(examine(subject(agent), way, 0.0)["wrong"])


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Recorded, "_capture", imitated)
    yield


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for every stage, and for copies to targets."""
    monkeypatch.setattr(examination, "UPDATES", 7)
    monkeypatch.setattr(examination, "DECISIONS", 6)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A compile cache of the test's own, so that no verdict of it outlives it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- what is right is right


@pytest.mark.parametrize("agent", ["td3", "td7", "dcwm"])
@pytest.mark.parametrize("features", [(GRAPHS, PACKS), ("bfloat16",)])
def test_nothing_is_said_of_what_is_right(graphs: None, agent: str, features: tuple[str, ...]) -> None:
    found = examine(subject(agent), Way.of(*features), 0.0)
    assert found["wrong"] == found["fell_back"] == ""
    if "bfloat16" in features:
        assert found["update"] > 1e-3  # it was bfloat16
    else:
        assert found["update"] < 1e-4


def test_seeds_by_one_kernel_are_right() -> None:
    """As on a GPU; a CPU takes them one after another."""
    one = subject()
    way = Way.of(PACKS)

    class OneKernel(Subject):
        def engine(self, way: Way) -> Any:
            made = super().engine(way)
            made.packed = PACKS in way.features
            return made

    found = examine(OneKernel(one.run, one.plan, one.capacity), way, 0.2)
    assert found["wrong"] == "" and found["updates_per_second"] > 0


# --- what is broken is named


def test_a_pack_that_mixes_seeds_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lift = engines.lift

    def mixing(*arguments: Any) -> Callable[..., Any]:
        lifted = lift(*arguments)

        def call(state: dict[str, Tensor], *rest: Any) -> Any:
            before = {k: v.clone() for k, v in state.items()}
            result = lifted(state, *rest)
            for k, v in state.items():
                if len(v) > 1 and k == "critic":  # each seed takes the mean step of all
                    v.copy_(before[k] + (v - before[k]).mean(0, keepdim=True))
            return result

        return call

    monkeypatch.setattr(engines, "lift", mixing)
    monkeypatch.setattr(engines.Engine, "__init__", packed_where_not_told(engines.Engine.__init__))
    said = wrong(Way.of(PACKS))
    assert said.startswith("updates of critic are off by")
    assert blamed({Way.of(PACKS): said}, [Way.of()]).keys() == {PACKS}


def packed_where_not_told(init: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *arguments: Any, packed: bool | None = None, **options: Any) -> None:
        init(self, *arguments, packed=True if packed is None else packed, **options)

    return __init__


def stale(self: Recorded, arguments: Any) -> Callable[[Any], Any]:
    """A recording that goes on with the arguments it was made with."""
    given = [{k: v.clone() for k, v in group.items()} for group in arguments[self.fixed :]]
    return lambda now: self.function(*now[: self.fixed], *given)


def unrestored(self: Recorded, arguments: Any) -> Callable[[Any], Any]:
    """A recording whose warm-up is left in the weights."""
    for _ in range(3):
        self.function(*arguments)
    return lambda now: self.function(*now)


@pytest.mark.parametrize("fault", [stale, unrestored])
def test_a_graph_that_keeps_its_books_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any]
) -> None:
    monkeypatch.setattr(Recorded, "_record", fault)
    said = wrong(Way.of(GRAPHS))
    assert "are off by" in said
    assert blamed({Way.of(GRAPHS): said}, [Way.of(), Way.of(PACKS)]).keys() == {GRAPHS}


def test_an_action_of_a_graph_that_is_late_is_named(graphs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning is right, and acting returns what the call before left."""
    call = Recorded.__call__

    def late(self: Recorded, *arguments: Any) -> Any:
        result = call(self, *arguments)
        if self.name != "act":
            return result
        action, carry = result
        before, last[action.shape] = last.get(action.shape, action), action.clone()
        return before, carry

    last: dict[torch.Size, Tensor] = {}
    monkeypatch.setattr(Recorded, "__call__", late)
    assert wrong(Way.of(GRAPHS)).startswith("actions are off by")


def test_a_graph_that_cannot_be_recorded_is_not_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Recorded, arguments: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Recorded, "_capture", fails)
    found = examine(subject(), Way.of(GRAPHS), 0.0)
    assert found["wrong"] == "" and "without a CUDA graph" in found["fell_back"]


def test_a_precision_of_too_few_bits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mm = torch.mm

    def coarse(x: Tensor, weight: Tensor) -> Tensor:
        if weight.dtype == torch.bfloat16:  # 3 bits of its significand
            fraction, exponent = torch.frexp(x.float())
            x = torch.ldexp(torch.round(fraction * 4) / 4, exponent).to(weight.dtype)
        return mm(x, weight)

    monkeypatch.setattr(torch, "mm", coarse)
    assert "are off by" in wrong(Way.of("bfloat16")) and wrong(Way.of(PACKS)) == ""


def test_nan_is_out_of_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = agent_file(tmp_path, "changed['critic'] = changed['critic'] * float('nan')")
    assert "updates of" in wrong(Way.of("bfloat16"), str(path))


def test_distances() -> None:
    assert share(torch.tensor([0.0, 4.0]), torch.tensor([0.0, 16.0])) == 0.5
    assert share(torch.tensor([1e-30]), torch.tensor([0.0])) == float("inf")  # moved, and should not have


def test_idle_time_is_what_no_kernel_covers() -> None:
    assert gaps([(0, 1), (0.5, 2), (3, 4), (3.2, 3.5)]) == 0.25
    assert gaps([]) is None


# --- blame


def test_blame_falls_on_what_no_right_way_has() -> None:
    together = Way.of(COMPILE, GRAPHS, PACKS, "bfloat16")
    right = [Way.of(), Way.of(PACKS), Way.of("bfloat16"), Way.of(COMPILE)]
    assert blamed({Way.of(COMPILE, GRAPHS): "x", together: "y"}, right) == {GRAPHS: "x"}
    assert blamed({together: "y"}, [*right, Way.of(COMPILE, GRAPHS, PACKS)]) == {"bfloat16": "y"}
    assert blamed({}, right) == {}


def test_every_feature_of_a_gpu_is_examined_alone_and_with_all_others() -> None:
    ways = every_way(cuda=True, bfloat16=True, compiled=True)
    assert {Way.of(f) for f in (COMPILE, GRAPHS, PACKS, "bfloat16", "tf32")} <= set(ways)
    assert ways[0] == Way.of() and ways[-1] == Way.of(COMPILE, GRAPHS, PACKS, "bfloat16")
    assert every_way(cuda=False, bfloat16=False, compiled=False) == [Way.of(), Way.of(PACKS)]
    assert all(Way.from_plain(json.loads(json.dumps(w.plain()))) == w for w in ways)


# --- processes


def order(agent: str, **changes: Any) -> Order:
    layer = config.parse_words([f"agent={agent}", "preset=tiny", "train.env_steps=2000"])
    return dataclasses.replace(Order(layer, "cpu", 1, 1500, 0.0, True), **changes)


def test_a_process_that_dies_is_a_finding_and_the_next_way_is_examined(tmp_path: Path) -> None:
    path = agent_file(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    results = dict(examined(order(str(path)), [Way.of("bfloat16"), Way.of(PACKS)]))
    assert "was ended by SIGSEGV" in results[Way.of("bfloat16")]["wrong"]
    assert results[Way.of(PACKS)]["wrong"] == ""


def test_a_process_that_hangs_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    (result,) = dict(examined(order("td3"), [Way.of(PACKS)], limit=1.0)).values()
    assert result["wrong"] == "did not end in 1 s"
    with pytest.raises(Stopped):
        list(examined(order("td3"), [Way.of(PACKS)], stop=lambda: True))


# --- what is wrong is not used


def gpu_plan(**changes: Any) -> Plan:
    plan = Plan(torch.device("cuda"), "bfloat16", True, 1, 0, 300.0)
    return dataclasses.replace(plan, **changes)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A combination as a GPU has it, without one."""
    monkeypatch.setattr(verdicts, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(verdicts, "driver_version", lambda device: "1.2, CUDA 3.4")
    monkeypatch.setattr(verdicts, "free_memory", lambda device: 2**40)


FAULTS = {
    frozenset({GRAPHS}): ("bfloat16 compiled", None, False),
    frozenset({COMPILE}): ("bfloat16 eager", None, False),
    frozenset({PACKS}): ("bfloat16 compiled", False, None),
    frozenset({"bfloat16"}): ("float32 compiled", None, None),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: "+".join(f))
def test_the_first_training_on_a_gpu_switches_off_what_is_wrong(
    gpu: None, monkeypatch: pytest.MonkeyPatch, fault: frozenset[str]
) -> None:
    calls: list[Way] = []

    def faulty(order: Order, ways: list[Way], stop: Any = None) -> Iterator[tuple[Way, dict[str, Any]]]:
        assert order.layer["seeds"] == 0 and order.device == "cuda"
        config.resolve([("doctor", order.layer)])
        for way in ways:
            calls.append(way)
            yield way, {"wrong": "off by 1" if fault & way.features else ""}

    monkeypatch.setattr(verdicts, "examined", faulty)
    run, said = subject().run, list[str]()
    for attempt in range(2):
        plan = verdicts.trusted(gpu_plan(), run, 4, said.append)
        executed, packed, recorded = FAULTS[fault]
        assert executed in str(plan) and (plan.packed, plan.recorded) == (packed, recorded)
        assert plan.switched_off == dict.fromkeys(fault, "off by 1")
        if attempt == 0:
            examinations = len(calls)
    assert len(calls) == examinations  # the verdict was kept
    switched = [line for line in said if "is switched off" in line]
    assert len(switched) == 2 and "checking bfloat16, compile, graphs, packs" in said[0] and len(said) == 3


def test_what_is_right_is_examined_once_and_used(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Way] = []

    def right(order: Order, ways: list[Way], stop: Any = None) -> Iterator[tuple[Way, dict[str, Any]]]:
        calls.extend(ways)
        yield from ((way, {"wrong": "", "fell_back": ""}) for way in ways)

    monkeypatch.setattr(verdicts, "examined", right)
    run = subject().run
    for _ in range(2):
        plan = verdicts.trusted(gpu_plan(), run, 4, lambda line: None)
        assert plan == gpu_plan()
    wanted = frozenset({COMPILE, GRAPHS, PACKS, "bfloat16"})
    assert calls == short_ways(wanted, 4) == [Way.of(COMPILE, GRAPHS, PACKS, seeds=4), Way.of(*wanted, seeds=4)]
    verdicts.trusted(gpu_plan(precision="tf32"), run, 4, lambda line: None)  # another feature
    assert calls[2:] == short_ways(wanted - {"bfloat16"} | {"tf32"}, 4)
    asked = len(calls)
    verdicts.trusted(gpu_plan(), subject("td7").run, 4, lambda line: None, examine=False)
    assert len(calls) == asked
    assert len(isolating_ways(wanted, 4)) == 5


def test_an_examination_that_is_stopped_leaves_no_verdict(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(order: Order, ways: list[Way], stop: Any = None) -> Iterator[Any]:
        raise Stopped
        yield

    monkeypatch.setattr(verdicts, "examined", stopped)
    run = subject().run
    assert verdicts.trusted(gpu_plan(), run, 4, lambda line: None) == gpu_plan()
    assert verdicts.read(verdicts.combination(torch.device("cuda"), "td3")) == ({}, set())


# --- the command


def command(*words: str, cache: Path, where: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "iqrl", *words]
    return subprocess.run(line, capture_output=True, text=True, cwd=where, env=environment)


def test_the_doctor_names_a_broken_precision_and_training_does_without_it(tmp_path: Path, cache: Path) -> None:
    if not any(w.precision == "bfloat16" for w in every_way(False, _has_bfloat16(), False)):
        pytest.skip("the processor has no fast bfloat16, so nobody examines it")
    path = agent_file(tmp_path, "changed['critic'] = changed['critic'] + 1e-3")
    options = ["compile=none", "surroundings=off", "seconds=0.1", "device=cpu"]
    done = command("doctor", f"agents={path}", *options, cache=cache, where=tmp_path)
    assert done.returncode == 1, done.stderr
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("WRONG ")]
    assert "bfloat16: updates of critic are off by" in line
    report = json.loads((tmp_path / "doctor" / "doctor.json").read_text())
    assert {r["way"]: r["right"] for r in report["rows"]} == {"eager float32": True, "packs": True, "bfloat16": False}
    assert (tmp_path / "doctor" / "doctor.csv").read_text().count("\n") == 4
    words = [f"agent={path}", "preset=tiny", "task=cartpole-balance", "train.env_steps=400", "train.precision=bfloat16"]
    trained = command("train", *words, "train.device=cpu", "train.threads=1", cache=cache, where=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("bfloat16 is switched off: updates of critic") == 1
    (folder,) = (tmp_path / "runs").glob("broken-*")
    (session,) = json.loads((folder / "provenance.json").read_text())["sessions"]
    assert session["precision"] == "float32" and list(session["switched_off"]) == ["bfloat16"]


def _has_bfloat16() -> bool:
    from iqrl.training.execution import fast_bfloat16

    return fast_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize(
    "words, named",
    [
        (["agents=td4"], "td4"),
        (["device=tpu"], "train.device=tpu"),
        (["compile=mrq", "agents=td3"], "compile=mrq"),
        (["seconds=never"], "seconds=never"),
        (["preset=huge"], "preset=huge"),
        (["depth=3"], "depth=3"),
        pytest.param(
            ["device=cuda"], "device=cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
        ),
    ],
)
def test_bad_input_is_one_line(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    from iqrl.__main__ import main

    assert main(["doctor", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and named in line


# --- surroundings


def test_surroundings_say_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert surroundings.compiler().state == surroundings.OK
    assert {c.state for c in surroundings.disks(tmp_path)} == {surroundings.OK}
    monkeypatch.setattr(surroundings, "LEAST_DISK", 2**70)
    assert {c.state for c in surroundings.disks(tmp_path)} == {surroundings.WRONG}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert surroundings.slurm().state == surroundings.MISSING
    assert all(isinstance(c, surroundings.Check) for c in surroundings.memory())


def test_a_way_has_time_enough_to_compile() -> None:
    assert children.WAY_SECONDS >= 600
