"""torchcfm: the steps of independent and of optimal-transport conditional flow matching. It brings no solver of its own."""

import torch
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher
from torchcfm.optimal_transport import OTPlanSampler

from experiments.benchmarks.peers.dynamics import base
from experiments.benchmarks.peers.dynamics.torch_dynamics import Field, TorchDynamics
from experiments.benchmarks.peers.serve import Unsupported


def build(cell: base.Cell, problem: base.Problem) -> TorchDynamics:
    """The losses. Sinkhorn regularises by 5 % of the mean cost: the library's default underflows to an empty or uniform plan."""
    if cell.kind != "fm":
        raise Unsupported("torchcfm trains by flow matching only")
    torch.manual_seed(0)
    field = Field(cell, problem.trained)
    sinkhorn = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    x = torch.from_numpy(problem.batches[0])
    sinkhorn.ot_sampler = OTPlanSampler(method="sinkhorn", reg=0.05 * float(torch.cdist(torch.randn_like(x), x).square().mean()))

    def loss(matcher: ConditionalFlowMatcher, x: torch.Tensor) -> torch.Tensor:
        t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x), x)
        return torch.mean((field(t[:, None], xt) - ut) ** 2)

    matchers = {
        "train": ConditionalFlowMatcher(sigma=0.0),
        "train_ot_exact": ExactOptimalTransportConditionalFlowMatcher(sigma=0.0),
        "train_ot_sinkhorn": sinkhorn,
    }
    return TorchDynamics(cell, field, {op: lambda x, m=matcher: loss(m, x) for op, matcher in matchers.items()})
