"""Times one agent of this project; started by `benchmarks.speed`, in a process of its own.

``python -m benchmarks.worker PACK PRECISION COMPILE THREADS key=value...`` builds the agent on a replay of random
transitions and warms it up. It prints one JSON line about itself, then answers each line ``updates N``, ``decisions N``
or ``memory`` on stdin with a number: seconds, seconds, or the process's (or device's) peak memory in bytes.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from iqrl import config
from iqrl.agent import Progress
from iqrl.doctor.examination import random_rows
from iqrl.environments.environment_pool import EnvironmentPool
from iqrl.training.engine import Engine
from iqrl.training.execution import decide
from iqrl.training.replay import Replay

EPISODES = 4  # of random transitions in each seed's replay


def main() -> None:
    pack, precision, compiled, threads, *words = sys.argv[1:]
    execution = [f"train.precision={precision}", f"train.compile={compiled}", f"train.threads={threads}"]
    runs, how, _ = config.resolve([("bench", config.parse_words([*words, *execution, f"seeds=0..{int(pack) - 1}"]))])
    plan, run = decide(how, runs[0]), runs[0]
    spec = run.spec
    agent = run.agent(run.settings, spec, plan.dtype)
    replay = Replay(spec, len(runs), agent.slices, EPISODES * spec.episode_decisions, plan.device)
    rows = random_rows(replay, 0, EPISODES)
    for i in range(len(runs)):
        replay.extend(i, *rows)
    engine = Engine(agent, [r.seed for r in runs], replay, device=plan.device, compiled=plan.compiled)
    progress = [Progress(decisions=10**6, episodes=2000) for _ in runs]
    everyone = list(range(len(runs)))
    period = update_period(agent)

    def updates(n: int) -> None:
        for _ in range(n):
            engine.update(everyone, progress)
        if plan.device.type == "cuda":
            torch.cuda.synchronize()

    with EnvironmentPool(run.task, len(runs), spec.action_repeat, plan.workers, plan.threads) as environments:
        observation = environments.reset([(0, 0, i) for i in everyone])
        carry = engine.initial_carry(len(runs), 1)

        def decisions(n: int) -> None:
            nonlocal observation, carry
            for _ in range(n):
                for p in progress:
                    p.decisions += 1
                action, carry = engine.explore(everyone, observation, carry, progress)
                observation, _, _, ended = environments.step(action, None)
                if ended.any():
                    observation = environments.reset([(0, 0, p.decisions) for p in progress])

        begin = time.perf_counter()
        updates(2 * period)
        decisions(2)
        flops = 0
        if not plan.compiled and len(runs) == 1:  # counted where no compiler hides the operations
            with FlopCounterMode(display=False) as counter:
                updates(period)
            flops = counter.get_total_flops() // period
        state = sum(v.numel() * v.element_size() for v in engine.state.values()) // len(runs)
        about = {
            "task": run.task,
            "device": str(plan.device),
            "precision": plan.precision,
            "compile": "compiled" if plan.compiled else "eager",
            "threads": plan.threads,
            "period": period,
            "flops": flops,
            "state_bytes": state,
            "updates_per_decision": updates_per_decision(run),
            "start_seconds": time.perf_counter() - begin,
        }
        print(json.dumps(about), flush=True)
        for line in sys.stdin:
            what, _, count = line.strip().partition(" ")
            if what == "memory":
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                print(torch.cuda.max_memory_reserved() if plan.device.type == "cuda" else peak, flush=True)
                continue
            begin = time.perf_counter()
            {"updates": updates, "decisions": decisions}[what](int(count))
            print(time.perf_counter() - begin, flush=True)


def update_period(agent) -> int:  # type: ignore[no-untyped-def]
    """Updates after which an agent's stages repeat; timing whole periods counts everything in its share."""
    names = [agent.stages(u) for u in range(1, 1001)]
    for period in (1, 2, 4, 5, 10, 20, 50, 100, 125, 250, 500):
        if names[: 1000 - period] == names[period:]:
            return period
    return 500


def updates_per_decision(run: config.RunConfig) -> float:
    return float(getattr(run.settings, "utd", 1.0))


if __name__ == "__main__":
    main()
