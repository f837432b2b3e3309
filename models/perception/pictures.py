"""Frames as networks want them. T frames of H x W pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def fitted(frames: np.ndarray, side: int) -> Tensor:
    """(T, H, W, 3) uint8 -> (T, 3, side, side) in 0..1: the shorter side scaled (bicubic), the middle cut out."""
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255  # (T, 3, H, W)
    height, width = pictures.shape[-2:]
    if min(height, width) != side:
        scale = side / min(height, width)
        size = (max(side, round(height * scale)), max(side, round(width * scale)))
        pictures = functional.interpolate(pictures, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        height, width = size
    top, left = (height - side) // 2, (width - side) // 2
    return pictures[..., top : top + side, left : left + side]


def normalised(frames: np.ndarray, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(T, H, W, 3) uint8 -> (T, 3, side, side) float32, fitted and normalised per channel."""
    return (fitted(frames, side) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
