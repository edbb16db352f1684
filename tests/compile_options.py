"""XLA's older emitters for CPUs, by which tests compile: they take three quarters of the time.

A flag that a version does not know ends the process, so that others than 0.10 compile as usual.
"""

import jax

QUICK = "--xla_cpu_use_fusion_emitters=false"
# `compiler_options` of `jax.jit`: as users compile, where tolerances are of the last digits
DEFAULT = {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__[:2] == (0, 10) else {}
