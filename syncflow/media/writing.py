"""Writing pictures and sound that start together, whole or not at all."""

from __future__ import annotations

import tempfile
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg
import numpy as np

from syncflow.errors import UserError
from syncflow.files import replacing
from syncflow.media.process import FILE, MediaError, printable, run

_H264_AAC = {"c:v": "libx264", "preset": "veryfast", "c:a": "aac"}
_CONTAINERS: dict[str, dict[str, Any]] = {
    "mp4": {**_H264_AAC, "f": "mp4", "movflags": "+faststart"},
    "mkv": {**_H264_AAC, "f": "matroska"},
    "ts": {**_H264_AAC, "f": "mpegts"},
    "webm": {"c:v": "libvpx-vp9", "b:v": 0, "deadline": "realtime", "cpu-used": 6, "c:a": "libopus", "f": "webm"},
}


def write_mp4(
    path: str | Path,
    frames: np.ndarray,
    fps: Fraction,
    waveform: np.ndarray | None = None,
    sample_rate: int | None = None,
    crf: int = 18,
    timeout_s: float = 600,
) -> None:
    """Write pictures and sound that start together as H.264 + AAC in mp4, whole or not at all.

    Args:
        frames: (T, H, W, 3) uint8. Odd sides are padded to even by repeating the border.
        waveform: (L,) float in [-1, 1], or None for a silent film.
    """
    write_video(path, frames, fps, waveform, sample_rate, crf, timeout_s, container="mp4")


def write_video(
    path: str | Path,
    frames: np.ndarray,
    fps: Fraction,
    waveform: np.ndarray | None = None,
    sample_rate: int | None = None,
    crf: int = 18,
    timeout_s: float = 600,
    container: str | None = None,
) -> None:
    """As `write_mp4`, in the container that the path's suffix names: mp4, mkv, ts or webm (VP9 + Opus).

    Raises:
        UserError: an unknown container, or ffmpeg could not write the file.
    """
    path, fps = Path(path), Fraction(fps)
    container = container or path.suffix.lstrip(".").lower()
    if container not in _CONTAINERS:
        raise UserError(f"{printable(path)}: write one of {', '.join(_CONTAINERS)}, not {container!r}")
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be (T, H, W, 3) uint8 with T > 0, got {frames.shape} {frames.dtype}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        height, width = frames.shape[1:3]
    rate = f"{fps.numerator}/{fps.denominator}"
    streams = [
        ffmpeg.input("pipe:0", f="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=rate)
        .video.filter("scale", out_color_matrix="bt709", out_range="tv", flags="bicubic+accurate_rnd")
        .filter("format", "yuv420p")
    ]
    options: dict[str, Any] = {
        "crf": crf,
        "colorspace": "bt709",
        "color_primaries": "bt709",
        "color_trc": "bt709",
        "color_range": "tv",
        **_CONTAINERS[container],
    }
    if container == "mp4":
        options["video_track_timescale"] = _timescale(fps)
    with tempfile.TemporaryFile() as sound_file, replacing(path) as temporary:
        if waveform is not None:
            if sample_rate is None:
                raise ValueError("a waveform needs its sample_rate")
            sound_file.write(np.clip(waveform, -1, 1).astype("<f4").tobytes())
            sound_file.flush()
            sound_file.seek(0)
            sound = ffmpeg.input(f"pipe:{sound_file.fileno()}", f="f32le", ar=sample_rate, ac=1)
            streams.append(sound.audio)
            options |= {"b:a": min(192_000, 6 * sample_rate)}
        arguments = ffmpeg.output(*streams, FILE, **options).compile(cmd=[])
        arguments = [f"file:{temporary}" if word == FILE else word for word in arguments]
        data = np.ascontiguousarray(frames).data.cast("B")
        code, errors = run(path, arguments, timeout_s, data=data, pass_fds=(sound_file.fileno(),))
        if code:
            raise MediaError("unwritable", path, f"cannot be written: {errors[-1] if errors else f'ffmpeg: {code}'}")


def write_wav(path: str | Path, waveform: np.ndarray, sample_rate: int) -> None:
    """Write (L,) float in [-1, 1] as 16-bit mono wav, whole or not at all."""
    with replacing(Path(path)) as temporary, wave.open(str(temporary), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sample_rate)
        out.writeframes(np.round(np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes())


def _timescale(fps: Fraction) -> int:
    """Ticks per second of which a frame lasts a whole number, at least 10 000 a second."""
    return fps.numerator * -(-10_000 // fps.numerator)
