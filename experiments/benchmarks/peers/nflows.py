"""nflows: affine and spline coupling transforms with MLPs, and masked affine autoregressive ones."""

import torch
from nflows import distributions, flows, transforms
from nflows.nn import nets
from nflows.utils import torchutils

from experiments.benchmarks.peers import base
from experiments.benchmarks.peers.torch_flow import TorchFlow


class _MLP(nets.MLP):
    """The library's MLP with the (ignored) context argument that couplings pass.

    `hidden_features` lets the spline scale its logits, as with the library's ResNet.
    """

    def __init__(self, in_features: int, out_features: int, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__([in_features], [out_features], hidden_sizes)
        self.hidden_features = hidden_sizes[-1]

    def forward(self, inputs: torch.Tensor, context: None = None) -> torch.Tensor:
        del context
        return super().forward(inputs)


def _layer(cell: base.Cell, index: int) -> list[transforms.Transform]:
    """The transforms of one layer."""
    if cell.flow == "maf":
        made = transforms.MaskedAffineAutoregressiveTransform(
            cell.dim, cell.hidden_size, num_blocks=cell.num_hidden - 1, use_residual_blocks=False
        )
        return [transforms.ReversePermutation(cell.dim), made]
    mask = torchutils.create_alternating_binary_mask(cell.dim, even=index % 2 == 0)

    def net(in_features: int, out_features: int) -> _MLP:
        return _MLP(in_features, out_features, cell.hidden_sizes)

    if cell.flow == "realnvp":
        return [transforms.AffineCouplingTransform(mask, net)]
    return [
        transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask, net, num_bins=cell.num_bins, tails="linear", tail_bound=cell.bound
        )
    ]


def build(cell: base.Cell) -> TorchFlow:
    """The flow."""
    torch.manual_seed(0)
    layers = [transform for i in range(cell.num_layers) for transform in _layer(cell, i)]
    transform = transforms.CompositeTransform(layers)
    flow = flows.Flow(transform, distributions.StandardNormal([cell.dim]))
    return TorchFlow(
        flow,
        log_prob=flow.log_prob,
        sample=flow.sample,
        round_trip=lambda x: transform.inverse(transform(x)[0])[0],
    )
