"""Diagnostics of chains whose autocorrelation is known, and of chains that are known not to have converged."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod.samplers import (
    autocorrelation,
    bulk_ess,
    chain_report,
    folded_r_hat,
    geyer_autocorrelation_time,
    mean_ess,
    monte_carlo_standard_error,
    r_hat,
    sokal_autocorrelation_time,
    tail_ess,
)

NUM_SEM = 4.5


def ar1(rho, num_chains, num_draws, seed=0, size=()):
    """x' = rho x + noise at rest, of variance one: tau = (1 + rho) / (1 - rho)."""
    rng = np.random.default_rng(seed)
    x = [rng.standard_normal((num_chains, *size))]
    for _ in range(num_draws - 1):
        x.append(rho * x[-1] + np.sqrt(1 - rho**2) * rng.standard_normal((num_chains, *size)))
    return np.stack(x, 1)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.5])
def test_autocorrelation_times(rho):
    """Over many repetitions, the mean of each estimate of tau is the truth but for a bias of a few percent."""
    truth, chains = (1 + rho) / (1 - rho), ar1(rho, 4, 4_000, size=(30,))
    times = [geyer_autocorrelation_time(chains), 16_000 / mean_ess(chains)]
    for found in [*times, sokal_autocorrelation_time(chains)] if rho >= 0 else times:
        assert found.shape == (30,)
        np.testing.assert_allclose(found.mean(), truth, rtol=0.05)
        assert (np.abs(found / truth - 1) < 0.35).all()
    lags = autocorrelation(chains)
    assert lags.shape == chains.shape
    np.testing.assert_allclose(lags.mean((0, 2))[:4], rho ** np.arange(4), atol=0.02)


def test_autocorrelation_by_fft_is_the_sum():
    x = ar1(0.6, 2, 37)
    found = autocorrelation({"x": x})["x"]
    for i in (0, 1):
        y = x[i] - x[i].mean()
        direct = np.array([np.sum(y[t:] * y[: 37 - t]) for t in range(37)]) / np.sum(y**2)
        np.testing.assert_allclose(found[i], direct, atol=1e-12)


def test_standard_errors_cover():
    """(mean - truth) / MCSE of 200 sets of correlated chains has variance one."""
    chains = ar1(0.8, 4, 1_000, size=(200,))
    z = chains.mean((0, 1)) / monte_carlo_standard_error(chains)
    np.testing.assert_allclose(z.std(), 1.0, atol=NUM_SEM / np.sqrt(2 * 200))
    # The tails of a chain forget at about its own pace: fewer draws than there are, and not many fewer than for the mean.
    ratio = tail_ess(chains) / mean_ess(chains)
    assert (ratio > 0.5).all() and (tail_ess(chains) < 4_000).all()


def test_independent_draws_have_converged():
    """Of any law, one without moments too: ranks do not see scales."""
    chains = ar1(0.0, 4, 1_000, size=(50,))
    found = r_hat(chains)
    assert (found > 0.998).all() and (found < 1.01).all()
    np.testing.assert_allclose(bulk_ess(chains).mean() / 4_000, 1.0, atol=0.05)
    heavy = np.sign(chains) * np.exp(np.abs(3 * chains))
    np.testing.assert_allclose(bulk_ess(heavy), bulk_ess(chains))
    report = chain_report(chains)
    assert report.is_converged and "no problem seen" in str(report)


def test_chains_that_differ_are_flagged():
    """In location, in scale, by a drift of all, and by never moving."""
    same = ar1(0.3, 4, 1_000)
    assert r_hat(same) < 1.01 and folded_r_hat(same) < 1.01
    shifted = same + np.array([[0.0], [0.0], [0.0], [1.0]])
    assert r_hat(shifted) > 1.05 and bulk_ess(shifted) < 100
    assert not chain_report(shifted).is_converged and "NOT CONVERGED" in str(chain_report(shifted))
    scaled = same * np.array([[1.0], [1.0], [1.0], [3.0]])
    assert r_hat(scaled) == folded_r_hat(scaled) > 1.05
    assert r_hat(same + np.linspace(0, 2, 1_000)[None]) > 1.05  # each chain is split
    stuck = np.broadcast_to(np.arange(4.0)[:, None], (4, 100))
    assert r_hat(stuck) > 1e6 and not chain_report(stuck).is_converged
    np.testing.assert_allclose(bulk_ess(stuck), 4.0, rtol=0.1)  # as many as there are chains


def test_what_cannot_be_said():
    chains = {"a": ar1(0.0, 2, 100), "b": np.ones((2, 100, 3)), "c": jnp.arange(200).reshape(2, 100) % 2}
    chains["a"][0, 5] = np.nan
    report = chain_report(chains)
    assert np.isnan(report.r_hat["a"]) and np.isnan(report.bulk_ess["b"]).all() and report.mean["b"].tolist() == [1.0] * 3
    assert np.isfinite(report.tail_ess["c"]) and not report.is_converged and np.isnan(report.worst_ess)
    assert "['b'][2]" in str(report) and "2 chains of 100 draws" in str(report)
    for bad in (np.zeros(100), np.zeros((4, 7)), {"a": np.zeros((4, 100)), "b": np.zeros((3, 100))}):
        with pytest.raises(ValueError, match=r"chains must hold arrays \(num_chains, num_draws, ...\) of at least 8 draws"):
            r_hat(bad)
    with pytest.raises(ValueError, match="window must be > 0"):
        sokal_autocorrelation_time(np.zeros((2, 10)), 0.0)


PEERS = {
    "blackjax.diagnostics": {"rhat": r_hat, "ess_bulk": bulk_ess, "ess_tail": tail_ess},
    "arviz": {"rhat": r_hat},
}


@pytest.mark.parametrize("rho", [0.0, 0.9, -0.6])
@pytest.mark.parametrize("name", PEERS)
def test_agreement_with_peers(name, rho):
    """In float64; of an odd number of draws BlackJAX leaves out the last, ArviZ and we the middle one."""
    peer = pytest.importorskip(name, reason=f"{name.split('.')[0]} is optional")
    for num in (500, 401) if name == "arviz" else (500,):
        chains = ar1(rho, 4, num, seed=1) + np.array([[0.0], [0.0], [0.2], [0.0]])
        with jax.enable_x64(True):
            for function, ours in PEERS[name].items():
                theirs = float(getattr(importlib.import_module(peer.__name__), function)(chains))
                np.testing.assert_allclose(ours(chains), theirs, rtol=1e-6, err_msg=function)
            if name == "arviz":
                for kind, ours in {"bulk": bulk_ess, "tail": tail_ess, "mean": mean_ess}.items():
                    np.testing.assert_allclose(ours(chains), float(peer.ess(chains, method=kind)), rtol=1e-6)
