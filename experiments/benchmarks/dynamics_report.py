"""The results of the benchmark of continuous flows, flow matching and diffusions as Markdown tables."""

from experiments.benchmarks import tables
from experiments.benchmarks.tables import OURS, compile_seconds, number, table

OPERATIONS = (
    "train",
    "train_fixed",
    "train_adjoint",
    "train_ot_exact",
    "train_ot_sinkhorn",
    "log_prob",
    "log_prob_fixed",
    "sample",
    "sample_fixed",
)
COMPILING = (OURS, "diffrax_minimal", "plainjax")
MINIMAL = ("diffrax_minimal", "plainjax")

# Cell, our operation, their operation, peers: how many times faster genmod is than the fastest of these.
Goal = tuple[str, str, str, tuple[str, ...]]
GOALS: tuple[tuple[Goal, float], ...] = (
    (("cnf-exact", "train", "train", ("torchdiffeq",)), 1.8),
    (("cnf-hutchinson", "train", "train", ("torchdiffeq",)), 2.5),
    (("cnf-exact", "log_prob", "log_prob", ("torchdiffeq", "flow_matching")), 5.0),
    (("cnf-hutchinson", "log_prob", "log_prob", ("torchdiffeq", "flow_matching")), 5.0),
    (("fm-2", "train", "train", ("torchcfm", "flow_matching")), 1.8),
    (("fm-64", "train", "train", ("torchcfm", "flow_matching")), 1.8),
    (("fm-2", "train_ot_sinkhorn", "train_ot_exact", ("torchcfm",)), 2.0),
    (("fm-64", "train_ot_sinkhorn", "train_ot_exact", ("torchcfm",)), 2.0),
    (("fm-2", "sample", "sample", ("torchdiffeq", "flow_matching")), 1.9),
    (("fm-64", "sample", "sample", ("torchdiffeq", "flow_matching")), 1.9),
    (("dm-64", "train", "train", ("azula",)), 1.5),
    (("dm-64", "sample", "sample", ("azula",)), 2.3),
    *(
        ((cell, op, op, MINIMAL), 1 / 1.1)
        for cell, ops in (
            ("cnf-exact", ("train", "train_fixed", "log_prob", "log_prob_fixed")),
            ("cnf-hutchinson", ("train", "train_fixed", "log_prob", "log_prob_fixed")),
            ("fm-2", ("train", "sample", "sample_fixed")),
            ("fm-64", ("train", "sample", "sample_fixed")),
            ("dm-64", ("train", "sample")),
        )
        for op in ops
    ),
)


def _compilation(results: dict) -> str:
    """The first call less the second."""
    libraries = [lib for lib in results["versions"] if lib in COMPILING]
    rows = []
    for name, cell in results["cells"].items():
        for op in OPERATIONS:
            value = {lib: cell[lib]["compile"][op] for lib in libraries if op in cell[lib].get("compile", {})}
            if value:
                rows.append([name, op, *(f"{compile_seconds(value[lib]):.1f}" if lib in value else "n/a" for lib in libraries)])
    return table(["cell", "op", *libraries], rows)


def _accuracy_entry(mine: dict) -> str:
    if "loss" in mine:
        return number(mine["loss"], 4)
    steps = f", {mine['steps']} steps" if mine["steps"] is not None else ""
    if mine["max"] is None:
        return "non-finite"
    if "mean" in mine:
        return f"{mine['max']:.1e} ({mine['mean']:.1e} +- {mine['sem']:.1e}){steps}"
    return f"{mine['max']:.1e} (rms {mine['rms']:.1e}){steps}"


def _accuracy(results: dict) -> str:
    libraries = list(results["versions"])
    rows = []
    for name, cell in results["cells"].items():
        for op in OPERATIONS:
            value = {lib: cell[lib]["accuracy"][op] for lib in libraries if op in cell[lib].get("accuracy", {})}
            if value:
                rows.append([name, op, *(_accuracy_entry(value[lib]) if lib in value else "n/a" for lib in libraries)])
    return table(["cell", "op", *libraries], rows)


def _memory(results: dict) -> str:
    entries = [(lib, kind, sizes) for lib, kinds in results["memory"].items() for kind, sizes in kinds.items()]
    steps = list(entries[0][2])
    rows = [
        [lib, kind, *(f"{sizes[num] / 2**20:.2f}" for num in steps), f"{sizes[steps[-1]] / sizes[steps[0]]:.1f}"]
        for lib, kind, sizes in entries
    ]
    return table(["library", "kind", *(f"{num} steps" for num in steps), f"growth at {steps[-1]}"], rows)


def _goals(results: dict) -> str:
    """How many times faster genmod is, where both sides were measured."""
    rows = []
    for (name, ours, theirs, peers), wanted in GOALS:
        cell = results["cells"].get(name, {})

        def cpu_ms(library: str, op: str, cell: dict = cell) -> float | None:
            return cell.get(library, {}).get("time", {}).get(op, {}).get("cpu_ms")

        mine = cpu_ms(OURS, ours)
        others = {lib: ms for lib in peers if (ms := cpu_ms(lib, theirs)) is not None}
        if mine is not None and others:
            best = min(others, key=lambda lib: others[lib])
            faster = others[best] / mine
            verdict = "met" if faster >= wanted else "short"
            rows.append([name, ours, f"{best} {theirs}", f"{faster:.2f}", f"{wanted:.2f}", verdict])
    return table(["cell", "op", "against", "times faster", "aim", ""], rows)


def markdown(results: dict) -> str:
    """The whole report."""
    cnf, fm = results["steps"]
    parts = [
        "# Benchmark of continuous flows, flow matching and diffusions",
        tables.provenance(results),
        "## CPU milliseconds per call (ratio to the fastest peer)",
        tables.times(results, "cpu_ms", OPERATIONS),
        "## Wall milliseconds per call (ratio to the fastest peer)",
        tables.times(results, "wall_ms", OPERATIONS),
        "## Compilation, CPU seconds",
        _compilation(results),
        "## Accuracy",
        f"Training: mean loss of the last quarter of {cnf} (cnf) or {fm} (fm, dm) steps from shared initial weights and batches. "
        "log_prob: max |error| beside float64, in nats (mean error); one probe is unbiased, not exact. "
        "Sampling: max |error| of where shared noise is sent. Solver steps as the library tells.",
        _accuracy(results),
        "## How many times faster genmod is",
        _goals(results),
    ]
    if results.get("memory"):
        parts += ["## Memory of a training step with exact trace by number of solver steps, MiB", _memory(results)]
    return "\n\n".join(parts)
