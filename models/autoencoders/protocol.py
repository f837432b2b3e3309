"""What an autoencoder is to the rest of the system: one small protocol for pictures in time, one for sound.

Shapes: B clips, C latent channels, T_v / T_a latent frames, T frames of H × W pixels, L samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor

from syncflow.clock import LatentGrid
from syncflow.errors import UserError
from syncflow.samples import EncoderIdentity


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents. An autoencoder without one has std 0."""

    mean: Tensor  # (B, C, T_v, H', W') or (B, C, T_a)
    std: Tensor  # as mean; a standard deviation, whatever the network's own parametrisation

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + std · ε, ε ~ N(0, I) drawn on the generator's device: a seed gives the same latents anywhere."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)


class VideoAutoencoder(Protocol):
    """Frames in [-1, 1] ↔ latents on a grid in seconds."""

    net: Any
    """The network, which may be moved to another device."""
    identity: EncoderIdentity
    spatial_multiple: int
    """Height and width must be multiples of this."""

    def encode(self, frames: Tensor) -> Posterior:
        """(B, 3, T, H, W) in [-1, 1] -> posterior (B, C, T_v, H', W')."""

    def decode(self, latents: Tensor, num_frames: int) -> Tensor:
        """(B, C, T_v, H', W') -> (B, 3, num_frames, H, W), about in [-1, 1] and not clamped."""

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, T_v, H', W') of a clip's latents."""

    def grid(self, num_frames: int, fps: Fraction) -> LatentGrid:
        """Which seconds of a clip each of its T_v latent frames covers."""


class AudioAutoencoder(Protocol):
    """Mono waveforms in [-1, 1] ↔ latents on a grid in seconds."""

    net: Any
    """The network, which may be moved to another device."""
    identity: EncoderIdentity
    sample_rate: int

    def encode(self, waveform: Tensor) -> Posterior:
        """(B, L) in [-1, 1] -> posterior (B, C, T_a)."""

    def decode(self, latents: Tensor, num_samples: int) -> Tensor:
        """(B, C, T_a) -> (B, num_samples)."""

    def latent_shape(self, num_samples: int) -> tuple[int, int]:
        """(C, T_a) of a clip's latents."""

    def grid(self, num_samples: int) -> LatentGrid:
        """Which seconds of a clip each of its T_a latent frames covers."""


def check_frames(num_frames: int, height: int, width: int, spatial_multiple: int) -> None:
    """
    Raises:
        UserError: no frames, or sides that this autoencoder cannot code.
    """
    if num_frames < 1:
        raise UserError(f"a video needs at least one frame, got {num_frames}")
    if min(height, width) < spatial_multiple or height % spatial_multiple or width % spatial_multiple:
        near = [max(1, round(side / spatial_multiple)) * spatial_multiple for side in (width, height)]
        raise UserError(
            f"size {width}x{height}: this video autoencoder needs multiples of {spatial_multiple}, "
            f"for example {near[0]}x{near[1]}"
        )


def check_samples(num_samples: int) -> None:
    """
    Raises:
        UserError: an empty waveform.
    """
    if num_samples < 1:
        raise UserError(f"sound needs at least one sample, got {num_samples}")
