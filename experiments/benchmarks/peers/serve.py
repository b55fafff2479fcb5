"""The worker's side of `turns`: requests in, answers out, one JSON object a line.

The first line out is the library's version, or the reason why it cannot be measured.
A request {"do": name, ...} is answered by {"ok": result}, {"unsupported": reason} or
{"error": reason}. A time is a pair [CPU seconds of this process, wall seconds].
"""

import importlib
import importlib.metadata
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Unsupported(Exception):
    """The library does not offer what the cell asks for; the table shows n/a."""


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def finite(x: Any) -> float | None:
    """A float, or None where it is not finite (JSON has no NaN)."""
    return float(x) if math.isfinite(float(x)) else None


def forget_compiled() -> None:
    """Drop what JAX has compiled, so that a first call is a first call."""
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


def serve(adapter_name: str, make_session: Callable[[ModuleType], Any]) -> None:
    """Serve requests until standard input ends: the public methods of the session. Libraries print to stderr.

    The session is made from the module `adapter_name`, named like its library or with a DISTRIBUTION whose version counts.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def put(answer: dict) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    try:
        adapter = importlib.import_module(adapter_name)
        _set_threads()
        session = make_session(adapter)
    except ImportError as error:
        put({"unsupported": f"{type(error).__name__}: {error}"})
        return
    put({"ok": _version(getattr(adapter, "DISTRIBUTION", adapter_name.rpartition(".")[2]))})
    for line in sys.stdin:
        put(_answer(session, json.loads(line)))


def _answer(session: Any, request: dict) -> dict:
    """Do what is asked; a failure is an answer, not the end of the process."""
    try:
        return {"ok": getattr(session, request.pop("do"))(**request)}
    except Unsupported as reason:
        return {"unsupported": str(reason)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _set_threads() -> None:
    """One thread for PyTorch where it is in use; the environment does the rest."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "source tree"
