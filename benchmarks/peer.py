"""A checkout of an official implementation at work; started in a process of its own, which must not see this project's
packages (the official iQRL has a module of the same name).

``python peer.py NAME[@pixels] PATH THREADS`` times it, from states or images, for `benchmarks.speed`: answers each line
``N`` on stdin with the seconds that N whole updates took. ``python peer.py NAME PATH THREADS FILE`` makes it do as
another did, for `benchmarks.fidelity`: reads from FILE the weights to start from, the batches and the random numbers,
and writes the weights after those updates, and actions, to FILE.done.

Agents are built at walker-walk sizes with the checkout's own defaults, but for the settings named here. Batches are
drawn before, so that the checkout is not charged for its replay.
"""

import ast
import importlib
import itertools
import os
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

OBSERVATION, ACTION, IMAGE = 24, 6, (9, 84, 84)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Equal on both sides: the released iQRL has 5 critics, pairs drawn at random, and N = 3 on half of its tasks.
IQRL_SETTINGS = {"num_critics": 5, "q_sample_size": 2, "nstep": 3, "horizon": 5}
TACO_SETTINGS = {"encoder_lr": 1e-4, "reward": True, "multistep": 3, "latent_a_dim": "none", "curl": True}
# Of the training script.
SAC_AE_SETTINGS = {
    "hidden_dim": 1024, "init_temperature": 0.1, "alpha_lr": 1e-4, "alpha_beta": 0.5, "critic_tau": 0.01,
    "encoder_tau": 0.05, "decoder_latent_lambda": 1e-6, "decoder_weight_lambda": 1e-7,
}  # fmt: skip
# What others set for walker-walk outside of the module that is imported: in cfgs/, and in envs/.
TCRL_SETTINGS = {"mlp_dims": [512, 512], "latent_dim": 50, "lr": 3e-4, "std_schedule": "linear(1.0, 0.1, 50)"}
DCWM_SETTINGS = {"r_min": 0.0, "r_max": 2.0}
DRQV2_SETTINGS = {
    "lr": 1e-4, "feature_dim": 50, "hidden_dim": 1024, "critic_target_tau": 0.01, "num_expl_steps": 2000,
    "update_every_steps": 2, "stddev_schedule": "1.0", "stddev_clip": 0.3, "use_tb": False,
}  # fmt: skip

Slice = tuple[Tensor, ...]  # observations (H + 1, B, O), actions (H, B, A), rewards and terminations (H, B)
Slices = Callable[[int, int], Iterator[Slice]]  # of so many steps and so many in a batch, without end
Draws = dict[str, list[Tensor]]  # random numbers in the order of use, by kind, as of QUEUES


@dataclass
class Peer:
    """An official agent.

    Attributes:
        update: does so many gradient updates.
        networks: our name of every network, "STATE/NETWORK", and the module that is it there, or an ensemble's members.
        draws: this project's random numbers of one learning stage, in the order in which the official code draws them.
        act: greedy actions (B, A) of observations (B, O), or of each in turn with random numbers by our names.
        arrange: for weights that are laid out otherwise, by our name: makes a view in our order of one in theirs.
    """

    update: Callable[[int], None]
    networks: dict[str, Any]
    draws: Callable[[str, dict[str, Tensor]], Draws]
    act: Callable[[Tensor, list[dict[str, Tensor]]], Tensor]
    arrange: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


def smoothing(stage: str, noise: dict[str, Tensor]) -> Draws:
    """The draws of most: noise on the target's action."""
    return {"normal": [noise["smoothing"]]} if "smoothing" in noise else {}


# --- random batches, and empty modules for what is not used


def random_slices(steps: int, size: int) -> Iterator[Slice]:
    def make() -> Slice:
        observations = torch.randn(steps + 1, size, OBSERVATION, device=DEVICE)
        actions = torch.rand(steps, size, ACTION, device=DEVICE) * 2 - 1
        return observations, actions, torch.rand(steps, size, device=DEVICE), torch.zeros(steps, size, device=DEVICE)

    return itertools.cycle([make() for _ in range(8)])


def random_images(steps: int, size: int) -> Iterator[Slice]:
    """Fewer: they are large."""
    for _, *rest in itertools.cycle(list(itertools.islice(random_slices(steps, size), 2))):
        yield torch.randint(0, 256, (steps + 1, size, *IMAGE), dtype=torch.uint8, device=DEVICE), *rest


def converted(slices: Iterator[Slice], convert: Callable[..., Any]) -> Iterator[Any]:
    """In the checkout's own form; 8 of them, again and again, so that a timed update does not convert any."""
    return itertools.cycle([convert(*s) for s in itertools.islice(slices, 8)])


def stand_in(name: str, *names: str) -> None:
    """An empty module for an import that is never used here, where it is not installed."""
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


def replace(name: str, **content: Any) -> None:
    """A module of this content in the place of one that is used, whether it is installed or not."""
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # PyTorch looks for it
    vars(module).update(content)
    sys.modules[name] = module


def repeat(update: Callable[[], Any]) -> Callable[[int], None]:
    def updates(n: int) -> None:
        for _ in range(n):
            update()

    return updates


# --- the adapters: path of the checkout, batches, their size (0: the checkout's own)


def slice_replay(path: str, slices: Iterator[Slice]) -> Any:
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

    def convert(observation: Tensor, action: Tensor, reward: Tensor, ended: Tensor) -> Any:
        shape = list(reward.shape)
        seen, after = (TensorDict({"state": o}, shape) for o in (observation[:-1], observation[1:]))
        factors = torch.ones(shape, device=DEVICE)
        return ReplayBufferSamples(seen, action, after, ended.bool(), ended.int(), reward, factors, None, None)

    batches = converted(slices, convert)
    return types.SimpleNamespace(sample=lambda: next(batches))


def spaces() -> tuple[Any, Any]:
    """Those of observations and actions, as the same two know them."""
    bound = torch.ones(ACTION, device=DEVICE)
    seen = {"state": types.SimpleNamespace(shape=(OBSERVATION,))}
    return seen, types.SimpleNamespace(low=-bound, high=bound, shape=(ACTION,))


def iqrl(path: str, slices: Slices, size: int = 0) -> Peer:
    replay = slice_replay(path, slices(IQRL_SETTINGS["horizon"], size or 256))
    from tensordict import TensorDict

    import iqrl as official

    agent = official.iQRL(official.iQRLConfig(device=DEVICE, verbose=False, **IQRL_SETTINGS), *spaces())

    def draws(stage: str, noise: dict[str, Tensor]) -> Draws:
        critics = ["target_critics", *(["actor_critics"] if stage == "update_all" else [])]
        return {"normal": [noise["smoothing"]], "order": [noise[k].argsort() for k in critics]}

    networks = {
        "world/encoder": agent.encoder._encoder["state"],
        "world/dynamics": agent.encoder._trans,
        "target/encoder": agent.encoder._encoder_tar["state"],
        "actor/actor": agent._pi.mlp,
        "target_actor/actor": agent._pi_tar.mlp,
        "critic/critic": agent.Q.qs,
        "target_critic/critic": agent.Q_tar.qs,
    }
    greedy = lambda o, noise: agent.select_action(TensorDict({"state": o}, [len(o)]), eval_mode=True)  # noqa: E731
    return Peer(lambda n: agent.update(replay, n), networks, draws, greedy)


def dcwm(path: str, slices: Slices, size: int = 0) -> Peer:
    replay = slice_replay(path, slices(5, size or 512))
    import dcmpc as official
    from tensordict import TensorDict

    config = official.DCMPCConfig(device=DEVICE, verbose=False, batch_size=size or 512, **DCWM_SETTINGS)
    agent = official.DCMPC(config, *spaces()).to(DEVICE)

    def draws(stage: str, noise: dict[str, Tensor]) -> Draws:
        critics = ["target_critics", *(["actor_critics"] if stage == "update_all" else [])]
        order = [noise[k].argsort() for k in critics]
        return {"normal": [noise["smoothing"]], "order": order, "exponential": list(noise["exponential"])}

    def act(observation: Tensor, noises: list[dict[str, Tensor]]) -> Tensor:
        """Plans of successive decisions, each of which starts where the last one ended."""
        actions = []
        agent._exploration_noise_schedule.step_idx = 0  # sigma is 1
        for i, (o, noise) in enumerate(zip(observation, noises, strict=True)):
            normals = list(noise["policy"][:, 0])  # one draw a decision for all of the actor's sequences
            for samples, last in zip(noise["samples"], noise["terminal"], strict=True):
                normals += [samples.transpose(0, 1), last]
            orders = [u.argsort() for u in noise["critics"]]
            supply({"normal": normals, "order": orders, "uniform": [noise["elite"]]})
            seen = TensorDict({"state": o[None]}, [1])
            actions.append(agent.select_action(seen, t0=i == 0, eval_mode=True))
        return torch.cat(actions)

    networks = {
        "world/encoder": agent.model._encoder["state"],
        "world/dynamics": agent.model._trans,
        "world/reward": agent.model._reward,
        "actor/actor": agent._pi,
        "target_actor/actor": agent._pi_tar,
        "critic/critic": agent._Qs,
        "target_critic/critic": agent.Qs_tar,
    }
    # Their logits are laid out (dimensions, classes), ours (classes, dimensions).
    classes = agent.model._fsq.codebook_size
    logits = ("world/dynamics/2.weight", "world/dynamics/2.bias")
    arrange = dict.fromkeys(logits, lambda v: v.unflatten(-1, (-1, classes)).transpose(-1, -2))
    return Peer(lambda n: agent.update(replay, n), networks, draws, act, arrange)


def tcrl(path: str, slices: Slices, size: int = 0) -> Peer:
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

    agent, size = official.TCRL((OBSERVATION,), (ACTION,), device=DEVICE, **TCRL_SETTINGS), size or 512

    def convert(observation: Tensor, action: Tensor, reward: Tensor, ended: Tensor) -> Any:
        late = (x.transpose(0, 1) for x in (action, reward[..., None], torch.ones_like(reward)[..., None]))
        return observation[0], *late, observation[1:].transpose(0, 1)

    batches = converted(slices(agent.horizon, size), convert)
    networks = {
        "world/encoder": agent.encoder,
        "world/dynamics": agent.trans._dynamics,
        "world/reward": agent.trans._reward,
        "target/encoder": agent.encoder_tar,
        "actor/trunk": agent.actor.trunk,
        "actor/head": agent.actor._actor,
        "critic/trunk": agent.critic.trunk,
        "critic/heads": [agent.critic._critic1, agent.critic._critic2],
        "target_critic/trunk": agent.critic_tar.trunk,
        "target_critic/heads": [agent.critic_tar._critic1, agent.critic_tar._critic2],
    }
    return Peer(
        repeat(lambda: agent.update(0, batches, size)),
        networks,
        lambda stage, noise: {"normal": [noise["next_action"], noise["action"]]},
        lambda o, noise: agent.actor(agent.enc(o), agent.std).mean,
    )


def transition(observation: Tensor, action: Tensor, reward: Tensor, ended: Tensor) -> tuple[Tensor, ...]:
    """(s, a, s', r, not done), as the next two order them."""
    return observation[0], action[0], observation[1], reward[0, :, None], 1.0 - ended[0, :, None]


def td3(path: str, slices: Slices, size: int = 0) -> Peer:
    sys.path.insert(0, path)
    import TD3 as official

    agent, size = official.TD3(OBSERVATION, ACTION, 1.0), size or 256
    batches = converted(slices(1, size), transition)
    replay = types.SimpleNamespace(sample=lambda size: next(batches))
    networks = {}
    for state, actor, critic in (
        ("", agent.actor, agent.critic),
        ("target_", agent.actor_target, agent.critic_target),
    ):
        networks[f"{state}actor/actor"] = actor
        networks[f"{state}critic/critic"] = [
            nn.Sequential(critic.l1, critic.l2, critic.l3),
            nn.Sequential(critic.l4, critic.l5, critic.l6),
        ]
    return Peer(repeat(lambda: agent.train(replay, size)), networks, smoothing, lambda o, noise: agent.actor(o))


def leanrl(path: str, slices: Slices, size: int = 0) -> Peer:
    """LeanRL's TD3, compiled and, on a GPU, captured. A script: it runs up to its loop, which is written anew here."""
    file = os.path.join(path, "leanrl", "td3_continuous_action_torchcompile.py")
    with open(file) as source:
        script = ast.parse(source.read(), file)
    main = next(s for s in script.body if isinstance(s, ast.If))
    script.body[script.body.index(main) :] = itertools.takewhile(lambda s: not isinstance(s, ast.For), main.body)

    def nothing(*_: Any, **__: Any) -> None: ...

    class Box:
        high, shape = np.ones(ACTION, np.float32), (ACTION,)
        low = -high

    environments = types.SimpleNamespace(
        action_space=Box(),
        single_action_space=Box(),
        single_observation_space=types.SimpleNamespace(shape=(OBSERVATION,)),
        reset=lambda seed: (np.zeros((1, OBSERVATION), np.float32), {}),
    )
    replace("tyro", cli=lambda arguments: arguments(compile=True, cudagraphs=DEVICE == "cuda"))
    replace("wandb", init=nothing)
    replace("tqdm", tqdm=nothing)
    replace("torchrl")
    replace("torchrl.data", LazyTensorStorage=nothing, ReplayBuffer=nothing)
    vector = types.SimpleNamespace(SyncVectorEnv=lambda makers: environments)
    replace("gymnasium", vector=vector, spaces=types.SimpleNamespace(Box=Box))
    from tensordict import TensorDict

    official: dict[str, Any] = {"__name__": "leanrl_td3", "__file__": file}
    exec(compile(script, file, "exec"), official)

    def convert(observation: Tensor, action: Tensor, reward: Tensor, ended: Tensor) -> Any:
        names = ("observations", "actions", "next_observations", "rewards", "dones")
        values = (observation[0], action[0], observation[1], reward[0], ended[0].bool())
        return TensorDict(dict(zip(names, values, strict=True)), [len(action[0])])

    batches = converted(slices(1, size or official["args"].batch_size), convert)
    delayed = itertools.cycle([False, True])

    def update() -> None:
        batch = next(batches)
        official["update_main"](batch)
        if next(delayed):
            official["update_pol"](batch)
            for online, target in (("qnet_params", "qnet_target_params"), ("actor_params", "target_actor_params")):
                official[target].lerp_(official[online].data, official["args"].tau)

    return Peer(repeat(update), {}, smoothing, lambda o, noise: official["actor"](o))


def td7(path: str, slices: Slices, size: int = 0) -> Peer:
    sys.path.insert(0, path)
    import TD7 as official

    agent = official.Agent(OBSERVATION, ACTION, 1.0)
    batches = converted(slices(1, size or 256), transition)
    # In place of the prioritised replay: an update computes its priorities, and nothing keeps them.
    agent.replay_buffer = types.SimpleNamespace(
        sample=lambda: next(batches), update_priority=lambda priority: None, reset_max_priority=lambda: None
    )
    networks = {}
    for state, e in (
        ("encoder", agent.encoder),
        ("fixed_encoder", agent.fixed_encoder),
        ("fixed_encoder_target", agent.fixed_encoder_target),
    ):
        networks[f"{state}/f"] = nn.Sequential(e.zs1, e.zs2, e.zs3)
        networks[f"{state}/g"] = nn.Sequential(e.zsa1, e.zsa2, e.zsa3)
    for state, a, c in (("", agent.actor, agent.critic), ("target_", agent.actor_target, agent.critic_target)):
        networks |= {f"{state}actor/input": a.l0, f"{state}actor/trunk": nn.Sequential(a.l1, a.l2, a.l3)}
        networks[f"{state}critic/input"] = [c.q01, c.q02]
        networks[f"{state}critic/trunk"] = [nn.Sequential(c.q1, c.q2, c.q3), nn.Sequential(c.q4, c.q5, c.q6)]
    act = lambda o, noise: agent.actor(o, agent.fixed_encoder.zs(o))  # noqa: E731
    return Peer(repeat(agent.train), networks, smoothing, act)


def mrq(path: str, slices: Slices, size: int = 0, name: str = "MRQ", period: int = 250, *arguments: Any) -> Peer:
    """Updates 1, 251, 501, ... train the encoder 250 times first: only multiples of 250 say how fast it is.

    From images the period is 20, for 250 take long.
    """
    sys.path.insert(0, os.path.join(path, name))
    official = importlib.import_module(name)

    long = list(itertools.islice(slices(5, size or 256), 8))
    images = long[0][0].dtype == torch.uint8
    shape = IMAGE if images else (OBSERVATION,)
    period = 20 if images else period

    def ahead(observation: Tensor, action: Tensor, reward: Tensor, ended: Tensor) -> Any:
        observation = observation.float()
        going = 1.0 - ended[..., None]
        late = (x.transpose(0, 1) for x in (observation[:-1], action, observation[1:], reward[..., None], going))
        return tuple(late)

    def single(observation: Tensor, action: Tensor, reward: Tensor, ended: Tensor) -> Any:
        return (
            observation[0].float(),
            action[0],
            observation[-1].float(),
            reward.t()[..., None],
            1.0 - ended.t()[..., None],
        )

    unrolled, single_batches = converted(iter(long), ahead), converted(slices(3, size or 256), single)
    # In place of the prioritised replay, which asks for a GPU: as for TD7.
    replay = types.SimpleNamespace(
        size=10**6,
        state_shape=list(shape),
        env_terminates=any(ended.any() for *_, ended in long),
        sample=lambda horizon, include_intermediate: next(unrolled if include_intermediate else single_batches),
        update_priority=lambda priority: None,
        reward_scale=lambda: 0.5,
    )
    official.buffer.ReplayBuffer = lambda *_, **__: replay
    agent = official.Agent(shape, ACTION, 1.0, pixel_obs=images, discrete=False, device=torch.device(DEVICE))
    agent.target_update_freq = period
    networks = {}
    for state, e in (("encoder", agent.encoder), ("target_encoder", agent.encoder_target)):
        seen = (
            {"convolutions": nn.Sequential(e.zs_cnn1, e.zs_cnn2, e.zs_cnn3, e.zs_cnn4), "head": e.zs_lin}
            if images
            else e.zs_mlp
        )
        networks |= {f"{state}/f": seen, f"{state}/embedding": e.za, f"{state}/g": e.zsa}
    networks["encoder/m"] = agent.encoder.model
    for state, p, v in (("", agent.policy, agent.value), ("target_", agent.policy_target, agent.value_target)):
        networks |= {f"{state}policy/policy": p.policy, f"{state}value/value": [v.q1, v.q2]}

    def draws(stage: str, noise: dict[str, Tensor]) -> Draws:
        """Shifts of the first observation and of those after it; of all that official code shifts, these are used."""
        if not images or stage == "synchronise":
            return smoothing(stage, noise)
        whole = torch.floor(9 * noise["shift"])  # (6, B, 2)
        if stage == "update_rl":
            return {**smoothing(stage, noise), "integer": [torch.cat([whole[0], whole[3]])]}
        return {"integer": [torch.cat([whole[:-1].transpose(0, 1), whole[1:].transpose(0, 1)])]}

    act = lambda o, noise: agent.policy.act(agent.encoder.zs(o))  # noqa: E731
    return Peer(repeat(lambda: agent.train(*arguments)), networks, draws, act)


def drq(path: str, slices: Slices, size: int = 0) -> Peer:
    """MR.Q's code in most, which writes to TensorBoard from within its updates.

    Its losses, on a few random batches again and again, make rounding grow a thousandfold in 60 encoder updates: where
    weights are compared, the period is 20 updates.
    """
    return mrq(path, slices, size, "DRQ", 20 if size else 250, types.SimpleNamespace(add_scalar=lambda *_, **__: None))


def drqv2(path: str, slices: Slices, size: int = 0) -> Peer:
    stand_in("hydra")
    sys.path.insert(0, path)
    import drqv2 as official

    agent = official.DrQV2Agent(IMAGE, (ACTION,), DEVICE, **DRQV2_SETTINGS)

    def convert(observation: Tensor, action: Tensor, reward: Tensor, ended: Tensor) -> Any:
        return observation[0], action[0], reward[0, :, None], 0.99 * (1.0 - ended[0, :, None]), observation[1]

    batches = converted(slices(1, size or 512), convert)

    def draws(stage: str, noise: dict[str, Tensor]) -> Draws:
        shifts = [torch.floor(9 * noise[k])[:, None, None] for k in ("shift", "next_shift")]
        return {"integer": shifts, "normal": [noise["next_action"], noise["action"]]}

    networks = {"critic/encoder": agent.encoder.convnet}
    networks |= {"actor/trunk": agent.actor.trunk, "actor/policy": agent.actor.policy}
    for state, c in (("critic", agent.critic), ("target_critic", agent.critic_target)):
        networks |= {f"{state}/trunk": c.trunk, f"{state}/q": [c.Q1, c.Q2]}
    act = lambda o, noise: agent.actor(agent.encoder(o), 1.0).mean  # noqa: E731
    return Peer(repeat(lambda: agent.update(batches, 0)), networks, draws, act)


def sac_ae(path: str, slices: Slices, size: int = 0) -> Peer:
    stand_in("gym", "Wrapper")
    sys.path.insert(0, path)
    import sac_ae as official

    agent = official.SacAeAgent(IMAGE, (ACTION,), DEVICE, **SAC_AE_SETTINGS)

    def convert(observation: Tensor, action: Tensor, reward: Tensor, ended: Tensor) -> Any:
        seen, after = observation[0].float(), observation[1].float()
        return seen, action[0], reward[0, :, None], after, 1.0 - ended[0, :, None]

    batches, steps = converted(slices(1, size or 128), convert), itertools.count(1)
    replay = types.SimpleNamespace(sample=lambda: next(batches))
    silent = types.SimpleNamespace(log=lambda *_: None)

    def draws(stage: str, noise: dict[str, Tensor]) -> Draws:
        return {"normal": [noise[k] for k in ("next_action", "action") if k in noise], "uniform": [noise["dithered"]]}

    networks = {"actor/trunk": nn.Sequential(agent.actor.encoder.fc, agent.actor.encoder.ln)}
    networks |= {"actor/policy": agent.actor.trunk, "temperature/alpha": {"log": agent.log_alpha}}
    networks |= {"decoder/linear": agent.decoder.fc, "decoder/convolutions": agent.decoder.deconvs}
    for state, c in (("", agent.critic), ("target_", agent.critic_target)):
        networks |= {f"{state}encoder/convolutions": c.encoder.convs, f"{state}critic/q": [c.Q1, c.Q2]}
        networks[f"{state}encoder/trunk"] = nn.Sequential(c.encoder.fc, c.encoder.ln)
    act = lambda o, noise: agent.actor(o, False, False)[0]  # noqa: E731
    return Peer(repeat(lambda: agent.update(replay, silent, next(steps))), networks, draws, act)


def taco(path: str, slices: Slices, size: int = 0) -> Peer:
    stand_in("hydra")
    sys.path.insert(0, path)
    from agents import taco as official

    agent = official.TACOAgent(IMAGE, (ACTION,), DEVICE, **DRQV2_SETTINGS, **TACO_SETTINGS)

    def convert(observation: Tensor, action: Tensor, reward: Tensor, ended: Tensor) -> Any:
        now, factor = (observation[0], action[0], action.transpose(0, 1)), 0.99 * (1.0 - ended[0, :, None])
        return *now, reward[0, :, None], factor, observation[1], observation[3]

    batches = converted(slices(3, size or 1024), convert)

    def draws(stage: str, noise: dict[str, Tensor]) -> Draws:
        shifts = [noise[k] for k in ("shift", "next_shift", "anchor", "positive", "later")]
        return {"integer": [torch.floor(9 * u) for u in shifts], "normal": [noise["next_action"], noise["action"]]}

    networks = {
        "encoder/encoder": agent.encoder.convnet,
        "encoder/token": agent.act_tok.action_tokenizer,
        "actor/trunk": agent.actor.trunk,
        "actor/policy": agent.actor.policy,
        "contrast/projection": agent.TACO.proj_s,
        "contrast/sequence": agent.act_tok.action_seq_tokenizer,
        "contrast/query": agent.TACO.proj_sa,
        "contrast/similarity": {"weight": agent.TACO.W},
        "contrast/reward": agent.TACO.reward,
    }
    for state, c in (("critic", agent.critic), ("target_critic", agent.critic_target)):
        networks |= {f"{state}/trunk": c.trunk, f"{state}/q": [c.Q1, c.Q2]}
    act = lambda o, noise: agent.actor(agent.encoder(o), 1.0).mean  # noqa: E731
    return Peer(repeat(lambda: agent.update(batches, 0)), networks, draws, act)


PEERS = {"iqrl": iqrl, "td3": td3, "leanrl": leanrl, "td7": td7, "tcrl": tcrl, "dcwm": dcwm, "mrq": mrq, "drq": drq,
         "drqv2": drqv2, "sac_ae": sac_ae, "taco": taco}  # fmt: skip


# --- doing as another did


def views(network: Any) -> dict[str, list[Tensor]]:
    """Weights of a network by our names ("0.weight", ...), each member's, shaped as ours: matrices are (I, O)."""
    found: dict[str, list[Tensor]] = {}
    if isinstance(network, dict):  # parts of one
        tensors = {name: [value.data] for name, value in network.items() if isinstance(value, Tensor)}
        modules = {part: views(value) for part, value in network.items() if part not in tensors}
        return {**tensors, **{f"{part}.{k}": v for part, found in modules.items() for k, v in found.items()}}
    if hasattr(network, "params_dict"):  # members stacked by torch.func
        for name, values in zip(network.params_dict, network.params, strict=True):
            layer, _, kind = name.partition(".")
            kind = {"norm.weight": "scale", "norm.bias": "shift"}.get(kind, kind)
            found[f"{layer}.{kind}"] = [v.t() if kind == "weight" else v for v in values.data.unbind()]
        return found
    for member in network if isinstance(network, list) else [network]:
        layer = -1
        for module in member.modules():  # in the order of the forward pass
            if isinstance(module, nn.Linear):
                layer += 1
                found.setdefault(f"{layer}.weight", []).append(module.weight.data.t())
                found.setdefault(f"{layer}.bias", []).append(module.bias.data)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                layer += 1
                found.setdefault(f"{layer}.weight", []).append(module.weight.data)
                found.setdefault(f"{layer}.bias", []).append(module.bias.data)
            elif isinstance(module, nn.LayerNorm):
                found.setdefault(f"{layer}.scale", []).append(module.weight.data)
                found.setdefault(f"{layer}.shift", []).append(module.bias.data)
    return found


# Normal, uniform and whole numbers, the order of critics, and what a Gumbel-softmax draws.
QUEUES: dict[str, deque[Tensor]] = {k: deque() for k in ("normal", "uniform", "integer", "order", "exponential")}


def supply(draws: Draws) -> None:
    """What the checkout's next calls for random numbers will get."""
    for kind, numbers in draws.items():
        QUEUES[kind].extend(numbers)


def take_over_random_numbers() -> None:
    """From here on PyTorch's generator functions, as far as official updates call them, give what was supplied."""

    def take(kind: str) -> Tensor:
        if not QUEUES[kind]:
            sys.exit(f"error: no {kind} numbers left: the checkout draws more of them than expected")
        return QUEUES[kind].popleft()

    def normal(*like: Any, **_: Any) -> Tensor:
        numbers = take("normal")
        shape = tuple(like[0].shape) if isinstance(like[0], Tensor) else like
        if tuple(numbers.shape) != shape:
            sys.exit(f"error: normal numbers of shape {shape} asked for: expected {tuple(numbers.shape)}")
        return numbers

    def category(self: torch.distributions.Categorical) -> Tensor:
        upto = self.probs.cumsum(-1)
        return (upto <= take("uniform") * upto[-1]).sum().clamp(max=upto.shape[-1] - 1)

    torch.randn_like = torch.randn = normal  # type: ignore[assignment]
    torch.rand_like = lambda like, **_: take("uniform")  # type: ignore[assignment]
    torch.normal = lambda mean, std, **_: mean + std * normal(std)  # type: ignore[assignment]
    torch.Tensor.normal_ = lambda self, *_: self.copy_(normal(self))  # type: ignore[assignment]
    torch.randint = lambda *_, size, **__: take("integer").view(size).clone()  # type: ignore[assignment]
    torch.randperm = lambda n, **_: take("order")  # type: ignore[assignment]
    torch.Tensor.exponential_ = lambda self, *_: self.copy_(take("exponential"))  # type: ignore[assignment]
    torch.distributions.Categorical.sample = category  # type: ignore[assignment]


def follow(name: str, path: str, file: str) -> None:
    """Does the updates that FILE describes, and writes weights and actions to FILE.done."""
    given = torch.load(file, map_location=DEVICE)
    torch.set_default_dtype(torch.float64)
    torch.float = torch.float32 = torch.float64  # type: ignore[misc]  # before the checkout, which names them, is imported
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]

    def slices(steps: int, size: int) -> Iterator[Slice]:
        return itertools.cycle([(o[: steps + 1], *(x[:steps] for x in rest)) for o, *rest in given["slices"]])

    peer = PEERS[name](path, slices, given["size"])
    weights = {f"{net}/{k}": v for net, modules in peer.networks.items() for k, v in views(modules).items()}
    for key, arrange in peer.arrange.items():
        weights[key] = [arrange(v) for v in weights[key]]
    if weights.keys() != given["weights"].keys():
        sys.exit(f"error: weights on one side alone: {', '.join(sorted(weights.keys() ^ given['weights'].keys()))}")
    for key, members in weights.items():
        for member, value in zip(members, given["weights"][key].reshape(len(members), *members[0].shape), strict=True):
            member.copy_(value)
    take_over_random_numbers()
    for stage, noise in given["noise"]:
        supply(peer.draws(stage, noise))
    peer.update(given["updates"])
    with torch.no_grad():
        action = peer.act(given["observation"], given["act_noise"])
    for kind in (k for k, queue in QUEUES.items() if queue):
        sys.exit(f"error: {kind} numbers left over: the checkout draws fewer of them than expected")
    after = {key: torch.stack(members).reshape(given["weights"][key].shape) for key, members in weights.items()}
    torch.save({"weights": after, "action": action}, f"{file}.done")


def main() -> None:
    name, _, observed = sys.argv[1].partition("@") if len(sys.argv) in (4, 5) else ("", "", "")
    if name not in PEERS or observed not in ("", "pixels"):
        given, names = " ".join(sys.argv[1:]), ", ".join(PEERS)
        print(f"error: {given}: expected NAME[@pixels] PATH THREADS [FILE], NAME one of {names}", file=sys.stderr)
        sys.exit(2)
    path, threads = os.path.abspath(sys.argv[2]), int(sys.argv[3])
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") not in (here, os.path.dirname(here))]
    torch.set_num_threads(threads)
    out, sys.stdout = sys.stdout, sys.stderr  # whatever the checkout prints is no answer
    try:
        if len(sys.argv) == 5:
            return follow(name, path, sys.argv[4])
        update = PEERS[name](path, random_images if observed else random_slices).update
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: {name}: no module {error.name} in {path}, nor in {sys.executable}; expected a checkout of "
            "the official code, and peer_python=PYTHON with what it imports"
        )
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        update(int(line))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(time.perf_counter() - begin, file=out, flush=True)


if __name__ == "__main__":
    main()
