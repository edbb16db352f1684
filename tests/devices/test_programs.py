"""Programs that outlive the process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax import plugins
from ldm_morph_jax.devices import programs
from ldm_morph_jax.devices.programs import Program, options_for


@pytest.fixture
def cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / "traced"
    jax.config.update("jax_compilation_cache_dir", before)


def counting(function):
    """(makes `function`, how often it was made)."""
    made = []

    def make():
        made.append(function)
        return function

    return make, made


def cosine(tree, x):
    return {"sum": jnp.cos(x).sum() + tree["a"][0]}


ARGUMENTS = {"a": [np.float32(1.0)]}, np.arange(3, dtype=np.float32)


def test_a_second_process_does_not_make_the_function(cache):
    make, made = counting(cosine)
    first = Program(make, "cosine")(*ARGUMENTS)["sum"]
    assert len(made) == 1 and len(list(cache.iterdir())) == 1
    # another object with the same key is what a second process has
    assert Program(make, "cosine")(*ARGUMENTS)["sum"] == first == cosine(*ARGUMENTS)["sum"]
    assert len(made) == 1
    # other shapes, another key: other programs
    Program(make, "cosine")(ARGUMENTS[0], np.zeros(5, np.float32))
    Program(make, "sine")(*ARGUMENTS)
    assert len(made) == 3 and len(list(cache.iterdir())) == 3


def test_a_damaged_file_is_made_anew(cache):
    make, made = counting(cosine)
    expected = Program(make, "cosine")(*ARGUMENTS)["sum"]
    [file] = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert Program(make, "cosine")(*ARGUMENTS)["sum"] == expected
    assert len(made) == 2 and file.read_bytes() == whole


def test_without_key_or_cache_nothing_is_kept(cache):
    make, made = counting(cosine)
    Program(make)(*ARGUMENTS)
    assert not cache.exists()
    jax.config.update("jax_compilation_cache_dir", None)
    program = Program(make, "cosine")
    for _ in range(3):
        program(*ARGUMENTS)
    assert len(made) == 2 and not cache.exists()


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(cache):
    cache.parent.joinpath("traced").write_text("in the way")
    assert Program(lambda: cosine, "cosine")(*ARGUMENTS)["sum"] == cosine(*ARGUMENTS)["sum"]


@pytest.mark.parametrize("calls", ["once", "few", "often"])
def test_prepared_in_a_thread(cache, calls):
    make, made = counting(cosine)
    program = Program(make, "cosine", options_for(calls))
    program.prepare(*jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), ARGUMENTS))
    np.testing.assert_allclose(program(*ARGUMENTS)["sum"], cosine(*ARGUMENTS)["sum"], rtol=1e-6)
    assert len(made) == 1


def test_traces_follow_the_source_of_package_and_plugins(monkeypatch, tmp_path):
    """A plugin that is edited later does not meet its old trace."""

    def digest(value):
        plugin.write_text(f"x = {value}\n")
        programs._source_digest.cache_clear()
        plugins._plugins.cache_clear()
        return programs._source_digest()

    plugin = tmp_path / "edited.py"
    monkeypatch.setenv("LDM_MORPH_PLUGINS", str(plugin))
    first, second, again = (digest(value) for value in (1, 2, 1))
    assert first == again != second
    package = tmp_path / "some_plugin"
    package.mkdir()
    for name in ("__init__.py", "inner.py"):
        (package / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LDM_MORPH_PLUGINS", "some_plugin.inner")
    plugins._plugins.cache_clear()
    assert [file.name for file in plugins.plugin_files()] == ["__init__.py", "inner.py"]
    monkeypatch.undo()
    programs._source_digest.cache_clear()
    plugins._plugins.cache_clear()
