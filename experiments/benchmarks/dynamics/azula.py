"""azula: Karras' denoiser under its variance preserving schedule, and DDIM."""

import torch
from azula.denoise import KarrasDenoiser
from azula.noise import VPSchedule
from azula.sample import DDIMSampler

from experiments.benchmarks.dynamics._torch import Field, peer
from experiments.benchmarks.dynamics.problems import ALPHA_MIN, NUM_DDIM_STEPS, SIGMA_MIN, Cell
from experiments.benchmarks.peer import Arrays, Unsupported
from experiments.benchmarks.torch_peer import TorchPeer


class Backbone(torch.nn.Module):
    """The field as azula calls it, with x first and one time for all or for each."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.field(t[:, None] if t.ndim else t, x)


def build(cell: Cell, arrays: Arrays) -> TorchPeer:
    """The model, with azula's own loss."""
    if cell.kind != "dm":
        raise Unsupported("azula is a library of diffusions")
    torch.manual_seed(0)
    field = Field(cell, arrays)
    denoiser = KarrasDenoiser(Backbone(field), VPSchedule(ALPHA_MIN, SIGMA_MIN))
    sampler = DDIMSampler(denoiser, steps=NUM_DDIM_STEPS, silent=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return denoiser.loss(x, torch.rand(x.shape[0]))

    return peer(cell, arrays, field, losses={"train": loss}, push=sampler, steps_of_calls=lambda calls: calls)
