"""Times a checkout of an official implementation; started by `benchmarks.speed`, in a process of its own.

``python peer.py NAME PATH THREADS`` imports the checkout at PATH, which must not see this project's packages (the
official iQRL has a module of the same name). It builds the agent at walker-walk sizes with the checkout's own defaults,
but for what stands in SETTINGS, and answers each line ``N`` on stdin with the seconds that N whole updates took.
Batches are drawn before, so that the checkout is not charged for its replay.
"""

import os
import sys
import time
import types

import numpy as np
import torch

OBSERVATION, ACTION, BATCH = 24, 6, 256
# Equal on both sides: the released iQRL has 5 critics, pairs drawn at random, and N = 3 on half of its tasks.
IQRL_SETTINGS = {"num_critics": 5, "q_sample_size": 2, "nstep": 3, "horizon": 5}


def stand_in(name: str, *names: str) -> None:
    """An empty module for an import that the timed code never uses, where it is not installed."""
    try:
        __import__(name)
    except ImportError:
        module = types.ModuleType(name)
        for n in names:
            setattr(module, n, type(n, (), {}))
        module.run = None
        sys.modules[name] = module
        if "." in name:
            parent, _, leaf = name.rpartition(".")
            stand_in(parent)
            setattr(sys.modules[parent], leaf, module)


def iqrl(path: str):
    for name, names in (
        ("wandb", ()),
        ("hydra_plugins.hydra_submitit_launcher.config", ("LocalQueueConf", "SlurmQueueConf")),
        ("torchrl.data", ("BoundedTensorSpec", "CompositeSpec", "ReplayBuffer")),
        ("torchrl.data.replay_buffers", ("LazyMemmapStorage",)),
        ("torchrl.data.replay_buffers.samplers", ("SliceSampler",)),
    ):
        stand_in(name, *names)
    sys.path.insert(0, path)
    from tensordict import TensorDict
    from utils.buffers import ReplayBufferSamples

    import iqrl as official

    device = "cuda" if torch.cuda.is_available() else "cpu"
    bound = torch.ones(ACTION)
    space = types.SimpleNamespace(low=-bound, high=bound, shape=(ACTION,))
    seen = {"state": types.SimpleNamespace(shape=(OBSERVATION,))}
    config = official.iQRLConfig(device=device, verbose=False, **IQRL_SETTINGS)
    agent = official.iQRL(config, seen, space)
    horizon = IQRL_SETTINGS["horizon"]

    def batch():
        observation = TensorDict({"state": torch.randn(horizon, BATCH, OBSERVATION, device=device)}, [horizon, BATCH])
        after = TensorDict({"state": torch.randn(horizon, BATCH, OBSERVATION, device=device)}, [horizon, BATCH])
        zeros = torch.zeros(horizon, BATCH, dtype=torch.int, device=device)
        return ReplayBufferSamples(
            observation,
            torch.rand(horizon, BATCH, ACTION, device=device) * 2 - 1,
            after,
            zeros.bool(),
            zeros,
            torch.rand(horizon, BATCH, device=device),
            torch.ones(horizon, BATCH, device=device),
            None,
            None,
        )

    batches = [batch() for _ in range(8)]
    drawn = iter(range(10**9))
    replay = types.SimpleNamespace(sample=lambda: batches[next(drawn) % 8])
    return lambda n: agent.update(replay, n)


def td3(path: str):
    sys.path.insert(0, path)
    import TD3 as official

    agent = official.TD3(OBSERVATION, ACTION, 1.0)
    device = official.device

    def batch():
        make = lambda *shape: torch.from_numpy(np.random.randn(BATCH, *shape).astype(np.float32)).to(device)  # noqa: E731
        return (
            make(OBSERVATION),
            make(ACTION).clamp(-1, 1),
            make(OBSERVATION),
            make(1),
            torch.ones(BATCH, 1, device=device),
        )

    batches = [batch() for _ in range(8)]
    drawn = iter(range(10**9))
    replay = types.SimpleNamespace(sample=lambda size: batches[next(drawn) % 8])

    def updates(n: int) -> None:
        for _ in range(n):
            agent.train(replay, BATCH)

    return updates


PEERS = {"iqrl": iqrl, "td3": td3}


def main() -> None:
    name, path, threads = sys.argv[1], os.path.abspath(sys.argv[2]), int(sys.argv[3])
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") not in (here, os.path.dirname(here))]
    torch.set_num_threads(threads)
    out, sys.stdout = sys.stdout, sys.stderr  # whatever the checkout prints is no answer
    updates = PEERS[name](path)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        updates(int(line))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(time.perf_counter() - begin, file=out, flush=True)


if __name__ == "__main__":
    main()
