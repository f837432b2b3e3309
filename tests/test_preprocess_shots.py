"""Shots: no clip runs across a cut."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from syncflow.clock import Span
from syncflow.impacts import render_clip
from syncflow.media import probe, write_mp4
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.preprocess.config import PreprocessConfig
from syncflow.preprocess.plan import Source
from syncflow.preprocess.shots import between, make_shots
from syncflow.preprocess.survey import plan_clips

CUTS_S = (2.5, 5.0)


@pytest.fixture(scope="module")
def cut_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes of 2.5 s."""
    frames = np.concatenate(
        [render_clip(7, k, size=(128, 96), fps=Fraction(24), duration_s=Fraction(5, 2)).frames for k in (0, 1, 2)]
    )
    frames[60:120] = 255 - frames[60:120]  # a clearly different scene
    path = tmp_path_factory.mktemp("shots") / "cut.mp4"
    write_mp4(path, frames, Fraction(24), np.zeros(len(frames) * 16000 // 24, np.float32), 16000)
    return path


@pytest.mark.parametrize("method", ["scenedetect", "transnet"])
def test_cuts_are_found_where_they_are(cut_source: Path, method: Literal["scenedetect", "transnet"]) -> None:
    shots = make_shots(method)(probe(cut_source), Span(Fraction(0), Fraction(15, 2)))
    assert len(shots) == 3
    for shot, cut_s in zip(shots, CUTS_S, strict=False):
        assert float(shot.end_s) == pytest.approx(cut_s, abs=0.09)
        assert shot.end_s <= Fraction(str(cut_s)) + Fraction(1, 24)
    assert shots[1].start_s >= shots[0].end_s


def test_windows_stay_inside_their_shot(cut_source: Path) -> None:
    spec = AutoencoderSpec(kind="image", path="unused")
    config = PreprocessConfig(video_autoencoder=spec, audio_autoencoder=spec)
    clips = plan_clips(Source("a", str(cut_source)), probe(cut_source), config, make_shots("scenedetect"))
    assert len(clips) == 3
    for clip, (start, end) in zip(clips, [(0, 2.5), (2.5, 5), (5, 7.5)], strict=True):
        assert start - 0.05 <= clip.span.start_s < clip.span.end_s <= end + 1 / 16
        assert (clip.span.start_s * 16).denominator == 1, "snapped to the grid of frames"


def test_the_spans_between_cuts() -> None:
    span = Span(Fraction(1), Fraction(5))
    assert between([], span) == [span]
    first, second = between([50], span)
    assert (first.start_s, second.end_s) == (1, 5)
    assert (first.end_s, second.start_s) == (3 - Fraction(1, 25), 3)
