"""What a stage minimises: the flow-matching loss of each modality.

L = w_v · mean_B |v_video - (z1 - z0)|² + w_a · mean_B |v_audio - (z1 - z0)|², at z_t = (1 - t)·z0 + t·z1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from syncflow.models.d_dit import DualDiT
from syncflow.models.flow import flow_loss, interpolate, target_velocity
from syncflow.train.collate import Example
from syncflow.train.config import StageConfig

T_BINS = 4


class Objective(nn.Module):
    """The model with its loss: one forward pass per micro-batch, so that ZeRO sees every module it gathers for."""

    def __init__(self, model: DualDiT, config: StageConfig) -> None:
        super().__init__()
        self.model = model
        self.weights = (config.flow.video_weight, config.flow.audio_weight)
        self.train_video = "video" in config.trains

    def forward(self, example: Example) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, video losses (B,), audio losses (B,)); a modality without weight is not computed and has zeros."""
        batch, t = example.batch, example.t
        want_video, want_audio = (weight > 0 for weight in self.weights)
        velocities = self.model(
            interpolate(example.video_noise, batch.video, t),
            interpolate(example.audio_noise, batch.audio, t) if want_audio else None,
            t,
            text=batch.text,
            text_mask=batch.text_mask,
            null_text=batch.null_text,
            video_time_s=batch.video_time_s,
            audio_time_s=batch.audio_time_s,
            video_mask=batch.video_mask if example.padded else None,
            audio_mask=batch.audio_mask if example.padded else None,
            fps=batch.fps,
            size=batch.size,
            train_video=self.train_video,
            want_video=want_video,
        )
        video = audio = torch.zeros_like(t)
        if want_video:
            video = flow_loss(velocities.video, target_velocity(example.video_noise, batch.video), batch.video_mask)
        if want_audio:
            audio = flow_loss(velocities.audio, target_velocity(example.audio_noise, batch.audio), batch.audio_mask)
        loss = self.weights[0] * video.mean() + self.weights[1] * audio.mean()
        return loss, video.detach(), audio.detach()
