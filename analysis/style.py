"""How figures look: sizes, fonts, and one colour an agent in every figure.

The colours are those of Okabe and Ito, which readers with the common colour-vision deficiencies can tell apart.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import seaborn as sns

from analysis.studies import Arm

COLOURS = {
    "iqrl": "#0072B2", "td3": "#D55E00", "td7": "#E69F00", "tcrl": "#009E73", "dcwm": "#CC79A7", "mrq": "#56B4E9",
    "drq": "#B3A100", "drqv2": "#332288", "taco": "#882255", "sac_ae": "#117733",
    "tdmpc2": "#000000", "sac": "#7F7F7F", "dreamerv3": "#8C6D31", "tdmpc": "#5A5A5A",
}  # fmt: skip
SPARE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
    "#7F7F7F",
    "#8C6D31",
    "#B3A100",
)
LABELS = {
    "iqrl": "iQRL", "td3": "TD3", "td7": "TD7", "tcrl": "TCRL", "dcwm": "DCWM", "mrq": "MR.Q", "drq": "DR.Q",
    "drqv2": "DrQ-v2", "taco": "TACO", "sac_ae": "SAC+AE", "tdmpc2": "TD-MPC2",
    "sac": "SAC", "dreamerv3": "DreamerV3", "tdmpc": "TD-MPC",
}  # fmt: skip
GREY = COLOURS["sac"]  # of published algorithms without a colour of their own; one grey, told apart by its dashes
DASHES: tuple[Any, ...] = ("--", (0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


@dataclass(frozen=True)
class Style:
    """Sizes in inches and points.

    `column` is the width of one column of the venue, `page` of the whole text.
    """

    name: str
    column: float
    page: float
    font_size: float
    family: str
    line_width: float
    height: float  # of the text of a page; no figure is higher

    @property
    def rc(self) -> Any:
        """Settings on top of seaborn's theme; Type 42 fonts, which the venues ask for."""
        small = self.font_size - 1
        return {
            **sns.axes_style("ticks"),
            "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "analysis",
            "font.family": self.family, "mathtext.fontset": "stix" if "STIX" in self.family else "dejavusans",
            "font.size": self.font_size, "axes.titlesize": self.font_size, "axes.labelsize": self.font_size,
            "legend.fontsize": small, "xtick.labelsize": small, "ytick.labelsize": small,
            "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.grid": True,
            "grid.color": "#E3E3E3", "grid.linewidth": 0.5, "axes.axisbelow": True, "legend.frameon": False,
            "lines.linewidth": self.line_width, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
            "axes.formatter.useoffset": False, "figure.dpi": 200, "savefig.dpi": 200,
        }  # fmt: skip


STYLES = {
    "neurips": Style("neurips", column=5.5, page=5.5, font_size=9, family="STIXGeneral", line_width=1.3, height=9.0),
    "icml": Style("icml", column=3.25, page=6.75, font_size=8, family="STIXGeneral", line_width=1.1, height=9.0),
    "slides": Style(
        "slides",
        column=8.0,
        page=12.0,
        font_size=16,
        family="DejaVu Sans",
        line_width=2.5,
        height=20.0,  # a figure that is higher than a slide is cut by hand, or shows fewer tasks
    ),
}


def colours(arms: list[Arm], taken: Collection[str] = ()) -> dict[str, str]:
    """Arm name -> colour. The first arm of a known agent has that agent's colour; further arms take spare
    ones, while there are others none of those `taken` by published curves.
    """
    chosen: dict[str, str] = {}
    for arm in arms:
        colour = COLOURS.get(arm.agent)
        if colour and colour not in chosen.values():
            chosen[arm.name] = colour
    for arm in arms:
        if arm.name not in chosen:
            unused = [colour for colour in SPARE if colour not in chosen.values()]
            free = [colour for colour in unused if colour not in taken] or unused
            chosen[arm.name] = free[0] if free else SPARE[len(chosen) % len(SPARE)]
    return {arm.name: chosen[arm.name] for arm in arms}


def markers(colours: dict[str, str]) -> dict[str, str]:
    """Arm name -> marker. Where arms are more than colours or markers, no two have both in common."""
    chosen: dict[str, str] = {}
    for i, (arm, colour) in enumerate(colours.items()):
        taken = {marker for other, marker in chosen.items() if colours[other] == colour}
        wanted = [MARKERS[(i + k) % len(MARKERS)] for k in range(len(MARKERS))]
        chosen[arm] = next((marker for marker in wanted if marker not in taken), wanted[0])
    return chosen


@dataclass(frozen=True)
class Look:
    """How a published curve is drawn: its colour, and its line style as matplotlib takes it."""

    colour: str
    dashes: Any


def looks(agents: dict[str, str]) -> dict[str, Look]:
    """Published algorithm -> look, from the agent that each is here: that agent's colour, or grey, and among those
    of one colour other dashes.
    """
    chosen: dict[str, Look] = {}
    for algorithm, agent in agents.items():
        colour = COLOURS.get(agent, GREY)
        before = sum(look.colour == colour for look in chosen.values())
        chosen[algorithm] = Look(colour, DASHES[before % len(DASHES)])
    return chosen


def label(arm: Arm) -> str:
    """What a legend calls an arm: the paper's spelling where the arm is the agent, or the agent and, in brackets, what
    it changes.
    """
    agent, bracket, changes = arm.label.partition(" (")
    return LABELS.get(agent, agent) + bracket + changes if agent == arm.agent else LABELS.get(arm.label, arm.label)


def counted(number: int, noun: str) -> str:
    """1, "task" -> "1 task"; 3, "task" -> "3 tasks"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def steps(env_steps: float) -> str:
    """1500000 -> "1.5M", 20000 -> "20k", 49999 -> "49.999k": no step is rounded to one that was not compared."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(env_steps) >= size:
            return f"{env_steps / size:.9g}{letter}"
    return f"{env_steps:.0f}"
