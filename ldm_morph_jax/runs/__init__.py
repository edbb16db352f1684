"""Run directories: layout, lock, configuration, checkpoints, loading trained methods."""
