"""Running sweeps: choose what is left to do, run it here or through Slurm, and say what became of every run."""
