"""All that is measured on one clip by itself, in one decode; kept by content hash so that a rerun is instant."""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from syncflow import __version__
from syncflow.clock import Span
from syncflow.eval.av_align import audio_peaks, flow_curve, flow_peaks
from syncflow.eval.clips import ClipFile, content_hash
from syncflow.eval.loudness import integrated_loudness
from syncflow.files import write_whole
from syncflow.media import MediaError, MediaInfo, decode_span, ffmpeg_path, probe
from syncflow.sync import NO_FIT, audio_onsets, impact_strength, motion_energy, motion_peaks, sound_against

REVISION = 4
"""Raise when a measure changes, so that kept results of an older one are not used."""
_ENVELOPE_POINTS = 400
_DECODE_S = 120
_MAX_FRAME_BYTES = 3 * 2**30


@dataclass(frozen=True)
class ClipMeasures:
    """What one clip shows and sounds like. Times in seconds from its first frame."""

    sha256: str
    duration_s: float
    fps: float
    width: int
    height: int
    sample_rate: int
    peak: float
    """Largest amplitude of the sound, of full scale."""
    loudness_lufs: float | None
    """Integrated loudness; None for silence."""
    motion: float
    """Mean change of grey level (of 255) from frame to frame."""
    onsets_s: list[float]
    """Onsets of `syncflow.sync`."""
    impacts_s: list[float]
    """Visible impacts of `syncflow.sync`."""
    fit: list[float]
    """How well each lag of the sound fits, and how fast that varies by chance: `z` and `climbs_hz` of
    `syncflow.sync.Fit`."""
    climbs_hz: float
    published_onsets_s: list[float]
    """librosa's onsets, for AV-Align."""
    published_peaks_s: list[float]
    """Peaks of the optical flow, for AV-Align."""
    envelope: list[float]
    """Largest amplitude in each of equal parts of the clip, for the figure."""
    energy: list[float]
    """Motion energy between frames, for the figure."""


def measure_clip(clip: ClipFile, threads: int = 1) -> ClipMeasures:
    """Decode the clip once and measure it; the optical flow in so many threads.

    Raises:
        MediaError: it cannot be decoded whole, or lacks picture or sound.
    """
    info = probe(clip.path)
    if info.audio is None:
        raise MediaError("no_audio", clip.path, "has no sound")
    fps = info.rate or Fraction(25)
    if info.duration_s * fps * info.width * info.height * 3 > _MAX_FRAME_BYTES:
        raise MediaError(
            "too_large",
            clip.path,
            f"{float(info.duration_s):.0f} s of {info.width}x{info.height}: cut it into clips first",
        )
    span = Span(Fraction(0), info.duration_s)
    # AV-Align's published values rest on OpenCV's colours; to the other measures it is one.
    decoded = decode_span(
        info, span, fps=fps, size=None, sample_rate=info.audio.sample_rate, colour_matrix="bt601", threads=1
    )
    if decoded.valid_frames < 3:
        raise MediaError("too_short", clip.path, f"has {decoded.valid_frames} frames; motion needs 3")
    frames = decoded.frames[: decoded.valid_frames]
    waveform, rate = decoded.waveform, decoded.sample_rate
    duration_s = min(len(frames) / float(fps), len(waveform) / rate)
    energy = motion_energy(frames, fps)[1]
    onsets_s = audio_onsets(waveform, rate)
    fit = sound_against(impact_strength(frames, fps), waveform, rate, duration_s) if len(onsets_s) else NO_FIT
    parts = np.array_split(np.abs(waveform), min(_ENVELOPE_POINTS, len(waveform)))
    return ClipMeasures(
        sha256=content_hash(clip.path),
        duration_s=float(info.duration_s),
        fps=float(fps),
        width=info.width,
        height=info.height,
        sample_rate=rate,
        peak=float(np.abs(waveform).max(initial=0.0)),
        loudness_lufs=integrated_loudness(waveform, rate),
        motion=float(energy.mean()),
        onsets_s=[float(t) for t in onsets_s],
        impacts_s=[float(t) for t in motion_peaks(frames, fps)],
        fit=[round(float(z), 4) for z in fit.z],
        climbs_hz=fit.climbs_hz,
        published_onsets_s=audio_peaks(*_wav(info)),
        published_peaks_s=flow_peaks(flow_curve(frames, threads), float(fps)),
        envelope=[round(float(part.max(initial=0.0)), 4) for part in parts],
        energy=[round(float(e), 3) for e in energy],
    )


def read_published(clip: ClipFile, threads: int = 1) -> tuple[list[float], list[float], float]:
    """What AV-Align alone needs of a clip: times of onsets, times of flow peaks, frames per second."""
    info = probe(clip.path)
    fps = info.rate or Fraction(25)
    whole = Span(Fraction(0), info.duration_s)
    decoded = decode_span(info, whole, fps=fps, size=None, sample_rate=None, colour_matrix="bt601")
    frames = decoded.frames[: decoded.valid_frames]
    return audio_peaks(*_wav(info)), flow_peaks(flow_curve(frames, threads), float(fps)), float(fps)


def _wav(info: MediaInfo) -> tuple[np.ndarray, int]:
    """The sound as `ffmpeg -i clip.mp4 clip.wav` writes it (16 bit), mixed to mono: what the published AV-Align reads.

    A stream that starts late keeps its silence; where it starts with the picture, nothing is touched.
    """
    audio = info.audio
    assert audio is not None
    delay = ["-af", "aresample=async=1:first_pts=0"] if audio.start_s > Fraction(1, 1000) else []
    command = [ffmpeg_path(), "-nostdin", "-v", "error", "-i", f"file:{info.path}", "-map", "0:a:0", *delay]
    try:
        run = subprocess.run(
            [*command, "-f", "s16le", "-c:a", "pcm_s16le", "pipe:1"],
            capture_output=True,
            timeout=_DECODE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MediaError("timeout", info.path, f"its sound took more than {_DECODE_S} s to decode") from error
    samples = np.frombuffer(run.stdout[: len(run.stdout) // (2 * audio.channels) * 2 * audio.channels], "<i2")
    waveform = (samples.reshape(-1, audio.channels).astype(np.float32) / 32768).mean(axis=1)
    return waveform, audio.sample_rate


def measure_cached(clip: ClipFile, cache: Path | None, threads: int = 1) -> ClipMeasures:
    """`measure_clip`, or what it said of the same bytes before."""
    if cache is None:
        return measure_clip(clip, threads)
    kept = cache / f"{content_hash(clip.path)}-{__version__}-{REVISION}.json"
    if kept.is_file():
        with contextlib.suppress(ValueError, TypeError):
            return ClipMeasures(**json.loads(kept.read_text()))
    measures = measure_clip(clip, threads)
    cache.mkdir(parents=True, exist_ok=True)
    write_whole(kept, json.dumps(asdict(measures), allow_nan=False))
    return measures
