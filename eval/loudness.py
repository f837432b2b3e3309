"""Loudness by ITU-R BS.1770-4: K-weighted, gated. One channel."""

from __future__ import annotations

import math

import numpy as np
from scipy import signal

_BLOCK_S, _OVERLAP = 0.4, 0.75
_ABSOLUTE_LUFS, _RELATIVE_LU = -70.0, -10.0


def integrated_loudness(waveform: np.ndarray, sample_rate: int) -> float | None:
    """LUFS of a (L,) mono waveform: `-0.691 + 10 log10(mean square)` over gated 400 ms blocks; None for silence.

    Clips shorter than a block are one block.
    """
    weighted = _k_weighting(np.asarray(waveform, np.float64), sample_rate)
    block = min(len(weighted), round(_BLOCK_S * sample_rate))
    if block == 0:
        return None
    hop = max(1, round(block * (1 - _OVERLAP)))
    power = np.array([np.mean(weighted[k : k + block] ** 2) for k in range(0, len(weighted) - block + 1, hop)])
    power = power[_lufs(power) > _ABSOLUTE_LUFS]
    if not len(power):
        return None
    power = power[_lufs(power) > _lufs(power.mean()) + _RELATIVE_LU]
    return float(_lufs(power.mean()))


def _lufs(power: np.ndarray | float) -> np.ndarray:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-20))


def _k_weighting(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """The two filters of BS.1770 (a high shelf and a high pass), derived for any rate from their analogue form."""
    for design in (_shelf, _high_pass):
        waveform = signal.lfilter(*design(sample_rate), waveform)
    return waveform


def _shelf(sample_rate: int) -> tuple[list[float], list[float]]:
    frequency, gain_db, q = 1681.974450955533, 3.999843853973347, 0.7071752369554196
    k = math.tan(math.pi * frequency / sample_rate)
    high = 10 ** (gain_db / 20)
    band = high**0.4996667741545416
    a0 = 1 + k / q + k * k
    b = [(high + band * k / q + k * k) / a0, 2 * (k * k - high) / a0, (high - band * k / q + k * k) / a0]
    return b, [1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]


def _high_pass(sample_rate: int) -> tuple[list[float], list[float]]:
    frequency, q = 38.13547087602444, 0.5003270373238773
    k = math.tan(math.pi * frequency / sample_rate)
    a0 = 1 + k / q + k * k
    return [1.0, -2.0, 1.0], [1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]
