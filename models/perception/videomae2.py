"""VideoMAE-v2's ViT-g, fine-tuned on Something-Something v2: the features of the content-debiased FVD.

Letters: B batch, T frames, N tokens, D width.
Source: Wang et al., "VideoMAE V2: scaling video masked autoencoders with dual masking", 2023; Ge et al., "On the
content bias in Fréchet video distance", 2024, whose package reads the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from syncflow.models.perception.published import read_published

_NAMES = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "attn.q_bias": "attention.attention.query.bias",
    "attn.v_bias": "attention.attention.value.bias",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


class VideoMae2:
    """transformers' VideoMAE with the weights of `vit_g_hybrid_pt_1200e_ssv2_ft.pth`."""

    def __init__(self, path: Path, heads: int = 16, frames: int = 16, side: int = 224, device: str = "cpu") -> None:
        """
        Args:
            heads, frames, side: what the file's shapes do not tell.
        """
        from transformers import VideoMAEConfig, VideoMAEModel

        file = read_published(path)
        state: dict[str, Tensor] = next((file[key] for key in ("model", "module") if key in file), file)
        width, _, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
        config = VideoMAEConfig(
            image_size=side,
            patch_size=patch,
            num_frames=frames,
            tubelet_size=tubelet,
            hidden_size=width,
            num_hidden_layers=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
            num_attention_heads=heads,
            intermediate_size=len(state["blocks.0.mlp.fc1.weight"]),
            layer_norm_eps=1e-6,
            use_mean_pooling=True,
        )
        self.frames, self.side, self.device = frames, side, device
        self.network = cast(Any, VideoMAEModel(config))
        self.network.load_state_dict(_renamed(state))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.norm.load_state_dict({name: state[f"fc_norm.{name}"] for name in ("weight", "bias")})
        self.network.to(device).eval()
        self.norm.to(device)

    @torch.inference_mode()
    def video(self, frames: np.ndarray) -> np.ndarray:
        """(T, H, W, 3) uint8 -> (D,): levels 0..1 as published, without mean and deviation, bilinear to the side."""
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255  # (T, 3, H, W)
        pictures = functional.interpolate(pictures, size=(self.side, self.side), mode="bilinear", align_corners=False)
        hidden = self.network(pixel_values=pictures[None].to(self.device)).last_hidden_state  # (1, N, D)
        return np.asarray(self.norm(hidden.mean(dim=1))[0].cpu())


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's parameters under transformers' names; query, key and value, one matrix there, come apart."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(("head.", "fc_norm.")):
            continue
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        name = name.replace("blocks.", "encoder.layer.")
        if "attn.qkv.weight" in name:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.attention.{part}")] = rows
        else:
            renamed[name] = value
    return renamed
