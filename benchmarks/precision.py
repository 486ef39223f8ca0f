"""How far bfloat16 turns the gradients of trained runs: beside float32, and beside what another batch does.

    python -m benchmarks.precision runs/iqrl-walker-walk-s0-52daaf07 ... [batches=8] [out=bench/precision.csv]

From each run's newest checkpoint one update is made with batches of its replay, in float32 and in bfloat16, by the same
random numbers. A row is a vector of parameters with an optimiser of its own: the cosine of the two gradients (mean and
lowest over batches), the ratio of their norms, and `other_batch`, the cosine of two batches' gradients in float32.
Where that is far below the former, rounding is small beside the noise that learning lives with. Uncompiled, on the CPU.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import write
from benchmarks.worker import update_period
from iqrl import config
from iqrl.agent import Progress
from iqrl.errors import BAD_INPUT, InputError
from iqrl.runs import checkpoints
from iqrl.runs.code import code_version
from iqrl.runs.replay_log import ReplayLog
from iqrl.training.engine import Engine
from iqrl.training.execution import transitions_kept
from iqrl.training.replay import Replay

COLUMNS = [
    "run", "agent", "task", "seed", "env_step", "parameters", "batches", "cosine", "lowest", "norm_ratio",
    "other_batch", "commit",
]  # fmt: skip
MEAN = "/mean"  # of Adam, of what is before it


class Side:
    """A run as its newest checkpoint has it, in one precision.

    Raises:
        InputError: it has no checkpoint that can be used.
    """

    def __init__(self, path: Path, run: config.RunConfig, dtype: torch.dtype) -> None:
        agent, spec = run.agent(run.settings, run.spec, dtype), run.spec
        self.replay = Replay(spec, 1, agent.slices, transitions_kept(run))
        self.engine = Engine(agent, [run.seed], self.replay)
        _, saved = next(checkpoints.usable(path, self.replay.width), (None, None))
        if saved is None:
            raise InputError(f"{path}: has no usable checkpoint")
        self.saved: dict[str, Any] = saved
        for rows, pictures in ReplayLog.read(path / "replay", saved["replay"], self.replay.width, spec.frame_shape):
            self.replay.extend(0, rows, pictures)
        if not self.replay.available(0):
            raise InputError(f"{path}: its newest checkpoint has nothing to learn from yet")

    def gradients(self, batch: int) -> dict[str, Tensor]:
        """Of the update after the checkpoint, by parameters; `batch` counts the batches and random numbers tried.

        Each is known but for a factor, from Adam's mean, which starts at zero here.
        """
        engine, agent = self.engine, self.engine.agent
        names = [k.removesuffix(MEAN) for k in engine.state if k.endswith(MEAN)]
        found: dict[str, Tensor] = {}
        for stage in dict.fromkeys(s for update in range(1, 1 + update_period(agent)) for s in agent.stages(update)):
            engine.load(0, self.saved["engine"])
            self.replay.load(0, self.saved["replay_extra"])
            engine.stage_counts[0][stage] = engine.stage_counts[0].get(stage, 0) + batch
            for name in names:
                engine.state[name + MEAN].zero_()
            engine.run(stage, [0], [Progress(**self.saved["progress"])])
            for name in names:
                gradient = engine.state[name + MEAN].double().flatten()
                if gradient.any():
                    found[name] = gradient
        return found


def compare(path: Path, batches: int) -> list[dict[str, Any]]:
    """Rows of one run."""
    run = config.load_run(path, {})
    wide, narrow = (Side(path, run, dtype) for dtype in (torch.float32, torch.bfloat16))
    pairs = [(wide.gradients(batch), narrow.gradients(batch)) for batch in range(batches)]
    rows = []
    for name in pairs[0][0]:
        both = [(exact[name], rounded[name]) for exact, rounded in pairs]
        cosines = [cosine(exact, rounded) for exact, rounded in both]
        others = [cosine(one, another) for (one, _), (another, _) in itertools.pairwise(both)]
        rows.append({
            "run": path.name, "agent": run.agent.name, "task": run.task, "seed": run.seed,
            "env_step": wide.saved["progress"]["decisions"] * run.spec.action_repeat, "parameters": name,
            "batches": batches, "cosine": fmean(cosines), "lowest": min(cosines),
            "norm_ratio": fmean(float(rounded.norm() / exact.norm()) for exact, rounded in both),
            "other_batch": fmean(others), "commit": code_version()["commit"],
        })  # fmt: skip
    return rows


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one, other) / (one.norm() * other.norm()))


def main(words: Sequence[str]) -> int:
    options = {"batches": "8", "out": "bench/precision.csv"}
    paths: list[Path] = []
    for word in words:
        key, sign, value = word.partition("=")
        if not sign:
            paths.append(Path(word))
        elif key in options:
            options[key] = value
        else:
            raise InputError(f"{word}: expected a run's folder, {' or '.join(f'{k}=' for k in options)}")
    batches = options["batches"]
    if not batches.isdecimal() or int(batches) < 2:
        raise InputError(f"batches={batches}: expected a whole number from 2")
    if not paths:
        raise InputError("expected a run's folder, such as runs/iqrl-walker-walk-s0-52daaf07")
    rows = []
    for path in paths:
        for row in compare(path, int(batches)):
            print(
                f"{row['run']}  {row['env_step']:,}  {row['parameters']:8}  cosine {row['cosine']:.4f} (lowest "
                f"{row['lowest']:.4f})  norm {row['norm_ratio']:.3f}  other batch {row['other_batch']:.3f}",
                flush=True,
            )
            rows.append(row)
        write(Path(options["out"]), rows, COLUMNS, digits=7)
    print(f"wrote {options['out']}")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
