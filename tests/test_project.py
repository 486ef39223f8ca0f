"""What the README promises: the dependencies, make, the example agent, links that lead somewhere."""

import importlib
import importlib.metadata
import json
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


def train_elsewhere(words, folder):
    """`python -m iqrl WORDS` in a folder outside the tree."""
    done = subprocess.run(
        [sys.executable, "-m", "iqrl", *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_example_agent_trains_from_a_file_outside_the_tree(tmp_path):
    """As the README says, but shorter; both seeds, an evaluation, and going on where it stopped."""
    shutil.copy(ROOT / "docs" / "examples" / "my_agent.py", tmp_path)
    words = ["train", "agent=./my_agent.py", "task=cartpole-balance", "seeds=0..1", "eval.episodes=1",
             "eval.every=2000", "agent.width=32", "train.compile=off", "train.threads=1"]  # fmt: skip
    for steps in (3000, 4000):
        train_elsewhere([*words, f"train.env_steps={steps}"], tmp_path)
        finished = [p for p in (tmp_path / "runs").glob("*/DONE") if f'"env_step": {steps}' in p.read_text()]
        assert len(finished) == 2 and all(p.parent.name.startswith("ddpg-cartpole-balance-s") for p in finished)
        rows = (finished[0].parent / "training.csv").read_text().splitlines()
        assert "critic_loss" in rows[0] and all(rows[-1].split(","))


def test_the_example_task_trains_from_a_module_outside_the_tree(tmp_path):
    """As docs/tasks.md says, but shorter; its environments in worker processes, which import the module too."""
    pytest.importorskip("gymnasium")
    shutil.copy(ROOT / "docs" / "examples" / "my_task.py", tmp_path)
    words = ["train", "agent=td3", "task=gym:my_task:Windy-v0", "preset=tiny", "train.env_steps=1600", "eval.every=800",
             "eval.episodes=2", "agent.warmup_decisions=300", "train.compile=off", "train.threads=1",
             "train.workers=2"]  # fmt: skip
    train_elsewhere(words, tmp_path)
    (run,) = (tmp_path / "runs").glob("*/DONE")
    assert run.parent.name.startswith("td3-gym_my_task_Windy-v0-s0-")
    returns = [float(row.split(",")[2]) for row in (run.parent / "evaluations.csv").read_text().splitlines()[1:]]
    assert len(returns) == 6 and 0.0 < min(returns) <= max(returns) < 200.0
    (session,) = json.loads((run.parent / "provenance.json").read_text())["sessions"]
    assert session["packages"]["gymnasium"] == importlib.metadata.version("gymnasium")


def test_the_readme_counts_the_lines_of_the_example():
    lines = len((ROOT / "docs" / "examples" / "my_agent.py").read_text().splitlines())
    assert f"DDPG in {lines} lines" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def make(*words):
    """`make WORDS`, without the variables of the make that runs these tests."""
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(["make", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep", "SEEDS=0..2"], "SEEDS: no such variable"),
        (["sweep", "sweep=fsq_levels"], "sweep: no such variable"),
        (["sweep", "SWEEP="], "SWEEP: expected a value"),
        (["status", "RUNS=", "SWEEP=main"], "RUNS: expected a value"),
    ],
)
def test_make_takes_no_variable_that_it_does_not_know(words, said):
    refused = make("-n", *words)
    assert refused.returncode == 2 and not refused.stdout and said in refused.stderr


def test_make_takes_what_it_says():
    known = ["VENV=v", "SCALE=lite", "CLUSTER=slurm", "PROFILE=p", "RUNS=r", "ARGS=--dry-run train.compile=on SEEDS=3"]
    shown = make("-n", "sweep", "SWEEP=main", *known)
    assert shown.returncode == 0 and not shown.stderr
    assert "submit main --profile p runs=r scale=lite --dry-run train.compile=on SEEDS=3" in shown.stdout


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["SWEEP=horizon"], "horizon"),
        (["SWEEP=horizon", "SCALE=lite"], "horizon-lite"),
        (["SWEEP=horizon", "SCALE=full"], "horizon"),
        (["SWEEP=quickstart", "SCALE=lite"], "quickstart"),
        (["SWEEP=quickstart", "SCALE=full"], "quickstart-full"),
        (["SWEEP={}/mine.yaml"], "mine"),
        (["SWEEP={}/mine.yaml", "SCALE=lite"], "mine"),
        (["SWEEP={}/mine.yaml", "SCALE=full"], "mine-full"),
    ],
)
def test_make_looks_for_a_sweep_where_it_was_put(tmp_path, words, name):
    from ablations import load

    (tmp_path / "mine.yaml").write_text((ROOT / "ablations" / "quickstart.yaml").read_text())
    words = [word.format(tmp_path) for word in words]
    shown = make("-n", "status", "figures", *words).stdout
    assert f"slurm status {name} runs=runs" in shown and f" sweep={name} " in shown + " "
    sweep, scale = ([word.partition("=")[2] for word in words] + [""])[:2]
    assert load(sweep, scale or None).name == name


@pytest.mark.parametrize("version", ["", "(3, 10, 9)", "(3, 14, 0)"])
def test_make_sets_up_with_no_python_that_was_not_tested(tmp_path, version):
    stand_in = tmp_path / "python"
    if version:
        trick = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
        stand_in.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{trick}' \"$2\"\n")
        stand_in.chmod(0o755)
    refused = make("setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={stand_in}")
    said = "expected Python 3.11 to 3.13" if version else "no such program"
    assert refused.returncode == 2 and not (tmp_path / "venv").exists()
    assert refused.stderr.startswith(f"error: PYTHON={stand_in}: {said}")


def test_the_sweep_in_the_readme_is_a_sweep(tmp_path):
    from ablations import load

    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "shortened.yaml").write_text(text)
    assert load(str(tmp_path / "shortened.yaml")).arms
