"""torchdiffeq: `odeint` with gradients through the solver, and `odeint_adjoint`, with the trace as in its CNF example."""

from typing import Any

import torch
import torchdiffeq

from experiments.benchmarks.dynamics._torch import Field, normal_log_prob, peer
from experiments.benchmarks.dynamics.problems import TOLERANCE, Cell, memory_by_steps
from experiments.benchmarks.peer import Arrays, Unsupported
from experiments.benchmarks.torch_peer import TorchPeer

SOLVER: dict[str, Any] = {"method": "dopri5", "rtol": TOLERANCE, "atol": TOLERANCE}


class _Flow(torch.nn.Module):
    """The field beside minus the rate of log p: its divergence, exact or by one probe for a whole solve."""

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

    def log_prob(self, x: torch.Tensor, odeint: Any = torchdiffeq.odeint, **solver: Any) -> torch.Tensor:
        """By one solve from data (t = 1) to noise (t = 0)."""
        self.probe = torch.randint(0, 2, x.shape).float() * 2 - 1
        z, log_det = odeint(self, (x, torch.zeros(x.shape[0])), torch.tensor([1.0, 0.0]), **(SOLVER | solver))
        return normal_log_prob(z[-1]) + log_det[-1]

    @torch.enable_grad()
    def saved_bytes(self, x: torch.Tensor, num_steps: int) -> int:
        """What is saved for the backward pass through `num_steps` dopri5 steps."""
        sizes: dict[int, int] = {}

        def note(saved: torch.Tensor) -> torch.Tensor:
            sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
            return saved

        equal = {"rtol": 1e6, "atol": 1e6, "options": {"first_step": 1.0 / num_steps, "max_step": 1.0 / num_steps}}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            kept = self.log_prob(x, **equal)
        del kept  # alive till here, so that no two saved tensors had one address
        return sum(sizes.values())


def build(cell: Cell, arrays: Arrays) -> TorchPeer:
    """The model."""
    if cell.kind == "dm":
        raise Unsupported("torchdiffeq has no diffusions")
    torch.manual_seed(0)
    field, times = Field(cell, arrays), torch.tensor([0.0, 1.0])
    if cell.kind == "fm":
        return peer(cell, arrays, field, push=lambda z: torchdiffeq.odeint(field, z, times, **SOLVER)[-1])
    flow, batch = _Flow(field, cell.divergence), torch.from_numpy(arrays["batches"][0])
    losses = {
        "train": lambda x: -flow.log_prob(x).mean(),
        "train_adjoint": lambda x: -flow.log_prob(x, torchdiffeq.odeint_adjoint).mean(),
    }

    def memory() -> dict[str, float]:
        return memory_by_steps(lambda num: {"adaptive": flow.saved_bytes(batch, num)})

    return peer(cell, arrays, field, losses=losses, log_prob=flow.log_prob, memory=memory)
