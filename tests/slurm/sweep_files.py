"""Small sweeps, and stand-ins for Slurm's commands, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

TINY = """
title: Tiny
question: Does it run?
finding: It does.
base: {preset: tiny, eval.every: 1000, eval.episodes: 1, train.compile: "off"}
arms: {td3: {agent: td3, agent.warmup_decisions: 900}}
tasks: [cartpole-swingup]
seeds: 0..1
env_steps: 2000
"""

BROKEN_AGENT = '''
"""TD3 whose updates fail."""

from baselines.td3 import TD3
from iqrl.agent import register


@register("broken")
class Broken(TD3):
    def target_value(self, *args, **kwargs):
        raise ArithmeticError("nothing adds up")
'''


def slurm(
    *words: str, path: str | None = None, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m slurm WORDS`, to its end; `path` stands in for PATH."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    if path is not None:
        env["PATH"] = path
    return subprocess.run(
        [sys.executable, "-m", "slurm", *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


def fake_command(folder: Path, name: str, script: str) -> None:
    """An executable called `name` in `folder`: a shell script."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
