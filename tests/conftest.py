"""The strict settings under which every test runs."""

import jax
import pytest

# A broadcast between different ranks is nearly always a forgotten axis; the library promises to need none.
jax.config.update("jax_numpy_rank_promotion", "raise")


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
