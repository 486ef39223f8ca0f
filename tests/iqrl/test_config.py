"""Configuration: layers and their order, values as written, identity, files that execute nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from iqrl import config
from iqrl.config import Execution, RunConfig
from iqrl.errors import InputError
from iqrl.runs.group import read_group
from iqrl.training import execution


def resolve(*words: str) -> list[RunConfig]:
    return config.resolve([("command line", config.parse_words(words))])[0]


def one(*words: str) -> RunConfig:
    (run,) = resolve(*words)
    return run


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


# --- layers


def test_the_last_layer_wins_and_is_named(tmp_path: Path) -> None:
    study = file(tmp_path, "agent: {name: iqrl, latent_dim: 32, batch_size: 8}\npreset: small\ntask: dog-run\n")
    (run,), _, _ = config.resolve(
        [("study", config.load_file(study)), ("command line", config.parse_words(["agent.batch_size=4"]))]
    )
    s, origins = run.settings, run.origins
    assert (s.batch_size, origins["agent.batch_size"]) == (4, "command line")
    assert (s.latent_dim, origins["agent.latent_dim"]) == (32, "study")  # over the task's 1024 and the preset's 64
    assert (s.mlp_dims, origins["agent.mlp_dims"]) == ([128, 128], "preset small")
    assert (s.nstep, origins["agent.nstep"]) == (3, "task dog-run")
    assert (s.horizon, origins["agent.horizon"]) == (5, "default")


@pytest.mark.parametrize(
    "task, expected",
    [  # iqrl.md section 5
        ("acrobot-swingup", {"nstep": 3, "latent_dim": 512, "enc_tau": 0.0005, "noise_episodes": 150}),
        ("walker-walk", {"nstep": 1, "latent_dim": 512, "enc_tau": 0.005, "noise_episodes": 50}),
        ("cartpole-swingup-sparse", {"nstep": 1, "noise_episodes": 500}),
        ("fish-swim", {"nstep": 3, "use_projection": True, "noise_episodes": 150}),
        ("reacher-hard", {"nstep": 3, "noise_episodes": 150}),
        ("dog-walk", {"nstep": 3, "latent_dim": 1024, "noise_episodes": 500}),
        ("humanoid-run", {"nstep": 1, "latent_dim": 1024, "noise_episodes": 500}),
        ("quadruped-run", {"nstep": 1, "noise_episodes": 150}),
    ],
)
def test_settings_of_a_task(task: str, expected: dict[str, object]) -> None:
    settings = dataclasses.asdict(one("agent=iqrl", f"task={task}").settings)
    assert {k: settings[k] for k in expected} == expected


def test_defaults_are_those_of_the_specification() -> None:
    s = one("agent=iqrl", "task=walker-walk").settings
    assert (s.fsq_levels, s.horizon, s.rep_discount, s.rep_metric, s.rep_cos_sign) == ([8, 8], 5, 0.9, "cosine", 1)
    assert (s.mlp_dims, s.enc_mlp_dims, s.batch_size, s.discount) == ([512, 512], [256], 256, 0.99)
    assert (s.lr, s.enc_lr, s.enc_weight_decay, s.enc_clip, s.tau, s.enc_tau) == (3e-4, 1e-4, 0.01, 20.0, 0.005, 0.005)
    assert (s.policy_noise, s.noise_clip, s.actor_every, s.num_critics) == (0.2, 0.3, 2, 2)
    assert (s.utd, s.warmup_episodes, s.warmup, s.buffer_size) == (1.0, 10, "uniform", 1_000_000)


def test_the_corrected_profile() -> None:
    default, corrected = (
        dataclasses.asdict(one("agent=iqrl", *w).settings) for w in ((), ("agent.profile=corrected",))
    )
    assert {k for k in default if default[k] != corrected[k]} == {"profile", "rep_cos_sign"}
    assert corrected["rep_cos_sign"] == -1


def test_the_released_profile() -> None:
    s = one("agent=iqrl", "agent.profile=released").settings
    assert (s.rep_cos_sign, s.released_nstep, s.cross_episode_slices, s.mask_mode) == (1, True, True, "released")
    assert (s.num_critics, s.q_sample, s.actor_q, s.released_reward_align, s.warmup) == (5, 2, "avg", True, "policy")
    assert one("agent=iqrl", "agent.profile=released", "agent.num_critics=3").settings.num_critics == 3


def test_numbers_become_those_that_a_setting_expects() -> None:
    s = one("agent=iqrl", "agent.lr=1e-4", "agent.buffer_size=1e6", "agent.enc_tau=1", "agent.horizon=3.0").settings
    assert (s.lr, s.buffer_size, s.enc_tau, s.horizon) == (1e-4, 1_000_000, 1.0, 3)
    assert [type(v) for v in (s.lr, s.buffer_size, s.enc_tau, s.horizon)] == [float, int, float, int]


def test_words_that_yaml_takes_for_truth_values() -> None:
    execution = config.resolve([("x", config.parse_words(["train.compile=off", "train.pack=4", "train.workers=0"]))])[1]
    assert (execution.compile, execution.pack, execution.workers) == ("off", "4", "0")


# --- seeds


@pytest.mark.parametrize(
    "text, seeds", [("0", [0]), ("0..4", [0, 1, 2, 3, 4]), ("3,7", [3, 7]), ("7..7", [7]), ("0..1,5", [0, 1, 5])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert [r.seed for r in resolve(f"seeds={text}")] == seeds


BAD_SEEDS = {
    "no seed": ["", "-1", "1.5", "a", "0..", "4294967296", ",", "[0, 1]"],
    "named twice": ["3,3", "0..3,2", "0..99999,5"],
    "expected the smaller seed first, 0..4": ["4..0"],
    "at most": ["0..9999999"],
}


@pytest.mark.parametrize("text, part", [(text, part) for part, texts in BAD_SEEDS.items() for text in texts])
def test_bad_seeds(text: str, part: str) -> None:
    with pytest.raises(InputError, match=part) as error:
        resolve(f"seeds={text}")
    assert str(error.value).startswith(f"seeds={text}")


# --- identity


def test_identity_is_what_determines_the_result_and_nothing_else() -> None:
    base = one("agent=iqrl", "task=walker-walk", "seeds=3")
    same = [
        one(
            "task=walker-walk", "agent=iqrl", "seeds=3", "train.device=cpu", "train.precision=bfloat16", "train.pack=1"
        ),
        one("agent=iqrl", "task=walker-walk+sticky=0", "seeds=3", "agent.horizon=5", "train.checkpoint_seconds=1"),
        one("agent=iqrl", "task=walker-walk", "seeds=3", "preset=default", "train.threads=1", "runs=elsewhere"),
    ]
    assert {r.directory_name for r in same} == {base.directory_name}
    other = [
        one("agent=iqrl", "task=walker-walk", "seeds=4"),
        one("agent=iqrl", "task=walker-run", "seeds=3"),
        one("agent=iqrl", "task=walker-walk", "seeds=3", "agent.horizon=4"),
        one("agent=iqrl", "task=walker-walk", "seeds=3", "train.env_steps=500000"),
        one("agent=iqrl", "task=walker-walk", "seeds=3", "eval.episodes=5"),
        one("agent=td3", "task=walker-walk", "seeds=3"),
        one("agent=iqrl", "task=walker-walk+sticky=0.1", "seeds=3"),
    ]
    assert len({r.identity for r in [base, *other]}) == 1 + len(other)
    assert base.directory_name.startswith("iqrl-walker-walk-s3-") and base.identity.startswith(base.directory_name[-8:])


def test_a_later_setting_leaves_runs_that_lack_it_as_they_are(tmp_path: Path) -> None:
    folders = [path.parent for path in (Path(__file__).parents[2] / "results").rglob("runs.csv")]
    runs = [run for folder in folders for run in read_group(folder)]
    assert len(runs) > 50
    for run in runs:  # each of these was trained by another version of the project, and still is a run of this one
        folder = tmp_path / run.name
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(run.config()))
        assert config.load_run(folder).directory_name == run.name
    before, after = one("agent=mrq"), one("agent=mrq", "agent.released_gumbel=true")
    assert "released_gumbel" not in before.resolved()["agent"] and before.settings.released_gumbel is False
    assert after.resolved()["agent"]["released_gumbel"] is True and before.identity != after.identity


def test_pack_key_is_equal_for_runs_that_differ_in_their_seed_alone() -> None:
    runs = resolve("seeds=0..2")
    assert len({config.pack_key(r) for r in runs}) == 1 and len({r.identity for r in runs}) == 3
    assert config.pack_key(one("agent.horizon=4")) != config.pack_key(runs[0])


def test_config_yaml_is_complete(tmp_path: Path) -> None:
    """A run directory's configuration makes the same run again, whatever the defaults were when it was made."""
    for words in (["agent=iqrl", "agent.lr=1e-5", "task=dog-run+sticky=0.25"], ["agent=td3", "agent.profile=official"]):
        run = one(*words, "seeds=5", "preset=tiny", "train.env_steps=12345")
        folder = tmp_path / run.directory_name
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(run.resolved(), sort_keys=False, default_flow_style=None))
        again = config.load_run(folder)
        assert again == run and again.identity == run.identity
        content = yaml.safe_load((folder / "config.yaml").read_text())
        settings = [f for f in dataclasses.fields(run.settings) if not f.metadata["omit_default_from_identity"]]
        assert content["agent"].keys() == {"name", *(f.name for f in settings)}
        assert content["train"].keys() == {"env_steps"} and not set(content["train"]) & {
            f.name for f in dataclasses.fields(Execution)
        }


# --- files execute nothing


@pytest.mark.parametrize(
    "text",
    [
        "task: !!python/object/apply:os.system ['touch {mark}']\n",
        "agent: !!python/object/new:subprocess.Popen [[touch, {mark}]]\n",
        "seeds: !!python/name:os.system\n",
        "task: ${{oc.env:HOME}}\n",
        "runs: ${{oc.create:x}}\n",
    ],
)
def test_files_execute_nothing(tmp_path: Path, text: str) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(InputError):
        config.load_file(file(tmp_path, text.format(mark=mark)))
    with pytest.raises(InputError):
        key, _, value = text.strip().format(mark=mark).partition(": ")
        resolve(f"{'agent.lr' if key == 'agent' else key}={value}")
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    ["", "- 1\n", "5\n", "agent: {", "a: 1\na: 2\n", "\x00", "agent: {lr: 1, lr: 2}", "? [1]\n: 2\n", "config: x\n"],
)
def test_bad_files(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="study.yaml|no such key"):
        config.resolve([("f", config.load_file(file(tmp_path, text)))])


# --- agents from outside

AGENT = """
from dataclasses import dataclass
from iqrl.agent import Agent, register, setting

@dataclass(frozen=True)
class Config:
    buffer_size: int = setting(1000, "transitions", low=1)
    {extra}

@register("{name}")
class Mine(Agent[Config]):
    Config = Config
"""


SUBCLASS = """
from dataclasses import dataclass
from baselines import td3
from iqrl.agent import register, setting

@dataclass(frozen=True)
class Config(td3.Config):
    theta: float = setting(0.1, "1 / decisions")

@register("mine_subclass")
class Mine(td3.TD3):
    pass
"""


def test_a_subclass_has_the_config_that_it_names_and_a_misspelt_hook_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine_subclass.py"
    path.write_text(SUBCLASS.replace("pass", "Config = Config\n    def scheduel(self, progress): return {}"))
    assert one(f"agent={path}", "agent.theta=0.5").settings.theta == 0.5
    assert "scheduel is no hook; did you mean schedule?" in capsys.readouterr().err


def test_an_agent_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(AGENT.format(name="mine_config_test", extra=""))
    run = one(f"agent={path}", "agent.buffer_size=7")
    assert run.agent.name == "mine_config_test" and run.settings.buffer_size == 7
    assert run.resolved()["agent"]["source"] == str(path)
    before = run.identity
    path.write_text(AGENT.format(name="mine_config_test", extra="# changed"))
    assert run.identity != before  # the file is what the agent is
    folder = tmp_path / f"{run.directory_name.rpartition('-')[0]}-{before[:8]}"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(run.resolved()))
    with pytest.raises(InputError, match=r"mine.py is not the version that it was trained with"):
        config.load_run(folder)


def test_two_files_may_register_one_name(tmp_path: Path) -> None:
    """Of two sweeps, say; which file it was is part of a run's identity."""
    runs = []
    for name in ("one", "other"):
        (tmp_path / f"{name}.py").write_text(AGENT.format(name="mine_of_two", extra=f"# {name}"))
        runs.append(one(f"agent={tmp_path / name}.py"))
    first, second = runs
    assert first.agent is not second.agent and first.agent.name == second.agent.name
    assert first.identity != second.identity and one(f"agent={tmp_path / 'one.py'}").agent is first.agent
    assert one("agent=td3").agent.name == "td3"


@pytest.mark.parametrize(
    "content, part",
    [
        (AGENT.format(name="iqrl", extra=""), "exists"),
        (AGENT.format(name="undocumented", extra="lr: float = 0.1"), r"lr: expected setting\("),
        (AGENT.format(name="typed", extra="w: int | None = setting(1, 'x')"), "w: a setting is bool, int, float, str"),
        (AGENT.format(name="wrong", extra="w: int = setting('x', 'x')"), "w=x: expected a whole number"),
        (AGENT.format(name="my agent/x", extra=""), "registers 'my agent/x'; expected letters"),
        (AGENT.format(name="unbuffered", extra="").replace("buffer_size", "buffer"), "has no buffer_size"),
        (SUBCLASS, "its Config is not its agent's; expected Config = Config"),
        ("x = 1\n", "registers 0 agents"),
        ("def (", "SyntaxError"),
        ("raise ValueError('two\\nlines')", "two lines"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit"),
    ],
)
def test_bad_agent_files(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / f"bad_{abs(hash(content))}.py"
    path.write_text(content)
    with pytest.raises(InputError, match=part) as error:
        one(f"agent={path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "body, part",
    [
        ("", "NotImplementedError: Mine has no slices"),
        ("def slices(self): return None", "TypeError: its slices are none"),
        ("def __init__(self, *given): raise ValueError('two\\nlines')", "ValueError: two"),
    ],
)
def test_an_agent_of_ones_own_that_cannot_be_made(tmp_path: Path, body: str, part: str) -> None:
    path = tmp_path / f"unmade_{abs(hash(body))}.py"
    path.write_text(AGENT.format(name=f"unmade_{abs(hash(body))}", extra="") + f"    {body}\n")
    with pytest.raises(InputError, match=part) as error:
        execution.check(one(f"agent={path}", "task=cartpole-balance"))
    assert str(error.value).startswith(f"agent={path}") and "\n" not in str(error.value)
