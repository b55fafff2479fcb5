"""The data of the table, in the units in which every model is trained and measured.

Real numbers are standardised, column by column, by their training rows: no family gains or loses by the units of a table, and
distances of samples are in standard deviations. Log-densities are moved back to the units of the data. Levels stay as they are.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments import vae_data
from experiments.density import TABLES, TOYS
from experiments.ebm import PARTS
from genmod.core.keys import stream


def ring(x: np.ndarray) -> np.ndarray:
    """Which of the rings is nearest, by the radius."""
    radii = np.asarray(gm.data.Rings().radii)
    return np.abs(np.linalg.norm(x, axis=1)[:, None] - radii).argmin(1)


BINARY = ("nltcs", "plants", "accidents", "mushrooms", "dna")
# Tables of TABLES whose rows are split by the seed.
RESPLIT = ("breast_cancer", "wine")
LEVELS = ("digits", "binary_digits", *BINARY)
# The parts of a law with equal shares of it, by which the balance of samples is measured.
MODES: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "two_moons": (2, PARTS["two_moons"]),
    "eight_gaussians": (8, PARTS["eight_gaussians"]),
    "checkerboard": (8, PARTS["checkerboard"]),
    "rings": (len(gm.data.Rings().radii), ring),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A data set to model.

    Attributes:
      data: its arrays in the units of the models; `test` is fresh where the law is known.
      log_scale: log p(x) of the data is log p(z) of the models less this.
      true_log_prob: the exact log-density in the units of the models; None where it is not known.
      limit: the exact entropy in nats, in the units of the data; None where it is not known.
      modes: (their number, points of the data -> which each is in); None where there are none to speak of.
      to, back: from the units of the data to those of the models, and back.
    """

    data: gm.data.Dataset
    log_scale: float = 0.0
    true_log_prob: Callable[[Any], Any] | None = None
    limit: float | None = None
    modes: tuple[int, Callable[[np.ndarray], np.ndarray]] | None = None
    to: Callable[[Any], np.ndarray] = np.asarray
    back: Callable[[Any], np.ndarray] = np.asarray


def load(name: str, num_train: int, num_test: int, seed: int) -> Problem:
    """A problem by name: a toy set, a table, digits, a binary table, or the path of a .npy, .npz or .csv file of real numbers.

    Raises ValueError, which lists the names, for what is none of these.
    """
    key = stream(jax.random.key(seed), f"data {name}")
    if name == "binary_digits":
        return Problem(vae_data.load("digits", seed))
    if name == "digits":
        return Problem(gm.data.images.digits(seed))
    if name in BINARY:
        return Problem(getattr(gm.data, name)())
    if name in TOYS:
        data = TOYS[name](key, num_train)
        return _real(name, data, np.asarray(data.sample(stream(key, "test"), num_test)))
    if name in TABLES:
        data = TABLES[name](seed) if name in RESPLIT else TABLES[name]()
        return _real(name, data, np.asarray(data.test))
    if Path(name).is_file():
        data = gm.data.table(name, seed)
        return _real(name, data, np.asarray(data.test))
    raise ValueError(unknown(name))


def unknown(name: str) -> str:
    """Why there is no data set of this name; "" where there is."""
    known = dict.fromkeys([*TOYS, *TABLES, *LEVELS])
    return "" if name in known or Path(name).is_file() else f"data must be a file, or one of {', '.join(known)}; got {name!r}"


def _real(name: str, data: gm.data.Dataset, test: Any) -> Problem:
    units = gm.data.Units.of(data.train)
    train, validation, test = (jnp.asarray(units.to(part)) for part in (data.train, data.validation, test))
    scaled = gm.data.Dataset(data.name, train, validation, test)
    true = None if data.log_prob is None else functools.partial(_in_units, data.log_prob, units)
    return Problem(scaled, units.log_scale, true, data.entropy, MODES.get(name), units.to, units.back)


def _in_units(log_prob: Callable, units: gm.data.Units, z: Any) -> Any:
    # x is computed where the model does it, in its precision: a gap is paired, and pairs must be the same points.
    return log_prob(jnp.asarray(units.back(z), jnp.result_type(float))) + units.log_scale
