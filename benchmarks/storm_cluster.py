"""A real Slurm cluster on this machine, for tests and for the storm: three nodes, no systemd, no cgroups.

The shell scripts in tests/slurm/cluster bring it up below one folder, break it, and take it down.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "tests" / "slurm" / "cluster"
PACKAGES = "slurm-wlm munge"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
ACCOUNTING_PACKAGES = "slurmdbd mariadb-server"
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")


def missing(accounting: bool = False) -> str:
    """Why there can be no cluster on this machine, and how to get one; "" if there can."""
    programs = (*PROGRAMS, *(ACCOUNTING_PROGRAMS if accounting else ()))
    packages = f"{PACKAGES} {ACCOUNTING_PACKAGES}" if accounting else PACKAGES
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [name for name in programs if not shutil.which(name, path=path)]
    if absent:
        return f"no {absent[0]}: apt-get install -y --no-install-recommends {packages}"
    if os.geteuid() != 0:
        return "a private Slurm cluster needs root"
    return ""


class Cluster:
    """A running cluster; a context manager.

    Args:
        accounting: with slurmdbd, so that sacct answers.
        cpus: of each of the three nodes, whatever the machine has.
    Attributes:
        environment: for processes that are to talk to it.
    """

    def __init__(self, accounting: bool = False, cpus: int = 4, extra: str = "") -> None:
        self.base = Path(tempfile.mkdtemp(prefix="slurm-"))
        knobs = {
            "LAB_ACCT": str(int(accounting)),
            "LAB_CPUS": str(cpus),
            "LAB_GPUS": "0",
            "LAB_EXTRA": extra,
            "LAB_PORT": str(_free_ports(8)),
            "LAB_SLURMD_TIMEOUT": "3",
            "LAB_MSG_TIMEOUT": "2",
            "LAB_KILLWAIT": "5",
        }
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        self._environment = {**os.environ, **knobs, "PATH": path}
        try:
            self._script("up.sh", timeout=120)
        except BaseException:
            self.close()
            raise
        self.environment = {
            **os.environ,
            "PATH": path,
            "SLURM_CONF": str(self.base / "etc" / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take it down with everything that runs on it."""
        self._script("down.sh", "--wipe", timeout=120)
        shutil.rmtree(self.base, ignore_errors=True)

    def node(self, name: str, operation: str) -> None:
        """crash (power lost), kill (its daemon only: what it trains goes on), start; or ctl restart."""
        self._script("node.sh", name, operation, timeout=60)

    def command(self, *words: str, check: bool = True) -> str:
        """Output of one of Slurm's commands; "" without `check` where it hangs, as in a storm it may."""
        try:
            result = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=15)
        except subprocess.TimeoutExpired:
            if check:
                raise
            return ""
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(words)}: {result.stderr.strip()}")
        return result.stdout.strip()

    def jobs(self) -> dict[str, tuple[str, str]]:
        """(state, node) of every job in the queue, by id."""
        text = self.command("squeue", "--noheader", "--array", "--format=%i|%T|%N", check=False)
        found = {}
        for line in text.splitlines():
            job, state, node = line.strip().split("|")
            found[job] = (state, node)
        return found

    def sweep(
        self, *words: str, check: bool = True, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`python -m slurm WORDS` as a user of this cluster would call it."""
        result = subprocess.run(
            [sys.executable, "-m", "slurm", *words],
            env={**self.environment, **(more or {})},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check and result.returncode:
            raise RuntimeError(
                f"slurm {' '.join(words)}: exit status {result.returncode}\n{result.stdout}{result.stderr}"
            )
        return result

    def wait_empty(self, seconds: float) -> None:
        """Until the queue is empty.

        Raises:
            TimeoutError: if it is not by then, with what is in it.
        """
        end = time.monotonic() + seconds
        while self.jobs() or self.command("squeue", "--noheader", check=False):
            if time.monotonic() > end:
                raise TimeoutError(f"still in the queue: {self.command('squeue', check=False)}")
            time.sleep(0.5)

    def _script(self, name: str, *words: str, timeout: float) -> None:
        result = subprocess.run(
            ["bash", str(SCRIPTS / name), str(self.base), *words],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if result.returncode:
            raise RuntimeError(f"{name} {' '.join(words)}: {result.stdout[-2000:]}{result.stderr[-2000:]}")


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    for start in range(16800 + os.getpid() % 500 * 20, 60000, 20):
        try:
            for port in range(start, start + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return start
        except OSError:
            continue
    raise OSError("no free ports")
