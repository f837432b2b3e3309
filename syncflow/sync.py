"""When things are heard and when they are seen: onsets, visible impacts, their matching and their offset.

Shared by preprocessing (repair or reject a clip), training (validation) and evaluation. Numpy and scipy only.
Times are seconds from the start of the clip; frame k is shown at k / fps. An offset is positive when the sound
is late. Letters: T frames, H height, W width, L samples, B bands, D directions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy import ndimage, signal, special
from scipy.optimize import linear_sum_assignment

from syncflow.samples import SyncMeasure

MAX_OFFSET_S = 1.0
"""Offsets are searched within this either way."""

_HOP_S = 0.004
_WINDOW_S = 0.016
_LAG_HOPS = 3
"""A rise is measured against the loudest moment about 12 ms ago."""
_BANDS_HZ = np.geomspace(80.0, 8000.0, 25)
_RISE_DB = 1.0
"""An onset raises the mean band by at least this much above its surroundings."""
_FAINT = 0.02
"""A sound whose envelope stays below this share of the clip's loudest is no event (-34 dB)."""
_ONSET_GAP_S = 0.06
_SILENT = 1e-4
"""Peak amplitude below which there is nothing to hear (-80 dB of full scale)."""
_CUT_IN_S = 0.05
"""A sound that cuts in later than this seems to begin with an onset, for about as long."""
_GRID_HZ = 100
_EVENT_SPREAD_S = 0.03
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_MOTION_SIDE = 64
"""Motion is measured on frames averaged down to about this many pixels on the short side."""
_STILL = 0.02
"""Mean change of grey level per frame (of 255) below which a clip stands still."""


def onset_strength(waveform: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """How fast the sound rises: the mean over bands of the rise in dB within 12 ms.

    `s(t) = mean_b max(0, E_b(t) - max_{b', u} E_b'(u))`, E the band level in dB above the clip's own noise
    floor, u around t - 12 ms and b' the neighbouring bands (so a gliding tone is no onset).

    Args:
        waveform: (L,) mono.

    Returns:
        times in s (K,) and strength in dB (K,), every 4 ms.

    Source: the maximum filter is Böck & Widmer, "Maximum filter vibrato suppression for onset detection", 2013.
    """
    waveform = np.asarray(waveform, np.float64)
    window, hop = max(16, round(_WINDOW_S * sample_rate)), max(1, round(_HOP_S * sample_rate))
    padded = np.pad(waveform, (window // 2, window - window // 2), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]  # (K, window)
    frequencies = np.fft.rfftfreq(window, 1 / sample_rate)
    band_of = np.searchsorted(_BANDS_HZ, frequencies, side="right") - 1
    used = [b for b in range(len(_BANDS_HZ) - 1) if (band_of == b).any()]
    gather = np.stack([band_of == b for b in used], axis=1).astype(np.float64)  # (window/2+1, B)
    taper = np.hanning(window)
    power = np.empty((len(windows), len(used)))
    for first in range(0, len(windows), 4096):  # bounds the memory of long sounds
        block = slice(first, first + 4096)
        power[block] = np.abs(np.fft.rfft(windows[block] * taper, axis=1)) ** 2 @ gather
    power /= window**2
    floor = 2 * np.percentile(power, 20, axis=0) + 1e-6 * power.max() + 1e-12
    level = 10 * np.log10(power + floor)  # (K, B)
    before = ndimage.maximum_filter(level, size=(3, 3), mode="nearest")
    before = np.concatenate([np.repeat(before[:1], _LAG_HOPS, axis=0), before])[: len(level)]
    return np.arange(len(level)) * hop / sample_rate, np.maximum(0, level - before).mean(axis=1)


def audio_onsets(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """(N,) times in s at which sounds begin, to a few milliseconds; empty for silence.

    Peaks of `onset_strength`, each moved to where the 2 ms envelope has climbed a fifth of its rise.
    """
    waveform = np.nan_to_num(np.asarray(waveform, np.float64))
    if len(waveform) < 2 * _WINDOW_S * sample_rate or np.abs(waveform).max() < _SILENT:
        return np.zeros(0)
    times_s, strength = onset_strength(waveform, sample_rate)
    hop_s = times_s[1] - times_s[0]
    usual = ndimage.median_filter(strength, size=2 * round(0.1 / hop_s) + 1, mode="nearest")
    flutter = 1.4826 * float(np.median(np.abs(strength - np.median(strength))))
    threshold = usual + max(_RISE_DB, 0.15 * float(np.percentile(strength, 99.5)), 5 * flutter)
    highest = ndimage.maximum_filter1d(strength, 2 * round(0.02 / hop_s) + 1)
    found = np.flatnonzero((strength >= highest) & (strength > threshold))
    kept: list[int] = []
    for k in found[np.argsort(-strength[found], kind="stable")]:
        if all(abs(k - other) * hop_s >= _ONSET_GAP_S for other in kept):
            kept.append(int(k))
    half = max(1, round(0.001 * sample_rate))
    # a running sum can end a hair below zero
    envelope = np.sqrt(np.maximum(0, ndimage.uniform_filter1d(waveform**2, 2 * half + 1, mode="nearest")))  # (L,)
    attacks = [_attack(envelope, sample_rate, float(times_s[k])) for k in kept]
    loud = _FAINT * envelope.max()
    return np.sort(np.array([(start + half) / sample_rate for start, top in attacks if top >= loud]))


def _attack(envelope: np.ndarray, sample_rate: int, near_s: float) -> tuple[int, float]:
    """The sample, close to `near_s`, where the envelope has climbed 20 % of the way to its peak, and that peak.

    A centred envelope sees a sudden start half its length too early; the caller adds that.
    """
    at = min(round(near_s * sample_rate), len(envelope) - 1)
    low, high = max(0, at - round(0.016 * sample_rate)), at + round(0.02 * sample_rate) + 1
    top = low + int(np.argmax(envelope[low:high]))
    quiet = envelope[max(0, low - round(0.019 * sample_rate)) : max(low, 5)]
    base = float(np.median(quiet))
    below = np.flatnonzero(envelope[low : top + 1] <= base + 0.2 * (envelope[top] - base))
    return low + (int(below[-1]) if len(below) else 0), float(envelope[top])


def small_grey(frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8 -> (T, h, w) float32 grey levels 0-255, averaged over whole blocks of pixels."""
    num_frames, height, width, _ = frames.shape
    block = max(1, min(height, width) // _MOTION_SIDE)
    rows, columns = height // block, width // block
    grey = np.empty((num_frames, rows, columns), np.float32)
    for k, frame in enumerate(frames):  # frame by frame: a clip of 1080p does not fit in float32
        luma = frame[: rows * block, : columns * block].astype(np.float32) @ _LUMA
        grey[k] = luma.reshape(rows, block, columns, block).mean(axis=(1, 3))
    return grey


def motion_energy(frames: np.ndarray, fps: Fraction | float) -> tuple[np.ndarray, np.ndarray]:
    """How much the picture changes: `e_k = mean |I_k - I_{k-1}|` of grey levels, midway between the two frames.

    Args:
        frames: (T, H, W, 3) uint8.

    Returns:
        times in s (T-1,) and energy in grey levels (T-1,).
    """
    grey = small_grey(frames)
    return (np.arange(len(grey) - 1) + 0.5) / float(fps), np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2))


def impact_strength(frames: np.ndarray, fps: Fraction | float) -> tuple[np.ndarray, np.ndarray]:
    """How suddenly motion changes: 0 for rest or even motion, high where something hits, stops or turns back.

    The sum of two curves, each over its 95th percentile: the change of the histogram of motion by direction
    from one interval to the next, and the second difference of grey levels.

    Returns:
        times in s (T-2,) of the frames between the intervals, and strength (T-2,), without unit.

    Source: the histogram is the directogram of Davis & Agrawala, "Visual rhythm and beat", 2018, on the
    normal flow of image gradients.
    """
    grey = small_grey(frames)
    times_s = np.arange(1, len(grey) - 1) / float(fps)
    if len(grey) < 3 or np.abs(np.diff(grey, axis=0)).mean() < _STILL:
        return times_s, np.zeros(len(times_s))
    turns = np.abs(np.diff(_directogram(grey), axis=0)).sum(axis=1)
    jerks = np.abs(grey[2:] - 2 * grey[1:-1] + grey[:-2]).mean(axis=(1, 2))
    return times_s, sum((curve / (np.percentile(curve, 95) + 1e-9) for curve in (turns, jerks)), np.zeros(len(times_s)))


def _directogram(grey: np.ndarray, directions: int = 8, blur: float = 1.5) -> np.ndarray:
    """(T-1, D): mean length of the normal flow between frames, by its direction."""
    grey = ndimage.gaussian_filter(grey, (0, blur, blur))
    rows = []
    for before, after in itertools.pairwise(grey):
        gradient_y, gradient_x = np.gradient((before + after) / 2)
        scale = -(after - before) / (gradient_x**2 + gradient_y**2 + 4.0)
        flow_x, flow_y = scale * gradient_x, scale * gradient_y
        turn = np.arctan2(flow_y, flow_x) / (2 * np.pi) * directions
        bins = np.floor(turn + 0.5).astype(int) % directions
        rows.append(np.bincount(bins.ravel(), np.hypot(flow_x, flow_y).ravel(), minlength=directions) / bins.size)
    return np.array(rows)


def motion_peaks(frames: np.ndarray, fps: Fraction | float) -> np.ndarray:
    """(N,) times in s of visible impacts: peaks of `impact_strength`, placed between frames by a parabola."""
    return _peaks(*impact_strength(frames, fps), fps)


def _peaks(times_s: np.ndarray, strength: np.ndarray, fps: Fraction | float) -> np.ndarray:
    if len(strength) < 3 or strength.max() <= 0:
        return np.zeros(0)
    middle = np.median(strength)
    swing = np.percentile(strength, 98) - middle
    gap = max(1, int(0.1 * float(fps)))
    found, _ = signal.find_peaks(
        np.pad(strength, 1), height=middle + 0.25 * swing, prominence=0.15 * swing, distance=gap
    )
    return np.array([times_s[k - 1] + _vertex(strength, k - 1) / float(fps) for k in found])


def _vertex(curve: np.ndarray, k: int) -> float:
    """Where the parabola through three points around sample k peaks, from k, in samples."""
    if not 0 < k < len(curve) - 1:
        return 0.0
    bend = curve[k - 1] - 2 * curve[k] + curve[k + 1]
    return float(0.5 * (curve[k - 1] - curve[k + 1]) / bend) if bend < 0 else 0.0


def match_events(
    visual_s: Sequence[float] | np.ndarray, audio_s: Sequence[float] | np.ndarray, tolerance_s: float
) -> list[tuple[int, int]]:
    """Pairs (i, j) with |audio_s[j] - visual_s[i]| <= tolerance_s: one to one, as many as can be, then nearest."""
    if len(visual_s) == 0 or len(audio_s) == 0:
        return []
    apart = np.abs(np.asarray(visual_s, float)[:, None] - np.asarray(audio_s, float)[None])
    near = apart <= tolerance_s + 1e-9
    # a pair more always outweighs any sum of distances
    gain = np.where(near, (len(apart) + 1) * (tolerance_s + 1e-3) - apart, 0.0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if near[i, j]]


@dataclass(frozen=True)
class Alignment:
    """The offset at which two lists of events fit best."""

    offset_s: float
    confidence: float
    pairs: list[tuple[int, int]]
    """(visual, audio) events that belong together at that offset."""


NO_ALIGNMENT = Alignment(0.0, 0.0, [])


def align_events(
    visual_s: Sequence[float] | np.ndarray, audio_s: Sequence[float] | np.ndarray, duration_s: float
) -> Alignment:
    """The offset within ±1 s that best explains what is heard by what is seen.

    Each difference audio_j - visual_i is tried. At offset d only events whose partner would fall inside the
    clip can miss it: `score(d) = 2 Σ exp(-r²/2σ²) / (visible + audible) · n / (n + 1/2) · (1 - |d| / 8)`, r the
    residuals of the n matched pairs, σ 30 ms; the last factors ask for evidence and prefer small offsets.
    The answer is the median of the matched differences.
    """
    visual, audio = np.sort(np.asarray(visual_s, float)), np.sort(np.asarray(audio_s, float))
    differences = (audio[None] - visual[:, None]).ravel()
    differences = differences[np.abs(differences) <= MAX_OFFSET_S]
    if not len(differences):
        return NO_ALIGNMENT
    candidates = np.unique(np.round(differences / 0.005)) * 0.005
    scores = np.array([_explained(visual, audio, d, duration_s) for d in candidates])
    best = int(np.argmax(scores))
    pairs = match_events(visual + candidates[best], audio, 3 * _EVENT_SPREAD_S)
    offset_s = float(np.median([audio[j] - visual[i] for i, j in pairs]))
    rivals = scores[np.abs(candidates - candidates[best]) > 0.1]
    margin = 1.0 - 0.7 * float(rivals.max(initial=0.0)) / max(float(scores[best]), 1e-9)
    return Alignment(offset_s, float(np.clip(scores[best] * margin / 0.75, 0.0, 1.0)), pairs)


def _explained(visual: np.ndarray, audio: np.ndarray, offset_s: float, duration_s: float) -> float:
    visible = visual[(visual + offset_s >= 0) & (visual + offset_s < duration_s)] + offset_s
    audible = audio[(audio - offset_s >= 0) & (audio - offset_s < duration_s)]
    if not len(visible) or not len(audible):
        return 0.0
    nearest = visible[np.abs(visible[:, None] - audible[None]).argmin(axis=0)]
    residual = audible - nearest
    # one to one without an assignment: of several sounds nearest to one sight, the closest counts
    fit: dict[float, float] = {}
    for place, r in zip(nearest, residual, strict=True):
        fit[place] = max(fit.get(place, 0.0), float(np.exp(-0.5 * (r / _EVENT_SPREAD_S) ** 2)))
    total = sum(fit.values())
    return 2 * total / (len(visible) + len(audible)) * total / (total + 0.5) * (1 - abs(offset_s) / 8)


@dataclass(frozen=True)
class Fit:
    """How well what is heard goes with what is seen, at each lag of the sound."""

    z: np.ndarray
    """(201,) correlation in standard deviations of chance, at lags of -1 … 1 s every 10 ms; 0 where the two overlap
    too little."""
    climbs_hz: float
    """How often along the lags the correlation of unrelated curves like these climbs through 0, per s."""

    @property
    def offset_s(self) -> float:
        """The lag of the best fit, between the grid's. No lag is preferred, so that it moves with the sound."""
        best = int(np.argmax(self.z))
        return (best - len(self.z) // 2 + _vertex(self.z, best)) / _GRID_HZ if self.z.any() else 0.0

    @property
    def confidence(self) -> float:
        """`1 - 10 p`, at least 0, with p the chance that unrelated curves fit as well at any lag.

        Over lags their correlation is taken for a Gaussian process, which climbs over z
        `climbs_hz · exp(-z²/2)` times a second.

        Source: Rice, "Mathematical analysis of random noise", 1944.
        """
        z = float(self.z.max())
        lags_s = np.count_nonzero(self.z) / _GRID_HZ
        p = -np.expm1(-(special.ndtr(-z) + lags_s * self.climbs_hz * np.exp(-0.5 * z**2)))
        return max(0.0, 1 - 10 * float(p)) if z > 0 else 0.0


NO_FIT = Fit(np.zeros(2 * round(MAX_OFFSET_S * _GRID_HZ) + 1), 0.0)


def fit_together(fits: Sequence[Fit]) -> Fit:
    """The fit of several clips at one common offset: `Σ z / sqrt(N)`. Clips without a fit are left out.

    Source: Stouffer et al., "The American soldier", 1949, footnote of volume 1, page 45.
    """
    fits = [fit for fit in fits if fit.z.any()]
    if not fits:
        return NO_FIT
    z = np.sum([fit.z for fit in fits], axis=0) / math.sqrt(len(fits))
    return Fit(z, math.sqrt(sum(fit.climbs_hz**2 for fit in fits) / len(fits)))


def align_curves(
    visual: tuple[np.ndarray, np.ndarray],
    audio: tuple[np.ndarray, np.ndarray],
    duration_s: float,
    heard_s: tuple[float, float] = (0.0, math.inf),
) -> Fit:
    """How well two curves over time correlate at each lag within ±1 s.

    Both are compressed, so that no single event decides, and put on a 10 ms grid without what changes over more than
    half a second; at each lag Pearson's r is taken over what overlaps, at least half the clip. For unrelated curves
    its variance is `Σ_k ρ_v(k) ρ_a(k) / n`, ρ their autocorrelations: rhythms that repeat are little evidence.

    Args:
        visual, audio: times in s and values, at least 0.
        heard_s: the part of the clip in which there is sound; what lies outside says nothing about timing.

    Source: Bartlett, "On the theoretical specification of sampling properties of autocorrelated time series", 1946.
    """
    grid_s = np.arange(0.0, duration_s, 1 / _GRID_HZ)
    heard = ((grid_s >= heard_s[0]) & (grid_s <= heard_s[1])).astype(float)
    v = _sudden(_on_grid(grid_s, visual[0], visual[1] ** 0.5))
    a = _on_grid(grid_s, audio[0], audio[1] ** 0.75)
    # an edge is no event: what is not heard is filled with the mean
    a = _sudden(np.where(heard > 0, a, (a @ heard) / max(heard.sum(), 1.0))) * heard
    longest = round(MAX_OFFSET_S * _GRID_HZ)
    most = min(longest, len(grid_s) // 2)
    if most < 2 or v.std() < 1e-9 or a.std() < 1e-9:
        return NO_FIT
    r = np.pad(_correlation(v, a, heard, most), longest - most)
    v, a = v - v.mean(), a - a.sum() / heard.sum() * heard
    # the spectrum of the correlation over lags; its mean is the sum of the products of autocorrelations
    spectrum = np.abs(np.fft.fft(v, 2 * len(v)) * np.fft.fft(a, 2 * len(a))) ** 2  # (2K,)
    omega = 2 * np.pi * np.fft.fftfreq(len(spectrum), 1 / _GRID_HZ)
    climbs_hz = math.sqrt(omega**2 @ spectrum / spectrum.sum()) / (2 * math.pi)
    return Fit(r / math.sqrt(spectrum.mean() / ((v @ v) * (a @ a) * heard.sum())), climbs_hz)


def _sudden(curve: np.ndarray) -> np.ndarray:
    """What changes within half a second of a curve on the grid."""
    return curve - ndimage.gaussian_filter1d(curve, 0.5 * _GRID_HZ)


def _correlation(v: np.ndarray, a: np.ndarray, heard: np.ndarray, most: int) -> np.ndarray:
    """Pearson's r of v(t) with a(t + lag) over the t where a is heard, for lags -most … most (2 most + 1,).

    0 where less than half of the curves overlap. A variance counts as a fifth of the whole curve's at least, so
    that an overlap in which nothing happens cannot fit by its noise.
    """

    def at_lags(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return signal.correlate(y, x, mode="full")[len(x) - 1 - most : len(x) + most]

    a, everywhere = a * heard, np.ones(len(v))
    n = at_lags(everywhere, heard)
    usable = n >= 0.49 * len(v)
    n = np.maximum(n, 1.0)
    sum_v, sum_a = at_lags(v, heard), at_lags(everywhere, a)
    spread_v = np.maximum(at_lags(v * v, heard) - sum_v**2 / n, 0.2 * n * v.var())
    spread_a = np.maximum(at_lags(everywhere, a * a) - sum_a**2 / n, 0.2 * n * a.var())
    return np.where(usable, (at_lags(v, a) - sum_v * sum_a / n) / np.sqrt(spread_v * spread_a), 0.0)


def sound_against(
    visual: tuple[np.ndarray, np.ndarray], waveform: np.ndarray, sample_rate: int, duration_s: float
) -> Fit:
    """How well a (L,) mono waveform goes with a curve of visible impacts when it is late by each lag.

    Digital silence before and after the sound is no evidence, nor is the moment at which a sound that begins
    late cuts in.
    """
    loud = np.flatnonzero(np.abs(waveform) > _SILENT)
    if len(loud) < 2 * _WINDOW_S * sample_rate:
        return NO_FIT
    first_s, last_s = loud[0] / sample_rate, loud[-1] / sample_rate
    times_s, strength = onset_strength(waveform, sample_rate)
    if first_s > _CUT_IN_S:
        first_s += _CUT_IN_S
        strength = np.where(times_s < first_s, 0.0, strength)
    return align_curves(visual, (times_s, strength), duration_s, (first_s, last_s))


def _on_grid(grid_s: np.ndarray, times_s: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` on a regular grid, the peaks of fine curves kept, smoothed to the width of a video frame."""
    if len(times_s) < 2:
        return np.zeros(len(grid_s))
    if times_s[1] - times_s[0] < 1 / _GRID_HZ:
        at = np.clip(np.round(times_s * _GRID_HZ).astype(int), 0, len(grid_s) - 1)
        on_grid = np.zeros(len(grid_s))
        np.maximum.at(on_grid, at, values)
    else:
        on_grid = np.interp(grid_s, times_s, values)
    return ndimage.gaussian_filter1d(on_grid, 0.03 * _GRID_HZ)


def measure_offset(frames: np.ndarray, fps: Fraction | float, waveform: np.ndarray, sample_rate: int) -> SyncMeasure:
    """How far the sound lies behind the picture, from the two streams alone.

    The visible impacts are correlated with the onsets of the sound; confidence 0 for still or silent clips and
    wherever nothing that is seen goes with what is heard. Drift is the Theil-Sen slope over matched events,
    0 where fewer than 6 of them span 4 s.

    Args:
        frames: (T, H, W, 3) uint8.
        waveform: (L,) mono.
    """
    method = "impacts against onsets"
    audio_s = audio_onsets(waveform, sample_rate)
    if len(frames) < 4 or not len(audio_s):
        return SyncMeasure(offset_ms=0.0, confidence=0.0, method=method)
    visual = impact_strength(frames, fps)
    duration_s = min(len(frames) / float(fps), len(waveform) / sample_rate)
    fit = sound_against(visual, waveform, sample_rate, duration_s)
    visual_s = _peaks(*visual, fps)
    pairs = match_events(visual_s + fit.offset_s, audio_s, 0.1)
    drift = 0.0
    if len(pairs) >= 6 and visual_s[pairs[-1][0]] - visual_s[pairs[0][0]] >= 4:
        from scipy.stats import theilslopes

        late_s = [audio_s[j] - visual_s[i] for i, j in pairs]
        drift = float(theilslopes(late_s, [visual_s[i] for i, _ in pairs])[0]) * 1000
    return SyncMeasure(
        offset_ms=round(fit.offset_s * 1000, 3),
        drift_ms_per_s=round(drift, 3),
        confidence=round(fit.confidence, 4),
        method=method,
    )
