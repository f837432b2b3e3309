"""Modality adaptors: what the audio tower is shown of each video layer.

B batch, T video latent frames, H × W patches per frame, E video width, N tokens handed on.
Source: the figure; grouping, residual and time in seconds are ours (docs/model.md has what each is worth).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncflow.models.attention import SelfAttention
from syncflow.models.config import AdaptorConfig, VideoTowerConfig
from syncflow.models.layers import Linear
from syncflow.models.positions import seconds_positions


@dataclass
class AdaptorGrid:
    """The video tokens' places, shared by all adaptors of one forward pass."""

    rows: int
    cols: int
    time_s: Tensor  # (B, T) middle of each latent frame
    frame_mask: Tensor | None  # (B, T) bool, false for padding frames


class Adaptor(nn.Module):
    """Temporal block output -> tokens for the audio tower (t's token is added by the caller).

    figure:  Linear(norm(attention(x))) over all T·H·W patches
    aligned: x = groups of patches projected to one token; Linear(norm(x + attention(norm x))) + sinusoid(seconds)
    """

    def __init__(self, config: AdaptorConfig, video: VideoTowerConfig) -> None:
        super().__init__()
        width = video.hidden_size
        self.config = config
        if config.group is not None:
            self.gather = Linear(config.group[0] * config.group[1] * width, width)
        if config.residual:
            self.norm_in = nn.LayerNorm(width)
        self.attn = SelfAttention(width, config.num_heads or video.num_heads)
        self.norm = nn.LayerNorm(width)
        self.linear = Linear(width, width)

    def forward(self, x: Tensor, grid: AdaptorGrid) -> Tensor:
        """x (B, T, H·W, E) -> (B, N, E), N = T · `per_frame`."""
        if self.config.group is not None:
            x = self.gather(self._groups(x, grid))
        per_frame = x.shape[2]
        x = x.flatten(1, 2)  # (B, N, E)
        mask = None if grid.frame_mask is None else grid.frame_mask.repeat_interleave(per_frame, 1)
        if self.config.residual:
            x = x + self.attn(self.norm_in(x), key_mask=mask)
        else:
            x = self.attn(x, key_mask=mask)
        x = self.linear(self.norm(x))
        if self.config.time == "sinusoid":
            time_s = grid.time_s.repeat_interleave(per_frame, 1)
            x = x + seconds_positions(time_s, x.shape[-1]).to(x.dtype)
        return x

    def _groups(self, x: Tensor, grid: AdaptorGrid) -> Tensor:
        """(B, T, H·W, E) -> (B, T, groups, cells of a group · E)."""
        assert self.config.group is not None
        b, t, _, e = x.shape
        (cell_rows, cell_cols), (gh, gw) = self.config.cells, self.config.group
        if (grid.rows, grid.cols) != (cell_rows, cell_cols):
            picture = x.reshape(b * t, grid.rows, grid.cols, e).permute(0, 3, 1, 2)
            x = F.adaptive_avg_pool2d(picture, (cell_rows, cell_cols)).permute(0, 2, 3, 1)
        x = x.reshape(b, t, cell_rows // gh, gh, cell_cols // gw, gw, e)
        return x.transpose(3, 4).reshape(b, t, -1, gh * gw * e)


def tokens_per_frame(config: AdaptorConfig, rows: int, cols: int) -> int:
    """How many adaptor tokens a latent frame of rows × cols patches becomes."""
    if config.group is None:
        return rows * cols
    return (config.cells[0] // config.group[0]) * (config.cells[1] // config.group[1])


def with_t(tokens: Tensor, t: Tensor) -> Tensor:
    """The embedding of t as one more token: (B, N, E), (B, E) -> (B, N + 1, E)."""
    return torch.cat([tokens, t[:, None].to(tokens.dtype)], dim=1)
