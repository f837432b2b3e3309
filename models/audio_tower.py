"""The audio tower: post-norm transformer layers that look at the video tower's layers through the adaptors.

B audio examples, T_a audio latent frames, E width. It is told neither the text nor t, but by the adaptors.
Source: the figure.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncflow.models.attention import CrossAttention, SelfAttention
from syncflow.models.config import ModelConfig
from syncflow.models.layers import Linear, Mlp
from syncflow.models.positions import Rotation, index_positions, seconds_positions


class AudioLayer(nn.Module):
    """x = norm(x + self-attention(x)); x = norm(x + cross-attention(x, adaptor)); x = norm(x + MLP(x)).

    Every branch starts at zero, so that a new tower hands its input on: with post-norm, branches of random weights
    drown it under three norms a layer, and the loss stays at that of silence (docs/model.md has figures).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, heads = config.audio.hidden_size, config.audio.num_heads
        self.attn = SelfAttention(width, heads, last="zero")
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = CrossAttention(width, heads, context=config.video.hidden_size, last="zero")
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * config.audio.mlp_ratio), last="zero")
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        seen: Tensor,
        audio_mask: Tensor | None,
        seen_mask: Tensor | None,
        rotation: Rotation | None,
        seen_rotation: Rotation | None,
    ) -> Tensor:
        """x (n·B, T_a, E), seen (B, N + 1, E_v): consecutive n sounds share one video."""
        x = self.norm1(x + self.attn(x, key_mask=audio_mask))
        x = self.norm2(x + self.cross_attn(x, seen, seen_mask, rotation, seen_rotation))
        return self.norm3(x + self.mlp(x))


class AudioTower(nn.Module):
    """Noisy audio latents and the adaptors' sequences -> velocity. `begin`, `layer` for each i, `end`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        width, channels = config.audio.hidden_size, config.audio.in_channels
        self.input = Linear(channels, width)
        self.layers = nn.ModuleList(AudioLayer(config) for _ in range(config.video.depth))
        self.output = Linear(width, channels, start="zero")

    def begin(self, audio: Tensor, time_s: Tensor) -> Tensor:
        """(B, C, T_a) latents, (B, T_a) seconds -> (B, T_a, E)."""
        x = self.input(audio.transpose(1, 2).to(self.input.weight.dtype))
        if self.config.adaptor.time == "none":
            return x + index_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
        return x + seconds_positions(time_s, x.shape[2]).to(x.dtype)

    def layer(
        self,
        i: int,
        x: Tensor,
        seen: Tensor,
        *,
        audio_mask: Tensor | None,
        seen_mask: Tensor | None,
        rotation: Rotation | None,
        seen_rotation: Rotation | None,
    ) -> Tensor:
        args = (x, seen, audio_mask, seen_mask, rotation, seen_rotation)
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(self.layers[i], *args, use_reentrant=False)
        return self.layers[i](*args)

    def end(self, x: Tensor) -> Tensor:
        """(B, T_a, E) -> velocity (B, C, T_a) in float32."""
        return self.output(x).transpose(1, 2).float()
