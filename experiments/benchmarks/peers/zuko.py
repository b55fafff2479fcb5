"""Zuko: `RealNVP`, the coupling flow with a spline univariate, and `MAF`."""

from functools import partial

import torch
import zuko

from experiments.benchmarks.peers import base
from experiments.benchmarks.peers.torch_flow import TorchFlow


def _flow(cell: base.Cell) -> zuko.lazy.Flow:
    """The library's premade flow.

    `zuko.flows.NSF(passes=2)` is also a coupling, through a masked network; the
    general coupling flow is the cheaper way to the same model.
    """
    sizes = {"transforms": cell.num_layers, "hidden_features": cell.hidden_sizes}
    if cell.flow == "realnvp":
        return zuko.flows.RealNVP(cell.dim, **sizes)
    if cell.flow == "nsf":
        return zuko.flows.NICE(
            cell.dim,
            univariate=partial(zuko.transforms.MonotonicRQSTransform, bound=cell.bound),
            shapes=[(cell.num_bins,), (cell.num_bins,), (cell.num_bins - 1,)],
            **sizes,
        )
    return zuko.flows.MAF(cell.dim, **sizes)


def build(cell: base.Cell) -> TorchFlow:
    """The flow."""
    torch.manual_seed(0)
    flow = _flow(cell)

    def round_trip(x: torch.Tensor) -> torch.Tensor:
        transform = flow().transform
        return transform.inv(transform(x))

    return TorchFlow(
        flow,
        log_prob=lambda x: flow().log_prob(x),
        sample=lambda num: flow().sample((num,)),
        round_trip=round_trip,
    )
