"""Scores across modalities from embeddings and logits: pure functions. T windows or frames, D dimensions."""

from __future__ import annotations

import numpy as np

from syncflow.eval.distances import cosine
from syncflow.models.perception.synchformer import OFFSETS_S


def desync(logits: np.ndarray) -> float:
    """Mean over windows of `|offset of the likeliest class|` in s, of (windows, 21) logits.

    Source: Synchformer (Iashin et al., 2024), used so by MMAudio (Cheng et al., 2024).
    """
    return float(np.abs(OFFSETS_S[np.asarray(logits).argmax(axis=-1)]).mean())


def text_similarity(frames: np.ndarray, text: np.ndarray) -> float:
    """CLIP score: mean cosine of (T, D) frames to one (D,) text."""
    return float(cosine(frames, np.broadcast_to(text, frames.shape)).mean())


def clip_iqa(frames: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """CLIP-IQA: how much likelier (T, D) frames are the first of (2, D) prompts, "Good photo." and "Bad photo.".

    `1 / (1 + exp(100 (cos(frame, bad) - cos(frame, good))))`, (T,).
    Source: Wang et al., "Exploring CLIP for assessing the look and feel of images", 2023; here with the usual CLIP
    network (the paper's has no positions).
    """
    good, bad = (cosine(frames, np.broadcast_to(prompt, frames.shape)) for prompt in prompts)
    return 1 / (1 + np.exp(100 * (bad - good)))


def avh_score(frames: np.ndarray, audio: np.ndarray) -> float:
    """AVHScore: mean cosine of (T, D) frames to the (D,) embedding of the whole sound.

    Source: Mao et al., "TAVGBench", 2024.
    """
    return float(cosine(frames, np.broadcast_to(audio, frames.shape)).mean())


def javis_score(windows: list[np.ndarray], audio: np.ndarray, worst: float = 0.4) -> float:
    """JavisScore: per window, the mean cosine of its worst 40 % frames to that window's sound; mean over windows.

    Args:
        windows: per window (T, D) frame embeddings.
        audio: (windows, D) embedding of the sound of each window.

    Source: Liu et al., "JavisDiT", 2025.
    """
    scores = []
    for frames, heard in zip(windows, audio, strict=True):
        fit = np.sort(cosine(frames, np.broadcast_to(heard, frames.shape)))
        scores.append(fit[: max(1, int(worst * len(fit)))].mean())
    return float(np.mean(scores))


def javis_windows(duration_s: float, window_s: float = 2.0, stride_s: float = 0.5) -> list[tuple[float, float]]:
    """[start, end) of JavisScore's windows of 2 s that overlap by 1.5 s; the last ends with the clip, a short clip is
    one window. The published code steps by whole frames, which is the same where half a second is.
    """
    if duration_s <= window_s:
        return [(0.0, duration_s)]
    starts = list(np.arange(0.0, duration_s - window_s + 1e-9, stride_s))
    if starts[-1] + window_s < duration_s - 1e-6:
        starts.append(duration_s - window_s)
    return [(float(s), float(s + window_s)) for s in starts]
