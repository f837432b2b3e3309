"""A folder of rendered clips: video files and `manifest.jsonl`, written by several processes, resumable."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path
from typing import Literal

from pydantic import field_serializer, field_validator
from tqdm import tqdm

from syncflow.clock import parse_rate
from syncflow.config import Config, is_terminal
from syncflow.errors import UserError
from syncflow.files import write_whole
from syncflow.impacts.clip import events, plan_clip, render_clip
from syncflow.media import write_video

RENDERER = 1
"""Raise it when the same seed gives other clips: folders of older ones are then not mixed with new."""
Container = Literal["mp4", "mkv", "webm", "ts"]


class RenderConfig(Config):
    """How clips are rendered; recorded in the folder, so that it never holds two kinds."""

    seed: int = 0
    """Which series of clips; clip 17 of seed 3 is the same clip everywhere."""
    size: str = "64x64"
    """WIDTHxHEIGHT in pixels."""
    fps: Fraction = Fraction(16)
    """Frames per second: 16, 23.976, 30000/1001."""
    duration: Fraction = Fraction(2)
    """Seconds per clip."""
    sample_rate: int = 16000
    """Samples of sound per second."""
    container: Container = "mp4"
    """File type: mp4, mkv and ts hold H.264 + AAC, webm holds VP9 + Opus."""

    @field_validator("fps", mode="before")
    @classmethod
    def _rate(cls, value: object) -> Fraction:
        return parse_rate(value)  # type: ignore[arg-type]

    @field_validator("duration", mode="after")
    @classmethod
    def _long_enough(cls, value: Fraction) -> Fraction:
        if not Fraction(1, 4) <= value <= 600:
            raise ValueError(f"a clip lasts between 0.25 and 600 s, got {float(value):g}")
        return value

    @field_validator("sample_rate")
    @classmethod
    def _audible(cls, value: int) -> int:
        if not 8000 <= value <= 96000:
            raise ValueError(f"between 8000 and 96000 Hz, got {value}")
        return value

    @field_validator("size")
    @classmethod
    def _even(cls, value: str) -> str:
        width, height = parse_size(value)
        if min(width, height) < 16 or max(width, height) > 4096:
            raise ValueError(f"sides lie between 16 and 4096 pixels, got {value}")
        return value

    @field_serializer("fps", "duration")
    def _exact(self, value: Fraction) -> str:
        return str(value)


def parse_size(value: str) -> tuple[int, int]:
    """(width, height) from "64x48"."""
    parts = value.lower().split("x")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"not a size: {value!r}; write WIDTHxHEIGHT such as 64x64")
    return int(parts[0]), int(parts[1])


def render(
    n: int,
    out: Path,
    *,
    seed: int = 0,
    size: tuple[int, int] = (64, 64),
    fps: Fraction = Fraction(16),
    duration_s: Fraction = Fraction(2),
    sample_rate: int = 16000,
    container: Container = "mp4",
    processes: int | None = None,
    progress: bool = False,
) -> Path:
    """Render clips 0 … n-1 of `seed` into `out`; clips already there are kept. Returns the manifest's path.

    Args:
        processes: how many work at once; None for one per core.

    Raises:
        UserError: `out` holds clips rendered otherwise, or cannot be written.
    """
    config = RenderConfig(
        seed=seed,
        size=f"{size[0]}x{size[1]}",
        fps=Fraction(fps),
        duration=Fraction(duration_s),
        sample_rate=sample_rate,
        container=container,
    )
    return render_folder(n, Path(out), config, processes=processes, progress=progress)


def render_folder(
    n: int, out: Path, config: RenderConfig, *, processes: int | None = None, progress: bool = False
) -> Path:
    """As `render`, from a configuration."""
    if n < 1:
        raise UserError(f"the number of clips must be at least 1, got {n}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        _claim(out, config)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    missing = [i for i in range(n) if not (out / file_name(config, i)).is_file()]
    processes = min(processes or os.cpu_count() or 1, -(-len(missing) // 4))
    done = n - len(missing)
    report = _Progress(n, done, progress)
    for _ in _finished(missing, out, config, processes):
        report.step()
    report.close()
    for stale in out.glob(".*.part"):  # of a killed run, unless another still writes here
        if time.time() - stale.stat().st_mtime > 60:
            stale.unlink(missing_ok=True)
    manifest = out / "manifest.jsonl"
    lines = "".join(json.dumps(row(config, i), ensure_ascii=False) + "\n" for i in range(n))
    write_whole(manifest, lines)
    return manifest


def file_name(config: RenderConfig, index: int) -> str:
    return f"impact-s{config.seed}-{index:05d}.{config.container}"


def row(config: RenderConfig, index: int) -> dict[str, object]:
    """The manifest's line for clip `index`; costs no drawing."""
    plan = plan_clip(config.seed, index, config.duration)
    return {
        "uri": file_name(config, index),
        "id": plan.id,
        "caption": plan.captions.both,
        "video_caption": plan.captions.video,
        "audio_caption": plan.captions.audio,
        "label": plan.scene.label,
        "events_s": [strike.time_s for strike in plan.scene.strikes],
        "events": events(plan, parse_size(config.size)),
    }


def _claim(out: Path, config: RenderConfig) -> None:
    """Record how the clips of this folder are made, or check that it is the same as before."""
    record = out / "impacts.json"
    wanted = {"renderer": RENDERER, **config.model_dump(mode="json")}
    if record.is_file():
        try:
            found = json.loads(record.read_text())
        except ValueError:
            found = {}
        other = [
            f"{key} {found.get(key)!r} and not {value!r}" for key, value in wanted.items() if found.get(key) != value
        ]
        if other:
            raise UserError(f"{out} holds clips rendered with {', '.join(other)}: choose another folder")
    else:
        write_whole(record, json.dumps(wanted, indent=1) + "\n")


def _finished(indices: list[int], out: Path, config: RenderConfig, processes: int) -> Iterator[int]:
    if processes <= 1:
        for index in indices:
            yield _one(index, out, config)
        return
    # spawn: forking a process that runs threads (a trainer, a test) may hang.
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(_one, index, out, config) for index in indices]):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError("a rendering process was killed (out of memory?): start the same command again") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one(index: int, out: Path, config: RenderConfig) -> int:
    clip = render_clip(
        config.seed,
        index,
        size=parse_size(config.size),
        fps=config.fps,
        duration_s=config.duration,
        sample_rate=config.sample_rate,
    )
    try:
        write_video(out / file_name(config, index), clip.frames, clip.fps, clip.waveform, clip.sample_rate)
    except OSError as error:
        raise UserError(f"{out / file_name(config, index)} cannot be written: {error.strerror}") from error
    return index


class _Progress:
    """A live bar for a person, a line every few seconds for a log, silence unless asked."""

    def __init__(self, total: int, done: int, wanted: bool) -> None:
        self.total, self.done, self.wanted = total, done, wanted
        self.begun_s = self.told_s = time.monotonic()
        self.first = done
        self.bar = tqdm(total=total, initial=done, unit="clip", desc="render") if wanted and is_terminal() else None

    def step(self) -> None:
        self.done += 1
        now_s = time.monotonic()
        if self.bar is not None:
            self.bar.update()
        elif self.wanted and (now_s - self.told_s > 5 or self.done == self.total):
            self.told_s = now_s
            rate = (self.done - self.first) / max(1e-9, now_s - self.begun_s)
            print(f"render: {self.done}/{self.total} clips, {60 * rate:.0f} a minute", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
