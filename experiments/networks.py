"""What the basic networks do before they are trained: gradients against depth and time, receptive fields, shifts of the image.

python -m experiments.networks

Each measurement stands beside what theory says of it, so that the experiment checks itself: see `network_gradients` and
`network_symmetries` for the laws. Figures: gradients against depth, by activation, initialisation, residual connections and layer
norm, and against time, by recurrent cell, medians and quartiles over draws of the weights beside the root of E|g|^2 by the law;
the weight of each pixel of a receptive field; features of shifted digits.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments import network_gradients, network_symmetries
from experiments.network_gradients import ACTIVATIONS, CELLS, VARIANTS
from genmod.core.keys import stream
from genmod.lab.panels import Curve


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 100
    """Of the layers whose gradients are followed back."""
    depth: int = 20
    num_draws: int = 300
    """Of weights and inputs, for every gradient against depth."""
    num_features: int = 48
    """Of the recurrent cells."""
    num_time_steps: int = 50
    num_time_draws: int = 100
    field_layers: tuple[int, ...] = (2, 4, 8)
    """Numbers of 3x3 convolutions whose effective receptive field is measured."""
    num_field_draws: int = 300
    side: int = 32
    """Of the images that are shifted; digits of 8x8 pixels stand in their middle."""
    shifts: tuple[int, ...] = (1, 2, 3, 4, 8)
    num_digits: int = 50
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    metrics: dict[str, Any] = {"model": "networks"}
    for part in (depth, time, fields, shifts):
        rows, found = part(config, run, stream(key, part.__name__))
        text = gm.lab.text_table(rows)
        print(f"{text}\n")
        (run.folder / f"{part.__name__}.txt").write_text(text + "\n")
        metrics |= found
    return metrics


def depth(config: Config, run: gm.lab.Run, key: jax.Array) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The factor of E|g|^2 per layer beside the law, and the figure."""
    drawn = network_gradients.against_depth(key, config.width, config.depth, config.num_draws)
    below, metrics = np.arange(config.depth, -1, -1), {}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    panels: dict[str, list[Curve]] = {}
    for name, activation in ACTIVATIONS.items():
        for i, variant in enumerate(VARIANTS):
            norms, law = drawn[name][:, i], network_gradients.depth_law(activation, variant, config.depth)
            measured, expected = network_gradients.factor(norms), float(law[0] ** (1 / config.depth))
            row = rows.setdefault((name, variant.layer), {"activation": name, "layer": variant.layer})
            row |= {f"{variant.initialisation}, per layer": str(measured), f"{variant.initialisation}, law": f"{expected:.4f}"}
            entry = f"{name}_{variant.initialisation}_{variant.layer}_factor".replace(", ", "_").replace(" ", "_")
            metrics |= {entry: measured.value, f"{entry}_sem": measured.sem, f"{entry}_law": expected}
            panel = panels.setdefault(f"{variant.initialisation}, {variant.layer}", [])
            low, median, high = np.quantile(norms, [0.25, 0.5, 0.75], axis=0)
            panel += [Curve(name, below, median, low, high), Curve(name, below, np.sqrt(law), style="--")]
    title = f"Gradients at initialisation, {config.width} units: median and quartiles, and the root of E|g|^2 by theory (dashed)"
    xlabel, ylabel = "layers below the output", "|gradient|"
    gm.lab.panels.curves(run.figure("depth"), panels, title=title, log=True, xlabel=xlabel, ylabel=ylabel)
    return list(rows.values()), metrics


def time(config: Config, run: gm.lab.Run, key: jax.Array) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The factor of E|g|^2 per step beside the law, or beside that of the gate alone, and the figure."""
    rows, metrics = [], {}
    panels: dict[str, list[Curve]] = {}
    before = np.arange(config.num_time_steps)
    for name, cell in CELLS.items():
        sizes = config.num_features, config.num_time_steps, config.num_time_draws
        norms, square = network_gradients.against_time(stream(key, name), cell, *sizes)
        measured, law = network_gradients.step_factor(norms), network_gradients.time_law(cell, square)
        kind = "the gate alone" if cell.gate else "law"
        rows.append({"cell": name, "per step": str(measured), kind: f"{law:.4f}"})
        entry = f"{name}_factor".replace(", ", "_").replace(" ", "_")
        metrics |= {entry: measured.value, f"{entry}_sem": measured.sem, f"{entry}_law": law}
        low, median, high = np.quantile(norms, [0.25, 0.5, 0.75], axis=0)
        curves = [Curve(name, before, median, low, high)]
        if not cell.gate:
            curves.append(Curve(name, before, np.sqrt(law ** (before + 1.0)), style="--"))
        panels.setdefault("gated" if cell.gate else "without gates", []).extend(curves)
    title = f"Gradients of the last output at initialisation, {config.num_features} units: median and quartiles (law dashed)"
    xlabel, ylabel = "steps before the last", "|gradient|"
    gm.lab.panels.curves(run.figure("time"), panels, title=title, log=True, xlabel=xlabel, ylabel=ylabel)
    return rows, metrics


def fields(config: Config, run: gm.lab.Run, key: jax.Array) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Receptive fields by formula and by gradient, the spread of the effective ones, and their figure."""
    rows, metrics, images = [], {}, []
    for i, (size, dilations) in enumerate(network_symmetries.CAUSAL):
        formula, counted = network_symmetries.causal_field(stream(key, "causal", i), size, dilations)
        rows.append({"network": f"causal, kernel {size}, dilations {dilations}", "field": formula, "by gradient": counted})
        metrics |= {f"causal_field_{i}": counted, f"causal_field_{i}_law": formula}
    for i, layers in enumerate(network_symmetries.STACKS):
        formula, counted = network_symmetries.image_field(stream(key, "image", i), layers)
        names = ", ".join(f"{size}x{size}" if size % 2 else f"mean {size}x{size}" for size in layers)
        rows.append({"network": names, "field": formula, "by gradient": counted})
        metrics |= {f"image_field_{i}": counted, f"image_field_{i}_law": formula}
    largest = 2 * max(config.field_layers) + 1
    for num in config.field_layers:
        mass, spread, law = network_symmetries.effective_field(stream(key, "effective", num), num, config.num_field_draws)
        row = {"network": f"{num} of 3x3, ReLU", "field": 2 * num + 1, "by gradient": ""}
        rows.append(row | {"spread of its square": str(spread), "law": f"{law:.4f}"})
        metrics |= {f"spread_{num}": spread.value, f"spread_{num}_sem": spread.sem, f"spread_{num}_law": law}
        image = np.pad(np.sqrt(mass / mass.max()), (largest - len(mass)) // 2)
        images.append((f"{num} layers", image[None, ..., None]))
    gm.lab.plot.images(run.figure("fields"), images, title="what an output sees")
    return rows, metrics


def shifts(config: Config, run: gm.lab.Run, key: jax.Array) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Errors of equivariance, and by how much features of shifted digits change, with its figure."""
    num_layers = 4
    rows = network_symmetries.equivariance(stream(key, "noise"), config.shifts, config.side, num_layers)
    metrics = {
        f"shift_{row['shift']}_{name}".replace(",", "").replace(" ", "_"): value
        for row in rows
        for name, value in row.items()
        if name != "shift"
    }
    digits = jnp.asarray(gm.data.images.digits(config.seed).test[: config.num_digits], jnp.float32) / 16
    margin = (config.side - digits.shape[1]) // 2
    if margin < max(config.shifts) + num_layers:
        least = digits.shape[1] + 2 * (max(config.shifts) + num_layers)
        raise ValueError(f"side must be at least {least}, or features of shifted digits meet the border, got {config.side}")
    digits = jnp.pad(digits, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    changes = network_symmetries.invariance(stream(key, "digits"), digits, config.shifts, num_layers)
    curves = []
    for name, change in changes.items():
        low, median, high = np.quantile(change, [0.25, 0.5, 0.75], axis=0)
        curves.append(Curve(name, config.shifts, median, low, high, style="o-"))
        for by, row, value in zip(config.shifts, rows, median, strict=True):
            row[f"change, {name}"] = float(value)
            metrics[f"shift_{by}_change_{name}".replace(" ", "_")] = float(value)
    title = "Change of features of a digit on black by a shift: median and quartiles"
    xlabel, ylabel = "pixels", "|f(shifted) - f| / |f|"
    gm.lab.panels.curves(run.figure("shifts"), {"": curves}, title=title, xlabel=xlabel, ylabel=ylabel)
    shown = [{name: value if name == "shift" else f"{value:.2g}" for name, value in row.items()} for row in rows]
    return shown, metrics


if __name__ == "__main__":
    small = {"num_features": 32, "num_time_steps": 30, "num_time_draws": 50, "field_layers": (2, 4), "num_digits": 20}
    gm.lab.main(experiment, Config, quick={"width": 64, "depth": 15, "num_draws": 100, "num_field_draws": 100, **small})
