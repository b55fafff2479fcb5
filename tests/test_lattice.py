"""Fields on a lattice: the action by loops, the free field by its matrix, phi^4 by quadrature and by published numbers."""

import itertools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import genmod as gm
from genmod.densities import FreeField, PhiFour
from genmod.metrics import (
    binder_cumulant,
    effective_mass,
    field_moment,
    gamma_method,
    ising_energy,
    jackknife,
    lattice_observables,
    magnetization,
    pole_mass,
    susceptibility,
    zero_momentum_correlator,
)

SHAPES = [(5,), (2, 3), (3, 2, 4)]
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def sites(shape):
    return list(itertools.product(*map(range, shape)))


def neighbor(x, direction, step, shape):
    return tuple((c + step * (i == direction)) % shape[i] for i, c in enumerate(x))


def naive_action(phi, m2, lam):
    """As it is written, site by site."""
    total = 0.0
    for x in sites(phi.shape):
        total += m2 * phi[x] ** 2 + lam * phi[x] ** 4
        for mu in range(phi.ndim):
            forward, backward = (phi[neighbor(x, mu, step, phi.shape)] for step in (1, -1))
            total += 2 * phi[x] ** 2 - phi[x] * forward - phi[x] * backward
    return total


def matrix(shape, m2):
    """A with S = phi' A phi."""
    places = {x: i for i, x in enumerate(sites(shape))}
    found = m2 * np.eye(len(places))
    for x, i in places.items():
        for mu in range(len(shape)):
            found[i, i] += 2
            for step in (1, -1):
                found[i, places[neighbor(x, mu, step, shape)]] -= 1
    return found


# --- densities ---------------------------------------------------------------------------------------------------------------


@by_shape
def test_action(shape, x64):
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((3, *shape)) + 0.3
    interacting, free = PhiFour(shape, -1.5, 0.7), FreeField(shape, 0.6)
    wanted = np.array([naive_action(x, -1.5, 0.7) for x in phi])
    np.testing.assert_allclose(interacting.log_prob({}, phi), -wanted, rtol=1e-12)
    np.testing.assert_allclose(interacting.action(phi), wanted, rtol=1e-12)
    np.testing.assert_allclose(interacting(jnp.asarray(phi[0])), -wanted[0], rtol=1e-12)
    np.testing.assert_allclose(free.action(phi[1]), naive_action(phi[1], 0.6, 0.0), rtol=1e-12)
    # Neither the origin of the lattice nor the sign of the field matters.
    axes = tuple(range(1, len(shape) + 1))
    np.testing.assert_allclose(interacting.action(np.roll(phi, axes, axes)), wanted, rtol=1e-12)
    np.testing.assert_allclose(interacting.action(-phi), wanted, rtol=1e-15)
    assert interacting.likelihood is gm.Likelihood.UNNORMALIZED and free.likelihood is gm.Likelihood.EXACT
    assert PhiFour(shape, -1, 2) == PhiFour(shape, np.float64(-1.0), 2.0) and interacting.num_sites == phi[0].size


@by_shape
def test_free_field_by_its_matrix(shape, x64, key):
    law = FreeField(shape, 0.6)
    a = matrix(shape, 0.6)
    covariance, num = np.linalg.inv(2 * a), law.num_sites
    np.testing.assert_allclose(law.log_normalizer, num / 2 * np.log(np.pi) - np.linalg.slogdet(a)[1] / 2, rtol=1e-13)
    np.testing.assert_allclose(law.propagator.ravel(), covariance[0], atol=1e-14)
    phi = np.random.default_rng(1).standard_normal((4, *shape))
    wanted = stats.multivariate_normal.logpdf(phi.reshape(4, -1), np.zeros(num), covariance)
    np.testing.assert_allclose(law.log_prob({}, phi), wanted, rtol=1e-12)
    assert law.susceptibility == pytest.approx(covariance[0].sum(), rel=1e-12)
    for direction, size in enumerate(shape):
        g = law.correlator(direction)
        places = np.array([x[direction] for x in sites(shape)])
        np.testing.assert_allclose(g, [covariance[0, places == t].sum() for t in range(size)], atol=1e-14)
        if size > 2:
            np.testing.assert_allclose(effective_mass(g), law.pole_mass, rtol=1e-10)
            assert pole_mass(g) == pytest.approx(law.pole_mass, rel=1e-10)
    # Draws: every entry of their covariance, and 2 S ~ chi^2 with V degrees of freedom.
    n = 10_000
    x = np.asarray(law.sample({}, key, n)).reshape(n, -1)
    spread = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / n)
    assert (np.abs(x.T @ x / n - covariance) < 4.5 * spread).all()
    assert stats.kstest(2 * np.asarray(law.action(x.reshape(n, *shape))), stats.chi2(num).cdf).pvalue > 1e-3


def test_four_dimensions(key):
    """Draws where XLA's own Fourier transform ends."""
    law = FreeField((2, 3, 2, 2), 1.1)
    assert stats.kstest(2 * np.asarray(law.action(law.sample({}, key, 2_000))), stats.chi2(24).cdf).pvalue > 1e-3


def test_log_normalizer_by_quadrature():
    """Three sites in a ring; the trapezoidal rule is exact to rounding for such densities."""
    line = np.linspace(-6.0, 6.0, 61)
    grid = np.stack(np.meshgrid(line, line, line), -1).reshape(-1, 3)
    free = FreeField((3,), 0.9)
    mass = np.exp(np.asarray(free.log_prob({}, jnp.asarray(grid, jnp.float32)), np.float64)).sum() * (line[1] - line[0]) ** 3
    assert mass == pytest.approx(1.0, abs=1e-5)
    # phi^4: Z = tr K^3, K(x, y) = exp(-(x - y)^2 - v(x) / 2 - v(y) / 2), the transfer matrix.
    target = PhiFour((3,), -1.0, 0.5)
    potential = -(line**2) + 0.5 * line**4
    transfer = np.exp(-((line[:, None] - line) ** 2) - potential[:, None] / 2 - potential / 2) * (line[1] - line[0])
    density = np.exp(np.asarray(target.log_prob({}, jnp.asarray(grid, jnp.float32)), np.float64))
    log_z = np.log(density.sum() * (line[1] - line[0]) ** 3)
    assert log_z == pytest.approx(np.log(np.trace(np.linalg.matrix_power(transfer, 3))), abs=1e-5)


# --- observables -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 4)], ids=str)
def test_observables_by_loops(shape):
    fields = np.random.default_rng(2).standard_normal((2, *shape)) + 0.2
    places, num = sites(shape), fields[0].size
    for i, phi in enumerate(fields):
        m = sum(phi[x] for x in places) / num
        energy = sum(phi[x] * phi[neighbor(x, mu, 1, shape)] for x in places for mu in range(len(shape)))
        found = [magnetization(fields)[i], field_moment(fields, 4)[i], susceptibility(fields)[i], ising_energy(fields)[i]]
        wanted = [m, sum(phi[x] ** 4 for x in places) / num, num * m**2, energy / num / len(shape)]
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        for direction, size in enumerate(shape):
            g = np.zeros(size)
            for x, y in itertools.product(places, places):
                g[(y[direction] - x[direction]) % size] += phi[x] * phi[y] / num
            np.testing.assert_allclose(zero_momentum_correlator(fields, direction)[i], g, atol=1e-12)
            assert g.sum() == pytest.approx(num * m**2)


def test_observables_of_the_free_field(key):
    law = FreeField((6, 4), 0.4)
    fields = law.sample({}, key, 20_000)
    found = lattice_observables(fields, action=law.action(fields))
    g, propagator = law.correlator(), law.propagator
    spread = law.susceptibility / law.num_sites  # of m
    wanted = {
        "phi2": propagator[0, 0],
        "phi4": 3 * propagator[0, 0] ** 2,
        "abs_magnetization": np.sqrt(2 * spread / np.pi),
        "susceptibility": law.susceptibility,
        "ising_energy": (propagator[1, 0] + propagator[0, 1]) / 2,
        "correlator": g,
        "action": law.num_sites / 2,
        "binder_cumulant": 0.0,
        "pole_mass": law.pole_mass,
    }
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert (np.abs(found[name].value - value) < 4 * found[name].sem).all(), name
    # Independent draws, m and phi^2 known to so many digits; and both directions of a square serve for the correlator.
    assert abs(found["susceptibility"].tau_int - 0.5) < 4 * found["susceptibility"].tau_int_sem
    assert found["susceptibility"].sem == pytest.approx(np.sqrt(2 / 20_000) * law.susceptibility, rel=0.05)
    square = np.asarray(fields)[:100, :4]
    means = [zero_momentum_correlator(square, direction).mean(0) for direction in range(2)]
    np.testing.assert_allclose(lattice_observables(square)["correlator"].value, np.mean(means, 0), rtol=1e-12)
    assert "pole_mass" not in lattice_observables(square[:, :2, :2])


@pytest.fixture(scope="module")
def quadrature():
    """PhiFour((2, 2), -1, 0.6) by the trapezoidal rule in four dimensions: log Z and means."""
    line = np.linspace(-3.0, 3.0, 31)
    a, b, c, d = np.meshgrid(line, line, line, line, indexing="ij", sparse=True)
    links = 2 * ((a - b) ** 2 + (c - d) ** 2 + (a - c) ** 2 + (b - d) ** 2)
    density = np.exp(-links - sum(-(x**2) + 0.6 * x**4 for x in (a, b, c, d)))
    m = (a + b + c + d) / 4
    total = density.sum()
    moments = [(density * m**power).sum() / total for power in (2, 4)]
    return {
        "log_z": np.log(total * (line[1] - line[0]) ** 4),
        "phi2": (density * a**2).sum() / total,
        "phi4": (density * a**4).sum() / total,
        "susceptibility": 4 * moments[0],
        "ising_energy": (density * (a * b + a * c)).sum() / total / 2,
        "binder_cumulant": binder_cumulant(*moments),
        "abs_magnetization": (density * np.abs(m)).sum() / total,
        "correlator": [(density * (a * a + a * b)).sum() / total, (density * (a * c + a * d)).sum() / total],
    }


def test_phi_four_by_reweighting(quadrature, key):
    """Draws of the free field, weighted."""
    proposal, target = FreeField((2, 2), 1.0), PhiFour((2, 2), -1.0, 0.6)
    fields = proposal.sample({}, key, 40_000)
    log_weights = target.log_prob({}, fields) - proposal.log_prob({}, fields)
    log_z, sem, _ = gm.samplers.log_mean(log_weights)
    assert abs(log_z - quadrature["log_z"]) < 4 * sem < 0.1
    weight = np.exp(log_weights - log_z)
    found = lattice_observables(fields, weight=weight)
    for name in quadrature.keys() - {"log_z"}:
        assert (np.abs(found[name].value - quadrature[name]) < 4 * found[name].sem).all(), name
    m = magnetization(fields)
    other = jackknife((m**2, m**4), binder_cumulant, block_size=400, weight=weight)
    assert abs(other.value - quadrature["binder_cumulant"]) < 4 * other.sem
    assert other.sem == pytest.approx(found["binder_cumulant"].sem, rel=0.4)  # of 100 blocks: 4 / sqrt(200), and a margin


def chains(target, *, num_chains, num_steps, step_size, seed=0):
    """Fields of hybrid Monte Carlo, (num_chains * num_steps,) + shape, chain after chain."""
    kernel = gm.samplers.hmc(target, step_size, 6)
    keys = jax.random.split(jax.random.key(seed), num_chains + 1)
    starts = 0.3 * jax.random.normal(keys[0], (num_chains, *target.shape))
    trace = jax.vmap(lambda key, x: gm.samplers.run(key, kernel, kernel.init(x), num_steps=num_steps, burn_in=100))(
        keys[1:], starts
    )
    return np.asarray(trace.positions).reshape(-1, *target.shape)


@pytest.mark.slow
def test_phi_four_by_hybrid_monte_carlo(quadrature):
    fields = chains(PhiFour((2, 2), -1.0, 0.6), num_chains=16, num_steps=500, step_size=0.2)
    found = lattice_observables(fields, num_chains=16)
    for name in quadrature.keys() - {"log_z"}:
        assert (np.abs(found[name].value - quadrature[name]) < 4 * found[name].sem).all(), name


# --- published numbers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    place = pathlib.Path(os.environ.get("GENMOD_DATA", "")) / "phi4_reference" / "phi4_reference.json"
    if not os.environ.get("GENMOD_DATA") or not place.is_file():
        pytest.skip("GENMOD_DATA has no phi4_reference")
    return json.loads(place.read_text())


def test_definitions_are_those_of_the_reference(reference):
    """Its numbers obey the identities of ours, to rounding."""
    for known in reference:
        sites = known["L"] ** 2
        assert sum(known["Gt"]) == pytest.approx(known["chi2"], rel=1e-12)
        assert pole_mass(known["Gt"]) == pytest.approx(known["pole_mass"], rel=1e-12)
        links = 4 * (known["phi2"] - known["ising_energy"])
        action = sites * (known["m2"] * known["phi2"] + known["lam"] * known["phi4"] + links)
        assert action == pytest.approx(known["action_mean"], rel=1e-12)


def test_the_tutorial_ensemble(reference):
    """Our chain has these means, within the errors of both."""
    known = reference[0]
    target = PhiFour((known["L"], known["L"]), known["m2"], known["lam"])
    fields = chains(target, num_chains=16, num_steps=1_000, step_size=0.15)
    found = lattice_observables(fields, action=target.action(fields), num_chains=16)
    names = {
        "phi2": "phi2",
        "phi4": "phi4",
        "abs_magnetization": "abs_m",
        "susceptibility": "chi2",
        "ising_energy": "ising_energy",
        "correlator": "Gt",
        "action": "action_mean",
        "binder_cumulant": "binder_U4",
        "pole_mass": "pole_mass",
    }
    for name, theirs in names.items():
        error = np.hypot(found[name].sem, known[f"{theirs}_err"])
        assert (np.abs(found[name].value - known[theirs]) < 4 * error).all(), name
    # The jackknife agrees about the errors, to what 160 blocks know: 4 / sqrt(320).
    m = magnetization(fields)
    other = jackknife((m**2, m**4), binder_cumulant, block_size=100, num_chains=16)
    assert other.sem == pytest.approx(found["binder_cumulant"].sem, rel=0.25)


# --- errors ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PhiFour((8, 1), -4.0, 8.0), r"shape must hold integers >= 2, got \(8, 1\)"),
        (lambda: FreeField((), 1.0), "at least one direction"),
        (lambda: PhiFour((8, 8), -4.0, -1.0), "coupling must be >= 0, got -1.0; .* Z is infinite"),
        (lambda: PhiFour((8, 8), -4.0, 0.0), "mass_squared must be > 0 where the coupling is 0, got -4.0"),
        (lambda: FreeField((8, 8), 0.0), "mass_squared must be > 0 where the coupling is 0, got 0.0"),
        (lambda: PhiFour((8, 8), float("nan"), 1.0), "mass_squared must be finite, got nan"),
        (lambda: PhiFour((4,), 1.0, 1.0)(jnp.zeros((2, 4))), r"ONE field of shape \(4,\), got \(2, 4\)"),
        (lambda: PhiFour((4,), 1.0, 1.0).action(jnp.zeros((2, 5))), r"x must have shape \(...,\) \+ \(4,\)"),
        (lambda: FreeField((4, 4), 1.0).correlator(2), r"direction must be in 0..1, got 2"),
        (lambda: magnetization(np.zeros(8)), r"fields must be \(n,\) \+ the lattice's shape"),
        (lambda: ising_energy(np.zeros((3, 8, 1))), "directions of at least two sites"),
        (lambda: susceptibility(np.full((2, 4), [0.0, 0.0, np.inf, 0.0])), "fields must be finite, got 2 of 2"),
        (lambda: zero_momentum_correlator(np.zeros((3, 4)), 1), "direction must be in 0..0, got 1"),
        (lambda: field_moment(np.zeros((3, 4)), 0), "order must be an integer >= 1"),
        (lambda: effective_mass(np.ones(2)), r"\(T,\) with T >= 3, got shape \(2,\)"),
        (lambda: lattice_observables(np.ones((4, 4))), "at least 8 draws a chain, got 4"),
        (lambda: lattice_observables(np.ones((9, 4)), action=np.ones(8)), "action must be one number for each of 9 fields"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_kinds_of_errors():
    with pytest.raises(TypeError, match="coupling must be a number, got '8'"):
        PhiFour((8, 8), -4.0, "8")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"shape must be a tuple of integers, got 8; write \(8,\)"):
        FreeField(8, 1.0)  # type: ignore[arg-type]
    # Noise leaves no mass: NaN, and no error bar.
    noise = np.random.default_rng(3).standard_normal((20, 8))
    assert np.isnan(effective_mass([1.0, 0.1, -0.2, 0.1, 1.0])[1])
    found = gamma_method(zero_momentum_correlator(noise), pole_mass)
    assert np.isnan(found.value) and np.isnan(found.sem)
