"""What a training run leaves behind: checkpoints, a JSONL log and a progress bar."""

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from genmod.training.checkpoint import Checkpoints, check_same
from genmod.training.validation import Best


class Record(NamedTuple):
    """A run at one moment: what a checkpoint holds.

    Attributes:
      step: how many steps are done. state: the step's own state. best: None without validation.
      rows: the log. pending: the sums of the metrics since its last row.
      position: where the data were, as JSON; None where they do not tell.
    """

    step: int
    state: Any
    best: Best | None
    rows: list[dict[str, float]]
    pending: dict[str, float]
    position: Any = None


def _set_aside(log: Path) -> None:
    """Renames the log of an earlier run, `log.jsonl` to `log.1.jsonl`, so that it is not lost."""
    if log.exists() and log.stat().st_size:
        number = next(n for n in itertools.count(1) if not log.with_suffix(f".{n}{log.suffix}").exists())
        log.rename(log.with_suffix(f".{number}{log.suffix}"))


class Recorder:
    """One run's checkpoints (`run` says what the run is), log and bar; a context manager.

    Whatever ends the run early, the newest record is saved.
    """

    def __init__(self, step: Any, run: dict[str, Any], checkpoint: Any, every: int, log: Any, progress: bool):
        self.checkpoints = None if checkpoint is None else Checkpoints(checkpoint, exclusive=True)
        self.step, self.run, self.every, self.progress = step, run, every, progress
        self.log = None if log is None else Path(log)
        self.bar: Any = None
        self.saved = 0
        self.newest: Record | None = None

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            if kind is not None and self.newest is not None:
                self.save(self.newest)
        finally:
            if self.bar is not None:
                self.bar.close()
            if self.checkpoints is not None:
                self.checkpoints.close()
        if kind is KeyboardInterrupt and self.newest is not None:
            raise KeyboardInterrupt(self._where()) from None

    def _where(self) -> str:
        """What is left of an interrupted run."""
        step = self.newest.step if self.newest else 0
        if self.checkpoints is None:
            return f"training was interrupted at step {step}; nothing is saved without checkpoint=..."
        return f"training was interrupted at step {step}, saved in {self.checkpoints.directory}; the same call goes on from there"

    def resume(self, start: Record, num_steps: int) -> Record:
        """The newest checkpoint, or `start`; ValueError for one of another run, or of more than `num_steps` steps."""
        record = start
        step = None if self.checkpoints is None else self.checkpoints.latest_step()
        if self.checkpoints is not None and step is not None:
            folder, note = self.checkpoints.directory, self.checkpoints.note(step)
            for name, wanted in self.run.items():
                check_same(name, note.get("run", {}).get(name), wanted, f"the checkpoint in {folder} is of another run")
            if step > num_steps:
                raise ValueError(
                    f"num_steps must be at least {step}, which the checkpoint in {folder} has reached, got {num_steps}; "
                    "choose another folder to train anew"
                )
            best = start.best
            if best is not None:
                params = self.checkpoints.load(step, "params", best.params)
                best = Best(params, *self.checkpoints.load(step, "best", (best.value, best.step)))
            state = self.checkpoints.load(step, "state", start.state)
            record = Record(step, state, best, note["rows"], note["pending"], note.get("position"))
            self.saved = step
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            if step is None:
                _set_aside(self.log)
            self.log.write_text("".join(json.dumps(row) + "\n" for row in record.rows))
        if self.progress:
            self.bar = tqdm(total=num_steps, initial=record.step, unit="step", dynamic_ncols=True)
        return record

    def report(self, record: Record, row: dict[str, float] | None, last: bool) -> None:
        """Takes note of a record and of the row of the log that it closes, if any; saves when it is time, and at the end."""
        self.newest = record
        if self.log is not None and row is not None:
            with self.log.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self.bar is not None:
            if row is not None:
                self.bar.set_postfix({k: f"{row[k]:.4g}" for k in row if k in ("loss", "validation_loss")}, refresh=False)
            self.bar.update(record.step - self.bar.n)
        if last or record.step - self.saved >= self.every:
            self.save(record)

    def save(self, record: Record) -> None:
        """Writes a checkpoint of this step unless there is one."""
        if self.checkpoints is not None and record.step != self.checkpoints.latest_step():
            best = record.best
            params = self.step.evaluation_params(record.state) if best is None else best.params
            trees = {"state": record.state, "params": params} | ({} if best is None else {"best": (best.value, best.step)})
            note = {"run": self.run, "rows": record.rows, "pending": record.pending, "position": record.position}
            self.checkpoints.save(record.step, note, **trees)
            self.saved = record.step
