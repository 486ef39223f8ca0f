"""DCWM / DC-MPC: a discrete codebook world model and planning in it (ICLR 2025; spec page dcwm.md).

`configuration` has the settings, `world_model` latents, dynamics and their loss (sections 1 to 3), `planner` the search
for plans (section 5), and `agent` actor and critics, what a plan is worth, and what is updated when.
"""

from baselines.dcwm.agent import DCWM

__all__ = ["DCWM"]
