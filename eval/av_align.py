"""AV-Align as its authors' code computes it: onsets of the sound against peaks of the optical flow.

Source: Yariv et al., "Diverse and aligned audio-to-video generation via text-to-video model adaptation", 2024,
and the code they published, with its two later clarifications: a flow peak counts from 0.1 pixels on, and
is matched once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise

import numpy as np

SAMPLE_RATE = 22050
"""librosa's default, to which the published code resamples."""
LEAST_FLOW = 0.1
"""Mean flow in pixels per frame below which a local maximum is noise of a still scene."""


def audio_peaks(waveform: np.ndarray, sample_rate: int) -> list[float]:
    """Times in s of librosa's onsets of a (L,) mono waveform, resampled to 22,050 Hz."""
    import librosa

    sound = waveform.astype(np.float32)
    if sample_rate != SAMPLE_RATE:
        sound = librosa.resample(sound, orig_sr=sample_rate, target_sr=SAMPLE_RATE)
    if len(sound) == 0 or not np.any(sound):
        return []
    strength = librosa.onset.onset_strength(y=sound, sr=SAMPLE_RATE)
    return [float(t) for t in librosa.frames_to_time(onset_frames(strength), sr=SAMPLE_RATE)]


def onset_frames(strength: np.ndarray) -> list[int]:
    """Frames picked by `librosa.onset.onset_detect` of a (F,) float32 onset strength at its default rate and hop.

    Written out because librosa's own is a cached numba gufunc: where two processes compile it at once, as the
    workers of a fresh installation do, its cache is left broken and every later call ends in a segmentation fault
    (numba issue 10128).
    """
    before, least = 4, float(np.float32(0.07))  # 0.1 s of frames to either side; delta
    height = strength - strength.min()
    height /= height.max() + np.finfo(height.dtype).tiny
    if not height.any() or not np.isfinite(height).all():
        return []
    levels = height.tolist()
    picked: list[int] = []
    for frame, level in enumerate(levels):
        waits = picked and frame == picked[-1] + 1  # 0.03 s
        if waits or (frame and level < levels[frame - 1]):
            continue
        around = height[max(0, frame - before) : frame + before + 1]
        # numba sums one after another in float32, which the last bit shows
        if level >= float(np.cumsum(around)[-1]) / len(around) + least:
            picked.append(frame)
    return picked


def flow_curve(frames: Iterable[np.ndarray], threads: int = 1) -> list[float]:
    """Mean length in pixels of Farneback's optical flow into each (H, W, 3) RGB frame; the first repeats the second.

    Args:
        threads: pairs of frames looked at side by side; OpenCV computes outside Python's lock.
    """
    import cv2

    def into(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return cv2.calcOpticalFlowFarneback(*pair, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]

    pairs = pairwise(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)  # of (H, W)
    curve: list[float] = []
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
        for flow in pool.map(into, pairs) if pool else map(into, pairs):  # (H, W, 2)
            if not curve:
                x, y, length = (_aligned(flow.shape[:2]) for _ in range(3))
            # the last bits of OpenCV's root depend on where in memory the numbers lie, which threads change
            x[:], y[:] = flow[..., 0], flow[..., 1]
            curve.append(float(cv2.mean(cv2.magnitude(x, y, length))[0]))
    return curve[:1] + curve


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """float32, beginning at a multiple of 64 bytes."""
    size = 4 * math.prod(shape)
    room = np.empty(size + 64, np.uint8)
    first = -room.ctypes.data % 64
    return room[first : first + size].view(np.float32).reshape(shape)


def flow_peaks(curve: Sequence[float], fps: float) -> list[float]:
    """Times in s of strict local maxima of the flow curve that reach `LEAST_FLOW`."""
    return [
        k / fps for k in range(1, len(curve) - 1) if curve[k - 1] < curve[k] > curve[k + 1] and curve[k] >= LEAST_FLOW
    ]


def matches(audio_s: Sequence[float], video_s: Sequence[float], fps: float) -> list[tuple[int, int]]:
    """(video peak, audio peak) pairs less than a frame apart, in order of sound, each video peak once."""
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for j, heard in enumerate(audio_s):
        for i, seen in enumerate(video_s):
            if i not in used and seen - 1 / fps < heard < seen + 1 / fps:
                used.add(i)
                pairs.append((i, j))
                break
    return pairs


def av_align(audio_s: Sequence[float], video_s: Sequence[float], fps: float) -> float | None:
    """Intersection over union of the two lists of peaks: `m / (audible + visible - m)`, m of them matched.

    None where there is nothing to match on either side.
    """
    if not audio_s and not video_s:
        return None
    m = len(matches(audio_s, video_s, fps))
    return m / (len(audio_s) + len(video_s) - m)
