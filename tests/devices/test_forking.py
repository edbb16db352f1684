"""A forked child of a process that computes with JAX gets an error in place of a hang."""

import os
import warnings

import numpy as np
import pytest
from analytic_method import AnalyticMethod

from ldm_morph_jax.devices import forking
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


@pytest.mark.parametrize("call", ["__call__", "track"])
def test_a_loaded_registrar_refuses_to_compute_after_a_fork(monkeypatch, call):
    monkeypatch.setattr(forking, "_process", os.getpid() + 1)  # as the child sees it
    registrar, images = AnalyticMethod(), np.zeros((2, 8, 8))
    arguments = images if call == "__call__" else (images,)
    with pytest.raises(RuntimeError, match=r"forked .*get_context\('spawn'\)"):
        getattr(registrar, call)(*(image + np.eye(8) for image in arguments))
