"""The flow benchmark's results as Markdown tables."""

from collections.abc import Callable

from experiments.benchmarks import tables
from experiments.benchmarks.peers.base import OPERATIONS
from experiments.benchmarks.tables import compile_seconds, number, table


def _compilation(results: dict) -> str:
    """CPU seconds of train step / log_prob / sample, for the libraries that compile."""
    cells = results["cells"]
    compiling = [lib for lib in results["versions"] if any(cell[lib].get("compiles") for cell in cells.values())]

    def entry(mine: dict) -> str:
        if "compile" not in mine:
            return "n/a"
        return " / ".join(f"{compile_seconds(mine['compile'][op]):.1f}" for op in OPERATIONS)

    rows = [[name, *(entry(cell[lib]) for lib in compiling)] for name, cell in cells.items()]
    return table(["flow", *compiling], rows)


def _quality(results: dict) -> str:
    """What the trained flows are worth."""
    libraries = list(results["versions"])
    kinds: list[tuple[str, str, Callable[[float | None], str]]] = [
        ("NLL, nats", "nll_nats", lambda v: number(v, 4)),
        ("mass", "mass", lambda v: number(v, 4)),
        ("inverse error, data", "inverse_error_data", lambda v: "fails" if v is None else f"{v:.1e}"),
        ("inverse error, wide", "inverse_error_wide", lambda v: "fails" if v is None else f"{v:.1e}"),
    ]
    rows = []
    for name, cell in results["cells"].items():
        for label, key, text in kinds:
            if key == "mass" and not name.endswith("-2"):
                continue
            row = [text(cell[lib]["quality"][key]) if "quality" in cell[lib] else "n/a" for lib in libraries]
            rows.append([name, label, *row])
        params = [str(cell[lib].get("num_params", "n/a")) for lib in libraries]
        rows.append([name, "parameters", *params])
    return table(["flow", "what", *libraries], rows)


def _depth(results: dict) -> str:
    rows = []
    for library, pairs in results["depth"].items():
        few, many = (compile_seconds(pair) for pair in pairs.values())
        rows.append([library, f"{few:.1f}", f"{many:.1f}", f"{many / few:.2f}"])
    return table(["library", *(f"{n} layers" for n in next(iter(results["depth"].values()))), "ratio"], rows)


def _fit(results: dict) -> str:
    rows = [
        [
            flow,
            library,
            f"{mine['cpu_s_per_epoch']:.3f}",
            f"{mine['wall_s_per_epoch']:.3f}",
            f"{mine['first_call_extra_cpu_s']:.1f}",
        ]
        for flow, libraries in results["fit"].items()
        for library, mine in libraries.items()
    ]
    return table(["flow", "library", "CPU s per epoch", "wall s per epoch", "first call adds, CPU s"], rows)


def markdown(results: dict) -> str:
    """The whole report."""
    few, many = results["steps"]
    parts = [
        "# Flow benchmark",
        tables.provenance(results),
        "## CPU milliseconds per call (ratio to the fastest peer)",
        tables.times(results, "cpu_ms", OPERATIONS),
        "## Wall milliseconds per call (ratio to the fastest peer)",
        tables.times(results, "wall_ms", OPERATIONS),
        "## Compilation, CPU seconds: train step / log_prob / sample",
        _compilation(results),
        f"## Quality after {few} training steps (D = 2) or {many} (D = 64)",
        "Mass is the integral of the density over [-5, 5]^2; inverse error is max |x - f(f^-1(x))|, "
        "wide on uniform points in [-10, 10]^D.",
        _quality(results),
    ]
    if results.get("depth"):
        parts += ["## Compilation of the spline training step by depth, D = 2, CPU seconds", _depth(results)]
    if results.get("fit"):
        parts += ["## Training loops, D = 2, 10,000 points, batch 256 (35 steps per epoch)", _fit(results)]
    return "\n\n".join(parts)
