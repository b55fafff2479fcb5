"""Truncated categorical laws, by enumeration in NumPy; ties, all levels kept, bad numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod.densities import keep_nucleus, keep_top_k, tempered


def kept(logits):
    return np.isfinite(np.asarray(logits))


def by_hand(p, k=None, top_p=None):
    """Which levels stay, one row after the other: the most likely first, of equal ones the lower number."""
    found = np.zeros(p.shape, bool)
    for row, keep in zip(p, found, strict=True):
        order = sorted(range(len(row)), key=lambda v: (-row[v], v))
        total = 0.0
        for rank, v in enumerate(order):
            if (k is not None and rank >= k) or (top_p is not None and top_p < 1 and rank > 0 and total >= top_p):
                break
            keep[v] = True
            total += row[v]
    return found


P = np.random.default_rng(0).dirichlet(np.ones(6), 50)
LOGITS = jnp.asarray(np.log(P) + 3.0, jnp.float32)  # not normalised


@pytest.mark.parametrize("k", [1, 2, 5, 6, 9])
def test_top_k(k):
    cut = keep_top_k(LOGITS, k)
    np.testing.assert_array_equal(kept(cut), by_hand(P, k=k))
    np.testing.assert_array_equal(np.asarray(cut)[kept(cut)], np.asarray(LOGITS)[kept(cut)])


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.7, 0.95, 1.0])
def test_nucleus(p):
    cut = keep_nucleus(LOGITS, p)
    np.testing.assert_array_equal(kept(cut), by_hand(P, top_p=p))
    mass = (P * kept(cut)).sum(1)
    assert (mass >= p - 1e-6).all()
    # Without its least likely level the set would not reach p.
    least = np.where(kept(cut), P, np.inf).min(1)
    assert p == 1 or ((mass - least < p) | (kept(cut).sum(1) == 1)).all()


def test_ties_go_by_number():
    uniform = jnp.zeros((4,))
    np.testing.assert_array_equal(kept(keep_top_k(uniform, 2)), [True, True, False, False])
    np.testing.assert_array_equal(kept(keep_nucleus(uniform, 0.5)), [True, True, False, False])
    np.testing.assert_array_equal(kept(keep_nucleus(uniform, 0.51)), [True, True, True, False])
    tied = jnp.log(jnp.array([0.1, 0.3, 0.3, 0.3]))
    np.testing.assert_array_equal(kept(keep_top_k(tied, 2)), [False, True, True, False])


def test_p_of_one_keeps_what_rounding_would_cut():
    logits = jnp.array([0.0, -40.0, -80.0, -90.0])
    assert kept(keep_nucleus(logits, 1.0)).all()
    assert kept(keep_nucleus(logits, 0.999999)).sum() == 1
    assert not kept(keep_nucleus(jnp.array([0.0, -jnp.inf]), 1.0))[1]  # what was impossible stays so


def test_tempered_by_enumeration():
    """Temperature, then top-k, then the nucleus of what is left."""
    p = P**2 / (P**2).sum(1, keepdims=True)
    p = p * by_hand(p, k=4)
    p /= p.sum(1, keepdims=True)
    p = p * by_hand(p, top_p=0.8)
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(tempered(LOGITS, 0.5, 4, 0.8)), p, atol=1e-6)
    np.testing.assert_allclose(jax.jit(tempered)(LOGITS, 0.5, 4, 0.8), tempered(LOGITS, 0.5, 4, 0.8), rtol=1e-6)
    np.testing.assert_array_equal(tempered(LOGITS, 1.0), LOGITS)


@pytest.mark.parametrize("temperature", [1e-38, 1e-30, 1e-3])
def test_tempered_to_the_most_likely(temperature):
    """However low the temperature is, equally likely levels share what there is."""
    log_p = jnp.log(jnp.array([[0.2, 0.4, 0.0, 0.4], [0.1, 0.6, 0.2, 0.1]]))
    wanted = [[0.0, 0.5, 0.0, 0.5], [0.0, 1.0, 0.0, 0.0]]
    np.testing.assert_array_equal(jax.nn.softmax(tempered(log_p, temperature)), wanted)
    np.testing.assert_array_equal(jax.nn.softmax(jax.jit(tempered)(log_p, temperature)), wanted)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: keep_top_k(LOGITS, 0), "top_k must be an integer >= 1, got 0"),
        (lambda: keep_top_k(LOGITS, 2.0), "top_k must be an integer >= 1, got 2.0"),
        (lambda: keep_nucleus(LOGITS, 0.0), r"top_p must be in \(0, 1\], got 0.0"),
        (lambda: keep_nucleus(LOGITS, 1.5), r"top_p must be in \(0, 1\], got 1.5"),
        (lambda: tempered(LOGITS, -1.0), "temperature must be > 0"),
    ],
)
def test_bad_numbers(call, match):
    with pytest.raises(ValueError, match=match):
        call()
