"""What a training run leaves behind: checkpoints, a JSONL log and a progress bar."""

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from genmod.checkpoint import Checkpoints, check_same


class Recorder:
    """One run's checkpoints (`note` says what the run is), log and bar; a context manager."""

    def __init__(self, checkpoint: Any, every: int, note: dict[str, Any], log: Any, progress: bool):
        self.checkpoints = None if checkpoint is None else Checkpoints(checkpoint)
        self.every, self.note, self.progress = every, note, progress
        self.log = None if log is None else Path(log)
        self.bar: Any = None
        self.saved = 0

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.checkpoints is not None:
            self.checkpoints.close()

    def resume(self, state: Any, best: Any, num_steps: int) -> tuple[Any, Any, list[dict]]:
        """(state, best, rows of the log) of the newest checkpoint, or those given; raises ValueError for another run's."""
        rows: list[dict] = []
        step = None if self.checkpoints is None else self.checkpoints.latest_step()
        if self.checkpoints is not None and step is not None:
            note = self.checkpoints.note(step)
            rows = note.pop("rows", [])
            for name, wanted in self.note.items():
                check_same(name, note.get(name), wanted, self.checkpoints.directory)
            state, best = self.checkpoints.load(step, (state, best))
            self.saved = step
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if self.progress:
            self.bar = tqdm(total=num_steps, initial=int(state.step), unit="step", dynamic_ncols=True)
        return state, best, rows

    def report(self, state: Any, best: Any, rows: list[dict], last: bool) -> None:
        """Logs the newest row; saves when it is time, and at the end."""
        row = rows[-1]
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self.bar is not None:
            self.bar.set_postfix({k: f"{row[k]:.4g}" for k in ("loss", "validation_loss") if k in row}, refresh=False)
            self.bar.update(row["step"] - self.bar.n)
        if last or row["step"] - self.saved >= self.every:
            self.save(state, best, rows)

    def save(self, state: Any, best: Any, rows: list[dict]) -> None:
        """Writes a checkpoint of this step unless there is one."""
        step = int(state.step)
        if self.checkpoints is not None and step != self.checkpoints.latest_step():
            self.checkpoints.save(step, (state, best), self.note | {"rows": rows})
            self.saved = step
