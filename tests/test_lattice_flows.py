"""Flows on periodic lattices: naive loops, Jacobians, symmetries, and the free field, of which everything is known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from registry import LATTICE_FLOWS

import genmod as gm
from genmod import bijectors as bj, nets
from genmod.densities import FreeField, PhiFour
from genmod.dynamics import RK4, FixedSteps
from genmod.metrics import lattice_observables
from genmod.nets.lattice import displacement_orbits, displacements

pytestmark = pytest.mark.usefixtures("quick_compile")
SHAPES = [(6,), (4, 4), (2, 4, 2)]
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
SMALL = nets.PeriodicNet(2, (3,), activation=jnp.tanh)
SPLINE = bj.RationalQuadraticSpline(num_bins=4, bound=3.0)
VELOCITY = nets.LatticeVelocity(3, 3, frequency=0.7)


class Alone(nets.LatticeVelocity):
    """v without its divergence."""

    def __call__(self, x, t):
        return super().__call__(x, t)[0]


def moved(params, scale=0.3, seed=0):
    """Parameters plus noise: at the start the maps are the identity."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + jnp.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)


def normal(shape, seed=1, dtype=float):
    """Asymmetric: not zero in the mean."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) + 0.2, dtype)


def symmetries(shape):
    """name -> a function of ONE field: a reflection, and an exchange, of directions, for whichever the lattice has."""
    found = {f"reflected_{axis}": functools.partial(jnp.flip, axis=axis) for axis in range(len(shape))}
    for i, j in itertools.combinations(range(len(shape)), 2):
        if shape[i] == shape[j]:
            found[f"exchanged_{i}_{j}"] = functools.partial(jnp.swapaxes, axis1=i, axis2=j)
    return found


def translations(shape):
    """Every one of the lattice, as steps."""
    return list(itertools.product(*map(range, shape)))


def by(steps, field):
    return jnp.roll(field, steps, range(len(steps)))


def assert_commutes(function, field, actions):
    """function(g field) = g function(field), in float64; it must not be trivially so."""
    images = np.asarray(jax.jit(jax.vmap(function))(jnp.stack([field, *(g(field) for g in actions)])))
    assert np.abs(images[0] - np.asarray(field)).max() > 1e-2
    for g, image in zip(actions, images[1:], strict=True):
        np.testing.assert_allclose(image, g(images[0]), rtol=0, atol=1e-12)


def jacobian(function, field):
    size = field.size
    return np.asarray(jax.jit(jax.jacfwd(function))(field)).reshape(size, size)


# --- networks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "size"),
    [((6,), 5), ((19,), 3), ((3, 5), 3), ((2, 17), 3), ((2, 3, 4), 3), ((3, 2, 18), 3), ((2, 2), 5), ((4, 3), 1)],
    ids=str,
)
def test_convolution_by_loops(shape, size, x64):
    """Also where the last direction is long, where the kernel reaches around the lattice, and where it is one site."""
    conv = nets.PeriodicConv(2, size)
    x = normal((*shape, 3))
    params = moved(nets.init(conv, jax.random.key(0), x))
    kernel, bias, given = (np.asarray(value) for value in (params["kernel"], params["bias"], x))
    assert kernel.shape == (size,) * len(shape) + (3, 2)
    wanted = np.zeros((*shape, 2)) + bias
    for place in itertools.product(*map(range, shape)):
        for offset in itertools.product(range(size), repeat=len(shape)):
            there = tuple((p + o - size // 2) % n for p, o, n in zip(place, offset, shape, strict=True))
            wanted[place] += given[there] @ kernel[offset]
    np.testing.assert_allclose(nets.apply(conv, params, x), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 5), (4, 20)], ids=str)
def test_convolution_is_that_of_xla(shape, x64):
    conv = nets.PeriodicConv(4, 5)
    x = normal((*shape, 3))
    params = moved(nets.init(conv, jax.random.key(0), x))
    wrapped = jnp.pad(x, ((2, 2), (2, 2), (0, 0)), mode="wrap")[None]
    numbers = ("NHWC", "HWIO", "NHWC")
    wanted = jax.lax.conv_general_dilated(wrapped, params["kernel"], (1, 1), "VALID", dimension_numbers=numbers)[0]
    np.testing.assert_allclose(nets.apply(conv, params, x), wanted + params["bias"][None, None], rtol=0, atol=1e-12)


@by_shape
def test_networks_know_no_place(shape, x64):
    x = normal((*shape, 1))
    params = moved(nets.init(SMALL, jax.random.key(0), x))
    apply = jax.jit(jax.vmap(lambda x: nets.apply(SMALL, params, x)))
    fields = jnp.stack([by(steps, x) for steps in translations(shape)])
    out = apply(fields)
    assert out[0].std() > 0.05
    for steps, image in zip(translations(shape), out, strict=True):
        np.testing.assert_allclose(image, by(steps, out[0]), rtol=0, atol=1e-13)


@pytest.mark.slow
def test_networks_start_at_zero_and_learn(key):
    x = normal((4, 4, 1), dtype=jnp.float32)
    params = nets.init(SMALL, key, x)
    assert (nets.apply(SMALL, params, x) == 0).all()
    grad = jax.grad(lambda p: nets.apply(SMALL, p, x)[0, 0].sum())(params)
    assert jnp.abs(grad["PeriodicConv_1"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize("num_odd", [0, 1, 2])
def test_odd_and_even_channels(num_odd, x64):
    net = nets.SignSymmetric(SMALL, num_odd)
    x = normal((4, 4, 1))
    params = moved(nets.init(net, jax.random.key(0), x))
    one, other = (nets.apply(net, params, sign * x) for sign in (1, -1))
    body, of_minus = (nets.apply(SMALL, params["body"], sign * x) for sign in (1, -1))
    sign = np.where(np.arange(2) < num_odd, -1.0, 1.0)
    np.testing.assert_allclose(other, one * sign[None, None], rtol=0, atol=1e-14)
    np.testing.assert_allclose(one, (body + of_minus * sign[None, None]) / 2, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(1,), (6,), (5,), (4, 6), (3, 3), (2, 5), (2, 4, 2), (3, 3, 3)], ids=str)
def test_orbits_of_displacements(shape):
    """Two displacements share a number if and only if symmetries, applied one after the other, lead from one to the other."""
    orbits = displacement_orbits(shape)
    assert orbits[(0,) * len(shape)] == 0
    index = np.arange(orbits.size).reshape(shape)
    group = [np.roll(np.flip(index, axis), 1, axis) for axis in range(len(shape))]  # d -> -d in one direction
    group += [np.asarray(g(index)) for name, g in symmetries(shape).items() if name.startswith("exchanged")]
    for start in range(orbits.size):
        orbit, new = {start}, [start]
        while new:
            reached = {int(g.ravel()[d]) for d in new for g in group}
            new = list(reached - orbit)
            orbit |= reached
        assert orbit == set(np.flatnonzero(orbits.ravel() == orbits.ravel()[start]))
    assert set(orbits.ravel()) == set(range(orbits.max() + 1))
    between = displacements(shape, orbits)
    for x, y in itertools.product(np.ndindex(shape), repeat=2):
        step = tuple((b - a) % n for a, b, n in zip(x, y, shape, strict=True))
        assert between[np.ravel_multi_index(x, shape), np.ravel_multi_index(y, shape)] == orbits[step]


@pytest.mark.parametrize("shape", [*SHAPES, (4, 6), (2, 3), (1, 3)], ids=str)
def test_divergence_of_the_field(shape, x64):
    """div v is the trace of the Jacobian, and v the sum over pairs of sites, at times on and between the knots."""
    x = normal(shape)
    params = moved(nets.init(VELOCITY, jax.random.key(0), x, jnp.zeros(())), 1.0)
    assert abs(params["frequency"] - 0.7) > 0.05
    orbits = displacement_orbits(shape)
    assert params["weights"].shape == (3, 4, orbits.max() + 1)
    apply = jax.jit(lambda x, t: nets.apply(VELOCITY, params, x, t))
    trace = jax.jit(lambda x, t: jnp.trace(jax.jacfwd(lambda x: apply(x, t)[0])(x).reshape(x.size, x.size)))
    knots, w = np.asarray(params["weights"]), float(params["frequency"])
    values = np.stack([x, *(np.sin(f * w * np.asarray(x)) for f in range(1, 4))])
    for t in (0.0, 0.3, 0.5, 0.9, 1.0):
        v, divergence = apply(x, jnp.asarray(t))
        np.testing.assert_allclose(divergence, trace(x, jnp.asarray(t)), rtol=1e-11, atol=1e-11)
        low = min(int(2 * t), 1)
        weights = knots[low] + (2 * t - low) * (knots[low + 1] - knots[low])
        wanted = np.zeros(shape)
        for here, there in itertools.product(np.ndindex(shape), repeat=2):
            step = tuple((b - a) % n for a, b, n in zip(here, there, shape, strict=True))
            wanted[here] += weights[:, orbits[step]] @ values[(slice(None), *there)]
        np.testing.assert_allclose(v, wanted, rtol=0, atol=1e-11)


# --- couplings ---------------------------------------------------------------------------------------------------------------


@by_shape
@pytest.mark.parametrize("odd", [False, True], ids=["even", "odd"])
def test_log_det_of_a_coupling_is_the_sum_of_its_log_scales(shape, odd, x64):
    """Of the sites that change, and slogdet of the Jacobian; the other sites pass, and the inverse takes it back."""
    coupling = bj.LatticeCoupling(bj.Affine(bound=2.0), SMALL, odd)
    z = normal(shape)
    params = moved(coupling.init(jax.random.key(0), z[None]))
    x, log_det = coupling.forward_and_log_det(params, z)
    kept = np.indices(shape).sum(0) % 2 == odd
    network = {name: value for name, value in params.items() if name != "event"}
    raw = nets.apply(SMALL, network, jnp.where(kept, z, 0.0)[..., None])
    log_scale = 2.0 * np.tanh(np.asarray(raw[..., 1]) / 2.0)
    np.testing.assert_array_equal(np.asarray(x)[kept], np.asarray(z)[kept])
    np.testing.assert_allclose(x, np.where(kept, z, np.exp(log_scale) * z + raw[..., 0]), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(log_det, log_scale[~kept].sum(), rtol=1e-12)
    np.testing.assert_allclose(
        log_det, np.linalg.slogdet(jacobian(functools.partial(coupling.forward, params), z))[1], rtol=1e-10, atol=1e-12
    )
    back, opposite = coupling.inverse_and_log_det(params, x)
    np.testing.assert_allclose(back, z, rtol=0, atol=1e-12)
    np.testing.assert_allclose(opposite, -log_det, rtol=1e-12)


def test_spline_coupling(x64):
    network = nets.PeriodicNet(SPLINE.num_params, (4,), activation=jnp.tanh)
    flow = gm.flows.lattice_coupling_flow((4, 4), 2, transformer=SPLINE, network=network).bijector
    z = normal((4, 4))
    params = moved(flow.init(jax.random.key(0), z[None]), 0.5)
    x, log_det = jax.jit(flow.forward_and_log_det)(params, z)
    assert jnp.abs(x - z).max() > 0.05
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian(functools.partial(flow.forward, params), z))[1], rtol=1e-10)
    back, opposite = jax.jit(flow.inverse_and_log_det)(params, x)
    np.testing.assert_allclose(back, z, rtol=0, atol=1e-11)
    np.testing.assert_allclose(opposite, -log_det, rtol=1e-11)


@by_shape
def test_couplings_commute_with_translations_of_their_pattern(shape, x64):
    flow = gm.flows.lattice_coupling_flow(shape, 2, network=SMALL).bijector
    z = normal(shape)
    params = moved(flow.init(jax.random.key(0), z[None]))
    forward = jax.jit(functools.partial(flow.forward, params))
    keeps_colour = [steps for steps in translations(shape) if sum(steps) % 2 == 0]
    assert len(keeps_colour) == z.size / 2
    assert_commutes(forward, z, [functools.partial(by, steps) for steps in keeps_colour])
    one_step = (1,) + (0,) * (len(shape) - 1)
    assert jnp.abs(forward(by(one_step, z)) - by(one_step, forward(z))).max() > 1e-2


def test_couplings_commute_with_the_sign_where_their_network_does(x64):
    z = normal((4, 4))
    for network, symmetric in ((nets.SignSymmetric(SMALL), True), (SMALL, False)):
        flow = gm.flows.lattice_coupling_flow((4, 4), 2, network=network).bijector
        params = moved(flow.init(jax.random.key(0), z[None]))
        forward = jax.jit(functools.partial(flow.forward_and_log_det, params))
        (x, log_det), (minus, of_minus) = (forward(sign * z) for sign in (1, -1))
        assert jnp.abs(x - z).max() > 1e-2
        assert (jnp.abs(minus + x).max() < 1e-13) == symmetric == (abs(of_minus - log_det) < 1e-12)


def test_the_default_is_the_published_architecture():
    """Sixteen layers 1-8-8-2 of 3 x 3 convolutions."""
    flow = gm.flows.lattice_coupling_flow((8, 8))
    params = jax.eval_shape(flow.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8), jnp.float32))
    assert gm.num_params(params) == 16 * (9 * (1 * 8 + 8 * 8 + 8 * 2) + 8 + 8 + 2)


# --- continuous flows --------------------------------------------------------------------------------------------------------


def test_log_det_of_the_ode(x64):
    """slogdet of the Jacobian, to the error of the integrator, which falls with h^4; to rounding that of a CNF of the same field
    and steps."""
    z = normal((2, 3))

    params = moved(nets.init(VELOCITY, jax.random.key(0), z, jnp.zeros(())), 0.4)
    errors = []
    for num_steps in (8, 16):
        steps = FixedSteps(num_steps, RK4())
        ode, cnf = bj.LatticeODE(VELOCITY, steps), bj.CNF(Alone(3, 3, 0.7), steps)
        x, log_det = jax.jit(ode.forward_and_log_det)(params, z)
        same, its = jax.jit(cnf.forward_and_log_det)(params, z)
        np.testing.assert_allclose(x, same, rtol=0, atol=1e-12)
        np.testing.assert_allclose(log_det, its, rtol=1e-12)
        wanted = np.linalg.slogdet(jacobian(functools.partial(ode.forward, params), z))[1]
        errors.append(abs(float(log_det) - wanted))
    assert errors[1] < 1e-4 and 10 < errors[0] / errors[1] < 26
    back, opposite = jax.jit(ode.inverse_and_log_det)(params, x)
    np.testing.assert_allclose(back, z, rtol=0, atol=10 * errors[1])
    np.testing.assert_allclose(opposite, -log_det, rtol=0, atol=10 * errors[1])


@pytest.mark.parametrize("shape", [(4, 4), (4, 6), (2, 3, 2)], ids=str)
def test_the_ode_commutes_with_all_symmetries(shape, x64):
    ode = gm.flows.lattice_ode(shape, num_frequencies=3, num_times=3, integrator=FixedSteps(2)).bijector
    z = normal(shape)
    params = moved(ode.init(jax.random.key(0), z[None]))
    some = [steps for steps in translations(shape) if sum(steps) in (1, 3)]
    actions = [functools.partial(by, steps) for steps in some] + [*symmetries(shape).values(), jnp.negative]
    assert len(symmetries(shape)) == {(4, 4): 3, (4, 6): 2, (2, 3, 2): 4}[shape]
    assert_commutes(functools.partial(ode.forward, params), z, actions)
    forward = jax.jit(functools.partial(ode.forward_and_log_det, params))
    log_dets = [forward(g(z))[1] for g in (jnp.asarray, *actions[-3:])]
    np.testing.assert_allclose(log_dets, log_dets[0], rtol=1e-12)
    if shape == (4, 4):  # and with nothing else: places are not exchanged at will
        swapped = z.at[0, 0].set(z[1, 2]).at[1, 2].set(z[0, 0])
        image, other = forward(z)[0], forward(swapped)[0]
        assert jnp.abs(other - image.at[0, 0].set(image[1, 2]).at[1, 2].set(image[0, 0])).max() > 1e-2


# --- both --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LATTICE_FLOWS)
@pytest.mark.slow
def test_precision_batches_programs_and_gradients(name, key, x64):
    """At the start the flow is its base. Then float32 is float64 to rounding; a batch is its rows; jit changes nothing; gradients
    are finite differences."""
    flow = LATTICE_FLOWS[name]((4, 2))
    x = normal((3, 4, 2))
    start = flow.init(key, x)
    np.testing.assert_allclose(flow.log_prob(start, x), flow.base.log_prob({}, x), rtol=1e-14)
    params = moved(start)
    rows = [jax.jit(flow.log_prob_one)(params, row) for row in x]
    found = flow.log_prob(params, x)
    assert found.dtype == jnp.float64 and np.abs(found - flow.base.log_prob({}, x)).max() > 0.1
    np.testing.assert_allclose(found, rows, rtol=1e-12)
    single = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    in_single = flow.log_prob(single, x.astype(jnp.float32))
    assert in_single.dtype == jnp.float32 and flow.sample(single, key, 2).shape == (2, 4, 2)
    np.testing.assert_allclose(in_single, found, rtol=2e-5)
    leaves, structure = jax.tree.flatten(params)
    direction = [jnp.asarray(np.random.default_rng(5).standard_normal(leaf.shape)) for leaf in leaves]

    @jax.jit
    def loss(step):
        return -flow.log_prob(structure.unflatten([p + step * d for p, d in zip(leaves, direction, strict=True)]), x).mean()

    slope = jax.grad(loss)(0.0)
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(slope, (loss(1e-5) - loss(-1e-5)) / 2e-5, rtol=1e-6)


def check_on_free_field(flow, law, key, **options):
    """fit_posterior reaches log Z and leaves less than a hundredth of KL(q || p); weighted draws have the exact observables."""
    fit, report = gm.inference.fit_posterior(law, flow, key=key, progress=False, **options)
    assert abs(report.log_evidence - law.log_normalizer) < 4 * report.log_evidence_sem
    assert report.log_evidence_sem < 0.02
    precision = 1 / np.fft.fftn(law.propagator).real  # in Fourier space; that of the base, where the flow starts, is 1
    at_the_start = 0.5 * (precision - 1 - np.log(precision)).sum()
    assert 0 < report.log_evidence - report.elbo < 0.01 * at_the_start
    x, log_q = flow.sample_and_log_prob(fit.params, key, 10_000)
    log_weights = -np.asarray(law.action(x), np.float64) - np.asarray(log_q)
    found = lattice_observables(x, action=law.action(x), weight=np.exp(log_weights - log_weights.max()))
    wanted = {
        "phi2": law.propagator.flat[0],
        "phi4": 3 * law.propagator.flat[0] ** 2,
        "susceptibility": law.susceptibility,
        "correlator": law.correlator(),
        "action": law.num_sites / 2,
        "pole_mass": law.pole_mass,
    }
    for name, value in wanted.items():
        assert (np.abs(found[name].value - value) < 4 * found[name].sem).all(), name
    return report


def adam(num_steps):
    return optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))


SHORT = {"num_steps": 300, "optimizer": gm.call(adam, 300)}


@pytest.mark.slow
def test_couplings_on_the_free_field(key):
    law = FreeField((4, 4), 1.0)
    flow = gm.flows.lattice_coupling_flow((4, 4), 4, hidden_channels=(4,))
    check_on_free_field(flow, law, key, **SHORT)


def test_the_ode_on_the_free_field(key):
    """A linear field, h_0 alone, would do."""
    law = FreeField((6,), 0.5)
    flow = gm.flows.lattice_ode((6,), num_frequencies=1, num_times=2, integrator=FixedSteps(5, RK4()))
    report = check_on_free_field(flow, law, key, **SHORT)
    assert report.ess_fraction > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coupling", "ode"])
def test_a_larger_free_field(name, key):
    shape = (4, 6)
    flow = gm.flows.lattice_ode(shape, num_frequencies=2) if name == "ode" else gm.flows.lattice_coupling_flow(shape, 8)
    check_on_free_field(flow, FreeField(shape, 0.3), key, num_steps=1_000)


@pytest.mark.slow
def test_phi_four_on_two_sites(key):
    """log Z by quadrature, with the interaction."""
    law = PhiFour((2,), -1.0, 0.6)
    line = jnp.linspace(-4.0, 4.0, 201)
    grid = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
    log_z = jax.nn.logsumexp(-law.action(grid)) + 2 * jnp.log(line[1] - line[0])
    flow = gm.flows.lattice_ode((2,), num_frequencies=4)
    _, report = gm.inference.fit_posterior(law, flow, key=key, num_steps=1_500, progress=False)
    assert abs(report.log_evidence - log_z) < 4 * report.log_evidence_sem < 0.04
    assert report.ess_fraction > 0.9


# --- errors ------------------------------------------------------------------------------------------------------------------


class OneArray(nets.PeriodicNet):
    """A network in the place of a field."""

    def __call__(self, x, t):
        return x


class OneArrayOfTwo(nets.PeriodicNet):
    """What would unpack as a pair."""

    def __call__(self, x, t):
        return jnp.stack([x, x])


class WrongDivergence(nets.PeriodicNet):
    """A divergence for each site."""

    def __call__(self, x, t):
        return x, x


def started(bijector, shape):
    return bijector.init(jax.random.key(0), jnp.ones((1, *shape)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gm.flows.lattice_coupling_flow((4, 5)), r"event_shape must have an even number of sites .* got \(4, 5\)"),
        (lambda: started(bj.LatticeCoupling(bj.Affine(), SMALL), (3,)), r"event_shape must have an even .* got \(3,\)"),
        (lambda: started(bj.LatticeCoupling(bj.Affine(), SMALL), ()), r"event_shape must have an even .* got \(\)"),
        (lambda: gm.flows.lattice_coupling_flow((4, 4), 3), "num_layers must be even, .* got 3"),
        (lambda: gm.flows.lattice_coupling_flow((4, 4), 0), "num_layers must be an integer >= 1, got 0"),
        (lambda: gm.flows.lattice_coupling_flow((1,)), r"event_shape must hold integers >= 2, got \(1,\)"),
        (lambda: gm.flows.lattice_ode((4, 1)), r"event_shape must hold integers >= 2, got \(4, 1\)"),
        (lambda: gm.flows.lattice_ode(()), r"event_shape must have at least one direction, got \(\)"),
        (lambda: gm.flows.lattice_coupling_flow(()), r"event_shape must have at least one direction, got \(\)"),
        (lambda: gm.flows.lattice_coupling_flow((4,), kernel_size=4), "kernel_size must be odd, .* got 4"),
        (
            lambda: started(bj.LatticeCoupling(SPLINE, SMALL), (4, 4)),
            r"network must give \(4, 4, 11\), the raw numbers of RationalQuadraticSpline.*, got \(4, 4, 2\)",
        ),
        (lambda: started(bj.LatticeODE(OneArray(1)), (4, 4)), r"field must give a pair \(v, div v\) .* got \(4, 4\)"),
        (lambda: started(bj.LatticeODE(OneArrayOfTwo(1)), ()), r"field must give a pair \(v, div v\) .* got \(2,\)"),
        (lambda: started(bj.LatticeODE(WrongDivergence(1)), (2,)), r"of shapes \(2,\) and \(\), got \[\(2,\), \(2,\)\]"),
        (lambda: nets.PeriodicConv(0), "features must be an integer >= 1, got 0"),
        (lambda: nets.PeriodicConv(2, 2), "kernel_size must be odd, .* got 2"),
        (lambda: nets.init(nets.PeriodicConv(2), jax.random.key(0), jnp.ones(3)), r"x must have shape lattice \+ \(C,\)"),
        (lambda: nets.PeriodicNet(0), "num_outputs must be an integer >= 1, got 0"),
        (lambda: nets.SignSymmetric(SMALL, -1), "num_odd must be an integer >= 0, got -1"),
        (lambda: nets.LatticeVelocity(0), "num_frequencies must be an integer >= 1, got 0"),
        (lambda: nets.LatticeVelocity(2, 1), "num_times must be at least 2, got 1"),
        (lambda: nets.LatticeVelocity(frequency=0.0), "frequency must be .* got 0.0"),
        (lambda: bj.LatticeODE(VELOCITY).velocity({}, jnp.ones(4), 1.5), r"t must be in \[0, 1\]"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_kinds_of_errors():
    with pytest.raises(TypeError, match="transformer must be a Transformer"):
        bj.LatticeCoupling(bj.Tanh(), SMALL)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="integrator must be a Integrator, got 10"):
        gm.flows.lattice_ode((4,), integrator=10)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"hidden_channels must be a tuple of integers, got 8; write \(8,\)"):
        gm.flows.lattice_coupling_flow((4,), hidden_channels=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^z must be one event of shape \(4, 4\), got .* takes a batch$"):
        bijector = bj.LatticeODE(VELOCITY)
        bijector.forward(started(bijector, (4, 4)), jnp.ones((3, 4, 4)))
