"""flow_matching: the CondOT path, and `ODESolver` for sampling and likelihood."""

import torch
from flow_matching.path import CondOTProbPath
from flow_matching.solver import ODESolver

from experiments.benchmarks.peers.dynamics import base
from experiments.benchmarks.peers.dynamics.torch_dynamics import Field, TorchDynamics, normal_log_prob
from experiments.benchmarks.peers.serve import Unsupported

SOLVER = {"step_size": None, "method": "dopri5", "rtol": base.TOLERANCE, "atol": base.TOLERANCE}


def build(cell: base.Cell, problem: base.Problem) -> TorchDynamics:
    """The model. `compute_likelihood` detaches its gradients, so it cannot train by maximum likelihood."""
    if cell.kind == "dm":
        raise Unsupported("flow_matching has no diffusions")
    torch.manual_seed(0)
    field, path = Field(cell, problem.trained), CondOTProbPath()
    solver = ODESolver(velocity_model=lambda x, t: field(t, x))

    def loss(x: torch.Tensor) -> torch.Tensor:
        sample = path.sample(t=torch.rand(x.shape[0]), x_0=torch.randn_like(x), x_1=x)
        return torch.mean((field(sample.t[:, None], sample.x_t) - sample.dx_t) ** 2)

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        exact = cell.divergence == "exact"
        return solver.compute_likelihood(x, normal_log_prob, exact_divergence=exact, **SOLVER)[1]

    if cell.kind == "cnf":
        return TorchDynamics(cell, field, log_probs={"log_prob": log_prob})
    return TorchDynamics(cell, field, {"train": loss}, pushes={"sample": lambda z: solver.sample(z, **SOLVER)})
