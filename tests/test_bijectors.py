"""The contract of every bijector in the registry, and what is special to some."""

import dataclasses
import functools
import pathlib
import re

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import BIJECTORS, DISTRAX_SCALAR, MADE12, MASK, MLP8, SPLINE

import genmod as gm
from genmod import bijectors as bj, nets
from genmod.core.params import trainable_mask
from genmod.nets import MLP

pytestmark = pytest.mark.usefixtures("quick_compile")
by_name = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * case.slow) for name, case in BIJECTORS.items()]
)
EPS = float(np.finfo(np.float32).eps)


def names(prefix):
    return pytest.mark.parametrize("name", [n for n, c in BIJECTORS.items() if n.startswith(prefix) and not c.slow])


@functools.cache
def batch_of(name, num=16):
    """(initial parameters, latent events, their images, contexts or None)."""
    bijector, shape, domain = BIJECTORS[name][:3]
    rng = np.random.default_rng(0)
    z = domain(jnp.asarray(rng.standard_normal((num, *shape)), jnp.float32))
    wanted = bijector.context_shape
    context = None if wanted is None else jnp.asarray(rng.standard_normal((num, *wanted)), jnp.float32)
    params = jax.jit(bijector.init)(jax.random.key(0), z.reshape(num, *bijector.data_shape(shape)), context)
    return params, z, batched(bijector.forward, params, z, context), context


def batched(direction, params, events, context=None):
    return jax.jit(jax.vmap(direction, (None, 0, None if context is None else 0)))(params, events, context)


def moved(params, scale=0.3, seed=0):
    """Trained parameters plus noise: at the identity little can be wrong."""
    rng = np.random.default_rng(seed)
    noise = jax.tree.map(lambda p: np.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)
    return jax.tree.map(lambda p, n, trained: p + n if trained else p, params, noise, trainable_mask(params))


def fresh(value):
    """An equal description, built anew from its fields."""
    if isinstance(value, nn.Module):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(map(fresh, value))
    if isinstance(value, bj.Bijector | bj.Transformer):
        return type(value)(**{f.name: fresh(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value


# --- the contract --------------------------------------------------------------------------------------------------------


@by_name
def test_contract(name):
    case = BIJECTORS[name]
    _, _, x, context = batch_of(name)
    report = gm.check_bijection(case.bijector, x, context, far=case.far, singular=case.singular, latents=case.latents)
    assert report.passed, f"\n{report}"


def test_the_example_for_contributors_keeps_the_contract():
    text = (pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    [code] = [block for block in re.findall("```python\n(.*?)```", text, re.DOTALL) if "SinhArcsinh" in block]
    scope = {"__name__": "sinh_arcsinh"}
    exec(code, scope)
    report = gm.check_bijection(scope["SinhArcsinh"](), batch_of("scalar_affine")[2])
    assert report.passed, f"\n{report}"


def test_the_kit_takes_bijectors_of_distrax_and_refuses_what_is_none(key):
    x = jax.random.normal(key, (6, 2))
    assert gm.check_bijection(DISTRAX_SCALAR, x).passed
    flow = gm.flows.affine((2,), 2)
    params = flow.init(key, x)
    assert gm.health(flow.bijector, params["bijector"], x).round_trip < 1e-5
    for call in (lambda: gm.check_bijection(flow, x), lambda: gm.health(flow, params, x)):
        with pytest.raises(TypeError, match=r"^bijector must be a gm.Bijector or a distrax.Bijector, got Flow\("):
            call()
    with pytest.raises(ValueError, match="^params must be a tuple with one entry for each of 2 bijectors, got a dict"):
        gm.health(flow.bijector, params, x)
    with pytest.raises(ValueError, match="an estimate"):
        gm.check_bijection(bj.CNF(MLP8, divergence=gm.dynamics.Hutchinson(1)), x)


def test_contract_sees_a_wrong_log_det():
    @dataclasses.dataclass(frozen=True)
    class Wrong(gm.Bijector):
        def _init(self, key, x, context):
            return {}

        def _forward(self, params, z, context):
            return 2.0 * z, 0.0

        def _inverse(self, params, x, context):
            return 0.5 * x, 0.0

    report = gm.check_bijection(Wrong(), np.ones((3, 2)))
    failed = {row.name for row in report.rows if not row.passed}
    assert failed == {"log_det forward = autodiff", "log_det inverse = autodiff"} and "FAILED" in str(report)


@by_name
def test_starts_as_the_identity_where_promised(name):
    case = BIJECTORS[name]
    params, z, x, context = batch_of(name)
    if not case.identity:
        assert x.shape != z.shape or jnp.abs(x - z).max() > 1e-3
        return
    log_det = batched(case.bijector.inverse_and_log_det, params, x, context)[1]
    np.testing.assert_allclose(x, z, rtol=0, atol=16 * EPS * float(1 + jnp.abs(z).max()))
    np.testing.assert_allclose(log_det, 0.0, atol=16 * EPS * z[0].size)


@by_name
def test_descriptions_are_values(name):
    bijector = BIJECTORS[name].bijector
    again = fresh(bijector)
    assert again is not bijector and again == bijector and hash(again) == hash(bijector)
    assert gm.describe(again) == gm.describe(bijector)
    assert sum(bijector == other.bijector for other in BIJECTORS.values()) <= 2  # one may stand with two shapes


@pytest.mark.parametrize("name", ["coupling_mask", "autoregressive_conditional", "repeat", "from_distrax_linear"])
def test_equal_descriptions_share_one_trace(name):
    case, traces = BIJECTORS[name], []
    params, _, x, context = batch_of(name)

    @functools.partial(jax.jit, static_argnums=0)
    def inverse(bijector, params, x, context):
        traces.append(bijector)
        return batched(bijector.inverse_and_log_det, params, x, context)

    for _ in range(3):
        inverse(fresh(case.bijector), params, x, context)
    assert len(traces) == 1


def test_every_bijector_and_transformer_is_in_the_registry():
    def parts(value):
        yield type(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, nn.Module):
            for field in dataclasses.fields(value):
                inner = getattr(value, field.name)
                for one in inner if isinstance(inner, tuple) else (inner,):
                    yield from parts(one)

    seen = {part for case in BIJECTORS.values() for part in parts(case.bijector)}
    exported = [getattr(bj, name) for name in dir(bj)]
    public = {c for c in exported if isinstance(c, type) and issubclass(c, gm.Bijector | bj.Transformer)}
    assert public - seen == {gm.Bijector, bj.Transformer, bj.ContinuousFlow}


# --- arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in BIJECTORS if name != "chain_empty"])  # whose log_det is 0 for any shape
def test_a_batch_in_place_of_an_event_is_refused(name):
    """Otherwise an elementwise map adds up the log-determinants of all rows without a word."""
    case = BIJECTORS[name]
    bijector, shape = case.bijector, case.shape
    rows = jax.ShapeDtypeStruct((3, *bijector.data_shape(shape)), jnp.float32)
    context = None if bijector.context_shape is None else jax.ShapeDtypeStruct((3, *bijector.context_shape), jnp.float32)
    params = jax.eval_shape(bijector.init, jax.random.key(0), rows, context)
    params = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params)
    given = None if context is None else jnp.zeros(context.shape[1:])
    for calls, event in (
        ((bijector.forward, bijector.forward_and_log_det, bijector.forward_with_info), shape),
        ((bijector.inverse, bijector.inverse_and_log_det, bijector.inverse_with_info), bijector.data_shape(shape)),
    ):
        for call in calls:
            with pytest.raises(
                ValueError, match=rf"^[zx] must be one event of shape {re.escape(str(event))}, got .* takes a batch$"
            ):
                call(params, jnp.ones((3, *event)), given)


@by_name
def test_what_init_reads_is_what_it_says(name):
    """Only ActNorm and its like read the values of the example; a composition relies on that."""
    case = BIJECTORS[name]
    bijector = case.bijector
    _, _, x, context = batch_of(name)
    init = jax.jit(bijector.init)
    one, other = (jax.tree.leaves(init(jax.random.key(3), points, context)) for points in (x, 0.5 * x + 0.01))
    assert bijector.reads_data == any(not jnp.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_bijector_of_a_user_is_bound_to_its_data_too(key):
    x = jax.random.normal(key, (5, 2, 3))
    for bijector in (Doubled(), bj.Chain((Doubled(), distrax.Tanh())), bj.Repeat(Doubled(), 2), bj.Invert(Doubled())):
        params = bijector.init(key, x)
        assert bijector.bound_shape(params) == (2, 3) and jax.tree.leaves(params) == []
        assert jax.vmap(bijector.inverse_and_log_det, (None, 0))(params, x)[1].shape == (5,)
        with pytest.raises(ValueError, match=r"x must be one event of shape \(2, 3\), got \(5, 2, 3\)"):
            bijector.inverse_and_log_det(params, x)
    inverted = bj.Invert(bj.Squeeze())  # each notes the shape of its own side
    params = inverted.init(key, jnp.zeros((1, 2, 2, 4)))
    assert inverted.bound_shape(params) == (2, 2, 4) and bj.Squeeze().bound_shape(params) == (4, 4, 1)


@dataclasses.dataclass(frozen=True)
class Doubled(gm.Bijector):
    def _init(self, key, x, context):
        return {}

    def _forward(self, params, z, context):
        return 2.0 * z, z.size * np.log(2.0)

    def _inverse(self, params, x, context):
        return 0.5 * x, -x.size * np.log(2.0)


@dataclasses.dataclass(frozen=True)
class Eventful(Doubled):
    def _init(self, key, x, context):
        return {"event": jnp.zeros(())}


def test_the_entry_that_notes_the_shape_is_not_overwritten(key):
    with pytest.raises(ValueError, match="the parameters of Eventful have an entry 'event', .* rename it"):
        Eventful().init(key, jnp.zeros((2, 3)))


def test_refuses_unfit_events_and_contexts(key):
    plain, conditional = BIJECTORS["coupling_mask"].bijector, BIJECTORS["coupling_conditional"].bijector
    params = plain.init(key, jnp.zeros((2, 4)))
    unbound = {name: value for name, value in params.items() if name != "event"}
    for direction in (plain.forward, plain.inverse_and_log_det):
        with pytest.raises(ValueError, match=r"must be one event of shape \(4,\), got \(5,\)"):
            direction(params, jnp.zeros(5))
        with pytest.raises(ValueError, match="split must be a mask of 5 coordinates, got one of 4"):
            direction(unbound, jnp.zeros(5))
        with pytest.raises(ValueError, match=r"takes vectors \(D,\) and images \(H, W, C\), got an event of shape \(2, 4\)"):
            direction(unbound, jnp.zeros((2, 4)))
        with pytest.raises(TypeError, match="must be floating point, got int32"):
            direction(params, jnp.zeros(4, int))
        with pytest.raises(ValueError, match="Coupling takes no context"):
            direction(params, jnp.zeros(4), jnp.zeros(3))
        with pytest.raises(ValueError, match=r"conditional: pass context of shape \(3,\)"):
            getattr(conditional, direction.__name__)(params, jnp.zeros(4))
        with pytest.raises(ValueError, match=r"context must have shape \(3,\), got \(4,\)"):
            getattr(conditional, direction.__name__)(params, jnp.zeros(4), jnp.zeros(4))


def test_refuses_unfit_batches(key):
    plain, conditional = BIJECTORS["coupling_mask"].bijector, BIJECTORS["coupling_conditional"].bijector
    with pytest.raises(ValueError, match=r"x must have shape \(n,\) \+ \(4, 2, 1\), got \(4, 2, 1\)"):
        BIJECTORS["multi_scale"].bijector.init(key, jnp.zeros((4, 2, 1)))
    with pytest.raises(ValueError, match=r"got an event of shape \(\)"):
        plain.init(key, jnp.zeros(4))
    with pytest.raises(ValueError, match="at least one event"):
        plain.init(key, jnp.zeros((0, 4)))
    with pytest.raises(TypeError, match="floating point"):
        plain.init(key, jnp.zeros((2, 4), int))
    with pytest.raises(ValueError, match=r"context must have shape \(2, 3\), got \(1, 3\)"):
        conditional.init(key, jnp.zeros((2, 4)), jnp.zeros((1, 3)))
    for vector_only in (
        bj.MatrixAffine(),
        bj.Planar(),
        bj.Sylvester(),
        bj.Coupling(bj.Affine(), MLP8, 1),
        BIJECTORS["autoregressive_affine"].bijector,
    ):
        with pytest.raises(ValueError, match="takes? (vectors|batches)"):
            vector_only.init(key, jnp.zeros((2, 2, 2)))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: bj.Permutation([1, 0]), TypeError, "Permutation.order must be hashable"),
        (lambda: bj.Permutation((1, 1)), ValueError, "each of 0..1 once"),
        (lambda: bj.Permutation(3), TypeError, r"order must be a tuple of integers, got 3; write \(3,\)"),
        (lambda: bj.LULinear((0, 2)), ValueError, "each of 0..1 once"),
        (lambda: bj.LULinear((0.0, 1.0)), TypeError, "order must be a tuple of integers"),
        (lambda: bj.Autoregressive(bj.Affine(), MADE12, (1, 2)), ValueError, "each of 0..1 once"),
        (lambda: bj.Repeat(bj.Tanh(), 0), ValueError, "num must be an integer >= 1, got 0"),
        (lambda: bj.Repeat(bj.Tanh(), True), ValueError, "num must be an integer"),
        (lambda: bj.LowRankAffine(0), ValueError, "rank must be"),
        (lambda: bj.Householder(0), ValueError, "num_reflections must be"),
        (lambda: bj.Power(-1.0), ValueError, "power must be > 0"),
        (lambda: bj.RationalQuadraticSpline(0), ValueError, "num_bins must be"),
        (lambda: bj.DeepSigmoidal(0), ValueError, "num_units must be"),
        (lambda: bj.Sylvester(2, "triangular"), ValueError, "leave num_units=None"),
        (lambda: bj.Sylvester(2, "qr"), ValueError, "basis must be"),
        (
            lambda: bj.Chain((bj.Tanh(), "exp")),
            TypeError,
            r"bijectors\[1\] must be a gm.Bijector or a distrax.Bijector, got 'exp'",
        ),
        (lambda: bj.Chain(bj.Tanh()), TypeError, r"Chain takes a tuple of bijectors, got Tanh\(\)"),
        (lambda: bj.Chain([bj.Tanh()]), TypeError, r"Chain takes a tuple of bijectors, got \[Tanh\(\)\]"),
        (lambda: bj.Repeat("exp", 2), TypeError, "bijector must be a gm.Bijector or a distrax.Bijector, got 'exp'"),
        (lambda: bj.Invert(jnp.exp), TypeError, "bijector must be a gm.Bijector or a distrax.Bijector, got"),
        (lambda: bj.MultiScale((2, 2, 1), ("exp",)), TypeError, r"levels\[0\] must be a gm.Bijector or a distrax.Bijector"),
        (lambda: bj.Planar(3), TypeError, r"context_shape must be a tuple of integers, got 3; write \(3,\)"),
        (lambda: bj.Coupling(bj.Affine(), MLP8, 2, (-1,)), ValueError, r"context_shape must hold integers >= 0, got \(-1,\)"),
        (lambda: bj.Coupling("affine", MLP8, 2), TypeError, "transformer must be a Transformer, got 'affine'"),
        (lambda: bj.Autoregressive(jnp.exp, MADE12), TypeError, "transformer must be a Transformer, got"),
        (lambda: bj.Elementwise(bj.Tanh()), TypeError, r"transformer must be a Transformer, got Tanh\(\)"),
        (lambda: bj.ScalarFunction("exp", 2), TypeError, "fn must be a function, got 'exp'"),
        (lambda: bj.ScalarFunction(jnp.exp, 0), ValueError, "num_raw must be an integer >= 1, got 0"),
        (lambda: bj.Chain((bj.Planar((2,)), bj.Planar((3,)))), ValueError, "share one context_shape"),
        (lambda: bj.random_order(0), ValueError, "dim must be"),
    ],
)
def test_refuses_unfit_fields(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_refuses_what_does_not_fit_the_data(key):
    x = jnp.zeros((2, 4))
    with pytest.raises(ValueError, match=r"split must be in 0\.\.3"):
        bj.Coupling(bj.Affine(), MLP8, 4).init(key, x)
    with pytest.raises(ValueError, match="leaves nothing to transform"):
        bj.Coupling(bj.Affine(), MLP8, (True,) * 4).init(key, x)
    with pytest.raises(ValueError, match="num_units must be at most the dimension 4"):
        bj.Sylvester(5).init(key, x)
    with pytest.raises(ValueError, match="Permutation is of 2 entries"):
        bj.Permutation((1, 0)).init(key, x)
    with pytest.raises(ValueError, match=r"must return shape \(D, num_params\) = \(4, 2\), got \(8,\)"):
        flat = bj.Autoregressive(bj.Affine(), nn.Dense(8))
        flat.forward(flat.init(key, x), x[0])


def test_refuses_a_log_det_that_is_not_a_scalar():
    @dataclasses.dataclass(frozen=True)
    class Unsummed(gm.Bijector):
        def _init(self, key, x, context):
            return {}

        def _forward(self, params, z, context):
            return z, jnp.zeros_like(z)

        def _inverse(self, params, x, context):
            return x, jnp.zeros_like(x)

    with pytest.raises(ValueError, match=r"Unsummed returned a log_det of shape \(3,\)"):
        Unsummed().forward({}, jnp.zeros(3))


@dataclasses.dataclass(frozen=True)
class Cut(Doubled):
    """Loses a coordinate."""

    def _forward(self, params, z, context):
        return z[:1], 0.0

    def _inverse(self, params, x, context):
        return x[:1], 0.0


def test_a_bijector_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"Cut made an event of shape \(1,\) from one of shape \(2,\)"):
        Cut().inverse({}, jnp.zeros(2))
    wide = gm.from_distrax(distrax.ScalarAffine(shift=jnp.zeros(3), scale=2 * jnp.ones(3)))
    with pytest.raises(ValueError, match=r"from one of shape \(1,\)"):
        wide.inverse({}, jnp.zeros(1))


# --- reference values ----------------------------------------------------------------------------------------------------


def test_affine_of_two_variables():
    params = {"matrix": jnp.array([[2.0, 0.5], [0.0, 1.5]]), "shift": jnp.array([1.0, 0.5])}
    for bijector in (bj.MatrixAffine(), bj.TriangularAffine(lower=False)):
        x, log_det = bijector.forward_and_log_det(params, jnp.array([0.5, -1.0]))
        np.testing.assert_allclose(x, [1.5, -1.0], rtol=4 * EPS)
        np.testing.assert_allclose(log_det, 1.098612, atol=1e-6)


def test_affine_coupling_by_hand():
    """s(z1) = .5 z1, t(z1) = 1 + z1, with the transformer's soft bound undone by a wide one."""
    coupling = bj.Coupling(bj.Affine(bound=1e4), MLP((), None), 1)
    params = coupling.init(jax.random.key(0), jnp.zeros((1, 2)))
    head = {"kernel": jnp.array([[1.0, 0.5]]), "bias": jnp.array([1.0, 0.0])}
    assert jax.tree.map(jnp.shape, params["Dense_0"]) == jax.tree.map(jnp.shape, head)
    x, log_det = coupling.forward_and_log_det({"Dense_0": head}, jnp.array([0.5, -1.0]))
    np.testing.assert_allclose(x, [0.5, 0.215975], atol=1e-6)
    np.testing.assert_allclose(log_det, 0.25, atol=1e-6)


def test_absolute_values_of_negative_diagonals():
    params = {"matrix": jnp.diag(jnp.array([-2.0, 3.0])), "shift": jnp.zeros(2)}
    diagonal = {"scale": jnp.array([-2.0, 3.0]), "shift": jnp.zeros(2)}
    for bijector, p in ((bj.MatrixAffine(), params), (bj.TriangularAffine(), params), (bj.DiagonalAffine(), diagonal)):
        np.testing.assert_allclose(bijector.forward_and_log_det(p, jnp.ones(2))[1], np.log(6.0), rtol=4 * EPS)


def test_interleaved_coupling_sums_its_log_scales():
    coupling = bj.Coupling(bj.Affine(), MLP8, (True, False, True, False))
    params = moved(coupling.init(jax.random.key(0), jnp.zeros((1, 4))))
    z = jnp.array([0.3, -0.2, 1.0, 0.7])
    # x_b = scale z_b + shift with a scale that does not depend on z_b: read it off two points.
    one, other = (coupling.forward(params, z.at[1::2].set(b)) for b in (1.0, 0.0))
    np.testing.assert_allclose(coupling.forward_and_log_det(params, z)[1], jnp.log((one - other)[1::2]).sum(), rtol=16 * EPS)


def test_planar_stays_invertible_at_any_parameters():
    """det = 1 + u.w h' > 0 for a u that points far against w."""
    w = jnp.array([1.0, 2.0])
    params = {"w": w, "u": -50.0 * w, "b": jnp.zeros(())}
    x, log_det = bj.Planar().forward_and_log_det(params, jnp.zeros(2))  # h' is largest, 1, here
    jacobian = jax.jacfwd(lambda z: bj.Planar().forward(params, z))(jnp.array([0.4, 0.1]))
    assert jnp.isfinite(log_det) and jnp.linalg.det(jacobian) > 0
    np.testing.assert_allclose(x, 0.0, atol=EPS)


@pytest.mark.parametrize("make", [bj.Planar, lambda: bj.Sylvester(2), lambda: bj.Chain((bj.Planar(), bj.Sylvester(1)))])
def test_roots_that_are_not_there_are_counted(make):
    """No finite z goes to an infinite x."""
    layer = make()
    params = moved(layer.init(jax.random.key(0), jnp.zeros((1, 2))))
    invert = jax.jit(lambda x: layer.inverse_with_info(params, x))
    for x, failed in ((jnp.array([0.3, -1.0]), False), (jnp.array([0.3, jnp.inf]), True)):
        z, log_det, info = invert(x)
        assert (info["failed_solves"] > 0) == failed == jnp.isnan(log_det) and jnp.isnan(z).any() == failed
    assert layer.forward_with_info(params, jnp.zeros(2))[2] == {}
    flow = gm.models.Flow(layer, gm.densities.Uniform((2,), -1.0, 1.0))
    broken = {"bijector": jax.tree.map(lambda p: p * jnp.nan, params)}
    _, info = gm.models.Flow(bj.Invert(layer), flow.base).sample_with_info(broken, jax.random.key(0), (5,))
    assert (info["failed_solves"] > 0).all()


# --- structure -----------------------------------------------------------------------------------------------------------


@names("autoregressive")
def test_autoregressive_jacobian_is_triangular_in_the_order(name):
    case = BIJECTORS[name]
    params, z, x, context = batch_of(name)
    params = moved(params)
    order = np.asarray(case.bijector.order or range(case.shape[0]))
    given = None if context is None else context[0]
    jacobian = np.asarray(jax.jit(jax.jacfwd(lambda z: case.bijector.forward(params, z, given)))(z[0]))[order][:, order]
    assert (np.triu(jacobian, 1) == 0).all()
    assert (np.diagonal(jacobian) > 0).all() and (jacobian[np.tril_indices(4, -1)] != 0).all()


@names("coupling")
def test_coupling_keeps_one_part_and_moves_the_other_by_coordinate(name):
    case = BIJECTORS[name]
    params, z, _, context = batch_of(name)
    params = moved(params)
    split, shape = case.bijector.split, case.shape
    if isinstance(split, bj.Checkerboard):
        kept = np.indices(shape)[:2].sum(0) % 2 == split.odd
    else:
        kept = np.broadcast_to(np.arange(shape[-1]) < split if isinstance(split, int) else np.asarray(split), shape)
    kept, size = kept.ravel(), kept.size
    given = None if context is None else context[0]
    jacobian = np.asarray(jax.jit(jax.jacfwd(lambda z: case.bijector.forward(params, z, given)))(z[0])).reshape(size, size)
    np.testing.assert_array_equal(jacobian[kept], np.eye(size)[kept])
    inner = jacobian[~kept][:, ~kept]
    assert (inner[~np.eye(len(inner), dtype=bool)] == 0).all() and (np.diagonal(inner) > 0).all()
    assert (jacobian[~kept][:, kept] != 0).all()


def test_random_order_is_one_cycle():
    for dim in (1, 2, 3, 7, 64):
        order = bj.random_order(dim, seed=3)
        place, visited = 0, set()
        for _ in range(dim):
            visited.add(place)
            place = order[place]
        assert visited == set(range(dim))
    assert bj.random_order(9, 1) != bj.random_order(9, 2)


@pytest.mark.parametrize("unroll", [1, 2, 5])
def test_repeat_equals_the_chain_of_its_layers(unroll, key):
    layer = bj.Chain((bj.Coupling(bj.Affine(), MLP8, 2), bj.Permutation((1, 2, 3, 0))))
    repeat = bj.Repeat(layer, 3, unroll)
    x = jax.random.normal(key, (4,))
    params = moved(repeat.init(key, x[None]))
    unrolled = tuple(jax.tree.map(lambda p, i=i: p[i], params) for i in range(3))
    assert not jnp.array_equal(*(jax.tree.leaves(p)[0] for p in unrolled[:2]))
    chain = bj.Chain((layer,) * 3)
    for one, other in (
        (repeat.forward_and_log_det, chain.forward_and_log_det),
        (repeat.inverse_and_log_det, chain.inverse_and_log_det),
    ):
        for a, b in zip(one(params, x), other(unrolled, x), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_chain_composes_base_to_data():
    chain = bj.Chain((bj.Exp(), bj.ScalarAffine()))
    params = ({}, {"scale": jnp.array(-3.0), "shift": jnp.array(1.0)})
    x, log_det = chain.forward_and_log_det(params, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(x, 1 - 3 * np.exp([0.0, 1.0]), rtol=4 * EPS)
    np.testing.assert_allclose(log_det, 1 + 2 * np.log(3), rtol=4 * EPS)


def test_invert_exchanges_the_directions(key):
    bijector = BIJECTORS["autoregressive_conditional"].bijector
    x, context = jax.random.normal(key, (4,)), jnp.ones(3)
    params = moved(bijector.init(key, x[None], context[None]))
    inverted = bj.Invert(bijector)
    for one, other in (
        (bijector.forward_and_log_det, inverted.inverse_and_log_det),
        (bijector.inverse_and_log_det, inverted.forward_and_log_det),
    ):
        for a, b in zip(one(params, x, context), other(params, x, context), strict=True):
            assert jnp.array_equal(a, b)
    assert bj.Invert(inverted).context_shape == (3,) and inverted.event_shape == (4,)


def test_composition_keeps_the_weakest_likelihood():
    @dataclasses.dataclass(frozen=True)
    class Estimated(bj.ScalarAffine):
        likelihood = gm.Likelihood.ESTIMATE

    weak = bj.Invert(bj.Repeat(bj.Chain((bj.Tanh(), Estimated(), bj.Exp())), 2))
    assert weak.likelihood is gm.Likelihood.ESTIMATE and bj.Chain((bj.Tanh(),)).likelihood is gm.Likelihood.EXACT


# --- initialisation from data --------------------------------------------------------------------------------------------


def skewed(key, num=500):
    return jnp.exp(jax.random.normal(key, (num, 3)) * jnp.array([[0.3, 0.6, 0.9]])) * jnp.array([[1.0, 10.0, 0.1]]) + 2.0


def assert_standard(z, num=500):
    # The statistics of the very batch that set the layer: exact up to the rounding of sums of `num` numbers.
    np.testing.assert_allclose(z.mean(0), 0.0, atol=num * EPS)
    np.testing.assert_allclose(z.var(0), 1.0, atol=num * EPS)


def test_act_norm_is_set_from_the_data_that_reach_it_in_a_chain(key):
    chain = bj.Chain((bj.ActNorm(), bj.Power(3.0), bj.ActNorm(), bj.Power(0.5)))
    x = skewed(key)
    params = chain.init(key, x)
    middle = batched(bj.Chain(chain.bijectors[2:]).inverse, params[2:], x)
    assert_standard(middle)
    assert_standard(batched(chain.inverse, params, x))
    assert jnp.abs(batched(bj.Power(3.0).inverse, {}, middle).var(0) - 1).max() > 0.1  # the second had something to do


def test_act_norm_is_set_from_the_data_that_reach_it_in_a_repeat(key):
    layer = bj.Chain((bj.ActNorm(), bj.Permutation((1, 2, 0)), bj.Power(3.0)))
    x = skewed(key)
    params = bj.Repeat(layer, 3).init(key, x)
    for i in (2, 1, 0):  # the last layer is the one next to the data
        assert params[0]["shift"].shape == (3, 3)
        before, x = x, batched(layer.inverse, jax.tree.map(lambda p, i=i: p[i], params), x)
        assert_standard(x)
        assert jnp.abs(jnp.cbrt(before).std(0) - 1).max() > 0.01


def test_act_norm_of_images_has_one_scale_per_channel(key):
    x = 3.0 + 2.0 * jax.random.normal(key, (50, 4, 4, 2))
    params = bj.ActNorm().init(key, x)
    assert params["shift"].shape == params["log_scale"].shape == (2,)
    z, log_det = batched(bj.ActNorm().inverse_and_log_det, params, x)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0.0, atol=800 * EPS)
    np.testing.assert_allclose(log_det, -16 * params["log_scale"].sum(), rtol=1e-5)


def test_constant_entries_keep_scale_one(key):
    x = jnp.stack([jnp.full(10, 5.0), jnp.zeros(10), jnp.arange(10.0)], 1)
    params = bj.Standardize().init(key, x)["statistics"].tree
    np.testing.assert_allclose(params["log_scale"], [0.0, 0.0, np.log(np.arange(10).std())], atol=1e-6)
    np.testing.assert_allclose(params["shift"], [5.0, 0.0, 4.5], rtol=4 * EPS)


def test_standardize_has_no_gradient(key):
    x = skewed(key)
    params = bj.Standardize().init(key, x)
    grads = jax.grad(lambda p: batched(bj.Standardize().inverse_and_log_det, p, x)[1].sum())(params)
    assert all((g == 0).all() for g in jax.tree.leaves(grads))


# --- one coordinate, and autoregressive networks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bijector",
    [
        bj.MatrixAffine(),
        bj.LowRankAffine(2),
        bj.LULinear(bj.random_order(1)),
        bj.Coupling(SPLINE, MLP8, 0),
        bj.Coupling(bj.Affine(), MLP8, (False,)),
        bj.Autoregressive(bj.Affine(), MADE12),
        bj.Autoregressive(SPLINE, nets.MADE((5,))),
        bj.Planar(),
        bj.Radial(),
        bj.Sylvester(),
        bj.Repeat(bj.Chain((bj.Coupling(bj.Affine(), MLP8, 0), bj.ActNorm())), 2),
    ],
    ids=lambda b: type(b).__name__,
)
@pytest.mark.slow
def test_one_coordinate(bijector, key):
    x = 0.3 + jax.random.normal(key, (5, 1))
    params = moved(bijector.init(key, x))
    forward = jax.jit(jax.vmap(jax.value_and_grad(lambda z: bijector.forward(params, z[None])[0])))
    z, log_det = batched(bijector.inverse_and_log_det, params, x)
    back, slope = forward(z[:, 0])
    np.testing.assert_allclose(back, x[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_det, -jnp.log(jnp.abs(slope)), rtol=1e-4, atol=1e-4)


class Plain(nn.Module):
    """A MADE in disguise, so that the layer takes the D passes of a general conditioner."""

    made: nets.MADE

    def __call__(self, *inputs):
        return self.made(*inputs)


@pytest.mark.parametrize(
    ("dim", "hidden", "order", "context_shape"),
    [
        (5, (12, 12), None, None),
        (5, (16, 9), (3, 1, 4, 0, 2), (2,)),
        (6, (3, 2), None, None),  # fewer units than degrees
        (6, (2,), None, (2, 2)),
        (4, (), None, None),
        (1, (6,), None, None),
        (1, (6, 1), None, (3,)),
        (2, (1,), (1, 0), None),
    ],
)
@pytest.mark.slow
def test_one_scan_of_made_equals_one_pass_per_coordinate(dim, hidden, order, context_shape, key, x64):
    made = nets.MADE(hidden, jnp.tanh)
    quick = bj.Autoregressive(bj.Affine(), made, order, context_shape)
    slow = bj.Autoregressive(bj.Affine(), Plain(made.clone(num_outputs=2)), order, context_shape)
    x = 2.0 * jax.random.normal(key, (3, dim), float)
    context = None if context_shape is None else jax.random.normal(key, (3, *context_shape), float)
    params = moved(quick.init(key, x, context), 1.0)
    one = jax.jit(functools.partial(batched, quick.inverse_and_log_det))(params, x, context)
    other = jax.jit(functools.partial(batched, slow.inverse_and_log_det))({"made": params}, x, context)
    assert jnp.abs(one[1]).max() > 0.1
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_made_in_bfloat16_inverts_to_its_rounding(key):
    layer = bj.Autoregressive(bj.Affine(), nets.MADE((16, 16), jnp.tanh, dtype=jnp.bfloat16))
    x = jax.random.normal(key, (64, 4))
    params = moved(layer.init(key, x))
    z, log_det = jax.jit(functools.partial(batched, layer.inverse_and_log_det))(params, x)
    back, _ = jax.jit(functools.partial(batched, layer.forward_and_log_det))(params, z)
    assert z.dtype == log_det.dtype == jnp.float32
    assert jnp.abs(back - x).max() < 10 * 2**-8


def test_mask_and_split_agree():
    """A mask that keeps the first two is the split 2."""
    z = jnp.array([0.1, -0.5, 2.0, 0.3])
    by_split = bj.Coupling(bj.Affine(), MLP8, 2)
    params = moved(by_split.init(jax.random.key(0), z[None]))
    by_mask = bj.Coupling(bj.Affine(), MLP8, (True, True, False, False))
    for a, b in zip(by_split.forward_and_log_det(params, z), by_mask.forward_and_log_det(params, z), strict=True):
        assert jnp.array_equal(a, b)
    assert MASK != (True, True, False, False)


# --- numerical care -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", [1, 2, 3, 50])
def test_whitening_is_sane_for_any_number_of_rows(num_rows):
    x = jax.random.normal(jax.random.key(0), (num_rows, 3)) * jnp.array([[1e3, 1.0, 1e-1]])
    params = bj.Whiten().init(jax.random.key(0), x)
    z = jax.vmap(bj.Whiten().inverse, (None, 0))(params, x)
    assert float(jnp.abs(z).max()) < 10
    if num_rows > 3:
        np.testing.assert_allclose(np.cov(np.asarray(z, np.float64).T, bias=True), np.eye(3), atol=1e-3)


def test_extreme_parameters_stay_finite():
    radial = {"b": jnp.zeros(2), "log_alpha": jnp.array(-10.0), "ratio": jnp.zeros(())}
    gradient = jax.grad(lambda p: bj.Radial().inverse(p, jnp.array([5e3, 5e3])).sum())(radial)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    planar = {"w": jnp.zeros(2), "u": jnp.ones(2), "b": jnp.zeros(())}
    assert jnp.isfinite(bj.Planar().forward(planar, jnp.ones(2))).all()


def test_repeat_of_a_layer_without_parameters():
    np.testing.assert_array_equal(bj.Repeat(bj.Reverse(), 3).forward({}, jnp.arange(3.0)), [2.0, 1.0, 0.0])


def test_linear_maps_keep_full_precision_on_every_backend():
    """On accelerators a product is rounded by default; the lowered program must ask for the highest precision."""
    for layer in (bj.MatrixAffine(), bj.LULinear((1, 0)), bj.Householder(2), bj.Permutation((1, 0)), bj.Whiten()):
        params = layer.init(jax.random.key(0), jax.random.normal(jax.random.key(1), (8, 2)))
        text = jax.jit(layer.forward_and_log_det).lower(params, jnp.ones(2)).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert all("HIGHEST" in line for line in products), type(layer).__name__


@pytest.mark.parametrize("bijector", [bj.Logit(), bj.AlphaLogit(), bj.AlphaLogit(1e-6)])
def test_the_slope_of_a_logit_is_finite_wherever_latents_lie(bijector):
    """z = sigmoid(x) rounds to 1 at x = 17 in float32; the log-determinant, near -|x|, does not depend on it."""
    x = np.array([-90.0, -20.0, -3.0, 0.0, 17.0, 40.0, 90.0], np.float32)
    alpha = getattr(bijector, "alpha", 0.0)
    wanted = -(np.logaddexp(0, x.astype(np.float64)) + np.logaddexp(0, -x.astype(np.float64)) + np.log(1 - 2 * alpha))
    found = [bijector.inverse_and_log_det({}, jnp.asarray([value]))[1] for value in x]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
