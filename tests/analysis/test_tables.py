"""Tables: numbers, bold, and what LaTeX would choke on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from synthetic_runs import write_run

from analysis import statistics, style, tables, typesetting
from analysis.building import build
from analysis.display import Display
from analysis.figures.drawing import Context
from analysis.runs import load
from analysis.studies import Study

PDFLATEX = shutil.which("pdflatex")


def of(study: Study, replicates: int, **options) -> Context:
    return Context(study, style.STYLES["neurips"], replicates, **options)


@pytest.fixture
def study(runs: Path) -> Study:
    finals = {"iqrl": (900.0, 910.0, 920.0), "tcrl": (890.0, 905.0, 925.0), "td3": (300.0, 310.0, 320.0)}
    for agent, returns in finals.items():
        for seed, final in enumerate(returns):
            write_run(runs, agent, "walker-walk", seed, returns=[0.0, 100.0, 200.0, 300.0, 0.95 * final, final])
    (built,), _ = build(load([runs]), [runs])
    return built


def test_scores(study: Study) -> None:
    table = tables.scores(of(study, 100))
    assert table.columns == ["Task", "iQRL", "TCRL", "TD3"]
    assert table.rows[0] == ["walker-walk", "910 ± 25", "907 ± 44", "310 ± 25"]
    assert {column for row, column in table.bold if row == 0} == {1, 2}
    assert [row[0] for row in table.rows[1:]] == [
        "IQM (normalised)", "Median (normalised)", "Mean (normalised)", "Optimality gap (normalised)",
    ]  # fmt: skip
    assert "3 seeds each" in table.caption and "budget 100k environment steps" in table.caption
    assert (4, 1) in table.bold and (4, 3) not in table.bold


def test_two_seeds_have_no_half_interval(runs: Path, tmp_path: Path) -> None:
    for seed, final in enumerate((300.0, 390.0)):
        write_run(runs, "td3", "walker-walk", seed, returns=[0.0, 1.0, 2.0, 3.0, 4.0, final])
    (built,), _ = build(load([runs]), [runs])
    table = tables.scores(of(built, 100))
    assert table.rows[0] == ["walker-walk", "345"]
    assert "over seeds (none where an arm has one or two seeds on a task)" in table.caption
    assert "over 1 shared task with" in table.caption
    typesetting.write([table], tmp_path)
    assert "walker-walk,td3,345.0,,\n" in (tmp_path / "scores.csv").read_text()
    for suffix in ("md", "tex"):
        text = (tmp_path / f"scores.{suffix}").read_text()
        assert "345" in text and "±" not in text and r"\pm" not in text


def test_differences(study: Study) -> None:
    table = tables.differences(of(study, 100))
    assert table.columns == ["Task", "TCRL", "TD3"]
    assert table.rows[0][2].startswith("-600 [")
    assert (0, 2) in table.bold and (0, 1) not in table.bold


def test_two_seeds_are_no_evidence_of_a_difference(runs: Path) -> None:
    for agent, returns in {"iqrl": (900.0, 901.0), "td3": (300.0, 301.0)}.items():
        for seed, final in enumerate(returns):
            write_run(runs, agent, "walker-walk", seed, returns=[0.0, 0.0, 0.0, 0.0, 0.0, final])
    (built,), _ = build(load([runs]), [runs])
    table = tables.differences(of(built, 100))
    assert table.rows[0] == ["walker-walk", "-600"] and table.rows[1][1].startswith("-0.600 [")
    assert table.bold == set()
    assert "over seeds (none where an arm has one or two seeds on a task); for the IQM, 95% strat" in table.caption
    assert "too narrow. 1 task" in table.caption  # of a difference nothing was simulated
    for made in tables.tables(of(built, 100))[:2]:
        told = "(100 replicates); with fewer than 5 seeds such intervals are too narrow; in simulations with "
        assert f"{told}3 seeds on 1 task 76% of those of the IQM held the truth. 1 task" in made.caption


def test_a_caption_says_what_interval_a_difference_has(study: Study) -> None:
    by_t = tables.differences(of(study, 100, method="t"))
    assert "for the IQM, 95% intervals by Student's t over seeds, on the stratified jackknife." in by_t.caption
    assert by_t.rows[-1] != tables.differences(of(study, 100)).rows[-1]
    by_bca = tables.differences(of(study, 100, method="bca"))
    assert "for the IQM, 95% stratified bootstrap intervals" in by_bca.caption
    assert by_bca.rows[-1] == tables.differences(of(study, 100)).rows[-1]


def test_efficiency(study: Study) -> None:
    table = tables.efficiency(of(study, 100))
    assert table.rows[0] == ["walker-walk", "80k (3/3)", "80k (3/3)", "not (0/3)"]


def test_steps_to_reach_are_the_median_over_seeds(runs: Path) -> None:
    """Of an even number of seeds the mean of the middle two; what half of them never reach is not reached."""
    curves = (
        [0.0, 100, 100, 100, 100, 100],
        [0.0, 0, 100, 100, 100, 100],
        [0.0, 0, 0, 0, 100, 100],
        [0.0, 0, 0, 0, 0, 100],
    )
    for seed, returns in enumerate(curves):
        write_run(runs, "iqrl", seed=seed, returns=returns)
        write_run(runs, "td3", seed=seed, returns=returns if seed < 2 else [0.0] * 6)
    (built,), _ = build(load([runs]), [runs])
    table = tables.efficiency(of(built, 20))
    assert table.rows[0] == ["walker-walk", "60k (4/4)", "not (2/4)"]
    few = "at the 6 steps that all arms have in common (so few that a steep curve has too small an area)"
    assert few in table.caption


def test_efficiency_ends_at_the_compared_step(runs: Path) -> None:
    """At 90k neither arm is seen beyond its evaluation at 80k: iQRL's 900 at 100k counts for nothing."""
    for agent, returns in {"iqrl": [0.0, 0, 0, 0, 100, 900], "td3": [0.0, 0, 0, 0, 1000, 1000]}.items():
        write_run(runs, agent, returns=returns)
    (built,), _ = build(load([runs]), [runs], at=90_000)
    table = tables.efficiency(of(built, 20))
    assert table.rows[0] == ["walker-walk", "not (0/1)", "80k (1/1)"]
    assert [row[1:] for row in table.rows[1:]] == [["0.022", "0.222"]]  # trapezia up to 80k, level up to 90k
    (built,), _ = build(load([runs]), [runs], at=89_999)
    assert "Mean return at 89.999k environment steps" in tables.scores(of(built, 20)).caption


def test_efficiency_does_not_depend_on_how_often_arms_are_evaluated(runs: Path) -> None:
    """Equal curves have equal areas, and a task evaluated often is read as often, whatever the arm's other task."""
    often, rarely = [0.0, 900, 950, 950, 950, 1000], [0.0, 1000.0]
    write_run(runs, "iqrl", "walker-walk", returns=often)
    write_run(runs, "td3", "walker-walk", returns=often)
    write_run(runs, "iqrl", "cup-catch", every=100_000, returns=rarely)
    write_run(runs, "td3", "cup-catch", returns=[0.0, 0, 0, 0, 0, 1000])
    (built,), _ = build(load([runs]), [runs])
    table = tables.efficiency(of(built, 20))
    assert table.rows[1] == ["walker-walk", "20k (1/1)", "20k (1/1)"]
    assert table.rows[2] == ["IQM of area under curve", "0.500", "0.500"]
    assert "Evaluated every 100k (iQRL), 20k (iQRL, TD3) environment steps." in table.caption


def test_efficiency_has_no_row_where_the_best_mean_is_not_above_0(runs: Path) -> None:
    for agent, final in {"iqrl": -150.0, "td3": -400.0}.items():
        write_run(runs, agent, "gym:Pendulum-v1", returns=[-1500.0, -1400.0, -1200.0, -800.0, -600.0, final])
        write_run(runs, agent, "walker-walk", returns=[0.0, 0.0, 0.0, 0.0, 0.0, 1000.0 + final])
    (built,), _ = build(load([runs]), [runs])
    table = tables.efficiency(of(built, 20))
    assert [row[0] for row in table.rows] == ["walker-walk", "IQM of area under curve"]
    assert "(without gym:Pendulum-v1, where that mean is not above 0)" in table.caption


def test_differences_of_gymnasium_tasks(runs: Path) -> None:
    for agent, final in {"iqrl": 500.0, "td3": 100.0}.items():
        write_run(runs, agent, "gym:CartPole-v1", returns=[0.0, 0.0, 0.0, 0.0, 0.0, final])
    (built,), _ = build(load([runs]), [runs])
    assert tables.differences(of(built, 20)).rows == [["gym:CartPole-v1", "-400"]]
    left_out = "Left out of means over tasks: gym:CartPole-v1 (its scale is unknown)."
    for table in tables.tables(of(built, 20))[:-1]:
        assert left_out in table.caption and "bootstrap" not in table.caption


def test_a_task_that_one_arm_lacks_stays_a_row_for_the_others(runs: Path) -> None:
    for agent, final in {"iqrl": 500.0, "td3": 100.0}.items():
        write_run(runs, agent, "dog-run", returns=[0.0, 0.0, 0.0, 0.0, 0.0, final])
    write_run(runs, "mrq", "walker-walk")
    (built,), _ = build(load([runs]), [runs])
    table = tables.differences(of(built, 20))
    assert table.columns == ["Task", "MR.Q", "TD3"] and table.rows == [["dog-run", "", "-400"]]
    assert table.numbers[["row", "arm"]].to_numpy().tolist() == [["dog-run", "td3"]]


def test_differences_of_arms_that_share_no_task_have_a_header(runs: Path, tmp_path: Path) -> None:
    write_run(runs, "iqrl", "dog-run")
    write_run(runs, "td3", "walker-walk")
    (built,), _ = build(load([runs]), [runs])
    typesetting.write([tables.differences(of(built, 20))], tmp_path)
    assert (tmp_path / "differences.csv").read_text() == "row,arm,point,low,high\n"


def test_latex_and_markdown(study: Study, tmp_path: Path) -> None:
    table = tables.scores(of(study, 100))
    table.rows[0][0] = "a_b & 50%"
    text = typesetting.latex(table)
    assert r"a\_b \& 50\%" in text and r"\textbf{910 $\pm$ 25}" in text
    assert text.count(r"\begin{tabular}{lrrr}") == 1 and text.count(r"\midrule") == 2
    assert "**910 ± 25**" in typesetting.markdown(table)
    table.columns[1], table.rows[0][1] = "ρ = 0.9 × |h|", "|"
    assert r" & TCRL" in typesetting.latex(
        table
    ) and r"$\rho$ = 0.9 $\times$ \textbar{}h\textbar{}" in typesetting.latex(table)
    header, _, first, *_ = typesetting.markdown(table).splitlines()
    assert header.replace(r"\|", "").count("|") == first.replace(r"\|", "").count("|") == 5
    assert r"\label{tab:runs-scores}" in text and r"\begin{table}[t]" in text and "Incomplete" not in text
    typesetting.write([table], tmp_path / "tables")
    assert {path.suffix for path in (tmp_path / "tables").iterdir()} == {".tex", ".md", ".csv"}


@pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex on this machine (Debian: texlive-latex-recommended)")
@pytest.mark.parametrize("document_class", ["[twocolumn]{article}", "{article}"])
def test_latex_compiles(study: Study, tmp_path: Path, document_class: str) -> None:
    made = tables.tables(of(study, 20))
    made[0].columns[1:3] = ["".join(typesetting._TEX), "naïve – “-1” +2 `'`"]
    made[0].columns += [f"arm {i}" for i in range(9)]
    made[0].rows = [[*row, *["1000 ± 1000"] * 9] for row in made[0].rows]  # wider than the page
    typesetting.write(made, tmp_path)
    inputs = "\n".join(rf"\input{{{table.name}.tex}}" for table in made)
    (tmp_path / "paper.tex").write_text(
        rf"\documentclass{document_class}\usepackage{{booktabs,graphicx}}\begin{{document}}{inputs}\end{{document}}"
    )
    words = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=120)
    said = done.stdout.decode("latin-1")
    assert done.returncode == 0 and "Overfull" not in said and "Missing character" not in said, said[-2000:]


def test_a_papers_caption_counts_what_is_missing_and_a_wide_table_spans_the_page(runs: Path) -> None:
    for agent in ("iqrl", "td3", "tcrl", "mrq"):
        write_run(runs, agent, "walker-walk")
    write_run(runs, "iqrl", "dog-run", 1)
    (built,), _ = build(load([runs]), [runs])
    named = "iqrl on dog-run, seed 0 (missing, not there); iqrl on walker-walk, seed 1 (missing, not there)"
    for table in tables.tables(of(built, 20))[:-1]:
        assert f"Incomplete: {named}." in table.caption
        text = typesetting.latex(table)
        assert f"% Incomplete: {named}.\n" in text
        caption = next(line for line in text.splitlines() if line.startswith(r"\caption"))
        assert " Incomplete: 2 missing." in caption and "seed 0" not in caption
        wide = table.name not in ("differences", "ablation")  # of three arms from the first; of three quantities
        assert (r"\begin{table*}[t]" in text and r"\end{table*}" in text) == wide
        assert text.count(r"\resizebox{") == text.count(r"\end{tabular}}}") == 1


def test_p_values_are_welchs_corrected_after_holm(runs: Path) -> None:
    """Against scipy's test and the definition: the k-th of m smallest times m - k + 1, never falling."""
    finals = {"iqrl": (900.0, 910, 925, 905), "tcrl": (880.0, 905, 890), "td3": (300.0, 310, 320), "mrq": (1.0, 2.0)}
    for agent, returns in finals.items():
        for seed, final in enumerate(returns):
            write_run(runs, agent, "walker-walk", seed, returns=[0.0, 1.0, 2.0, 3.0, 4.0, final])
    (built,), _ = build(load([runs]), [runs], display=Display(baseline="td3"))
    table = tables.differences(of(built, 20, pvalues=True))
    assert table.columns == ["Task", "iQRL", "MR.Q", "TCRL"]
    p = [stats.ttest_ind(finals[arm], finals["td3"], equal_var=False).pvalue for arm in ("iqrl", "tcrl")]
    small, large = sorted(p)
    expected = {small: min(2 * small, 1), large: max(large, 2 * small)}
    numbers = table.numbers[table.numbers["row"] == "walker-walk"].set_index("arm")
    assert numbers.loc[["iqrl", "tcrl"], "p"].tolist() == pytest.approx(p)
    assert numbers.loc[["iqrl", "tcrl"], "p_holm"].tolist() == pytest.approx([expected[value] for value in p])
    assert np.isnan(numbers.at["mrq", "p_holm"])
    assert "p < 0.001" in table.rows[0][1] and "p" not in table.rows[0][2] and "Holm" in table.caption
    assert "p" not in tables.differences(of(built, 20)).rows[0][1]
    own = statistics.holm(np.array([0.01, 0.04, np.nan, 0.03]))
    assert own[[0, 1, 3]].tolist() == pytest.approx([0.03, 0.06, 0.06]) and np.isnan(own[2])


def test_an_ablations_table_has_rank_and_codebook(study: Study) -> None:
    table = tables.ablation(of(study, 50))
    assert table.columns == ["Arm", "IQM of normalised return", "Latent rank", "Active codebook (%)"]
    assert [row[0] for row in table.rows] == ["iQRL", "TCRL", "TD3"]
    assert table.rows[0][1].startswith("0.910 [") and table.rows[1][3] == "" and table.rows[2][2:] == ["", ""]
    latents = study.tables.latents[study.tables.latents["env_step"] == 100_000]
    mean = latents[latents["run"].str.startswith("tcrl")]["rank_0.01"].mean()
    assert table.rows[1][2].startswith(f"{mean:.0f} [")


def test_hyperparameters_are_those_of_the_configurations(runs: Path) -> None:
    for task, width in (("dog-run", 1024), ("walker-walk", 512)):
        write_run(runs, "iqrl", task, horizon=5, fsq_levels=[8, 8], use_tc=True, latent_width=width)
        write_run(runs, "td3", task, horizon=1)
    (built,), _ = build(load([runs]), [runs])
    table = tables.hyperparameters(of(built, 20))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["horizon"] == ["5", "1"] and rows["fsq levels"] == ["[8, 8]", "--"] and rows["use tc"] == ["true", "--"]
    assert rows["latent width"] == ["1024 or 512", "--"] and rows["train.env steps"] == ["100000", "100000"]
    assert "task" not in rows and "seed" not in rows
    bold = {table.rows[i][0] for i, _ in table.bold}
    assert bold == {"horizon"}
