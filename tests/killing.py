"""Ends a run in the middle, as `kill -9` would, in the test's own process."""

import dataclasses

from ldm_morph_jax.training import run


class Killed(BaseException):
    """Nothing catches it."""


def in_validation(patch, stage: str, number: int) -> None:
    """The next run is killed in the validation of that number, from 1, before it is saved."""
    programs = run.stage_program

    def killed(config, name, **options):
        program = programs(config, name, **options)
        validations = iter(range(1, number + 1))

        def evaluate(*arguments, **keywords):
            if next(validations) == number:
                raise Killed
            return program.evaluate(*arguments, **keywords)

        return dataclasses.replace(program, evaluate=evaluate) if name == stage else program

    patch.setattr(run, "stage_program", killed)
