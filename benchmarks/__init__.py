"""Speed, scale, the storm, and what is kept of reference runs."""
