"""make fidelity: the same updates by this project and by official code, and how far apart they end.

    python -m benchmarks.fidelity peer=NAME:CHECKOUT [updates=0] [size=64] [seed=0] [limit=1e-6] [task=]
                                  [peer_python=PYTHON] [out=bench/fidelity]

Both sides start from equal weights, see equal batches (of random numbers, `size` in each) and use equal random numbers;
networks have their default sizes at walker-walk's. Then, for each network, the distance between both sides' weights is
told as a fraction of how far the official one moved; the last row is the largest difference of 8 greedy actions (for
DC-MPC, of successive plans). All is in float64 and eager, so what the two differ by is rounding, or else what they
compute. This compares learning steps and actions: not when a step is due, nor what the replay draws. Where released
code departs from its paper, the switches of WORDS make this project follow the release; some transitions terminate,
where it has a mask for that (ENDS; DC-MPC's differs, dcwm.md W8).

task=walker-walk@pixels compares MR.Q and DR.Q from images; without it, agents that see nothing else do so.
updates=0 is as many as reach every kind of update three times. Ends with 1 if a difference is above `limit`.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import speed
from benchmarks.worker import update_period
from iqrl import config, counter_random
from iqrl.agent import Agent, Batch, Noise
from iqrl.errors import BAD_INPUT, InputError
from iqrl.runs.code import code_version

# Released behaviour where the default is the paper's; sizes and critics as in `peer.py`.
WORDS = {
    "iqrl": ["agent.profile=released", "agent.nstep=3"],
    "td3": ["agent.profile=official"],
    "td7": [],
    "tcrl": [],
    "dcwm": ["agent.released_nstep=true", "agent.released_pi_noise=true"],
    "mrq": ["agent.reward_mask=released"],
    "drqv2": [],
    "taco": ["task=walker-walk@pixels"],
    "sac_ae": ["task=walker-walk@pixels", "agent.warmup_decisions=0"],  # whose first updates count as those after
    "drq": ["agent.released_infonce_mask=true", "agent.target_every=20"],  # `peer.drq` says why 20
}
DEFAULTS = {
    "peer": "", "task": "", "updates": "0", "size": "64", "seed": "0", "limit": "1e-6", "peer_python": sys.executable,
    "out": "bench/fidelity",
}  # fmt: skip
COLUMNS = ["agent", "updates", "what", "parameters", "moved", "difference", "official_commit", "commit", "date"]
# Share of transitions that terminate.
ENDS = dict.fromkeys(("iqrl", "td3", "td7", "mrq", "drq", "drqv2", "sac_ae"), 0.1)
CYCLE = 8  # different batches, and sets of random numbers
ACTIONS = 8


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """All that agents keep in float32 is in float64."""
    kept = torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = kept  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)


def random_numbers(wanted: Mapping[str, Noise], generator: torch.Generator) -> dict[str, torch.Tensor]:
    draw = {
        "normal": lambda shape: torch.randn(shape, generator=generator),
        "uniform": lambda shape: torch.rand(shape, generator=generator),
        "bits": lambda shape: torch.randint(-(2**31), 2**31, shape, generator=generator).int(),
    }
    return {name: draw[n.kind](n.shape) for name, n in wanted.items()}


def observations(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Of vectors (..., O) or of images (..., C, height, width)."""
    if len(shape) < 4:
        return torch.randn(shape, generator=generator)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def weights(agent: Agent, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every network's parameters, by "STATE/NETWORK/PARAMETER"; not those of policies kept aside."""
    groups = agent.groups()
    found: dict[str, torch.Tensor] = {}
    for entry, flat in state.items():
        kind = entry.removeprefix("fixed_").removeprefix("target_").removesuffix("_target")
        if kind in groups and groups[kind].size != len(flat):  # of a part of its networks
            kind = "target"
        if kind in groups and not entry.startswith("checkpoint_"):
            for network, parameters in groups[kind].unpack(flat).items():
                found |= {f"{entry}/{network}/{k}": v for k, v in parameters.items()}
    return found


def follow(agent: Agent, options: dict[str, str]) -> tuple[dict[str, Any], dict[str, torch.Tensor], torch.Tensor]:
    """This project's side: what the other side is given, and weights and actions (ACTIONS, A) after the updates."""
    generator = torch.Generator().manual_seed(int(options["seed"]))
    spec, slices, updates = agent.spec, agent.slices, int(options["updates"])

    def batch() -> tuple[torch.Tensor, ...]:
        shape = (slices.horizon, slices.batch_size)
        observation = observations((shape[0] + 1, shape[1], *spec.observation_shape), generator)
        action = torch.rand(*shape, spec.action_dim, generator=generator) * 2 - 1
        ended = (torch.rand(shape, generator=generator) < ENDS.get(agent.name, 0.0)).double()
        return observation, action, torch.rand(shape, generator=generator), ended

    batches = [batch() for _ in range(CYCLE)]
    numbers = {
        name: [drawn_out(agent, random_numbers(agent.stage(name).noise, generator)) for _ in range(CYCLE)]
        for name in sorted({name for u in range(1, updates + 1) for name in agent.stages(u)})
    }
    state = {k: v.double() for k, v in agent.initialise(generator).items()}
    given: dict[str, Any] = {
        "size": slices.batch_size,
        "updates": updates,
        "slices": batches,
        "weights": {k: v.clone() for k, v in weights(agent, state).items()},
        "noise": [],
    }
    scalars = {"sigma": 1.0, "mean_absolute_reward": 0.5, "terminations": 100.0 * ENDS.get(agent.name, 0.0)}
    schedule = {k: torch.tensor(v) for k, v in scalars.items()}
    used: dict[str, int] = {}
    for update in range(1, updates + 1):
        for name in agent.stages(update):
            series = "encoder" if name == "update_encoder" else "update"
            place = used[series] = used.get(series, -1) + bool(agent.stage(name).batch)
            observation, action, reward, ended = batches[place % CYCLE]
            sample = Batch(observation, action, reward, ended, torch.zeros_like(ended))
            given["noise"].append((name, numbers[name][place % CYCLE]))
            changed, _ = agent.run_stage(name, state, sample, numbers[name][place % CYCLE], schedule)
            state = {**state, **changed}
    given["observation"] = observations((ACTIONS, *spec.observation_shape), generator)
    given["act_noise"], actions = [], []
    carry = {k: v[None] for k, v in agent.carry().items()}
    for observation in given["observation"]:
        noise = random_numbers(agent.act_noise(explore=False), generator)
        given["act_noise"].append(noise)
        noise = {k: v[None] for k, v in noise.items()}
        if "checkpoint_actor" in state:  # kept aside for evaluations; the current policy is the one that explores
            noise["action"] = torch.zeros(1, spec.action_dim)
        action, after = agent.act(state, carry, observation[None], noise, schedule)
        carry = dict(after)
        actions.append(action[0])
    return given, weights(agent, state), torch.stack(actions)


def drawn_out(agent: Agent, noise: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the random numbers that a key stands for, in the form in which PyTorch would draw them.

    DC-MPC's samples by a Gumbel-softmax: -log u, (H, B, d, |C|); SAC+AE's dither (B, C, height, width).
    """
    if "dither" in noise:
        shape = (agent.slices.batch_size, *agent.spec.observation_shape)
        return {**noise, "dithered": counter_random.uniform(noise["dither"], shape)}
    if "propagation" not in noise:
        return noise
    model, size = agent.model, agent.slices.batch_size  # type: ignore[attr-defined]
    shape = (size, model.classes, agent.config.latent_dim)
    drawn = [-torch.log(counter_random.uniform(key, shape)).transpose(1, 2) for key in noise["propagation"]]
    return {**noise, "exponential": torch.stack(drawn)}


def compare(name: str, checkout: str, options: dict[str, str]) -> list[dict[str, Any]]:
    """The table's rows.

    Raises:
        InputError: if the checkout's process fails.
    """
    words = [f"agent={name}", f"agent.batch_size={options['size']}", *WORDS[name]]
    if options["task"]:
        words = [*(word for word in words if not word.startswith("task=")), f"task={options['task']}"]
    if "@pixels" in options["task"] and name == "mrq":
        words.append(speed.SHORT_PERIOD)
    run = config.resolve([("fidelity", config.parse_words(words))])[0][0]
    agent = run.agent(run.settings, run.spec, torch.float64)
    if not int(options["updates"]):
        period = update_period(agent)
        options = {**options, "updates": str(max(20, 2 * period + 1))}
    with double_precision():
        given, ours, action = follow(agent, options)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "given.pt")
        torch.save(given, file)
        command = [options["peer_python"], str(Path(__file__).with_name("peer.py")), name, checkout]
        done = subprocess.run([*command, str(torch.get_num_threads()), str(file)], stdout=subprocess.DEVNULL)
        if done.returncode:
            raise InputError(f"{checkout}: ended with status {done.returncode}")
        theirs = torch.load(f"{file}.done", map_location="cpu")
    rows: list[dict[str, Any]] = []
    for network in dict.fromkeys(k.rpartition("/")[0] for k in ours):
        keys = [k for k in ours if k.rpartition("/")[0] == network]
        end, other, start = (
            torch.cat([side[k].reshape(-1) for k in keys]) for side in (ours, theirs["weights"], given["weights"])
        )
        moved = torch.linalg.vector_norm(other - start).item()
        apart = torch.linalg.vector_norm(end - other).item()
        scale = torch.linalg.vector_norm(start).item()
        rows.append({"what": network, "parameters": len(end), "moved": moved / scale,
                     "difference": apart / (moved or scale)})  # fmt: skip
    apart = (action - theirs["action"]).abs().max().item()
    rows.append({"what": "actions", "parameters": action.numel(), "moved": "", "difference": apart})
    asked = subprocess.run(["git", "-C", checkout, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    about = {"agent": name, "updates": options["updates"], "official_commit": asked.stdout.strip(),
             "commit": code_version()["commit"]}  # fmt: skip
    return [{**about, **row, "date": time.strftime("%Y-%m-%d")} for row in rows]


def parse(words: Sequence[str]) -> dict[str, str]:
    options = speed.read_words(words, DEFAULTS)
    speed.check_peer(options["peer"], WORDS)
    speed.check_whole(options, "updates", "size", "seed")
    try:
        float(options["limit"])
    except ValueError:
        raise InputError(f"limit={options['limit']}: expected a number") from None
    return options


def main(words: Sequence[str]) -> int:
    if "--help" in words or "-h" in words:
        print(__doc__)
        return 0
    try:
        options = parse(words)
        name, _, checkout = options["peer"].partition(":")
        rows = compare(name, checkout, options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(f"{name}, {rows[0]['updates']} updates{'':20s} parameters   moved  difference, of that")
    for row in rows:
        moved = f"{row['moved']:.1e}" if row["moved"] != "" else ""
        print(f"{row['what']:40s} {row['parameters']:10d} {moved:>7s}  {row['difference']:.1e}")
    path = Path(options["out"], f"{name}{'-pixels' if '@pixels' in options['task'] else ''}.csv")
    try:
        speed.write(path, rows, COLUMNS, digits=3)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {path}")
    wrong = [f"{r['what']} {r['difference']:.1e}" for r in rows if not r["difference"] <= float(options["limit"])]
    if wrong:  # NaN is, too
        print(f"error: apart: {', '.join(wrong)}; expected at most {options['limit']}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
