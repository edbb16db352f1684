"""Test-wide settings: CPU, a persistent compilation cache, golden comparisons in full precision."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little; commands that tests start inherit this.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import golden_report
import jax
import pytest

CACHE = Path(__file__).parent.parent / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(autouse=True, scope="module")
def full_optimisation_for_golden_numbers(request):
    """Full-size networks are the exception: there running takes longer than compiling."""
    golden = "golden" in request.module.__name__
    jax.config.update("jax_disable_most_optimizations", not golden)


def pytest_runtest_makereport(item):
    """Give this test's golden errors to its report."""
    item.user_properties.extend((golden_report.BLOCK, entry) for entry in golden_report.pending)
    golden_report.pending.clear()


def pytest_terminal_summary(terminalreporter):
    reports = [r for outcome in terminalreporter.stats.values() for r in outcome]
    properties = [p for r in reports for p in getattr(r, "user_properties", ())]
    for line in golden_report.table(properties):
        terminalreporter.write_line(line)
