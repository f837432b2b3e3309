"""From what was measured on each clip to the numbers of a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from syncflow.eval import onset_offset
from syncflow.eval.av_align import av_align
from syncflow.eval.clips import ClipFile
from syncflow.eval.measure import ClipMeasures
from syncflow.eval.onset_offset import Events, known_events, seen_events
from syncflow.eval.protocol import Protocol, describe
from syncflow.eval.statistics import FEW_CLIPS, Interval, bootstrap_mean, derangement
from syncflow.sync import Fit

SILENT = 1e-3
"""Peak amplitude (-60 dB) below which a clip is called silent."""
STILL = 0.02
"""Mean change of grey level (of 255) below which a clip is called static."""


@dataclass(frozen=True)
class Score:
    """One number with its interval and protocol, or why there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    better: str = "higher"
    """higher, lower, or zero."""
    clips: int = 0
    notes: tuple[str, ...] = ()
    protocol: Protocol | None = None
    not_computed: str = ""
    extra: dict[str, float] = field(default_factory=dict)
    """More of the same metric, for example FD∞."""

    def as_json(self) -> dict[str, Any]:
        if self.value is None:
            return {"not_computed": self.not_computed}
        protocol = self.protocol.model_dump(mode="json") | {"id": self.protocol.id} if self.protocol else None
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
            "better": self.better,
            "clips": self.clips,
            **self.extra,
            "notes": list(self.notes),
            "protocol": protocol,
        }


@dataclass(frozen=True)
class ClipScore:
    """One row of clips.csv."""

    clip: ClipFile
    measures: ClipMeasures
    events: Events
    events_known: bool
    av_align: float | None
    notes: tuple[str, ...]
    others: dict[str, float] = field(default_factory=dict)


def score_clip(clip: ClipFile, measures: ClipMeasures) -> ClipScore:
    known = clip.events_s is not None
    visual_s = measures.impacts_s if clip.events_s is None else list(clip.events_s)
    if known:
        events = known_events(visual_s, measures.onsets_s, measures.duration_s)
    else:
        events = seen_events(visual_s, measures.onsets_s, Fit(np.array(measures.fit), measures.climbs_hz))
    notes = [
        note
        for note, holds in {
            "silent": measures.peak < SILENT,
            "static": measures.motion < STILL,
            "no visible event": not visual_s,
            "no onset heard": not measures.onsets_s,
            "no measurable rhythm": bool(visual_s and measures.onsets_s) and events.confidence == 0,
        }.items()
        if holds
    ]
    aligned = av_align(measures.published_onsets_s, measures.published_peaks_s, measures.fps)
    return ClipScore(clip, measures, events, known, aligned, tuple(notes))


def shuffled(scores: Sequence[ClipScore], seed: int) -> list[ClipScore]:
    """Every picture with the sound of another clip of the set: what chance gives.

    Seen impacts lend no offset: it comes from curves that only a clip's own sound was held against.
    """
    mixed = []
    for seen, other in zip(scores, derangement(len(scores), seed), strict=True):
        heard = scores[other].measures
        within = [t for t in heard.onsets_s if t < seen.measures.duration_s]
        published = [t for t in heard.published_onsets_s if t < seen.measures.duration_s]
        events = Events(seen.events.visual_s, within, 0.0, 0.0)
        if seen.events_known:
            events = known_events(seen.events.visual_s, within, seen.measures.duration_s)
        aligned = av_align(published, seen.measures.published_peaks_s, seen.measures.fps)
        mixed.append(ClipScore(seen.clip, seen.measures, events, seen.events_known, aligned, seen.notes))
    return mixed


def same_caption(scores: Sequence[ClipScore], seed: int) -> list[ClipScore]:
    """Every picture with the sound of another clip of its caption: what a cascade reaches whose sound is made from
    the caption alone. Clips that share their caption with no other are left out."""
    by_caption: dict[str, list[ClipScore]] = {}
    for score in scores:
        if score.clip.caption:
            by_caption.setdefault(score.clip.caption, []).append(score)
    groups = [group for group in by_caption.values() if len(group) > 1]
    return [mixed for group in groups for mixed in shuffled(group, seed)]


def score_av_align(scores: Sequence[ClipScore], seed: int, resamples: int) -> dict[str, Score]:
    """Mean AV-Align over clips."""
    usable = [s for s in scores if s.av_align is not None]
    if not usable:
        return {"av_align": Score(not_computed="no clip has an onset or a flow peak")}
    interval = bootstrap_mean(np.array([s.av_align for s in usable]), seed, resamples)
    notes = few(len(usable))
    if len(usable) < len(scores):
        notes += (f"{len(scores) - len(usable)} clips have neither onset nor flow peak and are left out",)
    protocol = describe("av_align", [s.measures for s in usable], seed)
    return {"av_align": _score(interval, "IoU", "higher", len(usable), notes, protocol)}


def score_onset_offset(scores: Sequence[ClipScore], seed: int, resamples: int) -> dict[str, Score]:
    """Signed median offset, shares within tolerances, precision, recall and F1 of events."""
    events = [s.events for s in scores]
    origin = " and ".join(sorted({"known" if s.events_known else "seen" for s in scores}))
    found: dict[str, Score] = {}

    def add(
        name: str, interval: Interval | None, unit: str, better: str, clips: int, why: str, notes: tuple[str, ...] = ()
    ) -> None:
        if interval is None:
            found[name] = Score(not_computed=why)
        else:
            protocol = describe(name, [s.measures for s in scores], seed, events=origin)
            found[name] = _score(interval, unit, better, clips, few(clips) + notes, protocol)

    sure = sum(e.confidence > 0 for e in events)
    if origin == "seen":
        together = onset_offset.common_offset(events, seed, resamples)
        clips = onset_offset.count_fits(events)
        lacking = (
            "what is heard in these clips goes with what is seen no better than by chance"
            if clips
            else "no clip has both visible motion and sound of its own to hold against it"
        )
        alone = (f"the offset is what {clips} clips have in common; {sure} of them show one by themselves",)
        add("onset_offset", together, "ms", "zero", clips, lacking, alone)
    else:
        offset = onset_offset.median_offset(events, seed, resamples)
        add("onset_offset", offset, "ms", "zero", sure, "in no clip does what is heard go with what is seen")
    eventful = sum(bool(len(e.visual_s) or len(e.audio_s)) for e in events)
    headline = onset_offset.rates(events, onset_offset.HEADLINE_MS, seed, resamples)
    for name in ("f1", "precision", "recall"):
        lacking = "no onset is heard in any clip" if name == "precision" else "no event is seen in any clip"
        add(f"onset_{name}", headline.get(name), f"±{onset_offset.HEADLINE_MS} ms", "higher", eventful, lacking)
    for tolerance in onset_offset.TOLERANCES_MS:
        share = onset_offset.rates(events, tolerance, seed, resamples).get("recall")
        add(f"within_{tolerance}ms", share, "of events", "higher", eventful, "no event is seen in any clip")
    return found


def score_loudness(scores: Sequence[ClipScore], seed: int, resamples: int) -> dict[str, Score]:
    """Mean integrated loudness over clips that are not silent."""
    heard = [s.measures for s in scores if s.measures.loudness_lufs is not None]
    if not heard:
        return {"loudness": Score(not_computed="every clip is silent")}
    interval = bootstrap_mean(np.array([m.loudness_lufs for m in heard]), seed, resamples)
    notes = (f"{len(scores) - len(heard)} silent clips have no loudness",) if len(heard) < len(scores) else ()
    return {"loudness": _score(interval, "LUFS", "", len(heard), notes, describe("loudness", heard, seed))}


def score_motion(scores: Sequence[ClipScore], seed: int, resamples: int) -> dict[str, Score]:
    """Mean change of grey level per frame; compare only at one frame rate."""
    measures = [s.measures for s in scores]
    interval = bootstrap_mean(np.array([m.motion for m in measures]), seed, resamples)
    return {"motion": _score(interval, "grey levels", "", len(measures), (), describe("motion", measures, seed))}


def _score(
    interval: Interval, unit: str, better: str, clips: int, notes: tuple[str, ...], protocol: Protocol | None
) -> Score:
    return Score(interval.value, interval.low, interval.high, unit, better, clips, notes, protocol)


def few(clips: int) -> tuple[str, ...]:
    return (f"only {clips} clips: read the interval, not the value",) if clips < FEW_CLIPS else ()
