"""normflows: `GlowBlock`, `Squeeze` and `Merge` in a `MultiscaleFlow`, as in the library's example of Glow."""

import normflows as nf
import numpy as np
import torch

from experiments.benchmarks.peers.images import base
from experiments.benchmarks.peers.torch_flow import TorchFlow


def _model(cell: base.Cell) -> nf.MultiscaleFlow:
    """Scales from the coarsest to the finest; Gaussians with a learned mean and scale per latent instead of one per class."""
    height, width, channels = base.IMAGE
    priors, flows = [], []
    for scale in range(cell.num_scales, 0, -1):
        coarsest = scale == cell.num_scales
        inside = channels * 2 ** (scale + 1)
        steps = [nf.flows.GlowBlock(inside, cell.hidden_channels, split_mode="channel") for _ in range(cell.num_layers)]
        flows.append([*steps, nf.flows.Squeeze()])
        shape = (inside if coarsest else inside // 2, height // 2**scale, width // 2**scale)
        priors.append(nf.distributions.DiagGaussian(shape))
    merges = [nf.flows.Merge() for _ in flows[1:]]
    return nf.MultiscaleFlow(priors, flows, merges, transform=nf.transforms.Logit(alpha=0.05), class_cond=False)


def build(cell: base.Cell, x: np.ndarray) -> TorchFlow:
    """The flow. The library wants (N, C, H, W) and calls the classes of x, unused here, y."""
    torch.manual_seed(0)
    model = _model(cell)

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        return model.log_prob(x.movedim(-1, 1), y=None)

    def round_trip(x: torch.Tensor) -> torch.Tensor:
        z, _ = model.inverse_and_log_det(x.movedim(-1, 1))
        return model.forward_and_log_det(z)[0].movedim(1, -1)

    flow = TorchFlow(model, log_prob=log_prob, sample=lambda num: model.sample(num)[0].movedim(1, -1), round_trip=round_trip)
    flow.log_prob(flow.array(x))
    return flow
