"""Is what a machine computes right, and what is fastest: `python -m iqrl doctor`, and a short form before training."""
