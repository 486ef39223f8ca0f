"""How long a sweep takes on this machine, from the last benchmark."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ablations.sweep import PlannedRun
from iqrl.errors import InputError

BENCHMARK = Path("bench/results.csv")
ACTION_REPEAT = 2  # env steps a decision


def speeds(path: Path) -> dict[tuple[str, str], float]:
    """The most decisions per second, over all seeds trained at once, by agent and preset.

    Reads the columns `agent`, `decisions_per_second` and, where there are any, `preset` and `machine`; of several
    machines the one that was measured last counts.

    Raises:
        InputError: if the file is no such table.
    """
    best: dict[tuple[str, str], float] = {}
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
            for row in rows:
                last = row.get("machine") == rows[-1].get("machine")
                if last and row["decisions_per_second"]:  # blank where environments were not part of it
                    key = row["agent"], row.get("preset") or "default"
                    best[key] = max(best.get(key, 0.0), float(row["decisions_per_second"]))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: {error!r}; expected the table that `make bench` writes") from error
    return best


def estimate(runs: Sequence[PlannedRun], path: Path = BENCHMARK) -> str:
    """Hours that the runs take one after the other, in words."""
    if not path.is_file():
        return "no benchmark yet: make bench"
    measured = speeds(path)
    seconds, wider, unknown = 0.0, set[str](), Counter[str]()
    for run in runs:
        agent, preset = run.config.agent.name, run.config.preset
        speed = measured.get((agent, preset)) or measured.get((agent, "default"))
        if not speed:
            unknown[agent] += 1
            continue
        if (agent, preset) not in measured:
            wider.add(agent)
        seconds += run.config.train.env_steps / ACTION_REPEAT / speed
    words = [f"about {seconds / 3600:,.1f} hours here, evaluations not counted, by the last `make bench`"]
    if wider:
        words.append(f"at default widths, so less for {', '.join(sorted(wider))}")
    words += [f"without {count} runs of {agent}, which it does not know" for agent, count in unknown.items()]
    return "; ".join(words)
