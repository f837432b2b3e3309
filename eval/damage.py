"""Known damage to a clip in memory: to its sound, or to its pictures, by a known amount.

Letters: T frames, H height, W width, L samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from scipy import ndimage, signal

SHIFTS_MS = (-800, -400, -200, -120, -80, -40, -20, 0, 20, 40, 80, 120, 200, 400, 800)


@dataclass(frozen=True)
class Stream:
    """A clip in memory."""

    frames: np.ndarray
    """(T, H, W, 3) uint8."""
    fps: Fraction
    waveform: np.ndarray
    """(L,) mono."""
    sample_rate: int


Damage = Callable[[Stream, float, Stream, int], Stream]
"""(clip, amount, another clip, seed) -> the damaged clip."""


def _sound(stream: Stream, waveform: np.ndarray) -> Stream:
    return replace(stream, waveform=waveform.astype(np.float32))


def _picture(stream: Stream, frames: np.ndarray) -> Stream:
    return replace(stream, frames=frames)


def shift(stream: Stream, ms: float, other: Stream, seed: int) -> Stream:
    """The sound `ms` later; what leaves the clip is lost, silence comes in."""
    n = round(ms * stream.sample_rate / 1000)
    length = len(stream.waveform)
    return _sound(stream, np.pad(stream.waveform, (max(n, 0), max(-n, 0)))[max(-n, 0) :][:length])


def drift(stream: Stream, ms_per_s: float, other: Stream, seed: int) -> Stream:
    """The sound runs slow: late by `ms_per_s` more each second."""
    at = np.arange(len(stream.waveform)) / (1 + ms_per_s / 1000)
    return _sound(stream, np.interp(at, np.arange(len(stream.waveform)), stream.waveform))


def noise(stream: Stream, snr_db: float, other: Stream, seed: int) -> Stream:
    """White noise at a signal-to-noise ratio."""
    power = float(np.mean(stream.waveform**2)) / 10 ** (snr_db / 10)
    return _sound(stream, stream.waveform + np.random.default_rng(seed).normal(0, np.sqrt(power), len(stream.waveform)))


def quieter(stream: Stream, db: float, other: Stream, seed: int) -> Stream:
    return _sound(stream, stream.waveform * 10 ** (-db / 20))


def low_pass(stream: Stream, hz: float, other: Stream, seed: int) -> Stream:
    if hz >= stream.sample_rate / 2:
        return stream
    return _sound(
        stream, signal.sosfiltfilt(signal.butter(4, hz, fs=stream.sample_rate, output="sos"), stream.waveform)
    )


def swapped(stream: Stream, share: float, other: Stream, seed: int) -> Stream:
    """The sound of another clip, in this share of the clips."""
    if np.random.default_rng(seed).uniform() >= share:
        return stream
    length = len(stream.waveform)
    ratio = other.sample_rate / stream.sample_rate
    taken = np.interp(np.arange(length) * ratio, np.arange(len(other.waveform)), other.waveform, right=0.0)
    return _sound(stream, taken)


def dropped(stream: Stream, share: float, other: Stream, seed: int) -> Stream:
    """Frames lost at random: the one before is shown again."""
    lost = np.random.default_rng(seed).uniform(size=len(stream.frames)) < share
    lost[0] = False
    index = np.maximum.accumulate(np.where(lost, 0, np.arange(len(stream.frames))))
    return _picture(stream, stream.frames[index])


def frozen(stream: Stream, share: float, other: Stream, seed: int) -> Stream:
    """The last part of the clip stands still."""
    last = max(1, round(len(stream.frames) * (1 - share)))
    return _picture(stream, stream.frames[np.minimum(np.arange(len(stream.frames)), last - 1)])


def blurred(stream: Stream, sigma: float, other: Stream, seed: int) -> Stream:
    """Gaussian blur, sigma in hundredths of the height."""
    pixels = sigma / 100 * stream.frames.shape[1]
    return _picture(stream, ndimage.gaussian_filter(stream.frames, (0, pixels, pixels, 0)))


DAMAGES: dict[str, tuple[Damage, tuple[float, ...], str]] = {
    "shift": (shift, SHIFTS_MS, "sound late by, ms"),
    "drift": (drift, (0, 5, 10, 20, 50, 100), "drift, ms per s"),
    "swapped": (swapped, (0, 0.25, 0.5, 0.75, 1), "share of clips with another's sound"),
    "noise": (noise, (60, 40, 30, 20, 10, 0), "signal to noise, dB"),
    "quieter": (quieter, (0, 6, 12, 24, 48), "quieter by, dB"),
    "low_pass": (low_pass, (24000, 8000, 4000, 2000, 1000, 500), "sound cut above, Hz"),
    "dropped": (dropped, (0, 0.1, 0.25, 0.5, 0.75), "share of frames dropped"),
    "frozen": (frozen, (0, 0.25, 0.5, 0.75, 1), "share of the clip frozen"),
    "blurred": (blurred, (0, 1, 2, 4, 8), "blur, % of height"),
}
"""name: (what it does, its amounts with no damage first or, for shift, at 0, axis)."""


def undamaged(name: str) -> int:
    """Which amount of a damage leaves the clip as it is."""
    return DAMAGES[name][1].index(0) if name == "shift" else 0
