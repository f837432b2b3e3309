"""Onset offset: by how many milliseconds the sound is late, and how many events it meets.

Visible events are those the manifest states (`events_s`), else the impacts that `syncflow.sync` sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from syncflow.eval.statistics import Interval, bootstrap
from syncflow.sync import Fit, align_events, fit_together, match_events

TOLERANCES_MS = (40, 80, 160)
HEADLINE_MS = 80
"""Tolerance of the precision, recall and F1 that are reported first."""
KNOWN_MEASURABLE = 0.3
"""Confidence from which an offset from known visible times counts; below it a clip has no measurable rhythm: one sound
that may belong to any of several sights does not reach it."""


@dataclass(frozen=True)
class Events:
    """What is seen and heard in one clip, in seconds, and how late the sound is."""

    visual_s: Sequence[float]
    audio_s: Sequence[float]
    offset_ms: float
    confidence: float
    """0: there is nothing to tell the offset by, or not clearly enough."""
    fit: Fit | None = None
    """Where visible times are guessed: how well each offset fits."""


def known_events(visual_s: Sequence[float], audio_s: Sequence[float], duration_s: float) -> Events:
    """Events whose visible times are known: the offset is the one that explains the sounds best."""
    best = align_events(visual_s, audio_s, duration_s)
    confidence = best.confidence if best.confidence >= KNOWN_MEASURABLE else 0.0
    return Events(visual_s, audio_s, best.offset_s * 1000, confidence)


def seen_events(visual_s: Sequence[float], audio_s: Sequence[float], fit: Fit) -> Events:
    """Events whose visible times are guessed from motion, with the offset at which the curves correlate best."""
    return Events(visual_s, audio_s, fit.offset_s * 1000, fit.confidence, fit)


def hits(events: Events, tolerance_ms: float) -> int:
    """Events seen and heard within the tolerance, one to one, at no offset."""
    return len(match_events(events.visual_s, events.audio_s, tolerance_ms / 1000))


def clip_f1(events: Events, tolerance_ms: float = HEADLINE_MS) -> float | None:
    total = len(events.visual_s) + len(events.audio_s)
    return 2 * hits(events, tolerance_ms) / total if total else None


def common_offset(events: Sequence[Events], seed: int, resamples: int) -> Interval | None:
    """Signed offset in ms at which the clips together fit best, with a bootstrap interval over clips.

    Guessed times are wrong in many clips, so that a median over clips jumps with each of them; what all clips have in
    common stands out of their sum. None where that could be chance (10 %).
    """
    fits = _fits(events)
    if fit_together(fits).confidence == 0:
        return None
    z = np.array([fit.z for fit in fits])  # (N, lags)
    return bootstrap(z, lambda rows: Fit(rows.sum(axis=0), 0.0).offset_s * 1000, seed, resamples)


def count_fits(events: Sequence[Events]) -> int:
    """Clips that have a say in `common_offset`."""
    return len(_fits(events))


def _fits(events: Sequence[Events]) -> list[Fit]:
    return [e.fit for e in events if e.fit is not None and e.fit.z.any()]


def median_offset(events: Sequence[Events], seed: int, resamples: int) -> Interval | None:
    """Signed median offset in ms over clips, each weighted by its confidence, with a bootstrap interval over clips."""
    sure = [e for e in events if e.confidence > 0]
    if not sure:
        return None
    values = np.array([[e.offset_ms, e.confidence] for e in sure])  # (N, 2)
    return bootstrap(values, lambda rows: weighted_median(rows[:, 0], rows[:, 1]), seed, resamples)


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The middle of `values` (N,) when each counts `weights` (N,): the mean of both where the middle is between two."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    half = reached[-1] / 2
    low = order[min(int(np.searchsorted(reached, half * (1 - 1e-12))), len(values) - 1)]
    high = order[min(int(np.searchsorted(reached, half * (1 + 1e-12))), len(values) - 1)]
    return float((values[low] + values[high]) / 2)


def rates(events: Sequence[Events], tolerance_ms: float, seed: int, resamples: int) -> dict[str, Interval]:
    """Precision, recall and F1 of matched events, pooled over clips: `2 TP / (visible + audible)`.

    Recall is the share of visible events whose sound lies within the tolerance.
    """
    counts = np.array([[hits(e, tolerance_ms), len(e.visual_s), len(e.audio_s)] for e in events], float)  # (N, 3)
    found: dict[str, Interval] = {}
    if len(counts) == 0:
        return found
    for name, weights in {"recall": (0.0, 1.0, 0.0), "precision": (0.0, 0.0, 1.0), "f1": (0.0, 0.5, 0.5)}.items():
        of = np.array(weights)
        if counts.sum(axis=0) @ of > 0:

            def share(rows: np.ndarray, of: np.ndarray = of) -> float:
                total = rows.sum(axis=0)
                return float(total[0] / (total @ of)) if total @ of > 0 else 0.0

            found[name] = bootstrap(counts, share, seed, resamples)
    return found
