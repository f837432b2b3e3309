"""The small autoencoders of the nano models: fresh, untrained networks of the same classes as the large ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field, field_validator

from syncflow.config import Config

INITIAL_STD = 0.05  # of the posterior


class NanoVideoConfig(Config):
    """A small diffusers AutoencoderKL, frame by frame: 8 × 8 pixels become one latent position."""

    fold: int = 8
    """fold × fold pixels are channels of the first layer; full-size layers would be most of the work."""
    block_out_channels: tuple[int, ...] = (96,)
    """Channels after folding and after each halving; fold · 2^halvings pixels are one latent position."""
    layers_per_block: int = 1
    """Residual blocks at each size."""
    latent_channels: int = 4
    """Channels of a latent."""
    norm_num_groups: int = 1
    """Groups of the group norms; divides every width."""


class NanoAudioConfig(Config):
    """A small diffusers AutoencoderOobleck, mono: 400 samples at 16 kHz become one latent, 40 a second."""

    sample_rate: int = 16000
    """Hz."""
    fold: int = Field(default=20, ge=1)
    """Samples that are channels of the first layer (1 or more than 2); full-rate layers would be most of the work."""
    downsampling_ratios: tuple[int, ...] = (2, 10)
    """Strides (even); their product times fold is the hop."""
    channel_multiples: tuple[int, ...] = (2, 4)
    """Widths after each stride, times 2 · latent_channels in the encoder and `decoder_channels` in the decoder."""
    latent_channels: int = 8
    """Channels of a latent."""
    decoder_channels: int = 32
    """Width of the decoder at its highest rate."""

    @field_validator("fold")
    @classmethod
    def _not_stereo(cls, value: int) -> int:
        if value == 2:
            raise ValueError("2 channels are stereo; fold 1 sample or more than 2")
        return value

    @property
    def hop(self) -> int:
        """Samples per latent."""
        return self.fold * math.prod(self.downsampling_ratios)


def new_nano_video_autoencoder(seed: int, config: NanoVideoConfig | None = None) -> Any:
    """An untrained AutoencoderKL: a pure function of seed and config, whatever the global generator's state."""
    from diffusers import AutoencoderKL

    config = config or NanoVideoConfig()
    levels = len(config.block_out_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: Any = AutoencoderKL(
            in_channels=3 * config.fold**2,
            out_channels=3 * config.fold**2,
            block_out_channels=config.block_out_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            scaling_factor=1.0,
        )
    # Moments are (mean, ln std²). From std 1 the first hundreds of steps go into learning to be heard above the noise.
    with torch.no_grad():
        net.quant_conv.weight[config.latent_channels :] = 0
        net.quant_conv.bias[config.latent_channels :] = 2 * math.log(INITIAL_STD)
    return net


def new_nano_audio_autoencoder(seed: int, config: NanoAudioConfig | None = None) -> Any:
    """An untrained AutoencoderOobleck: a pure function of seed and config, whatever the global generator's state."""
    from diffusers import AutoencoderOobleck

    config = config or NanoAudioConfig()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: Any = AutoencoderOobleck(
            # diffusers takes the 2 · C moments from as many channels as the encoder's first layer has
            encoder_hidden_size=2 * config.latent_channels,
            downsampling_ratios=list(config.downsampling_ratios),
            channel_multiples=list(config.channel_multiples),
            decoder_channels=config.decoder_channels,
            decoder_input_channels=config.latent_channels,
            audio_channels=config.fold,
            sampling_rate=config.sample_rate,
        )
    with torch.no_grad():  # moments are (mean, s) with std = softplus(s) + 1e-4; the layer is weight-normed
        net.encoder.conv2.weight_g[config.latent_channels :] = 1e-3
        net.encoder.conv2.bias[config.latent_channels :] = math.log(math.expm1(INITIAL_STD))
    return net
