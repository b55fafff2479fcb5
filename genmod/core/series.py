"""Series of numbers that follow each other."""

import math

import numpy as np


def lagged_sums(x: np.ndarray) -> np.ndarray:
    """sum_i x_i x_{i+t} along the last axis, for the lags t = 0 to N - 1. By FFT, in NumPy.

    Of x less its mean, divided by N, or by N - t, it is the autocovariance.
    """
    num = x.shape[-1]
    size = 2 ** math.ceil(math.log2(2 * num))  # padded with zeros, so that it does not wrap around
    return np.fft.irfft(np.abs(np.fft.rfft(x, size)) ** 2, size)[..., :num]
