"""Where a token is: in the picture, in the order of frames, and on the clock in seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SHORTEST_PERIOD_S, LONGEST_PERIOD_S = 0.04, 40.0

Rotation = Tensor
"""e^{i·angle} (…, head dim / 2), complex: by what each pair of channels of a query or key is turned."""


def spatial_positions(rows: int, cols: int, width: int, size: Tensor, input_sq_size: int) -> Tensor:
    """2-D sin-cos positions scaled by the size in pixels and to a square grid of as many patches.

    Column w has position w / scale · base / cols with scale = √(height·width) / input_sq_size and
    base = round(√(rows·cols)); rows likewise. The first half of the channels is for columns.

    Args:
        size: (B, 2) height and width in pixels.
    Returns:
        (B, rows·cols, width) float32.
    Source: Open-Sora's PositionEmbedding2D.
    """
    base = round((rows * cols) ** 0.5)
    scale = (size.double().prod(dim=1).sqrt() / input_sq_size).float()[:, None]  # (B, 1)
    half = width // 2
    k = torch.arange(0, half, 2, dtype=torch.float32, device=size.device)
    frequency = 1.0 / (10000 ** (k / half))  # (half / 2,)

    def embed(n: int) -> Tensor:
        position = torch.arange(n, dtype=torch.float32, device=size.device) / scale * (base / n)  # (B, n)
        angle = position[:, :, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)  # (B, n, half)

    batch = size.shape[0]
    by_col = embed(cols)[:, None].expand(batch, rows, cols, half)
    by_row = embed(rows)[:, :, None].expand(batch, rows, cols, half)
    return torch.cat([by_col, by_row], dim=-1).reshape(batch, rows * cols, width)


def index_positions(n: int, width: int, device: torch.device) -> Tensor:
    """(n, width) sinusoid of the token's index. Source: the figure; "Attention Is All You Need"."""
    frequency = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angle = torch.arange(n, device=device)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def seconds_positions(time_s: Tensor, width: int) -> Tensor:
    """Sinusoid of a time in seconds, periods from 40 ms to 40 s in geometric steps: (B, N) -> (B, N, width)."""
    angle = time_s.float()[..., None] * _clock_frequencies(width // 2, time_s.device)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def seconds_rotation(time_s: Tensor, head_dim: int) -> Rotation:
    """Rotary angles of a time in seconds: (B, N) -> (B, 1, N, head_dim / 2), to broadcast over heads."""
    return _turns(time_s.float()[:, None, :, None] * _clock_frequencies(head_dim // 2, time_s.device))


def _clock_frequencies(n: int, device: torch.device) -> Tensor:
    periods_s = torch.logspace(math.log10(SHORTEST_PERIOD_S), math.log10(LONGEST_PERIOD_S), n, device=device)
    return 2 * math.pi / periods_s


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of neighbouring channels by its angle: x (…, N, head dim)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (…, N, head dim / 2)
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def _turns(angle: Tensor) -> Rotation:
    return torch.polar(torch.ones_like(angle), angle)


class Rotary(nn.Module):
    """Rotary angles of the index along time, from frequencies that travel with the weights (`rope.freqs`).

    The frequencies stay in float32 when the model is cast: in bf16 the hundredth frame would be off by its place.
    Source: rotary_embedding_torch, whose `freqs` the public weights hold.
    """

    freqs: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.register_buffer("freqs", torch.empty(head_dim // 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        k = torch.arange(0, self.head_dim, 2, dtype=torch.float32)
        with torch.no_grad():
            self.freqs.copy_(1.0 / 10000 ** (k / self.head_dim))

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Rotary:
        kept = self.freqs
        super()._apply(fn, *args, **kwargs)
        if kept.is_meta or self.freqs.is_meta:
            self.freqs = self.freqs.float()
        else:
            self.freqs = kept.to(self.freqs.device)
        return self

    def forward(self, n: int) -> Rotation:
        """(n, head dim / 2) of the indices 0 … n - 1."""
        return _turns(torch.arange(n, dtype=torch.float32, device=self.freqs.device)[:, None] * self.freqs)
