"""A clip's signature: bits that copies share and other clips do not, however a copy was encoded, scaled or cropped.

Three parts say what it looks like, what moves when, and what is heard when. Two moments of one scene look alike but
do not move and sound alike. A bit is set where something rises by more than noise does, so that flat pictures, still
pictures and silence set none.

T frames of R x C cells, K moments of B bands.
Source: the pictures' hash is the difference hash of N. Krawetz; the sound's is that of Haitsma & Kalker, "A highly
robust audio fingerprinting system", 2002, at a coarser step.
"""

from __future__ import annotations

import itertools

import numpy as np

from syncflow.clock import Span
from syncflow.media import MediaInfo, decode_span

FRAMES = 8
ROWS, COLUMNS = 8, 9
CELL = 4  # pixels
MOMENTS, BANDS = 17, 17
BANDS_HZ = np.geomspace(120.0, 3800.0, BANDS + 1)
SAMPLE_RATE = 8000
EDGE, CHANGE = 4.0, 4.0  # grey levels of 255
RISE_DB = 1.0
FLOOR_DB = 50.0  # below the clip's loudest band
SILENT = 1e-9  # power of a band below which nothing is heard (-90 dB of full scale)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

PARTS = {"still": FRAMES * ROWS * (COLUMNS - 1), "motion": 2 * (FRAMES - 1) * ROWS * COLUMNS, "sound": 256}
"""Bits of each part; whole bytes."""
BYTES = sum(PARTS.values()) // 8


def signature(info: MediaInfo, span: Span, timeout_s: float = 120, sound: bool = True) -> bytes:
    """`BYTES` bytes; without `sound`, or where there is none, its bits are zero.

    Raises:
        MediaError: the span cannot be decoded.
    """
    size = (COLUMNS * CELL, ROWS * CELL)
    fps = FRAMES / span.duration_s
    rate = SAMPLE_RATE if sound and info.audio else None
    clip = decode_span(info, span, fps=fps, size=size, sample_rate=rate, fit="stretch", timeout_s=timeout_s, threads=1)
    heard = sound_bits(clip.waveform) if rate else np.zeros(PARTS["sound"], bool)
    bits = [*picture_bits(clip.frames), heard]
    return np.packbits(np.concatenate(bits)).tobytes()


def picture_bits(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of (T, R * CELL, C * CELL, 3) uint8: where it darkens to the right; which cells brighten and darken when."""
    grey = frames.astype(np.float32) @ LUMA
    cells = grey.reshape(len(frames), ROWS, CELL, COLUMNS, CELL).mean((2, 4))  # (T, R, C)
    change = np.diff(cells, axis=0)  # (T-1, R, C)
    moves = np.stack([change > CHANGE, change < -CHANGE])
    return (cells[:, :, :-1] - cells[:, :, 1:] > EDGE).ravel(), moves.ravel()


def sound_bits(waveform: np.ndarray) -> np.ndarray:
    """Of (L,) at `SAMPLE_RATE`: where a band gains on the next one from one moment to the next, (256,)."""
    hop = len(waveform) // (MOMENTS + 1)
    windows = np.lib.stride_tricks.sliding_window_view(waveform, 2 * hop)[::hop][:MOMENTS]  # (K, 2 hop)
    power = np.abs(np.fft.rfft(windows * np.hanning(2 * hop), axis=1)) ** 2 / (2 * hop) ** 2
    edges = np.searchsorted(np.fft.rfftfreq(2 * hop, 1 / SAMPLE_RATE), BANDS_HZ)
    bands = np.stack([power[:, a : max(a + 1, b)].sum(1) for a, b in itertools.pairwise(edges)], axis=1)
    floor = max(SILENT, bands.max() * 10 ** (-FLOOR_DB / 10))
    level = 10 * np.log10(np.maximum(bands, floor))  # (K, B) dB
    return (np.diff(np.diff(level, axis=1), axis=0) > RISE_DB).ravel()  # (K-1, B-1)
