"""Information criteria: the log-likelihood of a fit, less a price for its parameters. The smaller, the better.

AIC = -2 log p(x | mle) + 2 k                     (Akaike 1974): aims at the best prediction of new data
BIC = -2 log p(x | mle) + k log n                 (Schwarz 1978): -BIC / 2 is the log-evidence up to terms that do not grow
"""

import math
from typing import Any

from genmod.core.checks import check_count


def aic(log_likelihood: Any, num_params: int) -> Any:
    """2 k - 2 log p. log_likelihood: of all data at the estimate, in nats, a number or an array; num_params: k."""
    check_count(num_params=num_params)
    return 2.0 * num_params - 2.0 * log_likelihood


def bic(log_likelihood: Any, num_params: int, num_data: int) -> Any:
    """k log n - 2 log p. log_likelihood, num_params: as those of `aic`; num_data: n, the number of rows."""
    check_count(num_params=num_params, num_data=num_data)
    return num_params * math.log(num_data) - 2.0 * log_likelihood
