"""Training: one loop (`loop`), three stages, their checkpoints, and the run that ties them."""
