"""Zuko: `RealNVP`, the coupling flow with a spline univariate, and `MAF`."""

from functools import partial

import torch
import zuko

from experiments.benchmarks.flows.problems import Cell
from experiments.benchmarks.peer import Arrays, Unsupported
from experiments.benchmarks.torch_peer import TorchPeer


def _flow(cell: Cell) -> zuko.lazy.Flow:
    """The library's premade flow.

    `zuko.flows.NSF(passes=2)` is also a coupling, through a masked network; the general coupling flow is the cheaper way to
    the same model.
    """
    if cell.flow == "glow":
        raise Unsupported("zuko has no glow")
    sizes = {"transforms": cell.num_layers, "hidden_features": (cell.hidden_size,) * 2}
    if cell.flow == "nsf":
        univariate = partial(zuko.transforms.MonotonicRQSTransform, bound=cell.bound)
        shapes = [(cell.num_bins,), (cell.num_bins,), (cell.num_bins - 1,)]
        return zuko.flows.NICE(cell.dim, univariate=univariate, shapes=shapes, **sizes)
    return (zuko.flows.RealNVP if cell.flow == "realnvp" else zuko.flows.MAF)(cell.dim, **sizes)


def build(cell: Cell, arrays: Arrays) -> TorchPeer:
    """The flow."""
    torch.manual_seed(0)
    flow = _flow(cell)

    def round_trip(x: torch.Tensor) -> torch.Tensor:
        transform = flow().transform
        return transform.inv(transform(x))

    functions = {
        "log_prob": lambda x: flow().log_prob(x),
        "sample": lambda: flow().sample((cell.num_samples,)),
        "round_trip": round_trip,
    }
    return TorchPeer(flow, arrays["batches"], {"train": lambda x: -flow().log_prob(x).mean()}, functions)
