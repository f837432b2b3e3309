"""The only place that converts time: exact rates, half-open spans in seconds, grids of latent frames.

Zero of a source is the presentation time of its first video frame. Rates are Fractions in Hz, times are
Fractions in seconds; floats appear only at the edge, where a tensor or a plot needs them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

_NTSC_BASES = (24, 30, 48, 60, 120)


def parse_rate(value: str | int | float | Fraction) -> Fraction:
    """A positive rate in Hz from "30000/1001", "25", 16 or 23.976 (decimal NTSC rates become n·1000/1001).

    Raises:
        ValueError: not a number, or not positive and finite.
    """
    try:
        rate = Fraction(value)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError) as error:
        raise ValueError(f"not a rate: {value!r}; write it as 25, 23.976 or 30000/1001") from error
    if rate <= 0:
        raise ValueError(f"a rate must be positive, got {value!r}")
    for base in _NTSC_BASES:
        ntsc = Fraction(base * 1000, 1001)
        if rate != ntsc and rate != base and abs(rate - ntsc) < Fraction(6, 1000):
            return ntsc
    return rate


def ticks_in(duration_s: Fraction, rate_hz: Fraction) -> int:
    """How many ticks k / rate_hz fall in [0, duration_s): frames in a span, samples in a clip."""
    return max(0, math.ceil(duration_s * rate_hz))


def snap(time_s: Fraction, rate_hz: Fraction) -> Fraction:
    """The tick of `rate_hz` nearest to `time_s` (halves go up)."""
    return Fraction(math.floor(time_s * rate_hz + Fraction(1, 2))) / rate_hz


@dataclass(frozen=True, order=True)
class Span:
    """The half-open interval [start_s, end_s) of a source, in seconds."""

    start_s: Fraction
    end_s: Fraction

    def __post_init__(self) -> None:
        object.__setattr__(self, "start_s", Fraction(self.start_s))
        object.__setattr__(self, "end_s", Fraction(self.end_s))
        if self.end_s <= self.start_s:
            raise ValueError(f"a span must end after it starts, got [{self.start_s}, {self.end_s}) s")

    @property
    def duration_s(self) -> Fraction:
        return self.end_s - self.start_s

    def contains(self, time_s: Fraction | float) -> bool:
        return self.start_s <= time_s < self.end_s

    def intersect(self, other: Span) -> Span | None:
        start, end = max(self.start_s, other.start_s), min(self.end_s, other.end_s)
        return Span(start, end) if start < end else None

    def __str__(self) -> str:
        return f"[{float(self.start_s):.3f}, {float(self.end_s):.3f}) s"


def windows(span: Span, duration_s: Fraction, rate_hz: Fraction, stride_s: Fraction | None = None) -> list[Span]:
    """Windows of `duration_s` that fit in `span`, each starting on a tick of `rate_hz` counted from zero."""
    stride_s = duration_s if stride_s is None else stride_s
    if duration_s <= 0 or stride_s <= 0:
        raise ValueError(f"window and stride must be positive, got {duration_s} s and {stride_s} s")
    found: list[Span] = []
    k = 0
    while True:
        start = Fraction(math.ceil((span.start_s + k * stride_s) * rate_hz)) / rate_hz
        if start + duration_s > span.end_s:
            return found
        found.append(Span(start, start + duration_s))
        k += 1


@dataclass(frozen=True)
class LatentGrid:
    """Which [start, end) seconds of its clip each latent frame covers; spans adjoin and cover the clip."""

    spans: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.spans)

    def array(self) -> np.ndarray:
        """(T, 2) float32: start and end of each latent frame in seconds from the start of the clip."""
        return np.array([[float(s.start_s), float(s.end_s)] for s in self.spans], dtype=np.float32)  # (T, 2)


def uniform_grid(n_ticks: int, stride: int, rate_hz: Fraction) -> LatentGrid:
    """Latent i covers ticks [i·stride, (i+1)·stride) of `rate_hz`; the last is cut at `n_ticks`.

    Image autoencoders frame by frame have stride 1; audio autoencoders have their hop.
    """
    starts = range(0, n_ticks, stride)
    return LatentGrid(tuple(Span(i / rate_hz, min(i + stride, n_ticks) / rate_hz) for i in starts))


def causal_grid(n_frames: int, stride: int, rate_hz: Fraction, chunk_frames: int | None = None) -> LatentGrid:
    """The grid of a temporal autoencoder that pads each chunk at the front to a multiple of `stride`.

    With pad p = -n mod stride, latent j of a chunk covers its frames [max(0, j·stride - p), (j+1)·stride - p).
    One chunk of 4k+1 frames is the causal grid of Wan, CogVideoX and Hunyuan (the first latent holds one
    frame); chunks of 17 are Open-Sora's: 32 frames become 5 + 4 latents.
    """
    spans: list[Span] = []
    chunk_frames = chunk_frames or n_frames
    for first in range(0, n_frames, chunk_frames):
        n = min(chunk_frames, n_frames - first)
        pad = -n % stride
        for j in range((n + pad) // stride):
            start, end = max(0, j * stride - pad), (j + 1) * stride - pad
            spans.append(Span((first + start) / rate_hz, (first + end) / rate_hz))
    return LatentGrid(tuple(spans))
