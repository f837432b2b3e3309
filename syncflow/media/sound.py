"""The sound of a file that may hold nothing else."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from syncflow.clock import ticks_in
from syncflow.media.probing import open_container
from syncflow.media.process import MediaError


def read_sound(path: str | Path, sample_rate: int, longest_s: Fraction) -> np.ndarray:
    """The first seconds of a file's sound from its first sample on, mixed to mono: (L,) float32, L at most `longest_s`.

    Raises:
        MediaError: missing, empty_file, unreadable, no_audio.
    """
    path = str(path)
    if not os.path.isfile(path):
        raise MediaError("missing", path, "no such file")
    if os.path.getsize(path) == 0:
        raise MediaError("empty_file", path, "the file is empty")
    wanted = ticks_in(longest_s, Fraction(sample_rate))
    try:
        with open_container(path) as container:
            frames = _frames(container, longest_s)
            resampler = av.AudioResampler(format="fltp", rate=sample_rate)
            # The last resampling, of nothing, gives what the filter still holds.
            parts = (
                [part.to_ndarray() for frame in [*frames, None] for part in resampler.resample(frame)] if frames else []
            )
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        raise MediaError("unreadable", path, f"not a readable media file ({error})") from error
    if not parts:
        raise MediaError("no_audio", path, "has no sound that can be decoded")
    return np.concatenate([part.mean(axis=0) for part in parts])[:wanted].astype(np.float32)  # (channels, n) -> (n,)


def _frames(container: Any, longest_s: Fraction) -> list[Any]:
    """Decoded frames of the sound, up to the first that cannot be read."""
    frames: list[Any] = []
    stream, seconds = container.streams.best("audio"), Fraction(0)
    if stream is not None:
        with contextlib.suppress(av.FFmpegError):
            for frame in container.decode(stream):
                frames.append(frame)
                seconds += Fraction(frame.samples, frame.sample_rate)
                if seconds > longest_s + Fraction(1, 10):  # the resampling filter looks ahead
                    break
    return frames
