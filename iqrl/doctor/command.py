"""`python -m iqrl doctor`: examines agents and surroundings, prints tables, writes doctor.csv and doctor.json."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iqrl import config
from iqrl.agents import AGENTS, agent_class
from iqrl.doctor import surroundings, verdicts
from iqrl.doctor.children import Order, examined
from iqrl.doctor.examination import EPISODES
from iqrl.doctor.ways import Way, every_way
from iqrl.environments.environment import task_spec
from iqrl.errors import FAILED, InputError, did_you_mean
from iqrl.runs.files import now, replace_text
from iqrl.training.execution import Plan, decide, fast_bfloat16

TASK = "walker-walk"
CHEAP = "td3"  # what `compile=auto` compiles on a CPU, where an agent takes one to two minutes
DEFAULTS = {
    "agents": "", "device": "auto", "compile": "auto", "preset": "", "seconds": "1", "threads": "1", "out": "doctor",
    "runs": "runs", "surroundings": "on",
}  # fmt: skip
COLUMNS = [
    "agent", "way", "seeds", "right", "update", "update_bound", "where", "action", "action_bound",
    "updates_per_second", "ratio_to_eager", "memory_mib", "idle_share", "seconds", "note",
]  # fmt: skip


@dataclass(frozen=True)
class Examination:
    """What one call of the command is to do."""

    agents: list[str]
    compiled: list[str]
    plan: Plan
    preset: str
    seconds: float
    out: Path
    runs: Path
    surroundings: bool


def run(words: Sequence[str]) -> int:
    """The command; its exit status."""
    asked = parse(words)
    asked.out.mkdir(parents=True, exist_ok=True)
    device = asked.plan.device
    about = {k: v for k, v in asked.plan.provenance().items() if k not in ("precision", "compile", "switched_off")}
    about |= {"date": now(), "preset": asked.preset, "task": TASK}
    print(f"{about['device_name']} ({device}) {about['driver']}".rstrip(), f"torch {torch.__version__}", flush=True)
    left_out = [a for a in asked.agents if a not in asked.compiled]
    if left_out:
        print(f"not compiled here: {', '.join(left_out)} (compile=all compiles every agent)", flush=True)
    found = list(surroundings.checks(asked.runs)) if asked.surroundings else []
    for check in found:
        print(f"{check.state:8s} {check.name}: {check.said}", flush=True)
    rows: list[dict[str, Any]] = []
    print(heading(), flush=True)
    for agent in asked.agents:
        rows += examine(agent, asked, rows, about, found)
    bad = [f"{r['agent']} {r['way']}: {r['note']}" for r in rows if not r["right"]]
    bad += [f"{c.name}: {c.said}" for c in found if c.state == surroundings.WRONG]
    for agent in asked.agents:
        print(fastest([r for r in rows if r["agent"] == agent]))
    for line in bad:
        print(f"WRONG  {line}")
    print(
        f"{'all is well' if not bad else f'{len(bad)} wrong'}; wrote {asked.out}/doctor.csv and doctor.json", flush=True
    )
    return FAILED if bad else 0


def examine(
    agent: str,
    asked: Examination,
    before: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    found: Sequence[surroundings.Check],
) -> list[dict[str, Any]]:
    """The rows of one agent, told and written as they come."""
    device = asked.plan.device
    bfloat16 = fast_bfloat16(device)
    ways = every_way(device.type == "cuda", bfloat16, agent in asked.compiled)
    words = [f"agent={agent}", f"task={seen(agent)}"]
    run = config.resolve([("doctor", config.parse_words(words))])[0][0]
    preset = asked.preset if asked.preset in run.agent.presets else "default"  # an agent of one's own may have none
    layer = config.parse_words([*words, f"preset={preset}", "train.env_steps=10000"])
    capacity = (EPISODES + 1) * run.spec.episode_decisions
    order = Order(layer, str(device), asked.plan.threads, capacity, asked.seconds, often=True)
    results: dict[Way, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for way, result in examined(order, ways):
        results[way] = result
        rows.append(row(agent, way, result, results.get(Way.of(), {})))
        print(line_of(rows[-1]), flush=True)
        write(asked.out, [*before, *rows], about, found)
    verdicts.keep(device, run.agent.name, run.source_hash, results)
    return rows


def row(agent: str, way: Way, result: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """A row of doctor.csv. A way that fell back is not what it says, so it is not right."""
    rate, base = result.get("updates_per_second"), reference.get("updates_per_second")
    return {
        "agent": agent,
        "way": str(way),
        "seeds": way.seeds,
        "right": not result["wrong"] and not result.get("fell_back"),
        "update": result.get("update"),
        "update_bound": way.bounds.update,
        "where": result.get("where", ""),
        "action": result.get("action"),
        "action_bound": way.bounds.action,
        "updates_per_second": rate,
        "ratio_to_eager": rate / base if rate and base else None,
        "memory_mib": result.get("memory_mib"),
        "idle_share": result.get("idle_share"),
        "seconds": result.get("seconds"),
        "note": result["wrong"] or result.get("fell_back", ""),
    }


def heading() -> str:
    return (
        f"{'agent':8s} {'executed as':34s} {'':5s} {'update (bound)':>18s} {'action (bound)':>18s} "
        f"{'updates/s':>10s} {'x eager':>7s} {'MiB':>6s} {'GPU idle':>8s}"
    )


def line_of(row: Mapping[str, Any]) -> str:
    """A row of the table on the terminal; what is not known is left blank."""

    def cell(value: float | None, form: str, width: int) -> str:
        return (form.format(value) if value is not None else "").rjust(width)

    distances = [
        (f"{row[k]:.1e}" if row[k] is not None else "none") + f" ({row[f'{k}_bound']:g})" for k in ("update", "action")
    ]
    way = row["way"] + (f" {row['seeds']}" if row["seeds"] > 1 else "")
    return (
        f"{Path(row['agent']).name:8s} {way:34s} {'right' if row['right'] else 'WRONG'} "
        f"{distances[0]:>18s} {distances[1]:>18s} {cell(row['updates_per_second'], '{:.1f}', 10)} "
        f"{cell(row['ratio_to_eager'], '{:.2f}', 7)} {cell(row['memory_mib'], '{:.0f}', 6)} "
        f"{cell(row['idle_share'], '{:.0%}', 8)}"
    )


def fastest(rows: Sequence[Mapping[str, Any]]) -> str:
    """The line that names an agent's fastest way among those that are right."""
    right = [r for r in rows if r["right"] and r["updates_per_second"]]
    if not right:
        return f"{rows[0]['agent']}: nothing is right"
    best = max(right, key=lambda r: r["updates_per_second"])
    return f"{best['agent']}: fastest is {best['way']}, {best['updates_per_second']:.1f} updates/s of all its seeds"


def write(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    found: Sequence[surroundings.Check],
) -> None:
    """Both files, whole or not at all."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS)
    table.writeheader()
    table.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    replace_text(out / "doctor.csv", text.getvalue())
    plain = [{k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()} for r in rows]
    content = {**about, "checks": [c.plain() for c in found], "rows": plain}
    replace_text(out / "doctor.json", json.dumps(content, indent=1) + "\n")


def parse(words: Sequence[str]) -> Examination:
    """Raises InputError for anything unknown, or that this machine does not have."""
    options = dict(DEFAULTS)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in options:
            expected = ", ".join(f"{k}=" for k in DEFAULTS)
            raise InputError(f"{word}: no such option{did_you_mean(key, DEFAULTS)}; expected one of {expected}")
        options[key] = value
    agents = options["agents"].split(",") if options["agents"] else [a for a in AGENTS if can_be_seen(a)]
    layers = [config.parse_words([f"agent={a}", f"task={seen(a)}"]) for a in agents]
    runs = [config.resolve([("doctor", layer)])[0][0] for layer in layers]
    layer = config.parse_words([f"train.device={options['device']}"])
    if not options["threads"].isdigit():
        raise InputError(f"threads={options['threads']}: expected a whole number")
    layer["train"]["threads"] = int(options["threads"])
    execution = config.resolve([("doctor", layer)])[1]
    plan = decide(execution, runs[0])
    preset = options["preset"] or ("small" if plan.device.type == "cuda" else "tiny")
    for agent in agents if options["preset"] else []:
        config.resolve([("doctor", config.parse_words([f"agent={agent}", f"preset={preset}"]))])
    if options["surroundings"] not in ("on", "off"):
        raise InputError(f"surroundings={options['surroundings']}: expected on or off")
    try:
        seconds = float(options["seconds"])
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e4:
        raise InputError(f"seconds={options['seconds']}: expected a number above 0")
    compiled = compiled_agents(options["compile"], agents, plan)
    out, folder = Path(options["out"]), Path(options["runs"])
    config.runs_folder_writable(out)
    return Examination(agents, compiled, plan, preset, seconds, out, folder, options["surroundings"] == "on")


def seen(agent: str) -> str:
    """The task as an agent can observe it."""
    return agent_class(agent)[0].observed(TASK)


def can_be_seen(agent: str) -> bool:
    """Whether this machine can show the task to an agent; says so if not."""
    try:
        task_spec(seen(agent))
    except InputError as error:
        print(f"{agent}: not examined: {error}", file=sys.stderr)
        return False
    return True


def compiled_agents(given: str, agents: Sequence[str], plan: Plan) -> list[str]:
    """Which agents are compiled too."""
    if given == "auto":
        return [a for a in agents if plan.device.type == "cuda" or a == CHEAP]
    if given in ("all", "none"):
        return list(agents) if given == "all" else []
    named = given.split(",")
    if strange := [a for a in named if a not in agents]:
        raise InputError(f"compile={given}: {strange[0]} is not examined; expected auto, all, none, or of the agents")
    return named
