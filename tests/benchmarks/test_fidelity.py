"""Updates beside official code: every weight is compared, equal code is found equal, and other code is found out."""

import csv
import dataclasses

import pytest
import torch

from benchmarks import fidelity, peer
from iqrl import config
from iqrl.agents import AGENTS
from iqrl.environments.environment import task_spec

# A TD3 in the shape that the adapter expects of a checkout, in plain PyTorch.
CHECKOUT = """
import copy
import torch
from torch import nn
from torch.nn.functional import mse_loss

class Actor(nn.Module):
    def __init__(self, o, a):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(o, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, a))

    def forward(self, s):
        return self.net(s).tanh()

class Critic(nn.Module):
    def __init__(self, o, a):
        super().__init__()
        for i, sizes in enumerate(2 * [(o + a, 256), (256, 256), (256, 1)]):
            setattr(self, f"l{i + 1}", nn.Linear(*sizes))

    def heads(self, s, a):
        x = torch.cat([s, a], 1)
        return [l3(l2(l1(x).relu()).relu()) for l1, l2, l3 in
                ((self.l1, self.l2, self.l3), (self.l4, self.l5, self.l6))]

class TD3:
    def __init__(self, o, a, limit):
        self.actor, self.critic, self.count = Actor(o, a), Critic(o, a), 0
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.optimisers = [torch.optim.Adam(m.parameters(), lr=3e-4) for m in (self.actor, self.critic)]

    def train(self, replay, size):
        s, a, s2, r, going = replay.sample(size)
        self.count += 1
        with torch.no_grad():
            noise = (torch.randn_like(a) * 0.2).clamp(-0.5, 0.5)
            a2 = (self.actor_target(s2) + noise).clamp(-1, 1)
            y = r + going * DISCOUNT * torch.minimum(*self.critic_target.heads(s2, a2))
        self.descend(1, sum(mse_loss(q, y) for q in self.critic.heads(s, a)))
        if self.count % 2 == 0:
            self.descend(0, -self.critic.heads(s, self.actor(s))[0].mean())
            for m, bar in ((self.actor, self.actor_target), (self.critic, self.critic_target)):
                for p, q in zip(m.parameters(), bar.parameters()):
                    q.data += 0.005 * (p.data - q.data)

    def descend(self, which, loss):
        self.optimisers[which].zero_grad()
        loss.backward()
        self.optimisers[which].step()
"""


@pytest.fixture
def checkout(tmp_path):
    def make(*changes):
        text = CHECKOUT.replace("DISCOUNT", "0.99")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "TD3.py").write_text(text)
        return [f"peer=td3:{tmp_path}", "size=8", "updates=6", f"out={tmp_path}"]

    return make


def difference(folder):
    with open(folder / "td3.csv") as file:
        return {r["what"]: float(r["difference"]) for r in csv.DictReader(file)}


def test_equal_code_is_found_equal(checkout, tmp_path, capsys):
    assert fidelity.main(checkout()) == 0
    with open(tmp_path / "td3.csv") as file:
        rows = list(csv.DictReader(file))
    assert [r["what"] for r in rows] == [
        "actor/actor", "critic/critic", "target_actor/actor", "target_critic/critic", "actions"
    ]  # fmt: skip
    assert all(float(r["difference"]) < 1e-10 for r in rows)
    assert all(float(r["moved"]) > 0 for r in rows[:-1])
    assert "6 updates" in capsys.readouterr().out
    assert torch.get_default_dtype() == torch.float32
    assert torch.ones(1, dtype=torch.float64).float().dtype == torch.float32


@pytest.mark.parametrize("change, apart", [
    (("0.99", "0.98"), "critic"),
    (("0.005", "0.006"), "target"),
    (("heads(s, self.actor(s))[0]", "heads(s, self.actor(s))[1]"), "actor"),
    (("clamp(-0.5, 0.5)", "clamp(-0.3, 0.3)"), "critic"),
    (("going * ", ""), "critic"),
    (("tanh()", "tanh() * float('nan')"), "actions nan"),
])  # fmt: skip
def test_other_code_is_found_out(checkout, tmp_path, capsys, change, apart):
    assert fidelity.main(checkout(change)) == 1
    told, _, limit = capsys.readouterr().err.partition("; ")
    assert told.startswith("error: apart: ") and apart in told and limit == "expected at most 1e-6\n"
    assert not max(v for k, v in difference(tmp_path).items() if apart.split()[0] in k) <= 1e-6


@pytest.mark.parametrize("change, message", [
    (("nn.Linear(256, 256), nn.ReLU(), ", "nn.Linear(256, 256), nn.LayerNorm(256), nn.ReLU(), "),
     "weights on one side alone: actor/actor/1.scale"),
    (("torch.randn_like(a) * 0.2", "torch.randn_like(a) * torch.randn_like(a)"), "no normal numbers left"),
    (("torch.randn_like(a) * 0.2", "0 * a"), "normal numbers left over"),
])  # fmt: skip
def test_other_weights_or_random_numbers_end_it_with_a_line(checkout, capfd, change, message):
    assert fidelity.main(checkout(change)) == 2
    lines = capfd.readouterr().err.splitlines()
    assert any(message in line for line in lines)
    assert lines[-1].endswith("ended with status 1")


def spec_of(task):
    """Of images without drawing any."""
    spec = task_spec(task.partition("@")[0])
    return dataclasses.replace(spec, frame_shape=(3, 20, 20), stack=3) if "@" in task else spec


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_weight_that_learns_is_compared(name):
    words = [f"agent={name}", "preset=tiny", *(w for w in fidelity.WORDS[name] if w.startswith("task="))]
    run = config.resolve([("test", config.parse_words(words))])[0][0]
    agent = run.agent(run.settings, spec_of(run.task), torch.float64)
    with fidelity.double_precision():
        state = {k: v.double() for k, v in agent.initialise(torch.Generator().manual_seed(0)).items()}
        found = fidelity.weights(agent, state)
    learned = {k.split("/")[0] for k in state if k.endswith("/mean")}
    assert learned <= {k.split("/")[0] for k in found}
    for entry in learned:
        parts = [v for k, v in found.items() if k.startswith(f"{entry}/")]
        assert sum(v.numel() for v in parts) == agent.groups()[entry].count
        assert all(v.dtype == torch.float64 for v in parts)


def test_every_agent_can_be_compared():
    assert set(fidelity.WORDS) == set(AGENTS) <= set(peer.PEERS)


@pytest.mark.parametrize("words, message", [
    (["peer=sac:/"], "expected one of iqrl:/path/to/checkout, td3:"),
    (["peer=leanrl:/"], "expected one of iqrl:/path/to/checkout, td3:"),
    (["peer=td3:/nowhere"], "no such folder"),
    (["peer=td3:/", "updates=-1"], "updates=-1: expected a whole number"),
    (["peer=td3:/", "limit=none"], "limit=none: expected a number"),
    (["rounds=3"], "rounds=3: expected one of peer="),
])  # fmt: skip
def test_bad_words_are_one_line(words, message, capsys):
    assert fidelity.main(words) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1
