"""Prompts (and a silent video, if there is one) -> frames and sound.

Every clip is drawn from its own generator and, unless a larger batch is asked for, computed alone: the same
prompt and seed give the same bytes whatever else is made beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from syncflow.clock import Span, parse_rate
from syncflow.config import validate
from syncflow.errors import UserError
from syncflow.media import decode_span, probe
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.models.beginning import check_beginning
from syncflow.models.checkpoints import ModelCard, load_model, save_model
from syncflow.models.d_dit import DualDiT
from syncflow.models.encoders import Encoders
from syncflow.models.flow import shift_ratio
from syncflow.models.generation import Setting, Shown, generate_joint, generate_sound, make_setting
from syncflow.models.guidance import Guidance
from syncflow.models.outputs import write_clip
from syncflow.models.prompts import MAX_SEED, check_prompt
from syncflow.models.sampler import SOLVERS, time_grid
from syncflow.models.shapes import Shape, check_shape, choose_shape


@dataclass
class Generated:
    """One clip."""

    frames: np.ndarray  # (T, H, W, 3) uint8
    fps: Fraction
    waveform: np.ndarray  # (L,) float32, mono, in [-1, 1]
    sample_rate: int
    prompt: str
    seed: int

    def save(self, path: str | Path) -> None:
        """As .mp4 with sound, .wav or .gif, by the ending of `path`; whole or not at all."""
        path = Path(path)
        write_clip(path, self, [path.suffix.lstrip(".").lower()])


class SyncFlowPipeline:
    """A model with its encoders; call it with prompts.

    pipeline = SyncFlowPipeline.from_pretrained("runs/nano/3_joint/model")
    pipeline("a dog barks", seed=0)[0].save("dog.mp4")
    """

    def __init__(
        self, model: DualDiT, card: ModelCard, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.card = card
        self.device = torch.device(device)
        self.model = model.to(self.device, dtype).eval()
        self.encoders = Encoders(card, self.device, dtype)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> SyncFlowPipeline:
        """The pipeline of a model directory.

        Raises:
            UserError: the directory or one of its encoders cannot be read.
        """
        folder = Path(folder)
        model, card = load_model(folder)
        card = card.model_copy(
            update={
                name: getattr(card, name).located(folder)
                for name in ("video_autoencoder", "audio_autoencoder", "text_encoder")
            }
        )
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            return cls(model, card, device, dtype)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SyncFlowPipeline:
        """Move everything to `device` and the towers to `dtype`; what is None stays as it is."""
        self.device = self.device if device is None else torch.device(device)
        dtype = self.encoders.dtype if dtype is None else dtype
        self.model.to(self.device, dtype)
        self.encoders.to(self.device, dtype)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model directory that holds copies of its autoencoders, so that it can be moved."""
        folder = Path(folder)
        specs: dict[str, AutoencoderSpec] = {}
        for name in ("video_autoencoder", "audio_autoencoder"):
            spec: AutoencoderSpec = getattr(self.card, name)
            source = Path(spec.path)
            if source.is_dir() and source.resolve() != (folder / name).resolve():
                shutil.copytree(source, folder / name, dirs_exist_ok=True)
            specs[name] = spec.model_copy(update={"path": name}) if source.is_dir() else spec
        save_model(folder, self.model.state_dict(), self.card.model_copy(update=specs))

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        seed: int = 0,
        num_videos: int = 1,
        size: tuple[int, int] | None = None,
        duration_s: float | Fraction | None = None,
        fps: Fraction | float | str | None = None,
        steps: int = 30,
        solver: str = "euler",
        guidance: Guidance | float | None = None,
        video: str | Path | np.ndarray | None = None,
        shown: Shown = "clean",
        beginning: str | Path | None = None,
        batch_size: int = 1,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Generated]:
        """Clips of each prompt with seeds seed, seed + 1, …, in order.

        Args:
            size: (width, height) in pixels; default: what the model was trained at.
            duration_s, fps: default: what the model was trained at; for a given video, its own length.
            guidance: 1 follows the caption as learned, more exaggerates it; default: the card's.
            video: a file, or frames (T, H, W, 3) uint8 at `fps`, whose sound is wanted.
            shown: how the given video is shown to the model (see generation.py).
            beginning: an image, a video (with its sound if it has one) or sound alone, that the clip begins with.
            batch_size: clips computed together; above 1, bits may depend on what is beside a clip.
            on_step: called with steps done and steps in all.
        Raises:
            UserError: a prompt, size, duration or video that cannot be used.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or num_videos < 1 or batch_size < 1:
            raise UserError("give at least one prompt, and num_videos and batch_size of at least 1")
        jobs = [(prompt, seed + k) for prompt in prompts for k in range(num_videos)]
        # The sounds of one video share the work of seeing it.
        together = num_videos if video is not None else batch_size
        calls = [jobs[i : i + together] for i in range(0, len(jobs), together)]
        total, done = steps * len(calls), 0

        def step() -> None:
            nonlocal done
            done += 1
            if on_step is not None:
                on_step(done, total)

        return [
            clip
            for call in calls
            for clip in self.make(
                call, size=size, duration_s=duration_s, fps=fps, steps=steps, solver=solver, guidance=guidance,
                video=video, shown=shown, beginning=beginning, on_step=step,
            )
        ]  # fmt: skip

    @torch.no_grad()
    def make(
        self,
        jobs: Sequence[tuple[str, int]],
        *,
        size: tuple[int, int] | None = None,
        duration_s: float | Fraction | None = None,
        fps: Fraction | float | str | None = None,
        steps: int = 30,
        solver: str = "euler",
        guidance: Guidance | float | None = None,
        video: str | Path | np.ndarray | None = None,
        shown: Shown = "clean",
        beginning: str | Path | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> list[Generated]:
        """Clips of (prompt, seed) pairs, computed together; see `__call__`. With a video, of one prompt."""
        for prompt, _ in jobs:
            check_prompt(prompt)
        if shown not in get_args(Shown):
            raise UserError(f"shown: {shown!r} is not known; choose from {', '.join(get_args(Shown))}")
        if solver not in SOLVERS:
            raise UserError(f"no solver {solver!r}; known: {', '.join(SOLVERS)}")
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        seeds = [seed for _, seed in jobs]
        if not 0 <= min(seeds) <= max(seeds) <= MAX_SEED:
            raise UserError(f"seeds must lie between 0 and 2⁶³ - 1, got {min(seeds)} to {max(seeds)}")
        guidance = self.card.guidance if guidance is None else guidance
        if not isinstance(guidance, Guidance):
            guidance = validate(Guidance, {"video": guidance, "audio": guidance}, "guidance")
        shape = self.check(size=size, duration_s=duration_s, fps=fps, video=video, beginning=beginning)
        noise = self.encoders.noise(shape, seeds)
        times = time_grid(steps, shift_ratio(shape.width * shape.height, shape.num_frames, self.card.flow))

        def step(_: int) -> None:
            if on_step is not None:
                on_step()

        try:
            if video is None:
                setting = self._setting([prompt for prompt, _ in jobs], shape)
                known_video, known_audio = (None, None) if beginning is None else self.encoders.known(beginning, shape)
                latents, sound = generate_joint(
                    self.model, setting, noise, times, guidance=guidance, solver=solver, on_step=step,
                    known_video=known_video, known_audio=known_audio,
                )  # fmt: skip
                pictures = [self.encoders.frames(z[None], shape) for z in latents]
            else:
                frames = _given_frames(video, shape)
                setting = self._setting([jobs[0][0]], shape)
                sound = generate_sound(
                    self.model, setting, self.encoders.video_latents(frames), (noise[0][:1], noise[1]), times,
                    guidance=guidance, solver=solver, shown=shown, on_step=step,
                    fresh=torch.Generator().manual_seed(jobs[0][1]),
                )  # fmt: skip
                pictures = [frames] * len(jobs)
        except FloatingPointError:
            raise UserError(
                "the model's output is NaN or infinite: its weights are damaged or its training diverged; "
                "use another checkpoint"
            ) from None
        return [
            Generated(pictures[k], shape.fps, self.encoders.waveform(z[None], shape), self.card.sample_rate, *jobs[k])
            for k, z in enumerate(sound)
        ]

    def check(
        self,
        *,
        size: tuple[int, int] | None = None,
        duration_s: float | Fraction | None = None,
        fps: Fraction | float | str | None = None,
        video: str | Path | np.ndarray | None = None,
        beginning: str | Path | None = None,
    ) -> Shape:
        """The shape that would be made.

        Raises:
            UserError: this model cannot make it, and why.
        """
        card = self.card
        try:
            rate = card.fps if fps is None else parse_rate(fps)
        except ValueError as error:
            raise UserError(f"fps: {error}") from error
        given = None if video is None else _length_s(video, rate)
        if isinstance(video, np.ndarray):
            shown_at = video.shape[2], video.shape[1]
            if size is not None and tuple(size) != shown_at:
                raise UserError(f"the frames given are {shown_at[0]}x{shown_at[1]}; leave size out, or resize them")
            size = shown_at
        shape = choose_shape(card, size, duration_s, rate, given)
        latent = self.encoders.video.latent_shape(shape.num_frames, shape.height, shape.width)
        check_shape(shape, self.encoders.video.spatial_multiple, latent, card.model.video.patch_size)
        if beginning is not None:
            if video is not None:
                raise UserError("a video whose sound is wanted has its beginning; give one or the other")
            check_beginning(beginning, shape, card.sample_rate)
        return shape

    def _setting(self, prompts: Sequence[str], shape: Shape) -> Setting:
        texts = [self.encoders.text_states(prompt) for prompt in prompts]
        b = len(texts)
        return make_setting(
            self.model, texts, *self.encoders.times(shape, b),
            torch.full((b,), float(shape.fps), device=self.device),
            torch.tensor([[float(shape.height), float(shape.width)]] * b, device=self.device),
        )  # fmt: skip


def _given_frames(video: str | Path | np.ndarray, shape: Shape) -> np.ndarray:
    """(T, H, W, 3) uint8 of a given video."""
    if isinstance(video, np.ndarray):
        return video[: shape.num_frames]
    span = Span(Fraction(0), shape.num_frames / shape.fps)
    return decode_span(video, span, fps=shape.fps, size=(shape.width, shape.height), sample_rate=None).frames


def _length_s(video: str | Path | np.ndarray, fps: Fraction) -> Fraction:
    """Seconds of a given video.

    Raises:
        UserError: it has no frames.
    """
    if not isinstance(video, np.ndarray):
        return probe(video).duration_s
    if video.ndim != 4 or video.shape[-1] != 3 or len(video) == 0 or video.dtype != np.uint8:
        raise UserError(
            f"a video must be uint8 (frames, height, width, 3) with at least one frame, got {video.dtype} {video.shape}"
        )
    return len(video) / fps
