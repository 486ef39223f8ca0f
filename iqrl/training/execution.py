"""Where and how a pack is executed: device, precision, compilation, threads, workers."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch

from iqrl import processes
from iqrl.agent import Agent, Progress, Slices
from iqrl.config import Execution, RunConfig
from iqrl.environments import tasks
from iqrl.errors import InputError
from iqrl.runs.code import ROOT, code_version
from iqrl.runs.files import nearest_folder
from iqrl.training.frames import picture_bytes
from iqrl.training.replay import Replay

Place = Literal["device", "memory", "disk"]  # the learning one; the host's; of the run's folder
PACKAGES = ("torch", "numpy", "dm_control", "mujoco", "omegaconf")
M_MXFAST, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = 1, -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Plan:
    """`Execution` with every `auto` decided."""

    device: torch.device
    precision: str  # float32, tf32 or bfloat16
    compiled: bool
    threads: int
    workers: int | Literal["auto"]
    checkpoint_seconds: float
    recorded: bool | None = None  # as CUDA graphs; None: where a CUDA device runs compiled updates
    packed: bool | None = None  # seeds by one kernel; None: off the CPU
    frames: Place = "device"  # where pictures of image tasks live
    switched_off: Mapping[str, str] = field(default_factory=dict)  # by `iqrl.doctor`: what, and why

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are cast to for products."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def __str__(self) -> str:
        said = f"{self.device} {self.precision} {'compiled' if self.compiled else 'eager'}, {self.threads} threads"
        pictures = {"device": "", "memory": ", pictures in the host's memory", "disk": ", pictures in a file"}
        return said + pictures[self.frames]

    def provenance(self) -> dict[str, Any]:
        """What a session's record says of it."""
        versions = {}
        of_tasks = [package for package in ("gymnasium", "metaworld", "myosuite") if package in sys.modules]
        for package in (*PACKAGES, *of_tasks):
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = "unknown"
        if apart := sys.modules.get("iqrl.environments.apart"):
            versions |= apart.versions
        return {
            "device": str(self.device),
            "device_name": device_name(self.device),
            "driver": driver_version(self.device),
            "precision": self.precision,
            "compile": self.compiled,
            "switched_off": dict(self.switched_off),
            "threads": self.threads,
            **code_version(),
            "code": str(ROOT),
            "command": command(),
            "packages": versions,
        }


def device_name(device: torch.device) -> str:
    """The model of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = []
    if Path("/proc/cpuinfo").exists():
        models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()


def driver_version(device: torch.device) -> str:
    """A GPU's driver and PyTorch's CUDA, such as "580.159.04, CUDA 13.0"; empty for a CPU."""
    if device.type != "cuda":
        return ""
    version = ""
    with contextlib.suppress(OSError):
        found = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
        version = found[0] if found else ""
    if not version:
        with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
            asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
            version = said.stdout.splitlines()[0].strip()
    return f"{version or 'unknown'}, CUDA {torch.version.cuda or torch.version.hip}"


def command() -> str:
    """This process's command line, as one would type it."""
    program = Path(sys.argv[0])
    start = ["-m", program.parent.name] if program.name == "__main__.py" else [sys.argv[0]]
    return shlex.join(["python", *start, *sys.argv[1:]])


def decide(execution: Execution, config: RunConfig) -> Plan:
    """Resolve every `auto`, and set this process up accordingly.

    Raises:
        InputError: for a device that is not there, or a precision that it does not have.
    """
    wanted = execution.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            f"train.device={execution.device}: this machine or this PyTorch has no CUDA; expected cpu or auto"
        )
    device = torch.device(wanted)
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise InputError(f"train.device={execution.device}: there are {torch.cuda.device_count()} CUDA devices")
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # streams, graphs and kernels are made on the current one
    threads = execution.threads or processes.cores()
    torch.set_num_threads(threads)
    precision = execution.precision
    if precision == "auto":
        precision = "bfloat16" if fast_bfloat16(device) else "float32"
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    elif precision == "tf32":
        raise InputError(f"train.precision=tf32: {device} does not have it; expected float32, bfloat16 or auto")
    else:
        keep_freed_memory()
    compiled = execution.compile == "on" or (execution.compile == "auto" and _worth_compiling(config))
    workers: int | Literal["auto"] = "auto" if execution.workers == "auto" else int(execution.workers)
    frames = _asked_place(execution, device) or "device"
    return Plan(device, precision, compiled, threads, workers, execution.checkpoint_seconds, frames=frames)


def _asked_place(execution: Execution, device: torch.device) -> Place | None:
    """Of `train.frames`; None: auto."""
    if execution.frames == "memory" and device.type == "cpu":
        return "device"  # whose memory is the host's
    return None if execution.frames == "auto" else cast(Place, execution.frames)


def keep_freed_memory() -> None:
    """Have glibc's allocator keep what tensors give back for those that come next; elsewhere, do nothing.

    By default it returns memory to the system as soon as 64 MB or less are free at the heap's end. Each update then
    maps its buffers anew, page by page: a sixth of the time of DC-MPC's. And while it has lists of small blocks, it
    goes through all of them whenever a large one is asked for: an eighth of the time of a narrow iQRL.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # as high as it rises by itself; setting either stops that
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MXFAST, 0)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)  # of the current device
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _worth_compiling(config: RunConfig) -> bool:
    """Compiling takes a minute or so once per shape and machine; a short run of a tiny network never earns it back."""
    return config.preset != "tiny" and config.train.env_steps >= 10_000


def pack_size(execution: Execution, run: RunConfig, plan: Plan, seeds: int, folder: Path) -> tuple[int, Place]:
    """Seeds to train side by side, and where their pictures live: the first place where those of one seed fit.

    Args:
        folder: of the runs.

    Raises:
        InputError: if even one seed does not fit the device's memory, or its pictures their place.
    """
    whole, pictures, free = memory_estimate(run), frames_estimate(run), free_memory(plan.device)
    asked = _asked_place(execution, plan.device)
    places: tuple[Place, ...] = ("device", "disk") if plan.device.type == "cpu" else ("device", "memory", "disk")
    if asked not in (None, "device") and not pictures:
        raise InputError(f"train.frames={asked}: expected auto, of a task that is not observed as images")

    def needs(place: Place) -> list[tuple[int, int, str, str]]:
        """Of one seed: bytes, bytes free, where they are, and what takes them."""
        apart = 0 if place == "device" else pictures
        less = "agent.buffer_size, train.env_steps, agent.batch_size or widths, or another preset"
        needed = [(whole - apart, free, f", {plan.device} has", less)]
        if apart:
            room = free_memory(torch.device("cpu")) if place == "memory" else free_disk(folder)
            where = "the host's memory" if place == "memory" else f"the disk of {folder}"
            needed.append((apart, room, f" for pictures, {where} has", "agent.buffer_size or train.env_steps"))
        return needed

    for place in [asked] if asked else places:
        needed = needs(place)
        size = min(room // each for each, room, _, _ in needed)
        if size:
            wanted = 32 if execution.pack == "auto" else int(execution.pack)
            return min(wanted, size, seeds), place
    each, room, has, less = next(need for need in needed if need[0] > need[1])
    raise InputError(
        f"{run.agent.name} {run.task}: needs about {each / 2**30:.1f} GiB{has} {room / 2**30:.1f} GiB free; "
        f"expected less of {less}"
    )


def check(run: RunConfig) -> None:
    """Raises InputError if the agent cannot learn from episodes of this task."""
    spec = run.spec
    slices = built(run, spec).slices
    if slices.batch_size < len(spec.tasks):
        raise InputError(f"agent.batch_size={slices.batch_size}: expected a slice at least of {len(spec.tasks)} tasks")
    shortest = min([spec.episode_decisions, *(task.episode_decisions for task in spec.tasks)])
    if slices.horizon > shortest and not slices.cross_episodes:
        raise InputError(
            f"{run.agent.name} {run.task}: learns from slices of {slices.horizon} decisions, longer than an episode of "
            f"{shortest}; expected a shorter agent.horizon or agent.nstep"
        )


def built(run: RunConfig, spec: tasks.TaskSpec) -> Agent[Any]:
    """A run's agent. Raises InputError, naming its file, if it is of a file of one's own and cannot be made."""
    try:
        agent = run.agent(run.settings, spec)
        if not isinstance(agent.slices, Slices):
            raise TypeError("its slices are none; expected a property that gives Slices")
        return agent
    except InputError:
        raise
    except Exception as error:
        if not run.source:
            raise
        raise InputError(f"agent={run.source}: {type(error).__name__}: {error}".splitlines()[0]) from error


def learns(run: RunConfig) -> bool:
    """Whether an update comes due within the budget. Where episodes may end early there is no telling: then, too."""
    spec = run.spec
    agent, progress = built(run, spec), Progress()
    try:
        counters = agent.counters()
        for _ in range(0 if spec.terminates else run.decisions):
            progress.decisions += 1
            progress.episode_decisions += 1
            due = agent.after_decision(progress)
            if progress.episode_decisions == spec.episode_decisions:
                progress.episodes += 1
                due += agent.after_episode(progress, counters)[0]
                progress.episode_decisions = 0
            if due:
                return True
    except Exception:  # of one's own agent: training says what and where
        return True
    return spec.terminates


def memory_estimate(run: RunConfig) -> int:
    """Bytes that one seed takes on its device, about: replay, parameters with their optimiser, and work space."""
    spec = run.spec
    agent = built(run, spec)
    # Counted, not made: absurd sizes are to be refused, not tried.
    groups = agent.groups().values()
    parameters = 16 * sum(group.size for group in groups)  # float32 values, targets and two moments
    widest = max((width for group in groups for _, _, shape, _ in group.layout for width in shape), default=0)
    replay = spec.task_count * Replay.bytes_needed(spec, agent.slices, transitions_kept(run))
    rows = agent.slices.batch_size * (agent.slices.horizon + 1)
    learning = 4 * rows * (16 * max(agent.latent_width(), 512) + 4 * widest)
    learning += rows * spec.observation_dim if spec.frame_shape else 0  # stacks, in bytes
    acting = 3 * run.evaluate.episodes * spec.task_count * agent.act_bytes  # side by side, on a device
    return replay + 2 * parameters + learning + acting + 64 * 2**20


def frames_estimate(run: RunConfig) -> int:
    """Bytes of that which pictures take; 0 of a task of states."""
    spec = run.spec
    if not spec.frame_shape:
        return 0
    return picture_bytes(spec, Replay.ring_of(spec, built(run, spec).slices, transitions_kept(run)))


def transitions_kept(run: RunConfig) -> int:
    """Of each task: an equal share of `agent.buffer_size`, and no more than the budget of a short run fills.

    The latter rounded up to a power of two, so that runs of most budgets share their compiled code, which knows the
    sizes of the tables; but not of images, which are large.
    """
    spec = run.spec
    filled = run.decisions + spec.episode_decisions
    if not spec.frame_shape:
        filled = max(2**16, 1 << (filled - 1).bit_length())
    return min(-(-run.settings.buffer_size // spec.task_count), filled)


def free_disk(folder: Path) -> int:
    """Bytes free on the disk of a folder that may not be there yet, with some left for others."""
    return int(shutil.disk_usage(nearest_folder(folder)).free * 0.9)


def free_memory(device: torch.device) -> int:
    """Bytes free on a device, with some left for others."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.9)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(available, free_in_group()) * 0.9)


def free_in_group() -> float:
    """Bytes left under the memory limits of this process's control groups (container, job); infinite without any."""
    left = [math.inf]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = Path("/sys/fs/cgroup") / next(line[4:] for line in lines if line.startswith("0::/"))
        for folder in (group, *group.parents):
            limit = folder / "memory.max"  # the root has none
            if limit.exists() and limit.read_text().strip() != "max":
                usage = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / "memory.current").read_text()) - int(usage["inactive_file"])  # a cache gives way
                left.append(int(limit.read_text()) - used)
    except (OSError, StopIteration, ValueError, KeyError):
        pass
    return min(left)
