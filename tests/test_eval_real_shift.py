"""The onset offset on real clips of struck things: it moves as far as the sound does, or says that it cannot tell."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from syncflow.eval.calibrate import read
from syncflow.eval.clips import find_clips
from syncflow.eval.damage import Stream, shift
from syncflow.eval.onset_offset import Events, median_offset, seen_events
from syncflow.sync import impact_strength, sound_against

STRUCK: tuple[str, ...] = (
    "drum",
    "hammer",
    "chopping",
    "hitting",
    "marimba",
    "tabla",
    "piano",
    "gun",
    "fireworks",
    "clip-clop",
    "thump",
)
STRUCK += ("tennis", "crushing can")
"""Words in the labels of clips whose sounds are blows. Some show none of them: a gun off screen, hands too small."""


@dataclass
class Struck:
    """A clip without its frames, which would fill the memory."""

    visual: tuple[np.ndarray, np.ndarray]
    duration_s: float
    sound: Stream


@pytest.fixture(scope="module")
def percussive(develop: Path) -> dict[str, Struck]:
    with (develop / "manifest.csv").open() as file:
        labels = {Path(row["file"]).stem: row["label"] for row in csv.DictReader(file)}
    found = {}
    for clip in find_clips(develop).clips:
        if any(word in labels[clip.name] for word in STRUCK):
            stream = read(clip)
            duration_s = min(len(stream.frames) / float(stream.fps), len(stream.waveform) / stream.sample_rate)
            sound = replace(stream, frames=stream.frames[:1])
            found[clip.name] = Struck(impact_strength(stream.frames, stream.fps), duration_s, sound)
    return found


def late_by(clips: dict[str, Struck], shift_ms: float) -> dict[str, Events]:
    found = {}
    for name, clip in clips.items():
        one = shift(clip.sound, shift_ms, clip.sound, 0)
        offset_s, confidence = sound_against(clip.visual, one.waveform, one.sample_rate, clip.duration_s)
        found[name] = seen_events([], [], offset_s * 1000, confidence)
    return found


@pytest.mark.slow
def test_a_shift_of_200_ms_moves_the_offset_by_200_ms(percussive: dict[str, Struck]) -> None:
    before, after = (late_by(percussive, ms) for ms in (0, 200))
    measurable = [name for name, events in before.items() if events.confidence > 0]
    assert len(measurable) >= 4
    moved = {name: after[name].offset_ms - before[name].offset_ms for name in measurable}
    assert all(abs(ms - 200) <= 40 for ms in moved.values()), moved
    medians = [median_offset(list(found.values()), 0, 0) for found in (before, after)]
    assert medians[0] is not None
    assert medians[1] is not None
    assert medians[1].value - medians[0].value == pytest.approx(200, abs=40)
    # also of the clips that are called unmeasurable, most follow
    every = np.array([after[name].offset_ms - before[name].offset_ms for name in percussive])
    assert np.mean(np.abs(every - 200) <= 40) >= 0.7
