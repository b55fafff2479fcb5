"""torchdiffeq: `odeint` with gradients through the solver, and `odeint_adjoint`, with the trace as in its CNF example."""

from typing import Any

import torch
import torchdiffeq

from experiments.benchmarks.peers.dynamics import base
from experiments.benchmarks.peers.dynamics.torch_dynamics import Field, TorchDynamics, normal_log_prob
from experiments.benchmarks.peers.serve import Unsupported

SOLVER: dict[str, Any] = {"method": "dopri5", "rtol": base.TOLERANCE, "atol": base.TOLERANCE}


class _WithTrace(torch.nn.Module):
    """The field beside minus the rate of log p: its divergence, exact or by one probe set from outside."""

    def __init__(self, field: Field, divergence: str) -> None:
        super().__init__()
        self.field, self.divergence = field, divergence
        self.probe: torch.Tensor

    def forward(self, t: torch.Tensor, state: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            x = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
            v = self.field(t, x)
            if self.divergence == "exact":
                columns = range(x.shape[1])
                trace = sum(torch.autograd.grad(v[:, i].sum(), x, create_graph=True)[0][:, i] for i in columns)
            else:
                (vjp,) = torch.autograd.grad(v, x, self.probe, create_graph=training)
                trace = (vjp * self.probe).sum(1)
        return v, trace


class _Flow:
    """log p by one solve from data (t = 1) to noise (t = 0)."""

    def __init__(self, cell: base.Cell, field: Field) -> None:
        self._dynamics = _WithTrace(field, cell.divergence)

    def log_prob(self, x: torch.Tensor, adjoint: bool = False, **solver: Any) -> torch.Tensor:
        self._dynamics.probe = torch.randint(0, 2, x.shape).float() * 2 - 1
        odeint = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
        state, times = (x, torch.zeros(x.shape[0])), torch.tensor([1.0, 0.0])
        z, log_det = odeint(self._dynamics, state, times, **(SOLVER | solver))
        return normal_log_prob(z[-1]) + log_det[-1]


def build(cell: base.Cell, problem: base.Problem) -> TorchDynamics:
    """The model."""
    if cell.kind == "dm":
        raise Unsupported("torchdiffeq has no diffusions")
    torch.manual_seed(0)
    field = Field(cell, problem.trained)
    if cell.kind == "cnf":
        flow = _Flow(cell, field)
        losses = {
            "train": lambda batch: -flow.log_prob(batch).mean(),
            "train_adjoint": lambda batch: -flow.log_prob(batch, adjoint=True).mean(),
        }
        return TorchDynamics(cell, field, losses, {"log_prob": flow.log_prob})
    times = torch.tensor([0.0, 1.0])
    return TorchDynamics(cell, field, pushes={"sample": lambda z: torchdiffeq.odeint(field, z, times, **SOLVER)[-1]})


def memory(problem: base.Problem, num_steps: int) -> dict[str, int]:
    """Bytes saved for the backward pass through `num_steps` dopri5 steps with exact trace."""
    cell = base.Cell("cnf", 2)
    flow = _Flow(cell, Field(cell, problem.trained))
    sizes: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return x

    equal = {"rtol": 1e6, "atol": 1e6, "options": {"first_step": 1.0 / num_steps, "max_step": 1.0 / num_steps}}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        log_prob = flow.log_prob(torch.from_numpy(problem.batches[0]), **equal)
    del log_prob
    return {"through the solver": sum(sizes.values())}
