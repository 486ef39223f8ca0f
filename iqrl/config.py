"""Configuration: from words on a command line, a file or a sweep to complete, checked runs.

A value's origin is the last of these layers that sets it: the algorithm's default, the agent's profile, the task,
the preset, a file, the command line. What determines a run's result is its identity; where and how it is
executed (`Execution`) is not part of it.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iqrl import plain_yaml
from iqrl.agent import Agent, setting
from iqrl.agents import agent_class
from iqrl.environments import tasks
from iqrl.environments.environment import task_spec
from iqrl.errors import InputError, did_you_mean
from iqrl.settings import build, short, stated


@dataclass(frozen=True)
class Train:
    """The part of `train.*` that determines a run's result."""

    env_steps: int = setting(1_000_000, "budget, environment steps (decisions times action repeat)", low=1, high=10**9)
    action_repeat: int = setting(
        2, "environment steps a decision; 1 on Gymnasium", low=1, high=100, omit_default_from_identity=True
    )


@dataclass(frozen=True)
class Evaluate:
    """`eval.*`: protocol.md section 3."""

    every: int = setting(20_000, "environment steps between evaluations, in whole decisions", low=1, high=10**9)
    episodes: int = setting(10, "episodes in an evaluation", low=1, high=1000)


@dataclass(frozen=True)
class Execution:
    """The rest of `train.*`: where and how a run is executed. Not part of its identity."""

    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    precision: str = setting(
        "auto",
        "of matrix products; auto: as in its last session; tf32 on CUDA alone",
        choices=("auto", "float32", "tf32", "bfloat16"),
    )
    compile: str = setting("auto", "compile the updates; on CUDA, as graphs", choices=("auto", "on", "off"))
    pack: str = setting("auto", "seeds trained side by side: auto, or 1 to 32")
    threads: int = setting(
        0, "CPU threads for tensors, and the most workers of auto; 0: every core at hand", low=0, high=1024
    )
    workers: str = setting("auto", "environment worker processes: auto, or a number (0: in this process)")
    frames: str = setting(
        "auto",
        "where pictures of image tasks live: on the device, in the host's memory, in a file of the run's folder; "
        "auto: the first where they fit",
        choices=("auto", "device", "memory", "disk"),
    )
    doctor: str = setting(
        "auto",
        "check what a device never used with this agent computes (on CUDA); off: rely on it unseen",
        choices=("auto", "off"),
    )
    checkpoint_seconds: float = setting(300.0, "between checkpoints, wall seconds", low=0.0, high=1e7)


@dataclass(frozen=True)
class RunConfig:
    """One run, complete: enough to run it again.

    Attributes:
        agent: the algorithm's class.
        settings: its resolved configuration dataclass.
        task: canonical task name; of several tasks, theirs with commas between them.
        seed: the run's seed.
        origins: where each value came from, by dotted key.
    """

    agent: type[Agent[Any]]
    settings: Any
    task: str
    seed: int
    train: Train
    evaluate: Evaluate
    preset: str = "default"
    source: str = ""  # file of an agent from outside the tree
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def resolved(self) -> dict[str, Any]:
        """The configuration as plain data: what config.yaml holds.

        Settings with `omit_default_from_identity` are in it only where they are not at their default.
        """
        agent: dict[str, Any] = {"name": self.agent.name}
        if self.source:
            agent["source"] = self.source
        return {
            "agent": {**agent, **stated(self.settings)},
            "task": self.task,
            "seed": self.seed,
            "preset": self.preset,
            "train": stated(self.train),
            "eval": dataclasses.asdict(self.evaluate),
        }

    @property
    def spec(self) -> tasks.TaskSpec:
        """Sizes of the run's task at its action repeat. Loads the simulator."""
        return task_spec(self.task, self.train.action_repeat)

    @property
    def decisions(self) -> int:
        """That its budget of env steps holds."""
        return -(-self.train.env_steps // self.spec.action_repeat)

    @property
    def source_hash(self) -> str:
        """Of the agent's file, which may change under the same name; empty for an agent of the tree."""
        return hashlib.sha256(Path(self.source).read_bytes()).hexdigest() if self.source else ""

    @property
    def identity(self) -> str:
        """Hash of exactly what determines the result."""
        content = self.resolved()
        del content["preset"]
        content["agent"].pop("profile", None)  # a name for values, which count
        if self.source:
            content["agent"]["source"] = self.source_hash
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def directory_name(self) -> str:
        """Name of the run's directory: readable, and ending in its identity."""
        return f"{self.agent.name}-{self.task_label}-s{self.seed}-{self.identity[:8]}"

    @property
    def task_label(self) -> str:
        """The task as a part of a file's name, which may have 255 characters: of very many tasks, the beginning."""
        label = re.sub(r"[^A-Za-z0-9+=._-]", "_", self.task)
        return label[:100] if "," in self.task else label


# --- from words to layers


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a nested mapping; values are YAML.

    Raises:
        InputError: for a word without `=`, a key given twice, or a value that is no YAML.
    """
    layer: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise InputError(f"{word!r}: expected key=value, such as task=walker-walk or agent.horizon=3")
        node, *rest = key.split(".")
        if node == "agent" and not rest:
            node, rest = "agent", ["name"]
        target = layer.setdefault(node, {}) if rest else layer
        leaf = ".".join(rest) or node
        if not isinstance(target, dict):
            raise InputError(f"{key}={text}: {node} is given a value of its own, too")
        if leaf in target:
            raise InputError(f"{key}={text}: given twice")
        if "${" in text:
            raise InputError(f"{key}={text}: interpolation is not supported; expected a plain value")
        target[leaf] = text if (node, leaf) in _TEXT_KEYS else plain_yaml.parse(text, f"{key}={text}")
    return layer


_TEXT_KEYS = {
    ("agent", "name"),
    ("task", "task"),
    ("seeds", "seeds"),
    ("runs", "runs"),
    ("config", "config"),
    ("preset", "preset"),
}


def load_file(path: Path) -> dict[str, Any]:
    """A configuration file as a layer; `agent` may be a name or a mapping with one.

    Raises:
        InputError: if it cannot be read, or is no YAML mapping.
    """
    layer = plain_yaml.load(path, f"config={path}")
    if "config" in layer:
        raise InputError(f"config={path}: a file cannot name another; expected no key `config`")
    if isinstance(layer.get("agent"), str):
        layer["agent"] = {"name": layer["agent"]}
    elif isinstance(layer.get("agent"), dict):
        agent = layer["agent"]
        if agent.get("source"):
            agent["name"] = agent.pop("source")
    if "seed" in layer:
        layer["seeds"] = layer.pop("seed")
    return layer


def parse_seeds(value: Any) -> list[int]:
    """Seeds from `0..4`, `3,7`, a number or a list of numbers.

    Raises:
        InputError: if there are none, one is no whole number of 0 or more, or one is named twice.
    """
    expected = "expected whole numbers of 0 or more, such as 0..4 or 3,7"
    seeds: list[int] = []
    parts = value if isinstance(value, list) else str(value).split(",")
    for part in parts:
        text = str(part).strip()
        match = re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", text)
        if not match:
            raise InputError(f"seeds={value}: {text!r} is no seed; {expected}")
        low = int(match[1])
        high = int(match[2]) if match[2] else low
        if high < low:
            raise InputError(f"seeds={value}: {low}..{high} is empty; expected the smaller seed first, {high}..{low}")
        if high - low >= 100_000:
            raise InputError(f"seeds={value}: {high - low + 1} seeds; expected at most 100000")
        seeds += range(low, high + 1)
    if not seeds:
        raise InputError(f"seeds={value}: no seeds; {expected}")
    twice = [seed for seed, count in collections.Counter(seeds).items() if count > 1]
    if twice:
        raise InputError(f"seeds={value}: seed {min(twice)} is named twice")
    return seeds


# --- from layers to runs


TOP_KEYS = ("agent", "task", "seeds", "preset", "train", "eval", "runs", "config")


def resolve(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[list[RunConfig], Execution, Path]:
    """Runs (one a seed), how to execute them, and the folder for their directories.

    Args:
        layers: (origin, nested mapping) pairs, later ones winning: files, then the command line.

    Raises:
        InputError: for anything unknown, of the wrong type, or out of range.
    """
    top: dict[str, Any] = {}
    for _, layer in layers:
        for key, value in layer.items():
            if key not in TOP_KEYS:
                raise InputError(
                    f"{key}={short(value)}: no such key{did_you_mean(key, TOP_KEYS)}; "
                    f"expected one of {', '.join(TOP_KEYS)}"
                )
            if key in ("agent", "train", "eval") and not isinstance(value, Mapping):
                raise InputError(
                    f"{key}={short(value)}: expected keys below it, "
                    f"such as {key}.{'name' if key == 'agent' else 'env_steps'}"
                )
            if key in ("preset", "runs") and not isinstance(value, str):
                raise InputError(f"{key}={short(value)}: expected a word")
            top[key] = value
    names = [layer["agent"]["name"] for _, layer in layers if "name" in layer.get("agent", {})]
    cls, source = agent_class(str(names[-1] if names else "iqrl"))
    task = tasks.parse(top.get("task", cls.observed("walker-walk")))
    if task.members and not cls.takes_several_tasks:
        raise InputError(f"task={task.name}: agent {cls.name} learns one task; expected one, or an agent of several")
    if task.pixels and not cls.sees_images:
        raise InputError(f"task={task.name}: agent {cls.name} learns from states, not from images")
    if not task.pixels and not cls.sees_states:
        expected = cls.observed(task.name)
        raise InputError(f"task={task.name}: agent {cls.name} learns from images, not from states; expected {expected}")
    seeds = parse_seeds(top.get("seeds", "0"))
    preset = str(top.get("preset", "default"))
    if preset not in {"default", *cls.presets}:
        raise InputError(
            f"preset={preset}: agent {cls.name} has no such preset; "
            f"expected one of {', '.join({'default': 1, **cls.presets})}"
        )

    given = [(o, {k: v for k, v in layer.get("agent", {}).items() if k != "name"}) for o, layer in layers]
    profile = next((v["profile"] for _, v in reversed(given) if "profile" in v), None)
    known = {f.name for f in dataclasses.fields(cls.Config)}
    base: list[tuple[str, Mapping[str, Any]]] = []
    if "profile" in known:
        default = next(f.default for f in dataclasses.fields(cls.Config) if f.name == "profile")
        chosen = default if profile is None else profile
        if not isinstance(chosen, str) or chosen not in cls.profiles:
            raise InputError(
                f"agent.profile={short(chosen)}: no such profile of {cls.name}; "
                f"expected one of {', '.join(cls.profiles)}"
            )
        base.append((f"profile {chosen}", cls.profiles[chosen]))
    base.append((f"task {task.name}", cls.task_defaults(task.name, task.group)))
    base.append((f"preset {preset}", cls.presets.get(preset, {})))
    settings, origins = build(cls.Config, "agent", [*base, *given])

    executing = {f.name for f in dataclasses.fields(Execution)}
    train_layers = [(o, layer.get("train", {})) for o, layer in layers]
    both = executing | {f.name for f in dataclasses.fields(Train)}
    for _, layer in train_layers:
        for key, value in layer.items():
            if key not in both:
                raise InputError(f"train.{key}={short(value)}: no such key{did_you_mean(key, both, 'train.')}")
    usual = (f"task {task.name}", {"action_repeat": task.action_repeat})
    train, more = build(
        Train, "train", [usual, *((o, {k: v for k, v in t.items() if k not in executing}) for o, t in train_layers)]
    )
    if task.pixels and train.action_repeat != task.action_repeat:
        instead = f"{task.name.partition('+')[0]}+repeat={train.action_repeat}"
        raise InputError(f"train.action_repeat={train.action_repeat}: of images it is in the task's name: {instead}")
    execution, rest = build(
        Execution, "train", [(o, {k: v for k, v in t.items() if k in executing}) for o, t in train_layers]
    )
    check_execution(execution)
    evaluate, last = build(Evaluate, "eval", [(o, layer.get("eval", {})) for o, layer in layers])
    origins = {**origins, **more, **rest, **last}
    runs = [RunConfig(cls, settings, task.name, s, train, evaluate, preset, source, origins) for s in seeds]
    cls.validate(settings)
    return runs, execution, Path(str(top.get("runs", "runs")))


def load_run(directory: Path, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of an existing run directory, with changes of the command line on top if there are any.

    Raises:
        InputError: if there is none, or it was changed since (its identity no longer fits the directory's name).
    """
    path = directory / "config.yaml"
    if not os.path.isfile(path):
        raise InputError(f"{short(directory)}: not a run directory: it has no config.yaml")
    try:
        layer = load_file(path)
    except InputError as error:
        raise InputError(f"{error}; the command in its provenance.json, given again, writes it anew") from None
    if isinstance(layer.get("train"), dict):  # where it is not said it is 2, whatever the suite
        layer["train"] = {"action_repeat": 2, **layer["train"]}
    runs, _, _ = resolve([(str(path), layer)])
    if len(runs) != 1:
        raise InputError(f"{path}: expected one seed")
    name = directory.absolute().name
    if runs[0].directory_name != name:
        if runs[0].source and name.rpartition("-")[0] == runs[0].directory_name.rpartition("-")[0]:
            raise InputError(
                f"{short(directory)}: {runs[0].source} is not the version that it was trained with, whose hash is in "
                "its provenance.json (agent_file), or its config.yaml was changed; put them back"
            )
        raise InputError(f"{path}: is not the configuration of {name}, but that of {runs[0].directory_name}")
    return resolve([(str(path), layer), ("command line", changes)])[0][0] if changes else runs[0]


def pack_key(run: RunConfig) -> str:
    """Equal for runs that can be trained as one pack: those that differ in nothing but their seed.

    The run that one starts from may differ too: it is of the same seed, mostly.
    """
    settings = run.settings
    if getattr(settings, "init_from", ""):
        settings = dataclasses.replace(settings, init_from="from another run")
    return dataclasses.replace(run, seed=0, settings=settings).identity


def check_execution(execution: Execution) -> None:
    """Values of `train.*` whose form a type cannot say."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", execution.device):
        raise InputError(f"train.device={execution.device}: expected auto, cpu, cuda or cuda:N")
    if execution.pack != "auto" and not (execution.pack.isdigit() and 1 <= int(execution.pack) <= 32):
        raise InputError(f"train.pack={execution.pack}: expected auto or a number from 1 to 32")
    if execution.workers != "auto" and not (execution.workers.isdigit() and int(execution.workers) <= 512):
        raise InputError(f"train.workers={execution.workers}: expected auto or a number from 0 to 512")


def runs_folder_writable(folder: Path) -> None:
    """Raises InputError unless run directories can be made in `folder` (which need not exist yet)."""
    try:
        parent = folder
        while not parent.exists():
            parent = parent.parent
        os.rmdir(tempfile.mkdtemp(prefix=".writable-", dir=parent))  # /proc, say, tells only when one tries
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # a full disk is for the trainer to tell: runs may be there
            raise InputError(f"runs={short(folder)}: cannot be written to: {error.strerror}") from error
