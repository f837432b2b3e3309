"""Sounds as networks want them. L samples."""

from __future__ import annotations

import math

import numpy as np


def resample(waveform: np.ndarray, sample_rate: int, target: int) -> np.ndarray:
    """(L,) at another rate, by a polyphase filter."""
    from scipy.signal import resample_poly

    if sample_rate == target:
        return np.asarray(waveform)
    common = math.gcd(sample_rate, target)
    return resample_poly(np.asarray(waveform, np.float64), target // common, sample_rate // common)
