"""How long runs take: by runs that have ended in the same folder, else by the last benchmark."""

from __future__ import annotations

import csv
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ablations.sweep import PlannedRun
from iqrl.errors import InputError
from iqrl.runs import reader
from iqrl.runs.tables import Damaged

BENCHMARK = Path("bench/results.csv")
ACTION_REPEAT = 2  # env steps a decision
MOST_READ = 400  # runs that have ended

Speeds = dict[tuple[str, str], float]  # by agent, as `of_task` has it, and preset


@dataclass(frozen=True)
class Estimate:
    """Seconds that runs take, by name: each its share of its pack's. Runs of agents never timed are not among them."""

    seconds: dict[str, float]
    remarks: str

    def words(self, per_hour: float = 1.0, unit: str = "hours") -> str:
        """The sum, such as "about 3.5 hours", or that it is unknown; `per_hour` units are one hour of one process."""
        if not self.seconds:
            return "unknown: none of these agents has ended a run here, and there is no `make bench`"
        return f"about {sum(self.seconds.values()) / 3600 * per_hour:,.1f} {unit}{self.remarks}"


def estimate(runs: Iterable[PlannedRun], folder: Path, device: str, benchmark: Path = BENCHMARK) -> Estimate:
    """What runs will take on this kind of device ("cuda" or "cpu"), as far as that is known.

    Raises:
        InputError: if the benchmark's file is no such table.
    """
    ended = _of_ended_runs(folder, device)
    measured = _of_benchmark(benchmark) if benchmark.is_file() else {}
    seconds, other_width, unknown = dict[str, float](), set[str](), Counter[str]()
    for run in runs:
        agent, preset = of_task(run.config.agent.name, run.config.task), run.config.preset
        each = ended.get((agent, preset)) or measured.get((agent, preset))
        if not each and (each := measured.get((agent, "default"))):
            other_width.add(agent)
        if each:
            seconds[run.name] = run.config.train.env_steps * each
        else:
            unknown[agent] += 1
    remarks = f"; by default widths for {', '.join(sorted(other_width))}" if other_width else ""
    remarks += "".join(f"; without {count} runs of {agent}, never timed" for agent, count in unknown.items())
    return Estimate(seconds, remarks)


def of_task(agent: str, task: str) -> str:
    """An agent's name, and that it sees images, which take far longer than states."""
    return f"{agent} from images" if "@pixels" in task else agent


def _of_benchmark(path: Path) -> Speeds:
    """Seconds per env step and seed, at the pack that was fastest; of several machines the one measured last counts.

    Reads the columns `agent`, `decisions_per_second` (of all seeds at once) and, if there, `preset` and `machine`.
    """
    best: Speeds = {}
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
            for row in rows:
                last = row.get("machine") == rows[-1].get("machine")
                if last and row["decisions_per_second"]:  # blank where environments were not part of it
                    key = of_task(row["agent"], row.get("task") or ""), row.get("preset") or "default"
                    seconds = 1 / float(row["decisions_per_second"]) / ACTION_REPEAT
                    best[key] = min(best.get(key, seconds), seconds)
    except (OSError, KeyError, TypeError, ValueError, ZeroDivisionError, csv.Error) as error:
        raise InputError(f"{path}: {error!r}; expected the table that `make bench` writes") from error
    return best


def _of_ended_runs(folder: Path, device: str) -> Speeds:
    """Seconds per env step and seed, evaluations included: medians."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for marker in sorted(folder.glob("*/DONE"))[:MOST_READ]:
        try:
            run, state = reader.Run(marker.parent), reader.look(marker.parent, now=0.0)
            session, config = run.last_session(), run.config()
            if state.state == "done" and str(session["device"]).startswith(device):
                seconds = state.wall_seconds / state.env_step / (session.get("pack") or 1)
                found[of_task(config["agent"]["name"], config["task"]), config["preset"]].append(seconds)
        except (OSError, Damaged, KeyError, ZeroDivisionError, TypeError):
            continue
    return {key: statistics.median(values) for key, values in found.items()}
