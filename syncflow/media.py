"""Video and sound files: what they hold, a span of both streams by presentation time, and writing them.

Zero of a source is the presentation time of its first video frame; sound is placed on the same clock, so a
stream that starts late becomes leading silence. Containers are read by timestamp and never by index.
PyAV probes (no ffprobe is needed), an ffmpeg process with a time limit decodes and encodes.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import av
import ffmpeg
import numpy as np

from syncflow.clock import Span, ticks_in
from syncflow.errors import UserError

Fit = Literal["crop", "pad", "stretch"]

_SEEK_AFTER_S = 4
"""A seek is worth it from this start on."""
_SEEK_EARLY_S = 1
"""How far before the span reading begins at least, after a seek: sound may lie ahead of its picture in the file,
and sound decoders need some packets before their output is right."""
_TIE_US = 1000
"""Of two equally near pictures the earlier is taken, also where a container rounds timestamps to 1 ms."""
_SQUARE = Fraction(1, 100)
"""Pixels this near to square are: encoders round the aspect of odd sizes."""
_MAX_ERRORS = 20
_H264_AAC = {"c:v": "libx264", "preset": "veryfast", "c:a": "aac"}
_CONTAINERS: dict[str, dict[str, Any]] = {
    "mp4": {**_H264_AAC, "f": "mp4", "movflags": "+faststart"},
    "mkv": {**_H264_AAC, "f": "matroska"},
    "ts": {**_H264_AAC, "f": "mpegts"},
    "webm": {"c:v": "libvpx-vp9", "b:v": 0, "deadline": "realtime", "cpu-used": 6, "c:a": "libopus", "f": "webm"},
}
_FILE = "file:?"
"""Stands for the file while the command line is built: ffmpeg-python cannot hold names that are not UTF-8."""


class MediaError(UserError):
    """A file that cannot be used as asked; `reason` is a short countable name such as no_audio."""

    def __init__(self, reason: str, path: str | Path, detail: str) -> None:
        super().__init__(f"{printable(path)}: {detail}")
        self.reason = reason
        self.path = str(path)
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return MediaError, (self.reason, self.path, self.detail)


@dataclass(frozen=True)
class AudioInfo:
    """A sound stream; times on the source's clock."""

    index: int
    sample_rate: int
    channels: int
    codec: str
    start_s: Fraction
    duration_s: Fraction
    late_s: Fraction = Fraction(0)
    """By how much the container's timestamps of this stream come out late; already taken off `start_s`."""


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds."""

    path: str
    duration_s: Fraction
    """Of the picture, from zero to the end of its last frame."""
    zero_s: Fraction
    """Container time of the first video frame."""
    width: int
    """As shown: after rotation and sample aspect."""
    height: int
    rotation: int
    """Degrees clockwise that the stored picture is turned to be shown: 0, 90, 180 or 270."""
    rate: Fraction | None
    """Nominal frames per second, where the container states one."""
    video_codec: str
    video_index: int
    audio: AudioInfo | None


@dataclass
class Clip:
    """A span of a source on a constant frame rate and a sample rate."""

    span: Span
    fps: Fraction
    frames: np.ndarray
    """(T, H, W, 3) uint8; T = ticks_in(duration, fps), frame k is the picture at start + k / fps."""
    valid_frames: int
    """Frames the source has; those after it repeat the last."""
    sample_rate: int
    waveform: np.ndarray
    """(L,) float32 mono; L = ticks_in(duration, sample_rate)."""
    valid_samples: tuple[int, int]
    """[first, end) samples the source has; the rest is silence."""
    decode_errors: tuple[str, ...]
    """What the decoder complained of; empty for a clean span."""


@lru_cache(maxsize=1)
def ffmpeg_path() -> str:
    """The ffmpeg on PATH, else the one that imageio-ffmpeg packs."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise UserError("no ffmpeg found: install ffmpeg, or pip install imageio-ffmpeg") from error


def printable(path: str | Path) -> str:
    """A path that any terminal and any JSON file can hold: no line breaks, no bytes outside UTF-8."""
    text = os.fsencode(str(path)).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# --- what a file holds ---------------------------------------------------------------------------------------------


def probe(path: str | Path) -> MediaInfo:
    """What the local file `path` holds, judged by its first frames and its last packets.

    Raises:
        MediaError: missing, empty_file, unreadable, no_video.
    """
    path = str(path)
    if not os.path.isfile(path):
        raise MediaError("missing", path, "no such file")
    if os.path.getsize(path) == 0:
        raise MediaError("empty_file", path, "the file is empty")
    try:
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as container:
            return _probe(path, container)
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        raise MediaError("unreadable", path, f"not a readable media file ({_av_message(error)})") from error


def _probe(path: str, container: Any) -> MediaInfo:
    video = next((s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic), None)
    if video is None:
        raise MediaError("no_video", path, "has no video stream")
    audio = container.streams.best("audio")
    streams = [video] if audio is None else [video, audio]
    picture, sound = _first_frames(container, streams, audio is not None)
    if picture is None:
        raise MediaError("unreadable", path, "no video frame can be decoded")
    zero_s = picture.pts * picture.time_base
    ends = _ends(container, streams)
    end_s = max(ends.get(video.index, zero_s), zero_s + _frame_s(video))
    width, height = picture.width, picture.height
    aspect = video.sample_aspect_ratio
    if aspect and abs(aspect - 1) > _SQUARE:
        width = max(1, round(width * aspect))
    rotation = round(-picture.rotation) % 360
    if rotation % 180 == 90:
        width, height = height, width
    info = None
    if audio is not None and sound is not None:
        late_s = _rounded_skip(audio)
        start_s = sound.pts * sound.time_base - late_s
        info = AudioInfo(
            index=audio.index,
            sample_rate=audio.codec_context.sample_rate or sound.sample_rate,
            channels=audio.codec_context.channels or sound.layout.nb_channels,
            codec=audio.codec_context.name,
            start_s=start_s - zero_s,
            duration_s=max(Fraction(0), ends.get(audio.index, start_s) - start_s),
            late_s=late_s,
        )
    return MediaInfo(
        path=path,
        duration_s=end_s - zero_s,
        zero_s=zero_s,
        width=width,
        height=height,
        rotation=rotation,
        rate=_rate(video),
        video_codec=video.codec_context.name,
        video_index=video.index,
        audio=info,
    )


def _rate(video: Any) -> Fraction | None:
    """The stated frame rate, unless it is only the tick of a clock."""
    rate = video.average_rate or video.guessed_rate
    return Fraction(rate) if rate and rate <= 1000 else None


def _frame_s(video: Any) -> Fraction:
    return 1 / (_rate(video) or Fraction(25))


def _rounded_skip(audio: Any) -> Fraction:
    """Opus skips its first samples (6.5 ms, by bytes 10 and 11 of its header); where the container counts whole
    milliseconds, libavformat skips 7 ms of timestamps for them, and all sound comes out 0.5 ms late."""
    header = audio.codec_context.extradata or b""
    if audio.codec_context.name not in ("opus", "libopus") or audio.time_base != Fraction(1, 1000) or len(header) < 12:
        return Fraction(0)
    skipped_ms = Fraction(int.from_bytes(header[10:12], "little"), 48)
    return (Fraction(math.floor(skipped_ms + Fraction(1, 2))) - skipped_ms) / 1000


def _first_frames(container: Any, streams: Sequence[Any], want_sound: bool) -> tuple[Any, Any]:
    """The first frame that decodes of each stream; None where there is none within 10 s of packets."""
    picture, sound, last_s = None, None, None
    for packet in _packets(container, streams):
        is_video = packet.stream.type == "video"
        if (picture if is_video else sound) is None:
            with contextlib.suppress(av.FFmpegError):
                frame = next((f for f in packet.decode() if f.pts is not None), None)
                picture, sound = (frame or picture, sound) if is_video else (picture, frame or sound)
        if picture is not None and (sound is not None or not want_sound):
            break
        if packet.dts is not None:
            now_s = packet.dts * packet.time_base
            last_s = now_s if last_s is None else last_s
            if now_s - last_s > 10 and picture is not None:
                break
    return picture, sound


def _packets(container: Any, streams: Sequence[Any]) -> Iterator[Any]:
    """Packets up to the end of the file or the first that cannot be read."""
    packets = container.demux(streams)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError, OSError):
            return
        yield packet


def _ends(container: Any, streams: Sequence[Any]) -> dict[int, Fraction]:
    """Container time at which the packets of each stream end, read from the file and not from its header."""
    ends: dict[int, Fraction] = {}

    def read() -> None:
        for packet in _packets(container, streams):
            if packet.pts is not None and packet.size:
                length = packet.duration or 0
                if not length and packet.stream.type == "video":
                    length = round(_frame_s(packet.stream) / packet.time_base)
                end_s = (packet.pts + length) * packet.time_base
                ends[packet.stream.index] = max(ends.get(packet.stream.index, end_s), end_s)

    if container.duration:
        start = container.start_time or 0
        with contextlib.suppress(av.FFmpegError):
            container.seek(max(start, start + container.duration - 5 * av.time_base))
            read()
    if len(ends) < len(streams):  # nothing near the promised end: read what there is
        with contextlib.suppress(av.FFmpegError):
            container.seek(container.start_time or 0)
        read()
    return ends


def _av_message(error: BaseException) -> str:
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]


# --- decoding ------------------------------------------------------------------------------------------------------


def decode_span(
    source: str | Path | MediaInfo,
    span: Span,
    *,
    fps: Fraction,
    size: tuple[int, int] | None,
    sample_rate: int | None,
    fit: Fit = "crop",
    timeout_s: float = 120,
    threads: int = 0,
) -> Clip:
    """The pictures and the sound of `span`, both cut by the same start time.

    For each tick the nearest picture in time is taken, but none long before it is shown (see `_pictures`).

    Args:
        size: (width, height); None keeps the size as shown.
        sample_rate: in Hz; None leaves the sound out (L = 0).
        fit: how another aspect ratio is brought to `size`: crop the centre, pad with black, or stretch.
        threads: decoder threads; 0 lets ffmpeg choose.

    Raises:
        MediaError: what `probe` raises; no_audio, too_short (nothing in the span), decode_errors, timeout.
    """
    info = source if isinstance(source, MediaInfo) else probe(source)
    if span.start_s < 0:
        raise ValueError(f"a span starts at or after zero, got {span}")
    if sample_rate is not None and info.audio is None:
        raise MediaError("no_audio", info.path, "has no sound")
    width, height = size or (info.width, info.height)
    num_frames = ticks_in(span.duration_s, fps)
    num_samples = ticks_in(span.duration_s, Fraction(sample_rate)) if sample_rate else 0

    with tempfile.TemporaryFile() as sound_file:
        file = _input(info, span)
        outputs = [
            _pictures(file, info, span, fps, (width, height), fit).output(
                "pipe:1",
                f="rawvideo",
                pix_fmt="rgb24",
                fps_mode="passthrough",
                **{"frames:v": num_frames},
            )
        ]
        if sample_rate:
            outputs.append(
                _sound(file, info, span, sample_rate, num_samples).output(f"pipe:{sound_file.fileno()}", f="f32le")
            )
        arguments = ffmpeg.compile(ffmpeg.merge_outputs(*outputs) if len(outputs) > 1 else outputs[0], cmd=[])
        arguments = [f"file:{info.path}" if word == _FILE else word for word in arguments]
        if threads:
            arguments = ["-threads", str(threads), *arguments]
        pixels, errors = _run(info.path, arguments, timeout_s, pass_fds=(sound_file.fileno(),))
        sound_file.seek(0)
        samples = np.frombuffer(sound_file.read(num_samples * 4), dtype=np.float32)

    frame_bytes = width * height * 3
    valid_frames = min(len(pixels) // frame_bytes, num_frames)
    if not valid_frames:
        if errors:
            raise MediaError("decode_errors", info.path, f"{span} cannot be decoded: {errors[0]}")
        raise MediaError("too_short", info.path, f"has no picture in {span}; it ends at {float(info.duration_s):.3f} s")
    frames = np.empty((num_frames, height, width, 3), dtype=np.uint8)  # (T, H, W, 3)
    frames[:valid_frames] = np.frombuffer(pixels, np.uint8, valid_frames * frame_bytes).reshape(-1, height, width, 3)
    frames[valid_frames:] = frames[valid_frames - 1]
    waveform = np.zeros(num_samples, dtype=np.float32)  # (L,)
    waveform[: len(samples)] = samples
    valid_samples = (0, 0)
    if sample_rate and info.audio is not None:
        first = max(0, round((info.audio.start_s - span.start_s) * sample_rate))
        valid_samples = (first, len(samples)) if first < len(samples) else (0, 0)
    return Clip(span, fps, frames, valid_frames, sample_rate or 0, waveform, valid_samples, errors)


def _input(info: MediaInfo, span: Span) -> Any:
    """The file, by its own timestamps, read from a keyframe before the span where it begins late enough."""
    options: dict[str, Any] = {"copyts": None, "protocol_whitelist": "file,pipe"}
    keyframe_s = _keyframe_before(info, span.start_s) if span.start_s > _SEEK_AFTER_S else None
    if keyframe_s is not None:
        options |= {"noaccurate_seek": None, "seek_timestamp": 1, "ss": f"{float(keyframe_s) + 0.001:.6f}"}
    return ffmpeg.input(_FILE, **options)


def _keyframe_before(info: MediaInfo, start_s: Fraction) -> Fraction | None:
    """Container time at which a seek lands on a keyframe well before `start_s`; None to read from the start.

    Verified by looking: containers without an index (ts) otherwise land between keyframes, and what decodes
    from there begins too late.
    """
    latest_s = info.zero_s + start_s - _SEEK_EARLY_S
    with (
        contextlib.suppress(av.FFmpegError, OSError),
        av.open(f"file:{info.path}", options={"protocol_whitelist": "file"}) as container,
    ):
        video: Any = container.streams[info.video_index]
        for back_s in (0, 2, 8, 30, 120):
            if latest_s - back_s <= info.zero_s:
                return None
            container.seek(math.floor((latest_s - back_s) * av.time_base))
            for packet in _packets(container, [video]):
                if packet.pts is None or packet.dts is None:
                    continue
                if packet.pts * packet.time_base > latest_s:
                    break
                if packet.is_keyframe and container.format.name != "mpegts":
                    return packet.pts * packet.time_base
                if packet.is_keyframe:
                    # Without an index a seek looks for decoding times, and ffmpeg goes 3/23 s further back where
                    # there are B-frames.
                    return packet.dts * packet.time_base + bool(video.codec_context.has_b_frames) * Fraction(3, 23)
    return None


def _pictures(file: Any, info: MediaInfo, span: Span, fps: Fraction, size: tuple[int, int], fit: Fit) -> Any:
    """The filters of the video stream. A frame is due halfway between the one before it and its own time, so that
    `fps`, which shows at each tick the last frame that is due, shows the nearest. After a pause of the picture
    (variable frame rate) it is due at most half a tick or half a nominal frame ahead: a pause is really seen."""
    start_us = round((info.zero_s + span.start_s) * 1_000_000)
    most_us = 500_000 / float(min(fps, info.rate or fps)) * 1.02
    early = f"if(isnan(PREV_INPTS),0,max(0,min({most_us:.3f},(PTS-PREV_INPTS)/2)-{_TIE_US}))"
    stream = (
        file[str(info.video_index)]
        .filter("settb", "1/1000000")
        .filter("setpts", f"PTS-{start_us}-{early}")
        .filter("fps", fps=f"{fps.numerator}/{fps.denominator}", round="up", start_time=0)
    )
    width, height = size
    across, down = Fraction(width, info.width), Fraction(height, info.height)
    if fit == "stretch" or across == down:
        return stream.filter("scale", width, height, flags="bicubic").filter("setsar", 1)
    factor = max(across, down) if fit == "crop" else min(across, down)
    scaled_width, scaled_height = max(1, round(info.width * factor)), max(1, round(info.height * factor))
    stream = stream.filter("scale", scaled_width, scaled_height, flags="bicubic").filter("format", "rgb24")
    left, top = abs(scaled_width - width) // 2, abs(scaled_height - height) // 2
    if fit == "crop":
        return stream.filter("crop", width, height, left, top).filter("setsar", 1)
    return stream.filter("pad", width, height, left, top).filter("setsar", 1)


def _sound(file: Any, info: MediaInfo, span: Span, sample_rate: int, num_samples: int) -> Any:
    """The filters of the sound stream: placed by its timestamps, gaps above 20 ms filled, mixed to mono."""
    assert info.audio is not None
    start_s = info.zero_s + span.start_s + info.audio.late_s
    return (
        file[str(info.audio.index)]
        .filter("asettb", f"1/{info.audio.sample_rate}")
        .filter("asetpts", f"PTS-{round(start_s * info.audio.sample_rate)}")
        .filter(
            "aresample",
            sample_rate,
            **{"async": 1, "first_pts": 0, "min_comp": 0.00001, "min_hard_comp": 0.02, "rematrix_maxval": 1},
        )
        .filter("aformat", sample_fmts="flt", channel_layouts="mono")
        .filter("atrim", end_sample=num_samples)
    )


def _run(
    path: str | Path, arguments: Sequence[str], timeout_s: float, *, data: Any = None, pass_fds: tuple[int, ...] = ()
) -> tuple[bytes, tuple[str, ...]]:
    """What ffmpeg wrote to its output, and what it complained of.

    Raises:
        MediaError: timeout; unreadable where it made nothing of the input.
    """
    command = [ffmpeg_path(), "-nostdin", "-hide_banner", "-v", "error", "-y", *arguments]
    if data is not None:
        command.remove("-nostdin")
    stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if data is None else {"input": data}
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, pass_fds=pass_fds, **stdin)
    except subprocess.TimeoutExpired as error:
        raise MediaError("timeout", path, f"ffmpeg took more than {timeout_s:g} s") from error
    lines = [line for line in done.stderr.decode("utf-8", "backslashreplace").splitlines() if line.strip()]
    errors = tuple(dict.fromkeys(lines))[:_MAX_ERRORS]
    if done.returncode and not done.stdout:
        detail = errors[-1] if errors else f"ffmpeg ended with {done.returncode}"
        raise MediaError("unreadable", path, f"ffmpeg cannot process it: {detail}")
    return done.stdout, errors


# --- writing -------------------------------------------------------------------------------------------------------


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
    with tempfile.TemporaryFile() as sound_file, _atomic(path) as temporary:
        if waveform is not None:
            if sample_rate is None:
                raise ValueError("a waveform needs its sample_rate")
            sound_file.write(np.clip(waveform, -1, 1).astype("<f4").tobytes())
            sound_file.flush()
            sound_file.seek(0)
            sound = ffmpeg.input(f"pipe:{sound_file.fileno()}", f="f32le", ar=sample_rate, ac=1)
            streams.append(sound.audio)
            options |= {"b:a": min(192_000, 6 * sample_rate)}
        arguments = ffmpeg.output(*streams, _FILE, **options).compile(cmd=[])
        arguments = [f"file:{temporary}" if word == _FILE else word for word in arguments]
        data = np.ascontiguousarray(frames).data.cast("B")
        _, errors = _run(path, arguments, timeout_s, data=data, pass_fds=(sound_file.fileno(),))
        if not temporary.is_file() or not temporary.stat().st_size:
            raise MediaError("unwritable", path, f"ffmpeg wrote nothing: {errors[-1] if errors else 'unknown reason'}")


def write_wav(path: str | Path, waveform: np.ndarray, sample_rate: int) -> None:
    """Write (L,) float in [-1, 1] as 16-bit mono wav, whole or not at all."""
    import wave

    with _atomic(Path(path)) as temporary, wave.open(str(temporary), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sample_rate)
        out.writeframes(np.round(np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes())


def _timescale(fps: Fraction) -> int:
    """Ticks per second of which a frame lasts a whole number, at least 10 000 a second."""
    return fps.numerator * -(-10_000 // fps.numerator)


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block succeeds."""
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
