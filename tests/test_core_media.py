"""Probing, decoding and writing media: ordinary files, hostile files, and the marks of what is missing."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from syncflow.clock import Span
from syncflow.media import MediaError, decode_span, ffmpeg_path, printable, probe, write_mp4, write_video, write_wav

SAMPLE_RATE = 16000
FPS = Fraction(16)


def ffmpeg(*arguments: object) -> None:
    subprocess.run([ffmpeg_path(), "-nostdin", "-v", "error", "-y", *map(str, arguments)], check=True)


def moving_bar(num_frames: int, width: int = 64, height: int = 48) -> np.ndarray:
    """(T, H, W, 3): a white bar whose place tells the frame."""
    frames = np.full((num_frames, height, width, 3), 20, dtype=np.uint8)
    for k, frame in enumerate(frames):
        x = 4 * k % (width - 3)
        frame[:, x : x + 4] = 240
    return frames


def bar_at(frame: np.ndarray) -> float:
    column = np.maximum(frame.astype(float).mean(axis=(0, 2)) - 100, 0)
    return float((column * np.arange(len(column))).sum() / column.sum())


def clicks(length: int, *times_s: float, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    waveform = np.zeros(length, dtype=np.float32)
    tau = np.arange(200) / sample_rate
    for time_s in times_s:
        first = round(time_s * sample_rate)
        waveform[first : first + 200] = 0.8 * np.sin(2 * np.pi * 1500 * tau) * np.exp(-300 * tau)
    return waveform


def first_loud_s(waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    return int(np.argmax(np.abs(waveform) > 0.1)) / sample_rate


@pytest.mark.parametrize("fps", ["16", "25", "24000/1001", "30000/1001", "60", "12.5"])
def test_what_is_written_is_read_back(tmp_path: Path, fps: str) -> None:
    rate = Fraction(fps)
    frames = moving_bar(24)
    length = int(24 / rate * SAMPLE_RATE)
    write_mp4(tmp_path / "a.mp4", frames, rate, clicks(length, 0.25), SAMPLE_RATE)
    info = probe(tmp_path / "a.mp4")
    assert (info.rate, info.duration_s, info.zero_s) == (rate, 24 / rate, 0)
    assert (info.width, info.height, info.rotation, info.video_codec) == (64, 48, 0, "h264")
    assert info.audio is not None
    assert (info.audio.sample_rate, info.audio.channels, info.audio.start_s) == (SAMPLE_RATE, 1, 0)
    clip = decode_span(info, Span(Fraction(0), info.duration_s), fps=rate, size=None, sample_rate=SAMPLE_RATE)
    assert (clip.valid_frames, clip.decode_errors) == (24, ())
    assert np.abs(clip.frames.astype(int) - frames).mean() < 4
    assert [bar_at(f) for f in clip.frames] == pytest.approx([bar_at(f) for f in frames], abs=0.6)
    assert first_loud_s(clip.waveform) == pytest.approx(0.25, abs=0.001)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (63, 48), (64, 47), (33, 35)])
def test_odd_sides_gain_a_repeated_border(tmp_path: Path, width: int, height: int) -> None:
    frames = moving_bar(4, width, height)
    write_mp4(tmp_path / "a.mp4", frames, FPS)
    clip = decode_span(tmp_path / "a.mp4", Span(Fraction(0), Fraction(1, 4)), fps=FPS, size=None, sample_rate=None)
    assert clip.frames.shape == (4, height + height % 2, width + width % 2, 3)
    assert len(clip.waveform) == 0
    assert np.abs(clip.frames[:, :height, :width].astype(int) - frames).mean() < 6


def test_colours_survive(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 120, 40]], np.uint8)
    frames = np.tile(np.repeat(np.repeat(colours[None, None], 16, axis=2), 32, axis=1), (3, 1, 1, 1))
    write_mp4(tmp_path / "a.mp4", frames, FPS)
    clip = decode_span(tmp_path / "a.mp4", Span(Fraction(0), Fraction(1, 8)), fps=FPS, size=None, sample_rate=None)
    found = clip.frames[0, 16, 8::16].astype(int)
    assert np.abs(found - colours).max() < 12


def test_no_drift_over_a_minute(tmp_path: Path) -> None:
    rate = Fraction(30000, 1001)
    frames = np.repeat(moving_bar(10, 32, 32), 180, axis=0)
    times = [1.0, 30.0, 59.0]
    write_mp4(tmp_path / "a.mp4", frames, rate, clicks(60 * 44100, *times, sample_rate=44100), 44100)
    info = probe(tmp_path / "a.mp4")
    assert info.duration_s == 1800 / rate
    for time_s in times:
        start_s = Fraction(time_s) - Fraction(1, 2)
        clip = decode_span(info, Span(start_s, start_s + 1), fps=FPS, size=(32, 32), sample_rate=44100)
        assert first_loud_s(clip.waveform, 44100) == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize("container", ["mkv", "webm", "ts"])
def test_other_containers(tmp_path: Path, container: str) -> None:
    path = tmp_path / f"a.{container}"
    write_video(path, moving_bar(32), FPS, clicks(2 * SAMPLE_RATE, 0.7), SAMPLE_RATE)
    clip = decode_span(path, Span(Fraction(0), Fraction(2)), fps=FPS, size=None, sample_rate=SAMPLE_RATE)
    assert (clip.valid_frames, clip.decode_errors) == (32, ())
    assert first_loud_s(clip.waveform) == pytest.approx(0.7, abs=0.002)
    assert bar_at(clip.frames[5]) == pytest.approx(bar_at(moving_bar(32)[5]), abs=1)


def test_the_end_is_marked_and_not_invented(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", moving_bar(20), FPS, clicks(SAMPLE_RATE, 0.9), SAMPLE_RATE)
    clip = decode_span(tmp_path / "a.mp4", Span(Fraction(1, 2), Fraction(5, 2)), fps=FPS, size=None, sample_rate=16000)
    assert (len(clip.frames), clip.valid_frames) == (32, 12)
    assert (clip.frames[12:] == clip.frames[11]).all()
    assert len(clip.waveform) == 32000
    assert clip.valid_samples[0] == 0
    assert 8000 <= clip.valid_samples[1] <= 8000 + 1024  # AAC may end in a padded packet
    assert not clip.waveform[clip.valid_samples[1] :].any()
    with pytest.raises(MediaError) as caught:
        decode_span(tmp_path / "a.mp4", Span(Fraction(3), Fraction(4)), fps=FPS, size=None, sample_rate=None)
    assert caught.value.reason == "too_short"
    with pytest.raises(ValueError, match="at or after zero"):
        decode_span(tmp_path / "a.mp4", Span(Fraction(-1), Fraction(1)), fps=FPS, size=None, sample_rate=None)


def test_windows_adjoin(tmp_path: Path) -> None:
    """Frames and samples of adjoining windows are those of one long window, with and without a seek."""
    frames = moving_bar(160)
    noise = np.random.default_rng(0).normal(0, 0.1, 10 * SAMPLE_RATE).astype(np.float32)
    write_mp4(tmp_path / "a.mp4", frames, FPS, noise, SAMPLE_RATE)
    info = probe(tmp_path / "a.mp4")
    whole = decode_span(info, Span(Fraction(0), Fraction(10)), fps=FPS, size=None, sample_rate=SAMPLE_RATE)
    for start in range(0, 10, 2):
        part = decode_span(
            info, Span(Fraction(start), Fraction(start + 2)), fps=FPS, size=None, sample_rate=SAMPLE_RATE
        )
        assert (part.frames == whole.frames[16 * start : 16 * (start + 2)]).all()
        expected = whole.waveform[SAMPLE_RATE * start : SAMPLE_RATE * (start + 2)]
        inner = slice(400, -400)  # the resampler is cut off at the ends of a window
        assert np.abs(part.waveform - expected)[inner].max() < 1e-3


@pytest.mark.parametrize(
    ("fit", "size"), [("crop", (32, 32)), ("pad", (32, 32)), ("stretch", (50, 20)), ("crop", (20, 50))]
)
def test_fit(tmp_path: Path, fit: str, size: tuple[int, int]) -> None:
    frames = np.zeros((2, 48, 96, 3), np.uint8)
    frames[:, :, :48, 0] = 255
    frames[:, :, 48:, 2] = 255
    write_mp4(tmp_path / "a.mp4", frames, FPS)
    span = Span(Fraction(0), Fraction(1, 8))
    clip = decode_span(tmp_path / "a.mp4", span, fps=FPS, size=size, sample_rate=None, fit=fit)  # type: ignore[arg-type]
    width, height = size
    assert clip.frames.shape == (2, height, width, 3)
    left, right = clip.frames[0, height // 2, width // 4], clip.frames[0, height // 2, width * 3 // 4]
    assert left[0] > 200 > 60 > left[2]
    assert right[2] > 200 > 60 > right[0]
    black_above = clip.frames[0, : height // 8].max() < 30
    assert black_above == (fit == "pad")


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    frames = np.zeros((4, 48, 96, 3), np.uint8)
    frames[:, :16, :16] = 255  # upper left as stored
    write_mp4(tmp_path / "a.mp4", frames, FPS)
    ffmpeg("-display_rotation", -degrees, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "r.mp4")
    info = probe(tmp_path / "r.mp4")
    assert info.rotation == degrees
    assert (info.width, info.height) == ((48, 96) if degrees != 180 else (96, 48))
    clip = decode_span(info, Span(Fraction(0), Fraction(1, 8)), fps=FPS, size=None, sample_rate=None)
    assert clip.frames.shape[1:3] == (info.height, info.width)
    corners = {90: (0, -1), 180: (-1, -1), 270: (-1, 0)}  # turned clockwise
    row, column = corners[degrees]
    assert clip.frames[0, 6 if row == 0 else -6, 6 if column == 0 else -6].min() > 200


def test_sample_aspect_is_honoured(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", moving_bar(4, 64, 48), FPS)
    ffmpeg("-i", tmp_path / "a.mp4", "-vf", "setsar=2", tmp_path / "b.mp4")
    info = probe(tmp_path / "b.mp4")
    assert (info.width, info.height) == (128, 48)
    clip = decode_span(info, Span(Fraction(0), Fraction(1, 8)), fps=FPS, size=None, sample_rate=None)
    assert clip.frames.shape == (2, 48, 128, 3)


@pytest.mark.parametrize("pixels", ["yuv444p", "yuv422p10le", "gray", "yuva420p", "bgr0"])
def test_any_pixel_format(tmp_path: Path, pixels: str) -> None:
    write_mp4(tmp_path / "a.mp4", moving_bar(4), FPS)
    ffmpeg(
        "-i",
        tmp_path / "a.mp4",
        "-pix_fmt",
        pixels,
        "-c:v",
        "ffv1" if pixels != "rgb24" else "rawvideo",
        tmp_path / "b.mkv",
    )
    clip = decode_span(tmp_path / "b.mkv", Span(Fraction(0), Fraction(1, 4)), fps=FPS, size=None, sample_rate=None)
    assert clip.valid_frames == 4
    assert np.abs(clip.frames.astype(int) - moving_bar(4)).mean() < 8


@pytest.mark.parametrize(
    ("layout", "channels"), [("mono", 1), ("stereo", 2), ("2.1", 3), ("quad", 4), ("5.1", 6), ("7.1", 8)]
)
@pytest.mark.parametrize("codec", ["pcm_s16le", "aac"])
def test_any_layout_is_mixed_without_clipping(tmp_path: Path, layout: str, channels: int, codec: str) -> None:
    write_mp4(tmp_path / "v.mp4", moving_bar(32), FPS)
    gains = "|".join(f"c{i}=c0" for i in range(channels))
    ffmpeg(
        *("-i", tmp_path / "v.mp4", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=44100:duration=2"),
        *("-af", f"volume=7.9,pan={layout}|{gains}", "-c:v", "copy", "-c:a", codec, tmp_path / "a.mkv"),
    )
    clip = decode_span(tmp_path / "a.mkv", Span(Fraction(0), Fraction(2)), fps=FPS, size=None, sample_rate=SAMPLE_RATE)
    steady = clip.waveform[1600:-1600]
    assert 0.5 < np.abs(steady).max() < 1.05
    spectrum = np.abs(np.fft.rfft(steady * np.hanning(len(steady))))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(steady) == pytest.approx(440, abs=2)
    harmonics = spectrum[np.arange(len(spectrum)) * SAMPLE_RATE / len(steady) > 800].max()
    assert harmonics < 0.02 * spectrum.max()  # a clipped sine has strong harmonics


def test_channels_without_a_layout(tmp_path: Path) -> None:
    """Files that do not say which channel is which are mixed all the same."""
    frames = moving_bar(32)
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        video = out.add_stream("libx264", rate=16)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for array in frames:
            out.mux(video.encode(av.VideoFrame.from_ndarray(array, "rgb24")))
        out.mux(video.encode(None))
    rng = np.random.default_rng(0)
    (tmp_path / "a.raw").write_bytes((rng.normal(0, 3000, (2 * 16000, 5))).astype("<i2").tobytes())
    ffmpeg(
        *("-i", tmp_path / "a.mkv", "-f", "s16le", "-ar", 16000, "-ch_layout", "5C", "-i", tmp_path / "a.raw"),
        *("-c:v", "copy", "-c:a", "pcm_s16le", tmp_path / "b.mov"),
    )
    clip = decode_span(tmp_path / "b.mov", Span(Fraction(0), Fraction(2)), fps=FPS, size=None, sample_rate=SAMPLE_RATE)
    assert clip.valid_samples == (0, 32000)
    assert 0.005 < clip.waveform.std() < 0.2


def test_attached_pictures_are_not_video(tmp_path: Path) -> None:
    write_mp4(tmp_path / "v.mp4", moving_bar(2), FPS)
    write_wav(tmp_path / "a.wav", clicks(16000, 0.1), 16000)
    ffmpeg("-i", tmp_path / "v.mp4", "-frames:v", 1, tmp_path / "cover.png")
    ffmpeg(
        *("-i", tmp_path / "a.wav", "-i", tmp_path / "cover.png", "-map", 0, "-map", 1, "-c:v", "copy"),
        *("-disposition:v", "attached_pic", tmp_path / "song.m4a"),
    )
    with pytest.raises(MediaError) as caught:
        probe(tmp_path / "song.m4a")
    assert caught.value.reason == "no_video"


@pytest.mark.parametrize(
    "name",
    [
        "-n.mp4",
        "a b'c\"d.mp4",
        "50%d.mp4",
        "a:b.mp4",
        "concat:x|y.mp4",
        "new\nline.mp4",
        "$(id) `id`;.mp4",
        "狗🐕.mp4",
        "[0].mp4",
    ],
)
def test_hostile_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_mp4(path, moving_bar(8), FPS, clicks(8000, 0.2), SAMPLE_RATE)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    clip = decode_span(path, Span(Fraction(0), Fraction(1, 2)), fps=FPS, size=None, sample_rate=SAMPLE_RATE)
    assert clip.valid_frames == 8
    assert "\n" not in printable(path)


def test_relative_and_non_utf8_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"-caf\xe9.mp4")
    write_mp4(name, moving_bar(8), FPS, clicks(8000, 0.2), SAMPLE_RATE)
    assert probe(name).width == 64
    assert decode_span(name, Span(Fraction(0), Fraction(1, 2)), fps=FPS, size=None, sample_rate=None).valid_frames == 8
    printable(name).encode("utf-8")


def test_bad_files_have_reasons(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(os.urandom(5000))
    (tmp_path / "text.mp4").write_text("#EXTM3U\n#EXT-X-VERSION:3\nhttp://127.0.0.1:9/x.ts\n")
    write_wav(tmp_path / "sound.wav", clicks(8000, 0.1), SAMPLE_RATE)
    write_mp4(tmp_path / "silent.mp4", moving_bar(8), FPS)
    found = {}
    for name in ("none.mp4", "empty.mp4", "noise.mp4", "text.mp4", "sound.wav", "silent.mp4", "."):
        with pytest.raises(MediaError) as caught:
            decode_span(tmp_path / name, Span(Fraction(0), Fraction(1)), fps=FPS, size=None, sample_rate=SAMPLE_RATE)
        found[name] = caught.value.reason
        assert "\n" not in str(caught.value)
        again = pickle.loads(pickle.dumps(caught.value))  # errors cross processes
        assert (again.reason, str(again)) == (caught.value.reason, str(caught.value))
    assert found == {
        "none.mp4": "missing",
        "empty.mp4": "empty_file",
        "noise.mp4": "unreadable",
        "text.mp4": "unreadable",
        "sound.wav": "no_video",
        "silent.mp4": "no_audio",
        ".": "missing",
    }


def test_a_slow_decode_is_stopped(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", moving_bar(16), FPS)
    begun_s = time.monotonic()
    with pytest.raises(MediaError) as caught:
        decode_span(
            tmp_path / "a.mp4", Span(Fraction(0), Fraction(1)), fps=FPS, size=None, sample_rate=None, timeout_s=0.001
        )
    assert caught.value.reason == "timeout"
    assert time.monotonic() - begun_s < 5


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MediaError):
        write_mp4(tmp_path / "a.mp4", np.zeros((1, 2, 40000, 3), np.uint8), FPS)  # x264 refuses the size
    with pytest.raises(ValueError, match="uint8"):
        write_mp4(tmp_path / "a.mp4", np.zeros((1, 16, 16, 3), np.float32), FPS)
    assert list(tmp_path.iterdir()) == []


def test_nasty_clips_behave(nasty: Path) -> None:
    """What each nasty clip is for, by the words of its expected.json."""
    span = Span(Fraction(0), Fraction(2))
    outcome = {}
    for path in sorted(nasty.iterdir()):
        if path.suffix == ".json":
            continue
        try:
            outcome[printable(path.name)] = decode_span(path, span, fps=FPS, size=(64, 64), sample_rate=SAMPLE_RATE)
        except MediaError as error:
            outcome[printable(path.name)] = error.reason  # type: ignore[assignment]
    assert len(outcome) == len(json.loads((nasty / "expected.json").read_text())) == 13
    refused = {name: clip for name, clip in outcome.items() if isinstance(clip, str)}
    assert refused == {
        "no_audio.mp4": "no_audio",
        "truncated_no_moov.mp4": "unreadable",
        "zero_bytes.mp4": "empty_file",
    }
    clips = {name: clip for name, clip in outcome.items() if not isinstance(clip, str)}
    for name, clip in clips.items():
        assert (len(clip.frames), len(clip.waveform)) == (32, 32000), name
        damaged = name == "truncated_faststart.mp4"
        assert bool(clip.decode_errors) == damaged, name
        if name not in ("very_short_0_3s.mp4", "truncated_faststart.mp4"):
            assert clip.valid_frames == 32, name
    assert clips["very_short_0_3s.mp4"].valid_frames == 6  # 8 frames at 24 fps are 1/3 s
    assert clips["very_short_0_3s.mp4"].valid_samples[1] < 8000
    assert probe(nasty / "truncated_faststart.mp4").duration_s < Fraction(5, 2)  # of the 4 s it promises
    late = clips["audio_offset_0_5s.mp4"]
    assert 7600 < late.valid_samples[0] <= 8000
    assert np.abs(late.waveform[: late.valid_samples[0] - 100]).max() == 0  # the resampler rings for a few samples
    portrait = probe(nasty / "portrait_rotation_90.mp4")
    assert (portrait.width, portrait.height, portrait.rotation) == (192, 256, 90)


def test_damage_is_reported_where_it_is(nasty: Path) -> None:
    info = probe(nasty / "corrupt_middle.mp4")
    spans = [Span(Fraction(s), Fraction(s + 1)) for s in range(6)]
    errors = [
        bool(decode_span(info, span, fps=FPS, size=(64, 64), sample_rate=SAMPLE_RATE).decode_errors) for span in spans
    ]
    assert any(errors[4:])
    assert not any(errors[:3])


def test_real_clips_decode_whole(develop: Path) -> None:
    paths = sorted(develop.glob("*.mp4"))
    assert len(paths) == 40
    for path in paths[::4]:
        info = probe(path)
        end_s = min(info.duration_s, Fraction(5))
        clip = decode_span(info, Span(end_s - 1, end_s), fps=FPS, size=(64, 64), sample_rate=SAMPLE_RATE)
        assert (clip.valid_frames, clip.decode_errors) == (16, ()), path
