"""Converts PyTorch checkpoints of the published code, in both directions."""
