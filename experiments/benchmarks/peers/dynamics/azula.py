"""azula: Karras' denoiser under its variance preserving schedule, and DDIM."""

import torch
from azula.denoise import KarrasDenoiser
from azula.noise import VPSchedule
from azula.sample import DDIMSampler

from experiments.benchmarks.peers.dynamics import base
from experiments.benchmarks.peers.dynamics.torch_dynamics import Field, TorchDynamics
from experiments.benchmarks.peers.serve import Unsupported


class Backbone(torch.nn.Module):
    """The field as azula calls it, with x first and one time for all or for each."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.field(t[:, None] if t.ndim else t, x)


def build(cell: base.Cell, problem: base.Problem) -> TorchDynamics:
    """The model, with azula's own loss."""
    if cell.kind != "dm":
        raise Unsupported("azula is a library of diffusions")
    torch.manual_seed(0)
    field = Field(cell, problem.trained)
    denoiser = KarrasDenoiser(Backbone(field), VPSchedule(base.ALPHA_MIN, base.SIGMA_MIN))
    sampler = DDIMSampler(denoiser, steps=problem.num_steps["sample"], silent=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return denoiser.loss(x, torch.rand(x.shape[0]))

    return TorchDynamics(cell, field, {"train": loss}, pushes={"sample": sampler}, steps_of_calls=lambda calls: calls)
