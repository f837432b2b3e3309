"""ImageBind: pictures, sounds and texts in one space. The three towers that metrics need, under the public names.

Letters: B batch, L tokens, W width of a tower, D dimensions of the shared space, T frames, N texts.
Source: Girdhar et al., "ImageBind: One embedding space to bind them all", 2023 (github.com/facebookresearch/ImageBind).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from syncflow.models.perception.layers import Mlp
from syncflow.models.perception.pictures import CLIP_MEAN, CLIP_STD, normalised
from syncflow.models.perception.sounds import resample

_BANDS, _MEL_FRAMES = 128, 204
"""Of the mel spectrogram of one 2 s window of sound."""
_MEL_MEAN, _MEL_STD = -4.268, 9.138
_TEXT_LENGTH, _VOCABULARY = 77, 49408
_PATCH, _MEL_PATCH, _MEL_STRIDE = 14, 16, 10
_MODALITIES = ("vision", "audio", "text")


@dataclass(frozen=True)
class TowerSize:
    width: int
    blocks: int
    heads: int


@dataclass(frozen=True)
class ImageBindConfig:
    """Sizes; the defaults are those of `imagebind_huge.pth`."""

    vision: TowerSize = TowerSize(1280, 32, 16)
    audio: TowerSize = TowerSize(768, 12, 12)
    text: TowerSize = TowerSize(1024, 24, 16)
    dimensions: int = 1024
    side: int = 224


class Block(nn.Module):
    """Attention and MLP, normalised before."""

    def __init__(self, size: TowerSize, learned_key: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(size.width, size.heads, add_bias_kv=learned_key, batch_first=True)
        self.norm_1, self.norm_2 = nn.LayerNorm(size.width, eps=1e-6), nn.LayerNorm(size.width, eps=1e-6)
        self.mlp = Mlp(size.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, W) -> (B, L, W); `mask` (L, L) is added to the logits."""
        y = self.norm_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    def __init__(self, size: TowerSize, normalised_first: bool = False, learned_key: bool = False) -> None:
        super().__init__()
        first = nn.LayerNorm(size.width, eps=1e-6) if normalised_first else nn.Identity()
        self.pre_transformer_layer = nn.Sequential(first)
        self.blocks = nn.ModuleList(Block(size, learned_key) for _ in range(size.blocks))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.pre_transformer_layer(x)
        for block in self.blocks:
            x = block(x, mask)
        return x


class TwoFrames(nn.Module):
    """(B, 3, H, W) pictures stand still for two frames; (B, 3, 2, H, W) videos pass."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.ndim == 5 else x[:, :, None].repeat(1, 1, 2, 1, 1)


class Stem(nn.Module):
    def __init__(self, proj: nn.Module, norm_layer: nn.Module | None = None) -> None:
        super().__init__()
        self.proj, self.norm_layer = proj, norm_layer

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).flatten(2).transpose(1, 2)  # (B, L, W)
        return x if self.norm_layer is None else self.norm_layer(x)


class Positions(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, width))


class Patches(nn.Module):
    """Pictures or spectrograms -> (B, 1 + patches, W), a class token first."""

    def __init__(self, stem: Stem, patches: int, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(width**-0.5 * torch.randn(1, 1, width))
        self.rgbt_stem = stem
        self.pos_embedding_helper = Positions(1 + patches, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.rgbt_stem(x)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens + self.pos_embedding_helper.pos_embed


class Words(nn.Module):
    """(B, 77) token ids -> (B, 77, W)."""

    mask: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(0.01 * torch.randn(1, _TEXT_LENGTH, width))
        self.token_embedding = nn.Embedding(_VOCABULARY, width)
        self.register_buffer("mask", torch.full((_TEXT_LENGTH, _TEXT_LENGTH), -torch.inf).triu(1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.pos_embed


class FirstToken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class TextHead(nn.Module):
    """Projects the token of the highest id, which ends a text."""

    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, dimensions, bias=False))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.proj(x[torch.arange(len(x), device=x.device), ids.argmax(dim=-1)])


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=-1)


class Scale(nn.Module):
    """Times the exponential of a learned number, at most 100."""

    log_logit_scale: Tensor

    def __init__(self, start: float) -> None:
        super().__init__()
        self.register_buffer("log_logit_scale", torch.tensor(math.log(start)))

    def forward(self, x: Tensor) -> Tensor:
        return self.log_logit_scale.exp().clamp(max=100) * x


def _class_head(width: int, dimensions: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width, eps=1e-6), FirstToken(), nn.Linear(width, dimensions, bias=False))


class ImageBindNetwork(nn.Module):
    """The towers of vision, audio and text; depth, heat and motion are left out."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        vision, audio, text = config.vision, config.audio, config.text
        cube = (2, _PATCH, _PATCH)
        video = nn.Sequential(TwoFrames(), nn.Conv3d(3, vision.width, cube, stride=cube, bias=False))
        mel = nn.Conv2d(1, audio.width, _MEL_PATCH, stride=_MEL_STRIDE, bias=False)
        mel_patches = math.prod((n - _MEL_PATCH) // _MEL_STRIDE + 1 for n in (_BANDS, _MEL_FRAMES))
        self.modality_preprocessors = nn.ModuleDict(
            {
                "vision": Patches(Stem(video), (config.side // _PATCH) ** 2, vision.width),
                "audio": Patches(Stem(mel, nn.LayerNorm(audio.width)), mel_patches, audio.width),
                "text": Words(text.width),
            }
        )
        self.modality_trunks = nn.ModuleDict(
            {
                "vision": Trunk(vision, normalised_first=True),
                "audio": Trunk(audio, learned_key=True),
                "text": Trunk(text),
            }
        )
        self.modality_heads = nn.ModuleDict(
            {
                "vision": _class_head(vision.width, config.dimensions),
                "audio": _class_head(audio.width, config.dimensions),
                "text": TextHead(text.width, config.dimensions),
            }
        )
        self.modality_postprocessors = nn.ModuleDict(
            {
                "vision": Unit(),
                "audio": nn.Sequential(Unit(), Scale(20.0)),
                "text": nn.Sequential(Unit(), Scale(1 / 0.07)),
            }
        )

    def vision(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) or (B, 3, 2, H, W) -> (B, D), of length 1."""
        return self._by_class("vision", x)

    def audio(self, x: Tensor) -> Tensor:
        """(B, 1, bands, frames) -> (B, D)."""
        return self._by_class("audio", x)

    def text(self, ids: Tensor) -> Tensor:
        """(B, 77) -> (B, D)."""
        words = self.modality_preprocessors["text"]
        x = self.modality_trunks["text"](words(ids), words.mask)
        return self.modality_postprocessors["text"](self.modality_heads["text"](x, ids))

    def _by_class(self, name: str, x: Tensor) -> Tensor:
        x = self.modality_trunks[name](self.modality_preprocessors[name](x))
        return self.modality_postprocessors[name](self.modality_heads[name](x))


class ImageBind:
    """The network with the weights of a public file, and its published ways of looking and listening."""

    SAMPLE_RATE, WINDOW_S = 16000, 2.0

    def __init__(self, path: Path, config: ImageBindConfig | None = None, device: str = "cpu") -> None:
        import open_clip
        from transformers import ASTFeatureExtractor

        self.config, self.device = config or ImageBindConfig(), device
        with torch.device("meta"):
            self.network = ImageBindNetwork(self.config)
        published = torch.load(path, map_location="cpu", weights_only=True)
        state = {name: value for name, value in published.items() if name.split(".")[1] in _MODALITIES}
        self.network.load_state_dict(state, assign=True)
        self.network.float().to(device).eval()
        self.tokenize = open_clip.SimpleTokenizer(context_length=_TEXT_LENGTH)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the lowest bands are narrower than a bin, here and in Kaldi
            self.mel = ASTFeatureExtractor(
                sampling_rate=self.SAMPLE_RATE,
                num_mel_bins=_BANDS,
                max_length=_MEL_FRAMES,
                mean=_MEL_MEAN,
                std=_MEL_STD / 2,  # it divides by twice the deviation
            )

    @torch.inference_mode()
    def pictures(self, frames: np.ndarray, batch: int = 16) -> np.ndarray:
        """(T, H, W, 3) uint8 -> (T, D): each frame alone, its middle square."""
        found = []
        for start in range(0, len(frames), batch):
            part = normalised(frames[start : start + batch], self.config.side, CLIP_MEAN, CLIP_STD)
            found.append(self.network.vision(part.to(self.device)).float().cpu().numpy())
        return np.concatenate(found)

    @torch.inference_mode()
    def video(self, frames: np.ndarray, fps: float) -> np.ndarray:
        """(T, H, W, 3) uint8 -> (D,): first and last frames of five windows of 2 s, three squares each, averaged."""
        views = []
        for start, end in even_windows(len(frames) / fps, self.WINDOW_S, 5):
            first = min(math.ceil(start * fps), len(frames) - 1)
            pair = frames[[first, max(first, min(math.ceil(end * fps), len(frames)) - 1)]]
            views += [normalised(square, self.config.side, CLIP_MEAN, CLIP_STD) for square in _three_squares(pair)]
        video = torch.stack(views).transpose(1, 2)  # (15, 3, 2, H, W)
        return self.network.vision(video.to(self.device)).mean(dim=0).float().cpu().numpy()

    @torch.inference_mode()
    def sound(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """(L,) mono -> (D,): three windows of 2 s, averaged; what is not longer is one."""
        heard = resample(waveform, sample_rate, self.SAMPLE_RATE).astype(np.float32)
        windows = dict.fromkeys(even_windows(len(heard) / self.SAMPLE_RATE, self.WINDOW_S, 3))
        parts = [heard[int(a * self.SAMPLE_RATE) : int(b * self.SAMPLE_RATE)] for a, b in windows]
        inputs = self.mel([part - part.mean() for part in parts], self.SAMPLE_RATE, return_tensors="pt").input_values
        mel = inputs.transpose(1, 2)[:, None]  # (3, 1, bands, frames)
        return self.network.audio(mel.to(self.device)).mean(dim=0).float().cpu().numpy()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D)."""
        return self.network.text(self.tokenize(list(texts)).to(self.device)).float().cpu().numpy()


def even_windows(duration_s: float, window_s: float, count: int) -> list[tuple[float, float]]:
    """`count` windows of a length, evenly from the start to the end; in what is shorter, all alike."""
    step = max(duration_s - window_s, 0) / max(count - 1, 1)
    return [(k * step, k * step + window_s) for k in range(count)]


def _three_squares(frames: np.ndarray) -> list[np.ndarray]:
    """Squares of (T, H, W, 3) at both ends of the longer side and in its middle."""
    height, width = frames.shape[1:3]
    side = min(height, width)
    starts = (0, math.ceil((max(height, width) - side) / 2), max(height, width) - side)
    if height > width:
        return [frames[:, k : k + side] for k in starts]
    return [frames[:, :, k : k + side] for k in starts]
