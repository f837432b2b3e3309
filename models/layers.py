"""Leaf modules of the towers. Each owns its parameters and knows how to start them (`reset_parameters`), so that a
model can be built on the meta device or partitioned by ZeRO-3 while it is being built.

Names of parameters are those of the public STDiT3 weights.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Start = Literal["xavier", "normal", "zero"]


class Linear(nn.Linear):
    """nn.Linear with the start of DiT: Xavier-uniform, N(0, 0.02²) or zero weights, zero bias."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, start: Start = "xavier") -> None:
        self.start = start
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        if self.start == "xavier":
            nn.init.xavier_uniform_(self.weight)
        elif self.start == "normal":
            nn.init.normal_(self.weight, std=0.02)
        else:
            nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension, computed in float32. Source: T5's layer norm."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Mlp(nn.Module):
    """Linear, GELU (tanh), Linear."""

    def __init__(
        self, width: int, hidden: int, out: int | None = None, *, start: Start = "xavier", last: Start | None = None
    ) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden, start=start)
        self.fc2 = Linear(hidden, out or width, start=last or start)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class ScalarEmbedder(nn.Module):
    """A number per example -> a vector: 128 cosines and 128 sines (longest period 2π·10⁴), then an MLP.

    Source: the timestep embedding of GLIDE and DiT; Open-Sora embeds fps in the same way.
    """

    FREQUENCIES = 128

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            Linear(2 * self.FREQUENCIES, width, start="normal"), nn.SiLU(), Linear(width, width, start="normal")
        )

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """(B,) -> (B, E)."""
        k = torch.arange(self.FREQUENCIES, dtype=torch.float32, device=value.device)
        angles = value.float()[:, None] * torch.exp(-math.log(10000) * k / self.FREQUENCIES)  # (B, 128)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))


class PatchEmbed(nn.Module):
    """Zero-pad latents to whole patches at the far sides, then one token per patch."""

    def __init__(self, patch: tuple[int, int, int], in_channels: int, width: int, norm: bool) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv3d(in_channels, width, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(width) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, T', H', W', E)."""
        pad_t, pad_h, pad_w = (-n % p for n, p in zip(x.shape[2:], self.patch, strict=True))
        if pad_t or pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h, 0, pad_t))
        x = self.proj(x).permute(0, 2, 3, 4, 1)  # (B, T', H', W', E)
        return self.norm(x) if self.norm is not None else x


class CaptionEmbedder(nn.Module):
    """Text states to the tower's width; where `null` is set, the learned null caption instead of the text.

    The null caption keeps the example's text mask, as in Open-Sora's training and sampling.
    """

    def __init__(self, in_channels: int, width: int, tokens: int) -> None:
        super().__init__()
        self.y_proj = Mlp(in_channels, width, width, start="normal")
        self.y_embedding = nn.Parameter(torch.empty(tokens, in_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.y_embedding, std=self.y_embedding.shape[-1] ** -0.5)

    def forward(self, text: Tensor, null: Tensor | None) -> Tensor:
        """(B, L, D), (B,) bool -> (B, L, E)."""
        if null is not None:
            text = torch.where(null[:, None, None], self.y_embedding[: text.shape[1]].to(text.dtype), text)
        return self.y_proj(text)


class FinalLayer(nn.Module):
    """LayerNorm modulated by t, then Linear to the channels of a patch."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = Linear(width, out_features, start="zero")
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.scale_shift_table, std=self.scale_shift_table.shape[-1] ** -0.5)

    def forward(self, x: Tensor, t: Tensor, t_clean: Tensor | None, noisy: Tensor | None) -> Tensor:
        """x (B, T, S, E), t (B, E) -> (B, T, S, out). Frames not `noisy` (B, T) are modulated by `t_clean`."""
        shift, scale = (self.scale_shift_table + t[:, None]).chunk(2, dim=1)  # (B, 1, E)
        out = self.norm_final(x) * (1 + scale[:, None]) + shift[:, None]
        if noisy is not None and t_clean is not None:
            shift, scale = (self.scale_shift_table + t_clean[:, None]).chunk(2, dim=1)
            # The public code modulates clean frames on top of the noisy modulation, and its weights grew with that.
            clean = self.norm_final(out) * (1 + scale[:, None]) + shift[:, None]
            out = torch.where(noisy[:, :, None, None], out, clean)
        return self.linear(out)
