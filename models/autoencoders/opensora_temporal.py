"""The causal temporal half of Open-Sora's VAE 1.2, under its public parameter names.

Shapes: B clips, C channels, T frames, h × w positions of the spatial latent.
Source: hpcai-tech/OpenSora-VAE-v1.2 (weights); after MAGVIT-v2, Yu et al. 2023, arXiv 2310.05737.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TemporalConfig:
    """Under the public code's names; the defaults are the public weights'."""

    filters: int = 128
    num_res_blocks: int = 4
    num_groups: int = 32
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    in_out_channels: int = 4
    latent_embed_dim: int = 4
    embed_dim: int = 4

    @property
    def stride(self) -> int:
        """Frames per latent frame."""
        return 2 ** sum(self.temporal_downsample)


class CausalConv3d(nn.Module):
    """A 3-D convolution that sees zeros before the first frame and no future: output t ends at input t · stride."""

    def __init__(self, inputs: int, outputs: int, size: int, *, time_stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, size, stride=(time_stride, 1, 1), bias=bias)
        side = size // 2
        self.padding = (side, side, side, side, size - time_stride, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding) if self.conv.kernel_size[0] > 1 else x)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = CausalConv3d(inputs, outputs, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.conv2 = CausalConv3d(outputs, outputs, 3, bias=False)
        self.conv3 = CausalConv3d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv3(x)
        x = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(x))) + residual


def _res_blocks(config: TemporalConfig, inputs: int, outputs: int) -> nn.ModuleList:
    widths = [inputs] + [outputs] * config.num_res_blocks
    return nn.ModuleList(ResBlock(a, b, config.num_groups) for a, b in itertools.pairwise(widths))


class Encoder(nn.Module):
    """(B, C, T, h, w), T a multiple of the stride -> features (B, 2·C, T / stride, h, w)."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        widths = [config.filters * m for m in config.channel_multipliers]
        self.conv_in = CausalConv3d(config.in_out_channels, config.filters, 3, bias=False)
        inputs = [config.filters, *widths[:-1]]
        self.block_res_blocks = nn.ModuleList(_res_blocks(config, a, b) for a, b in zip(inputs, widths, strict=True))
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, width, 3, time_stride=2) if halved else nn.Identity()
            for width, halved in zip(widths[:-1], config.temporal_downsample, strict=True)
        )
        self.res_blocks = _res_blocks(config, widths[-1], widths[-1])
        self.norm1 = nn.GroupNorm(config.num_groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], 2 * config.latent_embed_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        for block in self.res_blocks:
            x = block(x)
        return self.conv2(F.silu(self.norm1(x)))


class Decoder(nn.Module):
    """(B, C, T_v, h, w) -> (B, C, T_v · stride, h, w)."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.doubled = config.temporal_downsample
        widths = [config.filters * m for m in config.channel_multipliers]
        self.conv1 = CausalConv3d(config.latent_embed_dim, widths[-1], 3)
        self.res_blocks = _res_blocks(config, widths[-1], widths[-1])
        inputs = [*widths[1:], widths[-1]]  # level i takes what level i + 1 gave
        self.block_res_blocks = nn.ModuleList(_res_blocks(config, a, b) for a, b in zip(inputs, widths, strict=True))
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, 2 * width, 3) if doubled else nn.Identity()
            for width, doubled in zip(widths[1:], self.doubled, strict=True)
        )
        self.norm1 = nn.GroupNorm(config.num_groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], config.in_out_channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv1(z)
        for block in self.res_blocks:
            x = block(x)
        for level in reversed(range(len(self.block_res_blocks))):
            for block in self.block_res_blocks[level]:  # type: ignore[attr-defined]
                x = block(x)
            if level > 0:
                x = self.conv_blocks[level - 1](x)
                if self.doubled[level - 1]:
                    x = _unfold_time(x)
        return self.conv_out(F.silu(self.norm1(x)))


def _unfold_time(x: Tensor) -> Tensor:
    """(B, C·2, T, h, w) -> (B, C, T·2, h, w): neighbouring channels become neighbouring frames."""
    b, c, t, h, w = x.shape
    return x.view(b, c // 2, 2, t, h, w).transpose(2, 3).reshape(b, c // 2, 2 * t, h, w)


class TemporalVAE(nn.Module):
    """Codes one chunk of spatial latents; zeros at the front make its length a multiple of the stride."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv3d(2 * config.latent_embed_dim, 2 * config.embed_dim, 1)
        self.post_quant_conv = CausalConv3d(config.embed_dim, config.latent_embed_dim, 1)
        self.decoder = Decoder(config)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T, h, w) -> mean, std (B, C, ceil(T / stride), h, w)."""
        padded = F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.config.stride, 0))
        mean, log_variance = self.quant_conv(self.encoder(padded)).chunk(2, dim=1)
        return mean, torch.exp(0.5 * log_variance.clamp(-30, 20))

    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        """(B, C, ceil(T / stride), h, w) -> (B, C, T, h, w)."""
        return self.decoder(self.post_quant_conv(z))[:, :, -num_frames % self.config.stride :]
