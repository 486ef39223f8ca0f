"""A sweep to Slurm: packs to jobs, jobs to arrays, through submitit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit

from ablations import Sweep
from ablations.hours import Estimate, estimate
from iqrl.config import Execution
from iqrl.errors import InputError, what_failed
from iqrl.runs import manifest
from iqrl.runs.code import code_version
from iqrl.runs.files import replace_text
from slurm import job, profile, queue, tables
from slurm.housekeeping import agreed
from slurm.packs import Pack, with_agents
from slurm.profile import ClusterProfile
from slurm.remaining import Remaining, make_packs, remaining
from slurm.submissions import Job, Submission

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("iqrl", "baselines", "ablations", "slurm")  # that a job needs
ARRAY_LIMIT = 1001  # Slurm's default MaxArraySize
MEMORY = {"mem", "mem_per_cpu", "mem_per_gpu"}
NOT_NOW = "Requested node configuration is not available"  # what a test says of nodes that are down, too
SOUND = ("idle", "mixed", "allocated", "completing", "planned")  # states of nodes, as sinfo writes them


def submit(
    sweep: Sweep,
    runs: Path,
    profile_name: str,
    words: Mapping[str, str],
    asked: Execution,
    *,
    source: str,
    dry_run: bool,
    yes: bool,
    only: set[str] | None = None,
    reclaim_unknown: bool = False,
) -> int:
    """Submit what a sweep lacks: what is neither done nor running nor queued.

    Args:
        words: how to execute every run, from the user.
        source: the sweep's name or file, as `ablations.load` takes it.
        only: names of the runs to look at; all if None.
        reclaim_unknown: runs of another cluster, too, as if it had lost them.
    Returns:
        0, or 1 if the user said no.
    Raises:
        InputError: with Slurm's own words where it refuses.
    """
    resources = profile.load(profile_name)
    runs = runs.resolve()
    todo = remaining(sweep, runs, only, reclaim_unknown)
    if todo.queue.error:
        raise InputError(f"Slurm cannot be asked what is queued: {todo.queue.error}")
    size = resources.seeds if asked.pack == "auto" else int(asked.pack)
    packs = make_packs(todo.missing, size, _words(resources), runs, words)
    jobs = _jobs(packs, resources.packs_per_job)
    allowed = max(0, resources.most - len(todo.queue.states)) if resources.most else len(jobs)
    _show(sweep, todo, resources, profile_name, packs, jobs, allowed, runs)
    if not jobs:
        if only is None and not dry_run:  # all of it may be another sweep's, and labels may have changed
            manifest.write(runs, sweep.manifest())
        return 0
    jobs = jobs[:allowed]
    if not jobs:
        return 0
    with _only(resources):
        _test(resources, sweep.name, min(len(jobs), _array_size()))
    if dry_run or not agreed(f"submit {len(jobs)} jobs?", yes):
        return 0 if dry_run else 1
    now = todo if yes else remaining(sweep, runs, only, reclaim_unknown)  # the answer may have taken long
    if now.queue.error or {r.name for r in now.missing} != {r.name for r in todo.missing}:
        raise InputError(f"sweep={sweep.name}: what it lacks has changed meanwhile; the same command again asks anew")
    manifest.write(runs, sweep.manifest())
    submission = Submission.create(runs, sweep.name, "slurm")
    words_given = [f"{k}={v}" for k, v in words.items()]
    where = str(Path(profile_name).resolve()) if profile.is_path(profile_name) else profile_name
    submission.content |= {
        "source": source,
        "words": words_given,
        "profile": where,
        "resources": dataclasses.asdict(resources),
        "cluster": queue.setting("ClusterName"),
    }
    own = [job for s in todo.handed_out if not s.elsewhere(todo.queue.cluster) for job in s.jobs]
    queued = {name: job.id for job in own if job.id in todo.queue.states for name in job.runs}
    with _only(resources):
        return _hand_over(submission, jobs, resources, runs, queued)


def _words(resources: ClusterProfile) -> dict[str, str]:
    """How a job's training processes use what it has; part of what makes a resume bitwise."""
    threads = str(max(1, resources.cpus // resources.packs_per_job))
    if resources.gpus:
        return {"train.device": "cuda", "train.threads": threads}
    return {"train.device": "cpu", "train.threads": threads, "train.workers": "0"}


def _jobs(packs: Sequence[Pack], packs_per_job: int) -> list[list[Pack]]:
    """Packs of each job; those that wait for other runs come last, in jobs of their own."""
    jobs = []
    for second_stage in (False, True):
        part = [p for p in packs if bool(p.after) == second_stage]
        jobs += [part[i : i + packs_per_job] for i in range(0, len(part), packs_per_job)]
    return jobs


def _show(
    sweep: Sweep,
    todo: Remaining,
    resources: ClusterProfile,
    name: str,
    packs: Sequence[Pack],
    jobs: Sequence[Any],
    allowed: int,
    runs: Path,
) -> None:
    note = f" ({sweep.note})" if sweep.note else ""
    present = [f"{n} {s}" for s in ("done", "running", "queued", "unknown") if (n := todo.count(s))]
    print(f"{sweep.name}{note}: {len(todo.states)} runs" + (f", {', '.join(present)}" if present else ""))
    for remark in sweep.remarks():
        print(f"note: {remark}")
    if not jobs:
        print("nothing to submit")
        return
    print(f"{sum(len(p.runs) for p in packs)} runs in {len(packs)} packs, {len(jobs)} jobs, profile {name}")
    expected = estimate(todo.missing, runs, "cuda" if resources.gpus else "cpu")
    print(f"time: {_time(expected, packs, len(jobs), resources)}")
    if allowed < len(jobs):
        print(f"profile.most={resources.most}: the first {allowed} jobs now; the same command submits the rest later")


def _time(expected: Estimate, packs: Sequence[Pack], jobs: int, resources: ClusterProfile) -> str:
    """GPU-hours (CPU-hours without GPUs) and how long it takes, in words."""
    gpus = resources.gpus / resources.packs_per_job
    said = expected.words(gpus, "GPU-hours") if resources.gpus else expected.words(1.0, "CPU-hours")
    if not expected.seconds:
        return said
    jobs = min(jobs, resources.throttle or jobs)
    each = [sum(expected.seconds.get(name, 0.0) for name in pack.runs) for pack in packs]
    end = tables.duration(max(sum(each) / (jobs * resources.packs_per_job), *each))
    return f"{said}; {end} with {jobs} jobs at once, waiting not counted"


@contextlib.contextmanager
def _only(resources: ClusterProfile) -> Iterator[None]:
    """What is submitted is what the profile says: SBATCH_* of the user's shell would win over it.

    Nor do jobs inherit from one that this process runs in: its memory a CPU, say, contradicts theirs.
    """
    said = {f"SBATCH_{key.upper()}" for key in ("partition", "account", "qos", "constraint") if getattr(resources, key)}
    kept = queue.environment()
    removed = {k: os.environ.pop(k) for k in list(os.environ) if k in said or k not in kept}
    try:
        yield
    finally:
        os.environ.update(removed)


def _executor(resources: ClusterProfile, name: str, folder: Path, code: Path) -> submitit.SlurmExecutor:
    """submitit's executor, with everything that a profile asks for."""
    threads = max(1, resources.cpus // resources.packs_per_job)
    # `python -m` looks in the working folder first, so the job stands in the snapshot. `srun` does not hand the
    # job's CPUs on by itself since Slurm 22.05.
    inherited = os.environ.get("PYTHONPATH", "")
    setup = [
        *([f"export PYTHONPATH={shlex.quote(inherited)}"] if inherited else []),  # where sbatch hands nothing on
        *resources.setup,
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"export OMP_NUM_THREADS={threads} MUJOCO_GL=${{MUJOCO_GL:-disable}}",
        '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
        "export SLURM_EXPORT_ENV=ALL",  # with options: [export=NONE], srun too would hand nothing on
        f"export SWEEP_SCRATCH={shlex.quote(resources.scratch) if resources.scratch else ''}",
        f"cd {shlex.quote(str(code))} || exit 1",
    ]
    options = resources.sbatch_options()
    asked = profile.gpu_options(resources)
    memory = {} if options.keys() & MEMORY else {"mem": f"{round(resources.memory_gb * 1024)}MB"}
    executor = submitit.SlurmExecutor(folder=folder)
    given = {
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
    }
    executor.update_parameters(
        job_name=name,
        time=resources.minutes,
        cpus_per_task=resources.cpus,
        ntasks_per_node=1,
        signal_delay_s=resources.grace_seconds,
        array_parallelism=resources.throttle or 100_000,
        setup=setup,
        additional_parameters=options,
        **memory,
        **({} if not resources.gpus or asked else {"gpus_per_node": resources.gpus}),
        **{k: v for k, v in given.items() if v},
    )
    return executor


def _test(resources: ClusterProfile, name: str, count: int) -> None:
    """Ask Slurm whether it would take such an array.

    It says no to what it would queue, too, while nodes or a partition are down: then its word is a warning.

    Raises:
        InputError: with Slurm's own words if not.
    """
    with tempfile.TemporaryDirectory() as folder:
        executor = _executor(resources, name, Path(folder), ROOT)
        text = executor._make_submission_file_text("true", "test")  # what submitit itself submits
        script = Path(folder) / "test.sh"
        script.write_text(text)
        status, said = queue.command("sbatch", "--test-only", f"--array=0-{count - 1}", str(script))
    if status:
        words = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in said.splitlines() if line.strip()]
        if len(words) == 1 and NOT_NOW in words[0] and (down := _down(resources.partition)):
            message = f"while {down}, Slurm does not say whether it has nodes for these jobs: {words[0]}"
            print(f"warning: {message}", file=sys.stderr)
            return
        raise InputError(f"Slurm would refuse these jobs: {'; '.join(words)}")


def _down(partition: str) -> str:
    """Why nodes of a partition ("": the default) take no jobs, such as "3 of 4 nodes are drained"; "" if they do."""
    partition = partition or os.environ.get("SBATCH_PARTITION", "")
    chosen = [f"--partition={partition}"] if partition else []
    status, text = queue.command("sinfo", "--noheader", "--format=%P|%a|%T|%D", *chosen)
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 3] if not status else []
    if not partition:
        rows = [row for row in rows if row[0].endswith("*")] or rows
    shut = [f"partition {name.rstrip('*')} is {up}" for name, up, _, _ in rows if up != "up"]
    bad = [(int(count), state) for _, _, state, count in rows if state.rstrip("~#!%-@^$") not in SOUND]
    if bad and not shut:
        total = sum(int(count) for *_, count in rows)
        shut = [f"{sum(n for n, _ in bad)} of {total} nodes are {' or '.join(sorted({state for _, state in bad}))}"]
    return shut[0] if shut else ""


def _array_size() -> int:
    said = queue.setting("MaxArraySize")
    return max(1, int(said)) if said.isdigit() else ARRAY_LIMIT


def _hand_over(
    submission: Submission,
    jobs: Sequence[Sequence[Pack]],
    resources: ClusterProfile,
    runs: Path,
    queued: Mapping[str, str],
) -> int:
    """Submit the jobs; `queued`: run -> id of the job that trains it, of those in the queue already."""
    folder = submission.folder
    snapshot(folder / "code")
    jobs = [with_agents(packs, folder) for packs in jobs]
    for packs in jobs:
        for each in packs:
            each.write(folder / "packs")
    holder = dict(queued)
    limit = _array_size()
    for second_stage in (False, True):
        part = [packs for packs in jobs if bool(packs[0].after) == second_stage]
        for i in range(0, len(part), limit):
            executor = _executor(resources, submission.sweep, folder / "submitit", folder / "code")
            chunk = part[i : i + limit]
            ids = sorted({holder[name] for packs in chunk for each in packs for name in each.after if name in holder})
            if ids:  # a run that starts from another: not before that one's job has ended, however it ends
                executor.update_parameters(dependency="afterany:" + ":".join(ids))
            with _undisturbed():  # jobs that no file names could neither be seen nor cancelled
                try:
                    submitted = executor.map_array(job.work, [_task(packs, folder, runs, resources) for packs in chunk])
                except submitit.core.utils.FailedJobError as error:  # sbatch took none of these
                    done, said = len(submission.jobs), " ".join(str(error).split())
                    if not done:  # nothing has this folder's code
                        shutil.rmtree(folder, ignore_errors=True)
                        raise InputError(f"Slurm refuses these jobs: {said}") from error
                    message = f"{done} of {len(jobs)} jobs submitted; submit again for the rest: {said}"
                    raise InputError(message) from error
                except (submitit.core.utils.FailedSubmissionError, OSError) as error:
                    done, said = len(submission.jobs), " ".join(str(error).split())
                    message = f"{done} of {len(jobs)} jobs submitted, and perhaps {len(chunk)} more that no file names"
                    raise InputError(f"{message} (squeue --me; scancel): {said}") from error
                for packs, handle in zip(chunk, submitted, strict=True):
                    record = Job(handle.job_id, [{"name": each.name, "runs": list(each.runs)} for each in packs])
                    submission.jobs.append(record)
                    holder |= dict.fromkeys(record.runs, handle.job_id)
                _record(submission, submitted)
    arrays = sorted({each.id.partition("_")[0] for each in submission.jobs})
    where = "" if runs == Path("runs").resolve() else f" runs={shlex.quote(str(runs))}"
    print(
        f"submitted {len(submission.jobs)} jobs: {', '.join(arrays)}\n"
        f"  python -m slurm status {submission.sweep} --watch{where}"
    )
    return 0


def _record(submission: Submission, submitted: Sequence[submitit.Job[Any]]) -> None:
    """Write down what was submitted last; if that cannot be, take it back.

    Raises:
        InputError: naming the jobs, and what became of them.
    """
    try:
        submission.save()
    except OSError as error:
        ids = sorted({handle.job_id.partition("_")[0] for handle in submitted})
        status, said = queue.command("scancel", *ids)
        fate = f"and scancel failed: {said}" if status else "taken back"
        raise InputError(f"{what_failed(error, submission.folder)}; jobs {', '.join(ids)}: {fate}") from error


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a terminal that goes away wait until what is going on here has come to its end."""
    caught: list[int] = []
    names = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {name: signal.signal(name, lambda number, frame: caught.append(number)) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler or signal.SIG_DFL)
        for number in caught[:1]:
            signal.raise_signal(number)


def _task(packs: Sequence[Pack], folder: Path, runs: Path, resources: ClusterProfile) -> dict[str, Any]:
    fields = [f.name for f in dataclasses.fields(Pack) if f.name != "content"]
    return {
        "packs": [{name: getattr(each, name) for name in fields} for each in packs],
        "slots": resources.packs_per_job,
        "runs": str(runs),
        "folder": str(folder),
    }


def snapshot(target: Path) -> None:
    """The code as it is now, for jobs that may start next week."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")  # an editor's lock is a link to nowhere
    for package in PACKAGES:
        shutil.copytree(ROOT / package, target / package, ignore=ignored)
    replace_text(target / "SNAPSHOT.json", json.dumps(code_version()))
