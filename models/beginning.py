"""What a clip begins with: the frames and the sound of a file, of which generation makes the rest."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syncflow.clock import LatentGrid, Span
from syncflow.errors import UserError
from syncflow.media import MediaError, MediaInfo, decode_span, probe, read_sound
from syncflow.models.shapes import Shape

_TOO_LONG = "nothing is left to be made; ask for a longer duration, or give a shorter beginning"


@dataclass
class Beginning:
    """As long as the clip that is made: after its end the last frame stands still and there is silence."""

    frames: np.ndarray | None  # (T, H, W, 3) uint8; None where the file has sound alone
    waveform: np.ndarray | None  # (L,) float32; None where the file has no sound
    end_s: Fraction


def check_beginning(path: str | Path, shape: Shape, sample_rate: int) -> None:
    """
    Raises:
        UserError: it cannot be read, or leaves nothing to be made.
    """
    info = _pictures(path)
    if info is None:
        _sound(path, shape, sample_rate)
    else:
        _given_frames(info, shape)


def read_beginning(path: str | Path, shape: Shape, sample_rate: int) -> Beginning:
    """What an image, a video or a file of sound alone gives of a clip of `shape`.

    Raises:
        UserError: as `check_beginning`.
    """
    info = _pictures(path)
    if info is None:
        sound = _sound(path, shape, sample_rate)
        return Beginning(None, _followed_by_silence(sound, shape), Fraction(len(sound), sample_rate))
    count = _given_frames(info, shape)
    span = Span(Fraction(0), count / shape.fps)
    rate = sample_rate if info.audio else None
    clip = decode_span(info, span, fps=shape.fps, size=(shape.width, shape.height), sample_rate=rate)
    still = np.repeat(clip.frames[-1:], shape.num_frames - count, axis=0)
    waveform = _followed_by_silence(clip.waveform, shape) if info.audio else None
    return Beginning(np.concatenate([clip.frames, still]), waveform, span.end_s)


def _pictures(path: str | Path) -> MediaInfo | None:
    """What a file holds; None where that is sound alone."""
    try:
        return probe(path)
    except MediaError as error:
        if error.reason != "no_video":
            raise
        return None


def _given_frames(info: MediaInfo, shape: Shape) -> int:
    count = max(1, int(info.duration_s * shape.fps))
    if count >= shape.num_frames:
        raise UserError(
            f"{info.path} gives {count} frames, and the clip has {shape.num_frames} at {shape.fps} fps: {_TOO_LONG}"
        )
    return count


def _sound(path: str | Path, shape: Shape, sample_rate: int) -> np.ndarray:
    """(L,) of a file without pictures."""
    sound = read_sound(path, sample_rate, Fraction(shape.num_samples, sample_rate))
    if len(sound) >= shape.num_samples:
        raise UserError(f"{path} is as long as the clip, {shape.num_samples / sample_rate:g} s: {_TOO_LONG}")
    return sound


def _followed_by_silence(waveform: np.ndarray, shape: Shape) -> np.ndarray:
    return np.pad(waveform, (0, shape.num_samples - len(waveform)))


def covered(grid: LatentGrid, end_s: Fraction) -> Tensor:
    """(1, T) bool: latent frames that end by `end_s`."""
    return torch.tensor([[span.end_s <= end_s for span in grid.spans]])
