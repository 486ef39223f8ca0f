"""make gpu: all that this project wants to know of a GPU, in one command that ends when its time is up.

    python -m benchmarks.gpu [minutes=25] [steps=doctor,graphs,speed,peers,walker,dog-stand] [device=cuda]
                             [agents=iqrl,mrq,td7,td3,dcwm] [peers=iqrl:CHECKOUT,leanrl:CHECKOUT] [peer_python=PYTHON]
                             [size=full|trial] [out=bench/gpu]

Steps, in order of value:

    doctor      python -m iqrl doctor, an agent at a time: what is right, what is fastest
    graphs      tests/iqrl/test_cuda_graphs.py
    speed       updates/s of each agent at S = 1 and 10, as a share of the roofline (benchmarks.speed)
    peers       official code and LeanRL beside them, of the checkouts given
    walker      iQRL, 10 seeds x 100k env steps of walker-walk, end to end
    dog-stand   iQRL's learning on dog-stand, 5 seeds, for what is left of the time

A step is one or more commands. Each step has a share of the time that is left, and what it does not use goes to those
that follow. A command that runs out of time is interrupted: training saves, and the same call later goes on. What each
command took and how it ended is a row of OUT/steps.csv, at once; the same call again leaves out what is done, and what
failed with the code as it is. Rows: OUT/doctor/AGENT/doctor.csv, OUT/results.csv, OUT/peer.csv, OUT/runs; everything
said: OUT/logs.

size=trial is for trying this command: tiny networks, few steps. With device=cpu a CPU stands in for the GPU.

exit status: 0 all that was asked for is done, 1 something failed, 2 bad input, 75 time was up before all was done
"""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.speed import PEERS, check_peer, machine_name, read_words
from iqrl import processes
from iqrl.agents import agent_class
from iqrl.config import runs_folder_writable
from iqrl.errors import BAD_INPUT, FAILED, INTERRUPTED, InputError, did_you_mean
from iqrl.runs.code import ROOT, code_version
from iqrl.runs.files import now
from iqrl.training.execution import driver_version

# Each step's share of the time, against those that follow it.
STEPS = {"doctor": 7, "graphs": 3, "speed": 7, "peers": 2, "walker": 4, "dog-stand": 3}
DEFAULTS = {
    "minutes": "25",
    "steps": ",".join(STEPS),
    "device": "cuda",
    "agents": "iqrl,mrq,td7,td3,dcwm",
    "peers": "",
    "peer_python": sys.executable,
    "size": "full",
    "out": "bench/gpu",
}
COLUMNS = ["step", "what", "outcome", "seconds", "said", "machine", "driver", "torch", "commit", "date"]
DONE, WRONG, CUT = "done", "failed", "out of time"
GRACE = 40.0  # seconds that an interrupted command has, to save
LEAST = 10.0  # seconds that are worth starting a command for


@dataclass(frozen=True)
class Command:
    """One command of a step; `what` names it in steps.csv."""

    step: str
    what: str
    words: list[str]


def commands(step: str, options: dict[str, str]) -> list[Command]:
    """The commands of a step."""
    out, device, trial = Path(options["out"]).absolute(), options["device"], options["size"] == "trial"
    agents = options["agents"].split(",")
    train = ["-m", "iqrl", "train", "agent=iqrl", f"train.device={device}", f"runs={out / 'runs'}"]
    small = ["preset=tiny", "train.threads=1", "eval.episodes=1"] if trial else []
    match step:
        case "doctor":
            every = agents if trial else [*agents, *(a for a in ("tcrl", "drq") if a not in agents)]
            more = ["compile=none", "preset=tiny", "seconds=0.1", "surroundings=off"] if trial else []
            doctor = ["-m", "iqrl", "doctor", f"device={device}", f"runs={out / 'runs'}", *more]
            return [Command(step, a, [*doctor, f"agents={a}", f"out={out / 'doctor' / a}"]) for a in every]
        case "graphs":
            tests = [str(ROOT / "tests" / "iqrl" / "test_cuda_graphs.py"), *(["-k", "addresses"] if trial else [])]
            return [Command(step, "test_cuda_graphs", ["-m", "pytest", "-n", "0", "-q", "--tb=short", *tests])]
        case "speed":
            how = ["packs=1,2", "rounds=1", "seconds=0.1", "preset=tiny"] if trial else ["packs=1,10", "rounds=3"]
            speed = ["-m", "benchmarks.speed", *how, f"out={out}"]
            return [Command(step, a, [*speed, f"agents={a}"]) for a in agents]
        case "peers":
            speed = ["-m", "benchmarks.speed", "packs=1", "rounds=3", f"peer_python={options['peer_python']}"]
            given = [peer for peer in options["peers"].split(",") if peer]
            return [Command(step, p.partition(":")[0], [*speed, f"peer={p}", f"out={out}"]) for p in given]
        case "walker":
            long = ["seeds=0..1", "train.env_steps=2000", *small] if trial else ["seeds=0..9", "train.env_steps=100000"]
            return [Command(step, "train", [*train, "task=walker-walk", "eval.every=10000", *long])]
        case "dog-stand":
            long = ["seeds=0", "train.env_steps=2000", *small] if trial else ["seeds=0..4", "train.env_steps=1000000"]
            return [Command(step, "train", [*train, "task=dog-stand", "eval.every=10000", *long])]
    raise AssertionError(step)


def main(words: Sequence[str]) -> int:
    if "--help" in words or "-h" in words:
        print(__doc__)
        return 0
    try:
        options = parse(words)
        return run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"error: out={options['out']}: {error.strerror}: {error.filename}", file=sys.stderr)
        return FAILED


def run(options: dict[str, str]) -> int:
    out, end = Path(options["out"]), time.monotonic() + 60 * float(options["minutes"])
    (out / "logs").mkdir(parents=True, exist_ok=True)
    table = Table(out / "steps.csv", options["device"])
    steps = options["steps"].split(",")
    for i, step in enumerate(steps):
        left = end - time.monotonic()
        until = end - left + left * STEPS[step] / sum(STEPS[s] for s in steps[i:])
        for command in commands(step, options):
            if outcome := table.settled(command):
                print(f"{step:10s} {command.what:18s} {outcome} before", flush=True)
                continue
            seconds = until - time.monotonic()
            if seconds < LEAST:
                table.undone = True
                print(f"{step:10s} {command.what:18s} not started: its time is up", flush=True)
                continue
            table.add(command, *execute(command, seconds, out / "logs" / f"{step}-{command.what}.txt"))
    print(f"wrote {table.path}", flush=True)
    return FAILED if table.failed else INTERRUPTED if table.undone else 0


def execute(command: Command, seconds: float, log: Path) -> tuple[str, float, str]:
    """How a command ended, the seconds it took, and the last line it said; its output is appended to `log`."""
    begin = time.monotonic()
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(log, "a") as file:
        print(f"--- {now()} python {' '.join(command.words)}", file=file, flush=True)
        where = file.tell()
        process = subprocess.Popen(
            [sys.executable, *command.words], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
            preexec_fn=processes.terminate_with_parent,
        )  # fmt: skip
        grace = min(GRACE, seconds / 4)
        outcome = ""
        try:
            process.wait(seconds - grace)
        except subprocess.TimeoutExpired:
            outcome = CUT
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        finally:  # on Ctrl-C, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    status = process.returncode
    outcome = DONE if status == 0 else outcome or (CUT if status == INTERRUPTED else WRONG)
    return outcome, time.monotonic() - begin, last_line(log, where)


def last_line(log: Path, where: int) -> str:
    with open(log, errors="replace") as file:
        file.seek(where)
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1][:300] if lines else ""


class Table:
    """steps.csv, a row a command, appended as it ends.

    Attributes:
        failed, undone: whether, of what was asked for, something failed, or was not finished.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.failed, self.undone = path, False, False
        kind = torch.device(device)
        self.about = {
            "machine": machine_name(),
            "driver": driver_version(kind),
            "torch": torch.__version__,
            "commit": str(code_version()["commit"]),
        }
        self.before = list(self._rows())

    def _rows(self) -> Iterator[dict[str, str]]:
        """Those that are there.

        Raises:
            InputError: if the file is another kind of table.
        """
        if not self.path.exists():
            return
        with open(self.path, newline="") as file:
            reader = csv.DictReader(file)
            if list(reader.fieldnames or COLUMNS) != COLUMNS:
                raise InputError(f"{self.path}: expected the columns that this command writes; move it away")
            yield from reader

    def settled(self, command: Command) -> str:
        """How a command ended on this machine earlier, if it need not run again; else empty."""
        for row in reversed(self.before):
            mine = (row["step"], row["what"], row["machine"]) == (command.step, command.what, self.about["machine"])
            if mine and (row["outcome"] == DONE or row["outcome"] == WRONG and row["commit"] == self.about["commit"]):
                self.failed |= row["outcome"] == WRONG
                return row["outcome"]
        return ""

    def add(self, command: Command, outcome: str, seconds: float, said: str) -> None:
        self.failed |= outcome == WRONG
        self.undone |= outcome == CUT
        row = {"step": command.step, "what": command.what, "outcome": outcome, "seconds": f"{seconds:.1f}"}
        row |= {"said": said, **self.about, "date": now()}
        new = not self.path.exists() or self.path.stat().st_size == 0
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(f"{command.step:10s} {command.what:18s} {outcome} in {seconds:.0f} s  {said}", flush=True)


def parse(words: Sequence[str]) -> dict[str, str]:
    """Raises InputError for anything unknown, or a device that is not there."""
    options = read_words(words, DEFAULTS)
    try:
        wrong = not 0 < float(options["minutes"]) < 1e5
    except ValueError:
        wrong = True
    if wrong:
        raise InputError(f"minutes={options['minutes']}: expected a number above 0")
    for step in options["steps"].split(","):
        if step not in STEPS:
            raise InputError(f"steps={step}: no such step{did_you_mean(step, STEPS)}; expected of {', '.join(STEPS)}")
    for agent in options["agents"].split(","):
        agent_class(agent)
    for peer in filter(None, options["peers"].split(",")):
        check_peer(peer, PEERS)
    if options["size"] not in ("full", "trial"):
        raise InputError(f"size={options['size']}: expected full or trial")
    if options["device"] not in ("cuda", "cpu"):
        raise InputError(f"device={options['device']}: expected cuda or cpu; CUDA_VISIBLE_DEVICES chooses among GPUs")
    if options["device"] == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda: this machine or this PyTorch has no CUDA; expected device=cpu, to try it")
    if options["device"] == "cpu" and torch.cuda.is_available():
        raise InputError("device=cpu: this machine has CUDA, which speed would measure; hide it: CUDA_VISIBLE_DEVICES=")
    runs_folder_writable(Path(options["out"]))
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
