"""Figures of several panels of curves, beside the laws that the curves should follow. Matplotlib, imported only to draw."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genmod.lab.plot import _pyplot, _save


class Curve(NamedTuple):
    """A curve of a panel.

    Attributes:
      name: in the legend; curves of one name have one colour in all panels, and one entry.
      x, y: (n,) each. low, high: (n,) each, the ends of a band around it; None: no band.
      style: Matplotlib's: "-" a line, "o" points, "o-" both, "--" a dashed line, for a law.
    """

    name: str
    x: Any
    y: Any
    low: Any = None
    high: Any = None
    style: str = "-"


def curves(
    path: Path,
    panels: dict[str, list[Curve]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    columns: int = 4,
    log: bool = False,
    share: bool = True,
) -> None:
    """A panel of curves for each name, so many in a row, with one legend below.

    Args:
      path: of the PNG. panels: name -> its curves.
      xlabel, ylabel: of the outer axes. title: of the figure.
      columns: panels in a row.
      log: whether the vertical axes are logarithmic. share: whether all panels have the same vertical axis.
    """
    names = list(dict.fromkeys(curve.name for panel in panels.values() for curve in panel))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (max(3.1 * columns, 6.0) + 0.4, 2.7 * rows + 1.0)
    figure, axes = _pyplot().subplots(rows, columns, figsize=size, squeeze=False, sharey=share, constrained_layout=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    handles: dict[str, Any] = {}
    for i, (axis, (name, panel)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
        for curve in panel:
            color = f"C{names.index(curve.name)}"
            (line,) = axis.plot(curve.x, curve.y, curve.style, color=color, linewidth=1.3, markersize=4)
            handles.setdefault(curve.name, line)
            if curve.low is not None:
                axis.fill_between(curve.x, np.asarray(curve.low), np.asarray(curve.high), color=color, alpha=0.2, linewidth=0)
        axis.set_title(name, fontsize=9)
        if i >= len(panels) - columns:
            axis.set_xlabel(xlabel)
        if i % columns == 0:
            axis.set_ylabel(ylabel)
        if log:
            axis.set_yscale("log")
        if all(np.asarray(curve.x).dtype.kind in "iu" for curve in panel):
            axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 2 * columns))
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def log_log(path: Path, panels: dict[str, list[Curve]], *, ylabel: str, title: str = "") -> None:
    """Panels side by side, both axes logarithmic and the vertical one shared, each with a legend and colours of its own.

    Args:
      path: of the PNG. panels: label of the horizontal axis -> its curves; their colours go from dark to light in the order of
        names.
      ylabel: of the shared axis. title: of the figure.
    """
    plt = _pyplot()
    size = (4.4 * len(panels), 4.4)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True, constrained_layout=True)
    for axis, (label, panel) in zip(axes[0], panels.items(), strict=True):
        names = list(dict.fromkeys(curve.name for curve in panel))
        colors = dict(zip(names, plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(names))), strict=True))
        named: set[str] = set()
        for curve in panel:
            shown = curve.name if curve.name not in named else None
            named.add(curve.name)
            axis.plot(curve.x, curve.y, curve.style, color=colors[curve.name], label=shown, linewidth=1.2, markersize=5)
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.grid(which="both", linewidth=0.3, alpha=0.5)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    for which in (axes[0][0].yaxis.set_major_formatter, axes[0][0].yaxis.set_minor_formatter):
        which(plt.ScalarFormatter())
    axes[0][0].set_ylabel(ylabel)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def densities(path: Path, columns: dict[str, tuple[Any, Any]], low: Any, high: Any, *, title: str = "") -> None:
    """Densities in the plane side by side: above them the energy surfaces, -log p, below them points; one scale for each row.

    Args:
      path: of the PNG.
      columns: name -> (log p at the midpoints of num x num cells, the first axis that of x_1; points, (n, 2)). The first is the
        reference: its greatest density is where both scales end.
      low, high: the corners of the box, (2,) each.
      title: of the figure.
    """
    plt = _pyplot()
    aspect = float((high[1] - low[1]) / (high[0] - low[0]))
    size = (1.7 * len(columns) + 1.2, 3 * 1.7 * aspect + 1.3)
    figure, axes = plt.subplots(3, len(columns), figsize=size, squeeze=False, sharex=True, sharey=True, constrained_layout=True)
    figure.get_layout_engine().set(h_pad=0.06)
    peak = float(np.max(next(iter(columns.values()))[0]))
    options = {"origin": "lower", "extent": (low[0], high[0], low[1], high[1])}
    surface = density = None
    for above, middle, below, (name, (log_p, points)) in zip(*axes, columns.items(), strict=True):
        surface = above.imshow(-np.asarray(log_p).T, cmap="viridis_r", vmin=-peak, vmax=-peak + 15, **options)
        density = middle.imshow(np.exp(np.asarray(log_p).T), cmap="magma", vmin=0, vmax=np.exp(peak), **options)
        below.scatter(*np.asarray(points).T, s=1, alpha=0.4, linewidths=0)
        below.set(aspect="equal", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        above.set_title(name, fontsize=9)
        for axis in (above, middle, below):
            axis.tick_params(labelsize=7)
    for row, shown, label, extend in ((axes[0], surface, "-log p (nats)", "both"), (axes[1], density, "p", "max")):
        figure.colorbar(shown, ax=row.tolist(), extend=extend, pad=0.01, aspect=12).ax.tick_params(labelsize=7)
        row[0].set_ylabel(label, fontsize=9)
    axes[2][0].set_ylabel("draws", fontsize=9)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def images_of_density(path: Path, panels: dict[str, Any], low: Any, high: Any, *, columns: int = 6, title: str = "") -> None:
    """Densities in the plane, a panel for each name, so many in a row, on one scale.

    Args:
      path: of the PNG.
      panels: name -> log p at the midpoints of num x num cells, the first axis that of x_1. The scale ends at the 99.9 % quantile
        of the first.
      low, high: the corners of the box, (2,) each.
      columns: panels in a row. title: of the figure.
    """
    aspect = float((high[1] - low[1]) / (high[0] - low[0]))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (2.1 * columns + 0.2, (2.1 * aspect + 0.3) * rows + 0.3)
    figure, axes = _pyplot().subplots(rows, columns, figsize=size, squeeze=False, constrained_layout=True)
    brightest = float(np.quantile(np.nan_to_num(np.exp(next(iter(panels.values())))), 0.999))
    extent = (low[0], high[0], low[1], high[1])
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, log_p) in zip(axes.flat, panels.items(), strict=False):
        axis.imshow(np.exp(np.asarray(log_p)).T, cmap="magma", vmin=0, vmax=brightest, origin="lower", extent=extent)
        axis.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)
