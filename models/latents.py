"""Latents as autoencoders speak them, and as the model does: mean 0 and standard deviation 1 per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from syncflow.samples import ChannelStats


def normalise(latents: Tensor, stats: ChannelStats | None) -> Tensor:
    """(z - mean) / std per channel, (B, C, …)."""
    if stats is None:
        return latents
    mean, std = _per_channel(stats, latents)
    return (latents - mean) / std


def denormalise(latents: Tensor, stats: ChannelStats | None) -> Tensor:
    """The inverse of `normalise`."""
    if stats is None:
        return latents
    mean, std = _per_channel(stats, latents)
    return latents * std + mean


def _per_channel(stats: ChannelStats, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (1, -1, *[1] * (like.dim() - 2))
    mean = torch.tensor(stats.mean, device=like.device, dtype=like.dtype).view(shape)
    return mean, torch.tensor(stats.std, device=like.device, dtype=like.dtype).view(shape)
