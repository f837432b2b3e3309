"""The first round of work: look into each source and say which clips are to be cut from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from syncflow.clock import Span, windows
from syncflow.media import MediaError, MediaInfo, probe
from syncflow.preprocess.config import BucketSize, PreprocessConfig
from syncflow.preprocess.fetch import Fetcher
from syncflow.preprocess.plan import ClipPlan, Source, Surveyed, clip_id, reject
from syncflow.preprocess.shots import Shots
from syncflow.preprocess.signature import signature
from syncflow.preprocess.work import timed
from syncflow.samples import Reject

STAGE = "probe"


def survey(
    source: Source, config: PreprocessConfig, fetcher: Fetcher, shots: Shots, found: Surveyed
) -> list[ClipPlan] | Reject:
    """The clips of one source in order of time, or why there are none; its length and the time spent go to `found`."""
    try:
        with timed(found.seconds, "probe"):
            info = probe(fetcher.local(source.uri))
        found.durations_s.append(float(info.duration_s))
        if info.audio is None and config.sound == "required":
            raise MediaError("no_audio", info.path, "has no sound")
        with timed(found.seconds, "shots"):
            return plan_clips(source, info, config, shots)
    except MediaError as error:
        return reject(source, STAGE, error.reason, error.detail)


def sign(clip: ClipPlan, info: MediaInfo, config: PreprocessConfig) -> ClipPlan:
    """With its signature; without one where it cannot be decoded, for which the decode stage will drop it."""
    sound = BucketSize.parse(clip.bucket).sound
    try:
        return replace(clip, signature=signature(info, clip.span, config.clip_timeout_s, sound))
    except MediaError:
        return clip


def plan_clips(source: Source, info: MediaInfo, config: PreprocessConfig, shots: Shots) -> list[ClipPlan]:
    """Windows of one bucket's length in each shot of the source, on the grid of frames counted from its zero.

    Raises:
        MediaError: too_short, no_bucket.
    """
    start = source.start_s or Fraction(0)
    # Containers round times and a last frame lasts a while: a window may end one tick late and is then marked
    # by its number of valid frames.
    end = min(source.end_s or info.duration_s, info.duration_s) + 1 / config.rate
    if start >= end:
        raise MediaError("too_short", info.path, f"ends at {float(info.duration_s):.3f} s, before {float(start):.3f} s")
    whole = Span(start, end)
    sizes = [size for size in config.bucket_sizes if (size.num_frames == 1) == bool(info.still)]
    if not sizes:
        what = (
            "a still image, and no bucket is of one frame"
            if info.still
            else "a video, and all buckets are of one frame"
        )
        raise MediaError("no_bucket", info.path, f"is {what}")
    bucket = choose_bucket(info.width, info.height, whole.duration_s, config.rate, sizes)
    if bucket is None:
        shortest = min(size.num_frames for size in sizes) / config.rate
        detail = f"is {float(whole.duration_s - 1 / config.rate):.3f} s long, clips are {float(shortest):.3f} s"
        raise MediaError("too_short", info.path, detail)
    length = bucket.num_frames / config.rate
    stride = None if config.split.stride_s is None else Fraction(str(config.split.stride_s))
    spans = [window for shot in shots(info, whole) for window in windows(shot, length, config.rate, stride)]
    if not spans:
        raise MediaError("too_short", info.path, f"no shot is as long as a clip ({float(length):.3f} s)")
    return [
        ClipPlan(
            clip_id(source.id, span.start_s), source, span, bucket._replace(sound=_sounds(info, span, config)).name
        )
        for span in spans[: 1 if info.still else config.split.max_clips]
    ]


def _sounds(info: MediaInfo, span: Span, config: PreprocessConfig) -> bool:
    """Whether a clip is made with sound. Where it may be without, it is if its source has too little there."""
    if config.sound != "optional":
        return config.sound == "required"
    if info.audio is None or info.audio.duration_s <= 0:
        return False
    heard = span.intersect(Span(info.audio.start_s, info.audio.start_s + info.audio.duration_s))
    return heard is not None and heard.duration_s >= config.min_audio * span.duration_s


def choose_bucket(
    width: int, height: int, duration_s: Fraction, rate: Fraction, sizes: Sequence[BucketSize]
) -> BucketSize | None:
    """The longest bucket that fits, of those the nearest aspect, of those the largest that need not be enlarged."""
    fitting = [size for size in sizes if size.num_frames / rate <= duration_s]
    if not fitting:
        return None

    def badness(bucket: BucketSize) -> tuple[float, ...]:
        aspect = abs(math.log((width / height) / (bucket.width / bucket.height)))
        area = bucket.width * bucket.height
        enlarged = area > width * height
        return (-bucket.num_frames, round(aspect, 6), enlarged, area if enlarged else -area)

    return min(fitting, key=badness)
