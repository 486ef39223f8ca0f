"""The storm: a sweep on a real Slurm cluster of this machine while everything goes wrong, at random instants.

    python -m benchmarks.storm faults=30 seed=0

The same sweep runs twice on a private three-node cluster: undisturbed, and under injected faults. Afterwards
every run of the second has to be complete after at most one `retry`, with every CSV row there once, and final
weights, replay and rows bitwise equal to the undisturbed runs. Exit status 0 if so, 1 if not.

There are 11 kinds of faults: each strikes once, and those beyond 11 are drawn at random; of fewer, `faults=3`, so many
kinds are drawn.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.storm_cluster import Cluster, missing
from iqrl import config
from iqrl.errors import InputError
from iqrl.runs import checkpoints, reader
from iqrl.runs.replay_log import ReplayLog

NODES = ("n1", "n2", "n3")
# After the one `retry`, only what the sweep has to survive on its own.
NEEDS_RETRY = ("cancel_running", "cancel_pending", "kill_job")
FAULTS = (
    "limit",
    "requeue",
    "cancel_running",
    "cancel_pending",
    "kill_trainer",
    "kill_worker",
    "kill_job",
    "crash_node",
    "lose_slurmd",
    "restart_controller",
    "fill_disk",
)
PACE = (3.0, 14.0)  # seconds from one fault to the next, in the long storm
SWEEP = """
title: Storm
question: Does every run survive?
finding: It has to.
base:
  {{preset: tiny, eval.every: {every}, eval.episodes: 1, train.compile: "off", train.checkpoint_seconds: {save}}}
arms:
  td3: {{agent: td3, agent.warmup_decisions: {warmup}, agent.utd: {late_utd}, train.workers: "{workers}"}}
  iqrl: {{agent.warmup_episodes: 0, agent.utd: {utd}}}
tasks: [cartpole-swingup, walker-stand]
seeds: 0..{last_seed}
env_steps: {env_steps}
"""
PROFILE = """
gpus: 0
cpus: 1
memory_gb: 1.5
time: "{minutes}:00"
grace_seconds: {grace}
pack: 3
"""


class Storm:
    """One sweep of two agents on two tasks, in packs of 3, on a cluster.

    Args:
        folder: a new one for everything; its `runs` hold the run directories.
        env_steps: budget of a run.
        updates: of a run; few, so that it takes seconds.
        seeds: of each agent and task: 6 make 24 runs.
        save: seconds between checkpoints.
        minutes, grace: time limit, and seconds before it at which jobs are told.
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        *,
        env_steps: int,
        updates: int,
        seeds: int = 6,
        save: float = 1.0,
        workers: int = 0,
        minutes: int = 10,
        grace: int = 30,
        say: Callable[[str], None] = print,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cluster, self.folder, self.say = cluster, folder, say
        self.runs = folder / "runs"
        self.runs.mkdir(exist_ok=True)
        self.sweep, self.profile = folder / "storm.yaml", folder / "profile.yaml"
        decisions = env_steps // 2
        self.sweep.write_text(
            SWEEP.format(
                every=env_steps // 2,
                save=save,
                warmup=decisions // 2,
                utd=updates / decisions,
                late_utd=2 * updates / decisions,
                last_seed=seeds - 1,
                env_steps=env_steps,
                workers=workers,
            )
        )
        self.profile.write_text(PROFILE.format(minutes=minutes, grace=grace))
        self.injected: Counter[str] = Counter()
        self.down: list[str] = []  # nodes to bring back

    def submit(self) -> str:
        """Hand the sweep to the cluster; returns what the command said."""
        return self._slurm("submit", str(self.sweep), "--profile", str(self.profile), "--yes").stdout

    def retry(self) -> str:
        return self._slurm("retry", "storm", "--yes").stdout

    def why(self) -> str:
        return self._slurm("why").stdout

    def _slurm(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.cluster.sweep(*words, f"runs={self.runs}")

    def complete(self) -> int:
        """How many runs are."""
        return sum(reader.complete(path) for path in self.runs.glob("*-s*-*"))

    def rage(self, faults: Sequence[str], pace: tuple[float, float], chance: random.Random) -> list[str]:
        """Inject faults, `pace` seconds from one to the next; one that finds nothing to hit waits for the next turn.

        Returns:
            Those that were left when the queue ran empty.
        """
        left = list(faults)
        while left and self._patience(chance.uniform(*pace)):
            for fault in left:
                if self._inject(fault, chance):
                    left.remove(fault)
                    self.injected[fault] += 1
                    self.say(f"  {fault}")
                    break
        return left

    def calm(self, seconds: float) -> None:
        """Bring everything back, and wait until nothing is queued.

        Raises:
            TimeoutError: if that takes longer.
        """
        for node in self.down:
            self.cluster.node(node, "start")
        self.down.clear()
        (self.folder / "filler").unlink(missing_ok=True)
        self.cluster.wait_empty(seconds)

    def _patience(self, seconds: float) -> bool:
        """Wait; False if the queue ran empty."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.cluster.jobs() and not self.cluster.jobs():
                return False
            time.sleep(0.2)
        return True

    def _inject(self, fault: str, chance: random.Random) -> bool:
        jobs = self.cluster.jobs()
        running = sorted(job for job, (state, _) in jobs.items() if state == "RUNNING")
        pending = sorted(job for job, (state, _) in jobs.items() if state == "PENDING")
        up = [node for node in NODES if node not in self.down]
        if fault == "limit" and running:  # the signal that Slurm sends some time before the time limit
            self.cluster.command("scancel", "--signal=USR2", chance.choice(running), check=False)
        elif fault == "requeue" and running:
            self.cluster.command("scontrol", "requeue", chance.choice(running), check=False)
        elif fault in ("cancel_running", "cancel_pending"):
            there = running if fault == "cancel_running" else pending
            if not there:
                return False
            names = _runs_of(self.runs, chance.choice(there))
            self._slurm("cancel", "storm", *names[:1])
        elif fault in ("kill_trainer", "kill_worker", "kill_job"):
            kind = {
                "kill_trainer": "iqrl train",
                "kill_worker": "iqrl.environments.worker",
                "kill_job": "submitit.core._submit",
            }
            found = processes(kind[fault].split(), self.folder)
            if not found:
                return False
            os.kill(chance.choice(found), signal.SIGKILL)
        elif fault in ("crash_node", "lose_slurmd"):
            if self.down:  # one at a time: first back with the other
                self.cluster.node(self.down.pop(), "start")
                up = list(NODES)
            busy = sorted({node for state, node in jobs.values() if state == "RUNNING" and node in up})
            if not busy:
                return False
            node = chance.choice(busy)
            self.cluster.node(node, "crash" if fault == "crash_node" else "kill")
            self.down.append(node)
        elif fault == "restart_controller":
            self.cluster.node("ctl", "restart")
        elif fault == "fill_disk":
            self._fill_disk(chance.uniform(2, 6))
        else:
            return False
        return True

    def _fill_disk(self, seconds: float) -> None:
        """No byte left in the folder (a small file system of its own) for some seconds."""
        filler = self.folder / "filler"
        try:
            with open(filler, "wb", buffering=0) as file:
                while file.write(b"\0" * 65536):
                    pass
        except OSError:
            pass
        time.sleep(seconds)
        filler.unlink()


def _runs_of(runs: Path, job: str) -> list[str]:
    from slurm.submissions import submissions

    return [n for s in submissions(runs) for j in s.jobs if j.id == job for n in j.runs]


def processes(words: Sequence[str], folder: Path) -> list[int]:
    """Processes of this storm whose command line has all the words."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = os.readlink(entry / "cwd")
        except OSError:
            continue
        if all(word in line for word in words) and (str(folder) in line or place.startswith(str(folder))):
            if "srun" not in line.split(" ")[0]:
                found.append(int(entry.name))
    return sorted(found)


# --- what has to hold afterwards


def differences(disturbed: Path, undisturbed: Path) -> list[str]:
    """What a run that was disturbed has otherwise than one that was not: nothing, it is to be hoped."""
    found = []
    for name in ("evaluations.csv", "training.csv", "latents.csv"):
        mine, theirs = (path / name for path in (disturbed, undisturbed))
        if mine.read_bytes() != theirs.read_bytes():
            found.append(f"{disturbed.name}/{name} differs")
        rows = [tuple(line.split(",")[:2]) for line in mine.read_text().splitlines()]
        if len(set(rows)) != len(rows):
            found.append(f"{disturbed.name}/{name} has a row twice")
    mine_saved, theirs_saved = newest(disturbed), newest(undisturbed)
    found += [f"{disturbed.name}: {where} differs" for where in unequal(mine_saved, theirs_saved)]
    return found


def newest(path: Path) -> dict[str, Any]:
    """The newest checkpoint, with the replay itself in place of where it lies, and without clocks."""
    run = config.load_run(path)
    spec = run.spec
    width = spec.observation_dim + spec.action_dim + 2
    saved = checkpoints.load(reader.checkpoints(path)[0][1], width)
    rows = [rows for rows, _ in ReplayLog.read(path / "replay", saved["replay"], width)]
    saved["replay"] = torch.from_numpy(np.concatenate(rows))
    del saved["wall_seconds"]
    return saved


def unequal(mine: Any, theirs: Any, where: str = "checkpoint") -> list[str]:
    """Places where two nested structures of plain data and tensors are not the same to the last bit."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        if mine.keys() != theirs.keys():
            return [f"{where} (keys)"]
        return [found for key in mine for found in unequal(mine[key], theirs[key], f"{where}.{key}")]
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        if len(mine) != len(theirs):
            return [f"{where} (length)"]
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [found for i, (a, b) in pairs for found in unequal(a, b, f"{where}.{i}")]
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = mine.dtype == theirs.dtype and mine.shape == theirs.shape and torch.equal(_bits(mine), _bits(theirs))
        return [] if same else [where]
    return [] if mine == theirs or (mine != mine and theirs != theirs) else [where]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """As bytes, so that a NaN equals itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor


def compare(disturbed: Path, undisturbed: Path) -> list[str]:
    """Differences over all runs of two folders."""
    names = sorted(path.name for path in undisturbed.glob("*-s*-*"))
    found = [f"{name} is missing" for name in names if not (disturbed / name).is_dir()]
    return found + [
        d for name in names if (disturbed / name).is_dir() for d in differences(disturbed / name, undisturbed / name)
    ]


def sessions(runs: Path) -> int:
    """How often runs were begun or resumed."""
    return sum(len(reader.Run(path).provenance()["sessions"]) for path in runs.glob("*-s*-*"))


class SmallDisk:
    """A folder on a file system of its own, of a few megabytes (needs root)."""

    def __init__(self, path: Path, megabytes: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.megabytes = path, megabytes

    def __enter__(self) -> Path:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.megabytes}m", "tmpfs", str(self.path)], check=True)
        return self.path

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=False)


def drawn(count: int, chance: random.Random) -> list[str]:
    """That many faults in random order: every kind once, as far as they go, and then any."""
    faults = [*FAULTS, *(chance.choice(FAULTS) for _ in range(count - len(FAULTS)))]
    chance.shuffle(faults)
    return faults[:count]


def main(words: Sequence[str]) -> int:
    if "--help" in words or "-h" in words:
        print(__doc__)
        return 0
    options = {"faults": "30", "seed": "0", "env_steps": "6000", "updates": "300", "keep": ""}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in options or (key != "keep" and not value.isdigit()):
            raise InputError(f"{word}: expected one of {', '.join(options)} as key=number (keep=FOLDER)")
        options[key] = value
    if missing():
        raise InputError(missing())
    chance = random.Random(int(options["seed"]))
    faults = drawn(int(options["faults"]), chance)
    size = {"env_steps": int(options["env_steps"]), "updates": int(options["updates"]), "workers": 1}
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {line}", flush=True)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place, Cluster(cpus=1) as cluster:
        calm = Storm(cluster, Path(place) / "calm", **size, say=say)
        say("undisturbed sweep")
        calm.submit()
        calm.calm(3600)
        say(f"{calm.complete()} of 24 complete")
        with SmallDisk(Path(place) / "storm", 200) as disk:
            # Real time limits strike too: after about a minute, more than a process needs to start on a busy machine.
            storm = Storm(cluster, disk, **size, minutes=2, grace=75, say=say)
            say("storm")
            storm.submit()
            left = storm.rage(faults, PACE, chance)
            # Every run still has one retry: what is left of the faults comes after it, if it can be survived.
            storm.calm(3600)
            say(f"{storm.complete()} of 24 complete; retry")
            retried = storm.complete() < 24
            if retried:
                storm.retry()
                survivable = [f for f in FAULTS if f not in NEEDS_RETRY]
                left = [f if f in survivable else chance.choice(survivable) for f in left]
                left = storm.rage(left, PACE, chance)
                storm.calm(3600)
            count = sum(storm.injected.values())
            say(f"{storm.complete()} of 24 complete after {count} faults: {dict(storm.injected)}")
            if options["keep"]:
                subprocess.run(["cp", "-r", str(disk), options["keep"]], check=False)
            wrong = compare(storm.runs, calm.runs)
            if storm.complete() < 24:
                wrong.append(storm.why())
            if left:
                wrong.append(f"{len(left)} faults had no time to strike: env_steps={2 * int(options['env_steps'])}")
            say("\n".join(wrong) or f"{sessions(storm.runs)} sessions; rows, weights and replay bitwise equal")
            return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
