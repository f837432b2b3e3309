"""What a media file holds, judged by its first frames and its last packets (PyAV; no ffprobe is needed)."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from syncflow.media.process import MediaError

_SQUARE = Fraction(1, 100)
"""Pixels this near to square are: encoders round the aspect of odd sizes."""
_STILL = re.compile(r"image2|\w+_pipe")
"""libavformat's demuxers of still images: by file name, and by content."""


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
    container: str
    """libavformat's name of the container, or of the kind of still image."""
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

    @property
    def still(self) -> bool:
        return _STILL.fullmatch(self.container) is not None


def probe(path: str | Path) -> MediaInfo:
    """What the local file `path` holds, judged by its first frames and its last packets.

    Raises:
        MediaError: missing, empty_file, unreadable, no_video.
    """
    path = str(path)
    if not os.path.isfile(path):
        raise MediaError("missing", path, "is no file" if os.path.exists(path) else "no such file")
    if os.path.getsize(path) == 0:
        raise MediaError("empty_file", path, "the file is empty")
    try:
        with open_container(path) as container:
            return _probe(path, container)
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        raise MediaError("unreadable", path, f"not a readable media file ({_av_message(error)})") from error


def open_container(path: str) -> Any:
    """The file opened to be read; nothing in it may make the demuxer open anything but files."""
    return av.open(f"file:{path}", options={"protocol_whitelist": "file", "pattern_type": "none"})


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
        container=container.format.name,
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
    for packet in packets_of(container, streams):
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


def packets_of(container: Any, streams: Sequence[Any]) -> Iterator[Any]:
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
    # (time, end) of the last shown, in ticks of the stream: a Fraction per packet would take longer than reading it.
    last: dict[int, tuple[int, int]] = {}
    frame_ticks = {s.index: round(_frame_s(s) / s.time_base) if s.type == "video" else 0 for s in streams}

    def read() -> None:
        for packet in packets_of(container, streams):
            if packet.pts is not None and packet.size:
                # Not the latest end: where pictures are reordered, some containers give the time to the next packet.
                index = packet.stream_index
                if index not in last or packet.pts > last[index][0]:
                    last[index] = (packet.pts, packet.pts + (packet.duration or frame_ticks[index]))

    promised_s: Any = math.inf
    if container.duration:
        start = container.start_time or 0
        tail = max(start, start + container.duration - av.time_base)
        promised_s = Fraction(tail, av.time_base)
        with contextlib.suppress(av.FFmpegError):
            container.seek(tail)
            read()
    # Where a stream has nothing near the promised end, its last packet may lie before the place that was sought.
    if any(s.index not in last or last[s.index][1] * s.time_base < promised_s for s in streams):
        with contextlib.suppress(av.FFmpegError):
            container.seek(container.start_time or 0)
        read()
    return {s.index: last[s.index][1] * s.time_base for s in streams if s.index in last}


def _av_message(error: BaseException) -> str:
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
