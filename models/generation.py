"""From noise to latents: text -> video and sound, a video -> its sound, and the rest of a clip from its beginning.

Known latents are placed on the flow: where something is given, z_t = (1 - t)·z_0 + t·z_1 whatever the model says,
so its velocity is z_1 - z_0. B clips, n sounds per clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from syncflow.models.d_dit import DualDiT
from syncflow.models.flow import interpolate
from syncflow.models.guidance import Guidance, guide
from syncflow.models.sampler import State, Velocity, integrate
from syncflow.models.video_tower import TextContext

Shown = Literal["clean", "noised", "fresh", "once"]
"""How a known video is shown at time t: clean with the embedding of t; noised to t with one noise; with fresh noise
each time; clean with the embedding of t = `ONCE_T` throughout, so that its features are computed once for all steps."""
ONCE_T = 0.5


@dataclass
class Setting:
    """What B clips are made to: captions, the clock, the size. Tensors on the model's device."""

    text: TextContext  # 2·B rows: the captions, then the null captions; keys and values kept
    video_time_s: Tensor  # (B, T_v, 2)
    audio_time_s: Tensor  # (B, T_a, 2)
    fps: Tensor  # (B,)
    size: Tensor  # (B, 2) height, width

    def rows(self, guided: bool) -> dict[str, Any]:
        """Arguments of the model for B rows, or for 2·B with the null captions."""
        n = 2 if guided else 1
        b = self.fps.shape[0]
        return {
            "text": self.text if guided else self.text.first(b),
            "video_time_s": self.video_time_s.repeat(n, 1, 1),
            "fps": self.fps.repeat(n),
            "size": self.size.repeat(n, 1),
        }


@dataclass
class Known:
    """Latents that are given, where `mask` is true: (B, C, T, …) and (B, T)."""

    latents: Tensor
    mask: Tensor


def make_setting(
    model: DualDiT, texts: Sequence[Tensor], video_time_s: Tensor, audio_time_s: Tensor, fps: Tensor, size: Tensor
) -> Setting:
    """A setting from unpadded text states (L, D), one per clip; their keys and values are made here, once."""
    text, mask = pad_text(texts)
    b = len(texts)
    null = torch.arange(2 * b, device=text.device) >= b
    context = model.encode_text(text.repeat(2, 1, 1), mask.repeat(2, 1), null, keep=True)
    return Setting(context, video_time_s, audio_time_s, fps, size)


def pad_text(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[(L_i, D)] -> (B, L, D) and (B, L) bool."""
    text = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    lengths = torch.tensor([len(states) for states in texts], device=text.device)
    return text, torch.arange(text.shape[1], device=text.device) < lengths[:, None]


@torch.no_grad()
def generate_joint(
    model: DualDiT,
    setting: Setting,
    noise: State,
    times: Sequence[float],
    *,
    guidance: Guidance,
    solver: str = "euler",
    known_video: Known | None = None,
    known_audio: Known | None = None,
    on_step: Callable[[int], None] | None = None,
) -> State:
    """Video (B, C, T_v, H, W) and audio (B, C, T_a) latents from their noises."""

    def velocity(state: State, t: float) -> State:
        video, audio = state
        guided = guidance.active(t)
        n = 2 if guided else 1
        out = model(
            video.repeat(n, 1, 1, 1, 1),
            audio.repeat(n, 1, 1),
            torch.full((n * video.shape[0],), t, device=video.device),
            audio_time_s=setting.audio_time_s.repeat(n, 1, 1),
            **setting.rows(guided),
        )
        v_video, v_audio = (
            _merge(out.video, guided, guidance.video, guidance),
            _merge(out.audio, guided, guidance.audio, guidance),
        )
        return _given(v_video, noise[0], known_video), _given(v_audio, noise[1], known_audio)

    return _checked(velocity, noise, times, solver, on_step)


@torch.no_grad()
def generate_sound(
    model: DualDiT,
    setting: Setting,
    video: Tensor,
    noise: State,
    times: Sequence[float],
    *,
    guidance: Guidance,
    solver: str = "euler",
    shown: Shown = "clean",
    fresh: torch.Generator | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Audio latents (n·B, C, T_a) for known video latents (B, C, T_v, H, W), n sounds in a row per video.

    The tower runs once per step for all sounds of a video (with shown="once", once altogether).

    Args:
        noise: the video's (used by shown="noised") and the audio's (n·B, C, T_a).
        fresh: draws the noise of shown="fresh".
    """
    audio_time_s = setting.audio_time_s.repeat_interleave(noise[1].shape[0] // video.shape[0], 0)
    once = {
        guided: model.see(
            video.repeat(n, 1, 1, 1, 1),
            torch.full((n * len(video),), ONCE_T, device=video.device),
            **setting.rows(guided),
        )
        for guided, n in ((False, 1), (True, 2))
        if shown == "once" and any(guidance.active(t) == guided for t in times)
    }

    def video_at(t: float) -> Tensor:
        if shown == "clean":
            return video
        z0 = noise[0]
        if shown == "fresh":
            z0 = torch.randn(video.shape, generator=fresh).to(video)
        return interpolate(z0, video, torch.full((len(video),), t, device=video.device))

    def velocity(state: State, t: float) -> State:
        guided = guidance.active(t)
        n = 2 if guided else 1
        sound = state[0].repeat(n, 1, 1)
        at = torch.full((n * len(video),), t, device=video.device)
        times_s = audio_time_s.repeat(n, 1, 1)
        if shown == "once":
            v = model.hear(sound, at, once[guided], audio_time_s=times_s)
        else:
            v = model(
                video_at(t).repeat(n, 1, 1, 1, 1),
                sound,
                at,
                audio_time_s=times_s,
                want_video=False,
                **setting.rows(guided),
            ).audio
        return (_merge(v, guided, guidance.audio, guidance),)

    return _checked(velocity, (noise[1],), times, solver, on_step)[0]


def _merge(v: Tensor | None, guided: bool, scale: float, guidance: Guidance) -> Tensor:
    assert v is not None
    if not guided:
        return v
    conditional, unconditional = v.chunk(2)
    return guide(conditional, unconditional, scale, guidance.rescale)


def _given(v: Tensor, z0: Tensor, known: Known | None) -> Tensor:
    if known is None:
        return v
    mask = known.mask.view(known.mask.shape[0], 1, known.mask.shape[1], *[1] * (v.dim() - 3))
    return torch.where(mask, known.latents - z0, v)


def _checked(
    velocity: Velocity, z0: State, times: Sequence[float], solver: str, on_step: Callable[[int], None] | None
) -> State:
    state = integrate(velocity, z0, times, solver, on_step)
    if not all(torch.isfinite(z).all() for z in state):
        raise FloatingPointError("the model's velocity is not finite")
    return state
