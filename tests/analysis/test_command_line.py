"""The commands as processes: what they write, what they refuse, what they import."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from synthetic_runs import write_study

from analysis import commands
from analysis.__main__ import COMMANDS, KEYS, main
from analysis.commands import _typed
from analysis.runs import load

ROOT = Path(__file__).parents[2]


def analysis(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "analysis", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def test_importing_needs_neither_torch_nor_a_simulator() -> None:
    code = (
        "import sys, pkgutil, importlib, analysis\n"
        "for module in pkgutil.walk_packages(analysis.__path__, 'analysis.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "print([name for name in ('torch', 'dm_control', 'mujoco', 'omegaconf', 'iqrl.config') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_figures_end_to_end(runs: Path, tmp_path: Path) -> None:
    made = write_study(runs)
    (made[0] / "DONE").unlink()
    text = (made[0] / "evaluations.csv").read_text().splitlines(keepends=True)
    (made[0] / "evaluations.csv").write_text("".join(text[:31]))
    out = tmp_path / "figures"
    done = analysis("figures", f"runs={runs}", f"OUT={out}", "SWEEP=quickstart", "PUBLISHED=", "replicates=50")
    assert done.returncode == 0, done.stderr
    assert f"{made[0].name}: short: 40000 of 100000 env steps" in done.stdout
    for name in ("iqm_return", "latent_rank", "active_codebook"):
        for suffix in (".pdf", ".png"):
            assert (out / "quickstart" / f"{name}{suffix}").stat().st_size > 5000
    assert (out / "report.html").exists() and (out / "quickstart" / "tables" / "scores.tex").exists()
    assert made[0].name in (out / "quickstart" / "problems.csv").read_text()
    assert "environment steps" in (out / "quickstart" / "captions.md").read_text()


@pytest.mark.parametrize("command", ["tables", "report", "watch"])
def test_problems_are_written_where_there_are_any(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """More of them than a caption or the terminal names; the file goes when they do."""
    monkeypatch.setattr("analysis.commands.render", lambda *_, **__: [])
    made = write_study(runs, agents=("td3",), tasks=("walker-walk",), seeds=17)
    for run in made[1:]:
        (run / "DONE").rename(run / "kept")
        (run / "FAILED").write_text('{"reason": "NaN"}')
    arguments = [command, f"runs={runs}", f"out={tmp_path / 'out'}", "replicates=20", "short=drop"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    problems = tmp_path / "out" / "quickstart" / "problems.csv"
    assert pd.read_csv(problems)["run"].tolist() == [run.name for run in made[1:]]
    if command == "tables":
        assert "and 13 more, see problems.csv" in shown
    if command != "watch":
        assert f"... and 4 more: python -m analysis status runs={runs} short=drop lists them all" in shown
    for run in made[1:]:
        (run / "FAILED").unlink()
        (run / "kept").rename(run / "DONE")
    assert main(arguments) == 0
    assert not problems.exists()


def test_status_counts_one_as_one(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(runs, agents=("td3",), tasks=("walker-walk",), seeds=1)
    assert main(["status", f"runs={runs}"]) == 0
    assert capsys.readouterr().out == "1 run: 1 done\nquickstart: 1 run of TD3; 1 task, 1 seed each\n"


def test_export_writes_tidy_tables(runs: Path, tmp_path: Path) -> None:
    write_study(runs)
    assert main(["export", f"runs={runs}", f"out={tmp_path}"]) == 0
    evaluations = pd.read_parquet(tmp_path / "evaluations.parquet")
    assert len(evaluations) == 8 * 6 and {"key", "env_step", "mean_return"} <= set(evaluations.columns)
    assert main(["export", f"runs={runs}", f"out={tmp_path}", "format=csv"]) == 0
    assert len(pd.read_csv(tmp_path / "latents.csv")) == 8 * 5


def test_watch_ends_when_no_run_is_left_to_wait_for(runs: Path, tmp_path: Path) -> None:
    write_study(runs)
    done = analysis("watch", f"runs={runs}", f"out={tmp_path}", "replicates=20", "every=1", "port=0")
    assert done.returncode == 0 and "report.html: 8 done" in done.stdout
    assert "127.0.0.1" not in done.stdout
    assert 'http-equiv="refresh"' in (tmp_path / "report.html").read_text()


def test_watch_waits_for_the_sweep_that_was_named_alone(runs: Path, tmp_path: Path) -> None:
    write_study(runs)
    other = write_study(runs, agents=("tcrl",), name="other")
    (other[0] / "DONE").unlink()
    arguments = [f"runs={runs}", f"out={tmp_path}", "replicates=20", "every=1"]
    done = analysis("watch", *arguments, "sweep=quickstart")
    assert done.returncode == 0 and "report.html: 11 done, 1 unfinished" in done.stdout
    refused = analysis("watch", *arguments, "sweep=quikstart")
    assert refused.returncode == 2 and "sweep=quikstart: no such sweep" in refused.stderr
    options = {"runs": [runs], "sweep": "other"}
    assert commands._awaited(options, load([runs])) == {other[0].name}
    assert commands._awaited({**options, "sweep": None}, load([runs])) == {other[0].name}
    shutil.rmtree(other[0])
    assert commands._awaited(options, load([runs])) == {other[0].name}
    assert commands._awaited({**options, "sweep": "quickstart"}, load([runs])) == set()


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_of_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"python -m analysis {command}" in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure"], "figure: no such command; did you mean figures?"),
        (["figures", "stile=icml"], "stile=icml: `figures` has no such key; did you mean style?"),
        (["figures", "style=nature"], "style=nature: expected neurips, icml or slides"),
        (["figures", "replicates=-3"], "replicates=-3: expected bootstrap replicates"),
        (["figures", "replicates=1e999"], "replicates=1e999: expected bootstrap replicates"),
        (["figures", "runs=absent"], "runs=absent: no such folder"),
        (["figures", "sweep"], "sweep: expected key=value"),
        (["figures", "only=iqm"], "only=iqm: no such figure"),
        (["figures", "short=maybe"], "short=maybe: expected cut"),
        (["figures", "runs=.", "cache=off", "ylim=arms=0:1"], "ylim=arms: no such figure with a y axis of values"),
        (["figures", "ylim=tasks=1"], "ylim=tasks=1: expected limits of y axes"),
        (["figures", "ylim=iqm_return=nan:1"], "ylim=iqm_return=nan:1: expected limits of y axes"),
        (["figures", "labels=td3"], "labels=td3: expected names of arms and tasks"),
        (["compare", "runs=."], "published=: expected the path of published results"),
        (["compare", "runs=.", "published=nowhere"], "published=nowhere: no such file or folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}") and captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_out_that_cannot_be_made(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(runs)
    (tmp_path / "file").write_text("")
    assert main(["figures", f"runs={runs}", f"out={tmp_path / 'file'}", "replicates=10"]) == 2
    assert "cannot make this folder" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["arms=td3,td3", "tasks=walker-walk,walker-walk"])
def test_a_name_that_is_there_twice_is_refused(runs: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    """Twice counted, a task would make intervals narrower."""
    write_study(runs, agents=("td3",), tasks=("walker-walk",), seeds=2)
    assert main(["tables", f"runs={runs}", key]) == 2
    assert f"error: {key}: names {key.rpartition(',')[2]} twice" in capsys.readouterr().err


def test_a_report_names_the_command_that_made_it() -> None:
    """All that decides what is drawn, as one types it."""
    typed = "runs=a,b interval=t baseline=td3 arms=td3,iqrl labels=td3=TD3 ylim=iqm_return=:0.5,tasks=0: pvalues=on"
    options = {key: KEYS[key].parse(value) for key, _, value in (word.partition("=") for word in typed.split())}
    assert " ".join(_typed(options, options)) == typed
    assert _typed({"pvalues": False, "sweep": None}, ("pvalues", "sweep")) == []
