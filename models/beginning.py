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
from syncflow.media import decode_span, probe
from syncflow.models.shapes import Shape


@dataclass
class Beginning:
    """As long as the clip that is made: after `end_s` the last frame stands still and there is silence."""

    frames: np.ndarray  # (T, H, W, 3) uint8
    waveform: np.ndarray | None  # (L,) float32; None where the file has no sound
    end_s: Fraction


def given_frames(path: str | Path, shape: Shape) -> int:
    """How many frames of `shape` an image or a video gives.

    Raises:
        UserError: it cannot be read, or leaves nothing to be made.
    """
    count = max(1, int(probe(path).duration_s * shape.fps))
    if count >= shape.num_frames:
        raise UserError(
            f"{path} gives {count} frames, and the clip has {shape.num_frames} at {shape.fps} fps: nothing is left to "
            "be made; ask for a longer duration, or give a shorter beginning"
        )
    return count


def read_beginning(path: str | Path, shape: Shape, sample_rate: int) -> Beginning:
    """
    Raises:
        UserError: as `given_frames`.
    """
    count = given_frames(path, shape)
    info = probe(path)
    span = Span(Fraction(0), count / shape.fps)
    rate = sample_rate if info.audio else None
    clip = decode_span(info, span, fps=shape.fps, size=(shape.width, shape.height), sample_rate=rate)
    still = np.repeat(clip.frames[-1:], shape.num_frames - count, axis=0)
    waveform = None
    if info.audio:
        waveform = np.pad(clip.waveform, (0, shape.num_samples - len(clip.waveform)))
    return Beginning(np.concatenate([clip.frames, still]), waveform, span.end_s)


def covered(grid: LatentGrid, end_s: Fraction) -> Tensor:
    """(1, T) bool: latent frames that end by `end_s`."""
    return torch.tensor([[span.end_s <= end_s for span in grid.spans]])
