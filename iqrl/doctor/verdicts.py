"""What is switched off for a combination of device, driver, torch version and agent, kept beside the compile cache.

On a CUDA device the first training on a new combination examines, in a process of its own, what it is about to use:
as large as it will be and compiled as it will be, so that the compiler's cache serves it afterwards. On a CPU training
examines nothing, as that would cost more than it tells, but what `python -m iqrl doctor` found wrong is not used there
either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from iqrl.config import RunConfig
from iqrl.doctor.children import Order, Stopped, examined
from iqrl.doctor.ways import COMPILE, GRAPHS, LOW_PRECISION, PACKS, Way, blamed, isolating_ways, short_ways
from iqrl.runs.files import read_json, replace_text, warn
from iqrl.training.execution import Plan, device_name, driver_version, free_memory, memory_estimate, transitions_kept


def combination(device: torch.device, agent: str, source_hash: str = "") -> dict[str, str]:
    """What a verdict holds for. An agent of one's own counts with its file."""
    return {
        "device": device_name(device),
        "driver": driver_version(device),
        "torch": torch.__version__,
        "agent": agent,
        **({"agent_file": source_hash} if source_hash else {}),
    }


def path_of(key: Mapping[str, str]) -> Path:
    """Its file, in the folder of compiled code (TORCHINDUCTOR_CACHE_DIR, or else torch's own choice)."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return Path(cache_dir()) / "doctor" / f"{name}.json"


def read(key: Mapping[str, str]) -> tuple[dict[str, str], set[str]]:
    """The features that are wrong, each with why; and those examined and found right."""
    found = read_json(path_of(key))
    if not isinstance(found, dict) or found.get("combination") != dict(key):
        return {}, set()
    return dict(found.get("wrong", {})), set(found.get("right", []))


def write(key: Mapping[str, str], wrong: Mapping[str, str], right: set[str]) -> None:
    """Keep a verdict; where nothing can be written, the next process examines again."""
    path = path_of(key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"combination": dict(key), "wrong": dict(wrong), "right": sorted(right - set(wrong))}
        replace_text(path, json.dumps(content, indent=1) + "\n")


def features(plan: Plan, seeds: int) -> frozenset[str]:
    """What a plan uses beyond eager float32 of one seed after another."""
    cuda = plan.device.type == "cuda"
    used = {COMPILE} if plan.compiled else set()
    used |= {GRAPHS} if plan.compiled and cuda and plan.recorded is not False else set()
    used |= {PACKS} if seeds > 1 and plan.packed is not False else set()
    return frozenset(used | ({plan.precision} & set(LOW_PRECISION)))


def without(plan: Plan, wrong: Mapping[str, str]) -> Plan:
    """The plan without what is wrong, which it then names."""
    off = {feature: why for feature, why in wrong.items() if feature in features(plan, 2)}
    if plan.precision in off:
        plan = dataclasses.replace(plan, precision="float32")
        if plan.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
    if COMPILE in off:
        plan = dataclasses.replace(plan, compiled=False, recorded=False)
    if GRAPHS in off:
        plan = dataclasses.replace(plan, recorded=False)
    if PACKS in off:
        plan = dataclasses.replace(plan, packed=False)
    return dataclasses.replace(plan, switched_off={**plan.switched_off, **off})


def known(plan: Plan, run: RunConfig) -> Plan:
    """The plan without what was found wrong before."""
    return without(plan, read(combination(plan.device, run.agent.name, run.source_hash))[0])


def trusted(
    plan: Plan,
    run: RunConfig,
    seeds: int,
    announce: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
    examine: bool = True,
) -> Plan:
    """The plan without what is wrong on this combination; on CUDA, examined here if it never was.

    Args:
        seeds: of the pack.
        announce: gets a line when an examination starts, and one for whatever is switched off.
        stop: asked while others examine; when it says True, nothing more is.
        examine: whether to; else only what is known counts.
    """
    key = combination(plan.device, run.agent.name, run.source_hash)
    wrong, right = read(key)
    wanted = features(without(plan, wrong), seeds)
    if examine and plan.device.type == "cuda" and wanted - right:
        with locked(path_of(key)), contextlib.suppress(Stopped):  # one of the processes that start together
            wrong, right = read(key)
            wanted = features(without(plan, wrong), seeds)
            if wanted - right:
                uses = ", ".join(sorted(wanted))
                announce(f"first {run.agent.name} on {key['device']} with torch {key['torch']}: checking {uses}")
                wrong |= found_wrong(order(plan, run, seeds), wanted, seeds, stop)
                write(key, wrong, right | wanted)
    trusted = without(plan, wrong)
    for feature, why in trusted.switched_off.items():
        announce(f"{run.agent.name} on {key['device']}: {feature} is switched off: {why} (see python -m iqrl doctor)")
    return trusted


def found_wrong(order: Order, wanted: frozenset[str], seeds: int, stop: Callable[[], bool]) -> dict[str, str]:
    """The features among `wanted` that are to blame, each with why; none if all is well together.

    Raises:
        Stopped: when `stop` says so.
    """
    results = dict(examined(order, short_ways(wanted, seeds), stop))
    if any(result["wrong"] for result in results.values()):
        more = [w for w in isolating_ways(wanted, seeds) if w not in results]
        results |= dict(examined(order, more, stop))
    for way, result in results.items():
        if not result["wrong"] and result.get("fell_back"):  # right, as training would be; slower
            warn(f"{way}: {result['fell_back']}")
    wrong = {way: result["wrong"] for way, result in results.items() if result["wrong"]}
    return blamed(wrong, [way for way in results if way not in wrong])


def order(plan: Plan, run: RunConfig, seeds: int) -> Order:
    """To examine a run at its own size; with a small replay, if the reference would not fit beside it."""
    fits = (2 * seeds + 1) * memory_estimate(run) <= free_memory(plan.device)
    layer = run.resolved()
    layer["agent"]["name"] = layer["agent"].pop("source", run.agent.name)  # of a file of one's own, its path
    layer["seeds"] = layer.pop("seed")
    kept = transitions_kept(run) if fits else 2 * run.spec.episode_decisions
    return Order(layer, str(plan.device), plan.threads, kept, 0.0, False)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; by all, where files cannot be locked."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file: Any = stack.enter_context(open(f"{path}.lock", "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def keep(device: torch.device, agent: str, source_hash: str, ways: Mapping[Way, Mapping[str, Any]]) -> None:
    """Keep what `python -m iqrl doctor` found wrong; training examines anew what it found right after all."""
    key = combination(device, agent, source_hash)
    wrong, right = read(key)
    bad = {way: result["wrong"] for way, result in ways.items() if result["wrong"]}
    blame = blamed(bad, [way for way in ways if way not in bad])
    seen = frozenset[str]().union(*(way.features for way in ways))
    healed = (seen & wrong.keys()) - blame.keys()
    if blame or healed:
        write(key, {f: w for f, w in wrong.items() if f not in healed} | blame, right - healed - blame.keys())
