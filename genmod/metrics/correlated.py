"""Standard errors of means, and of functions of several means, from draws that follow each other in chains.

    m = gm.metrics.magnetization(fields)                                    # (n,)
    gamma_method(m**2)                                                      # of a mean
    gamma_method((m**2, m**4), gm.metrics.binder_cumulant)                  # of a function of means
    jackknife((m**2, m**4), gm.metrics.binder_cumulant, block_size=100)
    binning_errors(m**2).sem                                                # against the size of the blocks

A series is an array (n,) + any axes, its mean an array of these axes, and F a function of such means. Of M chains of N draws, the
n = M N rows are those of the first chain, then those of the second: `x.reshape(-1, *x.shape[2:])` of x, (M, N, ...). With weights
w, (n,), means are sum w v / sum w: reweighting. Errors are those of the linearised F, of the series of mean zero

    u_i = w_i / mean(w) sum_a dF/dm_a (v_{i,a} - m_a)

(the jackknife, which needs no derivative, up to 1 / n). By the Gamma method (Wolff 2004, hep-lat/0306017)

    Gamma(t) = mean u_i u_{i+t},    C(W) = Gamma(0) + 2 sum_{t=1..W} Gamma(t),    tau_int = C / (2 Gamma(0)),    sem^2 = C / n

and tau_int of independent draws is 1/2: it is HALF of the tau of `genmod.samplers`, so that sem^2 = 2 tau_int Var / n. For
AR(1), x' = a x + noise, it is (1 + a) / (2 (1 - a)). None of this sees a slow mode that the whole series is too short for:
be wary of less than about 100 tau_int. Everything is in NumPy and float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from genmod.core.checks import check, check_count, check_function, check_positive, check_row_weight
from genmod.core.series import lagged_sums

_LEAST_DRAWS = 8  # of a chain, for the Gamma method
_LEAST_BLOCKS = 16  # of the sizes that `binning_errors` chooses: the error is then known to a fifth

Series = ArrayLike | tuple[ArrayLike, ...]


class GammaEstimate(NamedTuple):
    """What the Gamma method finds: floats, or arrays of the shape of F.

    Errors are NaN where nothing moves, where F or its derivative is NaN, and where the series is too short for a window.

    Attributes:
      value: F of the means. sem: its standard error. sem_error: the standard error of that.
      tau_int, tau_int_sem: the integrated autocorrelation time, 1/2 for independent draws, and its standard error.
      window: W, the lag at which the sum ends.
    """

    value: Any
    sem: Any
    sem_error: Any
    tau_int: Any
    tau_int_sem: Any
    window: Any

    def __str__(self):
        if np.ndim(self.value):
            return repr(self)
        return f"{self.value:.4g} +- {self.sem:.2g}, tau_int {self.tau_int:.3g} +- {self.tau_int_sem:.2g}"


class JackknifeEstimate(NamedTuple):
    """What the jackknife finds: F of the means, its standard error, and its bias; value - bias has a bias of order 1 / n^2."""

    value: Any
    sem: Any
    bias: Any


class BinningErrors(NamedTuple):
    """The standard error against the size of the blocks; it rises to a plateau where blocks are many autocorrelation times long.

    Attributes:
      block_sizes, num_blocks: integers, (k,).
      sem: of F, (k,) + its shape, as if blocks were independent. sem_error: the standard error of that, for blocks that are.
    """

    block_sizes: np.ndarray
    num_blocks: np.ndarray
    sem: np.ndarray
    sem_error: np.ndarray


def gamma_method(
    values: Series,
    function: Callable[..., ArrayLike] | None = None,
    *,
    weight: ArrayLike | None = None,
    num_chains: int = 1,
    stretch: float = 1.5,
) -> GammaEstimate:
    """F of the means, and its error by the autocorrelation of the series, which is summed up to a window that it finds itself.

    The window is the first W with exp(-W / tau) < tau / sqrt(W n), tau = stretch / log((2 tau_int(W) + 1) / (2 tau_int(W) - 1)):
    there the systematic error of the cut is about the statistical error of the sum (Wolff 2004, hep-lat/0306017, sec. 3.3). The
    bias of Gamma, about -C / n, is corrected (eq. 49); the error of tau_int is eq. 42. Derivatives are differences over one
    standard error to both sides.

    Args:
      values: a series, (n,) + any axes, or a tuple of several. Of at least eight draws a chain.
      function: F, which takes the mean of each and returns a number or an array; None: the mean of a single series.
      weight: (n,), of the draws; None: equal. num_chains: M, one after the other along n.
      stretch: S, the decay time over tau_int that is expected of the slowest mode.

    Raises ValueError or TypeError for arguments of another form, and values that are not finite.
    """
    check_positive(stretch=stretch)
    data = _checked(values, function, weight, num_chains)
    draws = len(data.moves) // num_chains
    check(draws >= _LEAST_DRAWS, f"values must hold at least {_LEAST_DRAWS} draws a chain, got {draws}; jackknife takes fewer")
    value, moves = _linearized(data)
    found = [_summed(u.reshape(num_chains, draws), stretch) for u in moves.T]
    columns = np.array(found).reshape(-1, 5).T
    return GammaEstimate(_shaped(value, data.shape), *(_shaped(column, data.shape) for column in columns))


def jackknife(
    values: Series,
    function: Callable[..., ArrayLike] | None = None,
    *,
    block_size: int,
    weight: ArrayLike | None = None,
    num_chains: int = 1,
) -> JackknifeEstimate:
    """F of the means, its error and its bias, by leaving out one block at a time.

    Where `block_size` does not divide the N draws of a chain, it has N // block_size blocks, as equal as they can be, which count
    by their sizes (Busing et al. 1999, 10.1023/A:1008800423698).

    Args:
      block_size: draws of a block: many times tau_int; 1 for independent draws.
      Others as in `gamma_method`.

    Raises ValueError or TypeError for arguments of another form, and for fewer than two blocks.
    """
    data = _checked(values, function, weight, num_chains)
    starts, sizes = _blocks(len(data.moves), num_chains, block_size)
    mass = np.add.reduceat(data.weight, starts)
    left = mass.sum() - mass
    check(bool((np.delete(mass, mass.argmax()) > 0).any()), "weight must not lie in a single block: take smaller ones")
    means = data.means - np.add.reduceat(data.moves, starts) / left[:, None]  # `moves` sum to 0
    value = data.function(data.means)
    others = np.stack([data.function(mean) for mean in means])
    ratio = (sizes.sum() / sizes)[:, None]
    corrected = len(sizes) * value - ((1 - 1 / ratio) * others).sum(0)
    pseudo = ratio * value - (ratio - 1) * others
    sem = np.sqrt(((pseudo - corrected) ** 2 / (ratio - 1)).mean(0))
    return JackknifeEstimate(*(_shaped(x, data.shape) for x in (value, sem, value - corrected)))


def binning_errors(
    values: Series,
    function: Callable[..., ArrayLike] | None = None,
    *,
    block_sizes: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    num_chains: int = 1,
) -> BinningErrors:
    """The standard error of F of the means, by the spread of the means of blocks, for several sizes of these.

    Args:
      block_sizes: integers, (k,); None: powers of two that leave at least 16 blocks (at least 1).
      Others as in `gamma_method`; blocks as in `jackknife`.

    Raises ValueError or TypeError for arguments of another form, and for a size that leaves fewer than two blocks.
    """
    data = _checked(values, function, weight, num_chains)
    num = len(data.moves)
    if block_sizes is None:
        most = min(num // _LEAST_BLOCKS, num // num_chains)
        block_sizes = 2 ** np.arange(max(1, most.bit_length()))
    sizes = np.asarray(block_sizes)
    wanted = f"block_sizes must be integers (k,), got {sizes.dtype} of shape {sizes.shape}"
    check(sizes.ndim == 1 and sizes.size > 0 and sizes.dtype.kind in "iu", wanted)
    _, moves = _linearized(data)
    counts, sems = [], []
    for size in sizes.tolist():
        starts, _ = _blocks(num, num_chains, size)
        sums = np.add.reduceat(moves, starts)
        counts.append(len(starts))
        sems.append(np.sqrt((sums**2).sum(0) * len(starts) / (len(starts) - 1)) / num)
    sem, count = np.stack(sems), np.array(counts)
    sem_error = sem / np.sqrt(2.0 * (count - 1))[:, None]
    return BinningErrors(sizes, count, *(x.reshape(len(sizes), *data.shape) for x in (sem, sem_error)))


class _Data(NamedTuple):
    """Series side by side: their means, (k,); w (v - mean) of every draw, (n, k); w, of mean one; F of flat means, flat; the
    shape of F; whether it is the mean itself."""

    means: np.ndarray
    moves: np.ndarray
    weight: np.ndarray
    function: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    is_linear: bool


def _checked(values: Series, function: Callable | None, weight: ArrayLike | None, num_chains: int) -> _Data:
    check_count(num_chains=num_chains)
    arrays = [np.asarray(v, np.float64) for v in (values if isinstance(values, tuple) else (values,))]
    shapes = [a.shape for a in arrays]
    if not arrays or any(len(s) < 1 or 0 in s for s in shapes) or len({s[0] for s in shapes}) > 1:
        raise ValueError(f"values must be a series (n,) + any axes, or a tuple of them of the same n, got shapes {shapes}")
    num = shapes[0][0]
    check(num % num_chains == 0, f"values must hold num_chains = {num_chains} chains of equal length, got {num} draws in all")
    for array in arrays:
        bad = int((~np.isfinite(array)).reshape(num, -1).any(1).sum())
        check(not bad, f"values must be finite, got {bad} of {num} draws that are not")
    if function is None:
        check(len(arrays) == 1, f"function must be given for {len(arrays)} series: what is made of their means")
    else:
        check_function(function=function)
    share = np.ones(num) if weight is None else np.asarray(check_row_weight("weight", weight, num), np.float64)
    share = share / share.mean()
    rows = np.concatenate([a.reshape(num, -1) for a in arrays], 1)
    means = share @ rows / num
    moves = share[:, None] * (rows - means)
    moves[:, np.ptp(rows, axis=0) == 0] = 0.0  # what never moves has no rounding either
    ends = np.cumsum([np.prod(s[1:], dtype=int) for s in shapes])[:-1]

    def of_means(flat: np.ndarray) -> np.ndarray:
        parts = [part.reshape(s[1:])[()] for part, s in zip(np.split(flat, ends), shapes, strict=True)]
        return np.asarray(parts[0] if function is None else function(*parts), np.float64)

    return _Data(means, moves, share, lambda flat: of_means(flat).reshape(-1), of_means(means).shape, function is None)


def _linearized(data: _Data) -> tuple[np.ndarray, np.ndarray]:
    """F of the means, (m,), and u of the module's docstring, (n, m)."""
    value = data.function(data.means)
    if data.is_linear:
        return value, data.moves
    steps = np.sqrt((data.moves**2).mean(0) / len(data.moves))
    slopes = np.zeros((len(steps), len(value)))
    for a in np.flatnonzero(steps):
        step = np.where(np.arange(len(steps)) == a, steps, 0.0)
        slopes[a] = (data.function(data.means + step) - data.function(data.means - step)) / (2 * steps[a])
    return value, data.moves @ slopes


def _summed(u: np.ndarray, stretch: float) -> tuple[float, ...]:
    """(sem, sem_error, tau_int, tau_int_sem, window) of chains (M, N) of mean zero."""
    num, lags = u.size, np.arange(u.shape[1] // 2 + 1)
    gamma = lagged_sums(u).sum(0)[: len(lags)] / (num - len(u) * lags)
    if not gamma[0] > 0:
        return (np.nan,) * 5
    total = 2 * np.cumsum(gamma) - gamma[0]
    excess = np.maximum(total[1:] / gamma[0] - 1, 1e-12)  # 2 tau_int - 1
    decay = stretch / np.log1p(2 / excess)
    enough = np.exp(-lags[1:] / decay) < decay / np.sqrt(lags[1:] * num)
    window = int(np.argmax(enough)) + 1
    if not enough.any() or not total[window] > 0:
        return (np.nan,) * 5
    variance = total[window] * (1 + (2 * window + 1) / num)
    tau = variance / (2 * (gamma[0] + total[window] / num))
    sem = np.sqrt(variance / num)
    tau_sem = 2 * tau * np.sqrt(max(window - tau + 0.5, 0.0) / num)
    return sem, sem * np.sqrt((window + 0.5) / num), tau, tau_sem, float(window)


def _blocks(num: int, num_chains: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where blocks start, and their sizes, none across two chains."""
    check_count(block_size=block_size)
    draws = num // num_chains
    count = draws // block_size
    check(
        count * num_chains >= 2,
        f"block_size must leave at least two blocks, got {block_size} for {num_chains} chain(s) of {draws} draws",
    )
    ends = np.arange(count + 1) * draws // count
    starts = (np.arange(num_chains)[:, None] * draws + ends[:-1]).ravel()
    return starts, np.diff(starts, append=num)


def _shaped(x: np.ndarray, shape: tuple[int, ...]) -> Any:
    return x.reshape(shape) if shape else float(x[0])
