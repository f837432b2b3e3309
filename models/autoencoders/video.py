"""Video autoencoders of diffusers with a causal first frame: Wan, CogVideoX, LTX, HunyuanVideo.

They take s·k + 1 frames, s the stride in time: latent 0 holds one frame, each later one s frames. Other lengths are
brought there by repeating the last frame; the grid ends where the clip does.

    z = (z' − mean) · scale, per channel, as each family's own pipeline normalises
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from syncflow.clock import LatentGrid, Span, causal_grid
from syncflow.models.autoencoders.diffusers_net import load_net
from syncflow.models.autoencoders.protocol import Posterior, check_frames
from syncflow.samples import EncoderIdentity

if TYPE_CHECKING:
    from syncflow.models.autoencoders import AutoencoderSpec


@dataclass(frozen=True)
class Layout:
    """What differs between families."""

    time_stride: int
    spatial_multiple: int
    mean: Tensor  # (C,) or (1,)
    scale: Tensor  # (C,) or (1,)
    timestep: bool = False
    """The decoder also removes noise and is told how much: none."""


class CausalVideoAutoencoder:
    def __init__(self, net: Any, identity: EncoderIdentity, layout: Layout) -> None:
        self.net = net
        self.identity = identity
        self.layout = layout
        self.channels = identity.channels
        self.spatial_multiple = layout.spatial_multiple

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Posterior:
        t = frames.shape[2]
        self.latent_shape(t, *frames.shape[3:])
        last = frames[:, :, -1:].expand(-1, -1, self._padded(t) - t, -1, -1)
        posterior = self.net.encode(torch.cat([frames, last], dim=2).to(self.net.dtype)).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        shift, scale = self._normalisation(mean.device)
        return Posterior((mean - shift) * scale, std * scale)  # (B, C, T_v, H', W')

    @torch.no_grad()
    def decode(self, latents: Tensor, num_frames: int) -> Tensor:
        expected = self._latent_frames(num_frames)
        if latents.shape[2] != expected:
            raise ValueError(f"{num_frames} frames have {expected} latent frames, got {latents.shape[2]}")
        shift, scale = self._normalisation(latents.device)
        z = (latents.float() / scale + shift).to(self.net.dtype)
        clean = {"temb": torch.zeros(len(z), device=z.device, dtype=z.dtype)} if self.layout.timestep else {}
        return self.net.decode(z, **clean).sample[:, :, :num_frames]  # (B, 3, T, H, W)

    def _normalisation(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Latents are (z - mean) · scale per channel: both (1, C, 1, 1, 1)."""
        mean, scale = (
            part.view(1, -1, 1, 1, 1).to(device, torch.float32) for part in (self.layout.mean, self.layout.scale)
        )
        return mean, scale

    def _latent_frames(self, num_frames: int) -> int:
        return 1 + -(-(num_frames - 1) // self.layout.time_stride)

    def _padded(self, num_frames: int) -> int:
        return 1 + (self._latent_frames(num_frames) - 1) * self.layout.time_stride

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        multiple = self.spatial_multiple
        check_frames(num_frames, height, width, multiple)
        return self.channels, self._latent_frames(num_frames), height // multiple, width // multiple

    def grid(self, num_frames: int, fps: Fraction) -> LatentGrid:
        end_s = num_frames / fps
        padded = causal_grid(self._padded(num_frames), self.layout.time_stride, fps)
        return LatentGrid(tuple(Span(span.start_s, min(span.end_s, end_s)) for span in padded.spans))


def load_wan(
    spec: AutoencoderSpec, folder: Path, identity: EncoderIdentity, device: torch.device, dtype: torch.dtype
) -> CausalVideoAutoencoder:
    """Wan 2.1 (8 × 8 × 4, 16 channels) and 2.2 (16 × 16 × 4, 48 channels)."""
    from diffusers import AutoencoderKLWan

    net = load_net((AutoencoderKLWan,), folder, device, dtype)
    mean, std = torch.tensor(net.config.latents_mean), torch.tensor(net.config.latents_std)
    layout = Layout(net.config.scale_factor_temporal, net.config.scale_factor_spatial, mean, 1 / std)
    return CausalVideoAutoencoder(net, identity, layout)


def load_cogvideox(
    spec: AutoencoderSpec, folder: Path, identity: EncoderIdentity, device: torch.device, dtype: torch.dtype
) -> CausalVideoAutoencoder:
    """CogVideoX (8 × 8 × 4, 16 channels)."""
    from diffusers import AutoencoderKLCogVideoX

    net = load_net((AutoencoderKLCogVideoX,), folder, device, dtype)
    layout = Layout(
        time_stride=int(net.config.temporal_compression_ratio),
        spatial_multiple=2 ** (len(net.config.block_out_channels) - 1),
        mean=torch.tensor([net.config.shift_factor or 0.0]),
        scale=torch.tensor([net.config.scaling_factor]),
    )
    return CausalVideoAutoencoder(net, identity, layout)


def load_ltx(
    spec: AutoencoderSpec, folder: Path, identity: EncoderIdentity, device: torch.device, dtype: torch.dtype
) -> CausalVideoAutoencoder:
    """LTX-Video (32 × 32 × 8, 128 channels); its statistics are part of its weights."""
    from diffusers import AutoencoderKLLTXVideo

    net = load_net((AutoencoderKLLTXVideo,), folder, device, dtype)
    layout = Layout(
        time_stride=net.temporal_compression_ratio,
        spatial_multiple=net.spatial_compression_ratio,
        mean=net.latents_mean,
        scale=net.config.scaling_factor / net.latents_std.float(),
        timestep=net.config.timestep_conditioning,
    )
    return CausalVideoAutoencoder(net, identity, layout)


def load_hunyuan(
    spec: AutoencoderSpec, folder: Path, identity: EncoderIdentity, device: torch.device, dtype: torch.dtype
) -> CausalVideoAutoencoder:
    """HunyuanVideo (8 × 8 × 4, 16 channels); above 16 frames it codes overlapping tiles in time, as published."""
    from diffusers import AutoencoderKLHunyuanVideo

    net = load_net((AutoencoderKLHunyuanVideo,), folder, device, dtype)
    layout = Layout(
        time_stride=net.config.temporal_compression_ratio,
        spatial_multiple=net.config.spatial_compression_ratio,
        mean=torch.zeros(1),
        scale=torch.tensor([net.config.scaling_factor]),
    )
    return CausalVideoAutoencoder(net, identity, layout)
