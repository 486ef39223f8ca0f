"""Training processes, a bounded number at once, until every pack has ended.

Used by the local queue (all packs of a sweep) and inside a Slurm job (that job's packs). A process that dies
is started again and goes on from its checkpoints: for ever while that gets it further, a few times with
growing pauses otherwise (a disk that is full for a while, a process that was killed for memory).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iqrl import processes
from iqrl.errors import BAD_INPUT, DISK, INTERRUPTED, what_failed
from iqrl.runs import reader
from iqrl.runs.files import last_line, written
from iqrl.runs.lease import newest_token, newest_writer
from iqrl.runs.reader import RunState
from slurm.packs import Pack, train_command

ATTEMPTS = 10  # without getting further: a disk may be full for a while
CRASHES = 3  # the same, of a process that ended by an error of its own: it will hardly go away
LONGEST_PAUSE = 60.0  # seconds
POLL_SECONDS = 0.2


@dataclass
class Member:
    """A pack and the process that trains it.

    Attributes:
        state: waiting, training, ended (all its runs are DONE or FAILED), stopped (asked to), given_up (no use
            in trying again; `reason` says why).
        attempts: starts since it last got further.
        progress: checkpoints and ends of its runs when it started; what differs later is new.
        tokens: of each run, the newest lease before it started.
    """

    pack: Pack
    state: str = "waiting"
    reason: str = ""
    attempts: int = 0
    not_before: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    slot: int = -1
    progress: tuple[object, ...] = ()
    tokens: dict[str, int] = field(default_factory=dict)


class Crew:
    """Trains packs.

    Args:
        packs: in the order in which they start; their configurations lie in `configs`.
        slots: environment variables of each place where a process can run, such as its GPU.
        runs, configs, logs: folders: of run directories, of the packs' configuration files, of their logs.
        announce: gets a line at events worth a line.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        slots: Sequence[Mapping[str, str]],
        runs: Path,
        configs: Path,
        logs: Path,
        announce: Callable[[str], None],
        working_folder: Path | None = None,
    ) -> None:
        self.members = [Member(pack) for pack in packs]
        self.slots, self.runs, self.configs, self.logs = slots, runs, configs, logs
        self.announce = announce
        self.working_folder = working_folder
        self.stopping = False

    def run(self, stop: Callable[[], bool], tick: Callable[[], None] = lambda: None) -> None:
        """Until every pack has ended or, once `stop` says so, has saved where it is."""
        try:
            while self.busy():
                if stop() and not self.stopping:
                    self.stop()
                self.step()
                tick()
                time.sleep(POLL_SECONDS)
        finally:
            for member in self.members:
                if member.process is not None:
                    member.process.kill()

    def busy(self) -> bool:
        return any(member.state in ("waiting", "training") for member in self.members)

    def stop(self) -> None:
        """Ask every process to save and leave; start no more."""
        self.stopping = True
        for member in self.members:
            if member.state == "waiting":
                member.state = "stopped"
            elif member.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    member.process.send_signal(signal.SIGUSR2)

    def step(self) -> None:
        """Look after processes that ended, and start those whose turn has come."""
        for member in self.members:
            if member.process is not None and (status := member.process.poll()) is not None:
                pid, member.process = member.process.pid, None
                with self._storage(member):
                    self._after(member, status, pid)
        taken = {member.slot for member in self.members if member.process is not None}
        free = [i for i in range(len(self.slots)) if i not in taken]
        for member in self.members:
            if not free or self.stopping:
                break
            if member.state == "waiting" and time.monotonic() >= member.not_before:
                with self._storage(member):
                    if self._ready(member):
                        self._start(member, free.pop(0))

    @contextlib.contextmanager
    def _storage(self, member: Member) -> Iterator[None]:
        """A file of this pack that cannot be read now is this pack's trouble, and tried again."""
        try:
            yield
        except OSError as error:
            member.attempts += 1
            if self.stopping:
                member.state = "stopped"
            else:
                self._again(member, what_failed(error), ATTEMPTS)

    def _ready(self, member: Member) -> bool:
        """Whether the runs that this pack builds on are complete. If they never will be, it is given up."""
        now = time.time()
        for name in member.pack.after:
            if reader.look(self.runs / name, now).state == "done":
                continue
            coming = any(name in m.pack.runs and m.state in ("waiting", "training") for m in self.members)
            if not coming:
                self._give_up(member, f"needs {name}, which is not complete")
            return False
        return True

    def _start(self, member: Member, slot: int) -> None:
        pack = member.pack
        seeds = self._seeds(pack)
        if not seeds:  # they failed, or were handed to another job, before the job of this crew was requeued
            member.state = "ended"
            return
        member.progress = self._progress(pack)
        member.tokens = {name: newest_token(self.runs / name) for name in pack.runs}
        member.attempts += 1
        command = train_command(sys.executable, pack, self.configs, self.runs, seeds)
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            with open(self.logs / f"{pack.name}.log", "ab") as log:
                member.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.working_folder,
                    env={**os.environ, **self.slots[slot]},
                    start_new_session=True,
                    preexec_fn=processes.terminate_with_parent,
                )
        except OSError as error:  # no room for a log, or for a process
            self._again(member, what_failed(error, command[0]), ATTEMPTS)
            return
        member.state, member.slot = "training", slot
        if member.attempts == 1:
            self.announce(f"{pack.name}  started")

    def _seeds(self, pack: Pack) -> list[int]:
        """Seeds of a pack, without runs that failed since it was handed out: they would fail again."""
        since, own = self._handed_out(pack), self._own(pack)
        named = zip(pack.runs, pack.seeds, strict=True)
        return [s for name, s in named if name in own and not reader.failed_since(self.runs / name, since)]

    def _own(self, pack: Pack) -> list[str]:
        """Runs of a pack, without those that a later job has claimed: one that failed here was mended and retried."""
        job, since = processes.job_id(), self._handed_out(pack)
        return [name for name in pack.runs if not (job and reader.taken_since(self.runs / name, since, job))]

    def files(self, pack: Pack) -> list[RunState]:
        """What its runs' files say; a failure from before the pack was handed out does not count."""
        now, since = time.time(), self._handed_out(pack)
        return [reader.look(self.runs / name, now, since) for name in pack.runs]

    def _handed_out(self, pack: Pack) -> float:
        return written(self.configs / f"{pack.name}.yaml") or 0.0

    def _after(self, member: Member, status: int, pid: int) -> None:
        """Decide what a process's end means."""
        pack = member.pack
        own = self._own(pack)
        states = {name: files for name, files in zip(pack.runs, self.files(pack), strict=True) if name in own}
        if not states:
            self._give_up(member, "another process has taken these runs over")
            return
        open_runs = [name for name, files in states.items() if files.state not in ("done", "failed")]
        if not open_runs:
            member.state = "ended"
            failed = {name: files for name, files in states.items() if files.state == "failed"}
            for name, files in failed.items():
                self.announce(f"{name}  FAILED: {files.reason}")
            if len(failed) < len(states):
                self.announce(f"{pack.name}  done")
            return
        said = last_line(self.logs / f"{pack.name}.log")
        if status == BAD_INPUT:
            self._give_up(member, said.removeprefix("error: ") or "bad input")
        elif not all(self._ours(name, member.tokens[name], pid) for name in open_runs):
            self._give_up(member, "another process has taken these runs over")
        elif self.stopping:
            member.state = "stopped"
        elif status == INTERRUPTED:
            member.state, member.attempts = "waiting", 0
        else:
            how = f"killed by signal {-status}" if status < 0 else said or f"exit status {status}"
            if self._progress(pack) != member.progress:
                member.attempts = 0
            self._again(member, how, ATTEMPTS if status < 0 or status == DISK else CRASHES)

    def _again(self, member: Member, how: str, most: int) -> None:
        """Start again after a pause, unless it has been tried often enough."""
        if member.attempts >= most:
            self._give_up(member, f"{how} ({most} attempts)")
            return
        pause = min(LONGEST_PAUSE, 2.0 ** max(0, member.attempts - 1))
        member.state, member.not_before = "waiting", time.monotonic() + pause
        self.announce(f"{member.pack.name}  {how}; starting again in {pause:.0f} s")

    def _ours(self, name: str, token: int, pid: int) -> bool:
        """Whether nobody but the process that just ended has claimed a run since that process began."""
        newest, writer = newest_writer(self.runs / name)
        return newest == token or (writer.get("pid") == pid and newest == token + 1)

    def _give_up(self, member: Member, reason: str) -> None:
        member.state, member.reason = "given_up", reason
        self.announce(f"{member.pack.name}  given up: {reason}")

    def _progress(self, pack: Pack) -> tuple[object, ...]:
        return tuple(reader.progress(self.runs / name) for name in pack.runs)
