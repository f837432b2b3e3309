"""`syncflow generate`: prompts -> mp4 files with sound, and a manifest that `syncflow evaluate` reads."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from pydantic import Field

from syncflow import config as configuration
from syncflow.clock import parse_rate
from syncflow.config import Config
from syncflow.errors import UserError
from syncflow.models.outputs import MANIFEST, check_folder, read_manifest, slug, write_clip, write_manifest
from syncflow.models.prompts import MAX_SEED, Request, check_prompt, parse_size, read_prompts

if TYPE_CHECKING:
    from syncflow.models.guidance import Guidance
    from syncflow.models.pipeline import Generated, SyncFlowPipeline


class GenerateConfig(Config):
    """Text -> video with sound; with --video, a silent video -> its sound.

    syncflow generate "a hammer hits an anvil twice" -o out --checkpoint runs/nano/3_joint/model
    syncflow generate "a ball bounces on wood" --video silent.mp4 -o out --checkpoint MODEL -n 4

    Files are named after prompt and seed; what is already there, made with the same settings, is kept.
    out/manifest.jsonl lists every clip of the folder.
    """

    prompt: tyro.conf.Positional[tuple[str, ...]] = ()
    """What is to be seen and heard; several are allowed."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out")
    """Folder for the clips and manifest.jsonl."""
    checkpoint: Path | None = None
    """Model directory (default: $SYNCFLOW_CHECKPOINT)."""
    prompts: Path | None = None
    """File of prompts: .txt with one a line, or .jsonl with rows {"prompt": …, "video": optional path}."""
    video: Path | None = None
    """A video whose sound is wanted; or the folder of the videos that the rows of --prompts name by their `uri`, as the
    manifest of an earlier run does."""
    begin_with: Path | None = None
    """An image, a video (with its sound if it has one) or sound alone, that the clip begins with; the rest is made."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels (default: the size the model was trained at)."""
    duration: float | None = None
    """Seconds (default: as trained; with --video, the video's)."""
    fps: str | None = None
    """Frames per second, such as 16 or 30000/1001 (default: as trained)."""
    steps: Annotated[int, Field(ge=1)] = 30
    """Steps of the solver."""
    solver: Literal["euler", "ab2", "midpoint", "heun", "rk4"] = "euler"
    """euler and ab2 ask the model once a step, midpoint and heun twice, rk4 four times."""
    guidance: float | None = None
    """How strongly the caption is followed; 1 is as learned (default: the checkpoint's)."""
    audio_guidance: float | None = None
    """The same for the sound alone (default: --guidance)."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guide only from the first to the second time of the flow (0 noise, 1 data)."""
    guidance_rescale: float = 0.0
    """0 to 1: bring the guided velocity back to the spread of the unguided one."""
    shown: Literal["clean", "noised", "fresh", "once"] = "clean"
    """How a given video is shown to the model: clean, noised as in training with fixed or fresh noise, or once for
    all steps (fastest)."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Seed of each prompt's first clip."""
    num: Annotated[int, Field(ge=1), tyro.conf.arg(aliases=["-n"])] = 1
    """Clips per prompt, with seeds seed, seed + 1, …"""
    formats: Annotated[tuple[Literal["mp4", "wav", "gif"], ...], Field(min_length=1)] = ("mp4",)
    """Files to write of each clip."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Clips computed together; above 1, their last bits may depend on each other."""
    device: str | None = None
    """cpu, cuda, … (default: cuda where there is one)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the towers."""


def main(argv: list[str]) -> int:
    config = configuration.load(GenerateConfig, None, argv, "syncflow generate")
    requests = read_requests(config)
    check_folder(config.output)
    settings = _settings(config)
    pipeline = _open(config)
    settings["guidance"] = _guidance(config, pipeline.card.guidance)
    rows = read_manifest(config.output)
    identity = _identity(pipeline, _checkpoint(config))
    plan = _plan(config, requests, settings, pipeline, identity)
    missing = [job for job in plan if not _is_made(config, rows, job)]
    written, kept = 0, len(plan) - len(missing)
    config.output.mkdir(parents=True, exist_ok=True)
    with _progress(len(missing), config.steps) as progress:
        for group in _groups(missing, config.batch_size):
            for job, clip in zip(group, _run(pipeline, group, config, settings, progress), strict=True):
                try:
                    _write(config, job, clip)
                    rows[job.row["uri"]] = job.row
                    write_manifest(config.output, rows)
                except OSError as error:
                    raise UserError(f"{config.output} cannot be written: {error.strerror or error}") from error
                written += 1
    already = f", {kept} were there already" if kept else ""
    print(f"{written} clips written to {config.output}{already}; listed in {config.output / MANIFEST}")
    return 0


def read_requests(config: GenerateConfig) -> list[Request]:
    """Prompts of the command line and of the prompts file.

    Raises:
        UserError: none at all, or an empty one, or a file that cannot be read.
    """
    requests = [Request(prompt, config.video) for prompt in config.prompt]
    if config.prompts is not None:
        for request in read_prompts(config.prompts):
            video = request.video or config.video
            if request.video is None and video is not None and video.is_dir():
                video /= str(request.extra.get("uri", ""))
                if not video.is_file():
                    raise UserError(
                        f"{config.prompts}: {request.prompt[:60]!r} names no video of {config.video} by uri"
                    )
            requests.append(replace(request, video=video))
    if not requests:
        raise UserError('nothing to generate: give a prompt, as in syncflow generate "a dog barks" -o out')
    for request in requests:
        check_prompt(request.prompt)
    return requests


def _guidance(config: GenerateConfig, usual: float) -> Guidance:
    """What the flags say of guidance; `usual` where they leave it to the checkpoint."""
    from syncflow.models.guidance import Guidance

    video = usual if config.guidance is None else config.guidance
    audio = video if config.audio_guidance is None else config.audio_guidance
    values = {"video": video, "audio": audio, "interval": config.guidance_interval, "rescale": config.guidance_rescale}
    return configuration.validate(Guidance, values, "command line")


def _settings(config: GenerateConfig) -> dict[str, Any]:
    """Arguments of the pipeline that hold for every clip, but for the guidance."""
    _guidance(config, usual=1.0)
    try:
        fps = None if config.fps is None else parse_rate(config.fps)
    except ValueError as error:
        raise UserError(f"--fps: {error}") from error
    return {
        "size": None if config.size is None else parse_size(config.size),
        "duration_s": config.duration,
        "fps": fps,
        "steps": config.steps,
        "solver": config.solver,
        "shown": config.shown,
        "beginning": config.begin_with,
    }


def _checkpoint(config: GenerateConfig) -> Path:
    named = config.checkpoint or os.environ.get("SYNCFLOW_CHECKPOINT")
    if not named:
        raise UserError(
            "no model: give --checkpoint DIR (or set SYNCFLOW_CHECKPOINT). `syncflow demo` trains a small one; "
            "`syncflow train configs/nano` makes runs/…/model"
        )
    return Path(named)


def _open(config: GenerateConfig) -> SyncFlowPipeline:
    folder = _checkpoint(config)
    import warnings

    # Libraries telling their own developers what to rename is noise to whoever waits for a clip.
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch

    from syncflow.models.pipeline import SyncFlowPipeline

    try:
        if config.device is not None:
            torch.zeros(1, device=config.device).item()  # a device that is not there, or does not compute, says so here
        return SyncFlowPipeline.from_pretrained(folder, device=config.device, dtype=getattr(torch, config.dtype))
    except (RuntimeError, AssertionError) as error:
        if config.device is None:
            raise
        raise UserError(f"--device {config.device}: {str(error).splitlines()[0]}") from error


@dataclass
class _Job:
    """One clip to make."""

    request: Request
    seed: int
    row: dict[str, Any]
    """Its line in the manifest."""


def _plan(
    config: GenerateConfig,
    requests: Sequence[Request],
    settings: dict[str, Any],
    pipeline: SyncFlowPipeline,
    identity: str,
) -> list[_Job]:
    jobs: list[_Job] = []
    for request in requests:
        pipeline.check(
            size=settings["size"], duration_s=config.duration, fps=settings["fps"], video=request.video,
            beginning=config.begin_with,
        )  # fmt: skip
        marks = [
            request.video.stem if request.video else "",
            f"after-{config.begin_with.stem}" if config.begin_with else "",
            config.size or "",
            f"{config.duration:g}s" if config.duration else "",
            f"{config.fps}fps".replace("/", "_") if config.fps else "",
        ]
        name = "-".join([slug(request.prompt), *[mark for mark in marks if mark]])
        made_with = {**settings, "guidance": repr(settings["guidance"]), "dtype": config.dtype}
        for seed in range(config.seed, config.seed + config.num):
            row: dict[str, Any] = {
                **request.extra,
                "uri": f"{name}-{seed}.{config.formats[0]}",
                "caption": request.prompt,
                "seed": seed,
                "task": "video_to_audio" if request.video else "continuation" if config.begin_with else "text_to_av",
                "video": str(request.video) if request.video else None,
                "made_with": hashlib.sha256(f"{identity} {made_with} {config.formats}".encode()).hexdigest()[:16],
                "steps": config.steps,
                "solver": config.solver,
            }
            if all(job.row["uri"] != row["uri"] for job in jobs):
                jobs.append(_Job(request, seed, row))
    return jobs


def _identity(pipeline: SyncFlowPipeline, folder: Path) -> str:
    """What, beside the settings, decides a clip's bytes."""
    from syncflow.models.checkpoints import WEIGHTS

    stat = (folder / WEIGHTS).stat()
    encoders = [pipeline.encoders.video.identity.sha256, pipeline.encoders.audio.identity.sha256]
    return f"{stat.st_size} {stat.st_mtime_ns} {pipeline.card.model_dump_json()} {encoders}"


def _is_made(config: GenerateConfig, rows: dict[str, dict[str, Any]], job: _Job) -> bool:
    row, path = rows.get(job.row["uri"]), config.output / job.row["uri"]
    same = row is not None and row.get("made_with") == job.row["made_with"]
    return same and all(path.with_suffix(f".{kind}").is_file() for kind in config.formats)


def _groups(jobs: Sequence[_Job], batch_size: int) -> Iterator[list[_Job]]:
    """Jobs of one call: all sounds of a video together (they share its features), else `batch_size` clips."""
    group: list[_Job] = []
    for job in jobs:
        if group:
            same = job.request is group[0].request if job.request.video else len(group) < batch_size
            if not same or bool(job.request.video) != bool(group[0].request.video):
                yield group
                group = []
        group.append(job)
    if group:
        yield group


def _run(
    pipeline: SyncFlowPipeline, group: Sequence[_Job], config: GenerateConfig, settings: dict[str, Any], progress: Any
) -> list[Generated]:
    jobs = [(job.request.prompt, job.seed) for job in group]
    return pipeline.make(jobs, video=group[0].request.video, on_step=lambda: progress(len(group)), **settings)


def _write(config: GenerateConfig, job: _Job, clip: Generated) -> None:
    write_clip(config.output / job.row["uri"], clip, config.formats)
    height, width = clip.frames.shape[1:3]
    job.row |= {
        "width": width,
        "height": height,
        "fps": str(clip.fps),
        "duration_s": float(Fraction(len(clip.frames)) / clip.fps),
        "sample_rate": clip.sample_rate,
    }


@contextmanager
def _progress(clips: int, steps: int) -> Iterator[Any]:
    """A function to be called after each step of n clips: a live bar for a person, else a line every few seconds."""
    total = clips * steps
    if configuration.is_terminal():
        from tqdm import tqdm

        with tqdm(total=total, unit="step", file=sys.stderr, disable=total == 0) as bar:
            yield bar.update
        return
    done, last = 0, time.monotonic()

    def step(n: int) -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last > 5 or done == total:
            last = time.monotonic()
            print(f"generate: clip {min(done // steps + 1, clips)}/{clips}, step {done}/{total}", file=sys.stderr)

    yield step
