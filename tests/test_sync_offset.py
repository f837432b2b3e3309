"""Onsets, visible impacts and the offset between them, on sounds and pictures whose truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from syncflow.impacts import render_clip
from syncflow.sync import align_events, audio_onsets, match_events, measure_offset, motion_energy, motion_peaks

CLIPS = [render_clip(5, index) for index in range(16)]


def shifted(waveform: np.ndarray, sample_rate: int, shift_ms: float) -> np.ndarray:
    n = round(shift_ms * sample_rate / 1000)
    padded = np.pad(waveform, (max(n, 0), max(-n, 0)))
    return padded[max(-n, 0) :][: len(waveform)]


def strikes(times_s: list[float], sample_rate: int, seed: int = 0) -> np.ndarray:
    waveform = np.random.default_rng(seed).normal(0, 0.002, 4 * sample_rate)
    tau = np.arange(int(0.3 * sample_rate)) / sample_rate
    for time_s in times_s:
        first = int(np.ceil(time_s * sample_rate))
        waveform[first : first + len(tau)] += 0.5 * np.exp(-20 * tau) * np.sin(2 * np.pi * 900 * tau)
    return waveform


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050, 48000])
def test_onsets_are_found_to_two_milliseconds(sample_rate: int) -> None:
    times_s = [0.3, 0.81, 1.2, 1.77, 2.5, 3.33]
    np.testing.assert_allclose(audio_onsets(strikes(times_s, sample_rate), sample_rate), times_s, atol=0.002)


def test_silence_and_a_steady_tone_have_no_onsets() -> None:
    assert len(audio_onsets(np.zeros(16000), 16000)) == 0
    assert len(audio_onsets(np.zeros(10), 16000)) == 0
    assert len(audio_onsets(0.3 * np.sin(np.arange(48000) * 0.17), 16000)) == 0


def test_every_strike_of_rendered_clips_is_heard_where_it_is() -> None:
    matched, visible, audible, late_ms = 0, 0, 0, []
    for clip in CLIPS:
        onsets_s = audio_onsets(clip.waveform, clip.sample_rate)
        pairs = match_events(clip.events_s, onsets_s, 0.08)
        matched, visible, audible = matched + len(pairs), visible + len(clip.events_s), audible + len(onsets_s)
        late_ms += [1000 * (onsets_s[j] - clip.events_s[i]) for i, j in pairs]
    assert 2 * matched / (visible + audible) >= 0.95
    assert np.abs(late_ms).max() < 5


@pytest.mark.parametrize("shift_ms", [-400, -80, -20, 0, 20, 80, 400])
def test_known_shifts_come_back_within_ten_milliseconds(shift_ms: int) -> None:
    found_ms = [
        1000
        * align_events(
            clip.events_s, audio_onsets(shifted(clip.waveform, clip.sample_rate, shift_ms), clip.sample_rate), 2.0
        ).offset_s
        for clip in CLIPS
    ]
    assert np.median(found_ms) == pytest.approx(shift_ms, abs=10)
    assert np.mean(np.abs(np.array(found_ms) - shift_ms) < 10) > 0.7


def test_motion_alone_sees_a_shift() -> None:
    found_ms = []
    for clip in CLIPS:
        late = shifted(clip.waveform, clip.sample_rate, 200)
        found_ms.append(measure_offset(clip.frames, clip.fps, late, clip.sample_rate).offset_ms)
    assert np.median(found_ms) == pytest.approx(200, abs=40)


def test_visible_impacts_are_found() -> None:
    matched, visible, seen = 0, 0, 0
    for clip in CLIPS:
        peaks_s = motion_peaks(clip.frames, clip.fps)
        matched += len(match_events(clip.events_s, peaks_s, 0.08))
        visible, seen = visible + len(clip.events_s), seen + len(peaks_s)
    assert 2 * matched / (visible + seen) > 0.7


def test_still_or_silent_clips_have_no_confidence() -> None:
    clip = CLIPS[0]
    still = np.repeat(clip.frames[:1], len(clip.frames), axis=0)
    assert len(motion_peaks(still, clip.fps)) == 0
    assert measure_offset(still, clip.fps, clip.waveform, clip.sample_rate).confidence == 0
    assert measure_offset(clip.frames, clip.fps, np.zeros_like(clip.waveform), clip.sample_rate).confidence == 0
    assert measure_offset(clip.frames[:2], clip.fps, clip.waveform, clip.sample_rate).confidence == 0
    times_s, energy = motion_energy(still, clip.fps)
    assert len(times_s) == len(still) - 1
    assert not energy.any()


def test_matching_is_the_best_one_to_one() -> None:
    """Against trying every assignment: most pairs first, least distance second."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        visual_s, audio_s = rng.uniform(0, 1, rng.integers(0, 5)), rng.uniform(0, 1, rng.integers(0, 5))
        pairs = match_events(visual_s, audio_s, 0.2)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
        best = (0, 0.0)
        few, many = sorted((visual_s, audio_s), key=len)
        for order in itertools.permutations(range(len(many)), len(few)):
            apart = np.abs(few - many[list(order)])
            near = apart[apart <= 0.2]
            best = min(best, (-len(near), float(near.sum())))
        total = sum(abs(visual_s[i] - audio_s[j]) for i, j in pairs)
        assert (-len(pairs), total) == pytest.approx(best)
