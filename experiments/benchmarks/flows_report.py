"""The flow benchmark's results as Markdown tables."""

from collections.abc import Callable

from experiments.benchmarks.peers.base import OPERATIONS

OURS = "genmod"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None, digits: int = 3) -> str:
    """Plain notation with `digits` significant digits; what is not finite says so."""
    if value is None:
        return "non-finite"
    decimals = max(0, digits - len(str(int(abs(value)))))
    return f"{value:.{decimals}f}"


def _ratio(value: float, peers: list[float]) -> str:
    return f" ({value / min(peers):.2f})" if peers else ""


def _times(results: dict, key: str) -> str:
    """Median milliseconds per call, in brackets the ratio to the fastest peer."""
    libraries = list(results["versions"])
    rows = []
    for name, cell in results["cells"].items():
        for op in OPERATIONS:
            value = {lib: cell[lib]["time"][op][key] for lib in libraries if "time" in cell[lib]}
            peers = [value[lib] for lib in value if lib != OURS]
            row = [_number(value[lib]) + _ratio(value[lib], peers) if lib in value else "n/a" for lib in libraries]
            rows.append([name, op, *row])
    return _table(["flow", "op", *libraries], rows)


def _compile_seconds(pair: dict) -> float:
    return max(0.0, pair["first"][0] - pair["second"][0])


def _compilation(results: dict) -> str:
    """CPU seconds of train step / log_prob / sample, for the libraries that compile."""
    cells = results["cells"]
    compiling = [lib for lib in results["versions"] if any(cell[lib].get("compiles") for cell in cells.values())]

    def entry(mine: dict) -> str:
        if "compile" not in mine:
            return "n/a"
        return " / ".join(f"{_compile_seconds(mine['compile'][op]):.1f}" for op in OPERATIONS)

    rows = [[name, *(entry(cell[lib]) for lib in compiling)] for name, cell in cells.items()]
    return _table(["flow", *compiling], rows)


def _quality(results: dict) -> str:
    """What the trained flows are worth."""
    libraries = list(results["versions"])
    kinds: list[tuple[str, str, Callable[[float | None], str]]] = [
        ("NLL, nats", "nll_nats", lambda v: _number(v, 4)),
        ("mass", "mass", lambda v: _number(v, 4)),
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
    return _table(["flow", "what", *libraries], rows)


def _depth(results: dict) -> str:
    rows = []
    for library, pairs in results["depth"].items():
        few, many = (_compile_seconds(pair) for pair in pairs.values())
        rows.append([library, f"{few:.1f}", f"{many:.1f}", f"{many / few:.2f}"])
    return _table(["library", *(f"{n} layers" for n in next(iter(results["depth"].values()))), "ratio"], rows)


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
    return _table(["flow", "library", "CPU s per epoch", "wall s per epoch", "first call adds, CPU s"], rows)


def markdown(results: dict) -> str:
    """The whole report."""
    versions = ", ".join(f"{lib} {version}" for lib, version in results["versions"].items())
    few, many = results["steps"]
    load = f"{results['load_before'][0]:.1f} before, {results['load_after'][0]:.1f} after"
    parts = [
        "# Flow benchmark",
        f"{versions}; Python {results['python']}, {results['machine']}; load average {load}; {results['seconds']:.0f} s in all.",
        "## CPU milliseconds per call (ratio to the fastest peer)",
        _times(results, "cpu_ms"),
        "## Wall milliseconds per call (ratio to the fastest peer)",
        _times(results, "wall_ms"),
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
