"""Damaged entries of JAX's cache of compiled programs."""

import warnings

import jax
import jax.numpy as jnp
import pytest

from ldm_morph_jax.devices.cache import mend_when_damaged, remove_damaged


@pytest.fixture
def cache(tmp_path):
    from jax.experimental.compilation_cache import compilation_cache

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compiled_anew():
    jax.clear_caches()
    return jax.jit(lambda x: jnp.sin(x) * 3 + 1)(jnp.ones(3))


def test_a_damaged_entry_is_removed_and_written_again(cache):
    compiled_anew()
    entries = {file: file.read_bytes() for file in cache.glob("*-cache")}
    assert entries
    for file, content in entries.items():
        file.write_bytes(content[: len(content) // 2])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        mend_when_damaged(cache)
        compiled_anew()
        warnings.warn("something else", stacklevel=1)
    assert not any("persistent compilation cache" in str(w.message) for w in told)
    assert {file for file in cache.glob("*-cache")} == set(entries)
    assert not remove_damaged(cache)


def test_only_damaged_entries_are_removed(cache):
    compiled_anew()
    whole = set(cache.glob("*-cache"))
    (cache / "x-cache").write_bytes(b"no entry")
    (cache / "notes.txt").write_text("not an entry")
    assert remove_damaged(cache) == [cache / "x-cache"]
    assert set(cache.iterdir()) >= whole | {cache / "notes.txt"}
    assert not (cache / "x-cache").exists()
