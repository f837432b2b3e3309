"""Synchformer's network: 14 segments of picture and sound to 21 classes of offset.

A picture transformer (Motionformer, time and space divided) and a sound transformer (AST) see 14 segments of 0.64 s,
half overlapping; a third transformer compares them. Parameters bear the names of the public file.

Letters: B batch, S segments, T frames of a segment, L tokens, D dimensions, H heads.
Source: Iashin et al., "Synchformer: Efficient synchronization from sparse cues", 2024
(github.com/v-iashin/Synchformer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from syncflow.models.perception.layers import Mlp

CLASSES = 21
SEGMENT_FRAMES, MEL_BANDS, MEL_FRAMES = 16, 128, 66
_CUBE_FRAMES, _PATCH, _MEL_STRIDE = 2, 16, 10


@dataclass(frozen=True)
class SynchformerConfig:
    """Sizes; the defaults are those of the public file. 14 segments are 4.8 s."""

    width: int = 768
    blocks: int = 12
    heads: int = 12
    compare_blocks: int = 3
    compare_heads: int = 8
    side: int = 224
    segments: int = 14


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of (B, L, D) queries to (B, M, D) keys, in `heads` parts of D."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-2, -3) for x in (q, k, v))  # (B, H, L, D/H)
    return functional.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)


class DividedAttention(nn.Module):
    """Attention along one axis of a grid of tokens; the class token sees all, and is seen by all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, places: int, along_time: bool) -> Tensor:
        """(B, 1 + T * places, D) -> the same; tokens are ordered by time, then place."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        first = attend(q[:, :1], k, v, self.heads)  # (B, 1, D)

        def lines(tokens: Tensor) -> Tensor:
            grid = tokens[:, 1:].unflatten(1, (-1, places))  # (B, T, places, D)
            return grid.transpose(1, 2) if along_time else grid  # (B, lines, length, D)

        rows = lines(q)
        seen = [torch.cat([y[:, None, :1].expand(-1, rows.shape[1], -1, -1), lines(y)], dim=2) for y in (k, v)]
        out = attend(rows.flatten(0, 1), seen[0].flatten(0, 1), seen[1].flatten(0, 1), self.heads).view(rows.shape)
        out = out.transpose(1, 2) if along_time else out
        return self.proj(torch.cat([first, out.flatten(1, 2)], dim=1))


class PictureBlock(nn.Module):
    """Attention over time, then over space, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.attn, self.timeattn = DividedAttention(width, heads), DividedAttention(width, heads)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, places: int) -> Tensor:
        x = x + self.timeattn(self.norm3(x), places, along_time=True)
        x = x + self.attn(self.norm1(x), places, along_time=False)
        return x + self.mlp(self.norm2(x))


class Pool(nn.TransformerEncoderLayer):
    """One transformer layer whose class token sums up the others."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(
            width, heads, 4 * width, 0.0, nn.GELU(), layer_norm_eps=1e-6, norm_first=True, batch_first=True
        )
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, L, D) -> (B, D)."""
        return super().forward(torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1))[:, 0]


class Projection(nn.Module):
    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj


class Pictures(nn.Module):
    """Motionformer: (B, 3, 16, H, W) segments -> (B, 8, D), one vector per two frames."""

    def __init__(self, config: SynchformerConfig) -> None:
        super().__init__()
        width, self.places = config.width, (config.side // _PATCH) ** 2
        times = SEGMENT_FRAMES // _CUBE_FRAMES
        cube = (_CUBE_FRAMES, _PATCH, _PATCH)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.places, width))
        self.temp_embed = nn.Parameter(0.02 * torch.randn(1, times, width))
        self.patch_embed = Projection(nn.Conv2d(3, width, _PATCH, stride=_PATCH))  # in the file, and never used
        self.patch_embed_3d = Projection(nn.Conv3d(3, width, cube, stride=cube))
        self.blocks = nn.ModuleList(PictureBlock(width, config.heads) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.spatial_attn_agg = Pool(width, config.heads)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patch_embed_3d.proj(x).flatten(3).permute(0, 2, 3, 1)  # (B, T, places, D)
        grid = grid + self.pos_embed[:, None, 1:] + self.temp_embed[:, :, None]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = torch.cat([first, grid.flatten(1, 2)], dim=1)
        for block in self.blocks:
            tokens = block(tokens, self.places)
        grid = self.norm(tokens[:, 1:]).unflatten(1, (-1, self.places))
        return self.spatial_attn_agg(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])


class Named(nn.Module):
    """A level of the public names that holds others."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class SoundBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        projections = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        self.attention: Any = Named(attention=Named(**projections), output=Named(dense=nn.Linear(width, width)))
        self.intermediate: Any = Named(dense=nn.Linear(width, 4 * width))
        self.output: Any = Named(dense=nn.Linear(4 * width, width))
        self.layernorm_before, self.layernorm_after = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y, of = self.layernorm_before(x), self.attention.attention
        x = x + self.attention.output.dense(attend(of.query(y), of.key(y), of.value(y), self.heads))
        return x + self.output.dense(functional.gelu(self.intermediate.dense(self.layernorm_after(x))))


class SoundEmbeddings(nn.Module):
    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 2 + patches, width))
        self.patch_embeddings: Any = Named(projection=nn.Conv2d(1, width, _PATCH, stride=_MEL_STRIDE))

    def forward(self, mel: Tensor) -> Tensor:
        patches = self.patch_embeddings.projection(mel[:, None]).flatten(2).transpose(1, 2)  # (B, bands * times, D)
        first = torch.cat([self.cls_token, self.distillation_token], dim=1).expand(len(mel), -1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embeddings


class Sounds(nn.Module):
    """AST: (B, 128 bands, 66 frames) log mel segments -> (B, 6, D)."""

    def __init__(self, config: SynchformerConfig) -> None:
        super().__init__()
        width = config.width
        self.bands, self.times = ((n - _PATCH) // _MEL_STRIDE + 1 for n in (MEL_BANDS, MEL_FRAMES))
        self.ast: Any = Named(
            embeddings=SoundEmbeddings(width, self.bands * self.times),
            encoder=Named(layer=nn.ModuleList(SoundBlock(width, config.heads) for _ in range(config.blocks))),
            layernorm=nn.LayerNorm(width, eps=1e-12),
        )
        self.freq_attn_agg = Pool(width, config.heads)

    def forward(self, mel: Tensor) -> Tensor:
        tokens = self.ast.embeddings(mel)
        for block in self.ast.encoder.layer:
            tokens = block(tokens)
        grid = self.ast.layernorm(tokens)[:, 2:].unflatten(1, (self.bands, self.times)).transpose(1, 2)
        return self.freq_attn_agg(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])


class CompareAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(self.query(x), self.key(x), self.value(x), self.heads))


class CompareBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = CompareAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Compare(nn.Module):
    """(B, L, D) of pictures and (B, M, D) of sounds -> (B, 21) logits."""

    def __init__(self, config: SynchformerConfig) -> None:
        super().__init__()
        width = config.width
        tokens = 2 + config.segments * (SEGMENT_FRAMES // _CUBE_FRAMES + (MEL_FRAMES - _PATCH) // _MEL_STRIDE + 1)
        self.vis_in_lnorm, self.aud_in_lnorm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.OFF_tok, self.MOD_tok = (nn.Parameter(torch.randn(1, 1, width)) for _ in range(2))
        self.pos_emb_cfg: Any = Named()
        self.pos_emb_cfg.pos_emb = nn.Parameter(torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(CompareBlock(width, config.compare_heads) for _ in range(config.compare_blocks)))
        self.ln_f = nn.LayerNorm(width)
        self.off_head = nn.Linear(width, CLASSES)

    def forward(self, pictures: Tensor, sounds: Tensor) -> Tensor:
        offset, border = (token.expand(len(pictures), -1, -1) for token in (self.OFF_tok, self.MOD_tok))
        x = torch.cat([offset, self.vis_in_lnorm(pictures), border, self.aud_in_lnorm(sounds)], dim=1)
        return self.off_head(self.ln_f(self.blocks(x + self.pos_emb_cfg.pos_emb))[:, 0])


class SynchformerNetwork(nn.Module):
    def __init__(self, config: SynchformerConfig) -> None:
        super().__init__()
        self.vfeat_extractor, self.afeat_extractor = Pictures(config), Sounds(config)
        self.vproj, self.aproj = nn.Linear(config.width, config.width), nn.Linear(config.width, config.width)
        self.transformer = Compare(config)

    def forward(self, pictures: Tensor, mel: Tensor) -> Tensor:
        """(B, S, 3, 16, side, side) and (B, S, 128, 66) -> (B, 21) logits."""
        seen = torch.stack([self.vfeat_extractor(segment) for segment in pictures.unbind(1)], dim=1)  # (B, S, 8, D)
        heard = self.afeat_extractor(mel.flatten(0, 1)).unflatten(0, mel.shape[:2])  # (B, S, 6, D)
        return self.transformer(self.vproj(seen).flatten(1, 2), self.aproj(heard).flatten(1, 2))
