"""Raw clips for training autoencoders: a deterministic choice of spans, decoded once and held in memory.

Shapes: N clips, T frames of H × W pixels, L samples.
"""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syncflow.clock import Span, windows
from syncflow.errors import UserError
from syncflow.media import Clip, MediaError, decode_span, probe

_VIDEOS = frozenset(
    [".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv"]
)


@dataclass(frozen=True)
class Clips:
    """Decoded clips; the sound of `has_sound` false is silence and not trained on."""

    frames: Tensor  # (N, T, 3, H, W) uint8
    waveform: Tensor  # (N, L) float32
    has_sound: Tensor  # (N,) bool
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sources)

    def split(self, validation: int) -> tuple[Clips, Clips]:
        """(training, validation): the last `validation` clips, at most half; one clip alone is both."""
        held = min(validation, len(self) // 2)
        if held == 0:
            return self, self
        return self._part(slice(None, -held)), self._part(slice(-held, None))

    def _part(self, part: slice) -> Clips:
        return Clips(self.frames[part], self.waveform[part], self.has_sound[part], self.sources[part])


def list_sources(location: str) -> list[Path]:
    """Video files of a folder, to its bottom, or of the `uri` (or `file`) column of a .jsonl or .csv manifest.

    Raises:
        UserError: nothing there, or no videos in it.
    """
    path = Path(location).expanduser()
    if not location or not path.exists():
        raise UserError(f"--input {location or '(none)'}: give a folder of videos, or a .jsonl or .csv manifest")
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _VIDEOS)
    else:
        found = [path.parent / uri for uri in _manifest_uris(path)]
    if not found:
        raise UserError(f"--input {location}: no videos here")
    return found


def _manifest_uris(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif path.suffix == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
        else:
            raise UserError(f"--input {path}: give a folder of videos, or a .jsonl or .csv manifest")
        return [row["uri"] if "uri" in row else row["file"] for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--input {path} is not a manifest of rows with `uri`: {error!r}") from error


def load_clips(
    sources: list[Path], *, count: int, seed: int, clip_s: Fraction, fps: Fraction, size: tuple[int, int], rate_hz: int
) -> tuple[Clips, list[str]]:
    """Up to `count` clips of `clip_s`, from sources in an order shuffled by seed, and why others could not be read.

    One window of each source comes first, then a second of each, and so on. What cannot be read is left out.

    Raises:
        UserError: no clip can be read.
    """
    order = random.Random(seed).sample(sources, len(sources))
    problems: list[str] = []
    kept: list[tuple[str, Clip]] = []

    def decode(item: tuple[Path, Span | None]) -> tuple[str, Clip | str]:
        source, span = item
        try:
            info = probe(source)
            span = span or Span(Fraction(0), clip_s)
            sound = rate_hz if info.audio is not None else None
            return f"{source} {span}", decode_span(info, span, fps=fps, size=size, sample_rate=sound, threads=1)
        except MediaError as error:
            return str(source), str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        plan = _spans(order, clip_s, fps)
        while len(kept) < count and (part := [item for _, item in zip(range(count - len(kept)), plan, strict=False)]):
            for name, result in pool.map(decode, part):
                if isinstance(result, Clip):
                    kept.append((name, result))
                else:
                    problems.append(result)
    if not kept:
        raise UserError(f"none of {len(sources)} videos could be read; the first: {problems[0]}")
    silent = np.zeros(round(clip_s * rate_hz), dtype=np.float32)
    waveforms = [clip.waveform if clip.sample_rate else silent for _, clip in kept]
    clips = Clips(
        frames=torch.from_numpy(np.stack([clip.frames for _, clip in kept])).permute(0, 1, 4, 2, 3).contiguous(),
        waveform=torch.from_numpy(np.stack(waveforms)),
        has_sound=torch.tensor([bool(np.abs(waveform).max() > 0) for waveform in waveforms]),
        sources=tuple(name for name, _ in kept),
    )
    return clips, problems


def _spans(sources: list[Path], clip_s: Fraction, fps: Fraction) -> Iterator[tuple[Path, Span | None]]:
    """The first window of every source, then the second of every source that has one, and so on."""
    for source in sources:
        yield source, None
    later: list[tuple[Path, list[Span]]] = []
    for source in sources:
        try:
            duration_s = probe(source).duration_s
        except MediaError:
            continue
        if spans := windows(Span(Fraction(0), duration_s), clip_s, fps)[1:]:
            later.append((source, spans))
    for turn in range(max((len(spans) for _, spans in later), default=0)):
        yield from ((source, spans[turn]) for source, spans in later if turn < len(spans))


def frame_batch(clips: Clips, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n random frames and, for each, how much it differs from its clip's mean picture.

    Returns:
        frames (n, 3, H, W) in [-1, 1]; motion (n, 1, H, W) in [0, 1].
    """
    clip = torch.randint(len(clips), (n,), generator=generator)
    time = torch.randint(clips.frames.shape[1], (n,), generator=generator)
    flip = torch.rand(n, generator=generator) < 0.5
    frames = clips.frames[clip, time].float()  # (n, 3, H, W)
    rest = clips.frames[clip].float().mean(1)  # (n, 3, H, W)
    motion = ((frames - rest).abs().amax(1, keepdim=True) / 64).clamp(max=1)  # (n, 1, H, W)
    frames = frames / 127.5 - 1
    return torch.where(flip[:, None, None, None], frames.flip(-1), frames), torch.where(
        flip[:, None, None, None], motion.flip(-1), motion
    )


def sound_batch(clips: Clips, n: int, num_samples: int, generator: torch.Generator) -> Tensor:
    """(n, num_samples): random crops, each the louder of two, so that silence between events is not most of them."""
    sounding = clips.has_sound.nonzero()[:, 0]
    last = clips.waveform.shape[1] - num_samples
    crops = []
    for _ in range(n):
        clip = sounding[torch.randint(len(sounding), (2,), generator=generator)]
        start = torch.randint(last + 1, (2,), generator=generator)
        pair = torch.stack(
            [clips.waveform[c, s : s + num_samples] for c, s in zip(clip.tolist(), start.tolist(), strict=True)]
        )
        crops.append(pair[pair.square().sum(1).argmax()])
    return torch.stack(crops)
