"""nflows: affine and spline coupling transforms with MLPs, and masked affine autoregressive ones."""

import torch
from nflows import distributions, flows, transforms
from nflows.nn import nets
from nflows.utils import torchutils

from experiments.benchmarks.flows._torch import for_spline
from experiments.benchmarks.flows.problems import Cell
from experiments.benchmarks.peer import Arrays, Unsupported
from experiments.benchmarks.torch_peer import TorchPeer


def _layer(cell: Cell, index: int) -> list[transforms.Transform]:
    """The transforms of one layer."""
    if cell.flow == "glow":
        raise Unsupported("nflows has the layers of a Glow, no Glow")
    if cell.flow == "maf":
        made = transforms.MaskedAffineAutoregressiveTransform
        return [
            transforms.ReversePermutation(cell.dim),
            made(cell.dim, cell.hidden_size, num_blocks=1, use_residual_blocks=False),
        ]
    mask = torchutils.create_alternating_binary_mask(cell.dim, even=index % 2 == 0)

    def net(in_features: int, out_features: int) -> torch.nn.Module:
        return for_spline(nets.MLP([in_features], [out_features], [cell.hidden_size] * 2), cell.hidden_size)

    if cell.flow == "realnvp":
        return [transforms.AffineCouplingTransform(mask, net)]
    spline = transforms.PiecewiseRationalQuadraticCouplingTransform
    return [spline(mask, net, num_bins=cell.num_bins, tails="linear", tail_bound=cell.bound)]


def build(cell: Cell, arrays: Arrays) -> TorchPeer:
    """The flow."""
    torch.manual_seed(0)
    transform = transforms.CompositeTransform([each for i in range(cell.num_layers) for each in _layer(cell, i)])
    flow = flows.Flow(transform, distributions.StandardNormal([cell.dim]))
    functions = {
        "log_prob": flow.log_prob,
        "sample": lambda: flow.sample(cell.num_samples),
        "round_trip": lambda x: transform.inverse(transform(x)[0])[0],
    }
    return TorchPeer(flow, arrays["batches"], {"train": lambda x: -flow.log_prob(x).mean()}, functions)
