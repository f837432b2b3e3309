"""Sounds as networks want them. L samples, B batch, F frequencies, T frames."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def resample(waveform: np.ndarray, sample_rate: int, target: int) -> np.ndarray:
    """(L,) at another rate, by a polyphase filter."""
    from scipy.signal import resample_poly

    if sample_rate == target:
        return np.asarray(waveform)
    common = math.gcd(sample_rate, target)
    return resample_poly(np.asarray(waveform, np.float64), target // common, sample_rate // common)


def power_spectrum(waveform: Tensor, fft: int, hop: int, window: int) -> Tensor:
    """(B, L) -> (B, F, T): squared magnitudes under a periodic Hann window of `window` samples.

    Frames are centred on multiples of `hop`; the sound is mirrored beyond its ends.
    """
    shape = torch.hann_window(window, device=waveform.device, dtype=waveform.dtype)
    spectrum = torch.stft(waveform, fft, hop, window, shape, pad_mode="reflect", return_complex=True)
    return spectrum.real**2 + spectrum.imag**2
