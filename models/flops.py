"""What one evaluation of the model costs, by closed form: matrix products of linear layers and of attention.

FLOPs are 2 per multiply-add, of one clip, forward; training costs three times as much. Norms, activations and
softmax are left out, as torch.utils.flop_counter does (which the tests compare with).
"""

from __future__ import annotations

from dataclasses import dataclass

from syncflow.models.adaptor import tokens_per_frame
from syncflow.models.config import ModelConfig


@dataclass(frozen=True)
class Lengths:
    """Of one clip's sequences."""

    frames: int
    """T_v, latent frames of the video."""
    rows: int
    """Latent rows."""
    cols: int
    """Latent columns."""
    audio_frames: int
    """T_a."""
    text_tokens: int


@dataclass(frozen=True)
class Cost:
    """FLOPs of one forward pass, by part, and how many tokens were attended to."""

    video: int
    adaptors: int
    audio: int
    video_tokens: int
    adaptor_tokens: int

    @property
    def total(self) -> int:
        return self.video + self.adaptors + self.audio


def forward_cost(config: ModelConfig, lengths: Lengths) -> Cost:
    """FLOPs of `DualDiT.forward` on one clip."""
    v, depth = config.video, config.video.depth
    width, frames, text = v.hidden_size, lengths.frames, lengths.text_tokens
    pt, ph, pw = v.patch_size
    rows, cols = -(-lengths.rows // ph), -(-lengths.cols // pw)
    per_frame = rows * cols
    n = -(-frames // pt) * per_frame
    mlp = int(width * v.mlp_ratio)
    linears = n * width * (3 * width + width + 2 * width + 2 * mlp) + text * width * 2 * width
    attention = 2 * n * width * (per_frame + text) + 2 * n * width * (n // per_frame + text)
    out_channels = v.in_channels * (2 if v.pred_sigma else 1)
    ends = n * width * pt * ph * pw * (v.in_channels + out_channels)
    embedders = 3 * (256 * width + width**2) + 6 * width**2 + text * width * (v.caption_channels + width)
    video = 2 * (depth * (2 * linears + attention) + ends + embedders)

    cells = 0 if config.adaptor.group is None else config.adaptor.cells[0] * config.adaptor.cells[1]
    m = frames * tokens_per_frame(config.adaptor, rows, cols)
    adaptors = 2 * depth * (frames * cells * width**2 + 5 * m * width**2 + 2 * m * m * width)

    a, narrow = lengths.audio_frames, config.audio.hidden_size
    audio_mlp = int(narrow * config.audio.mlp_ratio)
    layer = a * narrow * (4 * narrow + 2 * narrow + 2 * audio_mlp) + (m + 1) * width * 2 * narrow
    layer += 2 * a * narrow * (a + m + 1)
    audio = 2 * (depth * layer + 2 * a * narrow * config.audio.in_channels)
    return Cost(video, adaptors, audio, n, m)
