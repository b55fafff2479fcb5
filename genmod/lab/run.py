"""Runs: one folder per experiment and config, resumable, finished exactly when its metrics.json exists.

An experiment is a frozen `Config`, a function `experiment(config, run) -> metrics`, and one line:

    if __name__ == "__main__":
        gm.lab.main(experiment, Config, quick={"num_steps": 500})

`python -m experiments.NAME [--field value] [--quick] [--out DIR]` then writes to runs/NAME/<hash of config>: config.json,
provenance.json, log.jsonl, checkpoint/, figures, timing.json, and metrics.json last. The same command again resumes what
was killed, and shows what is done.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from genmod.core.description import describe
from genmod.lab.provenance import provenance, versions


class Run(NamedTuple):
    """Where one run keeps its things."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The folder for `fit(checkpoint=...)`."""
        return self.folder / "checkpoint"

    @property
    def log(self) -> Path:
        """The file for `fit(log=...)`."""
        return self.folder / "log.jsonl"

    def figure(self, name: str) -> Path:
        """The path of figure `name` (PNG)."""
        return self.folder / f"{name}.png"


def main(
    experiment: Callable[[Any, Run], dict[str, Any]],
    config_type: type,
    *,
    quick: dict[str, Any] | None = None,
    arguments: list[str] | None = None,
) -> dict[str, Any]:
    """Parses the command line into a config and runs `experiment` in the folder of that config; returns its metrics.

    `quick` are the fields that --quick changes. Programs that XLA has compiled are kept in runs/compiled (or where
    JAX_COMPILATION_CACHE_DIR says) and shared by all runs. A user's mistake (a ValueError, TypeError, OSError, ImportError or
    FloatingPointError) ends the program with one sentence and exit status 1; GENMOD_TRACEBACK=1 shows where it came from.
    """
    config, out = _parse(experiment, config_type, quick or {}, sys.argv[1:] if arguments is None else arguments)
    try:
        with _compiled_once():
            return execute(experiment, config, out)
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:
        if os.environ.get("GENMOD_TRACEBACK"):
            raise
        message = " ".join(str(error).split("--------------------")[0].split())
        raise SystemExit(f"error: {message}") from None
    except KeyboardInterrupt as interrupt:
        if os.environ.get("GENMOD_TRACEBACK"):
            raise
        print(f"\n{interrupt or 'interrupted'}", file=sys.stderr)
        raise SystemExit(130) from None


def execute(experiment: Callable[[Any, Run], dict[str, Any]], config: Any, out: Path | None = None) -> dict[str, Any]:
    """Runs `experiment(config, run)` unless it is done already; returns the metrics, which are written last."""
    described, run = _described(experiment, config), locate(experiment, config, out)
    done = run.folder / "metrics.json"
    if done.exists():
        _check_config(run.folder, described)
        _check_version(run.folder)
        print(f"already done: {done}")
        return json.loads(done.read_text())
    run.folder.mkdir(parents=True, exist_ok=True)
    _check_config(run.folder, described)
    _check_version(run.folder)
    _write(run.folder / "config.json", described)
    _write(run.folder / "provenance.json", provenance())
    begun = time.perf_counter(), time.process_time()
    metrics = _finite(experiment(config, run))  # what the file gives back
    seconds = {"wall_seconds": time.perf_counter() - begun[0], "cpu_seconds": time.process_time() - begun[1]}
    _write(run.folder / "timing.json", seconds)
    _write(done, metrics)
    print(f"written to {run.folder}")
    return metrics


def locate(experiment: Callable[[Any, Run], dict[str, Any]], config: Any, out: Path | None = None) -> Run:
    """The run of `experiment` at `config`, done or not: runs/NAME/<hash of config>, or `out`."""
    described = _described(experiment, config)
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
    return Run(Path("runs") / described["class"] / digest if out is None else out)


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    """XLA's programs are read from disk where an earlier process has compiled them."""
    settings = {"jax_compilation_cache_dir": "", "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    settings["jax_compilation_cache_dir"] = before["jax_compilation_cache_dir"] or str(Path("runs", "compiled").absolute())
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _parse(experiment, config_type, quick: dict[str, Any], arguments: list[str]) -> tuple[Any, Path | None]:
    try:
        import tyro
    except ImportError:
        raise SystemExit('error: experiments need their extra packages; pip install "genmod-jax[experiments]"') from None
    arguments = list(arguments)
    is_quick = "--quick" in arguments
    arguments = [a for a in arguments if a != "--quick"]
    out = None
    for i, argument in enumerate(arguments):
        if argument == "--out" and i + 1 < len(arguments):
            out, arguments = Path(arguments[i + 1]), arguments[:i] + arguments[i + 2 :]
            break
        if argument.startswith("--out="):
            out, arguments = Path(argument.removeprefix("--out=")), arguments[:i] + arguments[i + 1 :]
            break
    default = config_type(**(quick if is_quick else {}))
    module = sys.modules[experiment.__module__]
    description = f"{inspect.getdoc(module) or ''}\n\nAlso: --quick (about a minute), --out DIR (where to write)."
    return tyro.cli(config_type, default=default, args=arguments, description=description), out


def _described(experiment: Callable, config: Any) -> dict[str, Any]:
    # Under `python -m` the config's class lives in __main__: the experiment's own name is the same in every process.
    described = describe(config) | {"class": Path(inspect.getfile(experiment)).stem}
    # A file that has changed is another run.
    files = {f"{name.removeprefix('.')}_crc32": zlib.crc32(path.read_bytes()) for name, path in _files("", config)}
    return _finite(described | files)


def _files(name: str, value: Any) -> Iterator[tuple[str, Path]]:
    """The existing files that a config names, at any depth."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _files(f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for i, entry in enumerate(value):
            yield from _files(f"{name}[{i}]", entry)
    elif isinstance(value, str | Path) and Path(value).is_file():
        yield name, Path(value)


def _finite(content: Any) -> Any:
    """JSON in which numbers that are not finite are null."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _check_config(folder: Path, described: dict[str, Any]) -> None:
    path = folder / "config.json"
    if path.exists() and json.loads(path.read_text()) != described:
        raise ValueError(f"{folder} holds a run of another config; choose another --out, or delete it")


def _check_version(folder: Path) -> None:
    """Raises ValueError for a run that another version of the library has begun: its numbers may mean something else."""
    path, own = folder / "provenance.json", versions()["genmod-jax"]
    begun = json.loads(path.read_text())["versions"].get("genmod-jax") if path.exists() else None
    if begun is not None and own is not None and begun != own:
        raise ValueError(f"{folder} holds a run of genmod {begun}, and this is genmod {own}; delete it, or choose another --out")


def _write(path: Path, content: Any) -> None:
    """JSON, in which numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(content), indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """A file, atomically: a reader sees the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
