"""Ways to execute an agent, which of them a device has, how far each may be from eager float32, and what to blame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

COMPILE, GRAPHS, PACKS = "compile", "graphs", "packs"
LOW_PRECISION = ("bfloat16", "tf32")
SEEDS = 3  # in a pack that is examined


@dataclass(frozen=True)
class Bounds:
    """How far from the reference is still rounding.

    Attributes:
        update: of each entry of the state, the difference of what 20 updates change, as a share of that change (their
            root sums of squares). Each update starts from the reference's state, so that rounding does not grow from
            one to the next.
        action: largest difference of an action in [-1, 1].
    """

    update: float
    action: float


# With a unit roundoff u of 2^-24, 2^-11 (TF32) and 2^-9, a gradient summed over a batch and carried through ten layers
# is wrong by tens of u; Adam divides by the gradient's size, so entries that are all rounding take whole steps.
# FSQ's codes jump: of 30 million in 20 full-size updates of iQRL, rounding in float32 may tip some tens.
# Measured on a CPU over every agent, sizes tiny and small: float32, each weight changed by its roundoff at the start,
# up to 2e-3; weights rounded as TF32 rounds them up to 0.13 (target networks aside); bfloat16 0.02 to 0.19, actions
# up to 0.11. Updates with other random numbers give 0.55 to 1.5, actions with other weights about 1.
BOUNDS = {"float32": Bounds(0.02, 0.02), "tf32": Bounds(0.2, 0.1), "bfloat16": Bounds(0.35, 0.25)}


@dataclass(frozen=True)
class Way:
    """A way to execute an agent: what it uses beyond eager float32, one seed after another.

    Attributes:
        features: of COMPILE, GRAPHS, PACKS and one of LOW_PRECISION.
        seeds: trained side by side.
    """

    features: frozenset[str]
    seeds: int = 1

    @classmethod
    def of(cls, *features: str, seeds: int = SEEDS) -> Way:
        """With these features; of `seeds` seeds if packs are among them, else of one."""
        return cls(frozenset(features), seeds if PACKS in features else 1)

    @property
    def precision(self) -> str:
        return next((p for p in LOW_PRECISION if p in self.features), "float32")

    @property
    def bounds(self) -> Bounds:
        return BOUNDS[self.precision]

    def __str__(self) -> str:
        order = (COMPILE, GRAPHS, PACKS, *LOW_PRECISION)
        return " + ".join(f for f in order if f in self.features) or "eager float32"

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"features": sorted(self.features), "seeds": self.seeds}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Way:
        return cls(frozenset(plain["features"]), int(plain["seeds"]))


def every_way(cuda: bool, bfloat16: bool, compiled: bool) -> list[Way]:
    """The reference, each feature of a device by itself, and what training takes by default, together.

    Args:
        cuda: whether it is a CUDA device.
        bfloat16: whether it multiplies bfloat16 faster than float32.
        compiled: whether to compile.
    """
    low = ["bfloat16"] if bfloat16 else []
    ways = [Way.of(), Way.of(PACKS)]
    ways += [Way.of(p) for p in [*low, *(["tf32"] if cuda and bfloat16 else [])]]  # TF32 came with bfloat16
    ways += [Way.of(GRAPHS)] if cuda else []
    usual = [PACKS, *low, *([GRAPHS] if cuda else [])]
    if compiled:
        ways += [Way.of(COMPILE), *([Way.of(COMPILE, GRAPHS)] if cuda else []), Way.of(COMPILE, *usual)]
    elif cuda:
        ways.append(Way.of(*usual))
    return list(dict.fromkeys(ways))


def short_ways(wanted: frozenset[str], seeds: int) -> list[Way]:
    """What a training process examines before it relies on all of `wanted`: in float32, closely, then as it is."""
    exact = wanted.difference(LOW_PRECISION)
    return [Way.of(*features, seeds=seeds) for features in dict.fromkeys((exact, wanted)) if features]


def isolating_ways(wanted: frozenset[str], seeds: int) -> list[Way]:
    """What to examine where `wanted` together is wrong: its features one by one, and graphs of compiled code."""
    parts = [frozenset({f}) for f in sorted(wanted)] + [frozenset({COMPILE, GRAPHS})]
    return [Way.of(*part, seeds=seeds) for part in parts if part < wanted]


def blamed(wrong: Mapping[Way, str], right: Iterable[Way]) -> dict[str, str]:
    """The features that must be at fault, each with what was seen.

    A way that is wrong puts the blame on what it has beyond the largest way within it that is right. Wrong ways that
    hold a feature blamed already tell nothing new.
    """
    proven, guilty = list(right), dict[str, str]()
    for way in sorted(wrong, key=lambda w: len(w.features)):
        if guilty.keys() & way.features:
            continue
        within = max((w.features for w in proven if w.features < way.features), key=len, default=frozenset[str]())
        guilty |= {feature: wrong[way] for feature in way.features - within}
    return guilty
