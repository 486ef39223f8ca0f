"""Copies what figures need of finished runs, so that it can be committed.

    python -m benchmarks.keep runs/iqrl-walker-walk-s0-52daaf07 ... out=results/reference/full
    python -m benchmarks.keep runs/sweeps/horizon-lite.json ... out=results/reference/lite

Of a sweep, all its runs. Tables, configuration and provenance; no checkpoints, no replay, and not where and as which
process a run was trained. `make figures RUNS=results/reference/full` draws from the copies as from the originals.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from iqrl.errors import BAD_INPUT, InputError
from iqrl.runs.directory import TABLES, RunDirectory

PATH = re.compile(r"(\w+=)/\S*/(?=[^/\s]+)")  # key=/some/where/name, of which the name stays
OF_A_MACHINE = ("host", "pid", "started", "job_id", "code")


def keep(run: Path, out: Path) -> Path:
    """Copy one finished run below `out`.

    Raises:
        InputError: if it is not a complete run, or lies in `out` itself.
    """
    if not RunDirectory(run).done():
        raise InputError(f"{run}: not a complete run; expected a directory with a DONE that fits its files")
    copy = out / run.name
    if copy.exists() and copy.samefile(run):
        raise InputError(f"out={out}: {run} already lies there; expected another folder")
    copy.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "DONE", *TABLES):
        shutil.copyfile(run / name, copy / name)
    provenance = json.loads((run / "provenance.json").read_text())
    for session in provenance["sessions"]:
        for key in OF_A_MACHINE:
            session.pop(key, None)
        session["command"] = PATH.sub(r"\1", session["command"])
    (copy / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    return copy


def keep_sweep(manifest: Path, out: Path) -> list[Path]:
    """Copy a sweep's manifest and every run it names, which stand beside the manifest's folder.

    Raises:
        InputError: if it is no manifest, or a run is not complete.
    """
    try:
        names = sorted({entry["run"] for entry in json.loads(manifest.read_text())["runs"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{manifest}: not a sweep's manifest, such as runs/sweeps/NAME.json: {error}") from None
    copies = [keep(manifest.parent.parent / name, out) for name in names]
    (out / "sweeps").mkdir(exist_ok=True)
    shutil.copyfile(manifest, out / "sweeps" / manifest.name)
    return copies


def main(words: Sequence[str]) -> int:
    given = [Path(word) for word in words if not word.startswith("out=")]
    outs = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    if "--help" in words or "-h" in words:
        print(__doc__)
        return 0
    try:
        if not given or len(outs) != 1 or not outs[0]:
            raise InputError("expected run directories or sweeps' manifests, and one out=FOLDER")
        for path in given:
            copies = keep_sweep(path, Path(outs[0])) if path.suffix == ".json" else [keep(path, Path(outs[0]))]
            print("\n".join(map(str, copies)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:  # a folder that cannot be made, a full disk
        print(f"error: out={outs[0]}: {error.strerror}: {error.filename}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
