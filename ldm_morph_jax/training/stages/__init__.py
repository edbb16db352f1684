"""One file per training stage: a program (init, step, evaluate)."""
