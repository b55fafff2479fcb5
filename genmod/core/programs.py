"""Programs of functions that users hand over: compiled once, for as long as the function lives.

A `jax.jit` with the function as a static argument would keep it for ever, and with it the parameters and data that it closes
over, or what was being traced.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax

_PROGRAMS: weakref.WeakKeyDictionary[Callable, dict[Any, Callable]] = weakref.WeakKeyDictionary()


def program_of(fn: Callable, body: Callable, *static: Any) -> Callable:
    """`jax.jit` of (*arrays) -> body(fn, *static, *arrays): the same one for the same `fn`, `body` and `static`.

    Args:
      fn: what the user gave. The caller keeps it alive through the call.
      body: a function of a module. static: hashable values.
    """
    programs = _PROGRAMS.setdefault(fn, {})
    if (body, static) not in programs:
        reference = weakref.ref(fn)
        programs[body, static] = jax.jit(functools.partial(_run, reference, body, static))
    return programs[body, static]


def _run(reference: Callable, body: Callable, static: tuple, *arrays: Any) -> Any:
    return body(reference(), *static, *arrays)
