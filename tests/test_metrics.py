"""The contract of all metrics of two samples, over the registry: numbers, symmetries, equal samples, errors, `gm.evaluate`."""

import functools
import math

import jax
import numpy as np
import pytest
from registry import METRICS

import genmod as gm
from genmod.core.statistics import Measured

by_name = pytest.mark.parametrize("name", METRICS)
X = np.random.default_rng(0).normal(size=(60, 2))
Y = np.random.default_rng(1).normal([0.7, -0.3], [1.0, 1.5], (60, 2))


def parts(found):
    """(value, error) of what a metric returns, the error of a plain number 0."""
    assert isinstance(found, float | Measured)
    return found if isinstance(found, Measured) else (found, 0.0)


@functools.cache
def of_both(name):
    return parts(METRICS[name].fn(X, Y))


@by_name
def test_a_number_and_its_error(name):
    value, sem = of_both(name)
    assert type(value) is float and type(sem) is float
    assert math.isfinite(value) and math.isfinite(sem) and sem >= 0
    again = parts(METRICS[name].fn(X.astype(np.float32).astype(np.float64).reshape(60, 2, 1), jax.numpy.asarray(Y)[:, :, None]))
    assert again == pytest.approx((value, sem), rel=1e-3, abs=1e-5)  # any event shape, NumPy or JAX


@by_name
def test_symmetry_and_order(name):
    case, value = METRICS[name], of_both(name)
    if case.symmetric:
        assert parts(case.fn(Y, X)) == pytest.approx(value, rel=1e-4, abs=1e-6)
    if case.permutable:
        order = np.random.default_rng(2).permutation(60)
        assert parts(case.fn(X[order], Y[order[::-1]])) == pytest.approx(value, rel=1e-4, abs=1e-6)


@by_name
def test_equal_and_unequal_samples(name):
    case = METRICS[name]
    value = parts(case.fn(X, X))[0]
    assert abs(value - case.equal) <= case.within
    far = parts(case.fn(X, Y + 4.0))[0]
    assert abs(far - case.equal) > case.within  # which it tells apart from a distance


@by_name
def test_errors_name_the_argument(name):
    fn = METRICS[name].fn
    with pytest.raises(ValueError, match=r"(x|samples) and (y|data) must (have events of one shape|be samples of one shape)"):
        fn(X, Y[:, :1])
    bad = X.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match="^(x|samples|x and y) must be finite"):
        fn(bad, Y)
    with pytest.raises(ValueError, match="(y|data).*must (hold|be)"):
        fn(X, Y[:0])
    if name not in ("wasserstein", "sliced_wasserstein", "sinkhorn_divergence"):
        with pytest.raises(ValueError, match="^(x|samples) must have at least [2-9] rows, got 1"):
            fn(X[:1], Y)


def test_all_in_one_evaluation(key):
    model = gm.flows.affine((2,))
    params = model.init(key, X.astype(np.float32))
    metrics = gm.metrics
    fns = (
        metrics.wasserstein,
        metrics.squared_mmd,
        gm.call(metrics.kid_of_subsets, subset_size=20, num_subsets=3),
        functools.partial(metrics.precision_recall, num_neighbors=2),
    )
    found = gm.evaluate(model, params, X.astype(np.float32), key=key, metrics=fns)
    measured = {"squared_mmd", "kid_of_subsets", "precision", "recall"}
    assert {"wasserstein", *measured, *(f"{name}_sem" for name in measured)} <= set(found)
    assert "wasserstein_sem" not in found and all(type(value) in (float, int) for value in found.values())
    with pytest.raises(ValueError, match="gives 'squared_mmd', which is reported already"):
        gm.evaluate(model, params, X.astype(np.float32), key=key, metrics=(metrics.squared_mmd,) * 2)


def test_what_is_measured_prints_itself():
    assert str(Measured(0.125, 0.01)) == "0.1250 +- 0.0100"
