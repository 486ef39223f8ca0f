"""One agent executed in several ways, each beside eager float32: how far apart, how fast, how much memory.

``python -m iqrl.doctor.examination`` reads one JSON object on stdin and writes one JSON line for each way as it ends;
`iqrl.doctor.children` starts it, since what is wrong with a device may end the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iqrl import config, processes
from iqrl.agent import Progress
from iqrl.doctor.ways import COMPILE, GRAPHS, PACKS, Way
from iqrl.environments.environment import task_spec
from iqrl.errors import one_line
from iqrl.training.engine import Engine
from iqrl.training.execution import Plan, decide
from iqrl.training.replay import FINAL, TRUNCATED, Replay

UPDATES, DECISIONS = 20, 20
ENVIRONMENTS = 4  # of each seed, in a greedy decision
EPISODES = 2  # of random transitions in each seed's replay


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        plan: the device; of how it is executed, each way says.
        capacity: of the replay, transitions.
    """

    run: config.RunConfig
    plan: Plan
    capacity: int

    def engine(self, way: Way) -> Engine:
        """An engine that executes the agent in this way, on a replay of random transitions."""
        spec, device = task_spec(self.run.task), self.plan.device
        dtype = torch.bfloat16 if way.precision == "bfloat16" else torch.float32
        agent = self.run.agent(self.run.settings, spec, dtype)
        seeds = list(range(way.seeds))
        replay = Replay(spec, way.seeds, agent.slices, self.capacity, device)
        for seed in seeds:
            replay.extend(seed, *random_rows(replay, seed, max(EPISODES, len(spec.tasks))))
        return Engine(
            agent, seeds, replay, device=device, compiled=COMPILE in way.features, recorded=GRAPHS in way.features,
            packed=None if PACKS in way.features else False,
        )  # fmt: skip


def random_rows(replay: Replay, seed: int, episodes: int = EPISODES) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows (n, width) of whole episodes, and pictures of a task observed as images: a function of the seed."""
    spec, numbers = replay.spec, np.random.default_rng(seed)
    length, split = spec.episode_decisions + 1, replay.width - spec.action_dim - 2
    rows = np.zeros((episodes * length, replay.width), np.float32)
    rows[:, :split] = numbers.standard_normal((len(rows), split))
    rows[:, split:-1] = numbers.uniform(-1, 1, (len(rows), spec.action_dim + 1))
    if spec.tasks:  # episode after episode
        rows[:, split - 1] = np.arange(len(rows)) // length % len(spec.tasks)
    rows[length - 2 :: length, -1] = TRUNCATED
    rows[length - 1 :: length, -1] = FINAL
    shape = spec.frame_shape
    return rows, None if shape is None else numbers.integers(0, 256, (len(rows), *shape), np.uint8)


def examine(subject: Subject, way: Way, seconds: float) -> dict[str, Any]:
    """One way beside the reference.

    Returns:
        `update` and `action`, the distances that `Bounds` speaks of, `where` the state's entry that is furthest;
        `wrong`, one line, empty if both are within bounds; `fell_back`, likewise, of something slower that was used in
        place of what could not be; and, if `seconds` is above 0, what `measure` gives.
    """
    progress = [[Progress(decisions=10**6, episodes=2000) for _ in range(way.seeds)] for _ in range(2)]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        candidate = subject.engine(way)
        result: dict[str, Any] = {"update": 0.0, "where": "", "action": 0.0, "wrong": ""}
        if way.features:
            reference = subject.engine(Way(frozenset(), way.seeds))
            update, entry = compare_updates(reference, candidate, way, *progress)
            action = compare_decisions(reference, candidate, way, *progress)
            result = {"update": update, "where": entry, "action": action, "wrong": verdict(way, update, entry, action)}
            del reference
        if seconds > 0:
            result |= measure(candidate, way, progress[1], seconds)
    print(said.getvalue(), end="", file=sys.stderr)
    fallen = [line.removeprefix("warning: ") for line in said.getvalue().splitlines() if line.startswith("warning: ")]
    return {**result, "fell_back": fallen[0] if fallen else ""}


def verdict(way: Way, update: float, entry: str, action: float | None) -> str:
    """What is out of bounds, in a line; empty if nothing is."""
    bounds, said = way.bounds, []
    if not update <= bounds.update:  # NaN is not
        said.append(f"updates of {entry} are off by {update:.2g} of their size, expected at most {bounds.update:g}")
    if action is not None and not action <= bounds.action:
        said.append(f"actions are off by {action:.2g}, expected at most {bounds.action:g}")
    return "; ".join(said)


def compare_updates(
    reference: Engine, candidate: Engine, way: Way, its: list[Progress], own: list[Progress]
) -> tuple[float, str]:
    """The largest distance of any entry of any seed's state over UPDATES updates, and the entry's name."""
    apart, moved = (dict.fromkeys(reference.state, torch.zeros((), dtype=torch.float64)) for _ in range(2))
    everyone = list(range(way.seeds))
    for _ in range(UPDATES):
        follow(reference, candidate)
        before = {k: v.clone() for k, v in reference.state.items()}
        reference.update(everyone, its)
        with matrix_precision(way):
            candidate.update(everyone, own)
        for k, v in reference.state.items():
            change = (v - before[k]).double().reshape(way.seeds, -1)
            other = (candidate.state[k] - before[k]).double().reshape(way.seeds, -1)
            apart[k] = apart[k] + (other - change).square().sum(1).cpu()  # (S,)
            moved[k] = moved[k] + change.square().sum(1).cpu()
    distance = {k: share(apart[k], moved[k]) for k in apart}
    worst = max(distance, key=lambda k: math.inf if math.isnan(distance[k]) else distance[k])
    return distance[worst], worst


def share(apart: Tensor, moved: Tensor) -> float:
    """The largest root of apart / moved over seeds (S,); infinite where something moved that should not have."""
    ratio = torch.where((apart == 0) & (moved == 0), 0.0, torch.sqrt(apart / moved))
    return float(torch.nan_to_num(ratio, nan=math.nan, posinf=math.inf).max())


def follow(reference: Engine, candidate: Engine) -> None:
    """Bring a candidate to where the reference is, in place."""
    for k, v in reference.state.items():
        candidate.state[k].copy_(v)
    if reference.replay.priority is not None:  # else priorities that differ by rounding draw other transitions
        for seed in range(len(reference.seeds)):
            candidate.replay.load(seed, reference.replay.save(seed))


def compare_decisions(
    reference: Engine, candidate: Engine, way: Way, its: list[Progress], own: list[Progress]
) -> float | None:
    """The largest difference of an action over DECISIONS decisions, half of them greedy.

    A planner picks among sequences of almost equal worth, which rounding may tip: of its decisions one in ten may
    differ, and in low precision they are not compared (None).
    """
    follow(reference, candidate)
    planner = bool(reference.agent.carry())
    everyone, numbers = list(range(way.seeds)), np.random.default_rng(0)
    differences = []
    carries = [reference.initial_carry(way.seeds, n) for n in (ENVIRONMENTS, 1)]
    for step in range(DECISIONS):
        greedy = step % 2 == 0
        spec = reference.agent.spec
        shape = (way.seeds, *([ENVIRONMENTS] if greedy else []), *spec.observation_shape)
        if spec.frame_shape:
            observation = numbers.integers(0, 256, shape, np.uint8)
        else:
            observation = numbers.standard_normal(shape).astype(np.float32)
            if spec.tasks:
                observation[..., -1] = step % len(spec.tasks)
        carry = carries[0 if greedy else 1]

        def decide_with(engine: Engine, progress: list[Progress]) -> tuple[np.ndarray, dict[str, Tensor]]:
            given = {k: v.clone() for k, v in carry.items()}  # noqa: B023, called at once
            if not greedy:  # noqa: B023
                return engine.explore(everyone, observation, given, progress)  # noqa: B023
            noise = [engine.random.evaluation(s, 0, step, ENVIRONMENTS) for s in everyone]  # noqa: B023
            return engine.act(everyone, observation, given, noise, progress)  # noqa: B023

        action, after = decide_with(reference, its)
        carries[0 if greedy else 1] = {k: v.clone() for k, v in after.items()}
        expected = action.copy()
        with matrix_precision(way):
            found = decide_with(candidate, own)[0].copy()
        difference = np.abs(found - expected).reshape(way.seeds, -1).max(1)
        differences.append(np.where(np.isfinite(found).reshape(way.seeds, -1).all(1), difference, np.inf))
        for p in (*its, *own):
            p.decisions += 1
    by_seed = np.stack(differences, 1)  # (S, DECISIONS)
    if not np.isfinite(by_seed).all():
        return math.inf
    if planner:
        return float(np.quantile(by_seed, 0.9, 1).max()) if way.precision == "float32" else None
    return float(by_seed.max())


@contextlib.contextmanager
def matrix_precision(way: Way) -> Iterator[None]:
    """TF32 for float32 products if the way has it; the reference never does."""
    torch.backends.cuda.matmul.allow_tf32 = way.precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


# --- measuring


def measure(engine: Engine, way: Way, progress: list[Progress], seconds: float) -> dict[str, Any]:
    """Seed-updates a second over about so many seconds, peak memory, and the share of time that a GPU is idle."""
    everyone = list(range(way.seeds))

    def updates(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            engine.update(everyone, progress)
        synchronise(engine.device)
        return time.perf_counter() - begin

    with matrix_precision(way):
        forget_memory(engine.device)
        updates(2)
        count = max(UPDATES, round(seconds * UPDATES / max(updates(UPDATES), 1e-6)))
        rate = count * way.seeds / updates(count)
        memory = peak_memory(engine.device)
        idle = idle_share(engine, lambda: updates(UPDATES)) if engine.device.type == "cuda" else None
    return {"updates_per_second": rate, "memory_mib": memory and memory / 2**20, "idle_share": idle}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def idle_share(engine: Engine, work: Any) -> float | None:
    """The share of a GPU's time, from its first kernel to its last, in which none runs; None if it cannot be traced."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    synchronise(engine.device)
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            work()
        # Names that code gives to stretches of the device's time are events, too, and no work.
        found = [e for e in trace.events() if e.device_type == DeviceType.CUDA]
        events = [e for e in found if not getattr(e, "is_user_annotation", False)]
    except Exception as error:  # CUPTI may be missing, or forbidden
        print(f"warning: no trace of the device: {one_line(error)}", file=sys.stderr)
        return None
    return gaps((e.time_range.start, e.time_range.end) for e in events)


def gaps(intervals: Iterable[tuple[float, float]]) -> float | None:
    """The share of the time from the first begin to the last end that no interval covers; None without any."""
    ordered = sorted(intervals)
    if not ordered or ordered[0][0] >= max(end for _, end in ordered):
        return None
    begin, until = ordered[0][0], ordered[0][0]
    covered = 0.0
    for start, end in ordered:
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return 1.0 - covered / (until - begin)


def forget_memory(device: torch.device) -> None:
    """Let peaks of memory begin anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Bytes reserved at most on a GPU, or resident in this process, since `forget_memory`; None if nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return None


# --- the process


def subject(given: dict[str, Any]) -> Subject:
    """Of what `children.Order` says."""
    runs, execution, _ = config.resolve([("doctor", given["layer"])])
    how = dataclasses.replace(execution, device=given["device"], precision="float32", threads=given["threads"])
    run = runs[0]
    if hasattr(run.settings, "target_every") and given["often"]:  # else 20 updates copy nothing to the targets
        run = dataclasses.replace(run, settings=dataclasses.replace(run.settings, target_every=6))
    return Subject(run, decide(how, run), given["capacity"])


def report(subject: Subject, ways: Sequence[Way], seconds: float) -> Iterator[dict[str, Any]]:
    """For each way a line when it begins and one when it ends."""
    for way in ways:
        yield {"begins": way.plain()}
        begin = time.perf_counter()
        try:
            result = examine(subject, way, seconds)
        except Exception as error:
            result = {"wrong": one_line(error)}
        yield {"way": way.plain(), **result, "seconds": time.perf_counter() - begin}
        gc.collect()
        if subject.plan.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.synchronize()  # after an illegal address nothing works any more: raises, and the process ends


def main() -> None:
    given = json.loads(sys.stdin.readline())
    processes.end_with_parent(given["parent"])
    out, sys.stdout = sys.stdout, sys.stderr  # what others print is no answer
    ways = [Way.from_plain(plain) for plain in given["ways"]]
    for line in report(subject(given), ways, given["seconds"]):
        print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main()
