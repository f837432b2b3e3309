"""A span of a source, both streams by presentation time, on a constant frame rate and a sample rate."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal

import av
import ffmpeg
import numpy as np

from syncflow.clock import Span, ticks_in
from syncflow.media.probing import MediaInfo, open_container, packets_of, probe
from syncflow.media.process import FILE, MediaError, run

Fit = Literal["crop", "pad", "stretch"]

_SEEK_AFTER_S = 4
"""A seek is worth it from this start on."""
_SEEK_EARLY_S = 1
"""How far before the span reading begins at least, after a seek: sound may lie ahead of its picture in the file,
and sound decoders need some packets before their output is right."""
_NO_SEEK = frozenset({"mpeg", "ogg"})
"""Containers read from their start: after a seek the sound of program streams begins within a packet, which decoders
complain of, and that of Ogg with a time up to 10 ms off."""
_TIE_US = 1000
"""Of two equally near pictures the earlier is taken, also where a container rounds timestamps to 1 ms."""
_LEAST_SOUND_S = Fraction(1, 20)
"""Sound that ends so soon after the span begins is left out: ffmpeg fails where nothing of a stream is left."""


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


def decode_span(
    source: str | Path | MediaInfo,
    span: Span,
    *,
    fps: Fraction,
    size: tuple[int, int] | None,
    sample_rate: int | None,
    fit: Fit = "crop",
    colour_matrix: Literal["auto", "bt601"] = "auto",
    timeout_s: float = 120,
    threads: int = 0,
) -> Clip:
    """The pictures and the sound of `span`, both cut by the same start time.

    For each tick the nearest picture in time is taken, but none long before it is shown (see `_pictures`).

    Args:
        size: (width, height); None keeps the size as shown.
        sample_rate: in Hz; None leaves the sound out (L = 0).
        fit: how another aspect ratio is brought to `size`: crop the centre, pad with black, or stretch.
        colour_matrix: auto makes RGB as the file states; bt601 as OpenCV's reader does, whatever the file states.
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

    frames = np.empty((num_frames, height, width, 3), dtype=np.uint8)  # (T, H, W, 3)
    waveform = np.zeros(num_samples, dtype=np.float32)  # (L,)
    with _memory_file() as pixels, _memory_file() as samples:
        file = _input(info, span)
        outputs = [
            _pictures(file, info, span, fps, (width, height), fit, colour_matrix).output(
                f"pipe:{pixels.fileno()}",
                f="rawvideo",
                pix_fmt="rgb24",
                fps_mode="passthrough",
                **{"frames:v": num_frames},
            )
        ]
        if sample_rate and _is_heard(info, span):
            outputs.append(
                _sound(file, info, span, sample_rate, num_samples).output(f"pipe:{samples.fileno()}", f="f32le")
            )
        arguments = ffmpeg.compile(ffmpeg.merge_outputs(*outputs) if len(outputs) > 1 else outputs[0], cmd=[])
        arguments = [f"file:{info.path}" if word == FILE else word for word in arguments]
        if threads:
            arguments = ["-threads", str(threads), *arguments]
        code, errors = run(info.path, arguments, timeout_s, pass_fds=(pixels.fileno(), samples.fileno()))
        valid_frames = _fill(frames, pixels) // (height * width * 3)
        valid_end = _fill(waveform, samples) // 4

    if not valid_frames:
        if (errors or code) and span.start_s < info.duration_s:
            why = errors[-1] if errors else f"ffmpeg ended with {code}"
            raise MediaError("decode_errors", info.path, f"{span} cannot be decoded: {why}")
        raise MediaError("too_short", info.path, f"has no picture in {span}; it ends at {float(info.duration_s):.3f} s")
    frames[valid_frames:] = frames[valid_frames - 1]
    # As every frame, the end came early by half the time of the last: that is shown up to the end of the picture.
    shown = min(num_frames, ticks_in(info.duration_s - span.start_s, fps))
    if valid_frames < shown <= valid_frames + math.ceil(_most_early_s(info, fps) * fps):
        valid_frames = shown
    waveform[valid_end:] = 0
    valid_samples = (0, 0)
    if sample_rate and info.audio is not None:
        first = max(0, round((info.audio.start_s - span.start_s) * sample_rate))
        valid_samples = (first, valid_end) if first < valid_end else (0, 0)
    return Clip(span, fps, frames, valid_frames, sample_rate or 0, waveform, valid_samples, errors)


def _memory_file() -> BinaryIO:
    """A nameless file in memory that ffmpeg writes to: cheaper by a third than a pipe read piece by piece."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("syncflow"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _fill(array: np.ndarray, file: BinaryIO) -> int:
    """Read the file from its start into `array`, as much as there is of both; returns bytes."""
    file.seek(0)
    view, done = array.data.cast("B") if array.size else memoryview(bytearray()), 0
    while done < len(view):
        n = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not n:
            break
        done += n
    return done


def _input(info: MediaInfo, span: Span) -> Any:
    """The file, by its own timestamps, read from a keyframe before the span where it begins late enough."""
    options: dict[str, Any] = {"copyts": None, "protocol_whitelist": "file,pipe"}
    if info.still:
        options["f"] = info.container
        if info.container == "image2":  # a name such as a%03d.png is no series
            options["pattern_type"] = "none"
    worth = span.start_s > _SEEK_AFTER_S and info.container not in _NO_SEEK
    keyframe_s = _keyframe_before(info, span.start_s) if worth else None
    if keyframe_s is not None:
        options |= {"noaccurate_seek": None, "seek_timestamp": 1, "ss": f"{float(keyframe_s) + 0.001:.6f}"}
    return ffmpeg.input(FILE, **options)


def _keyframe_before(info: MediaInfo, start_s: Fraction) -> Fraction | None:
    """Container time at which a seek lands on a keyframe well before `start_s`; None to read from the start.

    Verified by looking: containers without an index (ts) otherwise land between keyframes, and what decodes
    from there begins too late.
    """
    latest_s = info.zero_s + start_s - _SEEK_EARLY_S
    with (
        contextlib.suppress(av.FFmpegError, OSError),
        open_container(info.path) as container,
    ):
        video: Any = container.streams[info.video_index]
        for back_s in (0, 2, 8, 30, 120):
            if latest_s - back_s <= info.zero_s:
                return None
            container.seek(math.floor((latest_s - back_s) * av.time_base))
            for packet in packets_of(container, [video]):
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


def _pictures(
    file: Any, info: MediaInfo, span: Span, fps: Fraction, size: tuple[int, int], fit: Fit, colour_matrix: str
) -> Any:
    """The filters of the video stream. A frame is due halfway between the one before it and its own time, so that
    `fps`, which shows at each tick the last frame that is due, shows the nearest. After a pause of the picture
    (variable frame rate) it is due at most half a tick or half a nominal frame ahead: a pause is really seen."""
    start_us = round((info.zero_s + span.start_s) * 1_000_000)
    most_us = 1_000_000 * _most_early_s(info, fps)
    early = f"if(isnan(PREV_INPTS),0,max(0,min({most_us:.3f},(PTS-PREV_INPTS)/2)-{_TIE_US}))"
    stream = (
        file[str(info.video_index)]
        .filter("settb", "1/1000000")
        .filter("setpts", f"PTS-{start_us}-{early}")
        .filter("fps", fps=f"{fps.numerator}/{fps.denominator}", round="up", start_time=0)
    )
    scaling = {"flags": "bicubic", "in_color_matrix": colour_matrix}
    width, height = size
    across, down = Fraction(width, info.width), Fraction(height, info.height)
    if fit == "stretch" or across == down:
        return stream.filter("scale", width, height, **scaling).filter("setsar", 1)
    if fit == "crop":
        # Cut first: what is cut off need not be scaled. Shares of the stored size, whatever its pixels' shape.
        keep_x, keep_y = min(1.0, float(across / down)), min(1.0, float(down / across))
        stream = stream.filter("crop", f"iw*{keep_x:.9f}", f"ih*{keep_y:.9f}")
        return stream.filter("scale", width, height, **scaling).filter("setsar", 1)
    factor = min(across, down)
    inner_width, inner_height = max(1, round(info.width * factor)), max(1, round(info.height * factor))
    stream = stream.filter("scale", inner_width, inner_height, **scaling).filter("format", "rgb24")
    stream = stream.filter("pad", width, height, (width - inner_width) // 2, (height - inner_height) // 2)
    return stream.filter("setsar", 1)


def _most_early_s(info: MediaInfo, fps: Fraction) -> float:
    """How long before its time a frame is due at most."""
    return 0.51 / float(min(fps, info.rate or fps))


def _is_heard(info: MediaInfo, span: Span) -> bool:
    """Whether the source's sound goes on into the span."""
    return info.audio is not None and info.audio.start_s + info.audio.duration_s > span.start_s + _LEAST_SOUND_S


def _sound(file: Any, info: MediaInfo, span: Span, sample_rate: int, num_samples: int) -> Any:
    """The filters of the sound stream: placed by its timestamps, gaps above 20 ms filled, mixed to mono."""
    assert info.audio is not None
    time = "PTS"
    if info.container == "ogg":
        # At the edges of its pages a packet comes late by a part of a block: the samples are counted instead.
        counted = "(STARTPTS+NB_CONSUMED_SAMPLES)"
        time = f"if(lt(abs(PTS-{counted}),0.02*SR),{counted},PTS)"
    start_s = info.zero_s + span.start_s + info.audio.late_s
    return (
        file[str(info.audio.index)]
        .filter("asettb", f"1/{info.audio.sample_rate}")
        .filter("asetpts", f"{time}-{round(start_s * info.audio.sample_rate)}")
        .filter(
            "aresample",
            sample_rate,
            **{"async": 1, "first_pts": 0, "min_comp": 0.00001, "min_hard_comp": 0.02, "rematrix_maxval": 1},
        )
        .filter("aformat", sample_fmts="flt", channel_layouts="mono")
        .filter("atrim", end_sample=num_samples)
    )
