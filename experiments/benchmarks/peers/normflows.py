"""normflows: affine coupling blocks, spline couplings and masked affine autoregressive layers."""

import normflows as nf
import torch
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
from normflows.utils.masks import create_alternating_binary_mask

from experiments.benchmarks.peers import base
from experiments.benchmarks.peers.torch_flow import TorchFlow


class _MLP(nf.nets.MLP):
    """The library's MLP with the (ignored) context argument that spline couplings pass.

    `hidden_features` lets the spline scale its logits, as with the library's ResNet.
    """

    def __init__(self, layers: list[int]) -> None:
        super().__init__(layers)
        self.hidden_features = layers[-2]

    def forward(self, x: torch.Tensor, context: None = None) -> torch.Tensor:
        del context
        return super().forward(x)


class _SplineCoupling(nf.flows.Flow):
    """`CoupledRationalQuadraticSpline` with an MLP, and no unconditional spline on the other half."""

    def __init__(self, cell: base.Cell, index: int) -> None:
        super().__init__()

        def net(in_features: int, out_features: int) -> _MLP:
            return _MLP([in_features, *cell.hidden_sizes, out_features])

        self.coupling = PiecewiseRationalQuadraticCoupling(
            create_alternating_binary_mask(cell.dim, even=index % 2 == 0),
            net,
            num_bins=cell.num_bins,
            tails="linear",
            tail_bound=cell.bound,
        )

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.coupling.inverse(z)

    def inverse(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.coupling(z)


def _layer(cell: base.Cell, index: int) -> list[nf.flows.Flow]:
    """The flows of one layer. The library's MAF is fast from base to data, so it is reversed."""
    if cell.flow == "nsf":
        return [_SplineCoupling(cell, index)]
    permute = nf.flows.Permute(cell.dim, mode="swap" if cell.dim == 2 else "shuffle")
    if cell.flow == "realnvp":
        mlp = nf.nets.MLP([cell.dim // 2, *cell.hidden_sizes, cell.dim], init_zeros=True)
        return [nf.flows.AffineCouplingBlock(mlp, scale_map="sigmoid"), permute]
    made = nf.flows.MaskedAffineAutoregressive(
        cell.dim, cell.hidden_size, num_blocks=cell.num_hidden - 1, use_residual_blocks=False
    )
    return [nf.flows.Reverse(made), permute]


def build(cell: base.Cell) -> TorchFlow:
    """The flow."""
    torch.manual_seed(0)
    layers = [flow for i in range(cell.num_layers) for flow in _layer(cell, i)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(cell.dim, trainable=False), layers)
    return TorchFlow(
        model,
        log_prob=model.log_prob,
        sample=lambda num: model.sample(num)[0],
        round_trip=lambda x: model.forward(model.inverse(x)),
    )
