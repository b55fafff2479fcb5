"""Markdown tables of what `turns` measured."""

from collections.abc import Iterable

OURS = "genmod"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """Plain notation with `digits` significant digits; what is not finite says so."""
    if value is None:
        return "non-finite"
    decimals = max(0, digits - len(str(int(abs(value)))))
    return f"{value:.{decimals}f}"


def ratio(value: float, peers: list[float]) -> str:
    return f" ({value / min(peers):.2f})" if peers else ""


def times(results: dict, key: str, operations: Iterable[str]) -> str:
    """Median milliseconds per call, in brackets the ratio to the fastest peer. Operations that no library has are left out."""
    libraries = list(results["versions"])
    rows = []
    for name, cell in results["cells"].items():
        for op in operations:
            value = {lib: cell[lib]["time"][op][key] for lib in libraries if op in cell[lib].get("time", {})}
            peers = [value[lib] for lib in value if lib != OURS]
            row = [number(value[lib]) + ratio(value[lib], peers) if lib in value else "n/a" for lib in libraries]
            if value:
                rows.append([name, op, *row])
    return table(["cell", "op", *libraries], rows)


def compile_seconds(pair: dict) -> float:
    return max(0.0, pair["first"][0] - pair["second"][0])


def provenance(results: dict) -> str:
    """Versions, machine, load."""
    versions = ", ".join(f"{lib} {version}" for lib, version in results["versions"].items())
    load = f"{results['load_before'][0]:.1f} before, {results['load_after'][0]:.1f} after"
    seconds = f"{results['seconds']:.0f} s in all"
    return f"{versions}; Python {results['python']}, {results['machine']}; load average {load}; {seconds}."
