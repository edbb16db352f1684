"""How training can stop before its last step."""


class NonFiniteError(FloatingPointError):
    """Training produced NaN or Inf; the message names the stage, the step and the terms."""


class Preempted(Exception):
    """SIGTERM arrived; a checkpoint has been saved and the same command continues from it."""
