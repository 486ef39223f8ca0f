"""Which version of the code runs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from iqrl.runs.files import read_json

ROOT = Path(__file__).resolve().parents[2]  # of the code that runs


def code_version() -> dict[str, Any]:
    """Commit of the tree that this package runs from, and whether it was changed since; None where unknown."""
    snapshot = read_json(ROOT / "SNAPSHOT.json")
    if isinstance(snapshot, dict):
        return {"commit": snapshot.get("commit"), "dirty": snapshot.get("dirty")}
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}
    if commit.returncode:
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
