"""The sync test of truth: clips whose event times are known, in any rate and container, cut anywhere."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from syncflow.clock import Span, parse_rate, ticks_in
from syncflow.impacts import render_clip
from syncflow.impacts.clip import draw, plan_clip
from syncflow.media import decode_span, ffmpeg_path, probe

DURATION_S = Fraction(9)
SAMPLE_RATE = 48000
SEED, INDEX = 3, 1  # a hammer, with a sharp onset
SIZE = (96, 64)
BITS = 10
CONTAINERS = ("mp4", "mkv", "webm", "ts")
RATES = ("23.976", "25", "29.97", "60", "vfr")


@dataclass(frozen=True)
class Source:
    path: Path
    times_s: np.ndarray  # (N,) true time of each stored frame
    waveform: np.ndarray  # (L,) what sounds from audio_start_s on
    audio_start_s: float


def stamp(frames: np.ndarray) -> None:
    """Write each frame's number into its lowest rows as black and white blocks of 8x8 pixels."""
    for i, frame in enumerate(frames):
        for bit in range(BITS):
            frame[-8:, 8 * bit : 8 * bit + 8] = 255 * (i >> bit & 1)


def read_stamp(frame: np.ndarray) -> int:
    return sum(int(frame[-6:-2, 8 * bit + 2 : 8 * bit + 6].mean() > 127) << bit for bit in range(BITS))


def frame_times(rate: str) -> np.ndarray:
    if rate != "vfr":
        fps = parse_rate(rate)
        return np.array([float(k / fps) for k in range(ticks_in(DURATION_S, fps))])
    rng = np.random.default_rng(0)
    gaps = rng.choice([0.02, 0.033, 0.04, 0.1, 0.15], size=1000)
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    return times[times < float(DURATION_S)][: 2**BITS]


def write_master(path: Path, rate: str, waveform: np.ndarray) -> np.ndarray:
    """An mp4 of the clip whose frames are shown at `frame_times`; returns those."""
    times = frame_times(rate)
    frames = draw(plan_clip(SEED, INDEX, DURATION_S), list(times), SIZE)
    stamp(frames)
    with av.open(str(path), "w") as out:
        video = out.add_stream(
            "libx264", rate=60 if rate == "vfr" else parse_rate(rate), options={"crf": "20", "g": "48"}
        )
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        video.codec_context.time_base = Fraction(1, 90_000)
        audio = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        packets = []
        for array, time_s in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(array, "rgb24")
            frame.pts, frame.time_base = round(time_s * 90_000), Fraction(1, 90_000)
            packets += video.encode(frame)
        packets += video.encode(None)
        for first in range(0, len(waveform), 1024):
            sound = av.AudioFrame.from_ndarray(waveform[None, first : first + 1024], "fltp", "mono")
            sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, first, Fraction(1, SAMPLE_RATE)
            packets += audio.encode(sound)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            out.mux(packet)
    return times


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, float], Source]:
    """(rate, container, seconds the sound starts late) -> source."""
    folder = tmp_path_factory.mktemp("truth")
    waveform = render_clip(
        SEED, INDEX, size=(16, 16), fps=Fraction(1), duration_s=DURATION_S, sample_rate=SAMPLE_RATE
    ).waveform
    found = {}
    for rate in RATES:
        master = folder / f"master-{rate}.mp4"
        times = write_master(master, rate, waveform)
        for container in CONTAINERS:
            for late in (0.0, 0.5):
                path = folder / f"{rate}-{late}.{container}"
                codecs = ["-c", "copy"]
                if container == "webm":
                    codecs = ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libopus"]
                    codecs += ["-fps_mode", "passthrough", "-enc_time_base:v", "1/1000", "-b:v", "800k"]
                inputs = ["-i", str(master), "-itsoffset", str(late), "-i", str(master)]
                command = [ffmpeg_path(), "-nostdin", "-v", "error", *inputs, "-map", "0:v", "-map", "1:a", *codecs]
                subprocess.run([*command, str(path)], check=True)
                found[rate, container, late] = Source(path, times, waveform, late)
    return found


def lag_ms(found: np.ndarray, true: np.ndarray) -> float:
    """By how much `found` lies after `true`, from the peak of their cross-correlation between samples."""
    n = 2 * len(true)
    spectrum = np.fft.rfft(found, n) * np.conj(np.fft.rfft(true, n))
    correlation = np.fft.irfft(spectrum, n)
    k = int(np.argmax(correlation))
    a, b, c = correlation[k - 1], correlation[k], correlation[(k + 1) % n]
    exact = k + 0.5 * (a - c) / (a - 2 * b + c)
    return 1000 * (exact - n * (exact > n / 2)) / SAMPLE_RATE


@pytest.mark.parametrize("late", [0.0, 0.5])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("rate", RATES)
def test_both_streams_come_back_on_time(
    sources: dict[tuple[str, str, float], Source], rate: str, container: str, late: float
) -> None:
    source = sources[rate, container, late]
    info = probe(source.path)
    fps = Fraction(16)
    starts = (
        [Fraction(5, 16), Fraction("6.1234")] if late else [Fraction(0), Fraction("5.5")]
    )  # with and without a seek
    for start_s in starts:
        span = Span(start_s, start_s + 2)
        clip = decode_span(info, span, fps=fps, size=None, sample_rate=SAMPLE_RATE)
        assert clip.decode_errors == ()
        assert (clip.valid_frames, len(clip.frames), len(clip.waveform)) == (32, 32, 2 * SAMPLE_RATE)
        for k, frame in enumerate(clip.frames):
            tick_s = float(start_s + k / fps)
            shown = read_stamp(frame)
            away_s = np.abs(source.times_s - tick_s)
            on_screen = int(np.searchsorted(source.times_s, tick_s + 0.001, side="right")) - 1
            # The nearest frame; in a pause of the picture the one on the screen, until the next is nearly due.
            late_enough = shown == on_screen and source.times_s[shown + 1] > tick_s + 0.5 / 16 - 0.003
            assert late_enough or away_s[shown] < away_s.min() + 0.003, (
                f"{span} tick {k} at {tick_s:.3f} s shows frame {shown} of {source.times_s[shown]:.3f} s, "
                f"nearest is {source.times_s[np.argmin(away_s)]:.3f} s"
            )
        true = np.zeros(2 * SAMPLE_RATE)
        first = round((float(start_s) - late) * SAMPLE_RATE)
        part = source.waveform[max(0, first) : first + len(true)]
        true[max(0, -first) : max(0, -first) + len(part)] = part
        assert abs(lag_ms(clip.waveform, true)) < 1
        silent = max(0, round((late - float(start_s)) * SAMPLE_RATE))
        assert clip.valid_samples[0] == pytest.approx(silent, abs=0.025 * SAMPLE_RATE)  # AAC keeps its priming
        assert not clip.waveform[: clip.valid_samples[0]].any()
