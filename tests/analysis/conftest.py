"""Fixtures of the analysis tests; the generator of synthetic runs lies beside them."""

import sys
from pathlib import Path

import matplotlib
import pytest

sys.path.insert(0, str(Path(__file__).parent))
matplotlib.use("agg")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """An empty folder for run directories."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder
