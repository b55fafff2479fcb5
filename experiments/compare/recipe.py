"""What a recipe is: which data a model applies to, how it is built at the common size and trained within the common budget.

The budget is a number of steps, of rows in each, and the widths of networks (`model_on_data.Config`). `Task.fit` is `gm.fit` with
Adam along a cosine, an average of the parameters, and best parameters by validation; a recipe that trains otherwise says so.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine

if TYPE_CHECKING:
    from experiments.compare.model_on_data import Config


class Fitted(NamedTuple):
    """A model with its parameters; `decode` makes data of its samples, where it models something else than the data."""

    model: gm.Model
    params: Any
    decode: Callable[[Any], Any] = np.asarray


@contextlib.contextmanager
def timed(path: Path) -> Iterator[Callable[[], float]]:
    """A clock of the seconds within, also of earlier processes that were killed: each reading is kept in a file."""
    before, begun, after = json.loads(path.read_text()) if path.exists() else 0.0, time.perf_counter(), []

    def read() -> float:
        seconds = before + time.perf_counter() - begun
        if after:
            return after[0]
        gm.lab.write_text(path, json.dumps(seconds))
        return seconds

    yield read
    after.append(read())


class Task(NamedTuple):
    """What a recipe is given: the sizes, the data in the units of the models, a key, where the run keeps its things, and a clock
    that is read again and again."""

    config: "Config"
    data: gm.data.Dataset
    key: jax.Array
    run: gm.lab.Run
    clock: Callable[[], float] = time.perf_counter

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,), that of a datum as a vector."""
        return (int(np.prod(self.data.event_shape)),)

    def _read_clock(self, *_: Any) -> None:
        self.clock()

    def rows(self, part: str, shape: tuple[int, ...]) -> np.ndarray:
        """The rows of a part of the data as events of this shape."""
        x = np.asarray(getattr(self.data, part))
        return x.reshape(len(x), *shape)

    def fit(self, model: gm.Model, *, name: str = "fit", learning_rate: float = 2e-3, share: float = 1.0, **options: Any) -> Any:
        """The parameters of a model that was trained within the budget.

        Args:
          model: which is validated ten times, by 5,000 rows at most.
          name: of the folder. learning_rate: the peak of a cosine. share: of the steps.
          options: of `gm.fit`, in the place of the usual ones; with a `step` there is no validation.
        """
        config, own, num_steps = self.config, "step" in options, max(1, round(share * self.config.num_steps))
        usual: dict[str, Any] = {}
        if not own:
            usual = {"clip_norm": 5.0, "ema_decay": config.ema_decay}
            usual["optimizer"] = adam_with_cosine(learning_rate, num_steps, num_steps // 50)
            usual["validation"] = self.rows("validation", model.event_shape)[:5_000]
        usual |= {"num_steps": num_steps, "batch_size": min(config.batch_size, len(self.data.train))}
        return gm.fit(
            model,
            options.pop("rows", self.rows("train", model.event_shape)),
            key=self.key,
            validate_every=max(1, num_steps // 10),
            checkpoint=self.run.folder / f"checkpoint_{name}",
            log=self.run.log.with_name(f"log_{name}.jsonl"),
            callback=self._read_clock,
            **usual | options,
        ).params


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One row of the table.

    Attributes:
      family: of the model. fit: trains it.
      real: whether it models real numbers. levels: the least and the greatest number of levels that it models; None: none.
      images: whether it wants images, (H, W, C). least_dim: of the data.
    """

    family: str
    fit: Callable[[Task], Fitted]
    real: bool = True
    levels: tuple[int, float] | None = None
    images: bool = False
    least_dim: int = 1

    def refuses(self, data: gm.data.Dataset) -> str | None:
        """Why it does not apply to the data; None where it does."""
        dim, num = int(np.prod(data.event_shape)), data.num_levels
        if num is None and not self.real:
            return "models levels, and these are real numbers"
        if num is not None and self.levels is None:
            return "models real numbers, and these are levels"
        if num is not None and self.levels is not None and not self.levels[0] <= num <= self.levels[1]:
            low, high = self.levels
            return f"models {'bits' if high == 2 else f'at least {low} levels'}, and these have {num} levels"
        if self.images and len(data.event_shape) != 3:
            return f"models images (H, W, C), and an event here has shape {data.event_shape}"
        return f"wants at least {self.least_dim} dimensions, and here are {dim}" if dim < self.least_dim else None
