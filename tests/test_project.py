"""What the README promises: the dependencies, the example agent, links that lead somewhere."""

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"pyyaml": "yaml", "imageio-ffmpeg": "imageio_ffmpeg", "pytest-timeout": "pytest_timeout",
           "pytest-xdist": "xdist"}  # fmt: skip
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "results").rglob("*.md")])


def name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_a_dependency_is_there_in_bounds_and_imports(requirement):
    from packaging.requirements import Requirement

    bounds = Requirement(requirement).specifier
    assert bounds and importlib.metadata.version(name(requirement)).split("+")[0] in bounds
    importlib.import_module(MODULES.get(name(requirement), name(requirement)))


def test_the_locked_versions_hold_every_dependency():
    locked = {name(line).lower() for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalpha()}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    assert {name(w).lower() for w in wanted} <= locked | {"torch"}  # its build depends on the machine


def test_the_example_agent_trains_from_a_file_outside_the_tree(tmp_path):
    """As the README says, but shorter; both seeds, an evaluation, and going on where it stopped."""
    shutil.copy(ROOT / "docs" / "examples" / "my_agent.py", tmp_path)
    words = ["train", "agent=./my_agent.py", "task=cartpole-balance", "seeds=0..1", "eval.episodes=1",
             "eval.every=2000", "agent.width=32", "train.compile=off", "train.threads=1"]  # fmt: skip
    for steps in (3000, 4000):
        done = subprocess.run(
            [sys.executable, "-m", "iqrl", *words, f"train.env_steps={steps}"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        finished = [p for p in (tmp_path / "runs").glob("*/DONE") if f'"env_step": {steps}' in p.read_text()]
        assert len(finished) == 2 and all(p.parent.name.startswith("ddpg-cartpole-balance-s") for p in finished)
        rows = (finished[0].parent / "training.csv").read_text().splitlines()
        assert "critic_loss" in rows[0] and all(rows[-1].split(","))


def test_the_readme_counts_the_lines_of_the_example():
    lines = len((ROOT / "docs" / "examples" / "my_agent.py").read_text().splitlines())
    assert f"DDPG in {lines} lines" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_the_sweep_in_the_readme_is_a_sweep(tmp_path):
    from ablations import load

    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "shortened.yaml").write_text(text)
    assert load(str(tmp_path / "shortened.yaml")).arms
