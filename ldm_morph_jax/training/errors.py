"""Exceptions that end training before its last step."""


class NonFiniteError(FloatingPointError):
    """Training produced NaN or Inf; the message names the stage, the step and the terms."""


class Preempted(Exception):
    """SIGTERM was received; a checkpoint is saved, and the same command continues from it."""
