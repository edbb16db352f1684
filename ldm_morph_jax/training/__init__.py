"""Training: one loop (`loop`), three stages, and the run that connects them."""
