"""An evaluation from folders to files: find, measure, score, write."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncflow import __version__
from syncflow.config import is_terminal
from syncflow.errors import UserError
from syncflow.eval.clips import ClipSet, find_clips, read_captions, set_hash
from syncflow.eval.measure import measure_cached
from syncflow.eval.onset_offset import TOLERANCES_MS, clip_f1, hits
from syncflow.eval.protocol import Protocol, refuse_unlike
from syncflow.eval.scores import (
    ClipScore,
    Score,
    score_av_align,
    score_clip,
    score_loudness,
    score_motion,
    score_onset_offset,
    shuffled,
)
from syncflow.eval.work import default_workers, map_clips
from syncflow.media import printable
from syncflow.process import git_commit

if TYPE_CHECKING:
    from syncflow.eval.command import EvaluateConfig

SCORERS: dict[str, Callable[[Sequence[ClipScore], int, int], dict[str, Score]]] = {
    "av_align": score_av_align,
    "onset_offset": score_onset_offset,
    "loudness": score_loudness,
    "motion": score_motion,
}
CHANCE = ("av_align", "onset_offset")
"""Metrics that another clip's sound can change."""


@dataclass
class JudgedSet:
    """A set of clips with everything that was found out about it."""

    files: ClipSet
    role: str
    """generated, reference or baseline."""
    name: str
    scores: list[ClipScore]
    metrics: dict[str, Score]


@dataclass
class Evaluation:
    """What an evaluation found; `as_json` is metrics.json."""

    sets: list[JudgedSet]
    protocol: dict[str, Any]
    warnings: list[str]
    against: list[dict[str, Any]] = field(default_factory=list)
    """Changes since an earlier evaluation."""

    def as_json(self) -> dict[str, Any]:
        return {
            "sets": [
                {
                    "name": one.name,
                    "role": one.role,
                    "folder": str(one.files.folder),
                    "clips": len(one.scores),
                    "failed": [vars(failure) for failure in one.files.failures] if one.role != "baseline" else [],
                    "metrics": {name: score.as_json() for name, score in one.metrics.items()},
                }
                for one in self.sets
            ],
            "warnings": self.warnings,
            "against": self.against,
            "protocol": self.protocol,
        }

    def flat(self) -> dict[str, float]:
        """For a tracker: `set/metric` -> value."""
        return {
            f"{_plain(one.name)}/{name}": score.value
            for one in self.sets
            for name, score in one.metrics.items()
            if score.value is not None
        }

    def summary(self, output: Path) -> str:
        lines = []
        for one in self.sets:
            failed = len(one.files.failures) if one.role != "baseline" else 0
            lines.append(f"{one.name}: {len(one.scores)} clips" + (f", {failed} could not be judged" if failed else ""))
            for name, score in one.metrics.items():
                lines.append(f"  {name:<16} {_told(score)}")
        lines += [f"note: {warning}" for warning in self.warnings]
        if not is_terminal():
            lines += [
                f"  {f.clip}: {f.reason}: {f.detail}"
                for one in self.sets
                for f in one.files.failures
                if one.role != "baseline"
            ]
        lines += [
            f"{row['set']}, {row['metric']}: {row['before']:.4g} before, {row['value']:.4g} now" for row in self.against
        ]
        return "\n".join([*lines, f"report: {output / 'report.html'}"])


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_. " else "_" for c in name)


def _told(score: Score) -> str:
    if score.value is None:
        return f"not computed: {score.not_computed}"
    between = f"  [{score.low:.3g}, {score.high:.3g}]" if score.low is not None and score.high is not None else ""
    return f"{score.value:.4g} {score.unit}{between}  n={score.clips}"


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Judge every folder and write the output files."""
    captions = read_captions(config.captions) if config.captions else {}
    found = [(find_clips(folder, captions), "generated") for folder in config.generated]
    if config.reference is not None:
        found.append((find_clips(config.reference, captions), "reference"))
    if not found:
        raise UserError("give --generated at least one folder")
    warnings = _warnings(found, captions)
    names = _unique([files.name for files, _ in found])
    workers = config.workers or default_workers()
    sets: list[JudgedSet] = []
    for (files, role), name in zip(found, names, strict=True):
        measured, failures = map_clips(measure_cached, files.clips, (config.output / "cache",), workers, name)
        files.failures += failures
        scores = [score_clip(c, m) for c, m in zip(files.clips, measured, strict=True) if m is not None]
        if not scores:
            first = failures[0]
            raise UserError(
                f"{printable(files.folder)}: none of its {len(files.clips)} videos can be judged; "
                f"the first, {first.clip}: {first.detail}"
            )
        sets.append(JudgedSet(files, role, name, scores, _metrics(config, scores, config.names)))
        if config.shuffled and role == "generated" and len(scores) > 1:
            mixed = shuffled(scores, config.seed)
            sets.append(JudgedSet(files, "baseline", f"{name}, sound shuffled", mixed, _metrics(config, mixed, CHANCE)))
    _add_features(config, sets)
    protocol = {
        "version": __version__,
        "commit": git_commit(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "resamples": config.resamples,
        "sets": {
            one.name: set_hash(score.measures.sha256 for score in one.scores) for one in sets if one.role != "baseline"
        },
    }
    result = Evaluation(sets, protocol, warnings + _unlike(sets))
    if config.against is not None:
        result.against = compare(sets, config.against)
    write(result, config)
    return result


def _add_features(config: EvaluateConfig, sets: Sequence[JudgedSet]) -> None:
    """Metrics of network features, which need every set at hand."""
    names = [name for name in config.names if name not in SCORERS]
    if not names:
        return
    from syncflow.eval.feature_scores import Backbones, score_features
    from syncflow.models.perception.checkpoints import weights_home

    backbones = Backbones(weights_home(config.weights), config.output / "cache", config.commercial_safe)
    reference = next((one.scores for one in sets if one.role == "reference"), None)
    digest = set_hash(score.measures.sha256 for score in reference) if reference else ""
    for one in sets:
        if one.role != "baseline":
            against = reference if one.role == "generated" else None
            for name in names:
                one.metrics[name] = score_features(
                    name, one.scores, against, digest, backbones, config.seed, f"{one.name}: {name}"
                )


def _metrics(config: EvaluateConfig, scores: Sequence[ClipScore], names: Sequence[str]) -> dict[str, Score]:
    metrics: dict[str, Score] = {}
    for name in (name for name in config.names if name in SCORERS and name in names):
        metrics |= SCORERS[name](scores, config.seed, config.resamples)
    return metrics


def _unique(names: Sequence[str]) -> list[str]:
    told: list[str] = []
    for name in names:
        twin = 2
        free = name
        while free in told:
            free, twin = f"{name} ({twin})", twin + 1
        told.append(free)
    return told


def _warnings(found: Sequence[tuple[ClipSet, str]], captions: dict[str, str]) -> list[str]:
    warnings = []
    sets = {role: {clip.name for clip in files.clips} for files, role in found}
    for files, role in found:
        if role == "generated" and "reference" in sets:
            alone = sorted({clip.name for clip in files.clips} - sets["reference"])
            if len(alone) == len(files.clips):
                warnings.append(
                    f"no clip of {files.name} has a reference of the same name: sets are compared as wholes"
                )
            elif alone:
                warnings.append(
                    f"{len(alone)} of {len(files.clips)} clips of {files.name} have no reference of the same name "
                    f"(the first: {alone[0]}); they are judged, but not shown beside one"
                )
        if captions and not any(clip.caption for clip in files.clips):
            warnings.append(f"no caption names a clip of {files.name}")
    return warnings


def compare(sets: Sequence[JudgedSet], earlier: Path) -> list[dict[str, Any]]:
    """Numbers of an earlier metrics.json beside ours, for sets of the same name.

    Raises:
        UserError: the file is no metrics.json, has none of our sets, or a number was made by another protocol.
    """
    try:
        before = {one["name"]: one["metrics"] for one in json.loads(earlier.read_text())["sets"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{printable(earlier)} is not a metrics.json: {error}") from error
    rows = []
    for one in sets:
        for name, score in one.metrics.items():
            old = before.get(one.name, {}).get(name, {})
            if score.protocol and score.value is not None and old.get("protocol"):
                theirs = Protocol(**{key: value for key, value in old["protocol"].items() if key != "id"})
                refuse_unlike(str(earlier), score.protocol, theirs)
                rows.append({"set": one.name, "metric": name, "before": old["value"], "value": score.value})
    if not rows:
        raise UserError(f"{printable(earlier)} has no number of {', '.join(one.name for one in sets)} to compare with")
    return rows


def _unlike(sets: Sequence[JudgedSet]) -> list[str]:
    """Metrics whose protocols differ between sets: their numbers stand side by side, but may not be compared."""
    warnings = []
    first, *rest = [one for one in sets if one.role != "baseline"]
    for other in rest:
        for name, mine in first.metrics.items():
            theirs = other.metrics.get(name)
            if mine.protocol and theirs and theirs.protocol:
                unlike = mine.protocol.differences(theirs.protocol)
                if unlike:
                    warnings.append(
                        f"{first.name} and {other.name} may not be compared ({'; '.join(unlike)}): "
                        "give both the same length, rates and kind of events (events_s in both manifests, or neither)"
                    )
                    break
    return warnings


COLUMNS = (
    "set clip caption av_align offset_ms offset_confidence f1_80ms visible audible events "
    + " ".join(f"within_{t}ms" for t in TOLERANCES_MS)
    + " duration_s fps width height sample_rate motion peak notes sha256"
).split()


def clip_row(one: JudgedSet, score: ClipScore) -> dict[str, Any]:
    measures, events = score.measures, score.events
    f1 = clip_f1(events)
    row = {
        "set": one.name,
        "clip": score.clip.name,
        "caption": score.clip.caption,
        "av_align": "" if score.av_align is None else round(score.av_align, 6),
        "offset_ms": round(events.offset_ms, 2) if events.confidence > 0 else "",
        "offset_confidence": round(events.confidence, 4),
        "f1_80ms": "" if f1 is None else round(f1, 6),
        "visible": len(events.visual_s),
        "audible": len(events.audio_s),
        "events": "known" if score.events_known else "seen",
        "notes": "; ".join(score.notes),
    }
    row |= {f"within_{t}ms": hits(events, t) for t in TOLERANCES_MS}
    row |= {name: getattr(measures, name) for name in ("width", "height", "sample_rate", "sha256")}
    return row | {name: round(getattr(measures, name), 5) for name in ("duration_s", "fps", "motion", "peak")}


def write(result: Evaluation, config: EvaluateConfig) -> None:
    from syncflow.eval.report import write_report

    (config.output / "metrics.json").write_text(
        json.dumps(result.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
    )
    with (config.output / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for one in result.sets:
            if one.role != "baseline":
                table.writerows(clip_row(one, score) for score in one.scores)
    write_report(result, config)
