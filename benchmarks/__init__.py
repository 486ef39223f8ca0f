"""Speed and scale, printed as ratios of one run."""
