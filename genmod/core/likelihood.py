"""What a log_prob is: every distribution says it, and every reported number carries it."""

import enum


class Likelihood(enum.IntEnum):
    """What a `log_prob` is, from strongest to weakest; a composition keeps the weakest of its parts."""

    EXACT = 0
    ESTIMATE = 1
    LOWER_BOUND = 2
    UNNORMALIZED = 3
    NONE = 4

    @property
    def nll_key(self) -> str:
        """The metric key under which the negative log-likelihood of such a model is reported, in nats."""
        return _NLL_KEYS.get(self, "energy_nats")


_NLL_KEYS = {
    Likelihood.EXACT: "nll_nats",
    Likelihood.ESTIMATE: "nll_estimate_nats",
    Likelihood.LOWER_BOUND: "nll_upper_bound_nats",
}
