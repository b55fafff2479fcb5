"""The cells of a table, several at a time, each in a process of one core."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import jax

import genmod as gm
from experiments.compare import model_on_data

# A process of one core: threads of several processes on few cores wait for each other.
_ONE_CORE = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Cell(NamedTuple):
    """What came of one cell: its numbers, or the error that it ended with; the folder of its run."""

    config: model_on_data.Config
    found: dict[str, Any]
    error: str | None
    folder: Path


def run_all(configs: list[model_on_data.Config], workers: int | None = None) -> list[Cell]:
    """All cells, in the order given; a line is printed as each ends. An error of one does not stop the others.

    Raises ValueError for no worker, RuntimeError where a process is killed: the same command goes on from there.
    """
    num = len(os.sched_getaffinity(0)) if workers is None else workers
    if num < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    done: dict[int, Cell] = {}
    begun = time.perf_counter()
    with _one_core(), _pool(min(num, len(configs))) as pool:
        waiting = {pool.submit(_run, config): i for i, config in enumerate(configs)}
        try:
            for future in concurrent.futures.as_completed(waiting):
                i = waiting[future]
                done[i] = future.result()
                minutes = (time.perf_counter() - begun) / 60
                print(f"[{len(done)}/{len(configs)}, {minutes:.0f} min] {line(done[i])}", flush=True)
        except BrokenProcessPool:
            raise RuntimeError(
                f"a process was killed after {len(done)} of {len(configs)} cells; the same command goes on from there. Is there "
                f"memory enough for {num} workers?"
            ) from None
    return [done[i] for i in range(len(configs))]


def line(cell: Cell) -> str:
    """What is printed of a cell."""
    config, found = cell.config, cell.found
    head = f"{config.data} {config.model} seed {config.seed}:"
    if cell.error is not None:
        return f"{head} FAILED, {cell.error}"
    if "not_applicable" in found:
        return f"{head} does not apply, it {found['not_applicable']}"
    parts = [f"{name} {found[name]:.4f}" for name in ("gap_nats", "gap_low_nats", "gap_high_nats") if name in found]
    parts = parts or [f"{name} {found[name]:.4f}" for name in ("nll_nats", "nll_low_nats", "nll_high_nats") if name in found]
    parts += [f"sliced W2 {found['sliced_w2']:.3f}"] if "sliced_w2" in found else []
    return f"{head} {', '.join(parts)}" + (f", {found['train_seconds']:.0f} s" if "train_seconds" in found else "")


def _run(config: model_on_data.Config) -> Cell:
    """One cell, in a process of its own; what it prints goes to a file of its run."""
    folder = gm.lab.locate(model_on_data.experiment, config).folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "output.txt").open("a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            found = gm.lab.execute(model_on_data.experiment, config)
    except Exception as error:
        return Cell(config, {}, " ".join(f"{error}".split()) or type(error).__name__, folder)
    return Cell(config, found, None, folder)


def _pool(num: int) -> concurrent.futures.ProcessPoolExecutor:
    settings = {
        name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    }
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(num, mp_context=context, initializer=_begin, initargs=(settings,))


def _begin(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """The environment in which processes of one core are begun."""
    before = {name: os.environ.get(name) for name in _ONE_CORE}
    os.environ.update(_ONE_CORE)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
