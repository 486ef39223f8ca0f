"""Keeps what figures need of runs as tables that can be committed: runs.csv, evaluations.csv, latents.csv of a group.

    python -m benchmarks.keep runs/iqrl-walker-walk-s0-52daaf07 ... out=results/reference/full
    python -m benchmarks.keep runs/sweeps/horizon-lite.json ... out=results/reference/lite

Of a sweep, all its runs. They are added to what `out` holds; a run that is there already is replaced, and no other
row is touched. Configuration, provenance, evaluations and diagnostics; no checkpoints, replay or training.csv, and not
where and as which process a run was trained. `incomplete=keep` takes runs that have not ended, too: figures name them.
`make figures RUNS=results/reference/full` draws from the tables as from the runs themselves.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from iqrl.errors import BAD_INPUT, InputError
from iqrl.runs import group, manifest
from iqrl.runs.reader import Run
from iqrl.runs.tables import Damaged

PATH = re.compile(r"(\w+=)/\S*/(?=[^/\s]+)")  # key=/some/where/name, of which the name stays
OF_A_MACHINE = ("host", "pid", "started", "job_id", "code")


def keep(path: Path, out: Path, incomplete: bool = False) -> None:
    """Add one run to the tables of `out`.

    Args:
        incomplete: take one that is not complete, too.

    Raises:
        InputError: if it is not a complete run, lies in `out` itself, or has a file that cannot be used.
    """
    run = Run(path.absolute())
    if (out / run.name).exists():
        raise InputError(f"out={out}: {run.name} is a folder there; expected another out, or that folder moved away")
    if run.ending()[0] != "done" and not incomplete:
        raise InputError(f"{path}: not a complete run; expected a directory with a DONE that fits its files")
    try:
        provenance = run.provenance()
        for session in provenance["sessions"]:
            for key in OF_A_MACHINE:
                session.pop(key, None)
            session["command"] = PATH.sub(r"\1", session["command"])
        group.add(out, run, provenance)
    except (Damaged, KeyError) as error:
        raise InputError(f"{path}: cannot be kept: {error}") from None


def keep_sweep(path: Path, out: Path, incomplete: bool) -> list[Path]:
    """Add a sweep's manifest and every run it names, which stand beside the manifest's folder.

    Raises:
        InputError: if it is no manifest, lies in `out` itself, or a run is not complete.
    """
    try:
        names = sorted({entry["run"] for entry in manifest.read(path)["runs"]})
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a sweep's manifest, such as runs/sweeps/NAME.json: {error}") from None
    copy = out / "sweeps" / path.name
    if copy.exists() and copy.samefile(path):
        raise InputError(f"out={out}: {path} already lies there; expected another folder")
    runs = [path.parent.parent / name for name in names]
    for run in runs:
        keep(run, out, incomplete)
    copy.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, copy)
    return runs


def main(words: Sequence[str]) -> int:
    given = [Path(word) for word in words if not word.startswith(("out=", "incomplete="))]
    outs = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    incomplete = "incomplete=keep" in words
    if "--help" in words or "-h" in words:
        print(__doc__)
        return 0
    try:
        if not given or len(outs) != 1 or not outs[0]:
            raise InputError("expected run directories or sweeps' manifests, and one out=FOLDER")
        out = Path(outs[0])
        for path in given:
            if path.suffix == ".json":
                runs = keep_sweep(path, out, incomplete)
            else:
                keep(path, out, incomplete)
                runs = [path]
            print("\n".join(f"{out / 'runs.csv'}: {run.absolute().name}" for run in runs))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:  # a folder that cannot be made, a full disk
        print(f"error: out={outs[0]}: {error.strerror}: {error.filename}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
