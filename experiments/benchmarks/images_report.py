"""The results of the benchmark of Glow as Markdown tables."""

from experiments.benchmarks import tables
from experiments.benchmarks.peers.base import OPERATIONS
from experiments.benchmarks.tables import compile_seconds, number, table

WORK = """\
Equal on both sides: images, alpha-logit, two scales of K steps (actnorm, 1x1 convolution by PLU, affine coupling of half the
channels), a network of 3x3, 1x1 and 3x3 convolutions with 64 hidden channels, ReLU, no actnorm inside and zeros at the end,
Adam, float32. Different: genmod's latents that leave early are Gaussian given the rest, by one network more (7,684 parameters),
normflows' are Gaussian with a learned mean and scale each; log-scales are soft-bounded here, a sigmoid there; log_prob inverts
the small matrices here (triangular solves), sampling there (in float64); normflows' sampling computes log q as well."""


def _quality(results: dict) -> str:
    """What the trained flows are worth, and their size."""
    libraries = list(results["versions"])
    rows = []
    for name, cell in results["cells"].items():
        kinds = [
            ("bits per dimension", lambda mine: number(mine["quality"]["bits_per_dim"], 4)),
            ("inverse error", lambda mine: f"{mine['quality']['inverse_error']:.1e}"),
            ("parameters", lambda mine: f"{mine['num_params']:,}"),
        ]
        for label, text in kinds:
            rows.append([name, label, *(text(cell[lib]) if "quality" in cell[lib] else "n/a" for lib in libraries)])
    return table(["cell", "what", *libraries], rows)


def _first_call(mine: dict, op: str) -> float:
    return mine["build"][0] if op == "build" else compile_seconds(mine["compile"][op])


def _depth(results: dict) -> str:
    """Building, which includes the data-dependent start, and what a first call adds to a later one, by number of steps."""
    few, many = results["depth"].values()
    rows = []
    for library in results["versions"]:
        if not (few[library].get("compiles") and many[library].get("compiles")):
            continue
        for op in ("build", *OPERATIONS):
            short, long = (_first_call(cell[library], op) for cell in (few, many))
            rows.append([library, op, f"{short:.1f}", f"{long:.1f}", f"{long / short:.2f}"])
    return table(["library", "op", *results["depth"], "ratio"], rows)


def markdown(results: dict) -> str:
    """The whole report."""
    parts = ["# Benchmark of Glow on images", tables.provenance(results), WORK]
    if results["cells"]:
        parts += [
            "## CPU milliseconds per call (ratio to the fastest peer)",
            tables.times(results, "cpu_ms", OPERATIONS),
            "## Wall milliseconds per call (ratio to the fastest peer)",
            tables.times(results, "wall_ms", OPERATIONS),
            f"## Quality after {results['steps']} training steps",
            _quality(results),
        ]
    if results.get("depth"):
        parts += ["## First calls, CPU seconds (of an operation: more than the second)", _depth(results)]
    return "\n\n".join(parts)
