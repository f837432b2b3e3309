"""The video tower: STDiT3, whose public Open-Sora weights load under their own names.

B batch, T latent frames (in patches), S = H·W patches per frame, E width, L text tokens.
Source: "Open-Sora 1.2", STDiT3; the figure of SyncFlow draws the same blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncflow.models.attention import CrossAttention, KeyValue, SelfAttention
from syncflow.models.config import VideoTowerConfig
from syncflow.models.layers import CaptionEmbedder, FinalLayer, Linear, Mlp, PatchEmbed, ScalarEmbedder
from syncflow.models.positions import Rotary, Rotation, spatial_positions


@dataclass
class TextContext:
    """Text as the blocks read it; `keys` holds every block's keys and values where they are kept for many steps."""

    tokens: Tensor | None  # (B, L, E); None once `keys` are made
    mask: Tensor | None  # (B, L) bool
    keys: list[KeyValue] | None = None

    def first(self, n: int) -> TextContext:
        """The first n examples."""

        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[:n]

        keys = None if self.keys is None else [KeyValue(kv.key[:n], kv.value[:n]) for kv in self.keys]
        return TextContext(cut(self.tokens), cut(self.mask), keys)


@dataclass
class Conditions:
    """What every block of one forward pass needs beside x."""

    modulation: Tensor  # (B, 1 or T, 6, E)
    t: Tensor  # (B, E) embedding of t and fps, for the output layer
    t_clean: Tensor | None  # (B, E) the same for frames that carry no noise
    noisy: Tensor | None  # (B, T) bool, false where a frame is given without noise
    rotation: Rotation
    frame_mask: Tensor | None  # (B, T) bool, false for padding frames
    text: TextContext


class Block(nn.Module):
    """Self-attention (within a frame, or along time at a place), attention to the text, MLP; modulated by t."""

    def __init__(self, config: VideoTowerConfig, *, temporal: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.temporal = temporal
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(width, config.num_heads, qk_norm=config.qk_norm)
        self.cross_attn = CrossAttention(width, config.num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.scale_shift_table, std=self.scale_shift_table.shape[-1] ** -0.5)

    def forward(self, x: Tensor, conditions: Conditions, text: Tensor | KeyValue) -> Tensor:
        """x (B, T, S, E); text (B, L, E) or this block's keys and values of it."""
        b, t, s, e = x.shape
        table = self.scale_shift_table + conditions.modulation  # (B, 1 or T, 6, E)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = table[:, :, None].unbind(dim=3)  # (B, 1 or T, 1, E)

        y = torch.addcmul(shift, self.norm1(x), 1 + scale)
        if self.temporal:
            mask = conditions.frame_mask
            mask = None if mask is None else mask.repeat_interleave(s, 0)  # (B·S, T)
            y = self.attn(y.transpose(1, 2).reshape(b * s, t, e), conditions.rotation, mask)
            y = y.view(b, s, t, e).transpose(1, 2)
        else:
            y = self.attn(y.reshape(b * t, s, e)).view(b, t, s, e)
        x = torch.addcmul(x, gate, y)

        y = self.cross_attn(x.reshape(b, t * s, e), text, conditions.text.mask)
        x = x + y.view(b, t, s, e)

        y = self.mlp(torch.addcmul(shift_mlp, self.norm2(x), 1 + scale_mlp))
        return torch.addcmul(x, gate_mlp, y)


class VideoTower(nn.Module):
    """Noisy video latents, t and text -> velocity of the video latents.

    `forward` speaks Open-Sora's language (`timestep` = 1000·(1 - t)). The dual transformer runs the same layers
    one by one: `begin`, `layer` for each i, `end`.
    """

    def __init__(self, config: VideoTowerConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.hidden_size, config.in_channels
        self.out_channels = 2 * channels if config.pred_sigma else channels
        self.checkpoint_activations = False
        pt, ph, pw = config.patch_size
        self.rope = Rotary(width // config.num_heads)
        self.x_embedder = PatchEmbed(config.patch_size, channels, width, norm=config.patch_norm)
        self.t_embedder = ScalarEmbedder(width)
        self.fps_embedder = ScalarEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), Linear(width, 6 * width, start="normal"))
        self.y_embedder = CaptionEmbedder(config.caption_channels, width, config.model_max_length)
        self.spatial_blocks = nn.ModuleList(Block(config, temporal=False) for _ in range(config.depth))
        self.temporal_blocks = nn.ModuleList(Block(config, temporal=True) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, pt * ph * pw * self.out_channels)

    @classmethod
    def from_open_sora(
        cls,
        weights: str | Path,
        config: VideoTowerConfig | Mapping[str, Any] | str | Path | None = None,
        *,
        sigma: bool = False,
    ) -> VideoTower:
        """The tower with Open-Sora's public weights.

        Args:
            weights: a .safetensors file, or a folder in the hub's layout (config.json, one file or shards).
            config: their configuration as a mapping, a JSON file or ours; None: config.json in the folder.
            sigma: keep the sigma half of the output, which SyncFlow has no use for.
        """
        from syncflow.models.open_sora import load_tower

        return load_tower(cls, weights, config, sigma)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        fps: Tensor | float | None = None,
        height: Tensor | float | None = None,
        width: Tensor | float | None = None,
        null_text: Tensor | None = None,
    ) -> Tensor:
        """Open-Sora's call.

        Args:
            x: (B, C, T, H, W) noisy latents.
            timestep: (B,) 1000 at noise, 0 at data.
            y: (B, 1, L, D) or (B, L, D) text states; mask: (B, L), 0 at padding.
            x_mask: (B, T in patches) true where a frame is noisy, false where it is given clean.
            fps, height, width: frames per second and size in pixels, (B,) or one for all.
            null_text: (B,) true where the caption is replaced by the null caption.
        Returns:
            (B, C or 2·C, T, H, W) float32.
        """
        if fps is None or height is None or width is None:
            raise TypeError("VideoTower needs fps, height and width")
        text = self.encode_text(y.flatten(0, 1) if y.dim() == 4 else y, mask, null_text)
        rate, rows, cols = (
            torch.as_tensor(value, dtype=torch.float32, device=x.device).flatten().expand(x.shape[0])
            for value in (fps, height, width)
        )
        noisy = None if x_mask is None else x_mask.bool()
        tokens, conditions = self.begin(x, timestep, text, rate, torch.stack([rows, cols], dim=-1), noisy)
        for i in range(self.config.depth):
            tokens = self.layer(i, tokens, conditions)
        return self.end(tokens, conditions, x)

    def encode_text(self, text: Tensor, mask: Tensor | None, null: Tensor | None = None) -> TextContext:
        """(B, L, D) states to the tower's width, once per forward pass."""
        tokens = self.y_embedder(text.to(self._dtype), null)
        if mask is None:
            return TextContext(tokens, None)
        mask = mask.reshape(mask.shape[0], -1).bool()
        return TextContext(tokens, mask.repeat(len(tokens) // len(mask), 1))  # one may serve caption and null caption

    def keep_text(self, text: TextContext) -> TextContext:
        """The same text with the keys and values of every block computed once, for sampling."""
        assert text.tokens is not None
        keys = [self._text_keys(block, text.tokens) for pair in self._pairs() for block in pair]
        return TextContext(None, text.mask, keys)

    def begin(
        self,
        x: Tensor,
        timestep: Tensor,
        text: TextContext,
        fps: Tensor,
        size: Tensor,
        noisy: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> tuple[Tensor, Conditions]:
        """Tokens (B, T, S, E) of latents (B, C, T, H, W), and what every layer shares."""
        tokens = self.x_embedder(x.to(self._dtype))  # (B, T, H, W, E)
        _, frames, rows, cols, width = tokens.shape
        positions = spatial_positions(rows, cols, width, size, self.config.input_sq_size)
        tokens = tokens.flatten(2, 3) + positions[:, None].to(tokens.dtype)  # (B, T, S, E)

        of_fps = self.fps_embedder(fps, self._dtype)
        t = self.t_embedder(timestep, self._dtype) + of_fps  # (B, E)
        modulation = self.t_block(t).unflatten(1, (1, 6, width))  # (B, 1, 6, E)
        t_clean = None
        if noisy is not None:
            t_clean = self.t_embedder(torch.zeros_like(timestep), self._dtype) + of_fps
            clean = self.t_block(t_clean).unflatten(1, (1, 6, width))
            modulation = torch.where(noisy[:, :, None, None], modulation, clean)  # (B, T, 6, E)
        return tokens, Conditions(modulation, t, t_clean, noisy, self.rope(frames), frame_mask, text)

    def layer(self, i: int, x: Tensor, conditions: Conditions) -> Tensor:
        """The i-th spatial and temporal blocks; the result is what the i-th adaptor reads."""
        for k, block in enumerate(self._pairs()[i]):
            text = conditions.text
            kept = text.keys[2 * i + k] if text.keys is not None else text.tokens
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, conditions, kept, use_reentrant=False)
            else:
                x = block(x, conditions, kept)
        return x

    def end(self, x: Tensor, conditions: Conditions, latents: Tensor) -> Tensor:
        """Velocity (B, C, T, H, W) in float32, cropped to the shape of `latents`."""
        x = self.final_layer(x, conditions.t, conditions.t_clean, conditions.noisy)  # (B, T, S, patch · C)
        pt, ph, pw = self.config.patch_size
        _, _, frames, rows, cols = latents.shape
        x = x.unflatten(2, (-(-rows // ph), -(-cols // pw))).unflatten(-1, (pt, ph, pw, self.out_channels))
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, C, T, pt, H, ph, W, pw)
        x = x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return x[:, :, :frames, :rows, :cols].float()

    def embed_t(self, timestep: Tensor) -> Tensor:
        """(B, E) embedding of the flow's time alone: the adaptors' extra token."""
        return self.t_embedder(timestep, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.x_embedder.proj.weight.dtype

    def _pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return list(zip(self.spatial_blocks, self.temporal_blocks, strict=True))

    @staticmethod
    def _text_keys(block: nn.Module, tokens: Tensor) -> KeyValue:
        assert isinstance(block, Block)
        return block.cross_attn.key_value(tokens)
