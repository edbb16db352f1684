"""Test-wide settings: CPU, a persistent compilation cache, golden comparisons in full precision."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import blobs
import golden_report
import jax
import pytest

CACHE = Path(__file__).parent.parent / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# these train, or try networks of a few channels: they compile much and compute little
QUICKLY_COMPILED = {
    "test_autoencoder",
    "test_discriminator",
    "test_ldm_morph",
    "test_lgca",
    "test_registration",
    "test_swin",
    "test_unet",
    "test_benchmark",
    "test_run",
    "test_commands",
    "test_prepare",
    "test_convert",
    "test_baselines",
    "test_devices",
    "test_accumulation",
    "test_stages",
    "test_tracing",
    "test_parity_cyclemorph",
    "test_parity_diffusemorph",
    "test_parity_transmatch",
    "test_parity_transmorph",
    "test_parity_voxelmorph",
}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compile without optimisation where that is quicker, also in commands that tests start."""
    quickly = item.path.stem in QUICKLY_COMPILED
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quickly))
    jax.config.update("jax_disable_most_optimizations", quickly)


@pytest.fixture(scope="session")
def pairs() -> list[dict]:
    """Pairs with a known motion and masks, as a dataset has them."""
    return [blobs.make_pair(seed) for seed in range(4)]


def pytest_runtest_makereport(item):
    """Give this test's golden errors to its report."""
    item.user_properties.extend((golden_report.BLOCK, entry) for entry in golden_report.pending)
    golden_report.pending.clear()


def pytest_terminal_summary(terminalreporter):
    reports = [r for outcome in terminalreporter.stats.values() for r in outcome]
    properties = [p for r in reports for p in getattr(r, "user_properties", ())]
    for line in golden_report.table(properties):
        terminalreporter.write_line(line)
