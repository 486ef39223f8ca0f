"""What is drawn: the lines, bands, labels and their order, and the words on the figure."""

from __future__ import annotations

import importlib
import itertools
import math
import re
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from synthetic_runs import TASKS, write_manifest, write_run, write_study

from analysis import style
from analysis.building import build
from analysis.figures import BARS, FIGURES
from analysis.figures.drawing import Context, Skip
from analysis.figures.latent_curves import quartile_curves
from analysis.published import Published
from analysis.render import lay_out, render
from analysis.runs import load
from analysis.statistics import interval
from analysis.studies import Arm


def context(runs: Path, name: str = "neurips", **options) -> Context:
    (study,), _ = build(load([runs]), [runs], **options)
    return Context(study, style.STYLES[name], replicates=100)


def drawn(figure: str, given: Context):
    with matplotlib.rc_context(given.style.rc):
        return importlib.import_module(f"analysis.figures.{figure}").draw(given)


def words(drawing) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in drawing.figure.texts)


def write_horizons(runs: Path, count: int, label: str = "H = {}", env_steps: int = 100_000, **fields: str) -> None:
    """A sweep of `count` arms of one agent, a run each."""
    members, arms = [], []
    for i in range(count):
        run = write_run(runs, "iqrl", "walker-walk", env_steps=env_steps, horizon=i)
        arms.append({"name": f"h{i}", "label": label.format(i), "agent": "iqrl"})
        members.append((run.name, f"h{i}", "walker-walk", 0, env_steps))
    write_manifest(runs, "horizon", arms, members, **fields)


@pytest.fixture
def study(runs: Path) -> Context:
    write_study(runs, agents=("iqrl", "tcrl", "td3"), seeds=5)
    return context(runs)


def test_iqm_lines_are_the_iqm_of_the_runs(study: Context) -> None:
    drawing = drawn("iqm_return", study)
    lines = {line.get_label(): line for line in drawing.figure.axes[0].get_lines()}
    assert list(lines) == ["iQRL", "TCRL", "TD3"]
    steps = study.study.grid("td3")
    expected = interval(study.study.scores("td3", steps), replicates=100)
    assert lines["TD3"].get_xdata().tolist() == steps.tolist() == [0, 20_000, 40_000, 60_000, 80_000, 100_000]
    assert np.allclose(lines["TD3"].get_ydata(), expected.point)
    assert lines["iQRL"].get_color() == style.COLOURS["iqrl"]
    bands = drawing.figure.axes[0].collections
    corners = np.concatenate([band.get_paths()[0].vertices for band in bands])[:, 1]
    highs = [interval(study.study.scores(arm, steps), replicates=100).high.max() for arm in ("iqrl", "tcrl", "td3")]
    assert corners.max() == pytest.approx(max(highs))
    assert drawing.figure.axes[0].get_xlabel() == "Environment steps"


def test_captions_state_seeds_tasks_interval_and_budget(study: Context) -> None:
    text = words(drawn("iqm_return", study))
    assert "2 tasks (cartpole-swingup, walker-walk), 5 seeds each, budget 100k environment steps" in text
    assert "95% stratified bootstrap intervals over seeds (100 replicates); in simulations with 5 seeds on 2" in text
    given = Context(study.study, study.style, 100, method="t")
    told = words(drawn("iqm_return", given))
    assert "95% intervals by Student's t over seeds, on the stratified jackknife." in told and "simulations" not in told


def test_rank_and_codebook_leave_out_agents_that_have_none(study: Context) -> None:
    rank, codebook = drawn("latent_rank", study), drawn("active_codebook", study)
    assert [line.get_label() for line in rank.figure.axes[0].get_lines()] == ["iQRL", "TCRL"]
    assert "No values of TD3." in words(rank)
    labels = [line.get_label() for line in codebook.figure.axes[0].get_lines()]
    assert [label for label in labels if not label.startswith("_")] == ["iQRL"]
    latents = study.study.tables.latents
    last = latents[(latents["env_step"] == 100_000) & latents["run"].str.startswith("iqrl")]
    assert rank.figure.axes[0].get_lines()[0].get_ydata()[-1] == pytest.approx(last["rank_0.01"].mean())


def test_an_agent_keeps_its_colour_whoever_is_beside_it(runs: Path) -> None:
    write_study(runs, agents=("td3", "iqrl"))
    assert context(runs).colours == {"td3": style.COLOURS["td3"], "iqrl": style.COLOURS["iqrl"]}


def test_an_arm_keeps_its_colour_and_marker_while_a_sweep_fills(runs: Path) -> None:
    made = write_study(runs, agents=("mine", "yours", "ours"), seeds=1)
    before = context(runs)
    for run in made[:2]:
        shutil.rmtree(run)
    after = context(runs)
    assert [arm.name for arm in after.study.arms] == ["yours", "ours"]
    assert after.colours == before.colours and after.markers == before.markers
    line = drawn("iqm_return", after).figure.axes[0].get_lines()[0]
    assert (line.get_color(), line.get_marker()) == (before.colours["yours"], before.markers["yours"])


def test_published_curves_share_no_look_and_take_no_colour_of_an_arm(runs: Path) -> None:
    """TCRL's points lie 1k late, the last one too; few points are dots, and what lies between is dashed."""
    write_horizons(runs, 3, env_steps=50_000)
    (study,), _ = build(load([runs]), [runs])
    curves = {"TCRL": [1000, 26_000, 51_000], "TD3": [0, 50_000], "BRO": [0, 50_000], "DDPG": [0, 50_000]}
    rows = [(name, "walker-walk", 0, step, 100.0) for name, steps in curves.items() for step in steps]
    frame = pd.DataFrame(rows, columns=["algorithm", "task", "seed", "env_step", "episode_return"])
    given = Context(study, style.STYLES["neurips"], 20, published=Published(frame, []))
    theirs = {style.COLOURS["tcrl"], style.COLOURS["td3"], style.GREY}
    assert len(set(given.colours.values()) | theirs) == 6
    for figure in ("iqm_return", "tasks"):
        lines = drawn(figure, given).figure.axes[0].get_lines()
        dashed = [line for line in lines if line.is_dashed()]
        looks = [(line.get_color(), str(line._dash_pattern)) for line in dashed]
        assert len(set(looks)) == 4 and {line.get_marker() for line in dashed} == {"."}
        assert max(line.get_xdata().max() for line in dashed) == 51_000


def test_colours_of_many_arms_differ(runs: Path) -> None:
    write_horizons(runs, 8, figure="arms", question="How far ahead?")
    given = context(runs)
    assert len(set(given.colours.values())) == 8
    drawing = drawn("arms", given)
    assert [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()] == [f"H = {i}" for i in range(8)]
    assert drawing.figure.get_suptitle() == "How far ahead?"


def test_missing_short_and_failed_runs_and_the_note_stand_on_every_figure(runs: Path) -> None:
    made = write_study(runs, agents=("iqrl", "td3"), seeds=3, note="narrow networks (preset=small)", scale="lite")
    (made[0] / "DONE").unlink()
    (made[0] / "FAILED").write_text('{"env_step": 100000, "reason": "NaN"}')
    given = context(runs)
    for name in FIGURES:
        text = words(drawn(name, given))
        assert f"{made[0].name} (failed, left out)" in text, name
        assert "Note: narrow networks (preset=small); scale: lite." in text, name


def test_what_is_missing_stands_there_without_a_caption_too(runs: Path) -> None:
    made = write_study(runs)
    (made[0] / "evaluations.csv").unlink()
    (study,), _ = build(load([runs]), [runs])
    text = words(drawn("iqm_return", Context(study, style.STYLES["icml"], 50, caption=False)))
    assert made[0].name in text and "Interquartile" not in text


def test_cut_curves_end_at_the_last_common_step(runs: Path) -> None:
    for seed in range(3):
        write_run(
            runs,
            "iqrl",
            seed=seed,
            stop_at=60_000 if seed == 1 else None,
            end="running" if seed == 1 else "done",
        )
    drawing = drawn("iqm_return", context(runs))
    assert drawing.figure.axes[0].get_lines()[0].get_xdata().max() == 60_000
    assert "shown up to the last common step: iQRL to 60k" in words(drawing)


def test_one_seed_draws_a_line_and_no_band(runs: Path) -> None:
    write_run(runs, "iqrl")
    drawing = drawn("iqm_return", context(runs))
    assert len(drawing.figure.axes[0].get_lines()) == 1
    assert "(100 replicates); none for an arm with one seed on a task." in words(drawing)


def test_captions_say_what_few_and_unequal_seeds_do(runs: Path) -> None:
    for task, seeds in (("walker-walk", 1), ("dog-run", 3)):
        for seed in range(seeds):
            write_run(runs, "iqrl", task, seed)
    drawing = drawn("iqm_return", context(runs))
    assert not [p for band in drawing.figure.axes[0].collections for p in band.get_paths() if len(p.vertices)]
    assert (
        "(100 replicates); none for an arm with one seed on a task; with fewer than 5 seeds such intervals are "
        "too narrow; in simulations with 3 seeds on 2 tasks 84% of those "
        "of the IQM held the truth; tasks count alike, whatever their seeds." in words(drawing)
    )


@pytest.mark.parametrize("seeds", [2, 3])
def test_two_seeds_of_a_task_draw_runs_and_no_band(runs: Path, seeds: int) -> None:
    for seed in range(seeds):
        write_run(runs, "iqrl", seed=seed)
    drawing = drawn("tasks", context(runs))
    axes = drawing.figure.axes[0]
    assert len(axes.get_lines()) == 1 + seeds
    areas = [p for band in axes.collections for p in band.get_paths() if len(p.vertices)]
    assert bool(areas) == (seeds == 3)
    none = "; no band is drawn where an arm has one or two seeds on a task"
    assert f"over seeds{none if seeds == 2 else ''}. Thin lines: single runs." in words(drawing)


def test_infinite_condition_numbers_interrupt_the_line(runs: Path) -> None:
    for seed in range(3):
        write_run(runs, "iqrl", seed=seed, rank=0.05)
    drawing = drawn("condition_number", context(runs))
    assert np.isnan(drawing.figure.axes[0].get_lines()[0].get_ydata().astype(float)).any()
    assert "the median is infinite" in words(drawing)


def test_the_median_of_an_even_number_of_runs_lies_between_them(runs: Path) -> None:
    for seed in range(4):
        write_run(runs, "iqrl", seed=seed)
    given = context(runs)
    values = given.study.tables.latents.groupby("env_step", observed=True)["condition_number"].apply(sorted).tolist()
    frame = quartile_curves(given, "condition_number")
    assert frame["point"].tolist() == pytest.approx([math.sqrt(v[1] * v[2]) for v in values])
    assert frame["low"].tolist() == pytest.approx([v[0] for v in values])
    assert frame["high"].tolist() == pytest.approx([v[3] for v in values])


def test_captions_of_latents_count_the_runs_that_have_them(runs: Path) -> None:
    """One of five without rows, one with a number missing in one row: drawn as four, captioned and named."""
    made = write_study(runs, agents=("iqrl",), tasks=("walker-walk",), seeds=5)
    for run in made[:2]:
        (run / "DONE").unlink()
    (made[0] / "latents.csv").unlink()
    lines = (made[1] / "latents.csv").read_text().splitlines()
    fields = lines[2].split(",")
    fields[lines[0].split(",").index("rank_0.01")] = ""
    (made[1] / "latents.csv").write_text("\n".join([*lines[:2], ",".join(fields), *lines[3:]]) + "\n")
    given = context(runs)
    drawing = drawn("latent_rank", given)
    assert set(drawing.data["runs"]) == {4} and "1 task (walker-walk), 4 seeds each" in drawing.caption.text
    assert 40_000 not in set(drawing.data["env_step"]) and 60_000 in set(drawing.data["env_step"])
    assert "5 seeds each" in drawn("iqm_return", given).caption.text
    told = {problem.run: str(problem) for problem in given.study.problems if problem.kind in ("latents", "nan")}
    assert told == {
        made[0].name: f"{made[0].name}: latents: no row in latents.csv, which other runs of its arm have "
        "(not in figures of latents)",
        made[1].name: f"{made[1].name}: nan: rank_0.01 is not a number at env step 40000 (no curve of its arm there)",
    }


def test_captions_say_that_arms_are_evaluated_by_unequal_episodes(runs: Path) -> None:
    for agent in ("iqrl", "tcrl"):
        write_run(runs, agent, episodes=10)
    assert "episodes an evaluation" not in words(drawn("iqm_return", context(runs)))
    write_run(runs, "dcwm", episodes=3)
    assert "; episodes an evaluation: 10 (iQRL, TCRL), 3 (DCWM)" in words(drawn("iqm_return", context(runs)))


def test_captions_name_the_tasks_that_a_mean_is_over(runs: Path) -> None:
    """iQRL and TCRL share one task of two, and TD3, which has no latent, has both."""
    for task in ("dog-run", "walker-walk"):
        write_run(runs, "iqrl", task)
        write_run(runs, "td3", task)
    write_run(runs, "tcrl", "walker-walk")
    given = context(runs)
    absent = "Left out of means over tasks: dog-run (no runs of TCRL)."
    for name in FIGURES:
        text = words(drawn(name, given))
        one = name not in ("active_codebook", "improvement", "tasks", "rank_return")
        assert ("1 task (walker-walk), 1 seed each" in text) == one, name
        assert (absent in text) == one, name
    caption = drawn("arms", given).caption.text
    assert "Active codebook (%): over dog-run, walker-walk." in caption and "Latent rank: over" not in caption


def test_latents_of_arms_that_share_no_task(runs: Path) -> None:
    write_run(runs, "iqrl", "dog-run")
    write_run(runs, "tcrl", "walker-walk")
    with pytest.raises(Skip, match="no task is shared by all arms that have rank_0.01"):
        drawn("latent_rank", context(runs))


def test_hours_and_scores_are_those_of_the_same_tasks(runs: Path) -> None:
    write_run(runs, "iqrl", "walker-walk", pack=1)
    slow = write_run(runs, "iqrl", "dog-run", pack=1)
    write_run(runs, "td3", "walker-walk", pack=1)
    lines = (slow / "timing.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    slower = [f"{step},{100 * float(seconds)},{updates}" for step, seconds, updates in rows]
    (slow / "timing.csv").write_text("\n".join([lines[0], *slower]) + "\n")
    drawing = drawn("gpu_hours", context(runs))
    assert drawing.figure.axes[0].get_lines()[0].get_xdata()[-1] == pytest.approx((3.1 + 0.004 * 100_000) / 3600)


def test_packs_are_whole_numbers_though_a_run_is_missing(runs: Path) -> None:
    made = write_study(runs)
    shutil.rmtree(made[0])
    assert "the seeds that shared the device (5); on" in words(drawn("gpu_hours", context(runs)))


def test_panels_of_unequal_budgets_go_as_far_as_their_own_runs(runs: Path) -> None:
    members = []
    for task, budget in (("cartpole-swingup", 40_000), ("walker-walk", 100_000)):
        for seed in range(2):
            end = {"stop_at": 80_000, "end": "interrupted"} if (task, seed) == ("walker-walk", 1) else {}
            run = write_run(runs, "iqrl", task, seed, budget, **end)
            members.append((run.name, "iqrl", task, seed, budget))
    write_manifest(runs, "budgets", [{"name": "iqrl", "label": "iQRL", "agent": "iqrl"}], members)
    given = context(runs)
    drawing = drawn("tasks", given)
    panels = {axes.get_title(): axes for axes in drawing.figure.axes}
    ends = {task: {float(line.get_xdata()[-1]) for line in axes.get_lines()} for task, axes in panels.items()}
    assert ends == {"cartpole-swingup": {40_000.0}, "walker-walk": {80_000.0}}
    assert "shown up to the last common step: iQRL on walker-walk to 80k" in words(drawing)
    assert given.study.mark == 40_000 and given.study.grid("iqrl")[-1] == 40_000  # what is over tasks


def test_panels_hold_every_single_run_that_they_draw(runs: Path) -> None:
    for seed, final in enumerate((100.0, 900.0)):
        write_run(runs, "iqrl", "walker-walk", seed, returns=[0.0, 50.0, 50.0, 50.0, 50.0, final])
    (axes,) = drawn("tasks", context(runs)).figure.axes
    assert axes.get_ylim()[1] >= 900.0 and max(max(line.get_ydata()) for line in axes.get_lines()) == 900.0


def test_gymnasium_alone_says_what_is_lacking(runs: Path) -> None:
    for agent in ("iqrl", "td3"):
        write_run(runs, agent, "gym:CartPole-v1")
    given = context(runs)
    for name in ("improvement", "rank_return"):
        with pytest.raises(Skip, match="with a known return scale"):
            drawn(name, given)


def test_a_legend_of_long_labels_is_not_cut_off(runs: Path) -> None:
    write_horizons(runs, 6, label="a rather long label, {}")
    given = context(runs, "icml")
    with matplotlib.rc_context(given.style.rc):
        drawing = importlib.import_module("analysis.figures.rank_return").draw(given)
        drawing.figure.canvas.draw()
        box, edges = drawing.figure.legends[0].get_window_extent(), drawing.figure.bbox
    assert box.x0 >= edges.x0 and box.x1 <= edges.x1
    assert len(drawing.figure.legends[0].get_texts()) == 6


def test_condition_numbers_beyond_float64_are_drawn_at_its_end(runs: Path) -> None:
    run = write_run(runs, "iqrl")
    lines = (run / "latents.csv").read_text().splitlines()
    place = lines[0].split(",").index("condition_number")
    fields = [line.split(",") for line in lines[1:]]
    last = [*fields[-1][:place], "1e34", *fields[-1][place + 1 :]]
    (run / "latents.csv").write_text("\n".join([*lines[:-1], ",".join(last)]) + "\n")
    drawing = drawn("condition_number", context(runs))
    assert drawing.figure.axes[0].get_lines()[0].get_ydata()[-1] == 1e16
    assert drawing.figure.axes[0].get_ylim()[1] < 1e18
    assert "Values above 1e16, which are rounding, are drawn there." in words(drawing)


def test_figures_without_data_say_so(runs: Path) -> None:
    write_study(runs, agents=("td3",))
    given = context(runs)
    for name in ("latent_rank", "active_codebook", "rank_return", "condition_number", "improvement", "arms"):
        with pytest.raises(Skip):
            drawn(name, given)


@pytest.mark.parametrize("name", list(style.STYLES))
def test_every_figure_in_every_style_fits(runs: Path, name: str, recwarn: pytest.WarningsRecorder) -> None:
    labels = {"iqrl": "slices across episodes", "td3": "undiscounted target"}
    tasks = ("cartpole-swingup", "walker-walk", "dog-run")
    write_study(runs, agents=("iqrl", "td3", "tcrl"), tasks=tasks, seeds=2, display={"labels": labels})
    given = context(runs, name)
    for figure in FIGURES:
        drawing = drawn(figure, given)
        with matplotlib.rc_context(given.style.rc):
            lay_out(drawing)
        edges = drawing.figure.bbox
        axes = [axes for axes in drawing.figure.axes if figure in BARS]
        names = [t for a in [*axes, *(b for a in axes for b in a.child_axes)] for t in a.get_yticklabels()]
        for text in [*drawing.figure.texts, *(t for t in names if t.get_text())]:
            box = text.get_window_extent()
            assert box.x0 >= edges.x0 - 1, (figure, text.get_text())
            assert box.x1 <= edges.x1 + 1 and box.y0 >= edges.y0 - 1, (figure, text.get_text())
        if figure == "aggregates":  # its ticks do not run into each other
            labels = [[label.get_window_extent() for label in axes.get_xticklabels()] for axes in drawing.figure.axes]
            assert all(a.x1 < b.x0 for boxes in labels for a, b in itertools.pairwise(boxes))
    assert not [w for w in recwarn if "constrained_layout" in str(w.message)]


@pytest.mark.parametrize(("name", "tasks"), [("neurips", 28), ("icml", 27), ("neurips", 50)])
def test_panels_of_many_tasks_fit_a_page(runs: Path, name: str, tasks: int) -> None:
    names = [*TASKS, *(f"gym:Made-v{i}" for i in range(22))][:tasks]
    members = []
    for task in names:
        run = write_run(runs, "td3", task, returns=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
        members.append((run.name, "td3", task, 0, 100_000))
    write_manifest(runs, "many", [{"name": "td3", "label": "TD3", "agent": "td3"}], members)
    drawing = drawn("tasks", context(runs, name))
    drawing.figure.draw_without_rendering()
    width, height = drawing.figure.get_size_inches()
    assert height <= 9.0 and width == style.STYLES[name].page
    panels = [axes.get_window_extent() for axes in drawing.figure.axes if axes.get_visible()]
    assert len(panels) == tasks and min(box.height for box in panels) > 0.35 * drawing.figure.dpi


@pytest.mark.parametrize("agents", [(), ("iqrl", "td3", "tcrl")])
def test_no_two_arms_share_colour_and_marker(agents: tuple[str, ...]) -> None:
    arms = [Arm(f"a{i}", f"a{i}", agents[i] if i < len(agents) else "mine") for i in range(40)]
    colours = style.colours(arms)
    pairs = {(colours[arm], marker) for arm, marker in style.markers(colours).items()}
    assert len(pairs) == 40
    ten = {arm.name: colours[arm.name] for arm in arms[:10]}
    assert len(set(ten.values())) == len(set(style.markers(ten).values())) == 10


def test_a_long_legend_takes_the_width_of_the_page(runs: Path) -> None:
    """Nineteen published algorithms in ICML's column: the curves keep most of the figure."""
    write_study(runs, agents=("td3",), tasks=("walker-walk",), seeds=2)
    names = [f"an algorithm {i}" for i in range(19)]
    rows = [(name, "walker-walk", seed, step, 100.0) for name in names for seed in (0, 1) for step in (0, 100_000)]
    frame = pd.DataFrame(rows, columns=["algorithm", "task", "seed", "env_step", "episode_return"])
    (study,), _ = build(load([runs]), [runs])
    given = Context(study, style.STYLES["icml"], 20, published=Published(frame, []))
    for name in ("iqm_return", "tasks"):
        drawing = drawn(name, given)
        drawing.figure.draw_without_rendering()
        legend, edges = drawing.figure.legends[0].get_window_extent(), drawing.figure.bbox
        assert edges.x0 <= legend.x0 and legend.x1 <= edges.x1 and legend.height < 0.36 * edges.height, name


def test_two_seeds_that_always_win_are_not_drawn_as_certain(runs: Path) -> None:
    for agent, final in {"iqrl": 900.0, "td3": 300.0}.items():
        for seed in range(2):
            write_run(runs, agent, seed=seed, returns=[0.0, 0, 0, 0, 0, final + seed])
    drawing = drawn("improvement", context(runs))
    row = drawing.data.iloc[0]
    assert row["point"] == 1.0 and np.isnan(row["low"]) and np.isnan(row["high"])
    assert "Circles: one seed, or the same in every resample: no interval." in words(drawing)


def test_clean_leaves_every_word_to_the_captions(runs: Path, tmp_path: Path) -> None:
    made = write_study(runs, note="narrow networks", question="Which?")
    shutil.rmtree(made[0])
    (study,), _ = build(load([runs]), [runs])
    for name in FIGURES:
        drawing = drawn(name, Context(study, style.STYLES["icml"], 20, clean=True))
        assert words(drawing) in ("", "Environment steps", "Normalised return", "Mean return Environment steps"), name
        assert drawing.figure.get_suptitle() == "" and drawing.caption.foot == 0
        assert "Note: narrow networks" in drawing.caption.text and made[0].name in drawing.caption.text


def test_losses_and_values_are_medians_of_the_runs(runs: Path) -> None:
    made = write_study(runs, agents=("iqrl", "td3"), tasks=("walker-walk",), seeds=5)
    for i, run in enumerate(made):
        rows = [f"{step},{step // 1000},{step},0.0,{i + step / 1e5!r},-{i}.0" for step in range(0, 101_000, 1000)]
        header = "env_step,episode,updates,episode_return,critic_loss,q_mean"
        (run / "training.csv").write_text("\n".join([header, *rows]) + "\n")
        (run / "DONE").unlink()
    given = context(runs)
    losses, values = drawn("losses", given), drawn("values", given)
    assert [axes.get_title() for axes in losses.figure.axes] == ["critic loss"]
    frame = losses.data[(losses.data["arm"] == "td3") & (losses.data["env_step"] == 40_000)]
    assert frame[["point", "low", "high"]].to_numpy().tolist() == [pytest.approx([7.4, 6.4, 8.4])]
    assert values.data.loc[values.data["arm"] == "iqrl", "point"].unique().tolist() == [-2.0]
    for run in made:
        (run / "training.csv").unlink()
    with pytest.raises(Skip, match="no run has such a column in a training.csv"):
        drawn("losses", context(runs))


def test_every_figure_has_its_numbers_beside_it(runs: Path, tmp_path: Path) -> None:
    write_study(runs, agents=("iqrl", "tcrl", "td3"), seeds=3)
    given = context(runs)
    render([given], tmp_path)
    data = {path.stem: pd.read_csv(path) for path in (tmp_path / "quickstart" / "data").iterdir()}
    assert set(data) == set(FIGURES)
    (line,) = (ln for ln in drawn("iqm_return", given).figure.axes[0].get_lines() if ln.get_label() == "TD3")
    own = data["iqm_return"][data["iqm_return"]["arm"] == "td3"]
    assert own["point"].tolist() == pytest.approx(line.get_ydata().tolist())
    tasks = data["tasks"][data["tasks"]["task"] == "walker-walk"]
    lines = drawn("tasks", given).figure.axes[1].get_lines()
    assert len(lines) == 3 + tasks["run"].nunique() == 12


def test_limits_of_y_axes_are_those_asked_for(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float]] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: seen.append(self.axes[0].get_ylim()))
    write_study(runs, display={"ylim": {"iqm_return": [0, 1], "tasks": [None, 1234]}})
    render([context(runs)], tmp_path, only=("iqm_return", "tasks"))
    assert seen[0] == (0, 1) and seen[-1][1] == 1234


def test_files_are_pdf_with_type_42_fonts_and_png(study: Context, tmp_path: Path) -> None:
    (rendered,) = render([study], tmp_path, only=("iqm_return",))
    pdf = (tmp_path / "quickstart" / "iqm_return.pdf").read_bytes()
    assert b"/Type3" not in pdf and (b"/FontFile2" in pdf or b"/CIDFontType2" in pdf)
    assert (tmp_path / "quickstart" / "iqm_return.png").read_bytes().startswith(b"\x89PNG")
    render([study], tmp_path / "again", only=("iqm_return",))
    assert (tmp_path / "again" / "quickstart" / "iqm_return.pdf").read_bytes() == pdf


def test_a_figure_is_one_module_and_one_name() -> None:
    folder = Path(importlib.import_module("analysis.figures").__file__).parent
    shared = {"__init__", "drawing", "latent_curves", "training_curves"}
    assert {path.stem for path in folder.glob("*.py")} - shared == set(FIGURES)
    for name in FIGURES:
        module = importlib.import_module(f"analysis.figures.{name}")
        assert module.TITLE and re.match(r"\w", module.__doc__)
