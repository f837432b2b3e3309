"""Scores of what is known: black, frozen and moving pictures; sounds of known loudness; sound that is late."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from syncflow.clock import Span
from syncflow.impacts import render_clip
from syncflow.media import Clip, MediaError, ffmpeg_path, write_wav
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.preprocess.config import BucketSize, FiltersConfig, PreprocessConfig
from syncflow.preprocess.filters import filter_stages, picture_scores, sound_scores
from syncflow.preprocess.loudness import SILENCE_LUFS, loudness_lufs
from syncflow.preprocess.plan import ClipPlan, Source
from syncflow.preprocess.work import Work

RATE = 16000


def sine(frequency_hz: float, amplitude: float, sample_rate: int, seconds: float = 3.0) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * sample_rate)) / sample_rate)


@pytest.mark.parametrize("sample_rate", [16000, 22050, 44100, 48000])
def test_a_full_scale_sine_measures_what_the_standard_says(sample_rate: int) -> None:
    assert loudness_lufs(sine(997, 1.0, sample_rate), sample_rate) == pytest.approx(-3.01, abs=0.05)
    assert loudness_lufs(sine(997, 0.1, sample_rate), sample_rate) == pytest.approx(-23.01, abs=0.05)


def test_gates_leave_silence_out() -> None:
    tone = sine(997, 0.1, RATE)
    assert loudness_lufs(np.concatenate([tone, 0 * tone, tone]), RATE) == pytest.approx(-23.01, abs=0.6)
    assert loudness_lufs(np.zeros(RATE), RATE) == SILENCE_LUFS
    assert loudness_lufs(np.zeros(10), RATE) == SILENCE_LUFS


def test_loudness_of_a_rendered_clip_is_what_ffmpeg_measures(tmp_path: Path) -> None:
    waveform = render_clip(1, 0, duration_s=Fraction(4), sample_rate=48000).waveform
    write_wav(tmp_path / "a.wav", waveform, 48000)
    # A mono file is played by two speakers' worth of energy in ffmpeg unless dual mono is off, its default.
    command = [ffmpeg_path(), "-nostdin", "-i", str(tmp_path / "a.wav"), "-af", "ebur128", "-f", "null", "-"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    theirs = float(re.findall(r"I:\s+(-?[\d.]+) LUFS", said)[-1])
    assert loudness_lufs(waveform, 48000) == pytest.approx(theirs, abs=0.15)


def test_picture_scores() -> None:
    rng = np.random.default_rng(0)
    black = np.full((8, 32, 32, 3), 5, np.uint8)
    frozen = np.repeat(rng.integers(0, 255, (1, 32, 32, 3), dtype=np.uint8), 8, axis=0)
    moving = np.stack([np.roll(frozen[0], k, axis=1) for k in range(8)])
    assert picture_scores(black, 8)["black"] == 1
    assert picture_scores(frozen, 8) == {"black": 0, "frozen": 1, "motion": 0}
    scores = picture_scores(moving, 8)
    assert scores["frozen"] == 0
    assert scores["motion"] > 100
    assert picture_scores(frozen[:1], 8) == {"black": 0}, "a still image does not move, and that is no fault"


def test_sound_scores() -> None:
    square = np.sign(sine(100, 1.0, RATE, 1.0))
    half = np.concatenate([np.zeros(RATE), 0.5 * square])
    scores = sound_scores(half, RATE)
    assert scores["silent"] == pytest.approx(0.5, abs=0.02)
    assert scores["clipped"] == 0
    assert sound_scores(square, RATE)["clipped"] > 0.95
    assert sound_scores(np.zeros(0), RATE)["silent"] == 1


def make_work(late_s: float = 0.0, silent: bool = False, frozen: bool = False) -> Work:
    made = render_clip(0, 2, duration_s=Fraction(4), sample_rate=RATE)
    shift = round(late_s * RATE)
    waveform = np.concatenate([np.zeros(shift, np.float32), made.waveform])[: len(made.waveform)]
    frames = np.repeat(made.frames[:1], len(made.frames), axis=0) if frozen else made.frames
    span = Span(Fraction(0), Fraction(4))
    plan = ClipPlan("a-0000000", Source("a", "/a.mp4"), span, "64x64x64")
    clip = Clip(span, made.fps, frames, len(frames), RATE, waveform * (not silent), (0, len(waveform)), ())
    return Work(plan, BucketSize(64, 64, len(frames)), clip)


def judged(work: Work, **limits: float) -> str:
    """The reason it is dropped for."""
    spec = AutoencoderSpec(kind="image", path="unused")
    filters = FiltersConfig.model_validate(limits)
    config = PreprocessConfig(video_autoencoder=spec, audio_autoencoder=spec, filters=filters)
    try:
        for stage in filter_stages(filters):
            stage.setup(config, "cpu")
            stage([work])
    except MediaError as error:
        return error.reason
    return ""


def test_without_limits_everything_is_measured_and_nothing_dropped() -> None:
    for work in (make_work(), make_work(silent=True), make_work(frozen=True), make_work(late_s=0.3)):
        assert judged(work) == ""
        assert work.scores.keys() == {"black", "frozen", "motion", "loudness_lufs", "silent", "clipped"}
        assert work.sync is not None


def test_limits_drop_what_lies_beyond_them_and_only_that() -> None:
    limits = {"max_frozen": 0.9, "min_loudness_lufs": -60.0, "max_offset_ms": 150.0, "believe_sync_from": 0.3}
    found = Counter(
        judged(work, **limits)
        for work in (make_work(), make_work(silent=True), make_work(frozen=True), make_work(late_s=0.4))
    )
    assert found == {"": 1, "too_quiet": 1, "frozen": 1, "out_of_sync": 1}


def test_the_stored_offset_is_the_true_one() -> None:
    for late_s in (0.0, 0.25):
        work = make_work(late_s)
        judged(work)
        assert work.sync is not None
        assert work.sync.offset_ms == pytest.approx(1000 * late_s, abs=60)
        assert work.sync.confidence > 0
