"""Kinds of files that each once came back late, short or with errors; the truth is stamped and struck into them."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from test_core_sync_truth import DURATION_S, INDEX, SAMPLE_RATE, SEED, SIZE, lag_ms, read_stamp, stamp

from syncflow.clock import Span
from syncflow.impacts import render_clip
from syncflow.impacts.clip import draw, plan_clip
from syncflow.media import Clip, decode_span, ffmpeg_path, probe, write_video

SOURCE_FPS = Fraction(25)
FPS = Fraction(16)
H264 = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p"]


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    """(L,)"""
    return render_clip(
        SEED, INDEX, size=(16, 16), fps=Fraction(1), duration_s=DURATION_S, sample_rate=SAMPLE_RATE
    ).waveform


@pytest.fixture(scope="module")
def master(waveform: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 s at 25 fps, each frame stamped with its number, with impacts to be heard."""
    times = [float(k / SOURCE_FPS) for k in range(int(DURATION_S * SOURCE_FPS))]
    frames = draw(plan_clip(SEED, INDEX, DURATION_S), times, SIZE)
    stamp(frames)
    path = tmp_path_factory.mktemp("kinds") / "master.mkv"
    write_video(path, frames, SOURCE_FPS, waveform, SAMPLE_RATE, crf=10)
    return path


def ffmpeg(*arguments: object) -> None:
    subprocess.run([ffmpeg_path(), "-nostdin", "-v", "error", "-y", *map(str, arguments)], check=True)


def cut(path: Path, start_s: Fraction) -> Clip:
    span = Span(start_s, start_s + 2)
    return decode_span(path, span, fps=FPS, size=SIZE, sample_rate=SAMPLE_RATE if probe(path).audio else None)


def assert_in_sync(path: Path, waveform: np.ndarray, start_s: Fraction) -> None:
    clip = cut(path, start_s)
    assert clip.decode_errors == ()
    assert clip.valid_frames == 32
    for k, frame in enumerate(clip.frames):
        assert abs(read_stamp(frame) / SOURCE_FPS - (start_s + k / FPS)) <= Fraction(1, 50) + Fraction(1, 1000)
    if clip.sample_rate:
        first = round(start_s * SAMPLE_RATE)
        assert abs(lag_ms(clip.waveform, waveform[first : first + 2 * SAMPLE_RATE])) < 1


KINDS = {
    # Pages of Ogg set the time of a packet late where they begin; cuts there came out 9 ms late.
    "ogv": ["-c:v", "libtheora", "-q:v", "9", "-c:a", "libvorbis"],
    # After a seek the decoders of these complained of half a packet, and the clip was dropped as damaged.
    "mpg": ["-c:v", "mpeg2video", "-q:v", "2", "-bf", "2", "-c:a", "mp2"],
    "vob": ["-c:v", "mpeg2video", "-q:v", "2", "-bf", "2", "-c:a", "ac3"],
    "avi": ["-c:v", "mjpeg", "-q:v", "2", "-c:a", "pcm_s16le"],
    "flv": [*H264, "-c:a", "aac"],
    "3gp": [*H264, "-c:a", "aac"],
    "wmv": ["-c:v", "wmv2", "-q:v", "2", "-c:a", "wmav2"],
    "mov": [*H264, "-c:a", "pcm_s16le"],
    "gif": ["-an"],
}


@pytest.mark.parametrize("suffix", KINDS)
def test_kinds_come_back_on_time(master: Path, waveform: np.ndarray, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    ffmpeg("-i", master, *KINDS[suffix], path)
    # By steps that no rhythm of packets follows, so that some cuts fall on the edges of pages.
    starts = [Fraction(0), *(Fraction(k * 397, 1000) for k in range(1, 18, 4 if suffix != "ogv" else 1))]
    for start_s in starts:
        assert_in_sync(path, waveform, start_s)


def test_fragments_a_far_start_and_a_cut_by_edit_list(master: Path, waveform: np.ndarray, tmp_path: Path) -> None:
    fragments = tmp_path / "fragments.mp4"
    ffmpeg("-i", master, *H264, "-c:a", "aac", "-movflags", "frag_keyframe+empty_moov+default_base_moof", fragments)
    far = tmp_path / "far.ts"
    ffmpeg("-i", master, *H264, "-c:a", "aac", "-output_ts_offset", 95440, far)  # the 33 bits of its clock run over
    for path in (fragments, far):
        for start_s in (Fraction(0), Fraction("5.5")):
            assert_in_sync(path, waveform, start_s)
    whole, part = tmp_path / "whole.mp4", tmp_path / "part.mp4"
    ffmpeg("-i", master, *H264, "-g", 50, "-c:a", "aac", whole)
    ffmpeg("-ss", "1.2", "-i", whole, "-c", "copy", part)  # from a keyframe at 0 s, hidden up to 1.2 s
    assert probe(part).duration_s == pytest.approx(7.8, abs=0.03)
    clip = cut(part, Fraction(1))
    assert read_stamp(clip.frames[0]) / SOURCE_FPS == pytest.approx(Fraction("2.2"), abs=0.021)
    first = round(2.2 * SAMPLE_RATE)
    assert abs(lag_ms(clip.waveform, waveform[first : first + 2 * SAMPLE_RATE])) < 1


def test_sound_that_ended_before_the_clip_is_no_error(master: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    ffmpeg("-i", master, "-t", 3, "-i", master, "-map", "0:v", "-map", "1:a", *H264, "-c:a", "aac", path)
    assert probe(path).duration_s == 9
    assert cut(path, Fraction(2)).valid_samples == (0, pytest.approx(SAMPLE_RATE, abs=1024))
    for start_s in (Fraction("2.99"), Fraction(3), Fraction("5.5")):
        clip = cut(path, start_s)
        assert (clip.valid_frames, clip.decode_errors) == (32, ())
        assert clip.valid_samples == (0, 0) or start_s < 3
        assert not clip.waveform[SAMPLE_RATE // 20 :].any()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov"])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_a_pause_of_the_picture_makes_it_neither_longer_nor_shorter(
    master: Path, tmp_path: Path, suffix: str, b_frames: int
) -> None:
    for number, kept in enumerate(("lt(t,2)+gt(t,6.5)", "lt(t,2)+between(t,5.99,6.01)+gt(t,8.95)")):
        path = tmp_path / f"{number}.{suffix}"
        codecs = [*H264, "-bf", b_frames, "-c:a", "aac"]
        ffmpeg("-i", master, "-vf", f"select='{kept}'", "-fps_mode", "passthrough", *codecs, path)
        assert probe(path).duration_s == pytest.approx(9, abs=0.03)
        frames = cut(path, Fraction(3)).frames
        assert {read_stamp(frame) for frame in frames} == {49}, "the last picture before the pause is on the screen"


def test_a_slow_last_picture_lasts_to_its_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for fps in (Fraction(1), Fraction(5, 2)):
        path = tmp_path / f"{float(fps)}.mkv"
        count = int(4 * fps)
        write_video(path, rng.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8), fps)
        assert probe(path).duration_s == 4
        clip = decode_span(path, Span(Fraction(2), Fraction(4)), fps=FPS, size=None, sample_rate=None)
        assert clip.valid_frames == 32
        clip = decode_span(path, Span(Fraction(3), Fraction(5)), fps=FPS, size=None, sample_rate=None)
        assert clip.valid_frames == 16
