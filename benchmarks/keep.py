"""Copies what figures need of finished runs, so that it can be committed.

    python -m benchmarks.keep runs/iqrl-walker-walk-s0-52daaf07 ... out=results/reference

Tables, configuration and provenance; no checkpoints, no replay, and not where and as which process a run was trained.
`make figures RUNS=results/reference` draws from the copies as from the originals.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from iqrl.errors import InputError
from iqrl.run_directory import TABLES, RunDirectory

OF_A_MACHINE = ("host", "pid", "started", "job_id", "code")


def keep(run: Path, out: Path) -> Path:
    """Copy one finished run below `out`.

    Raises:
        InputError: if it is not a complete run.
    """
    if not RunDirectory(run).done():
        raise InputError(f"{run}: not a complete run; expected a directory with a DONE that fits its files")
    copy = out / run.name
    copy.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "DONE", *TABLES):
        shutil.copyfile(run / name, copy / name)
    provenance = json.loads((run / "provenance.json").read_text())
    for session in provenance["sessions"]:
        for key in OF_A_MACHINE:
            session.pop(key, None)
    (copy / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    return copy


def main(words: Sequence[str]) -> int:
    runs = [Path(word) for word in words if not word.startswith("out=")]
    outs = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    try:
        if not runs or len(outs) != 1:
            raise InputError("expected run directories and one out=FOLDER")
        for run in runs:
            print(keep(run, Path(outs[0])))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
