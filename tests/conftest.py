"""Test-wide settings: CPU, a persistent compilation cache, the dearest files first."""

import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# in the environment, so that commands which tests start find what tests compiled, and vice versa
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parent.parent / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import blobs
import compile_options
import golden_report
import jax
import pytest
import shared_programs as programs

if compile_options.DEFAULT:  # this version knows the flag
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {compile_options.QUICK}".strip()

gc.set_threshold(20_000)  # tracing makes many objects, few of which are garbage

# Files whose tests share programs or weights: one process runs them, one after the other.
TOGETHER = {
    "training": ("test_run", "test_commands", "test_prepare"),  # tests/tiny.py
    "golden": ("test_golden_registration", "test_golden_ldm"),
}
# What takes longest, by CPU time: the first to be given out, so that no core idles at the end.
DEAREST = (
    *TOGETHER["training"],
    "test_register",
    *TOGETHER["golden"],
    "test_registrar",
    "test_accumulation",
    "test_ldm_morph",
    "test_clinic",
    "test_stages",
    "test_alternatives",
    "test_track",
    "test_baselines",
    "test_configs",
    "test_rank",
    "test_tracking_accuracy",
    "test_anatomy",
    "test_parity_ldm_morph",
    "test_cine",
    "test_benchmark",
    "test_convert",
    "test_tracking",
    "test_run_volumes",
    "test_devices",
    "test_sampling",
    "test_search",
    "test_extending",
    "test_costs",
    "test_wheel",
)

# these compile much and compute little
QUICKLY_COMPILED = {
    "test_anatomy",
    "test_geometry",
    "test_strain",
    "test_search",
    "test_cine",
    "test_clinic",
    "test_sampling",
    "test_tracking_accuracy",
    "test_autoencoder",
    "test_discriminator",
    "test_ldm_morph",
    "test_lgca",
    "test_registration",
    "test_swin",
    "test_unet",
    "test_rank",
    "test_run_volumes",
    "test_benchmark",
    "test_run",
    "test_commands",
    "test_evaluate_command",
    "test_prepare",
    "test_convert",
    "test_baselines",
    "test_devices",
    "test_accumulation",
    "test_stages",
    "test_tracing",
    "test_alternatives",
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


def pytest_collection_modifyitems(items):
    order = {stem: k for k, stem in enumerate(DEAREST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """A file, or the files of `TOGETHER`, are one piece of work."""
    from xdist.scheduler import LoadFileScheduling

    groups = {stem: name for name, stems in TOGETHER.items() for stem in stems}

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return groups.get(Path(file).stem, file)

    return Scheduler(config, log)


@pytest.fixture(scope="module", autouse=True)
def heap_of_earlier_files(shared_programs):
    """Spare the garbage collector what earlier files left, over which it takes most of its time.

    A compiled program is mapped into memory in pieces, of which Linux gives a process 65,530; with
    more XLA crashes. So programs are forgotten long before, those that runs share last.
    """
    gc.collect()
    for forget in (jax.clear_caches, shared_programs):
        if _mapped_pieces() > 20_000:
            gc.unfreeze()
            forget()
            gc.collect()
    gc.freeze()


def _mapped_pieces() -> int:
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else 0


@pytest.fixture(scope="session", autouse=True)
def shared_programs():
    """Runs share what they compile; call it to forget what has been compiled."""
    with pytest.MonkeyPatch.context() as patch:
        yield programs.share(patch)


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
