"""Autoencoders that keep every pixel and every sample, so that a shard gives back exactly what was cut.

Shapes: B clips, T frames of H x W pixels, L samples, C latent channels, T_a latent frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from syncflow.clock import LatentGrid, uniform_grid
from syncflow.models.autoencoders import AutoencoderSpec, Posterior
from syncflow.preprocess import encode
from syncflow.samples import EncoderIdentity, StoredSample

SAMPLE_RATE = 48000
HOP = 480


class Pixels:
    """Latents are the pixels themselves."""

    identity = EncoderIdentity(kind="pixels", path="", sha256="0" * 64, channels=3)
    spatial_multiple = 1

    def encode(self, frames: Tensor) -> Posterior:
        return Posterior(frames, torch.zeros_like(frames))

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return (3, num_frames, height, width)

    def grid(self, num_frames: int, fps: Fraction) -> LatentGrid:
        return uniform_grid(num_frames, 1, fps)


class Samples:
    """Latents are the samples themselves, 10 ms to a latent."""

    identity = EncoderIdentity(kind="samples", path="", sha256="1" * 64, channels=HOP)
    sample_rate = SAMPLE_RATE

    def encode(self, waveform: Tensor) -> Posterior:
        latents = waveform.unflatten(1, (-1, HOP)).transpose(1, 2)  # (B, C, T_a)
        return Posterior(latents, torch.zeros_like(latents))

    def latent_shape(self, num_samples: int) -> tuple[int, int]:
        return (HOP, num_samples // HOP)

    def grid(self, num_samples: int) -> LatentGrid:
        return uniform_grid(num_samples, HOP, Fraction(SAMPLE_RATE))


@contextmanager
def exact_autoencoders() -> Iterator[None]:
    """Within the context, preprocessing encodes with these, whatever its specs name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "load_video_autoencoder", lambda *_: Pixels())
        patch.setattr(encode, "load_audio_autoencoder", lambda *_: Samples())
        yield


def specs(folder: Path) -> dict[str, Any]:
    return {
        "video_autoencoder": AutoencoderSpec(kind="pixels", path=str(folder)),
        "audio_autoencoder": AutoencoderSpec(kind="samples", path=str(folder)),
    }


def frames_of(sample: StoredSample) -> np.ndarray:
    """(T, H, W, 3), 0 to 255."""
    return ((sample.tensors["video_mean"].float().permute(1, 2, 3, 0) + 1) * 127.5).numpy()


def waveform_of(sample: StoredSample) -> np.ndarray:
    """(L,)"""
    return sample.tensors["audio_mean"].float().transpose(0, 1).flatten().numpy()
