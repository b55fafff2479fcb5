"""`gm.check_bijection` sees what is wrong, where it is wrong, and passes what is right beside it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from genmod import bijectors as bj
from genmod.core.batching import EVENTS
from genmod.testing import points, probe

pytestmark = pytest.mark.usefixtures("quick_compile")


@dataclasses.dataclass(frozen=True)
class Map(gm.Bijector):
    """x = f(z) and z = g(x), coordinate by coordinate; log-determinants by autodiff, plus what is said to be wrong with them."""

    f: Callable = lambda z: z
    g: Callable = lambda x: x
    wrong: Callable = lambda x: 0.0

    def _init(self, key, x, context):
        return {}

    def _forward(self, params, z, context):
        return self.f(z), jnp.log(jnp.abs(slope(self.f, z))).sum() + self.wrong(self.f(z))

    def _inverse(self, params, x, context):
        return self.g(x), jnp.log(jnp.abs(slope(self.g, x))).sum() - self.wrong(x)


def slope(f, z):
    return jax.jvp(f, (z,), (jnp.ones_like(z),))[1]


def rows(num=100, dim=2):
    """A normal sample; in row 57, and there alone, all coordinates lie near 4."""
    x = np.random.default_rng(3).standard_normal((num, dim)).astype(np.float32)
    x = np.clip(x, -3.0, 3.0)
    x[57:58] = 4.0 + 0.1 * x[57:58]
    return x


def failed(bijector, x=None, **options):
    report = gm.check_bijection(bijector, rows() if x is None else x, **options)
    return {row.name: row.note for row in report.rows if not row.passed}


def near_four(x):
    return jnp.all(jnp.abs(x - 4.0) < 0.5)


# --- one row of a hundred ------------------------------------------------------------------------------------------------


def test_an_inverse_that_is_wrong_in_one_row_is_seen():
    found = failed(Map(g=lambda x: jnp.where(near_four(x), x + 1e-3, x)), far=None)
    assert found["forward(inverse(x)) = x, float64"] == "at x[57]"


def test_a_log_det_that_is_wrong_in_one_row_is_seen():
    """In both directions alike: no round trip shows it."""
    found = failed(Map(wrong=lambda x: jnp.where(near_four(x), 1e-3, 0.0)), far=None, smooth=False)
    assert set(found) == {"log_det inverse = autodiff", "log_det forward = autodiff"}
    assert found["log_det inverse = autodiff"] == "at x[57]"


@pytest.mark.parametrize("wrong", [False, True])
def test_rows_beyond_those_with_jacobians_are_looked_at(wrong, monkeypatch):
    monkeypatch.setattr(probe, "_MOST_OPERATIONS", 0)  # as if the event were large
    monkeypatch.setattr(probe, "_WIDE", 4)
    layer = Map(f=lambda z: 2.0 * z, g=lambda x: jnp.where(near_four(x) & wrong, 0.501, 0.5) * x)
    found = failed(layer, rows(60, 12), far=None, num_points=2)
    assert found.get("forward(inverse(x)) = x, float64") == ("at x[57]" if wrong else None)
    assert wrong or not found


# --- special points ------------------------------------------------------------------------------------------------------


def signed_power(power):
    return lambda z: jnp.sign(z) * jnp.abs(z) ** power


@pytest.mark.parametrize("power", [3.0, 0.5])
def test_a_slope_of_zero_and_an_infinite_one_are_seen(power):
    maps = Map(signed_power(power), signed_power(1 / power)), bj.Power(power)
    for layer in maps:
        found = failed(layer, far=None)
        assert found["log_det forward = autodiff"] in ("at every z_i = 0", "at every x_i = 0"), found
        assert not failed(layer, far=None, singular=(0.0,))


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_a_single_wrong_number_is_seen(value):
    found = failed(Map(wrong=lambda x: jnp.where(x == value, 1e-3, 0.0).sum()))
    assert f"= {value:g}" in found["log_det forward = autodiff"] and f"= {value:g}" in found["log_det inverse = autodiff"]


@dataclasses.dataclass(frozen=True)
class Torn(bj.Transformer):
    """The identity, but for one of its knots."""

    knots = (-1.75, 0.25)
    num_params = 1

    def forward(self, raw, z):
        return jnp.where(z == self.knots[1], 0.0, z), 0.0 * z

    def inverse(self, raw, x):
        return x, 0.0 * x


def test_knots_are_looked_at():
    assert failed(bj.Chain((bj.Elementwise(Torn()), bj.Reverse())))["inverse(forward(z)) = z, float64"].endswith("= 0.25")
    splines = bj.PerCoordinate((bj.RationalQuadraticSpline(4, bound=3.0), bj.CircularSpline(2, bound=1.0)))
    layer = bj.Repeat(bj.Chain((bj.Reverse(), bj.Coupling(splines, gm.nets.MLP((4,)), 1))), 2)
    assert points.knots_of(layer) == {-3.0, -1.5, 0.0, 1.5, 3.0, -1.0, 1.0}


# --- kinks and jumps -----------------------------------------------------------------------------------------------------


def bent(at):
    """Slope 1 below `at`, 1.1 above."""
    return Map(lambda z: z + 0.1 * jax.nn.relu(z - at), lambda x: x - 0.1 / 1.1 * jax.nn.relu(x - at))


def test_a_kink_is_seen_where_none_is_promised():
    for layer in (bent(0.0), bj.Invert(bent(-1.0))):
        found = failed(layer)
        assert "derivatives on both sides of special points" in found
        assert not failed(layer, smooth=False)


def test_a_kink_at_no_special_point_is_seen():
    assert "every z_i = 0.3" in failed(bent(0.3), special=(0.3,))["derivatives on both sides of special points"]
    found = failed(bent(0.3712))
    assert set(found) == {"jumps between latents"}
    place = np.array(found["jumps between latents"].partition("[")[2].rstrip("]").split(), float)
    assert np.isclose(place, 0.3712, atol=1e-3).any()  # three digits are printed


def test_a_kink_that_keeps_volumes_is_seen():
    """x_2 = z_2 + |z_1|."""

    def shear(sign):
        return lambda z: z + sign * jnp.array([0.0, 1.0]) * jnp.abs(z[0])

    @dataclasses.dataclass(frozen=True)
    class Folded(gm.Bijector):
        def _init(self, key, x, context):
            return {}

        def _forward(self, params, z, context):
            return shear(1.0)(z), 0.0

        def _inverse(self, params, x, context):
            return shear(-1.0)(x), 0.0

    assert set(failed(Folded())) == {"derivatives on both sides of special points"}
    assert not failed(Folded(), smooth=False)


def test_a_step_is_seen():
    """Two intervals exchanged: slope 1 and log-determinant 0 everywhere, its own inverse; only the values jump."""

    def exchange(z):
        return z + 0.5 * ((z > 0.37) & (z < 0.87)) - 0.5 * ((z > 0.87) & (z < 1.37))

    assert set(failed(Map(exchange, exchange))) == {"jumps between latents"}


# --- far away ------------------------------------------------------------------------------------------------------------


def test_a_naive_log_det_of_tanh_is_seen():
    @dataclasses.dataclass(frozen=True)
    class Naive(gm.Bijector):
        def _init(self, key, x, context):
            return {}

        def _forward(self, params, z, context):
            return jnp.tanh(z), jnp.log(1 - jnp.tanh(z) ** 2).sum()

        def _inverse(self, params, x, context):
            return jnp.arctanh(x), -jnp.log1p(-(x**2)).sum()

    x = np.tanh(rows(20))
    found = failed(Naive(), x, far=None)
    assert "10 times as far from the mean" in found["log_det forward, float32 = float64"]
    assert not failed(Naive(), x, far=None, latents=(-3.0, 3.0))
    assert not failed(bj.Tanh(), x, far=None)


def test_what_is_wrong_on_the_other_side_is_seen():
    """Data with a long tail upwards; wrong far below them, where none of them is, ten times as far from the mean."""
    x = np.random.default_rng(0).exponential(size=(8, 2)).astype(np.float32)
    reach = float((x.mean(0) - 10 * (x.mean(0) - x.min(0))).min())
    found = failed(Map(g=lambda x: jnp.where(x < reach - 1.0, 1.001, 1.0) * x), x)
    assert "-10 times as far" in found["forward(inverse(x)) = x, float64"]


# --- batches -------------------------------------------------------------------------------------------------------------


def centred(axis):
    @dataclasses.dataclass(frozen=True)
    class Centred(gm.Bijector):
        def _init(self, key, x, context):
            return {}

        def _forward(self, params, z, context):
            return z, 0.0

        def _inverse(self, params, x, context):
            return x - jax.lax.pmean(x, axis), 0.0

    return Centred()


def test_dependence_on_the_batch_is_a_row():
    found = failed(centred(EVENTS))
    assert found["jit = eager = vmap"].startswith("a single event raises NameError: ")
    assert "a row = the row in another batch" in found
    found = failed(centred("batch"))
    assert set(found) == {"a batch under jit and vmap"}
    assert found["a batch under jit and vmap"].startswith("raises NameError: ")


def test_what_cannot_be_batched_is_a_row():
    found = failed(Map(g=lambda x: x if x[0] > 0 else 1.0 * x))
    assert found["a batch under jit and vmap"].startswith("raises TracerBoolConversionError: ")


def test_nothing_but_nan_is_a_report():
    assert failed(Map(g=lambda x: x * jnp.nan))["forward(inverse(x)) = x, float64"] == "at x[0]"


def test_what_fails_for_an_event_is_raised():
    def g(x):
        raise RuntimeError("no inverse")

    with pytest.raises(RuntimeError, match="no inverse"):
        gm.check_bijection(Map(g=g), rows())


# --- where a map is not defined ------------------------------------------------------------------------------------------


def test_points_outside_are_left_out():
    x = points.points_of(rows(8), None, "x")
    everywhere = {"stated": (-np.inf, np.inf), "unknown": points.NOWHERE, "partly": points.NOWHERE}
    for layer, inside, outside in (
        (bj.Exp(), (0.5, 1e3), (-1.0, 0.5)),
        (bj.Invert(bj.Logit()), (0.1, 0.9), (0.0, 0.9)),
        (bj.Chain((bj.Exp(), bj.Rescale(2.0, 1.0))), (1.1, 9.0), (0.9, 9.0)),
    ):
        image = points.territory(layer, True, **everywhere)
        assert image.holds(*inside) and not image.holds(*outside), layer
    hidden = bj.Chain((bj.Sigmoid(), bj.LULinear()))  # an oblique box: nobody knows
    assert not points.territory(hidden, True, **everywhere).holds(0.4, 0.5)
    assert points.territory(bj.LULinear(), True, **everywhere).holds(-1e9, 1e9)
    far = points.far_points(x, 10.0, points.Territory(bj.Exp(), True))
    assert 0 < len(far.events) < 16 and (far.events > 0).all()


@dataclasses.dataclass(frozen=True)
class HeldForward(gm.Bijector):
    """Right values, but the forward direction teaches its parameters nothing."""

    def _init(self, key, x, context):
        return {"a": jnp.zeros(x.shape[1:], x.dtype)}

    def _forward(self, params, z, context):
        a = jax.lax.stop_gradient(params["a"])
        return z * jnp.exp(a), a.sum()

    def _inverse(self, params, x, context):
        return x * jnp.exp(-params["a"]), -params["a"].sum()


@dataclasses.dataclass(frozen=True)
class HeldContext(HeldForward):
    """Both directions shut their context out of the gradient."""

    context_shape: tuple[int, ...] = (1,)

    def _forward(self, params, z, context):
        a = params["a"] + jax.lax.stop_gradient(context)
        return z * jnp.exp(a), a.sum()

    def _inverse(self, params, x, context):
        a = params["a"] + jax.lax.stop_gradient(context)
        return x * jnp.exp(-a), -a.sum()


def test_gradients_of_both_directions_and_of_contexts():
    x = np.random.default_rng(5).standard_normal((20, 3)).astype(np.float32)
    failed = [row.name for row in gm.check_bijection(HeldForward(), x).rows if not row.passed]
    assert failed == ["gradient of forward = finite difference"]
    failed = {row.name for row in gm.check_bijection(HeldContext(), x, x[:, :1]).rows if not row.passed}
    assert failed == {f"gradient of {name} = finite difference" for name in ("forward", "inverse")}
    report = gm.check_bijection(gm.bijectors.Standardize(), 1e-4 * x)  # steps are in units of the data
    assert report.passed, report
