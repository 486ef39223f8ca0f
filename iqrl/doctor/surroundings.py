"""What training leans on beside the device: renderers, the C++ compiler, disks, memory, Slurm."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from iqrl import processes
from iqrl.runs.code import ROOT
from iqrl.runs.files import nearest_folder
from iqrl.training.execution import free_in_group, free_memory

OK, MISSING, WRONG = "ok", "missing", "wrong"  # what is missing, training does without
LEAST_DISK = 2 * 2**30  # bytes: a full replay log and two checkpoints of one run
LEAST_MEMORY = 2 * 2**30
SECONDS = 120

FRAME = """
import numpy as np
from iqrl.environments.environment import Environment
environment = Environment("cartpole-balance", 2)
environment.reset((0, 0, 0))
frame = environment.render(64, 64)
assert frame.shape == (64, 64, 3) and frame.std() > 1.0, "the frame is blank"
"""


@dataclass(frozen=True)
class Check:
    """Attributes: name; state (OK, MISSING or WRONG); said, in a line."""

    name: str
    state: str
    said: str

    def plain(self) -> dict[str, str]:
        return asdict(self)


def checks(runs: Path) -> Iterator[Check]:
    """All of them; `runs` is the folder that runs would be written to."""
    yield from (renderer(name) for name in ("egl", "osmesa"))
    yield compiler()
    yield from disks(runs)
    yield from memory()
    yield slurm()


def renderer(name: str) -> Check:
    """A frame drawn by MuJoCo, in a process of its own: it loads one renderer for good."""
    environment = {**os.environ, "MUJOCO_GL": name, "PYTHONPATH": str(ROOT)}
    status, said = _run([sys.executable, "-c", FRAME], environment)
    if status == 0:
        return Check(f"rendering ({name})", OK, "draws a frame")
    return Check(f"rendering ({name})", MISSING, f"cannot draw, so no films with it: {said}")


def compiler() -> Check:
    """Whether a C++ program can be compiled, as updates are on a CPU."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        program = get_cpp_compiler()
    except Exception as error:  # torch raises its own kind where there is none
        return Check("C++ compiler", MISSING, f"none, so updates run eager on a CPU: {' '.join(str(error).split())}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "program.cpp")
        source.write_text("#include <vector>\nint main() { return std::vector<int>(1)[0]; }\n")
        status, said = _run([program, "-fopenmp", str(source), "-o", str(source.with_suffix(""))], dict(os.environ))
    if status:
        return Check("C++ compiler", WRONG, f"{program}: {said}")
    return Check("C++ compiler", OK, f"{program} compiles")


def disks(runs: Path) -> Iterator[Check]:
    """Room, and leave to write, where runs, temporary files and compiled code go."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folders: list[tuple[str, Callable[[], str]]] = [
        ("runs", lambda: str(runs)),
        ("temporary files", tempfile.gettempdir),
        ("compiled code", cache_dir),
    ]
    for what, where in folders:
        try:
            folder = Path(where())
            there = nearest_folder(folder)
            with tempfile.TemporaryFile(dir=there):
                free = shutil.disk_usage(there).free
        except OSError as error:
            yield Check(f"disk for {what}", WRONG, f"cannot be written to: {error}")
            continue
        enough = free >= LEAST_DISK
        said = f"{free / 2**30:.1f} GiB free" + ("" if enough else f", expected {LEAST_DISK / 2**30:.0f} or more")
        yield Check(f"disk for {what}", OK if enough else WRONG, said)


def memory() -> Iterator[Check]:
    """What this process may have."""
    free, group = free_memory(torch.device("cpu")), free_in_group()
    limit = f"; {group / 2**30:.1f} GiB under this process's limit" if group < 2**60 else "; no limit of a job's"
    address, _ = resource.getrlimit(resource.RLIMIT_AS)
    limit += f"; address space limited to {address / 2**30:.1f} GiB" if address != resource.RLIM_INFINITY else ""
    enough = free >= LEAST_MEMORY
    yield Check("memory", OK if enough else WRONG, f"{free / 2**30:.1f} GiB free{limit}; {processes.cores()} cores")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = files != resource.RLIM_INFINITY and files < 256
    yield Check("open files", WRONG if few else OK, f"at most {files}" + (", expected 256 or more" if few else ""))


def slurm() -> Check:
    """Whether jobs can be submitted from here."""
    if shutil.which("sbatch") is None:
        return Check("Slurm", MISSING, "no sbatch here: sweeps run on this machine")
    status, said = _run(["sinfo", "--noheader", "--format=%P %a %D"], dict(os.environ))
    if status:
        return Check("Slurm", MISSING, f"sbatch is there, but sinfo fails: {said}")
    job = processes.job_id()
    return Check("Slurm", OK, "answers" + (f"; this is job {job}" if job else ""))


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit status, and the last line said."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return 1, f"did not end in {SECONDS} s"
    except OSError as error:
        return 1, str(error)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return done.returncode, lines[-1][:200] if lines else f"status {done.returncode}"
