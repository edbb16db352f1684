"""PyTorch checkpoints of the published code, both ways."""
