"""flow_matching: the CondOT path, and `ODESolver` for sampling and likelihood."""

import torch
from flow_matching.path import CondOTProbPath
from flow_matching.solver import ODESolver

from experiments.benchmarks.dynamics._torch import Field, normal_log_prob, peer
from experiments.benchmarks.dynamics.problems import TOLERANCE, Cell
from experiments.benchmarks.peer import Arrays, Unsupported
from experiments.benchmarks.torch_peer import TorchPeer

SOLVER = {"step_size": None, "method": "dopri5", "rtol": TOLERANCE, "atol": TOLERANCE}


def build(cell: Cell, arrays: Arrays) -> TorchPeer:
    """The model. `compute_likelihood` detaches its gradients, so it cannot train by maximum likelihood."""
    if cell.kind == "dm":
        raise Unsupported("flow_matching has no diffusions")
    torch.manual_seed(0)
    field, path = Field(cell, arrays), CondOTProbPath()
    solver = ODESolver(velocity_model=lambda x, t: field(t, x))

    def loss(x: torch.Tensor) -> torch.Tensor:
        sample = path.sample(t=torch.rand(x.shape[0]), x_0=torch.randn_like(x), x_1=x)
        return torch.mean((field(sample.t[:, None], sample.x_t) - sample.dx_t) ** 2)

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        exact = cell.divergence == "exact"
        return solver.compute_likelihood(x, normal_log_prob, exact_divergence=exact, **SOLVER)[1]

    if cell.kind == "cnf":
        return peer(cell, arrays, field, log_prob=log_prob)
    return peer(cell, arrays, field, losses={"train": loss}, push=lambda z: solver.sample(z, **SOLVER))
