"""Sweeps as data: one YAML file each, and the loader that checks them."""

from ablations.sweep import Arm, PlannedRun, Sweep, load
from ablations.sweep_file import names

__all__ = ["Arm", "PlannedRun", "Sweep", "load", "names"]
