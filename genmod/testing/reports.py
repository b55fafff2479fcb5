"""What the checks found: NamedTuples of numbers; print one to read it."""

import itertools
import math
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """One check at its worst point: the error there, what is allowed there, and a note on it."""

    name: str
    error: float
    allowed: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for NaN


def worst(name: str, errors: np.ndarray, allowed: np.ndarray, places: tuple[str, ...]) -> Row:
    """The row of that of the places at which an error exceeds what is allowed by most; NaN where the two cannot be compared."""
    if not len(errors):
        return Row(name, 0.0, 0.0)
    excess = np.asarray(errors / allowed, np.float64)
    i = int(np.argmax(np.where(np.isnan(excess), np.inf, excess)))
    return Row(name, float(errors[i] if excess[i] == excess[i] else np.nan), float(allowed[i]), f"at {places[i]}")


def worst_of_each(rows: list[Row]) -> tuple[Row, ...]:
    """Of rows with equal names the worst, in the order of first appearance."""
    found: dict[str, Row] = {}
    for row in rows:
        other = found.setdefault(row.name, row)
        worse = not row.passed or row.error * other.allowed > other.error * row.allowed
        if other.passed and (worse or (row.note and not other.note)):  # a row of no points has no note
            found[row.name] = row
    return tuple(found.values())


class DensityReport(NamedTuple):
    """What `check_density` found; print it."""

    distribution: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return all(row.passed for row in self.rows)

    def __str__(self) -> str:
        return rows_text(self.distribution, self.rows)


def rows_text(subject: str, rows: tuple[Row, ...]) -> str:
    """A line for each check, below one for all."""
    lines = [f"{subject}: {'all checks passed' if all(row.passed for row in rows) else 'FAILED'}"]
    for row in rows:
        verdict = "ok  " if row.passed else "FAIL"
        figures = f"error {row.error:9.2e}   allowed {row.allowed:9.2e}   {row.note}"
        lines.append(f"  {verdict} {row.name:<44} {figures}".rstrip())
    return "\n".join(lines)


class SamplerReport(NamedTuple):
    """What `check_sampler` found.

    Attributes:
      errors: largest error of the flow map by number of steps, {} for random samplers.
      bias_nats: KL of the sampled Gaussian's moments from the law, less what draws of the law itself would have.
      bias_sem: its standard error under the law.
      mean_error, covariance_error: largest, in standard errors.
      weight_error: largest of the weights of the mixture's modes, in standard errors.
    """

    errors: dict[int, float]
    bias_nats: float
    bias_sem: float
    mean_error: float
    covariance_error: float
    weight_error: float

    @property
    def orders(self) -> dict[int, float]:
        """Observed between each number of steps and the one before."""
        pairs = itertools.pairwise(self.errors.items())
        return {n: math.log(before / error) / math.log(n / m) if error > 0 else math.inf for (m, before), (n, error) in pairs}

    @property
    def order(self) -> float:
        """Observed between the two largest numbers of steps; NaN for random samplers."""
        return self.orders[max(self.errors)] if self.errors else math.nan

    def __str__(self) -> str:
        lines = [
            f"{n:>6} steps: flow map off by {error:.2e}" + (f", order {self.orders[n]:.2f}" if n in self.orders else "")
            for n, error in self.errors.items()
        ]
        lines.append(f"bias {self.bias_nats:.1e} +- {self.bias_sem:.1e} nats")
        lines.append(
            f"mean {self.mean_error:.1f}, covariance {self.covariance_error:.1f}, weights {self.weight_error:.1f} sem off"
        )
        return "\n".join(lines)


class LikelihoodReport(NamedTuple):
    """What `check_likelihood` found about the error log_prob - truth, in nats.

    Attributes:
      bias: its mean over points and keys. bias_sem: the standard error of that.
      largest: the largest absolute error.
      probe_std: standard deviation over keys at a fixed x, 0 for an exact log_prob, else that of the probes.
    """

    bias: float
    bias_sem: float
    largest: float
    probe_std: float

    def __str__(self) -> str:
        return f"bias {self.bias:.1e} +- {self.bias_sem:.1e} nats, largest {self.largest:.1e}, over keys {self.probe_std:.1e}"


class ScoreReport(NamedTuple):
    """What `check_score` found.

    Attributes:
      times: (num_times,). errors: at each of them E sigma^2 |s - score|^2 per dimension, the excess of the eps loss.
      nats: half the integral of g^2 E|s - score|^2, a bound on KL(data || reverse SDE) (Song et al. 2021, arXiv:2101.09258).
    """

    times: np.ndarray
    errors: np.ndarray
    nats: float

    def __str__(self) -> str:
        lines = [
            f"t = {t:.3f}: error of eps^2 {error:.2e} per dimension" for t, error in zip(self.times, self.errors, strict=True)
        ]
        return "\n".join([*lines, f"KL of the reverse SDE at most {self.nats:.2e} nats"])
