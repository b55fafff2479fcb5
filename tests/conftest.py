"""The strict settings under which every test runs."""

import os

# Before NumPy: on cores that other processes use, too, the threads of OpenBLAS wait for each other a hundred times longer than
# they compute. What a test multiplies is small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

# A broadcast between different ranks is nearly always a forgotten axis; the library promises to need none.
jax.config.update("jax_numpy_rank_promotion", "raise")


# Most of a run is compilation. What one process has compiled serves the other, those that tests start, and the next run.
_CACHE = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_persistent_cache_enable_xla_caches": "none",
}


def pytest_configure(config):
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder and hasattr(config, "cache"):
        folder = str(config.cache.mkdir("jax"))  # `--cache-clear` empties it
    if not folder:
        return
    for name, value in (_CACHE | {"jax_compilation_cache_dir": folder}).items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="module")
def quick_compile():
    """For modules that compile much and compute little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(7)


@pytest.fixture
def x64():
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key_reuse():
    """A key consumed twice, in or out of jit, is an error within the test."""
    with jax.debug_key_reuse(True):
        yield
