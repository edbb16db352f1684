"""What a run directory is: layout, lock, configuration, checkpoints, loading what was trained."""
