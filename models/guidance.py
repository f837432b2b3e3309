"""Classifier-free guidance of a velocity.

v = v_uncond + s·(v_cond - v_uncond); s = 1 is the conditional velocity.
Source: "Classifier-Free Diffusion Guidance" (arXiv 2207.12598); interval: arXiv 2404.07724; rescale: arXiv 2305.08891.
"""

from __future__ import annotations

from pydantic import model_validator
from torch import Tensor

from syncflow.config import Config

MAX_GUIDANCE = 100
"""Beyond, a velocity is nothing but the difference of two; public models are used with 1 to 15."""


class Guidance(Config):
    """How strongly the caption is followed, by modality."""

    video: float = 1.5
    """Scale of the video's guidance; 1 is none."""
    audio: float = 1.5
    """Scale of the audio's guidance; 1 is none. (The audio hears of the caption through the video tower.)"""
    interval: tuple[float, float] = (0.0, 1.0)
    """Guide only while start <= t < end."""
    rescale: float = 0.0
    """0 to 1: how far the guided velocity is brought back to the spread of the conditional one."""

    @model_validator(mode="after")
    def _fits(self) -> Guidance:
        for scale in (self.video, self.audio):
            if not 0 <= scale <= MAX_GUIDANCE:
                raise ValueError(f"guidance must lie between 0 and {MAX_GUIDANCE}, got {scale}")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(f"interval must be start <= end within 0 and 1, got {self.interval}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must lie between 0 and 1, got {self.rescale}")
        return self

    def active(self, t: float) -> bool:
        """Whether the unconditional velocity is needed at time t."""
        return (self.video != 1 or self.audio != 1) and self.interval[0] <= t < self.interval[1]


def guide(conditional: Tensor, unconditional: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """The guided velocity of B examples (B, …)."""
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0 or scale == 1:
        return guided
    axes = tuple(range(1, guided.dim()))
    shrink = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp(min=1e-8)
    return guided * (rescale * shrink + 1 - rescale)
