"""`syncflow calibrate DIR`: how every metric answers known damage, and the smallest shift each can see.

Each clip is decoded once; the damage is done to its frames and waveform, so nothing but the damage changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic import Field
from scipy import ndimage, signal

from syncflow import __version__
from syncflow.clock import Span
from syncflow.config import Config, load
from syncflow.errors import UserError
from syncflow.eval.clips import ClipFile, Failure, find_clips, set_hash
from syncflow.eval.statistics import Interval, bootstrap_mean
from syncflow.media import MediaError, decode_span, printable, probe

SHIFTS_MS = (-800, -400, -200, -120, -80, -40, -20, 0, 20, 40, 80, 120, 200, 400, 800)


@dataclass(frozen=True)
class Stream:
    """A clip in memory."""

    frames: np.ndarray
    """(T, H, W, 3) uint8."""
    fps: Fraction
    waveform: np.ndarray
    """(L,) mono."""
    sample_rate: int


Damage = Callable[[Stream, float, Stream, int], Stream]
"""(clip, amount, another clip, seed) -> the damaged clip."""


def _sound(stream: Stream, waveform: np.ndarray) -> Stream:
    return Stream(stream.frames, stream.fps, waveform.astype(np.float32), stream.sample_rate)


def _picture(stream: Stream, frames: np.ndarray) -> Stream:
    return Stream(frames, stream.fps, stream.waveform, stream.sample_rate)


def shift(stream: Stream, ms: float, other: Stream, seed: int) -> Stream:
    """The sound `ms` later; what leaves the clip is lost, silence comes in."""
    n = round(ms * stream.sample_rate / 1000)
    length = len(stream.waveform)
    return _sound(stream, np.pad(stream.waveform, (max(n, 0), max(-n, 0)))[max(-n, 0) :][:length])


def drift(stream: Stream, ms_per_s: float, other: Stream, seed: int) -> Stream:
    """The sound runs slow: late by `ms_per_s` more each second."""
    at = np.arange(len(stream.waveform)) / (1 + ms_per_s / 1000)
    return _sound(stream, np.interp(at, np.arange(len(stream.waveform)), stream.waveform))


def noise(stream: Stream, snr_db: float, other: Stream, seed: int) -> Stream:
    """White noise at a signal-to-noise ratio."""
    power = float(np.mean(stream.waveform**2)) / 10 ** (snr_db / 10)
    return _sound(stream, stream.waveform + np.random.default_rng(seed).normal(0, np.sqrt(power), len(stream.waveform)))


def quieter(stream: Stream, db: float, other: Stream, seed: int) -> Stream:
    return _sound(stream, stream.waveform * 10 ** (-db / 20))


def low_pass(stream: Stream, hz: float, other: Stream, seed: int) -> Stream:
    if hz >= stream.sample_rate / 2:
        return stream
    return _sound(
        stream, signal.sosfiltfilt(signal.butter(4, hz, fs=stream.sample_rate, output="sos"), stream.waveform)
    )


def swapped(stream: Stream, share: float, other: Stream, seed: int) -> Stream:
    """The sound of another clip, in this share of the clips."""
    if np.random.default_rng(seed).uniform() >= share:
        return stream
    length = len(stream.waveform)
    ratio = other.sample_rate / stream.sample_rate
    taken = np.interp(np.arange(length) * ratio, np.arange(len(other.waveform)), other.waveform, right=0.0)
    return _sound(stream, taken)


def dropped(stream: Stream, share: float, other: Stream, seed: int) -> Stream:
    """Frames lost at random: the one before is shown again."""
    lost = np.random.default_rng(seed).uniform(size=len(stream.frames)) < share
    lost[0] = False
    index = np.maximum.accumulate(np.where(lost, 0, np.arange(len(stream.frames))))
    return _picture(stream, stream.frames[index])


def frozen(stream: Stream, share: float, other: Stream, seed: int) -> Stream:
    """The last part of the clip stands still."""
    last = max(1, round(len(stream.frames) * (1 - share)))
    return _picture(stream, stream.frames[np.minimum(np.arange(len(stream.frames)), last - 1)])


def blurred(stream: Stream, sigma: float, other: Stream, seed: int) -> Stream:
    """Gaussian blur, sigma in hundredths of the height."""
    pixels = sigma / 100 * stream.frames.shape[1]
    return _picture(stream, ndimage.gaussian_filter(stream.frames, (0, pixels, pixels, 0)))


DAMAGES: dict[str, tuple[Damage, tuple[float, ...], str]] = {
    "shift": (shift, SHIFTS_MS, "sound late by, ms"),
    "drift": (drift, (0, 5, 10, 20, 50, 100), "drift, ms per s"),
    "swapped": (swapped, (0, 0.25, 0.5, 0.75, 1), "share of clips with another's sound"),
    "noise": (noise, (60, 40, 30, 20, 10, 0), "signal to noise, dB"),
    "quieter": (quieter, (0, 6, 12, 24, 48), "quieter by, dB"),
    "low_pass": (low_pass, (24000, 8000, 4000, 2000, 1000, 500), "sound cut above, Hz"),
    "dropped": (dropped, (0, 0.1, 0.25, 0.5, 0.75), "share of frames dropped"),
    "frozen": (frozen, (0, 0.25, 0.5, 0.75, 1), "share of the clip frozen"),
    "blurred": (blurred, (0, 1, 2, 4, 8), "blur, % of height"),
}
"""name: (what it does, its amounts with no damage first or, for shift, at 0, axis)."""


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
    seed: int = 0
    """Of random damage and of the bootstrap."""


Row = dict[str, float | None]


def measure_stream(stream: Stream, events_s: Sequence[float] | None) -> Row:
    """Every metric that needs no network, of one clip in memory."""
    from syncflow.eval.av_align import audio_peaks, av_align, flow_curve, flow_peaks
    from syncflow.eval.loudness import integrated_loudness
    from syncflow.eval.onset_offset import Events, clip_f1, known_events
    from syncflow.sync import align_curves, audio_onsets, impact_strength, motion_energy, motion_peaks, onset_strength

    fps = float(stream.fps)
    onsets = [float(t) for t in audio_onsets(stream.waveform, stream.sample_rate)]
    duration_s = min(len(stream.frames) / fps, len(stream.waveform) / stream.sample_rate)
    if events_s is not None:
        events = known_events(events_s, onsets, duration_s)
    else:
        offset_s, confidence = 0.0, 0.0
        if onsets:
            visual = impact_strength(stream.frames, fps)
            offset_s, confidence = align_curves(visual, onset_strength(stream.waveform, stream.sample_rate), duration_s)
        events = Events([float(t) for t in motion_peaks(stream.frames, fps)], onsets, offset_s * 1000, confidence)
    aligned = av_align(
        audio_peaks(stream.waveform, stream.sample_rate), flow_peaks(flow_curve(iter(stream.frames)), fps), fps
    )
    return {
        "av_align": aligned,
        "onset_offset": events.offset_ms if events.confidence > 0 else None,
        "onset_f1": clip_f1(events),
        "loudness": integrated_loudness(stream.waveform, stream.sample_rate),
        "motion": float(motion_energy(stream.frames, fps)[1].mean()),
    }


def read(clip: ClipFile) -> Stream:
    info = probe(clip.path)
    if info.audio is None:
        raise MediaError("no_audio", clip.path, "has no sound")
    fps = info.rate or Fraction(25)
    part = decode_span(
        info, Span(Fraction(0), info.duration_s), fps=fps, size=None, sample_rate=info.audio.sample_rate, threads=1
    )
    return Stream(part.frames[: part.valid_frames], fps, part.waveform, part.sample_rate)


def respond(clip: ClipFile, other: ClipFile, damages: Sequence[str], seed: int) -> dict[str, list[Row]]:
    """One clip under every damage: rows by damage, one per amount."""
    stream = read(clip)
    lender = read(other) if "swapped" in damages else stream
    return {
        name: [
            measure_stream(DAMAGES[name][0](stream, amount, lender, seed), clip.events_s) for amount in DAMAGES[name][1]
        ]
        for name in damages
    }


def _respond(clip: ClipFile, others: dict[str, ClipFile], seeds: dict[str, int], damages: Sequence[str]) -> Any:
    return respond(clip, others[clip.name], damages, seeds[clip.name])


def smallest_seen(amounts: Sequence[float], rows: Sequence[Sequence[float | None]], undamaged: int) -> float | None:
    """The least |amount| from which on the paired change of a metric is told from none.

    Told: the 95 % interval of the mean difference to the undamaged clips excludes 0, at this amount and at every
    larger one. None where the metric never tells.

    Args:
        rows: per amount, the value of each clip (None where there is none).
    """
    seen: float | None = None
    for k in sorted(range(len(amounts)), key=lambda k: -abs(amounts[k] - amounts[undamaged])):
        if k == undamaged:
            continue
        pairs = [(a, b) for a, b in zip(rows[k], rows[undamaged], strict=True) if a is not None and b is not None]
        if len(pairs) < 3:
            return seen
        change = np.array([a - b for a, b in pairs])
        interval = bootstrap_mean(change, seed=0)
        told = interval.low is not None and interval.high is not None and (interval.low > 0 or interval.high < 0)
        if not told:
            return seen
        seen = abs(amounts[k] - amounts[undamaged])
    return seen


def monotone(amounts: Sequence[float], means: Sequence[float | None], undamaged: int) -> float | None:
    """Spearman's rank correlation of |damage| with |change|: 1 where more damage always shows more."""
    from scipy.stats import spearmanr

    points = [
        (abs(a - amounts[undamaged]), abs(m - (means[undamaged] or 0.0)))
        for a, m in zip(amounts, means, strict=True)
        if m is not None
    ]
    if means[undamaged] is None or len(points) < 3 or len({p[1] for p in points}) < 2:
        return None
    return float(spearmanr(*zip(*points, strict=True)).statistic)


def main(argv: Sequence[str]) -> int:
    from syncflow.eval.calibration_page import write_page
    from syncflow.eval.work import default_workers, map_clips

    config = load(CalibrateConfig, None, argv, "syncflow calibrate")
    damages = [name.strip() for name in config.damages.split(",") if name.strip()]
    unknown = [name for name in damages if name not in DAMAGES]
    if unknown or not damages:
        raise UserError(f"no damage {(unknown or [''])[0]!r}; known: {', '.join(DAMAGES)}")
    clips = find_clips(config.clips).clips[: config.limit]
    if len(clips) < 2:
        raise UserError(f"{printable(config.clips)}: one clip is not enough to calibrate by; give at least 2")
    others = {clip.name: clips[k - 1] for k, clip in enumerate(clips)}
    seeds = {clip.name: config.seed * 100003 + k for k, clip in enumerate(clips)}
    answers, failures = map_clips(
        _respond, clips, (others, seeds, damages), config.workers or default_workers(), "clips"
    )
    good = [answer for answer in answers if answer is not None]
    if not good:
        raise UserError(f"{printable(config.clips)}: no clip can be measured; the first: {failures[0].detail}")
    result = summarise(good, damages, config.seed)
    result |= {
        "version": __version__,
        "seed": config.seed,
        "set": set_hash(f"{clip.name}" for clip in clips),
        "clips": len(good),
        "events": "known" if all(clip.events_s is not None for clip in clips) else "seen",
        "failed": [vars(failure) for failure in failures if isinstance(failure, Failure)],
    }
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "calibration.json").write_text(json.dumps(result, indent=1, allow_nan=False))
    write_page(result, config.output / "calibration.html")
    for name, damage in result["damages"].items():
        told = ", ".join(
            f"{metric} {curve['smallest']:g}"
            for metric, curve in damage["metrics"].items()
            if curve["smallest"] is not None
        )
        print(f"{name} ({damage['axis']}): smallest told: {told or 'none'}")
    print(f"page: {config.output / 'calibration.html'}")
    return 0


def summarise(answers: Sequence[dict[str, list[Row]]], damages: Sequence[str], seed: int) -> dict[str, Any]:
    """Response curves: per damage and metric, mean with interval per amount, smallest amount told, monotonicity."""
    found: dict[str, Any] = {}
    for name in damages:
        _, amounts, axis = DAMAGES[name]
        undamaged = amounts.index(0) if name == "shift" else 0
        metrics = {}
        for metric in answers[0][name][0]:
            rows = [[answer[name][k][metric] for answer in answers] for k in range(len(amounts))]
            points = [_mean(row, seed) for row in rows]
            means = [None if p is None else p.value for p in points]
            metrics[metric] = {
                "points": [None if p is None else [p.value, p.low, p.high] for p in points],
                "smallest": smallest_seen(amounts, rows, undamaged),
                "monotone": monotone(amounts, means, undamaged),
            }
        found[name] = {"axis": axis, "amounts": list(amounts), "metrics": metrics}
    return {"damages": found}


def _mean(row: Sequence[float | None], seed: int) -> Interval | None:
    known = np.array([value for value in row if value is not None])
    return bootstrap_mean(known, seed, 300) if len(known) else None
