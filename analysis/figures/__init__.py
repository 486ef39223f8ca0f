"""The figures, one module each; a new figure is a new module with `TITLE`, `data` and `draw`, and one name here."""

from __future__ import annotations

# In the order of the report. The first three are the project's signature plots.
FIGURES = (
    "iqm_return", "latent_rank", "active_codebook", "arms", "aggregates", "profiles", "improvement", "tasks",
    "rank_return", "condition_number", "dormant_units", "latent_diagnostics", "gpu_hours", "losses", "values",
)  # fmt: skip
BARS = ("arms", "aggregates", "improvement")  # without a y axis of values
