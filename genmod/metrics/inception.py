"""The inception score of samples by a classifier: exp of the mutual information of sample and class.

exp( 1/n sum_i KL( p(c | x_i) || p(c) ) ),   p(c) = 1/n sum_i p(c | x_i)         (Salimans et al. 2016, arXiv:1606.03498, sec. 4)
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr

from genmod.core.checks import check_count
from genmod.core.statistics import Measured, mean_and_sem


def inception_score(probabilities: ArrayLike, *, num_splits: int = 10) -> Measured:
    """The inception score of class probabilities (n, num_classes) of samples: from 1, all alike or unsure, to num_classes.

    The mean over `num_splits` consecutive parts of the rows, and its standard error over these (papers print the standard
    deviation, sqrt(num_splits) times as large); nan for one part. Float64 NumPy.

    Raises ValueError for rows that are no probabilities, and for fewer rows than splits.
    """
    check_count(num_splits=num_splits)
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or p.size == 0:
        raise ValueError(f"probabilities must have shape (n, num_classes), got {p.shape}")
    if not np.isfinite(p).all() or (p < 0).any() or np.abs(p.sum(1) - 1.0).max() > 1e-3:
        raise ValueError("probabilities must be finite, not negative, and sum to 1 in every row; pass softmax(logits)")
    if len(p) < num_splits:
        raise ValueError(f"probabilities must have at least num_splits = {num_splits} rows, got {len(p)}")
    p = p / p.sum(1, keepdims=True)  # float32 sums to 1 but for rounding
    scores = [np.exp(rel_entr(part, part.mean(0)).sum(1).mean()) for part in np.array_split(p, num_splits)]
    return Measured(*map(float, mean_and_sem(np.array(scores))))
