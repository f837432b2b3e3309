"""What a model is: the sizes of its two towers and how the adaptors between them work."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from syncflow.config import Config


def _check_heads(width: int, heads: int) -> None:
    if width % heads or (width // heads) % 2:
        raise ValueError(f"hidden_size {width} must divide into num_heads {heads} heads of even width")


class VideoTowerConfig(Config):
    """STDiT3 under the names of Open-Sora's own configuration, so that a public `config.json` can be read."""

    in_channels: int = 4
    """Channels of the video latents."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns that make one token."""
    hidden_size: int = 1152
    """Width E_v; a multiple of 4 and of the heads."""
    depth: int = 28
    """Layers L; each is a spatial and a temporal block."""
    num_heads: int = 16
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Width of the MLP over the width of the tower."""
    caption_channels: int = 4096
    """Width of the text encoder's states."""
    model_max_length: int = 300
    """Most text tokens; also the length of the null caption."""
    input_sq_size: int = 512
    """Side in pixels of the square at which spatial positions have scale 1."""
    qk_norm: bool = True
    """RMS-norm of queries and keys."""
    pred_sigma: bool = False
    """Also predict Open-Sora's unused sigma channels."""
    patch_norm: bool = False
    """LayerNorm after the patch embedding, as the figure has it; Open-Sora's weights have none."""

    @model_validator(mode="after")
    def _fits(self) -> VideoTowerConfig:
        _check_heads(self.hidden_size, self.num_heads)
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size must be a multiple of 4 for 2-D positions, got {self.hidden_size}")
        return self


class AdaptorConfig(Config):
    """How the audio tower is shown each video layer. All off is the figure to the letter."""

    residual: bool = True
    """x + attention(norm(x)) instead of attention(x): keeps what the temporal block said."""
    group: tuple[int, int] | None = (4, 4)
    """Rows and columns of cells concatenated and projected to one token; None: every patch is a token."""
    cells: tuple[int, int] = (4, 4)
    """Where tokens are grouped, each frame is first averaged onto this grid of cells. At the size it was made for
    that changes nothing; at others it keeps tokens where they were learned, at the same cost."""
    time: Literal["none", "sinusoid", "rotary"] = "sinusoid"
    """How adaptor and audio tokens know their time in seconds: not at all, by a sinusoid added to both, or by
    rotary positions in the audio tower's cross-attention (with the sinusoid on audio tokens)."""
    num_heads: int | None = None
    """Heads of its self-attention; None: as many as the video tower."""

    @model_validator(mode="after")
    def _fits(self) -> AdaptorConfig:
        if self.group and (self.cells[0] % self.group[0] or self.cells[1] % self.group[1]):
            raise ValueError(f"cells {self.cells} must be a multiple of group {self.group}")
        return self


class AudioTowerConfig(Config):
    """The audio tower: post-norm layers that see the video tower through the adaptors and no text."""

    in_channels: int = 64
    """Channels of the audio latents."""
    hidden_size: int = 768
    """Width E_a."""
    num_heads: int = 12
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Width of the MLP over the width of the tower."""

    @model_validator(mode="after")
    def _fits(self) -> AudioTowerConfig:
        _check_heads(self.hidden_size, self.num_heads)
        return self


class ModelConfig(Config):
    """The dual diffusion transformer; the audio tower has as many layers as the video tower."""

    video: VideoTowerConfig = VideoTowerConfig()
    adaptor: AdaptorConfig = AdaptorConfig()
    audio: AudioTowerConfig = AudioTowerConfig()

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        _check_heads(self.video.hidden_size, self.adaptor.num_heads or self.video.num_heads)
        return self
