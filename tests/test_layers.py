"""Who may import whom, and how long a module may be: read from the source, not from what happens to be loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("iqrl", "baselines", "ablations", "slurm", "analysis", "exports")
# Lowest first: a module imports from its own layer and those below. A name stands for everything beneath it, too;
# what is not named is of the agent kit.
LAYERS = (
    ("iqrl.errors", "iqrl.processes", "iqrl.command_line", "iqrl.plain_yaml"),
    ("iqrl.environments",),
    (),  # the agent kit
    ("iqrl.iqrl", "baselines"),
    ("iqrl.settings", "iqrl.agents", "iqrl.config"),
    ("iqrl.runs",),
    ("iqrl.training", "iqrl.doctor"),
    ("iqrl.__main__",),
    ("ablations",),
    ("slurm",),
    ("analysis",),
)
AGENT_KIT = LAYERS.index(())
# What the analysis may import of the rest, and all that these import in turn: a laptop needs no more to draw figures.
READER = {"iqrl.runs.group", "iqrl.runs.manifest", "iqrl.runs.reader", "iqrl.runs.tables"}
BELOW_READER = {"iqrl.errors", "iqrl.processes", "iqrl.runs.files", "iqrl.runs.lease"}
LONGEST = 420  # lines


def sources() -> dict[str, Path]:
    """Every module of the packages, by name."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    paths = [path for path in map(Path, listed) if path.parts[0] in PACKAGES and (ROOT / path).exists()]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): ROOT / path for path in paths}


def imports(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules of `known` that a module imports anywhere when it runs, within functions too."""
    found: set[str] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; expected its full name"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in names}
        waiting += ast.iter_child_nodes(node)
    return found & known


def layer(module: str) -> int:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return AGENT_KIT


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports from a layer above; and any between the analysis and the rest, but for what reads runs."""

    def apart(module: str, other: str) -> bool:
        inside = module.split(".")[0] == "analysis"
        return inside != (other.split(".")[0] == "analysis") and not (inside and other in READER)

    return [
        f"{module} imports {other}"
        for module, others in sorted(graph.items())
        for other in sorted(others)
        if apart(module, other) or layer(other) > layer(module)
    ]


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules that import each other, directly or through others."""
    reached: dict[str, set[str]] = {}
    for module in graph:
        reached[module], waiting = set(), list(graph[module])
        while waiting:
            other = waiting.pop()
            if other not in reached[module]:
                reached[module].add(other)
                waiting += graph[other]
    return {frozenset(o for o in graph if o in reached[m] and m in reached[o]) for m in graph if m in reached[m]}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    found = sources()
    assert len(found) > 80
    return {module: imports(ast.parse(path.read_text()), set(found)) for module, path in found.items()}


def test_no_import_goes_upward(graph: dict[str, set[str]]) -> None:
    assert upward(graph) == []


def test_the_analysis_needs_no_more_than_the_reader_of_runs(graph: dict[str, set[str]]) -> None:
    reached, waiting = set(READER), list(READER)
    while waiting:
        new = graph[waiting.pop()] - reached
        reached |= new
        waiting += new
    assert reached == READER | BELOW_READER
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {', '.join(sorted(READER))}; print(*sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not {"torch", "pandas", "omegaconf", "dm_control"} & set(loaded)


def test_no_imports_form_a_circle(graph: dict[str, set[str]]) -> None:
    assert circles(graph) == set()


def test_no_module_is_too_long() -> None:
    lines = {module: path.read_text().count("\n") for module, path in sources().items()}
    assert {module: n for module, n in lines.items() if n > LONGEST} == {}


def test_what_would_be_found() -> None:
    known = {"iqrl.agent", "iqrl.training", "iqrl.training.engine", "iqrl.config"}
    source = (
        "from iqrl.training import engine\ndef f():\n    import iqrl.agent\nif TYPE_CHECKING:\n    import iqrl.config"
    )
    assert imports(ast.parse(source), known) == {"iqrl.training.engine", "iqrl.agent"}
    made = {"iqrl.agent": {"iqrl.config"}, "iqrl.config": {"iqrl.errors"}, "iqrl.errors": {"iqrl.agent"}}
    assert upward(made) == ["iqrl.agent imports iqrl.config", "iqrl.errors imports iqrl.agent"]
    assert circles(made) == {frozenset(made)} and circles({"iqrl.agent": set()}) == set()
    assert upward({"analysis.runs": {"iqrl.errors"}}) == ["analysis.runs imports iqrl.errors"]
    assert upward({"analysis.runs": {"iqrl.runs.reader"}}) == []
    assert upward({"iqrl.agent": {"analysis.runs"}}) == ["iqrl.agent imports analysis.runs"]
