"""Times a checkout of an official implementation; started by `benchmarks.speed`, in a process of its own.

``python peer.py NAME PATH THREADS`` imports the checkout at PATH, which must not see this project's packages (the
official iQRL has a module of the same name). It builds the agent at walker-walk sizes with the checkout's own defaults,
but for the settings named here, and answers each line ``N`` on stdin with the seconds that N whole updates took.
Batches are drawn before, so that the checkout is not charged for its replay.
"""

import itertools
import os
import sys
import time
import types

import torch

OBSERVATION, ACTION = 24, 6
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Equal on both sides: the released iQRL has 5 critics, pairs drawn at random, and N = 3 on half of its tasks.
IQRL_SETTINGS = {"num_critics": 5, "q_sample_size": 2, "nstep": 3, "horizon": 5}
# What the other two set for walker-walk outside of the module that is imported: in cfgs/, and in envs/.
TCRL_SETTINGS = {"mlp_dims": [512, 512], "latent_dim": 50, "lr": 3e-4, "std_schedule": "linear(1.0, 0.1, 50)"}
DCWM_SETTINGS = {"r_min": 0.0, "r_max": 2.0}


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


def observations(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, OBSERVATION, device=DEVICE)


def actions(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, ACTION, device=DEVICE) * 2 - 1


def rewards(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, device=DEVICE)


def drawn(make):
    """Batches drawn now, to be handed out in turn for ever."""
    return itertools.cycle([make() for _ in range(8)])


def repeat(update):
    def updates(n: int) -> None:
        for _ in range(n):
            update()

    return updates


def slice_replay(path: str, horizon: int, size: int):
    """What the official iQRL and DC-MPC, which share their surroundings, sample from; their checkout is importable."""
    for name, names in (
        ("wandb", ()),
        ("termcolor", ("colored",)),
        ("hydra_plugins.hydra_submitit_launcher.config", ("LocalQueueConf", "SlurmQueueConf")),
        ("torchrl.data", ("BoundedTensorSpec", "CompositeSpec", "ReplayBuffer")),
        ("torchrl.data.replay_buffers", ("LazyMemmapStorage",)),
        ("torchrl.data.replay_buffers.samplers", ("SliceSampler",)),
    ):
        stand_in(name, *names)
    sys.path.insert(0, path)
    from tensordict import TensorDict
    from utils.buffers import ReplayBufferSamples

    def batch():
        seen, after = (TensorDict({"state": observations(horizon, size)}, [horizon, size]) for _ in range(2))
        zeros = torch.zeros(horizon, size, dtype=torch.int, device=DEVICE)
        factors = torch.ones(horizon, size, device=DEVICE)
        return ReplayBufferSamples(
            seen, actions(horizon, size), after, zeros.bool(), zeros, rewards(horizon, size), factors, None, None
        )

    batches = drawn(batch)
    return types.SimpleNamespace(sample=lambda: next(batches))


def spaces():
    """Those of observations and actions, as the same two know them."""
    bound = torch.ones(ACTION, device=DEVICE)
    seen = {"state": types.SimpleNamespace(shape=(OBSERVATION,))}
    return seen, types.SimpleNamespace(low=-bound, high=bound, shape=(ACTION,))


def iqrl(path: str):
    replay = slice_replay(path, IQRL_SETTINGS["horizon"], 256)
    import iqrl as official

    agent = official.iQRL(official.iQRLConfig(device=DEVICE, verbose=False, **IQRL_SETTINGS), *spaces())
    return lambda n: agent.update(replay, n)


def dcwm(path: str):
    replay = slice_replay(path, 5, 512)
    import dcmpc as official

    config = official.DCMPCConfig(device=DEVICE, verbose=False, **DCWM_SETTINGS)
    agent = official.DCMPC(config, *spaces()).to(DEVICE)
    return lambda n: agent.update(replay, n)


def tcrl(path: str):
    for name, names in (
        ("torchvision", ()),
        ("termcolor", ("colored",)),
        ("dm_env", ("Environment", "StepType", "TimeStep", "specs")),
        ("dm_control", ("suite",)),
        ("dm_control.suite.wrappers", ("action_scale", "pixels")),
    ):
        stand_in(name, *names)
    sys.path.insert(0, path)
    import tcrl as official

    agent = official.TCRL((OBSERVATION,), (ACTION,), device=DEVICE, **TCRL_SETTINGS)
    size, horizon = 512, agent.horizon
    batches = drawn(
        lambda: (
            observations(size),
            actions(size, horizon),
            rewards(size, horizon, 1),
            torch.ones(size, horizon, 1, device=DEVICE),
            observations(size, horizon),
        )
    )
    return repeat(lambda: agent.update(0, batches, size))


def transitions(size: int):
    """(s, a, s', r, not done), as the next two order them."""
    going = torch.ones(size, 1, device=DEVICE)
    return observations(size), actions(size), observations(size), rewards(size, 1), going


def td3(path: str):
    sys.path.insert(0, path)
    import TD3 as official

    agent = official.TD3(OBSERVATION, ACTION, 1.0)
    batches = drawn(lambda: transitions(256))
    replay = types.SimpleNamespace(sample=lambda size: next(batches))
    return repeat(lambda: agent.train(replay, 256))


def td7(path: str):
    sys.path.insert(0, path)
    import TD7 as official

    agent = official.Agent(OBSERVATION, ACTION, 1.0)
    batches = drawn(lambda: transitions(256))
    # In place of the prioritised replay: an update computes its priorities, and nothing keeps them.
    agent.replay_buffer = types.SimpleNamespace(
        sample=lambda: next(batches), update_priority=lambda priority: None, reset_max_priority=lambda: None
    )
    return repeat(agent.train)


def mrq(path: str):
    """Updates 1, 251, 501, ... train the encoder 250 times first: only multiples of 250 say how fast it is."""
    sys.path.insert(0, os.path.join(path, "MRQ"))
    import MRQ as official

    def ahead(steps: int):
        return rewards(256, steps, 1), torch.ones(256, steps, 1, device=DEVICE)

    unrolled = drawn(lambda: (observations(256, 5), actions(256, 5), observations(256, 5), *ahead(5)))
    single = drawn(lambda: (observations(256), actions(256), observations(256), *ahead(3)))
    # In place of the prioritised replay, which asks for a GPU: as for TD7. No episode terminates.
    replay = types.SimpleNamespace(
        size=10**6,
        state_shape=[OBSERVATION],
        env_terminates=False,
        sample=lambda horizon, include_intermediate: next(unrolled if include_intermediate else single),
        update_priority=lambda priority: None,
        reward_scale=lambda: 0.5,
    )
    official.buffer.ReplayBuffer = lambda *_, **__: replay
    agent = official.Agent((OBSERVATION,), ACTION, 1.0, pixel_obs=False, discrete=False, device=torch.device(DEVICE))
    return repeat(agent.train)


PEERS = {"iqrl": iqrl, "td3": td3, "td7": td7, "tcrl": tcrl, "dcwm": dcwm, "mrq": mrq}


def main() -> None:
    if len(sys.argv) != 4 or sys.argv[1] not in PEERS:
        given, names = " ".join(sys.argv[1:]), ", ".join(PEERS)
        print(f"error: {given}: expected NAME PATH THREADS, NAME one of {names}", file=sys.stderr)
        sys.exit(2)
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
