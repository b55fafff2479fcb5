"""The receiver operating characteristic of a score that tells outliers from inliers. Higher scores mean: more anomalous.

auroc = P(s_out > s_in) + P(s_out = s_in) / 2;    1/2 is chance, and below it the score prefers the outliers
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from genmod.core.statistics import mean_and_sem


def auroc(inliers: ArrayLike, outliers: ArrayLike) -> tuple[float, float]:
    """The area under the ROC curve and its standard error, from scores (n,) of inliers and (m,) of outliers.

    The share of the n m pairs in which the outlier scores higher, ties counted as 1/2. The error is that of DeLong et al. 1988
    (Biometrics 44(3)): with p_i the share of inliers below outlier i and q_j that of outliers above inlier j,

        sem^2 = Var(p) / m + Var(q) / n

    where all scores are independent (perturb other images than those of the inliers). It is nan where n or m is 1, and 0 where
    the samples do not overlap. Float64 NumPy, O((n + m) log(n + m)) by ranks (Sun & Xu 2014).

    Raises ValueError for scores that are not of rank 1, empty or not finite.
    """
    inliers, outliers = _checked(inliers, outliers)
    n, m = len(inliers), len(outliers)
    # The rank in both samples less that in one's own counts the other sample: those below, and half of the ties.
    ranks = rankdata(np.concatenate([inliers, outliers]))
    outliers_above = 1.0 - (ranks[:n] - rankdata(inliers)) / m
    value, sem_outliers = mean_and_sem((ranks[n:] - rankdata(outliers)) / n)
    _, sem_inliers = mean_and_sem(outliers_above)
    return float(value), float(np.hypot(sem_outliers, sem_inliers))


def roc_curve(inliers: ArrayLike, outliers: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(false positive rate, true positive rate), the shares of inliers and of outliers that score at least a threshold.

    Both start at 0 and end at 1, one point per distinct score, so that the area under straight lines is `auroc`.
    Raises ValueError as `auroc`.
    """
    inliers, outliers = _checked(inliers, outliers)
    thresholds = np.unique(np.concatenate([inliers, outliers]))[::-1]
    false, true = (1.0 - np.searchsorted(np.sort(scores), thresholds) / len(scores) for scores in (inliers, outliers))
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def _checked(*samples: ArrayLike) -> list[np.ndarray]:
    scores = [np.asarray(sample, np.float64) for sample in samples]
    for name, score in zip(("inliers", "outliers"), scores, strict=True):
        if score.ndim != 1 or not score.size:
            raise ValueError(f"{name} must be at least one score, shape (n,), got shape {score.shape}")
        if not np.isfinite(score).all():
            raise ValueError(f"{name} must be finite, got {int((~np.isfinite(score)).sum())} of {score.size} scores that are not")
    return scores
