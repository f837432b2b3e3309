"""`syncflow calibrate DIR`: how every metric answers known damage, and the smallest amount each can see.

Each clip is decoded once; the damage is done to its frames and waveform, so nothing but the damage changes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic import Field

from syncflow import __version__
from syncflow.clock import Span
from syncflow.config import Config, load
from syncflow.errors import UserError
from syncflow.eval.clips import ClipFile, find_clips, set_hash
from syncflow.eval.damage import DAMAGES, Stream
from syncflow.eval.response import Answer, Heard, summarise
from syncflow.files import write_whole
from syncflow.media import MediaError, decode_span, printable, probe

TAGGER = "efficientat-mn04"
"""The network whose distances are calibrated too, where its weights are at hand."""


class CalibrateConfig(Config):
    """Damage real or rendered clips by known amounts and draw how each metric answers."""

    clips: tyro.conf.Positional[Path]
    """Folder of good clips, such as rendered impacts; a manifest may state events_s."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("calibration")
    """Folder for calibration.json and calibration.html."""
    damages: str = ",".join(DAMAGES)
    """Comma-separated kinds of damage."""
    limit: int = Field(default=40, ge=2)
    """Clips used, first by name."""
    workers: int = Field(default=0, ge=0)
    """Processes; 0 takes one per core."""
    weights: Path | None = None
    """Folder of weights, for FAD and KL of EfficientAT; else $SYNCFLOW_WEIGHTS, else the user's cache."""
    seed: int = 0
    """Of random damage and of the bootstrap."""


@dataclass(frozen=True)
class Seen:
    """What the metrics take from the pictures of a clip."""

    impacts: tuple[np.ndarray, np.ndarray]
    impacts_s: list[float]
    flow_peaks_s: list[float]
    motion: float


def see(stream: Stream) -> Seen:
    from syncflow.eval.av_align import flow_curve, flow_peaks
    from syncflow.sync import impact_strength, motion_energy, motion_peaks

    return Seen(
        impacts=impact_strength(stream.frames, stream.fps),
        impacts_s=[float(t) for t in motion_peaks(stream.frames, stream.fps)],
        flow_peaks_s=flow_peaks(flow_curve(iter(stream.frames)), float(stream.fps)),
        motion=float(motion_energy(stream.frames, stream.fps)[1].mean()),
    )


def hear(stream: Stream, network: Any) -> Heard:
    from syncflow.eval.av_align import audio_peaks
    from syncflow.eval.loudness import integrated_loudness
    from syncflow.sync import audio_onsets

    embedding = probabilities = None
    if network is not None:
        from syncflow.models.perception.efficientat import tag

        embedding, probabilities = tag(network, stream.waveform, stream.sample_rate)
    return Heard(
        onsets_s=[float(t) for t in audio_onsets(stream.waveform, stream.sample_rate)],
        published_onsets_s=audio_peaks(stream.waveform, stream.sample_rate),
        loudness_lufs=integrated_loudness(stream.waveform, stream.sample_rate),
        embedding=embedding,
        probabilities=probabilities,
    )


def answer(stream: Stream, seen: Seen, heard: Heard, events_s: Sequence[float] | None) -> Answer:
    """Every metric of one clip."""
    from syncflow.eval.av_align import av_align
    from syncflow.eval.onset_offset import clip_f1, known_events, seen_events

    fps = float(stream.fps)
    duration_s = min(len(stream.frames) / fps, len(stream.waveform) / stream.sample_rate)
    if events_s is not None:
        events = known_events(events_s, heard.onsets_s, duration_s)
    else:
        from syncflow.sync import sound_against

        fit = sound_against(seen.impacts, stream.waveform, stream.sample_rate, duration_s)
        events = seen_events(seen.impacts_s, heard.onsets_s, fit)
    return Answer(
        {
            "av_align": av_align(heard.published_onsets_s, seen.flow_peaks_s, fps),
            "onset_offset": events.offset_ms if events.confidence > 0 else None,
            "onset_f1": clip_f1(events),
            "loudness": heard.loudness_lufs,
            "motion": seen.motion,
        },
        heard,
    )


def read(clip: ClipFile) -> Stream:
    info = probe(clip.path)
    if info.audio is None:
        raise MediaError("no_audio", clip.path, "has no sound")
    fps = info.rate or Fraction(25)
    part = decode_span(
        info, Span(Fraction(0), info.duration_s), fps=fps, size=None, sample_rate=info.audio.sample_rate, threads=1
    )
    if part.valid_frames < 3:
        raise MediaError("too_short", clip.path, f"has {part.valid_frames} frames; motion needs 3")
    return Stream(part.frames[: part.valid_frames], fps, part.waveform, part.sample_rate)


def respond(
    clip: ClipFile, others: dict[str, ClipFile], seeds: dict[str, int], damages: Sequence[str], tagger: Path | None
) -> dict[str, list[Answer]]:
    """One clip under every damage: answers by damage, one per amount."""
    network = None
    if tagger is not None:
        from syncflow.models.perception.efficientat import load_tagger

        network = load_tagger(tagger)
    stream = read(clip)
    lender = read(others[clip.name]) if "swapped" in damages else stream
    seen, heard = see(stream), hear(stream, network)
    found: dict[str, list[Answer]] = {}
    for name in damages:
        damage, amounts, _ = DAMAGES[name]
        found[name] = []
        for amount in amounts:
            one = damage(stream, amount, lender, seeds[clip.name])
            found[name].append(
                answer(
                    one,
                    seen if one.frames is stream.frames else see(one),
                    heard if one.waveform is stream.waveform else hear(one, network),
                    clip.events_s,
                )
            )
    return found


def main(argv: Sequence[str]) -> int:
    from syncflow.eval.calibration_page import write_page
    from syncflow.eval.work import default_workers, map_clips
    from syncflow.models.perception.checkpoints import WeightsUnavailable, locate, weights_home

    config = load(CalibrateConfig, None, argv, "syncflow calibrate")
    damages = [name.strip() for name in config.damages.split(",") if name.strip()]
    unknown = [name for name in damages if name not in DAMAGES]
    if unknown or not damages:
        raise UserError(f"no damage {(unknown or [''])[0]!r}; known: {', '.join(DAMAGES)}")
    clips = find_clips(config.clips).clips[: config.limit]
    if len(clips) < 2:
        raise UserError(f"{printable(config.clips)}: one clip is not enough to calibrate by; give at least 2")
    network, tagger = "", None
    try:
        located = locate(TAGGER, weights_home(config.weights))
        network, tagger = located.identity, located.path
    except WeightsUnavailable as error:
        print(f"fad_efficientat, kl_efficientat: not calibrated, because {error}")
    others = {clip.name: clips[k - 1] for k, clip in enumerate(clips)}
    seeds = {clip.name: config.seed * 100003 + k for k, clip in enumerate(clips)}
    workers = config.workers or default_workers()
    answers, failures = map_clips(respond, clips, (others, seeds, damages, tagger), workers, "clips")
    good = [one for one in answers if one is not None]
    if not good:
        raise UserError(f"{printable(config.clips)}: no clip can be measured; the first: {failures[0].detail}")
    result = summarise(good, damages, config.seed)
    result |= {
        "version": __version__,
        "seed": config.seed,
        "set": set_hash(f"{clip.name}" for clip in clips),
        "clips": len(good),
        "events": "known" if all(clip.events_s is not None for clip in clips) else "seen",
        "network": network,
        "failed": [vars(failure) for failure in failures],
    }
    config.output.mkdir(parents=True, exist_ok=True)
    write_whole(config.output / "calibration.json", json.dumps(result, indent=1, allow_nan=False))
    write_page(result, config.output / "calibration.html")
    for name, damage in result["damages"].items():
        smallest = ", ".join(
            f"{metric} from {curve['smallest']:g}"
            for metric, curve in damage["metrics"].items()
            if curve.get("smallest") is not None
        )
        print(f"{name} ({damage['axis']}) is seen by: {smallest or 'none'}")
    print(f"page: {config.output / 'calibration.html'}")
    return 0
