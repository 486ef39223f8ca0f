"""One agent on several tasks: names, padding, balanced batches, masks, embedding; whole runs, bitwise."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up import first_state, make, random_batch
from plain_iqrl import PlainIQRL
from plain_networks import Net, nets
from torch import Tensor, nn
from training import assert_same_runs, run_directories

from baselines.mrq import MRQ
from baselines.tcrl import TCRL
from iqrl.agent import Batch, Progress, Slices
from iqrl.config import parse_words, resolve
from iqrl.environments import tasks
from iqrl.environments.environment import Environment, make_environment
from iqrl.environments.tasks import TaskSpec
from iqrl.errors import InputError
from iqrl.iqrl import IQRL
from iqrl.multi_task import ToldTheTask
from iqrl.runs.directory import RunDirectory
from iqrl.training import execution
from iqrl.training.engine import Engine
from iqrl.training.replay import Replay
from iqrl.training.sampling import gather, sample
from iqrl.training.trainer import Trainer

OWN = (TaskSpec("a", 3, 1, 2, 20, False, "easy"), TaskSpec("b", 5, 2, 2, 20, False, "easy"))
SPEC = TaskSpec("a,b", 6, 2, 2, 20, False, "easy", tasks=OWN)  # the last of 6 is the task's number


# --- names


def test_names_of_several_tasks() -> None:
    canonical = "walker-walk,cup-catch+sticky=0.5"
    for written in (canonical, f"[{canonical}]", " walker-walk, cup-catch+sticky=.5", canonical.split(",")):
        ref = tasks.parse(written)
        assert (ref.name, ref.group, ref.action_repeat, len(ref.members)) == (canonical, "easy", 2, 2)
    assert tasks.parse(["walker-walk"]) == tasks.parse("walker-walk")
    assert tasks.parse("walker-walk,dog-run,walker-run").group == "hard"


@pytest.mark.parametrize(
    "words, message",
    [
        ("task=[walker-walk,walker-rum]", "task=walker-rum: no such task; did you mean walker-run"),
        ("task=[walker-walk,walker-walk]", "walker-walk is there twice"),
        ("task=[walker-walk,walker-run@pixels]", "walker-run@pixels is of images; several tasks are learned from stat"),
        ("task=[cup-catch,mw-reach]", "cup-catch is of DeepMind Control, mw-reach of MetaWorld; expected one suite"),
        ("task=[cup-catch,]", "expected a task's name such as walker-walk, or a list of names"),
        ("agent=td3 task=[walker-walk,walker-run]", "agent td3 learns one task; expected one, or an agent of several"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(words: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        resolve([("test", parse_words(words.split()))])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_batch_has_a_slice_of_each_task() -> None:
    words = ["task=cup-catch,cartpole-balance,reacher-easy", "agent.batch_size=2"]
    (run,), _, _ = resolve([("test", parse_words(words))])
    with pytest.raises(InputError, match="agent.batch_size=2: expected a slice at least of 3 tasks"):
        execution.check(run)


def test_a_run_of_very_many_tasks_has_a_name_that_a_file_can_have() -> None:
    every = ",".join(name for name in tasks.names() if not name.startswith(("mw-", "myo-")))
    (run,), _, _ = resolve([("test", {"task": every})])
    assert len(run.directory_name) < 130 and run.resolved()["task"] == every


# --- environment


def test_each_episode_is_the_tasks_own_padded() -> None:
    both = make_environment("cartpole-balance,reacher-easy", 4)
    assert (both.spec.observation_dim, both.spec.feature_dim, both.spec.action_dim) == (7, 6, 2)
    for episode, (name, observed, acted) in enumerate([("cartpole-balance", 5, 1), ("reacher-easy", 6, 2)]):
        alone, key = Environment(name, 4), (3, 0, episode)
        seen, expected = both.reset(key), alone.reset(key)
        for step in range(4):
            assert seen[:observed].tolist() == expected.tolist()
            assert seen[observed:].tolist() == [0.0] * (6 - observed) + [episode]
            action = np.array([0.3, 0.1 * step], np.float32)  # of cartpole, the second is of no effect
            (seen, *told), (expected, *known) = both.step(action), alone.step(action[:acted])
            assert told == known


# --- balanced batches


def episodes(spec: TaskSpec, task: int, seed: int) -> list[tuple[Any, ...]]:
    """The arguments of `add` of one episode of 20 decisions of a task."""
    random = np.random.default_rng((task, seed))
    seen = random.standard_normal((21, spec.observation_dim)).astype(np.float32)
    seen[:, -1] = task
    act = random.uniform(-1, 1, (20, spec.action_dim)).astype(np.float32)
    return [(seen[i], act[i], float(random.normal()), False, i == 19, seen[i + 1]) for i in range(20)]


@pytest.mark.parametrize("prioritised", [False, True])
def test_a_batch_has_as_many_slices_of_each_task_drawn_from_its_own_replay(prioritised: bool) -> None:
    """Of a pack of two seeds, with unequal numbers of episodes; put together by loops over tasks and slices."""
    slices = Slices(3, 7, prioritised=prioritised)
    replay = Replay(SPEC, 2, slices, 50)
    single = dataclasses.replace(SPEC, tasks=())
    alone = {(place, task): Replay(single, 1, slices, 50) for place in range(2) for task in range(2)}
    logs: list[list[np.ndarray]] = [[], []]
    for place, task, count in [(0, 0, 0), (1, 1, 0), (0, 0, 1), (0, 1, 2), (0, 0, 3), (1, 0, 4), (0, 0, 5)]:
        for step in episodes(SPEC, task, count):
            logs[place].append(replay.add(place, *step)[0])
            alone[place, task].add(0, *step)
    assert replay.available(0) == alone[0, 1].available(0) == 18 and replay.newest(0, 20)[0][0, -1] == 0
    uniform = torch.rand(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    resumed = Replay(SPEC, 2, slices, 50)
    for place in range(2):
        resumed.extend(place, np.concatenate(logs[place]))
        resumed.load(place, replay.save(place))
        batches, all_drawn = [], []
        for task, own in enumerate([uniform[:4], uniform[4:]]):  # 4 and 3 of 7
            tables = {k: v[0] for k, v in alone[place, task].tables().items()}
            drawn = torch.cat([sample(tables, slices, replay.ring, u[None]) for u in own])
            batches.append(gather(tables, drawn, SPEC, slices))
            all_drawn.append(drawn)
        for whole in (replay, resumed):
            tables = {k: v[place] for k, v in whole.tables().items()}
            sampled = sample(tables, slices, whole.ring, uniform)
            assert sampled.tolist() == torch.cat(all_drawn).tolist()
            batch = gather(tables, sampled, SPEC, slices)
            for f in dataclasses.fields(Batch):
                assert torch.equal(getattr(batch, f.name), torch.cat([getattr(b, f.name) for b in batches], 1)), f.name
        assert batch.observation[:, :, -1].unique(dim=0).tolist() == [[0, 0, 0, 0, 1, 1, 1]]
        if prioritised:  # each ring gets those of its own slices
            priority = torch.arange(1.0, 8.0)
            replay.update_priorities(slice(place, place + 1), sampled[None], priority[None])
            for task, (drawn, own) in enumerate(zip(all_drawn, (priority[:4], priority[4:]), strict=True)):
                other = alone[place, task]
                other.update_priorities(slice(0, 1), drawn[None], own[None])
                assert other.priority is not None and replay.priority is not None
                assert torch.equal(replay.priority.values[2 * place + task], other.priority.values[0])


# --- one update


class PlainTold(nn.Module):
    """A plain network with an embedding row for each slice of the batch, and zeros for the entries that it lacks."""

    def __init__(self, net: Net, rows: Tensor, task: list[int], widths: list[int] | None) -> None:
        super().__init__()
        self.net, self.rows, self.task, self.widths = net, nn.Parameter(rows), task, widths

    def forward(self, *inputs: Tensor) -> Tensor:
        out = []
        for b, task in enumerate(self.task):
            row = self.rows[task]
            row = row / row.norm() if row.norm() > 1 else row
            y = self.net(*(x[b] for x in inputs), row)
            out.append(
                torch.cat([y[: self.widths[task]], torch.zeros(len(y) - self.widths[task])]) if self.widths else y
            )
        return torch.stack(out)


def plain(group: Any, flat: Tensor, name: str, task: list[int], widths: list[int] | None = None) -> list[PlainTold]:
    told: ToldTheTask = group.networks[name]
    inner = dataclasses.replace(group, networks={name: told.network})
    parameters = group.unpack(flat)[name]
    flat = torch.cat([torch.cat([parameters[k].reshape(-1), torch.zeros(pad)]) for _, k, _, pad in inner.layout])
    rows = parameters["embedding"] if told.network.ensemble else parameters["embedding"][None]
    members = zip(nets(inner, flat, name), rows, strict=True)
    return [PlainTold(net, row.clone(), task, widths) for net, row in members]


def padded_batch(size: int) -> tuple[Batch, list[int]]:
    batch, task = random_batch(5, size, spec=SPEC), [b % 2 for b in range(size)]
    for b, n in enumerate(task):
        batch.observation[:, b, OWN[n].observation_dim :] = 0.0
        batch.observation[:, b, -1] = n
        batch.action[:, b, OWN[n].action_dim :] = 0.0
    return batch, task


@pytest.mark.parametrize("in_encoder", [False, True])
def test_an_update_said_again_with_a_row_and_a_mask_for_each_slice(in_encoder: bool) -> None:
    agent: Any = make(IQRL, SPEC, task_in_encoder=in_encoder, use_reward=True, actor_every=1, task_dim=4)
    state = first_state(agent)
    batch, task = padded_batch(agent.config.batch_size)
    said: Any = PlainIQRL.__new__(PlainIQRL)
    told = {"dynamics", "reward", *(["encoder"] if in_encoder else [])}
    worlds = {n: (plain(agent.world, state["world"], n, task) if n in told else nets(agent.world, state["world"], n))[0]
              for n in agent.world.networks}  # fmt: skip
    said.start(agent, worlds, plain(agent.actor, state["actor"], "actor", task, [1, 2])[0],
               plain(agent.critic, state["critic"], "critic", task))  # fmt: skip
    noise = {"smoothing": torch.randn(len(task), 2, generator=torch.Generator().manual_seed(1))}
    changed, metrics = agent.run_stage("update_all", state, batch, noise, {})
    own = noise["smoothing"].clone()
    own[[b for b, n in enumerate(task) if n == 0], 1] = 0.0
    seen = dataclasses.replace(batch, observation=batch.observation[..., :-1])
    for name, value in said.update(seen, {"smoothing": own}, 1).items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for group, entry, name, members in [
        (agent.world, "world", "dynamics", [said.net["dynamics"]]),
        (agent.actor, "actor", "actor", [said.actor]),
        (agent.critic, "target_critic", "critic", list(said.critics_bar)),
    ]:
        ours = group.unpack(changed[entry])[name]
        for k, member in enumerate(members):
            rows = ours["embedding"][k] if len(members) > 1 else ours["embedding"]
            assert torch.allclose(rows, member.rows, atol=2e-5), name
            first = ours["0.weight"][k] if len(members) > 1 else ours["0.weight"]
            assert torch.allclose(first, member.net.linear[0].weight.t(), atol=2e-5), name


def of_one(agent: Any, single: Any, task: int, state: dict[str, Tensor], groups: dict[str, str]) -> dict[str, Tensor]:
    """The state of an agent of one task: its embedding moved into biases, rows and columns of padding cut off."""
    found = {k: v for k, v in state.items() if v.dim() == 0}
    for entry, name in groups.items():
        group, other = agent.groups()[name], single.groups()[name]
        parameters = {}
        for net, values in group.unpack(state[entry]).items():
            values = dict(values)
            if isinstance(group.networks[net], ToldTheTask):
                row = values.pop("embedding")[..., task, :]
                row = row / row.norm(dim=-1, keepdim=True).clamp(min=1.0)
                weight, inputs = values["0.weight"], values["0.weight"].shape[-2] - row.shape[-1]
                moved = (row[..., None, :] @ weight[..., inputs:, :]).reshape(values["0.bias"].shape)
                values |= {"0.weight": weight[..., :inputs, :], "0.bias": values["0.bias"] + moved}
            parameters[net] = values
        pieces = []
        for net, key, shape, pad in other.layout:
            kept = parameters[net][key]
            for dim, size in enumerate(shape):
                kept = kept.narrow(dim, 0, size)
            pieces += [kept.reshape(-1), torch.zeros(pad)]
        found[entry] = torch.cat(pieces)
    return found


def losses(agent: Any, state: dict[str, Tensor], batch: Batch, noise: Tensor) -> dict[str, Tensor]:
    """Of TCRL or MR.Q at one state: every mean over the batch, and the target values (B,)."""
    told = agent.told(batch.observation[0])
    if isinstance(agent, MRQ):
        loss, parts = agent.encoder_loss(state["encoder"], state["target_encoder"], torch.tensor(1.0), batch)
        y = agent.target_value(state, batch, {"smoothing": noise})
        net = agent.encoder(state["encoder"])
        zs = agent.embed_state(net, batch.observation[0])
        value = agent.value_loss(state["value"], agent.embed_action(net, zs, batch.action[0], *told), y, *told)[0]
        policy = agent.policy_loss(state["policy"], state["value"], state["encoder"], zs, {}, *told)
    else:
        sigma = torch.tensor(0.3)
        loss, parts = agent.representation_loss(state["world"], state["target"], batch)
        z = agent.encode(agent.world(state["world"]), batch.observation[:2])
        y = agent.target_value(state, batch, z, noise, sigma)
        value = agent.critic_loss(state["critic"], z[0], batch.action[0], y, *told)[0]
        policy = agent.actor_loss(state["actor"], state["critic"], z[0], noise, sigma, *told)
    means = {k: v for k, v in parts.items() if k.endswith("_loss")}
    return {**means, "loss": loss, "value": value, "policy": policy, "y": y}


@pytest.mark.parametrize("in_encoder", [False, True])
@pytest.mark.parametrize("cls", [TCRL, MRQ])
def test_losses_are_the_mean_of_those_of_agents_of_one_task(cls: Any, in_encoder: bool) -> None:
    """Each task by itself, of its own widths, by an agent that is told nothing."""
    settings = {"pre_activation_weight": 1.0} if cls is MRQ else {}  # so that it shows
    agent = make(cls, SPEC, task_in_encoder=in_encoder, task_dim=4, batch_size=8, **settings)
    state, (batch, task) = first_state(agent), padded_batch(8)
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    groups = {"world": "world", "target": "target", "actor": "actor", "critic": "critic", "target_critic": "critic"}
    if cls is MRQ:
        names = ("encoder", "policy", "value", "target_policy", "target_value")
        groups = {name: name.removeprefix("target_") for name in names}
        groups["target_encoder"] = "target"
        state |= {"reward_scale": torch.tensor(0.7), "target_reward_scale": torch.tensor(0.9)}
    ours, theirs = losses(agent, state, batch, noise), []
    for n, spec in enumerate(OWN):
        rows = [b for b in range(8) if task[b] == n]
        part = Batch(*(getattr(batch, f.name)[:, rows] for f in dataclasses.fields(Batch)))
        part = dataclasses.replace(
            part, observation=part.observation[..., : spec.observation_dim], action=part.action[..., : spec.action_dim]
        )
        single = make(cls, spec, batch_size=4, **settings)
        its = of_one(agent, single, n, state, groups)
        theirs.append(losses(single, its, part, noise[rows, : spec.action_dim]))
        torch.testing.assert_close(ours["y"][rows], theirs[n]["y"])
    for name in ours.keys() - {"y"}:
        torch.testing.assert_close(ours[name], (theirs[0][name] + theirs[1][name]) / 2, msg=name)


@pytest.mark.parametrize(
    "cls, group, layer", [(IQRL, "actor", "actor"), (TCRL, "actor", "head"), (MRQ, "policy", "policy")]
)
def test_padded_entries_move_nothing(cls: Any, group: str, layer: str) -> None:
    """Not noise of theirs, in learning and in acting; and no output that is padding has a gradient."""
    agent = make(cls, dataclasses.replace(SPEC, tasks=(OWN[0], dataclasses.replace(OWN[0], name="c"))))
    state, (batch, task) = first_state(agent), padded_batch(agent.config.batch_size)
    batch.observation[..., 3:-1], batch.action[..., 1:] = 0.0, 0.0  # both tasks have one action
    noise, other = torch.randn(2, len(task), 2)
    other[:, 0] = noise[:, 0]
    schedule = {"sigma": torch.tensor(0.5)}

    def updated(numbers: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        now, said = dict(state), dict[str, Tensor]()
        for stage in ("update_encoder", "update_rl") if cls is MRQ else ("update_all",):
            drawn = dict.fromkeys(agent.stage(stage).noise, numbers)
            changed, metrics = agent.run_stage(stage, now, batch, drawn, schedule)
            now, said = {**now, **changed}, {**said, **metrics}
        return now, said

    (one, said), (two, again) = updated(noise), updated(other)
    assert all(torch.equal(said[k], again[k]) for k in said) and all(torch.equal(one[k], two[k]) for k in one)
    moments = getattr(agent, group).unpack(one[f"{group}/mean"])[layer]
    last = moments[max(k for k in moments if k.endswith("weight"))]
    assert (last[:, 1] == 0).all() and (last[:, 0] != 0).any()
    observation = batch.observation[0]
    explored = agent.act(state, {}, observation, {"action": noise}, schedule)[0]
    assert (explored[:, 1] == 0).all() and (explored[:, 0] != 0).any()
    engine = Engine(agent, [0], Replay(agent.spec, 1, agent.slices, 50))
    uniform, _ = engine.explore([0], observation[:1].numpy(), {}, [Progress()])
    assert uniform[0, 1] == 0 and uniform[0, 0] != 0


# --- engine and trainer


def engine(cls: Any, seeds: list[int], **options: Any) -> Engine:
    agent = make(cls, SPEC, batch_size=15)
    replay = Replay(SPEC, len(seeds), agent.slices, 100)
    for place, seed in enumerate(seeds):
        for task in (0, 1, 0):
            for step in episodes(SPEC, task, seed):
                replay.add(place, *step)
    return Engine(agent, seeds, replay, **options)


def trained(engine: Engine, updates: int = 6) -> dict[str, Tensor]:
    progress = [Progress() for _ in engine.seeds]
    for _ in range(updates):
        engine.update(range(len(progress)), progress)
    return engine.state


@pytest.mark.parametrize("cls", [IQRL, TCRL, MRQ])
def test_a_pack_is_its_seeds(cls: Any) -> None:
    one_by_one, together = (trained(engine(cls, [4, 0], packed=packed)) for packed in (False, True))
    for place, seed in enumerate([4, 0]):
        for k, v in trained(engine(cls, [seed])).items():
            assert torch.equal(v[0], one_by_one[k][place]), k
            assert torch.allclose(v[0], together[k][place], atol=1e-5), k


@pytest.mark.slow
@pytest.mark.parametrize("cls", [IQRL, TCRL, MRQ])
def test_compiled_is_eager(cls: Any, capsys: pytest.CaptureFixture[str]) -> None:
    eager, compiled = (trained(engine(cls, [4, 0], packed=True, compiled=c)) for c in (False, True))
    assert "warning" not in capsys.readouterr().err  # it did not fall back
    for k, v in eager.items():
        assert torch.allclose(compiled[k], v, atol=1e-5), k


WORDS = ["task=[cartpole-balance,reacher-easy]", "preset=tiny", "train.action_repeat=4", "eval.episodes=1",
         "train.compile=off", "train.precision=float32", "train.threads=1", "train.workers=0",
         "train.device=cpu"]  # fmt: skip
AGENTS = {  # settings, env steps between evaluations, of which there are three
    "iqrl": (["agent.warmup_episodes=1", "agent.utd=0.1"], 2000),
    "mrq": (["agent.warmup_decisions=520", "agent.target_every=20"], 1200),
}


def train(agent: str, runs: Path, seeds: str, stop_at: tuple[int, ...] = ()) -> None:
    """Train to the end, stopped on the way after so many questions whether to stop."""
    own, every = AGENTS[agent]
    lengths = [f"train.env_steps={2 * every}", f"eval.every={every}"]
    for calls in (*stop_at, 10**9):
        words = [f"agent={agent}", *own, *lengths, *WORDS, f"seeds={seeds}"]
        configs, how, _ = resolve([("test", parse_words(words))])
        directories = [RunDirectory.create(config, runs) for config in configs]
        for directory in directories:
            directory.claim()
        left = iter(range(calls))
        stop = lambda left=left: next(left, None) is None  # noqa: E731
        Trainer(configs, directories, execution.decide(how, configs[0]), stop=stop).run()


@pytest.mark.parametrize("agent", AGENTS)
def test_packed_is_single_and_stopped_is_not_stopped_bitwise(agent: str, tmp_path: Path) -> None:
    train(agent, tmp_path / "pack", "0..1")
    for seed in "01":
        train(agent, tmp_path / "alone", seed, stop_at=(900, 700) if seed == "0" else ())
    assert_same_runs(tmp_path / "alone", tmp_path / "pack")
    (directory, _) = run_directories(tmp_path / "pack")
    rows, every = list(csv.DictReader((directory / "evaluations.csv").open())), AGENTS[agent][1]
    names = ["cartpole-balance", "reacher-easy"]
    expected = [(str(step), name) for step in (0, every, 2 * every) for name in names]
    assert [(row["env_step"], row["task"]) for row in rows] == expected
    rows = list(csv.DictReader((directory / "training.csv").open()))
    assert [row["task"] for row in rows] == [names[i % 2] for i in range(2 * every // 1000)]
    if agent == "iqrl":
        assert [int(row["updates"]) for row in rows] == [0, 0, 0, 25]
