"""Units of their own for columns that float32 does not resolve."""

import json
import math
import pickle
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm

Units = gm.data.Units
DAY, SPREAD = 2_459_000.5, 0.02


def dates(num, seed=0):
    return DAY + SPREAD * np.random.default_rng(seed).standard_normal((num, 1))


def test_a_flow_in_units_of_its_own_reaches_the_entropy(key):
    """Julian dates: float32 has a number every quarter of a day there, and the spread is half an hour."""
    x, test = dates(4_000), dates(20_000, seed=1)
    units = Units.of(x)
    flow = gm.flows.affine((1,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = gm.fit(flow, units.to(x), key=key, num_steps=1, progress=False)
    nll = gm.evaluate(flow, fit.params, units.to(test))["nll_nats"] + units.log_scale
    entropy = 0.5 * math.log(2 * math.pi * math.e) + math.log(SPREAD)
    # The mean of 20,000 squares has a standard error of sqrt(1 / 2n) nats; two fitted moments cost 1 / n of 4,000.
    assert abs(nll - entropy) < 4 * math.sqrt(0.5 / len(test)) + 4 / len(x)
    drawn = units.back(flow.sample(fit.params, key, (4_000,)))
    assert drawn.dtype == np.float64 and len(np.unique(drawn)) > 3_900
    assert abs(drawn.mean() - DAY) < 8 * SPREAD / math.sqrt(4_000) and abs(drawn.std() / SPREAD - 1) < 8 / math.sqrt(8_000)
    assert len(np.unique(x.astype(np.float32))) < 5  # what it is for


@pytest.mark.parametrize(("shift", "scale"), [(DAY, SPREAD), (0.0, 1e-300), (0.0, 1e300), (-1e9, 1e-3)])
def test_statistics_of_any_size(shift, scale):
    x = shift + scale * np.random.default_rng(0).standard_normal((500, 2, 3))
    units = Units.of(x)
    assert units.event_shape == units.scale.shape == (2, 3) and units.shift.dtype == units.scale.dtype == np.float64
    z = units.to(x)
    assert z.dtype == np.float32
    # float32 of z is half an eps of its size off; x and its mean have their own eps.
    eps, own = np.finfo(np.float32).eps, np.finfo(np.float64).eps
    np.testing.assert_allclose(z.mean(0), 0.0, atol=4 * eps + own * abs(shift) / scale)
    np.testing.assert_allclose(z.std(0), 1.0, rtol=8 * eps)
    np.testing.assert_allclose(units.back(z), x, rtol=4 * own, atol=float(eps * np.abs(z).max() * units.scale.max()))
    np.testing.assert_allclose(units.log_scale, np.log(units.scale).sum(), rtol=1e-14)
    assert units.to(x[0]).shape == (2, 3) and units.back(jnp.asarray(z[None, :2])).shape == (1, 2, 2, 3)


def test_a_change_of_units_moves_the_density_by_its_log_scale():
    x = np.random.default_rng(0).standard_normal((50, 2)) * [3.0, 0.1] + [5.0, -2.0]
    units, normal = Units.of(x), gm.densities.Normal((2,))
    wide = np.asarray((x - units.shift) / units.scale)
    wanted = -0.5 * (wide**2).sum(1) - math.log(2 * math.pi) - np.log(units.scale).sum()
    np.testing.assert_allclose(normal.log_prob({}, units.to(x)) - units.log_scale, wanted, rtol=1e-5)


def test_float64_where_jax_has_it(x64):
    x = dates(100)
    z = Units.of(x).to(x)
    assert z.dtype == np.float64
    np.testing.assert_allclose(Units.of(x).back(z), x, rtol=1e-15)


def test_they_go_through_json_and_tables():
    pandas = pytest.importorskip("pandas")
    x = dates(100)
    units = Units.of(pandas.DataFrame({"jd": x[:, 0]}))
    np.testing.assert_array_equal(units.shift, Units.of(x).shift)
    read = Units.from_dict(json.loads(json.dumps(units.to_dict())))
    np.testing.assert_array_equal(read.to(x), units.to(x))
    assert read.log_scale == units.log_scale and gm.describe(read) == gm.describe(units)
    with pytest.raises(ValueError, match="read-only"):
        units.shift[0] = 0.0
    with pytest.raises(ValueError, match="x is constant in column 'b', which has no scale; drop it"):
        Units.of(pandas.DataFrame({"jd": x[:, 0], "b": 1.0}))


def test_the_warning_names_them(key):
    x = dates(24)
    for call in (lambda: gm.data.table(x), lambda: gm.fit(gm.flows.affine((1,)), x, key=key, num_steps=1, progress=False)):
        with pytest.warns(UserWarning, match=r"column 0 of .* resolves only coarsely; .*units = gm\.data\.Units\.of\(x\)"):
            call()


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.ones((1, 2)), ValueError, r"x must have shape \(n,\) \+ event shape with n >= 2 rows, got \(1, 2\)"),
        (1.0, ValueError, r"n >= 2 rows, got \(\)"),
        (np.array([[1.0, 2.0], [3.0, 2.0]]), ValueError, "x is constant in column 1, which has no scale"),
        (np.full((3, 2, 2), 0.1), ValueError, r"x is constant in entry \(0, 0\)"),
        (
            np.float32(0.1) * np.arange(1, 65, dtype=np.float32) / np.arange(1, 65, dtype=np.float32),
            ValueError,
            "x is constant in",
        ),
        (np.array([[1.0], [np.nan]]), ValueError, r"x must be finite, got 1 values that are not, the first \(nan\) in row 1"),
        (np.array([[-1.7e308], [1.7e308]]), ValueError, "x spans more than float64 holds in column 0"),
        (np.array([["a", "b"]] * 3), TypeError, "x"),
        (["a"], TypeError, "x must be an array of numbers"),
    ],
)
def test_what_has_no_units_is_refused(x, error, match):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=match):
            Units.of(x)


def test_what_does_not_fit_is_refused():
    units = Units.of(np.random.default_rng(0).standard_normal((5, 2)))
    for name, move in (("x", units.to), ("z", units.back)):
        for wrong in (np.ones(()), np.ones((4, 3)), np.ones(1)):
            with pytest.raises(ValueError, match=rf"{name} must have shape \(\.\.\.,\) \+ \(2,\), got"):
                move(wrong)
    np.testing.assert_array_equal(units.to(np.ones((3, 2), int)), units.to(np.ones((3, 2))))
    with pytest.raises(ValueError, match=r"one shape, that of an event, got \(2,\) and \(3,\)"):
        Units(np.zeros(2), np.ones(3))
    for shift, scale in ((np.nan, 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, np.inf)):
        with pytest.raises(ValueError, match="shift must be finite, scale finite and > 0"):
            Units(shift, scale)


def test_integers_columns_and_equality():
    """Seconds since an epoch are integers, as tables have them; a table of other columns is refused; copies are equal."""
    seconds = 1_700_000_000 + np.arange(5_000, dtype=np.int64)[:, None] * 7
    units = Units.of(seconds)
    np.testing.assert_allclose(units.back(units.to(seconds)) - seconds, 0.0, atol=1e-2)  # of a range of 35,000
    assert Units.from_dict(json.loads(json.dumps(units.to_dict()))) == units == pickle.loads(pickle.dumps(units))
    assert hash(units) == hash(Units.of(seconds)) and units != Units.of(seconds + 1)
    pandas = pytest.importorskip("pandas", reason="pandas is not installed; genmod does not need it")
    table = pandas.DataFrame({"t": [1.0, 2.0, 4.0], "b": [0.0, 1.0, 5.0]})
    units = Units.of(table)
    np.testing.assert_allclose(units.to(table).mean(0), 0, atol=1e-6)
    assert Units.from_dict(units.to_dict()) == units
    with pytest.raises(ValueError, match=r"x must have the columns 't', 'b' in this order, got 'b', 't'"):
        units.to(table[["b", "t"]])
