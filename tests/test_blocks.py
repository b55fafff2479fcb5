"""Gibbs sampling against laws known by hand and by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod.samplers import gibbs, random_scan_gibbs, random_walk, run

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
KEY = jax.random.key(0)
RHO, MEAN = 0.7, np.array([1.0, -2.0])
TABLE = np.array([[0.1, 0.4], [0.3, 0.2]])
LOG_TABLE = jnp.log(jnp.asarray(TABLE, jnp.float32))


def draw_a(key, x):
    """Of a | b, both of variance one."""
    return x | {"a": MEAN[0] + RHO * (x["b"] - MEAN[1]) + jnp.sqrt(1 - RHO**2) * jax.random.normal(key)}


def draw_b(key, x):
    return x | {"b": MEAN[1] + RHO * (x["a"] - MEAN[0]) + jnp.sqrt(1 - RHO**2) * jax.random.normal(key)}


def walk_b(key, x):
    """A Metropolis step in the place of `draw_b`."""

    def log_given(b):
        return -0.5 * (b - MEAN[1] - RHO * (x["a"] - MEAN[0])) ** 2 / (1 - RHO**2)

    kernel = random_walk(log_given, 1.5)
    return x | {"b": kernel.step(key, kernel.init(x["b"]))[0].position}


@pytest.mark.parametrize(
    "kernel",
    [gibbs(draw_a, draw_b), random_scan_gibbs(draw_a, draw_b), gibbs(draw_a, walk_b)],
    ids=["sweep", "random scan", "Metropolis within"],
)
def test_a_bivariate_normal(kernel):
    num = 2_000
    start = {"a": jnp.float32(0.0), "b": jnp.float32(0.0)}
    trace = jax.jit(jax.vmap(lambda key: run(key, kernel, kernel.init(start), num_steps=20, burn_in=40, thin=10)))
    positions = trace(jax.random.split(KEY, num)).positions
    a, b = (np.asarray(positions[name], np.float64) - mean for name, mean in zip("ab", MEAN, strict=True))
    for values, wanted in ((a, 0), (b, 0), (a * a, 1), (b * b, 1), (a * b, RHO)):
        means = values.mean(1)  # chains are independent
        assert abs(means.mean() - wanted) < NUM_SEM * means.std() / np.sqrt(num)


def test_a_sweep_forgets_as_it_should():
    """The correlation of b with the next b is rho^2."""
    kernel = gibbs(draw_a, draw_b)
    b = run(KEY, kernel, kernel.init({"a": jnp.float32(1.0), "b": jnp.float32(-2.0)}), num_steps=20_000).positions["b"]
    assert abs(np.corrcoef(b[1:], b[:-1])[0, 1] - RHO**2) < NUM_SEM * np.sqrt((1 - RHO**4) / 20_000)


def draw_row(key, x):
    return x.at[0].set(jax.random.categorical(key, LOG_TABLE[:, x[1]]))


def draw_column(key, x):
    return x.at[1].set(jax.random.categorical(key, LOG_TABLE[x[0]]))


def transitions(kernel, num=20_000):
    """(from, to) by simulation of each of the four states."""
    step = jax.jit(jax.vmap(lambda key, x: kernel.step(key, kernel.init(x))[0].position, (0, None)))
    ends = [np.asarray(step(jax.random.split(KEY, num), jnp.array([i, j]))) for i in (0, 1) for j in (0, 1)]
    return np.stack([np.bincount(2 * x[:, 0] + x[:, 1], minlength=4) / num for x in ends])


def test_a_table():
    """The transition matrices are the enumerated products of conditionals; they leave the table as it is."""
    p = TABLE.ravel()
    rows, columns = np.zeros((4, 4)), np.zeros((4, 4))
    for i in (0, 1):
        for j in (0, 1):
            for k in (0, 1):
                rows[2 * i + j, 2 * k + j] = TABLE[k, j] / TABLE[:, j].sum()
                columns[2 * i + j, 2 * i + k] = TABLE[i, k] / TABLE[i].sum()
    sweep, scan = rows @ columns, 0.5 * (rows + columns)
    np.testing.assert_allclose(p @ sweep, p)
    assert np.abs(p[:, None] * sweep - (p[:, None] * sweep).T).max() > 1e-2  # a sweep is not reversible
    np.testing.assert_allclose(p[:, None] * sweep, (p[:, None] * (columns @ rows)).T)  # but by the opposite order
    np.testing.assert_allclose(p[:, None] * scan, (p[:, None] * scan).T)
    for kernel, wanted in (
        (gibbs(draw_row, draw_column), sweep),
        (gibbs(draw_column, draw_row), columns @ rows),
        (random_scan_gibbs(draw_row, draw_column), scan),
    ):
        assert (np.abs(transitions(kernel) - wanted) <= NUM_SEM * np.sqrt(wanted * (1 - wanted) / 20_000)).all()


def test_steps_say_whether_they_moved():
    kernel = gibbs(lambda key, x: x, lambda key, x: x | {"a": jnp.minimum(x["a"] + 1, 2)})
    trace = run(KEY, kernel, kernel.init({"a": 0, "b": jnp.ones(3)}), num_steps=4)
    np.testing.assert_array_equal(trace.infos.is_moved, [True, True, False, False])
    np.testing.assert_array_equal(trace.positions["a"], [1, 2, 2, 2])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: gibbs(), ValueError, "at least one conditional draw"),
        (lambda: random_scan_gibbs(draw_a, 3), TypeError, r"conditionals\[1\] must be a function, got 3"),
        (
            lambda: run(KEY, k := gibbs(lambda key, x: x, lambda key, x: x[:1]), k.init(jnp.ones(2)), num_steps=1),
            ValueError,
            r"conditionals\[1\] must return arrays like those of the position, float32\[2\], got float32\[1\]",
        ),
    ],
)
def test_gibbs_refuses_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
