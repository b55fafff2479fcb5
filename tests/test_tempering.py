"""Parallel tempering: it leaves the product of its levels invariant, and finds modes that its kernel does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod.samplers import geometric_bridge, moved, parallel_tempering, random_walk

pytestmark = pytest.mark.usefixtures("quick_compile")
LEVELS = jnp.array([0.0, 0.1, 0.35, 1.0])
NUM_CHAINS = 2_000


def start(x):
    return -0.5 * (x / 5.0) ** 2


def end(x):
    """0.3 N(-6, 1) + 0.7 N(6, 1), up to a constant."""
    return jnp.logaddexp(jnp.log(0.3) - 0.5 * (x + 6) ** 2, jnp.log(0.7) - 0.5 * (x - 6) ** 2)


BRIDGE = geometric_bridge(start, end)
KERNEL = parallel_tempering(BRIDGE, lambda log_prob_fn, _: random_walk(log_prob_fn, 1.0), LEVELS, num_steps=2)


def law(level):
    """A grid and the masses of its points at a level."""
    grid = np.linspace(-25, 25, 2_001)
    log_f = np.asarray(jax.vmap(lambda x: BRIDGE(x, level))(grid.astype(np.float32)), float)
    mass = np.exp(log_f - log_f.max())
    return grid, mass / mass.sum()


def check_moments(x, level):
    grid, mass = law(level)
    for fn in (lambda x: x, lambda x: x**2, lambda x: x > 0):
        wanted = mass @ fn(grid)
        sem = np.sqrt((mass @ fn(grid).astype(float) ** 2 - wanted**2) / len(x))
        assert abs(fn(x).mean() - wanted) < 4.5 * sem + 1e-3, (level, fn(x).mean(), wanted)


def test_exact_draws_stay_exact_draws(key):
    rng = np.random.default_rng(0)
    columns = [rng.choice(law(level)[0], NUM_CHAINS, p=law(level)[1]) for level in LEVELS]
    positions = np.stack(columns, 1).astype(np.float32)
    positions, info = jax.jit(lambda key, x: moved(key, KERNEL, x, num_steps=4))(key, positions)
    for i, level in enumerate(LEVELS):
        check_moments(np.asarray(positions[:, i], float), level)
    assert info.acceptance_rate.shape == (NUM_CHAINS, 3)
    assert (info.acceptance_rate.mean(0) > 0.05).all()


def test_a_mode_that_the_kernel_does_not_leave_is_left(key):
    def ends(kernel, *axes):
        return jax.jit(lambda key: moved(key, kernel, jnp.full((500, *axes), -6.0), num_steps=300)[0])(key)

    assert (np.asarray(ends(random_walk(end, 1.0))) < 0).all()
    tempered = ends(KERNEL, 4)
    share = (np.asarray(tempered[:, -1]) > 0).mean()
    assert abs(share - 0.7) < 4.5 * np.sqrt(0.21 / 500)


def test_refused():
    with pytest.raises(ValueError, match=r"^position must have a leading axis of 4 levels, got shape \(3,\)"):
        KERNEL.init(jnp.zeros(3))
    with pytest.raises(TypeError, match="^kernel_fn must be a function"):
        parallel_tempering(BRIDGE, 0.1, LEVELS)
