"""The cells of a table, several at a time, each in a process of one core.

Processes live for some cells, since each has to import JAX. They end with the program that began them, whatever ends it.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import jax

import genmod as gm
from experiments.compare import model_on_data

# Threads of several processes on few cores wait for each other.
_ONE_CORE = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Compiled programs stay in memory: processes are begun anew after so many cells of each. (The pool's own `max_tasks_per_child`
# may wait for ever, https://github.com/python/cpython/issues/115634.)
_CELLS_OF_A_PROCESS = 40


class Cell(NamedTuple):
    """What came of one cell: its numbers, or the error that it ended with; the folder of its run."""

    config: model_on_data.Config
    found: dict[str, Any]
    error: str | None
    folder: Path = Path()


def run_all(configs: list[model_on_data.Config], workers: int | None = None) -> list[Cell]:
    """All cells, in the order given; a line is printed as each ends. An error of one does not stop the others.

    A cell whose process is killed is begun again once, alone. Raises ValueError for no worker.
    """
    num = default_workers() if workers is None else workers
    if num < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    done: dict[int, Cell] = {}
    begun = time.perf_counter()

    def show(i: int, cell: Cell) -> None:
        done[i] = cell
        print(f"[{len(done)}/{len(configs)}, {(time.perf_counter() - begun) / 60:.0f} min] {line(cell)}", flush=True)

    while left := [i for i in range(len(configs)) if i not in done]:
        before = len(done)
        if _broke(configs, left[: num * _CELLS_OF_A_PROCESS], num, show) and len(done) == before:
            if num == 1:
                reason = "its process was killed; is there memory enough?"
                show(left[0], Cell(configs[left[0]], {}, reason))
            num = 1  # so that it shows which one it is
    return [done[i] for i in range(len(configs))]


def _broke(configs: list[model_on_data.Config], left: list[int], num: int, show: Any) -> bool:
    """Runs cells until all are done; whether a process was killed before that."""
    with _one_core():
        pool = _pool(min(num, len(left)))
        waiting = {pool.submit(_run, configs[i]): i for i in left}
        try:
            for future in concurrent.futures.as_completed(waiting):
                show(waiting[future], future.result())
        except BrokenProcessPool:
            return True
        except BaseException:
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise
        pool.shutdown()
    return False


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


def default_workers() -> int:
    """One for each core of a CPU, else one: a GPU is not shared."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(config: model_on_data.Config) -> Cell:
    """One cell, in a process of its own; what it prints goes to a file of its run."""
    folder = Path()
    try:
        folder = gm.lab.locate(model_on_data.experiment, config).folder
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
    return concurrent.futures.ProcessPoolExecutor(
        num,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(settings, os.getpid()),
    )


def _begin(settings: dict[str, Any], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the processes
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    for name, value in settings.items():
        jax.config.update(name, value)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """The environment in which processes of one core are begun."""
    before = {name: os.environ.get(name) for name in _ONE_CORE}
    own = os.environ.get("XLA_FLAGS", "")
    os.environ.update(_ONE_CORE | {"XLA_FLAGS": f"{own} {_ONE_CORE['XLA_FLAGS']}".strip()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
