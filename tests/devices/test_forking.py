"""A forked child of a process that computes with JAX gets an error in place of a hang."""

import os
import warnings

import numpy as np

from ldm_morph_jax.devices.programs import Program


def test_a_forked_child_is_told_to_spawn():
    program = Program(lambda: lambda x: x + 1)
    assert program(np.float32(1)) == 2
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of JAX and Python, about fork and threads
        child = os.fork()
    if child == 0:
        try:
            program(np.float32(1))
            os.write(writer, b"no error")
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        message = told.read()
    os.waitpid(child, 0)
    assert "forked" in message and "get_context('spawn')" in message
