"""PaSST: what a sound of 10 s is (527 AudioSet classes) and a 768-d embedding of it.

Letters: B batch, L samples, F x T patches, W width.
Source: Koutini et al., "Efficient training of audio transformers with patchout", 2022 (github.com/kkoutini/PaSST).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from syncflow.models.perception.efficientat import SAMPLE_RATE, log_mel
from syncflow.models.perception.sounds import resample

_PATCH, _STRIDE, _BANDS, _FRAMES, _CLASSES = 16, 10, 128, 998, 527
_SECONDS = 10


@dataclass(frozen=True)
class PasstConfig:
    """Sizes; the defaults are those of the public file."""

    width: int = 768
    blocks: int = 12
    heads: int = 12


class Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, _PATCH, stride=_STRIDE)


class PasstNetwork(nn.Module):
    """A vision transformer of spectrograms, positions of time and of frequency apart; parameters bear public names."""

    def __init__(self, config: PasstConfig) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        width = config.width
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.cls_token, self.dist_token = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, width))
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, width, _BANDS // _STRIDE, 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, width, 1, _FRAMES // _STRIDE))
        self.patch_embed = Patches(width)
        self.blocks = nn.Sequential(
            *(Block(width, config.heads, qkv_bias=True, norm_layer=norm) for _ in range(config.blocks))
        )
        self.norm = norm(width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, _CLASSES))
        self.head_dist = nn.Linear(width, _CLASSES)  # in the file, and never used

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, 128, frames) -> embedding (B, W), logits (B, 527)."""
        x = self.patch_embed.proj(mel)  # (B, W, F, T)
        x = x + self.time_new_pos_embed[..., : x.shape[-1]] + self.freq_new_pos_embed
        first = (torch.cat([self.cls_token, self.dist_token], dim=1) + self.new_pos_embed).expand(len(x), -1, -1)
        x = self.norm(self.blocks(torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1)))
        embedding = (x[:, 0] + x[:, 1]) / 2
        return embedding, self.head(embedding)


class Passt:
    """The network with the weights of `passt-s-f128-p16-s10-ap.476-swa.pt`; it hears the first 10 s."""

    SAMPLE_RATE = SAMPLE_RATE

    def __init__(self, path: Path, config: PasstConfig | None = None, device: str = "cpu") -> None:
        self.network, self.device = PasstNetwork(config or PasstConfig()), device
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network.to(device).eval()

    @torch.inference_mode()
    def sound(self, waveform: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
        """(L,) mono -> embedding (768,), logits (527,); silence follows what is shorter than 10 s."""
        heard = resample(waveform, sample_rate, SAMPLE_RATE)[: _SECONDS * SAMPLE_RATE]
        heard = np.pad(heard, (0, _SECONDS * SAMPLE_RATE - len(heard))).astype(np.float32)
        embedding, logits = self.network(log_mel(torch.from_numpy(heard)[None]).to(self.device))
        return embedding[0].cpu().numpy(), logits[0].cpu().numpy()
