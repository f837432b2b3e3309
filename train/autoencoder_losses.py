"""What a reconstruction is worth: pixels, edges at several scales, spectra at several resolutions, onsets, the KL."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from syncflow.sync import audio_onsets, match_events

STFT_SIZES = (1024, 512, 256, 128)


def kl_to_standard_normal(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std²) ‖ N(0, 1)) = (mean² + std² − 1)/2 − ln std, in nats per latent value."""
    return ((mean.square() + std.square() - 1) / 2 - std.clamp(min=1e-6).log()).mean()


def edge_loss(decoded: Tensor, target: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of horizontal and vertical differences, at full size and `scales` − 1 halvings.

    It stands in for a perceptual network (autoencoder_perceptual.py) where none is at hand: it asks for edges in the
    right place.

    Args:
        decoded, target: (n, 3, H, W).
    """
    losses = []
    for scale in range(scales):
        if scale:
            decoded, target = F.avg_pool2d(decoded, 2), F.avg_pool2d(target, 2)
        error = decoded - target
        losses.append(error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    return torch.stack(losses).mean()


def stft_distance(decoded: Tensor, target: Tensor, sizes: tuple[int, ...] = STFT_SIZES) -> Tensor:
    """Multi-resolution spectral distance, mean over window sizes of convergence + log-magnitude difference.

        ‖ |S| − |Ŝ| ‖ / ‖ |S| ‖  +  mean | ln |S| − ln |Ŝ| |,   Hann windows, hop = size / 4, |·| >= 1e-3

    Args:
        decoded, target: (n, L).

    Source: Yamamoto et al. 2020, Parallel WaveGAN, arXiv 1910.11480, equations 4 to 6.
    """
    losses = []
    for size in sizes:
        window = torch.hann_window(size, device=target.device)
        ours, theirs = (
            torch.stft(wave, size, size // 4, window=window, return_complex=True).abs().clamp(min=1e-3)
            for wave in (decoded, target)
        )
        convergence = torch.linalg.vector_norm(theirs - ours) / torch.linalg.vector_norm(theirs)
        losses.append(convergence + (theirs.log() - ours.log()).abs().mean())
    return torch.stack(losses).mean()


def onset_f1(source: np.ndarray, decoded: np.ndarray, sample_rate: int, tolerance_s: float = 0.05) -> float:
    """Whether what starts in `source` starts in `decoded`, within `tolerance_s`: F1 of the onsets, 0 if there are none.

    Args:
        source, decoded: (n, L).
    """
    matched = total = 0
    for ours, theirs in zip(decoded, source, strict=True):
        here, there = audio_onsets(ours, sample_rate), audio_onsets(theirs, sample_rate)
        matched += len(match_events(there, here, tolerance_s))
        total += len(here) + len(there)
    return 2 * matched / total if total else 0.0


def psnr_db(decoded: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over all values: 10 log10(2² / MSE) for pictures in [-1, 1]."""
    return 10 * torch.log10(4 / (decoded.clamp(-1, 1) - target).square().mean().clamp(min=1e-10))
