"""Planning, looking at and loading ten thousand runs: python -m benchmarks.storm_scale [runs=10000]."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import ablations
from analysis import runs as analysis
from iqrl.errors import InputError
from slurm.remaining import make_packs
from slurm.submissions import write_manifest

SWEEP = """
title: Many
question: How long does it take to plan and to look?
finding: Seconds.
base: {{preset: tiny}}
arms: {{td3: {{agent: td3}}, a: {{agent.horizon: 5}}, b: {{agent.horizon: 3}}, c: {{agent.horizon: 1}}}}
tasks: [{tasks}]
seeds: 0..{last}
env_steps: 100000
"""
TASKS = ("walker-walk", "walker-run", "cheetah-run", "cartpole-swingup", "reacher-hard")


def main(words: Sequence[str]) -> int:
    count = 10_000
    for word in words:
        key, _, value = word.partition("=")
        if key != "runs" or not value.isdigit() or int(value) < 20:
            raise InputError(f"{word}: expected runs=NUMBER, at least 20")
        count = int(value)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        file = folder / "many.yaml"
        file.write_text(SWEEP.format(tasks=", ".join(TASKS), last=count // 20 - 1))
        start = time.perf_counter()
        sweep = ablations.load(str(file))
        planned = sweep.unique_runs()
        packs = make_packs(planned, 16, {}, folder)
        write_manifest(sweep, folder)
        print(f"plan: {len(planned)} runs, {len(packs)} packs: {time.perf_counter() - start:.2f} s")
        for i, run in enumerate(planned):
            _fake(folder / run.name, i)
        for attempt in ("first", "second"):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "slurm", "status", f"runs={folder}"], check=True, stdout=subprocess.DEVNULL
            )
            print(f"status, {attempt} call: {time.perf_counter() - start:.2f} s")
        for attempt in ("first", "cached"):
            start = time.perf_counter()
            analysis.load([folder])
            print(f"analysis, {attempt} load: {time.perf_counter() - start:.2f} s")
    return 0


def _fake(path: Path, i: int) -> None:
    """A run directory as status sees it: three of four done, the others begun."""
    (path / "lease").mkdir(parents=True)
    (path / "checkpoint").mkdir()
    (path / "config.yaml").write_text("agent: {name: x}\n")
    (path / "lease" / "00000001").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 1, "job_id": None}))
    progress = {
        "env_step": 50_000,
        "env_steps": 100_000,
        "last_return": 1.5,
        "env_steps_per_second": 100.0,
        "wall_seconds": 5.0,
    }
    (path / "progress.json").write_text(json.dumps(progress))
    tables = ("evaluations.csv", "training.csv", "latents.csv", "timing.csv")
    for name in tables:
        (path / name).write_text("env_step\n" * 10)
    if i % 4:
        done = {"env_step": 100_000, "files": {name: 90 for name in tables}}
        (path / "DONE").write_text(json.dumps(done))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
