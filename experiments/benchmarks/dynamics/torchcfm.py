"""torchcfm: the steps of independent and of optimal-transport conditional flow matching. It brings no solver of its own."""

import torch
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher
from torchcfm.optimal_transport import OTPlanSampler

from experiments.benchmarks.dynamics._torch import Field, peer
from experiments.benchmarks.dynamics.problems import Cell
from experiments.benchmarks.peer import Arrays, Unsupported
from experiments.benchmarks.torch_peer import TorchPeer


def build(cell: Cell, arrays: Arrays) -> TorchPeer:
    """The losses. Sinkhorn regularises by 5 % of the mean cost: the library's default underflows to an empty or uniform plan."""
    if cell.kind != "fm":
        raise Unsupported("torchcfm trains by flow matching only")
    torch.manual_seed(0)
    field = Field(cell, arrays)
    sinkhorn = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    x = torch.from_numpy(arrays["batches"][0])
    sinkhorn.ot_sampler = OTPlanSampler(method="sinkhorn", reg=0.05 * float(torch.cdist(torch.randn_like(x), x).square().mean()))

    def loss(matcher: ConditionalFlowMatcher, x: torch.Tensor) -> torch.Tensor:
        t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x), x)
        return torch.mean((field(t[:, None], xt) - ut) ** 2)

    matchers = {
        "train": ConditionalFlowMatcher(sigma=0.0),
        "train_ot_exact": ExactOptimalTransportConditionalFlowMatcher(sigma=0.0),
        "train_ot_sinkhorn": sinkhorn,
    }
    return peer(cell, arrays, field, losses={op: lambda x, m=matcher: loss(m, x) for op, matcher in matchers.items()})
