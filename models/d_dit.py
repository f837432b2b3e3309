"""The dual diffusion transformer: a video tower, an audio tower, and adaptors that show the one to the other.

B batch, T_v / T_a video / audio latent frames, E_v / E_a widths. Information flows one way, video -> audio.
Source: the figure of SyncFlow (arXiv 2412.15220).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from syncflow.models.adaptor import Adaptor, AdaptorGrid, tokens_per_frame, with_t
from syncflow.models.audio_tower import AudioTower
from syncflow.models.config import ModelConfig
from syncflow.models.positions import Rotation, seconds_rotation
from syncflow.models.video_tower import TextContext, VideoTower


@dataclass
class Velocities:
    """What the model predicts at (z_t, t): dz/dt of both modalities, float32."""

    video: Tensor | None  # (B, C_v, T_v, H, W)
    audio: Tensor | None  # (B, C_a, T_a)


@dataclass
class VideoSeen:
    """What the adaptors made of a video, to be heard of many times; t's token is not in it."""

    tokens: list[Tensor]  # per layer (B, N, E_v)
    time_s: Tensor  # (B, N) seconds of each token
    mask: Tensor | None  # (B, N) bool


class DualDiT(nn.Module):
    """The network of the figure. `forward` is one evaluation of the velocity field at time t (1 is data)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.video = VideoTower(config.video)
        self.adaptors = nn.ModuleList(Adaptor(config.adaptor, config.video) for _ in range(config.video.depth))
        self.audio = AudioTower(config)

    def parts(self) -> dict[str, nn.Module]:
        """What training stages freeze and report one by one."""
        return {"video": self.video, "adaptors": self.adaptors, "audio": self.audio}

    def init_weights(self) -> None:
        """Start every parameter and buffer anew, for example after `to_empty` of a model built on meta."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.video.checkpoint_activations = on
        self.audio.checkpoint_activations = on

    def encode_text(
        self, text: Tensor, mask: Tensor | None, null: Tensor | None = None, *, keep: bool = False
    ) -> TextContext:
        """Text for `forward`; with `keep`, keys and values of every block are made once for many calls."""
        context = self.video.encode_text(text, mask, null)
        return self.video.keep_text(context) if keep else context

    def forward(
        self,
        video: Tensor,
        audio: Tensor | None,
        t: Tensor,
        *,
        text: Tensor | TextContext,
        text_mask: Tensor | None = None,
        null_text: Tensor | None = None,
        video_time_s: Tensor,
        audio_time_s: Tensor | None = None,
        video_mask: Tensor | None = None,
        audio_mask: Tensor | None = None,
        known_frames: Tensor | None = None,
        fps: Tensor,
        size: Tensor,
        train_video: bool = True,
        want_video: bool = True,
    ) -> Velocities:
        """Velocities at z_t.

        Args:
            video: (B, C_v, T_v, H, W) z_t of the video.
            audio: (n·B, C_a, T_a) z_t of the audio, n sounds in a row per video; None for the video alone.
            t: (B,) in [0, 1], shared by both modalities.
            text: (B, L, D) states with text_mask (B, L) and null_text (B,), or what `encode_text` returned.
            video_time_s, audio_time_s: (B, T, 2) start and end of each latent frame in seconds.
            video_mask, audio_mask: (B, T) bool, false for padding; None where there is none.
            known_frames: (B, T_v) bool, true where the video is given clean (first frames to continue from).
            fps: (B,); size: (B, 2) height and width in pixels.
            train_video: false runs the video tower without gradients and without keeping its activations.
            want_video: false leaves out the video's output layer, where only the sound is wanted.
        """
        with nullcontext() if train_video else torch.no_grad():
            if not isinstance(text, TextContext):
                text = self.video.encode_text(text, text_mask, null_text)
            timestep = 1000 * (1 - t)
            noisy = None if known_frames is None else ~known_frames
            x, conditions = self.video.begin(video, timestep, text, fps, size, noisy, video_mask)
            t_token = self.video.embed_t(timestep) if audio is not None else None  # (B, E_v)

        y, seen_as, grid = None, None, None
        if audio is not None:
            assert audio_time_s is not None, "audio needs audio_time_s"
            grid = self._grid(video, video_time_s, video_mask)
            y = self.audio.begin(audio, _middle(audio_time_s, audio.shape[0]))
            seen_as = self._seen_as(grid, audio_time_s, audio.shape[0])

        for i, adaptor in enumerate(self.adaptors):
            with nullcontext() if train_video else torch.no_grad():
                x = self.video.layer(i, x, conditions)
            if y is not None:
                assert grid is not None
                assert t_token is not None
                assert seen_as is not None
                y = self._audio_layer(i, y, with_t(adaptor(x, grid), t_token), audio_mask, seen_as)

        with nullcontext() if train_video else torch.no_grad():
            v_video = self.video.end(x, conditions, video) if want_video else None
        return Velocities(v_video, None if y is None else self.audio.end(y))

    def see(
        self,
        video: Tensor,
        t: Tensor,
        *,
        text: Tensor | TextContext,
        text_mask: Tensor | None = None,
        null_text: Tensor | None = None,
        video_time_s: Tensor,
        video_mask: Tensor | None = None,
        fps: Tensor,
        size: Tensor,
    ) -> VideoSeen:
        """What the adaptors make of a video shown with the embedding of t, once for every step of a sound."""
        if not isinstance(text, TextContext):
            text = self.video.encode_text(text, text_mask, null_text)
        x, conditions = self.video.begin(video, 1000 * (1 - t), text, fps, size, None, video_mask)
        grid = self._grid(video, video_time_s, video_mask)
        tokens = []
        for i, adaptor in enumerate(self.adaptors):
            x = self.video.layer(i, x, conditions)
            tokens.append(adaptor(x, grid))
        per_frame = tokens[0].shape[1] // grid.time_s.shape[1]
        mask = None if video_mask is None else video_mask.repeat_interleave(per_frame, 1)
        return VideoSeen(tokens, grid.time_s.repeat_interleave(per_frame, 1), mask)

    def hear(
        self, audio: Tensor, t: Tensor, seen: VideoSeen, *, audio_time_s: Tensor, audio_mask: Tensor | None = None
    ) -> Tensor:
        """Velocity (n·B, C_a, T_a) of the audio alone, given what `see` made of the video."""
        t_token = self.video.embed_t(1000 * (1 - t))
        y = self.audio.begin(audio, _middle(audio_time_s, audio.shape[0]))
        seen_as = self._positions(seen.time_s, seen.mask, audio_time_s, audio.shape[0])
        for i, tokens in enumerate(seen.tokens):
            y = self._audio_layer(i, y, with_t(tokens, t_token), audio_mask, seen_as)
        return self.audio.end(y)

    def _grid(self, video: Tensor, video_time_s: Tensor, video_mask: Tensor | None) -> AdaptorGrid:
        pt, ph, pw = self.config.video.patch_size
        assert pt == 1, "adaptors need one token row per latent frame (patch_size[0] = 1)"
        rows, cols = -(-video.shape[3] // ph), -(-video.shape[4] // pw)
        return AdaptorGrid(rows, cols, _middle(video_time_s, video.shape[0]), video_mask)

    def _seen_as(self, grid: AdaptorGrid, audio_time_s: Tensor, sounds: int) -> _SeenAs:
        n = tokens_per_frame(self.config.adaptor, grid.rows, grid.cols)
        mask = None if grid.frame_mask is None else grid.frame_mask.repeat_interleave(n, 1)
        return self._positions(grid.time_s.repeat_interleave(n, 1), mask, audio_time_s, sounds)

    def _positions(self, time_s: Tensor, mask: Tensor | None, audio_time_s: Tensor, sounds: int) -> _SeenAs:
        """Mask and rotary positions of the tokens (B, N) that the audio attends to; t's token has angle 0."""
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        if self.config.adaptor.time != "rotary":
            return _SeenAs(mask, None, None)
        head = self.config.audio.hidden_size // self.config.audio.num_heads
        seen = seconds_rotation(time_s, head)
        seen = torch.cat([seen, torch.ones_like(seen[:, :, :1])], dim=2)
        return _SeenAs(mask, seconds_rotation(_middle(audio_time_s, sounds), head), seen)

    def _audio_layer(self, i: int, y: Tensor, seen: Tensor, audio_mask: Tensor | None, seen_as: _SeenAs) -> Tensor:
        return self.audio.layer(
            i,
            y,
            seen,
            audio_mask=audio_mask,
            seen_mask=seen_as.mask,
            rotation=seen_as.audio,
            seen_rotation=seen_as.video,
        )


@dataclass
class _SeenAs:
    mask: Tensor | None  # (B, N + 1) bool
    audio: Rotation | None
    video: Rotation | None


def _middle(time_s: Tensor, batch: int) -> Tensor:
    """(B, T, 2) starts and ends -> (batch, T) middles, each example repeated where `batch` is n·B."""
    middle = time_s.float().mean(dim=-1)
    return middle if middle.shape[0] == batch else middle.repeat_interleave(batch // middle.shape[0], 0)
