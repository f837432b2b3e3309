"""Flow matching: the straight path from noise to data, its velocity, and when to train on it.

z_t = (1 - t)·z_0 + t·z_1,  z_0 ~ N(0, I),  z_1 data,  v = dz_t/dt = z_1 - z_0.
Time t runs from noise (0) to data (1), one t per example for both modalities.
Source: the figure; "Flow Matching for Generative Modeling" (arXiv 2210.02747).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from syncflow.config import Config


class FlowConfig(Config):
    """At which t the model is trained, and how much each modality counts."""

    t_sampling: Literal["uniform", "logit_normal"] = "uniform"
    """Uniform on [0, 1], or sigmoid of N(t_mean, t_std²) (Stable Diffusion 3)."""
    t_mean: float = 0.0
    """Mean before the sigmoid; positive is nearer to data."""
    t_std: float = 1.0
    """Standard deviation before the sigmoid."""
    shift: bool = False
    """Move t towards noise for clips larger or longer than the base: there the same noise hides less."""
    base_pixels: int = 256 * 256
    """Pixels of a frame at which t is not shifted."""
    base_frames: float = 32
    """Frames at which t is not shifted."""
    video_weight: float = 1.0
    """Weight of the video's loss."""
    audio_weight: float = 1.0
    """Weight of the audio's loss."""


def sample_t(uniform: Tensor, config: FlowConfig, *, ratio: float | Tensor = 1.0) -> Tensor:
    """(n,) times in [0, 1] from (n,) numbers drawn uniformly from [0, 1); `ratio` from `shift_ratio`."""
    t = uniform
    if config.t_sampling == "logit_normal":
        t = torch.sigmoid(config.t_mean + config.t_std * torch.special.ndtri(uniform))
    return shift_t(t, ratio)


def shift_ratio(pixels: float, num_frames: int, config: FlowConfig) -> float:
    """How much noisier training and sampling should be than at the base size: √(pixels/base · frames/base).

    Source: Stable Diffusion 3 (resolution); Open-Sora 1.2 (length too).
    """
    return (pixels / config.base_pixels * num_frames / config.base_frames) ** 0.5 if config.shift else 1.0


def shift_t(t: Tensor, ratio: float | Tensor) -> Tensor:
    """Noise level u = 1 - t becomes r·u / (1 + (r - 1)·u); fixes 0 and 1. Source: Stable Diffusion 3, eq. 23."""
    u = 1 - t
    return 1 - ratio * u / (1 + (ratio - 1) * u)


def interpolate(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    """z_t = (1 - t)·z_0 + t·z_1 for t (B,) and z (B, …)."""
    t = _expand(t, z1)
    return (1 - t) * z0 + t * z1


def target_velocity(z0: Tensor, z1: Tensor) -> Tensor:
    """v = z_1 - z_0."""
    return z1 - z0


def flow_loss(velocity: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B,) mean squared error of each example over its frames that are there, in float32.

    Args:
        velocity, target: (B, C, T, …).
        mask: (B, T), true where there is something; None: everywhere. An example without frames has loss 0.
    """
    error = (velocity.float() - target.float()).square()
    error = error.mean(dim=(1, *range(3, error.dim())))  # (B, T)
    if mask is None:
        return error.mean(dim=1)
    mask = mask.to(error.dtype)
    return (error * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _expand(t: Tensor, like: Tensor) -> Tensor:
    return t.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
