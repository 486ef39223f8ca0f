"""Cluster profiles: what to ask a cluster for. One YAML file each, in slurm/profiles or anywhere."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from os.path import isfile
from pathlib import Path
from typing import Any

from iqrl import plain_yaml
from iqrl.agent import setting
from iqrl.errors import InputError
from iqrl.settings import build
from slurm import queue

FOLDER = Path(__file__).parent / "profiles"


def _texts(doc: str) -> Any:
    return field(default_factory=list, metadata={"doc": doc})


@dataclass(frozen=True)
class ClusterProfile:
    """Resources of one job, and how packs map to it."""

    partition: str = setting("", "partition; empty: the cluster's default")
    account: str = setting("", "account")
    qos: str = setting("", "quality of service")
    constraint: str = setting("", "node features, such as h100")
    gpus: int = setting(1, "GPUs a job; 0 for CPU jobs", low=0, high=16)
    cpus: int = setting(8, "CPUs a job", low=1, high=1024)
    memory_gb: float = setting(64.0, "memory a job, GB", low=0.1, high=16384.0)
    time: str = setting("24:00:00", "time limit, [days-]hours:minutes:seconds")
    grace_seconds: int = setting(300, "from the signal to the time limit, seconds", low=5, high=7200)
    most: int = setting(0, "jobs of this folder in the queue at once; 0: no bound", low=0, high=1_000_000)
    throttle: int = setting(0, "jobs of an array at once; 0: as many as the cluster gives", low=0, high=100_000)
    packs_per_job: int = setting(1, "training processes that share a job's GPUs", low=1, high=64)
    pack: int = setting(0, "seeds a training process; 0: automatic", low=0, high=32)
    setup: list[str] = _texts("shell lines before the job")
    scratch: str = setting("", "folder of the node for caches")
    options: list[str] = _texts("more options for sbatch, key=value or key")

    @property
    def minutes(self) -> int:
        """The time limit, in whole minutes (rounded up)."""
        return -(-parse_time(self.time) // 60)

    @property
    def seeds(self) -> int:
        """Seeds a pack: on CPUs one, on GPUs as many as there are, within reason."""
        from slurm.remaining import AUTOMATIC_PACK

        return self.pack or (AUTOMATIC_PACK if self.gpus else 1)

    def sbatch_options(self) -> dict[str, Any]:
        """`options` as a mapping; requeueing after a node's death is always asked for."""
        found: dict[str, Any] = {"requeue": True}
        for text in self.options:
            key, equals, value = text.lstrip("-").partition("=")
            found[key.strip().replace("-", "_")] = value if equals else True  # as submitit's own parameters are called
        return found


def gpu_options(profile: ClusterProfile) -> bool:
    """Whether its options say which GPUs; that comes instead of their number."""
    said = {k: v for k, v in profile.sbatch_options().items() if k == "gres" or k.startswith("gpus")}
    return any("gpu" in f"{key}={value}" for key, value in said.items())


def is_path(name: str) -> bool:
    """Whether that is a file of one's own, and not the name of a profile of this folder."""
    return name.endswith((".yaml", ".yml"))


def load(name: str) -> ClusterProfile:
    """The cluster profile called `name`, or the file of that path.

    Raises:
        InputError: naming the file and the key.
    """
    path = Path(name) if is_path(name) else FOLDER / f"{name}.yaml"
    if not isfile(path):  # without an error for a name that is too long to be a file's
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        first = "" if is_path(name) else f"; python -m slurm profile {name} writes one from what this cluster says"
        raise InputError(f"profile={name}: no such cluster profile; expected one of {known}, or a .yaml file{first}")
    texts = [f.name for f in dataclasses.fields(ClusterProfile) if f.type in ("str", "list[str]")]
    given = plain_yaml.load(path, str(path), as_written=texts)
    for key in ("setup", "options"):
        if given.get(key, "") in ("", []):
            given.pop(key, None)
        elif not isinstance(given[key], list) or not all(isinstance(line, str) for line in given[key]):
            raise InputError(f"{path}: {key}={given[key]}: expected a list of text")
    try:
        profile, _ = build(ClusterProfile, "profile", [(str(path), given)])
        limit = parse_time(profile.time)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if profile.grace_seconds >= limit:
        raise InputError(
            f"{path}: profile.grace_seconds={profile.grace_seconds}: expected less than the time limit, {limit} seconds"
        )
    if not profile.gpus and gpu_options(profile):
        raise InputError(f"{path}: options={profile.options}: asks for GPUs, but profile.gpus=0; expected gpus: 1, say")
    return profile


def parse_time(text: str) -> int:
    """Seconds of a time limit as Slurm writes them: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s.

    Raises:
        InputError: for anything else, and for less than a minute.
    """
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,5})(?::(\d{1,2}))?(?::(\d{1,2}))?", text.strip())
    if not match:
        raise InputError(f"profile.time={text}: expected [days-]hours:minutes:seconds, such as 24:00:00")
    days, *rest = match.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is None and len(numbers) < 3:  # the first is minutes
        numbers = [0, *numbers]
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    total = int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    if total < 60:
        raise InputError(f"profile.time={text}: expected at least a minute")
    return total


# --- a first profile


def write_first(name: str) -> int:
    """Write slurm/profiles/<name>.yaml from what `sinfo` says of this cluster.

    Raises:
        InputError: without Slurm, or if there is such a profile.
    """
    queue.require()
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InputError(f"profile {name}: expected a name of letters, digits, _ and -")
    path = FOLDER / f"{name}.yaml"
    if path.exists():
        raise InputError(f"profile {name}: {path} exists; expected another name")
    status, text = queue.command("sinfo", "--noheader", "--format=%P|%a|%l|%c|%m|%G|%D")
    if status or not text.strip():
        raise InputError(f"sinfo: {text.strip() or 'no partitions'}")
    path.write_text(describe(text))
    print(f"wrote {path}; look it over, then: python -m slurm submit quickstart --profile {name} --dry-run")
    return 0


def describe(sinfo: str) -> str:
    """A profile's text from sinfo's lines (partition|availability|limit|CPUs|memory|gres|nodes).

    The partition: the default one, unless only another one has GPUs. A GPU job takes its GPU's share of the
    node's cores and memory.
    """
    rows: list[dict[str, Any]] = []
    for line in sinfo.strip().splitlines():
        partition, up, limit, cpus, memory, gres, nodes = line.split("|")
        found = re.search(r"gpu(?::[\w.-]+)*:(\d+)", gres)
        row = {"name": partition.rstrip("*"), "default": partition.endswith("*"), "up": up == "up", "limit": limit}
        row |= {"cpus": int(cpus.rstrip("+")), "memory": int(memory.rstrip("+")), "gpus": int(found[1]) if found else 0}
        rows.append(row | {"nodes": nodes, "gres": gres})
    best = max(rows, key=lambda r: (r["up"], bool(r["gpus"]), r["default"], r["cpus"]))
    share = best["gpus"] or best["cpus"]
    cores = max(1, best["cpus"] // share) if best["gpus"] else 1
    memory_gb = max(0.5, int(best["memory"] / share / 1024 * 0.9 * 2) / 2)
    limited = best["limit"][:1].isdigit()  # else infinite, UNLIMITED, n/a
    longest = min(24 * 3600, parse_time(best["limit"])) if limited else 24 * 3600
    hours, rest = divmod(longest, 3600)
    line = "#   {name}: {nodes} nodes of {cpus} CPUs, {memory} MB, gres {gres}, limit {limit}"
    return "\n".join(
        [
            "# What sinfo says of this cluster:",
            *(line.format(**row) for row in rows),
            "# See slurm/profiles/gpu.yaml for every key.",
            f"partition: {best['name']}",
            'account: ""             # where the cluster wants one: sacctmgr show associations user=$USER',
            f"gpus: {1 if best['gpus'] else 0}",
            f"cpus: {min(cores, 16)}",
            f"memory_gb: {min(memory_gb, 128.0):g}",
            f"time: {hours:02d}:{rest // 60:02d}:00",
            f"grace_seconds: {300 if longest >= 3600 else 60}",
            "",
        ]
    )
