"""Image autoencoders (diffusers AutoencoderKL, AutoencoderTiny), frame by frame.

A network of 3·f² input channels sees f × f pixels folded into channels, which spares it the costly full size.

    z = (z' − shift) · scale, the normalisation that the model's configuration states (shift 0, scale 1 if none)
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from syncflow.clock import LatentGrid, uniform_grid
from syncflow.models.autoencoders.diffusers_net import load_net
from syncflow.models.autoencoders.protocol import Posterior, check_frames
from syncflow.samples import EncoderIdentity

if TYPE_CHECKING:
    from syncflow.models.autoencoders import AutoencoderSpec


class ImageAutoencoder:
    """Each frame is coded alone: T_v = T, and latent frame i covers [i, i + 1) / fps."""

    def __init__(self, net: Any, identity: EncoderIdentity, frames_at_once: int) -> None:
        self.net = net
        self.identity = identity
        self.frames_at_once = frames_at_once
        self.channels = identity.channels
        self.fold = fold_of(net)
        self.spatial_multiple = self.fold * 2 ** (len(_block_widths(net.config)) - 1)
        self.shift = float(getattr(net.config, "shift_factor", None) or 0.0)
        self.scale = float(getattr(net.config, "scaling_factor", None) or 1.0)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Posterior:
        b, _, t, h, w = frames.shape
        self.latent_shape(t, h, w)
        images = frames.transpose(1, 2).flatten(0, 1).to(self.net.dtype)  # (B·T, 3, H, W)
        means, stds = [], []
        for part in images.split(self.frames_at_once):
            coded = self.net.encode(pixel_unshuffle(part, self.fold))
            if hasattr(coded, "latent_dist"):
                means.append(coded.latent_dist.mean)
                stds.append(coded.latent_dist.std)
            else:
                means.append(coded.latents)
                stds.append(torch.zeros_like(coded.latents))
        mean, std = (torch.cat(parts).unflatten(0, (b, t)).transpose(1, 2) for parts in (means, stds))
        return Posterior((mean - self.shift) * self.scale, std * self.scale)  # (B, C, T, H', W')

    @torch.no_grad()
    def decode(self, latents: Tensor, num_frames: int) -> Tensor:
        b, _, t = latents.shape[:3]
        if t != num_frames:
            raise ValueError(f"{t} latent frames cannot be {num_frames} frames: this autoencoder codes each alone")
        images = latents.transpose(1, 2).flatten(0, 1).to(self.net.dtype) / self.scale + self.shift  # (B·T, C, H', W')
        decoded = [pixel_shuffle(self.net.decode(part).sample, self.fold) for part in images.split(self.frames_at_once)]
        return torch.cat(decoded).unflatten(0, (b, t)).transpose(1, 2)  # (B, 3, T, H, W)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        check_frames(num_frames, height, width, self.spatial_multiple)
        return self.channels, num_frames, height // self.spatial_multiple, width // self.spatial_multiple

    def grid(self, num_frames: int, fps: Fraction) -> LatentGrid:
        return uniform_grid(num_frames, 1, fps)


def load_image(
    spec: AutoencoderSpec, folder: Path, identity: EncoderIdentity, device: torch.device, dtype: torch.dtype
) -> ImageAutoencoder:
    """The image autoencoder that diffusers saved in `folder`."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    net = load_net((AutoencoderKL, AutoencoderTiny), folder, device, dtype)
    return ImageAutoencoder(net, identity, spec.frames_at_once)


def fold_of(net: Any) -> int:
    """f where the network's 3·f² input channels are f × f pixels of 3 colours."""
    return math.isqrt(net.config.in_channels // 3)


def _block_widths(config: Any) -> tuple[int, ...]:
    return getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
