"""normflows: affine coupling blocks, spline couplings, masked affine autoregressive layers, and Glow in a `MultiscaleFlow`."""

import normflows as nf
import torch
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
from normflows.utils.masks import create_alternating_binary_mask

from experiments.benchmarks.flows._torch import for_spline
from experiments.benchmarks.flows.problems import Cell
from experiments.benchmarks.peer import Arrays
from experiments.benchmarks.torch_peer import TorchPeer


def _spline(cell: Cell, index: int) -> nf.flows.Flow:
    """`CoupledRationalQuadraticSpline` with an MLP, and no unconditional spline on the other half."""

    def net(in_features: int, out_features: int) -> torch.nn.Module:
        return for_spline(nf.nets.MLP([in_features, cell.hidden_size, cell.hidden_size, out_features]), cell.hidden_size)

    mask = create_alternating_binary_mask(cell.dim, even=index % 2 == 0)
    sizes = {"num_bins": cell.num_bins, "tails": "linear", "tail_bound": cell.bound}
    return nf.flows.Reverse(PiecewiseRationalQuadraticCoupling(mask, net, **sizes))


def _layer(cell: Cell, index: int) -> list[nf.flows.Flow]:
    """The flows of one layer. The library's MAF is fast from base to data, so it is reversed."""
    if cell.flow == "nsf":
        return [_spline(cell, index)]
    permute = nf.flows.Permute(cell.dim, mode="swap" if cell.dim == 2 else "shuffle")
    if cell.flow == "realnvp":
        mlp = nf.nets.MLP([cell.dim // 2, cell.hidden_size, cell.hidden_size, cell.dim], init_zeros=True)
        return [nf.flows.AffineCouplingBlock(mlp, scale_map="sigmoid"), permute]
    sizes = {"num_blocks": 1, "use_residual_blocks": False}
    return [nf.flows.Reverse(nf.flows.MaskedAffineAutoregressive(cell.dim, cell.hidden_size, **sizes)), permute]


def _glow(cell: Cell) -> nf.MultiscaleFlow:
    """As in the library's example of Glow: two scales, the coarsest first; Gaussians with a learned mean and scale per latent
    instead of one per class."""
    height, width, channels = cell.event_shape
    priors, flows = [], []
    for scale in (2, 1):
        inside = channels * 2 ** (scale + 1)
        steps = [nf.flows.GlowBlock(inside, cell.hidden_size, split_mode="channel") for _ in range(cell.num_layers)]
        flows.append([*steps, nf.flows.Squeeze()])
        priors.append(
            nf.distributions.DiagGaussian((inside if scale == 2 else inside // 2, height // 2**scale, width // 2**scale))
        )
    return nf.MultiscaleFlow(priors, flows, [nf.flows.Merge()], transform=nf.transforms.Logit(alpha=0.05), class_cond=False)


def _glow_peer(cell: Cell, arrays: Arrays) -> TorchPeer:
    """The library wants (N, C, H, W) and calls the classes of x, unused here, y."""
    model = _glow(cell)

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        return model.log_prob(x.movedim(-1, 1), y=None)

    functions = {
        "log_prob": log_prob,
        "sample": lambda: model.sample(cell.num_samples)[0].movedim(1, -1),
        "round_trip": lambda x: model.forward_and_log_det(model.inverse_and_log_det(x.movedim(-1, 1))[0])[0].movedim(1, -1),
    }
    peer = TorchPeer(model, arrays["batches"], {"train": lambda x: -log_prob(x).mean()}, functions)
    peer.bind("log_prob", arrays["batches"][0])()  # starts the actnorms
    return peer


def build(cell: Cell, arrays: Arrays) -> TorchPeer:
    """The flow."""
    torch.manual_seed(0)
    if cell.flow == "glow":
        return _glow_peer(cell, arrays)
    layers = [flow for i in range(cell.num_layers) for flow in _layer(cell, i)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(cell.dim, trainable=False), layers)
    functions = {
        "log_prob": model.log_prob,
        "sample": lambda: model.sample(cell.num_samples)[0],
        "round_trip": lambda x: model.forward(model.inverse(x)),
    }
    return TorchPeer(model, arrays["batches"], {"train": lambda x: -model.log_prob(x).mean()}, functions)
