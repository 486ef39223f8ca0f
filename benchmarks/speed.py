"""make bench: how fast every agent trains on this machine, against eager float32 and against official code.

    python -m benchmarks.speed [agents=iqrl,td3] [packs=1,2,5,10] [rounds=5] [seconds=2] [threads=0]
                               [task=walker-walk] [preset=default] [precision=auto]
                               [peer=NAME:CHECKOUT] [peer_python=PYTHON] [out=bench]

Every row is timed in turn with the eager float32 single-seed run of the same agent (and with the checkout, if one is
given), in windows of a few seconds, A B A B ...; ratios are medians over pairs of neighbouring windows, so a machine
whose speed drifts does not bend them. A window is whole periods of the agent's updates on every side (250 of TD7's and
MR.Q's, however long they take). Our updates include drawing their batches, a checkout's do not.

A peer is the official code of any of the agents (of MR.Q and DR.Q also from images, task=walker-walk@pixels), or
leanrl, LeanRL's TD3, compiled and on a GPU captured; PYTHON must have what it imports, PyTorch above all (leanrl:
tensordict no newer than 0.12, later ones do not compile there).

Every row is written as it comes, to OUT/results.csv (OUT/peer.csv, with a peer), in place of a former one of the same
agent, sizes, pack, device and machine; other rows of the file stay. The figure beside it has the new ones.

`decisions_per_second` counts every seed of the pack and is that of acting, simulating and updating one after the other.
The roofline is this machine's own: its matrix rate and memory bandwidth, measured in the same run.
"""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iqrl import processes
from iqrl.agents import AGENTS, agent_class
from iqrl.errors import BAD_INPUT, InputError
from iqrl.runs.code import code_version
from iqrl.runs.files import replace_text

COLUMNS = [
    "agent",
    "preset",
    "task",
    "device",
    "precision",
    "compile",
    "threads",
    "pack",
    "updates_per_second",
    "seed_updates_per_second",
    "ratio_to_eager",
    "decisions_per_second",
    "roofline_fraction",
    "peak_memory_gib",
    "start_seconds",
    "peer",
    "peer_updates_per_second",
    "ratio_to_peer",
    "matrix_gflops",
    "bandwidth_gbs",
    "machine",
    "commit",
    "date",
]
# Two rows that have these in common measure the same thing.
KEY = ("agent", "preset", "task", "device", "precision", "compile", "threads", "pack", "peer", "machine")
DEFAULTS = {
    "agents": "",
    "packs": "1,2,5,10",
    "rounds": "5",
    "seconds": "2",
    "threads": "0",
    "task": "walker-walk",
    "preset": "default",
    "peer": "",
    "peer_python": sys.executable,
    "out": "bench",
    "precision": "auto",
}
# Peers: our agent, and what must be set for networks, critics, batch, horizon and N to equal theirs at walker-walk
# sizes; the others' own defaults there are those of the official code.
PEERS = {
    "iqrl": ("iqrl", ["agent.num_critics=5", "agent.q_sample=2", "agent.actor_q=avg", "agent.nstep=3"]),
    "td3": ("td3", ["agent.profile=official"]),
    "leanrl": ("td3", ["agent.profile=official"]),
    "td7": ("td7", []),
    "tcrl": ("tcrl", []),
    "dcwm": ("dcwm", []),
    "mrq": ("mrq", []),
    "drq": ("drq", []),
    "drqv2": ("drqv2", []),
    "sac_ae": ("sac_ae", ["task=walker-walk@pixels", "agent.warmup_decisions=0"]),
    "taco": ("taco", ["task=walker-walk@pixels"]),
}
PIXELS = "walker-walk@pixels"  # the other task that MR.Q's code and DR.Q's are built for
SHORT_PERIOD = "agent.target_every=20"  # there, as `peer.mrq` has it: 250 updates take long from images


class WorkerEnded(RuntimeError):
    """A timed process is gone; what it wrote to stderr says why."""


class Worker:
    """A process that times windows of updates on request."""

    def __init__(self, command: Sequence[str], threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else dict(os.environ)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.about = self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            command = " ".join(map(str, self.process.args))  # type: ignore[arg-type]
            raise WorkerEnded(f"{command}: ended with status {self.process.wait()} before it answered")
        return line.strip()

    def ask(self, line: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure_machine(threads: int) -> dict[str, float]:
    """Matrix rates by type (GFLOP/s) and copy bandwidth (GB/s, read plus write) of the device in use."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 1536

    def best(function: Any, count: int = 8) -> float:
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        return min(times)

    rates = {}
    for name in ("float32", "bfloat16", *(["tf32"] if device == "cuda" else [])):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rates[name] = 2 * size**3 / best(lambda a=a, b=b: a @ b) / 1e9
    source = torch.empty(2**26, device=device).normal_()
    target = torch.empty_like(source)
    rates["bandwidth"] = 2 * source.numel() * 4 / best(lambda: target.copy_(source)) / 1e9
    return rates


def time_agent(
    agent: str, pack: int, baseline: Worker, peer: Worker | None, options: dict[str, str], words: Sequence[str]
) -> dict[str, Any]:
    """One row of the table."""
    worker = ours(pack, options["precision"], "on", options, [f"agent={agent}", *words])
    try:
        about = json.loads(worker.about)
        period = about["period"]
        rivals = {"ours": worker, "eager": baseline, **({"peer": peer} if peer else {})}
        ask = {name: "{}" if name == "peer" else "updates {}" for name in rivals}
        counts = {}
        for name, rival in rivals.items():  # a window of about so many seconds, in whole periods
            once = rival.ask(ask[name].format(period))
            counts[name] = max(1, round(float(options["seconds"]) / max(once, 1e-6))) * period
        rates: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(int(options["rounds"])):
            for name, rival in rivals.items():
                rates[name].append(counts[name] / rival.ask(ask[name].format(counts[name])))
        decision = statistics.median(worker.ask("decisions 20") / 20 for _ in range(5))
        median = {name: statistics.median(values) for name, values in rates.items()}
        row: dict[str, Any] = {
            "updates_per_second": median["ours"],
            "seed_updates_per_second": median["ours"] * pack,
            "ratio_to_eager": pack
            * statistics.median(a / b for a, b in zip(rates["ours"], rates["eager"], strict=True)),
            "decisions_per_second": pack / (decision + about["updates_per_decision"] / median["ours"]),
            "peak_memory_gib": worker.ask("memory") / 2**30,
        }
        if peer:
            ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["peer"], strict=True))
            row |= {"peer_updates_per_second": median["peer"], "ratio_to_peer": pack * ratio}
        return {
            **{k: about[k] for k in ("device", "precision", "compile", "threads", "start_seconds")},
            **row,
            "state_bytes": about["state_bytes"],
        }
    finally:
        worker.close()


def ours(pack: int, precision: str, compiled: str, options: dict[str, str], words: Sequence[str]) -> Worker:
    command = [sys.executable, "-m", "benchmarks.worker", str(pack), precision, compiled, options["threads"]]
    setting = [f"preset={options['preset']}", "train.env_steps=100000"]
    return Worker([*command, *setting, *words], int(options["threads"]))


def main(words: Sequence[str]) -> int:
    if "--help" in words or "-h" in words:
        print(__doc__)
        return 0
    rows: list[dict[str, Any]] = []
    try:
        options = parse(words)
        path = Path(options["out"], "peer.csv" if options["peer"] else "results.csv")
        before = read(path)
        for row in measure(options):
            rows.append(row)
            write(path, [*others(before, rows), *rows])
        print(f"wrote {path}")
        draw(rows, path.with_suffix(""))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (WorkerEnded, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def measure(options: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of the table, told as they come.

    Raises:
        WorkerEnded: if a timed process dies.
    """
    threads = int(options["threads"])
    machine = measure_machine(threads)
    print(
        f"matrix products: float32 {machine['float32']:.0f}, bfloat16 {machine['bfloat16']:.0f} GFLOP/s; "
        f"memory {machine['bandwidth']:.1f} GB/s",
        flush=True,
    )
    peer_name, _, checkout = options["peer"].partition(":")
    rival, setting = PEERS.get(peer_name, ("", []))
    for agent in (options["agents"] or rival or ",".join(AGENTS)).split(","):
        same = setting if agent == rival else []
        if not any(word.startswith("task=") for word in same):
            same = [f"task={agent_class(agent)[0].observed(options['task'])}", *same]
        if agent == rival and options["task"] == PIXELS:
            same = [*same, SHORT_PERIOD]
        baseline = ours(1, "float32", "off", options, [f"agent={agent}", *same])
        known = json.loads(baseline.about)
        peer = None
        if agent == rival:
            adapter = str(Path(__file__).with_name("peer.py"))
            named = f"{peer_name}@pixels" if "@pixels" in known["task"] else peer_name
            command = [options["peer_python"], adapter, named, checkout, str(known["threads"])]
            peer = Worker(command, int(options["threads"]))
        for pack in (int(p) for p in options["packs"].split(",")):
            row = time_agent(agent, pack, baseline, peer, options, same)
            # An update can be no faster than its products at the matrix rate, or than its state through memory.
            bound = max(known["flops"] / machine[row["precision"]], 2 * row.pop("state_bytes") / machine["bandwidth"])
            row |= {
                "agent": agent,
                "preset": options["preset"],
                "task": known["task"],
                "pack": pack,
                "peer": peer_name if peer else "",
                "roofline_fraction": row["seed_updates_per_second"] * bound / 1e9,
                "matrix_gflops": machine[row["precision"]],
                "bandwidth_gbs": machine["bandwidth"],
                "machine": machine_name(),
                "commit": code_version()["commit"],
                "date": time.strftime("%Y-%m-%d"),
            }
            against = f"  {row['ratio_to_peer']:.2f}x {peer_name}'s checkout" if peer else ""
            print(
                f"{agent:6s} S={pack:<3d} {row['precision']} {row['compile']}  "
                f"{row['seed_updates_per_second']:8.1f} seed-updates/s  "
                f"{row['ratio_to_eager']:.2f}x eager float32{against}  {row['decisions_per_second']:8.1f} decisions/s  "
                f"{100 * row['roofline_fraction']:.0f}% of roofline  {row['peak_memory_gib']:.1f} GiB",
                flush=True,
            )
            yield row
        baseline.close()
        if peer:
            peer.close()


def read_words(words: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """Options, of words KEY=VALUE.

    Raises:
        InputError: for any other word, and for an unknown key.
    """
    options = dict(defaults)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in defaults:
            raise InputError(f"{word}: expected one of {', '.join(k + '=' for k in defaults)}")
        options[key] = value
    return options


def check_peer(peer: str, known: Iterable[str]) -> None:
    """Raises InputError unless it is NAME:CHECKOUT, of a name that is known and a folder that exists."""
    name, _, path = peer.partition(":")
    if name not in known:
        raise InputError(f"peer={peer}: expected one of {', '.join(f'{k}:/path/to/checkout' for k in known)}")
    if not Path(path).is_dir():
        raise InputError(f"peer={peer}: no such folder")


def check_whole(options: Mapping[str, str], *keys: str) -> None:
    """Raises InputError if one of these options is no whole number."""
    for key in keys:
        if not options[key].isdigit():
            raise InputError(f"{key}={options[key]}: expected a whole number")


def parse(words: Sequence[str]) -> dict[str, str]:
    options = read_words(words, DEFAULTS)
    name = options["peer"].partition(":")[0]
    if name:
        check_peer(options["peer"], PEERS)
    for key in ("task", "preset") if name else ():
        if options[key] != DEFAULTS[key] and (name not in ("mrq", "drq") or options[key] != PIXELS):
            raise InputError(f"{key}={options[key]}: expected {DEFAULTS[key]}, whose sizes official code is built with")
    if name and options["agents"] and PEERS[name][0] not in options["agents"].split(","):
        raise InputError(f"agents={options['agents']}: expected {PEERS[name][0]} among them, to time {name} against")
    check_whole(options, "rounds", "threads")
    for pack in options["packs"].split(","):
        if not pack.isdigit() or int(pack) < 1:
            raise InputError(f"packs={options['packs']}: expected numbers of seeds, such as 1,10")
    try:
        wrong = not 0 < float(options["seconds"]) < 1e6
    except ValueError:
        wrong = True
    if wrong:
        raise InputError(f"seconds={options['seconds']}: expected a number above 0")
    for agent in filter(None, options["agents"].split(",")):
        agent_class(agent)
    return options


def machine_name() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "cpu")
    return f"{model}, {processes.cores()} cores"


def read(path: Path) -> list[dict[str, Any]]:
    """The rows that are there, all values as text; none without a file.

    Raises:
        InputError: if the file is another kind of table, which writing would destroy.
    """
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: {error}") from error
    if any(list(row) != COLUMNS or None in row.values() for row in rows):
        raise InputError(f"{path}: expected the columns that the benchmark writes; move it away")
    return rows


def others(before: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of `before` that none of `rows` measures anew."""
    anew = [{key: str(row[key]) for key in KEY} for row in rows]
    return [row for row in before if {key: row[key] for key in KEY} not in anew]


def write(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS, digits: int = 5) -> None:
    """Write a table whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.{digits}g}" if isinstance(v, float) else v for k, v in row.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text.getvalue())


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    figure, axes = plt.subplots(figsize=(5.5, 3))
    labels = [f"{r['agent']}\nS={r['pack']}" for r in rows]
    sns.barplot(x=labels, y=[r["ratio_to_eager"] for r in rows], ax=axes, color="#4477aa")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel("seed-updates/s,\nratio to eager float32, S=1")
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title(f"{rows[0]['machine']}", fontsize=8)
    for kind in ("pdf", "png"):
        figure.savefig(path.with_suffix(f".{kind}"), bbox_inches="tight", dpi=200)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
