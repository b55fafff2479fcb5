"""Whether chains have converged, and how much their draws are worth (Vehtari et al. 2021, arXiv:1903.08008).

    tau = 1 + 2 sum_t rho_t       the integrated autocorrelation time; of AR(1), x' = a x + noise: (1 + a) / (1 - a)
    ESS = M N / tau               of M chains with N draws each
    MCSE of the mean = sd / sqrt(ESS)
    R-hat = sqrt(var+ / W),       var+ = (N - 1) / N W + B / N

W is the mean of the variances within chains, B / N the variance of their means. The correlation of all chains together,
rho_t = 1 - (W - mean_m c_{t,m}) / var+, c the autocovariance, also counts what they disagree about. The numbers are those of
ArviZ. R-hat and the ESS split every chain into halves, so that a drift is seen. R-hat and the bulk ESS replace draws by their
ranks, made normal, and thus need no moments. R-hat is the larger of that and of the folded one, which is of |x - median| and sees
scales that differ. The tail ESS is that of the 5% or of the 95% quantile, whichever is smaller.

Chains are arrays (M, N, ...), or pytrees of them, as `jax.vmap` of `run` leaves them. Everything here is in NumPy and float64. It
gives one number for each entry of a position, NaN where a draw is not finite, and where nothing ever moves.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from genmod.core.checks import check_positive
from genmod.core.series import lagged_sums

# What calls for longer chains (Vehtari et al. 2021, sec. 4).
_R_HAT_LIMIT, _ESS_PER_CHAIN = 1.01, 100
_LEAST_DRAWS = 8
_ROWS = 20


class ChainReport(NamedTuple):
    """What is known of chains, in the form of one position. Print it.

    Attributes:
      num_chains, num_draws: M and N.
      mean, std: of all draws. mcse: the Monte Carlo standard error of the mean.
      r_hat: see `r_hat`; 1 where the chains agree. bulk_ess, tail_ess: effective sample sizes.
    """

    num_chains: int
    num_draws: int
    mean: Any
    std: Any
    mcse: Any
    r_hat: Any
    bulk_ess: Any
    tail_ess: Any

    @property
    def worst_r_hat(self) -> float:
        """The largest; NaN where one is."""
        return float(max(np.max(leaf) for leaf in jax.tree.leaves(self.r_hat)))

    @property
    def worst_ess(self) -> float:
        """The smallest, of bulk and tails; NaN where one is."""
        return float(min(np.min(leaf) for leaf in jax.tree.leaves((self.bulk_ess, self.tail_ess))))

    @property
    def is_converged(self) -> bool:
        """Whether nothing speaks against it: every R-hat below 1.01, every ESS at least 100 for each chain."""
        r_hats = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(self.r_hat)])
        sizes = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves((self.bulk_ess, self.tail_ess))])
        return bool((r_hats < _R_HAT_LIMIT).all() and (sizes >= _ESS_PER_CHAIN * self.num_chains).all())

    def __str__(self):
        names, columns = [], []
        for path, leaf in jax.tree.leaves_with_path(self.mean):
            name = jax.tree_util.keystr(path)
            names += [f"{name}{list(i) if i else ''}" or "x" for i in np.ndindex(np.shape(leaf))]
        for tree in (self.mean, self.std, self.mcse, self.r_hat, self.bulk_ess, self.tail_ess):
            columns.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]))
        order = np.argsort(-np.nan_to_num(columns[3], nan=np.inf), kind="stable")[:_ROWS]
        width = max(8, *(len(names[i]) for i in order))
        lines = [f"{'':{width}} {'mean':>10} {'sd':>10} {'mcse':>10} {'r_hat':>7} {'bulk':>9} {'tail':>9}"]
        for i in order:
            mean, std, mcse, r, bulk, tail = (column[i] for column in columns)
            lines.append(f"{names[i]:{width}} {mean:10.4g} {std:10.4g} {mcse:10.2g} {r:7.3f} {bulk:9.0f} {tail:9.0f}")
        if len(names) > _ROWS:
            lines.append(f"... the {_ROWS} with the largest R-hat of {len(names):,}")
        verdict = "no problem seen" if self.is_converged else "NOT CONVERGED, or too short"
        lines.append(f"{self.num_chains} chains of {self.num_draws:,} draws: {verdict}")
        return "\n".join(lines)


def autocorrelation(chains: Any) -> Any:
    """rho_t of each chain about its own mean, in the form of the chains, (M, N, ...): lags 0 to N - 1. By FFT."""
    return jax.tree.map(lambda x: _over(np.asarray(x, np.float64), _autocorrelation), chains)


def r_hat(chains: Any) -> Any:
    """The larger of the rank-normalised split R-hat and the folded one, for each entry (Vehtari et al. 2021, sec. 4.1).

    Args:
      chains: an array (M, N, ...) of M chains with N >= 8 draws, or a pytree of them.

    Raises ValueError for chains of another form.
    """
    return _each(chains, lambda x: np.fmax(_potential_scale(_normal_ranks(_split(x))), _folded(x)))


def folded_r_hat(chains: Any) -> Any:
    """The rank-normalised split R-hat of |x - median| alone: it sees chains whose scales differ. As `r_hat`."""
    return _each(chains, _folded)


def bulk_ess(chains: Any) -> Any:
    """The effective sample size of the ranks: how well the centre of the law is known. As `r_hat`."""
    return _each(chains, lambda x: _size(_normal_ranks(_split(x))))


def tail_ess(chains: Any) -> Any:
    """The smaller effective sample size of the 5% and the 95% quantile. As `r_hat`."""
    return _each(chains, _tail_size)


def mean_ess(chains: Any) -> Any:
    """The effective sample size of the mean, of the draws themselves: it needs a finite variance. As `r_hat`."""
    return _each(chains, lambda x: _size(_split(x)))


def monte_carlo_standard_error(chains: Any) -> Any:
    """Of the mean over all draws, sd / sqrt(mean_ess). As `r_hat`."""
    return _each(chains, _standard_error)


def geyer_autocorrelation_time(chains: Any) -> Any:
    """tau by the initial monotone sequence (Geyer 1992, 10.1214/ss/1177011137), for reversible chains. As `r_hat`.

    Sums of neighbours, rho_{2k} + rho_{2k+1}, fall and are positive: the sum ends where they are not, and no sum exceeds one
    before it. The chains are not split, and not replaced by ranks.
    """
    return _each(chains, lambda x: _geyer(_combined(x), x.size))


def sokal_autocorrelation_time(chains: Any, window: float = 5.0) -> Any:
    """tau by the window of Sokal (1997, 10.1007/978-1-4899-0319-8_6): the sum ends at the first t >= window tau_t. As `r_hat`.

    For chains that do not alternate; those shorter than some 50 tau give too little. Raises ValueError also for a window that is
    not positive.
    """
    check_positive(window=window)

    def one(x):
        times = 2.0 * np.cumsum(_combined(x)) - 1.0
        enough = np.arange(len(times)) >= window * times
        return times[int(np.argmax(enough))] if enough.any() else times[-1]

    return _each(chains, one)


def chain_report(chains: Any) -> ChainReport:
    """All of these, for each entry of a position.

        trace = jax.vmap(lambda key, x: run(key, kernel, kernel.init(x), num_steps=1_000))(keys, positions)
        print(chain_report(trace.positions))

    Args, errors: as in `r_hat`.
    """
    num_chains, num_draws = _checked(chains)
    floats = jax.tree.map(lambda x: np.asarray(x, np.float64), chains)
    mean = jax.tree.map(lambda x: x.mean((0, 1)), floats)
    std = jax.tree.map(lambda x: x.std((0, 1), ddof=1), floats)
    error = monte_carlo_standard_error(chains)
    return ChainReport(num_chains, num_draws, mean, std, error, r_hat(chains), bulk_ess(chains), tail_ess(chains))


def _checked(chains: Any) -> tuple[int, int]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(chains)]
    shapes = sorted({leaf.shape[:2] for leaf in leaves})
    if len(shapes) != 1 or len(shapes[0]) < 2 or not shapes[0][0] or shapes[0][1] < _LEAST_DRAWS:
        raise ValueError(
            f"chains must hold arrays (num_chains, num_draws, ...) of at least {_LEAST_DRAWS} draws, the same in all, got axes "
            f"{shapes}; give a single chain an axis, x[None]"
        )
    return shapes[0][0], shapes[0][1]


def _each(chains: Any, statistic: Callable[[np.ndarray], Any]) -> Any:
    """The statistic of each entry, in the form of one position; NaN where a draw is not finite, or none ever moves."""
    _checked(chains)

    def entry(x):
        return statistic(x) if np.isfinite(x).all() and np.ptp(x) > 0 else np.nan

    def leaf(x):
        x = np.asarray(x, np.float64)
        flat = x.reshape(*x.shape[:2], -1)
        return np.array([entry(flat[..., i]) for i in range(flat.shape[-1])], np.float64).reshape(x.shape[2:])

    return jax.tree.map(leaf, chains)


def _over(x: np.ndarray, fn: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.moveaxis(fn(np.moveaxis(x, 1, -1)), -1, 1)


def _autocovariance(x: np.ndarray) -> np.ndarray:
    """Along the last axis, about the mean, divided by N at every lag."""
    return lagged_sums(x - x.mean(-1, keepdims=True)) / x.shape[-1]


def _autocorrelation(x: np.ndarray) -> np.ndarray:
    covariance = _autocovariance(x)
    variance = covariance[..., :1]
    return np.divide(covariance, variance, out=np.full_like(covariance, np.nan), where=variance > 0)


def _variances(x: np.ndarray) -> tuple[float, float]:
    """(W, var+) of chains (M, N)."""
    within, num = float(x.var(1, ddof=1).mean()), x.shape[1]
    between = float(x.mean(1).var(ddof=1)) if x.shape[0] > 1 else 0.0
    return within, (num - 1) / num * within + between


def _combined(x: np.ndarray) -> np.ndarray:
    """rho_t of all chains (M, N) together, lags 0 to N - 1."""
    within, total = _variances(x)
    rho = 1 - (within - _autocovariance(x).mean(0)) / total
    rho[0] = 1.0
    return rho


def _geyer(rho: np.ndarray, num: int) -> float:
    pairs = rho[: len(rho) // 2 * 2].reshape(-1, 2)
    sums = pairs.sum(1)
    end = int(np.argmax(sums <= 0)) if (sums <= 0).any() else len(sums)
    last = max(pairs[end, 0], 0.0) if end < len(sums) else 0.0  # of an alternating chain the odd lag is missing
    time = 2 * np.minimum.accumulate(sums[:end]).sum() + last - 1
    return max(float(time), 1 / np.log10(num))  # as Stan: no more than S log10 S


def _split(x: np.ndarray) -> np.ndarray:
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]])


def _normal_ranks(x: np.ndarray) -> np.ndarray:
    ranks = np.asarray(rankdata(x)).reshape(x.shape)
    return np.asarray(ndtri((ranks - 0.375) / (x.size + 0.25)))


def _potential_scale(x: np.ndarray) -> float:
    within, total = _variances(x)
    return np.sqrt(total / within) if within > 0 else np.inf if total > 0 else np.nan


def _folded(x: np.ndarray) -> float:
    halves = _split(x)
    return _potential_scale(_normal_ranks(np.abs(halves - np.median(halves))))


def _size(x: np.ndarray) -> float:
    return x.size / _geyer(_combined(x), x.size) if np.ptp(x) > 0 else np.nan


def _tail_size(x: np.ndarray) -> float:
    # Of few values, all may lie below one of the quantiles.
    sizes = [_size(_split((x <= np.quantile(x, q)).astype(np.float64))) for q in (0.05, 0.95)]
    return float(np.nanmin(sizes)) if np.isfinite(sizes).any() else np.nan


def _standard_error(x: np.ndarray) -> float:
    return float(x.std(ddof=1) / np.sqrt(_size(_split(x))))
