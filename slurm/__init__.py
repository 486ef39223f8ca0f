"""Running sweeps: plan them, run them here or through Slurm, and say what became of every run."""
