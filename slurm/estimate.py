"""How long packs will take: from runs that ended in the same folder, else from the last benchmark."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from ablations import hours
from iqrl.runs import reader
from iqrl.runs.tables import Damaged
from slurm import tables
from slurm.packs import Pack
from slurm.profile import Profile

LOOKED_AT = 400  # finished runs at most


def sentence(packs: Sequence[Pack], jobs: int, wants: Profile, runs: Path) -> str:
    """GPU-hours (CPU-hours without GPUs) and how long it takes, in words."""
    speed = measured(runs, "cuda" if wants.gpus else "cpu")
    bench = hours.speeds(hours.BENCHMARK) if hours.BENCHMARK.is_file() else {}
    total, unknown = 0.0, Counter[str]()
    for pack in packs:
        key = pack.content["agent"]["name"], pack.content["preset"]
        if key in speed:
            total += pack.env_steps * speed[key]
        elif bench.get(key):
            total += pack.env_steps / hours.ACTION_REPEAT * len(pack.runs) / bench[key]
        else:
            unknown[key[0]] += len(pack.runs)
    if not total:
        return "time: unknown, since no run of these agents has ended here yet, and there is no `make bench`"
    kind = (
        f"{total / 3600 / wants.packs_per_job * wants.gpus:,.1f} GPU-hours"
        if wants.gpus
        else f"{total / 3600:,.1f} CPU-hours"
    )
    at_once = min(jobs, wants.throttle or jobs) * wants.packs_per_job
    end = tables.duration(max(total / at_once, max(_seconds(pack, speed) for pack in packs)))
    missing = "".join(f"; without {n} runs of {agent}, never timed" for agent, n in unknown.items())
    together = f"{end} with {min(jobs, wants.throttle or jobs)} jobs at once"
    return f"time: about {kind}; {together}, waiting not counted{missing}"


def _seconds(pack: Pack, speed: dict[tuple[str, str], float]) -> float:
    return pack.env_steps * speed.get((pack.content["agent"]["name"], pack.content["preset"]), 0.0)


def measured(runs: Path, device: str) -> dict[tuple[str, str], float]:
    """Wall seconds per env step of finished runs on a kind of device, by agent and preset: medians."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for marker in sorted(runs.glob("*/DONE"))[:LOOKED_AT]:
        folder = marker.parent
        try:
            run, state = reader.Run(folder), reader.look(folder, now=0.0)
            if state.state == "done" and str(run.last_session()["device"]).startswith(device):
                config = run.config()
                found[config["agent"]["name"], config["preset"]].append(state.wall_seconds / state.env_step)
        except (OSError, Damaged, KeyError, ZeroDivisionError, TypeError):
            continue
    return {key: statistics.median(values) for key, values in found.items()}
