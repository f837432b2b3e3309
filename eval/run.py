"""An evaluation from folders to files: find, measure, score, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from syncflow import __version__
from syncflow.errors import UserError
from syncflow.eval.clips import ClipSet, find_clips, read_captions, set_hash
from syncflow.eval.measure import measure_cached
from syncflow.eval.outputs import Evaluation, JudgedSet, compare, write
from syncflow.eval.scores import (
    ClipScore,
    Score,
    same_caption,
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
    from syncflow.eval.config import EvaluateConfig

SCORERS: dict[str, Callable[[Sequence[ClipScore], int, int], dict[str, Score]]] = {
    "av_align": score_av_align,
    "onset_offset": score_onset_offset,
    "loudness": score_loudness,
    "motion": score_motion,
}
CHANCE = ("av_align", "onset_offset")
"""Metrics that another clip's sound can change."""


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Judge every folder and write the output files."""
    captions = read_captions(config.captions) if config.captions else {}
    found = [(_named(given, captions), "generated") for given in config.generated]
    if config.reference is not None:
        found.append((_named(config.reference, captions), "reference"))
    if not found:
        raise UserError("give --generated at least one folder")
    warnings = _warnings(found, captions)
    names = _unique([files.name for files, _ in found])
    workers = config.workers or default_workers()
    cache = (config.output / "cache").resolve()
    sets: list[JudgedSet] = []
    for (files, role), name in zip(found, names, strict=True):
        # cores that no process of ours takes; on a cluster, the cores are others' to share out
        threads = 1 if config.ray else max(1, default_workers() // min(workers, len(files.clips)))
        measured, failures = map_clips(measure_cached, files.clips, (cache, threads), workers, name, config.ray)
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
            for kind, mix in {"sound shuffled": shuffled, "sound of same caption": same_caption}.items():
                mixed = mix(scores, config.seed)
                if mixed:
                    metrics = _metrics(config, mixed, CHANCE)
                    sets.append(JudgedSet(files, "baseline", f"{name}, {kind}", mixed, metrics))
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


def _named(given: Path, captions: dict[str, str]) -> ClipSet:
    """The clips of a folder, or of NAME=FOLDER."""
    name, equals, folder = str(given).partition("=")
    if not equals or given.exists():
        return find_clips(given, captions)
    return replace(find_clips(Path(folder), captions), name=name)


def _add_features(config: EvaluateConfig, sets: Sequence[JudgedSet]) -> None:
    """Metrics of network features, which need every set at hand."""
    names = [name for name in config.names if name not in SCORERS]
    if not names:
        return
    from syncflow.eval.feature_scores import Backbones, score_features
    from syncflow.models.perception.checkpoints import weights_home

    backbones = Backbones(
        weights_home(config.weights).absolute(),
        config.output / "cache",
        config.commercial_safe,
        config.workers or default_workers(),
        config.ray,
    )
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
