"""EnCodec and DAC (transformers) as continuous autoencoders: the encoder's output before quantisation, std 0."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from syncflow.clock import LatentGrid, uniform_grid
from syncflow.errors import UserError
from syncflow.models.autoencoders.protocol import Posterior, check_samples
from syncflow.models.resolve import quiet_loading
from syncflow.samples import EncoderIdentity

if TYPE_CHECKING:
    from syncflow.models.autoencoders import AutoencoderSpec


class CodecAutoencoder:
    """Latent frame i covers samples [i·hop, (i+1)·hop); the end of a waveform is padded with silence to a hop."""

    def __init__(self, net: Any, identity: EncoderIdentity, sample_rate: int, hop: int) -> None:
        self.net = net
        self.identity = identity
        self.sample_rate = sample_rate
        self.hop = hop
        self.audio_channels: int = getattr(net.config, "audio_channels", 1)

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Posterior:
        _, frames = self.latent_shape(waveform.shape[-1])
        padded = F.pad(waveform, (0, frames * self.hop - waveform.shape[-1])).to(self.net.dtype)
        latents = self.net.encoder(padded[:, None].expand(-1, self.audio_channels, -1))
        if latents.shape[-1] != frames:
            raise ValueError(f"{frames * self.hop} samples became {latents.shape[-1]} latent frames, not {frames}")
        return Posterior(latents, torch.zeros_like(latents))  # (B, C, T_a)

    @torch.no_grad()
    def decode(self, latents: Tensor, num_samples: int) -> Tensor:
        if latents.shape[-1] != self.latent_shape(num_samples)[1]:
            raise ValueError(f"{latents.shape[-1]} latent frames of {self.hop} samples cannot be {num_samples} samples")
        decoded = self.net.decoder(latents.to(self.net.dtype)).mean(1)  # (B, about T_a·hop)
        return F.pad(decoded, (0, max(0, num_samples - decoded.shape[-1])))[:, :num_samples]

    def latent_shape(self, num_samples: int) -> tuple[int, int]:
        check_samples(num_samples)
        return self.identity.channels, math.ceil(num_samples / self.hop)

    def grid(self, num_samples: int) -> LatentGrid:
        return uniform_grid(num_samples, self.hop, Fraction(self.sample_rate))


def load_encodec(
    spec: AutoencoderSpec, folder: Path, identity: EncoderIdentity, device: torch.device, dtype: torch.dtype
) -> CodecAutoencoder:
    """EnCodec (24 kHz causal or 48 kHz). Models that normalise loudness per chunk are coded as they are."""
    from transformers import EncodecModel

    net = _pretrained(EncodecModel, folder, device, dtype)
    return CodecAutoencoder(net, identity, net.config.sampling_rate, math.prod(net.config.upsampling_ratios))


def load_dac(
    spec: AutoencoderSpec, folder: Path, identity: EncoderIdentity, device: torch.device, dtype: torch.dtype
) -> CodecAutoencoder:
    """DAC (16, 24 or 44.1 kHz)."""
    from transformers import DacModel

    net = _pretrained(DacModel, folder, device, dtype)
    return CodecAutoencoder(net, identity, net.config.sampling_rate, math.prod(net.config.downsampling_ratios))


def _pretrained(cls: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    with quiet_loading():
        net, info = cls.from_pretrained(folder, local_files_only=True, dtype=dtype, output_loading_info=True)
    if info["missing_keys"]:
        raise UserError(f"{folder}: {len(info['missing_keys'])} weights are missing, so it is no {cls.__name__}")
    return net.to(device).eval().requires_grad_(False)
