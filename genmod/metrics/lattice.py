"""Observables of real fields on a periodic lattice.

Those of ONE configuration first, averaged over its V sites by translation: fields (n,) + the lattice's shape, of any number of
directions, give (n,), or (n, T). Then functions of means. Errors are those of `genmod.metrics.correlated`:

    gamma_method(susceptibility(fields))
    gamma_method(zero_momentum_correlator(fields), pole_mass)
    lattice_observables(fields)                                       # all of them

Nothing is connected: <phi> = 0 for an action that is even in phi. Where it is not,

    chi2_c = V (<m^2> - <m>^2),    G_c(t) = G(t) - (V / T) <m>^2

are functions of these means. S of configurations is `LatticeField.action(fields)`. Everything is in NumPy and float64.
"""

import numpy as np
from numpy.typing import ArrayLike

from genmod.core.checks import check, check_count
from genmod.metrics.correlated import GammaEstimate, gamma_method


def magnetization(fields: ArrayLike) -> np.ndarray:
    """m = sum_x phi_x / V, (n,)."""
    fields = _checked(fields)
    return fields.mean(_sites(fields))


def field_moment(fields: ArrayLike, order: int) -> np.ndarray:
    """sum_x phi_x^order / V, (n,)."""
    check_count(order=order)
    fields = _checked(fields)
    return (fields**order).mean(_sites(fields))


def susceptibility(fields: ArrayLike) -> np.ndarray:
    """chi2 = V m^2 = sum_t G(t), (n,)."""
    fields = _checked(fields)
    return fields[0].size * fields.mean(_sites(fields)) ** 2


def ising_energy(fields: ArrayLike) -> np.ndarray:
    """E = sum_x sum_mu phi_x phi_{x+mu} / (V d), (n,), d the number of directions (arXiv:1904.12072)."""
    fields = _checked(fields)
    axes = _sites(fields)
    return np.mean([(fields * np.roll(fields, -1, axis)).mean(axes) for axis in axes], 0)


def zero_momentum_correlator(fields: ArrayLike, direction: int = 0) -> np.ndarray:
    """G(t) = sum_s P(s) P(s + t) / V, (n, T), with P(t) the sum over the sites at t, which is their place along `direction`.

    In other words the mean over y of sum_x phi_y phi_{y + (t, x)}; sum_t G(t) = chi2.
    """
    fields = _checked(fields)
    num = fields.ndim - 1
    check(direction in range(num), f"direction must be in 0..{num - 1}, got {direction}")
    slices = fields.sum(tuple(axis for axis in _sites(fields) if axis != direction + 1))
    power = np.abs(np.fft.rfft(slices)) ** 2
    return np.fft.irfft(power, slices.shape[1]) / fields[0].size


def binder_cumulant(mean_square: ArrayLike, mean_fourth: ArrayLike) -> np.ndarray:
    """U4 = 1 - <m^4> / (3 <m^2>^2), of the MEANS of m^2 and m^4: 0 for a Gaussian m, 2/3 for m = +-1."""
    return 1.0 - np.asarray(mean_fourth) / (3.0 * np.asarray(mean_square) ** 2)


def effective_mass(correlator: ArrayLike) -> np.ndarray:
    """arccosh((G(t - 1) + G(t + 1)) / (2 G(t))) of the MEAN of G, (T,), for 1 <= t < T / 2; NaN where noise leaves none.

    G(t) proportional to cosh(m (t - T / 2)) gives m at every t. Raises ValueError for another shape, and for T < 3.
    """
    g = np.asarray(correlator, np.float64)
    check(g.ndim == 1 and g.size >= 3, f"correlator must be the mean of G, (T,) with T >= 3, got shape {g.shape}")
    t = np.arange(1, (g.size + 1) // 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.arccosh((g[t - 1] + g[t + 1]) / (2.0 * g[t]))


def pole_mass(correlator: ArrayLike) -> float:
    """The mean of `effective_mass` over its t; where the last of these are noise, take `effective_mass(g)[:k].mean()`."""
    return float(effective_mass(correlator).mean())


def lattice_observables(
    fields: ArrayLike, *, action: ArrayLike | None = None, weight: ArrayLike | None = None, num_chains: int = 1
) -> dict[str, GammaEstimate]:
    """Means of all observables, with errors by the Gamma method.

    Args:
      fields: (n,) + the lattice's shape. action: S of each, (n,); None: it is left out.
      weight, num_chains: as in `gamma_method`.

    Returns {"phi2", "phi4", "abs_magnetization", "susceptibility", "ising_energy", "action", "binder_cumulant", "correlator",
    "pole_mass"}. The correlator, (T,), is that along the first direction, averaged with all others of the same length; the mass
    is made from it, and left out for T = 2.

    Raises ValueError for arguments of another form and fields that are not finite.
    """
    fields = _checked(fields)
    m, sizes = magnetization(fields), fields.shape[1:]
    alike = [direction for direction, size in enumerate(sizes) if size == sizes[0]]
    correlator = np.mean([zero_momentum_correlator(fields, direction) for direction in alike], 0)
    means = {
        "phi2": field_moment(fields, 2),
        "phi4": field_moment(fields, 4),
        "abs_magnetization": np.abs(m),
        "susceptibility": susceptibility(fields),
        "ising_energy": ising_energy(fields),
        "correlator": correlator,
    }
    if action is not None:
        action = np.asarray(action, np.float64)
        check(action.shape == (len(m),), f"action must be one number for each of {len(m)} fields, got shape {action.shape}")
        means["action"] = action
    options = {"weight": weight, "num_chains": num_chains}
    found = {name: gamma_method(values, **options) for name, values in means.items()}
    found["binder_cumulant"] = gamma_method((m**2, m**4), binder_cumulant, **options)
    if correlator.shape[1] >= 3:
        found["pole_mass"] = gamma_method(correlator, pole_mass, **options)
    return found


def _sites(fields: np.ndarray) -> tuple[int, ...]:
    return tuple(range(1, fields.ndim))


def _checked(fields: ArrayLike) -> np.ndarray:
    fields = np.asarray(fields, np.float64)
    if fields.ndim < 2 or not fields.size or min(fields.shape[1:]) < 2:
        raise ValueError(f"fields must be (n,) + the lattice's shape, directions of at least two sites, got shape {fields.shape}")
    bad = int((~np.isfinite(fields)).reshape(len(fields), -1).any(1).sum())
    check(not bad, f"fields must be finite, got {bad} of {len(fields)} that are not")
    return fields
