"""Figures for experiments. Matplotlib, imported only when a figure is drawn; each function writes one PNG."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ImportError('figures need matplotlib; pip install "genmod-jax[experiments]"') from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def samples(
    path: Path,
    data: Any,
    model: Any,
    *,
    title: str = "",
    names: tuple[str, str] = ("data", "samples"),
    max_points: int = 5_000,
    max_dims: int = 4,
) -> None:
    """Data beside samples, (n, D): histograms for D = 1, a scatter for D = 2, marginals and pairs beyond; `names` of both."""
    data, model = np.asarray(data)[:max_points], np.asarray(model)[:max_points]
    dim = data.shape[1]
    if dim == 1:
        figure, axis = _pyplot().subplots(figsize=(6, 4), constrained_layout=True)
        _histograms(axis, data[:, 0], model[:, 0], names, legend=True)
    elif dim == 2:
        low, high = _limits(data)
        size = (8, _height(4, low, high))
        figure, axes = _pyplot().subplots(1, 2, figsize=size, sharex=True, sharey=True, constrained_layout=True)
        for axis, x, name, color in zip(axes, (data, model), names, ("C0", "C1"), strict=True):
            axis.scatter(*x.T, s=2, alpha=0.4, color=color, linewidths=0)
            axis.set(title=name, aspect="equal", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    else:
        figure = _pairs(data, model, min(dim, max_dims), names)
    figure.suptitle(title)
    _save(figure, path)


def density(
    path: Path, log_prob_fn: Callable, data: Any, *, title: str = "", true_log_prob_fn: Any = None, num: int = 200
) -> None:
    """The density of a 2-D model as an image over the range of the data, beside the true one where known."""
    low, high = _limits(np.asarray(data))
    grid = np.stack(np.meshgrid(*(np.linspace(a, b, num) for a, b in zip(low, high, strict=True))), -1)
    points = jnp.asarray(grid, jnp.asarray(data).dtype)
    panels = [("model", log_prob_fn)] + ([("truth", true_log_prob_fn)] if true_log_prob_fn is not None else [])
    images = [(name, np.exp(np.asarray(fn(points.reshape(-1, 2))).reshape(num, num))) for name, fn in panels]
    brightest = np.quantile(images[-1][1], 0.999) or 1.0
    size = (4.4 * len(panels), _height(4, low, high))
    figure, axes = _pyplot().subplots(1, len(panels), figsize=size, squeeze=False, constrained_layout=True)
    extent = (low[0], high[0], low[1], high[1])
    options = {"origin": "lower", "extent": extent, "vmin": 0, "vmax": brightest, "cmap": "magma"}
    shown = [axis.imshow(image, **options) for axis, (_, image) in zip(axes[0], images, strict=True)]
    for axis, (name, _) in zip(axes[0], images, strict=True):
        axis.set(title=name)
    figure.colorbar(shown[-1], ax=axes[0].tolist(), label="density")
    figure.suptitle(title)
    _save(figure, path)


def training(
    path: Path,
    history: dict[str, np.ndarray],
    *,
    limit: float | None = None,
    title: str = "",
    ylabel: str = "loss (nats)",
) -> None:
    """Training and validation loss against the step, with the exact limit where known."""
    figure, axis = _pyplot().subplots(figsize=(6, 4), constrained_layout=True)
    axis.plot(history["step"], history["loss"], label="training", linewidth=1)
    shown = [history["loss"]]
    if "validation_loss" in history:
        axis.plot(history["step"], history["validation_loss"], label="validation", linewidth=1)
        shown.append(history["validation_loss"])
    if limit is not None:
        axis.axhline(limit, color="black", linestyle="--", linewidth=1, label="exact limit")
    values = np.concatenate(shown)
    # The first steps would squeeze everything else flat.
    low, high = np.nanmin(values), np.nanquantile(values, 0.95)
    low = low if limit is None else min(low, limit)
    axis.set(
        xlabel="step",
        ylabel=ylabel,
        ylim=(low - 0.05 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3),
        title=title,
    )
    axis.legend()
    _save(figure, path)


def lines(path: Path, x: Any, curves: dict[str, Any], *, xlabel: str, ylabel: str, title: str = "", log: bool = False) -> None:
    """Named curves over one axis; the first is drawn as the reference, in black. `log`: both axes logarithmic.

    x: what all curves stand over; None where each curve is a pair (x, y) of its own.
    """
    figure, axis = _pyplot().subplots(figsize=(7, 4), constrained_layout=True)
    for i, (name, curve) in enumerate(curves.items()):
        pair = curve if x is None else (x, curve)
        axis.plot(*pair, label=name, color="black" if i == 0 else f"C{i - 1}", linewidth=1.5)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if log:
        axis.set(xscale="log", yscale="log")
    axis.legend()
    _save(figure, path)


def images(path: Path, rows: Sequence[tuple[str, Any]], *, title: str = "") -> None:
    """Rows of images, (name, (n, H, W, C)) each, values in [0, 1] (clipped); C is 1 (grey) or 3 (RGB)."""
    columns = max(len(row) for _, row in rows)
    size = (0.75 * columns + 1.0, 0.75 * len(rows) + (0.5 if title else 0.1))
    figure, axes = _pyplot().subplots(len(rows), columns, figsize=size, squeeze=False, constrained_layout=True)
    for line, (name, row) in zip(axes, rows, strict=True):
        for axis in line:
            axis.axis("off")
        for axis, image in zip(line, np.clip(np.asarray(row), 0.0, 1.0), strict=False):
            axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def histograms(path: Path, values: dict[str, Any], *, xlabel: str, title: str = "", log: bool = False) -> None:
    """Named samples, (n,) each, as shares in common bins; the first is drawn as the reference, filled in grey.

    log: bins of equal ratio on a logarithmic axis, for positive values. Bins end at the 0.1% and 99.9% quantiles.
    """
    arrays = {name: np.asarray(sample, np.float64) for name, sample in values.items()}
    ends = np.array([np.quantile(sample, [0.001, 0.999]) for sample in arrays.values()])
    bins: Sequence[float] = (np.geomspace if log else np.linspace)(ends.min(), ends.max(), 41).tolist()
    figure, axis = _pyplot().subplots(figsize=(7, 4), constrained_layout=True)
    for i, (name, sample) in enumerate(arrays.items()):
        style = {"color": "0.75"} if i == 0 else {"color": f"C{i - 1}", "histtype": "step", "linewidth": 1.5}
        axis.hist(sample, bins=bins, weights=np.full(len(sample), 1 / len(sample)), label=name, **style)
    axis.set(xlabel=xlabel, ylabel="share", title=title)
    if log:
        axis.set(xscale="log")
        # Plain numbers, between the powers of ten too where few are in sight.
        axis.xaxis.set_major_formatter(_pyplot().LogFormatter())
        axis.xaxis.set_minor_formatter(_pyplot().LogFormatter(minor_thresholds=(1.5, 0.5)))
    axis.legend()
    _save(figure, path)


def intervals(
    path: Path, draws: dict[str, Any], rows: Sequence[str], *, xlabel: str, title: str = "", linear: float | None = None
) -> None:
    """Draws of k numbers by name, (n, k) each: median, middle half (thick) and 95% (thin), side by side in each of the rows.

    linear: the axis is linear up to this number, on either side of zero, and logarithmic beyond; None: linear throughout.
    """
    figure, axis = _pyplot().subplots(figsize=(7, 0.42 * len(rows) + 1.4), constrained_layout=True)
    for i, (name, sample) in enumerate(draws.items()):
        ends = np.quantile(np.asarray(sample, np.float64), [0.025, 0.25, 0.5, 0.75, 0.975], axis=0)
        height = np.arange(len(rows)) + 0.7 * ((i + 0.5) / len(draws) - 0.5)
        color = "black" if i == 0 else f"C{i - 1}"
        axis.hlines(height, ends[0], ends[4], color=color, linewidth=0.8)
        axis.hlines(height, ends[1], ends[3], color=color, linewidth=3)
        axis.plot(ends[2], height, "o", color=color, markersize=4, markeredgecolor="white", label=name)
    axis.axvline(0.0, color="0.7", linewidth=0.8, zorder=0)
    axis.set(yticks=np.arange(len(rows)), yticklabels=rows, xlabel=xlabel, title=title)
    if linear is not None:
        axis.set_xscale("symlog", linthresh=linear)
    axis.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=len(draws))
    _save(figure, path)


def trajectories(path: Path, paths: dict[str, Any], *, title: str = "") -> None:
    """Paths of points in the plane, name -> (n, times, 2): one panel each, starts in black.

    Up to 16 paths have a colour each, and some 40 times are drawn, so that a random one can be followed; many are grey.
    """
    points = np.concatenate([np.asarray(p).reshape(-1, 2) for p in paths.values()])
    low, high = _limits(points)
    size = (4.4 * len(paths), _height(4.4, low, high))
    figure, axes = _pyplot().subplots(1, len(paths), figsize=size, squeeze=False, constrained_layout=True)
    for axis, (name, lines) in zip(axes[0], paths.items(), strict=True):
        lines = np.asarray(lines)
        few = len(lines) <= 16
        if few:
            lines = lines[:, np.unique(np.linspace(0, lines.shape[1] - 1, 40).round().astype(int))]
        for i, line in enumerate(lines):
            axis.plot(*line.T, linewidth=0.9 if few else 0.4, alpha=0.8 if few else 0.6, color=f"C{i % 10}" if few else "0.6")
        axis.scatter(*lines[:, 0].T, s=14 if few else 4, color="black", linewidths=0, label="start", zorder=3)
        ends = {"edgecolor": "black", "linewidths": 0.8, "c": [f"C{i % 10}" for i in range(len(lines))], "s": 28}
        axis.scatter(*lines[:, -1].T, label="end", zorder=3, **(ends if few else {"s": 4, "color": "C1", "linewidths": 0}))
        axis.set(title=name, aspect="equal", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes[0][0].legend(loc="upper right")
    figure.suptitle(title)
    _save(figure, path)


def scatter(
    path: Path,
    panels: dict[str, tuple[Any, Any]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    columns: int = 4,
    like: str | None = None,
) -> None:
    """Points (x, y) of two samples (n,), a panel for each name, so many in a row; all in the range of the panel `like`."""
    rows = -(-len(panels) // columns)
    figure, axes = _pyplot().subplots(
        rows, columns, figsize=(3.2 * columns, 3 * rows + 0.4), squeeze=False, constrained_layout=True
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (name, (x, y)) in zip(axes.flat, panels.items(), strict=False):
        axis.scatter(np.asarray(x), np.asarray(y), s=2, alpha=0.4, linewidths=0)
        axis.set_title(name, fontsize=9)
        axis.set(xlabel=xlabel, ylabel=ylabel)
    if like is not None:
        shown = axes.flat[list(panels).index(like)]
        _pyplot().setp(list(axes.flat[: len(panels)]), xlim=shown.get_xlim(), ylim=shown.get_ylim())
    figure.suptitle(title)
    _save(figure, path)


def vector_fields(path: Path, fields: dict[str, Callable], data: Any, *, title: str = "") -> None:
    """Fields in the plane by name, each (n, 2) -> (n, 2), as arrows over the range of `data`; more than three in pairs."""
    low, high = _limits(np.asarray(data))
    grid = np.stack(np.meshgrid(*(np.linspace(a, b, 21) for a, b in zip(low, high, strict=True))), -1).reshape(-1, 2)
    points = jnp.asarray(grid, jnp.asarray(data).dtype)
    columns = len(fields) if len(fields) <= 3 else 2
    rows = -(-len(fields) // columns)
    size = (4.6 * columns, rows * _height(3.9, low, high))
    figure, axes = _pyplot().subplots(rows, columns, figsize=size, squeeze=False, constrained_layout=True)
    for axis in axes.flat[len(fields) :]:
        axis.set_axis_off()
    for axis, (name, fn) in zip(axes.flat, fields.items(), strict=False):
        field = np.asarray(fn(points))
        speed = np.linalg.norm(field, axis=1)
        arrows = axis.quiver(
            *grid.T, *(field / (speed[:, None] + 1e-12)).T, speed, cmap="viridis", angles="xy", pivot="mid", scale=28, width=0.006
        )
        figure.colorbar(arrows, ax=axis, label="length", shrink=0.8)
        axis.set(title=name, aspect="equal", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    figure.suptitle(title)
    _save(figure, path)


def _pairs(data: np.ndarray, model: np.ndarray, dims: int, names: tuple[str, str]):
    figure, axes = _pyplot().subplots(dims, dims, figsize=(2.2 * dims, 2.2 * dims), constrained_layout=True)
    low, high = _limits(data)
    for row in range(dims):
        for column in range(dims):
            axis = axes[row, column]
            if row == column:
                _histograms(axis, data[:, row], model[:, row], names, legend=row == 0)
            else:
                # Data above the diagonal, samples below.
                x, color = (data, "C0") if row < column else (model, "C1")
                axis.scatter(x[:, column], x[:, row], s=2, alpha=0.4, color=color, linewidths=0)
                axis.set(ylim=(low[row], high[row]))
            axis.set(xlim=(low[column], high[column]))
            axis.tick_params(labelsize=6)
    return figure


def _histograms(axis, data: np.ndarray, model: np.ndarray, names: tuple[str, str], legend: bool) -> None:
    low, high = np.quantile(data, [0.001, 0.999])
    bins: Sequence[float] = np.linspace(low, high, 60).tolist()
    axis.hist(data, bins=bins, density=True, alpha=0.5, label=names[0], color="C0")
    axis.hist(model, bins=bins, density=True, histtype="step", label=names[1], color="C1")
    if legend:
        axis.legend(fontsize=7)


def _limits(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(data, 0.001, axis=0), np.quantile(data, 0.999, axis=0)
    margin = 0.1 * (high - low) + 1e-6
    return low - margin, high + margin


def _height(width: float, low: np.ndarray, high: np.ndarray) -> float:
    """The height in inches of a figure whose panels are `width` wide and keep the aspect of the data."""
    aspect = (high[1] - low[1]) / (high[0] - low[0])
    return float(np.clip(width * aspect, 0.4 * width, 1.5 * width)) + 0.9


def _save(figure: Any, path: Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    _pyplot().close(figure)
