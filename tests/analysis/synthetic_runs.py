"""Synthetic run directories in the exact formats that the trainer writes, for tests of the analysis.

The numbers are made up: a sigmoid learning curve an agent and task, and noise a seed and episode.
`python tests/analysis/synthetic_runs.py FOLDER [tasks=4] [seeds=3] [evaluations=21] [agents=iqrl,td3]`
writes a study.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TASKS = (
    "acrobot-swingup", "cartpole-balance", "cartpole-swingup", "cheetah-run", "cup-catch", "dog-run",
    "dog-stand",
    "dog-trot", "dog-walk", "finger-spin", "finger-turn-easy", "finger-turn-hard", "fish-swim",
    "fish-upright",
    "hopper-hop", "hopper-stand", "humanoid-run", "humanoid-stand", "humanoid-walk", "pendulum-swingup",
    "quadruped-run", "quadruped-walk", "reacher-easy", "reacher-hard", "walker-run", "walker-stand",
    "walker-walk",
    "cartpole-swingup-sparse",
)  # fmt: skip
STRENGTH = {"iqrl": 1.0, "mrq": 0.97, "dcwm": 0.95, "tcrl": 0.9, "td7": 0.8, "td3": 0.6}
LATENT_AGENTS = ("iqrl", "tcrl", "dcwm", "mrq", "td7")
CODEBOOK_AGENTS = ("iqrl", "dcwm")


def identity_of(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def write_run(
    runs: Path,
    agent: str = "iqrl",
    task: str = "walker-walk",
    seed: int = 0,
    env_steps: int = 100_000,
    every: int = 20_000,
    episodes: int = 10,
    stop_at: int | None = None,
    end: str = "done",
    returns: list[float] | None = None,
    strength: float | None = None,
    rank: float = 1.0,
    preset: str = "default",
    pack: int = 5,
    precision: str = "bfloat16",
    commit: str = "0123456789abcdef",
    **agent_config: Any,
) -> Path:
    """One run directory.

    Args:
        stop_at: the last env step that was evaluated; None means the budget.
        end: "done", "failed", "interrupted" or "running".
        returns: mean return of each evaluation, exactly (every episode the same); None means made-up noise.
        strength: final score of the made-up curve, in [0, 1].
        rank: factor on the made-up latent rank.
        agent_config: further keys of `agent:`, e.g. horizon=3.
    """
    config = {
        "agent": {"name": agent, "latent_dim": 512, **agent_config},
        "task": task,
        "seed": seed,
        "preset": preset,
        "train": {"env_steps": env_steps},
        "eval": {"every": every, "episodes": episodes},
    }
    identity = identity_of(config)
    run = runs / f"{agent}-{task.replace(',', '_')}-s{seed}-{identity[:8]}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    steps = np.array([*range(0, env_steps, every), env_steps])
    steps = steps[steps <= (env_steps if stop_at is None else stop_at)]
    random = np.random.default_rng(int(identity[:12], 16))
    if returns is None:
        level = STRENGTH.get(agent, 0.5) if strength is None else strength
        hardness = (zlib.crc32(task.encode()) % 100) / 100
        middle = env_steps * (0.15 + 0.5 * hardness + random.normal(0, 0.03))
        final = 1000 * level * (1 - 0.5 * hardness) * random.uniform(0.8, 1.05)
        mean = final / (1 + np.exp(-(steps - middle) / (0.08 * env_steps))) + 5
        table = np.clip(mean[:, None] + random.normal(0, 0.06 * final, (len(steps), episodes)), 0, 1000)
    else:
        table = np.repeat(np.array(returns, dtype=float)[: len(steps), None], episodes, axis=1)
    rows = ["env_step,episode,episode_return,length"]
    for step, episode_returns in zip(steps.tolist(), table.tolist(), strict=True):
        rows += [f"{step},{episode},{value!r},1000" for episode, value in enumerate(episode_returns)]
    (run / "evaluations.csv").write_text("\n".join(rows) + "\n")
    _write_latents(run, agent, steps, rank * (0.7 + 0.3 * STRENGTH.get(agent, 0.5)), random)
    _write_training(run, steps, random)
    seconds = 3.1 + 0.004 * steps
    lines = [f"{step},{wall!r},{step // 2}" for step, wall in zip(steps.tolist(), seconds.tolist(), strict=True)]
    (run / "timing.csv").write_text("\n".join(["env_step,wall_seconds,updates", *lines]) + "\n")
    session = {
        "start": "2026-11-20T08:00:00+00:00",
        "end": None if end == "running" else "2026-11-20T09:00:00+00:00",
        "ended": None if end == "running" else end,
        "host": "node-1", "device": "cuda", "device_name": "NVIDIA H100", "precision": precision,
        "compile": "default",
        "pack": pack, "threads": 4, "job_id": "17", "commit": commit, "dirty": False,
        "command": f"python -m iqrl train agent={agent} task={task} seeds={seed}",
        "packages": {"torch": "2.13.0", "dm_control": "1.0.50", "mujoco": "3.17.0"},
    }  # fmt: skip
    provenance = {"identity": identity, "created": "2026-11-20T08:00:00+00:00", "sessions": [session]}
    (run / "provenance.json").write_text(json.dumps(provenance))
    last = int(steps[-1]) if len(steps) else 0
    if end == "done":
        files = {name: (run / name).stat().st_size for name in ("evaluations.csv", "latents.csv", "training.csv")}
        (run / "DONE").write_text(json.dumps({"env_step": last, "files": files}))
    elif end == "failed":
        failure = {
            "env_step": last,
            "reason": "critic loss is NaN at update 1234",
            "traceback": "Traceback ...",
        }
        (run / "FAILED").write_text(json.dumps(failure))
    return run


def _write_latents(run: Path, agent: str, steps: np.ndarray, rank: float, random: np.random.Generator) -> None:
    rows = [
        "env_step,samples,width,rank_0.1,rank_0.01,rank_0.001,condition_number,"
        "active_codebook_mean,active_codebook_min,active_codebook_max,dormant_percent,dormant_count,"
        "effective_rank,target_cosine,prediction_cosine,drift,observation_r2,reward_r2"
    ]
    budget = max(int(steps[-1]), 1) if len(steps) else 1
    for step in steps[1:].tolist():  # with the first evaluation there is nothing in the replay to diagnose
        if agent in LATENT_AGENTS:
            full = 512 * min(1.0, rank * (0.35 + 0.5 * np.exp(-4 * step / budget)) + random.normal(0, 0.04))
            ranks = f"1024,512,{int(full * 0.5)},{int(full)},{int(min(512, full * 1.2))}"
            condition = "inf" if full < 40 else repr(float(10 ** (3 + 2 * step / budget + random.normal(0, 0.1))))
        else:
            ranks, condition = ",,,,", ""
        codebook = ",,"
        if agent in CODEBOOK_AGENTS:
            share = float((40 if agent == "iqrl" else 33) + 30 * step / budget + random.normal(0, 2))
            codebook = f"{share!r},{max(share - 15, 0)!r},{min(share + 15, 100)!r}"
        dormant = float(max(0, 2 + 5 * step / budget + random.normal(0, 0.5)))
        qualities = ",,,,,"
        if agent in LATENT_AGENTS:
            qualities = ",".join(repr(float(value)) for value in [0.5 * full, *random.uniform(0.2, 0.9, 5)])
        rows.append(f"{step},{ranks},{condition},{codebook},{dormant!r},{int(dormant * 20)},{qualities}")
    (run / "latents.csv").write_text("\n".join(rows) + "\n")


def _write_training(run: Path, steps: np.ndarray, random: np.random.Generator) -> None:
    rows = ["env_step,episode,updates,episode_return,critic_loss,q_mean"]
    for episode, step in enumerate(steps.tolist()):
        losses = f"{random.uniform()!r},{random.uniform()!r}" if episode else ","
        rows.append(f"{step},{episode},{step // 2},{100.0 * episode!r},{losses}")
    (run / "training.csv").write_text("\n".join(rows) + "\n")


def write_manifest(
    runs: Path,
    name: str,
    arms: list[dict[str, str]],
    members: list[tuple[str, str, str, int, int]],
    **fields: Any,
) -> Path:
    """A sweep manifest; `members` are (run directory name, arm, task, seed, env_steps)."""
    agents = {arm["name"]: arm["agent"] for arm in arms}
    manifest = {
        "name": name, "title": name, "question": "", "finding": "", "figure": "curves", "scale": "full",
        "note": "",
        **fields,
        "arms": arms,
        "runs": [
            {"run": run, "arm": arm, "agent": agents[arm], "task": task, "seed": seed, "env_steps": env_steps}
            for run, arm, task, seed, env_steps in members
        ],
    }  # fmt: skip
    path = runs / "sweeps" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest, indent=1))
    return path


def write_study(
    runs: Path,
    agents: tuple[str, ...] = ("iqrl", "td3"),
    tasks: tuple[str, ...] = ("cartpole-swingup", "walker-walk"),
    seeds: int = 2,
    env_steps: int = 100_000,
    evaluations: int = 6,
    name: str = "quickstart",
    **fields: Any,
) -> list[Path]:
    """A complete sweep of one arm an agent, with its manifest."""
    made, members = [], []
    for agent in agents:
        for task in tasks:
            for seed in range(seeds):
                run = write_run(runs, agent, task, seed, env_steps, env_steps // (evaluations - 1))
                made.append(run)
                members.append((run.name, agent, task, seed, env_steps))
    arms = [{"name": agent, "label": agent, "agent": agent} for agent in agents]
    write_manifest(runs, name, arms, members, **fields)
    return made


def main(arguments: list[str]) -> None:
    folder, *rest = arguments
    options = dict(argument.split("=", 1) for argument in rest)
    agents = tuple(options.get("agents", ",".join(STRENGTH)).split(","))
    write_study(
        Path(folder),
        agents=agents,
        tasks=TASKS[: int(options.get("tasks", 4))],
        seeds=int(options.get("seeds", 3)),
        env_steps=int(options.get("env_steps", 1_000_000)),
        evaluations=int(options.get("evaluations", 21)),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
