"""Stable Audio's autoencoder (diffusers AutoencoderOobleck) for mono sound.

A network of f > 2 channels sees f successive samples folded into channels, which spares it the costly full rate.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from syncflow.clock import LatentGrid, uniform_grid
from syncflow.models.autoencoders.diffusers_net import load_net
from syncflow.models.autoencoders.protocol import Posterior, check_samples
from syncflow.samples import EncoderIdentity

if TYPE_CHECKING:
    from syncflow.models.autoencoders import AutoencoderSpec


class OobleckAutoencoder:
    """Latent frame i covers samples [i·hop, (i+1)·hop); the end of a waveform is padded with silence to a hop.

    A stereo network hears the mono waveform on both sides; what it decodes is mixed down to their mean.
    """

    def __init__(self, net: Any, identity: EncoderIdentity) -> None:
        self.net = net
        self.identity = identity
        self.sample_rate: int = net.sampling_rate
        self.channels = identity.channels
        self.audio_channels: int = net.config.audio_channels
        self.fold = self.audio_channels if self.audio_channels > 2 else 1
        self.hop: int = net.hop_length * self.fold

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Posterior:
        _, frames = self.latent_shape(waveform.shape[-1])
        padded = F.pad(waveform, (0, frames * self.hop - waveform.shape[-1])).to(self.net.dtype)
        heard = fold(padded, self.fold).expand(-1, self.audio_channels, -1)  # (B, channels, L / fold)
        # The network parametrises std as softplus(s) + 1e-4; diffusers' `std` is that, its `scale` is s.
        posterior = self.net.encode(heard).latent_dist
        return Posterior(posterior.mean, posterior.std)  # (B, C, T_a)

    @torch.no_grad()
    def decode(self, latents: Tensor, num_samples: int) -> Tensor:
        if latents.shape[-1] != self.latent_shape(num_samples)[1]:
            raise ValueError(f"{latents.shape[-1]} latent frames of {self.hop} samples cannot be {num_samples} samples")
        decoded = self.net.decode(latents.to(self.net.dtype)).sample
        decoded = unfold(decoded) if self.fold > 1 else decoded.mean(1)  # (B, T_a·hop)
        return F.pad(decoded, (0, max(0, num_samples - decoded.shape[-1])))[:, :num_samples]

    def latent_shape(self, num_samples: int) -> tuple[int, int]:
        check_samples(num_samples)
        return self.channels, math.ceil(num_samples / self.hop)

    def grid(self, num_samples: int) -> LatentGrid:
        return uniform_grid(num_samples, self.hop, Fraction(self.sample_rate))


def fold(waveform: Tensor, samples: int) -> Tensor:
    """(B, L) -> (B, samples, L / samples): channel c of step i is sample i · samples + c."""
    return waveform.unflatten(1, (-1, samples)).transpose(1, 2)


def unfold(folded: Tensor) -> Tensor:
    """(B, samples, n) -> (B, n · samples), the inverse of `fold`."""
    return folded.transpose(1, 2).flatten(1)


def load_oobleck(
    spec: AutoencoderSpec, folder: Path, identity: EncoderIdentity, device: torch.device, dtype: torch.dtype
) -> OobleckAutoencoder:
    """The Oobleck autoencoder that diffusers saved in `folder`."""
    from diffusers import AutoencoderOobleck

    return OobleckAutoencoder(load_net((AutoencoderOobleck,), folder, device, dtype), identity)
