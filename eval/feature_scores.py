"""From network features of sets of clips to numbers; features are kept by content hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch

from syncflow.eval import extract
from syncflow.eval.across import avh_score, desync, javis_score, javis_windows, text_similarity
from syncflow.eval.catalogue import FEATURES, FeatureMetric
from syncflow.eval.clips import ClipFile, Failure, content_hash
from syncflow.eval.distances import frechet_distance, frechet_infinity, inception_score, kernel_distance, paired_kl
from syncflow.eval.protocol import describe
from syncflow.eval.scores import ClipScore, Score, few
from syncflow.eval.statistics import Interval, bootstrap, bootstrap_mean
from syncflow.eval.work import map_clips
from syncflow.files import replacing
from syncflow.models.perception.checkpoints import Located, WeightsUnavailable, locate

REVISION = 2
"""Raise when an extractor changes."""
_RESAMPLES = 100
"""Bootstrap draws of set distances, each of which decomposes a matrix."""

Found = dict[str, extract.Features]
"""Features by clip name."""


class NotComputed(Exception):
    """Why a metric has no number: a missing package, too few clips, no captions."""


@dataclass
class Backbones:
    """Where weights lie, where features are kept, and who computes them."""

    home: Path
    cache: Path
    commercial_safe: bool
    workers: int = 1
    ray: str = ""
    located: dict[str, Located] = field(default_factory=dict)

    def locate(self, name: str) -> Located:
        """
        Raises:
            WeightsUnavailable: the weights are absent, refused, or not what they should be.
        """
        if name not in self.located:
            self.located[name] = locate(name, self.home, self.commercial_safe)
        return self.located[name]

    def features(self, metric: FeatureMetric, scores: Sequence[ClipScore], what: str) -> tuple[Found, list[Failure]]:
        """Features of every clip by name; failures are listed.

        Raises:
            NotComputed: a package is absent, or the weights do not fit the network.
            WeightsUnavailable: see `locate`.
        """
        located = self.locate(metric.backbone)
        kept = {s.clip.name: _kept(self.cache, s.measures.sha256, located, s.clip.caption) for s in scores}
        missing = [s.clip for s in scores if not kept[s.clip.name].is_file()]
        self.cache.mkdir(parents=True, exist_ok=True)
        arguments = (self.cache.resolve(), metric.extractor, located)
        _, failures = map_clips(keep_features, missing, arguments, self.workers, f"{what}: {metric.backbone}", self.ray)
        found: Found = {}
        for name in (name for name in kept if kept[name].is_file()):
            with np.load(kept[name]) as arrays:
                found[name] = dict(arrays)
        return found, failures


def keep_features(clip: ClipFile, cache: Path, extractor: str, located: Located) -> None:
    """Compute the features of a clip and keep them; nothing large goes between processes."""
    features = _network(extractor, located).features(clip)
    with replacing(_kept(cache, content_hash(clip.path), located, clip.caption)) as part:
        np.savez(part, **features)


@lru_cache(maxsize=1)
def _network(extractor: str, located: Located) -> extract.Extractor:
    """A process holds one network, for as many clips as it is given.

    On one thread: the order in which several add up shows in the last digits.
    """
    torch.set_num_threads(1)
    try:
        return getattr(extract, extractor)(located.path)
    except ModuleNotFoundError as error:
        raise NotComputed(f"the package {error.name} is not installed (pip install 'syncflow[eval]')") from error
    except (OSError, RuntimeError, ValueError, KeyError, UnpicklingError) as error:
        first = " ".join(str(error).split())[:160]
        raise NotComputed(f"{located.path} does not load as {located.backbone.name}: {first}") from error


def _kept(cache: Path, sha256: str, located: Located, caption: str) -> Path:
    text = f"{sha256}:{located.sha256}:{caption}:{REVISION}"
    return cache / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def score_features(
    name: str,
    scores: Sequence[ClipScore],
    reference: Sequence[ClipScore] | None,
    reference_hash: str,
    backbones: Backbones,
    seed: int,
    what: str,
) -> Score:
    """One metric of one set; where it cannot be computed, the reason."""
    metric = FEATURES[name]
    try:
        compute = KINDS[metric.kind]
        if metric.kind in NEED_REFERENCE and reference is None:
            raise NotComputed("it needs --reference")
        located = backbones.locate(metric.backbone)
        mine, failures = backbones.features(metric, scores, what)
        theirs, _ = (
            backbones.features(metric, reference, "reference")
            if reference and metric.kind in NEED_REFERENCE
            else ({}, [])
        )
        if not mine:
            raise NotComputed(f"no clip gave features: {failures[0].detail}" if failures else "no clip gave features")
        result = compute(metric.key, mine, theirs, seed)
    except (NotComputed, WeightsUnavailable) as error:
        return Score(not_computed=str(error))
    notes = few(result.clips) + result.notes
    if failures:
        notes += (
            f"{name}: {len(failures)} clips gave no features (the first, {failures[0].clip}: {failures[0].detail})",
        )
    protocol = describe(
        name,
        [s.measures for s in scores if s.clip.name in mine],
        seed,
        backbone=located.identity,
        reference=reference_hash if metric.kind in NEED_REFERENCE else "",
    )
    interval = result.interval
    return Score(
        interval.value,
        interval.low,
        interval.high,
        metric.unit,
        metric.better,
        result.clips,
        notes,
        protocol,
        extra=result.extra,
    )


@dataclass(frozen=True)
class Computed:
    interval: Interval
    clips: int
    notes: tuple[str, ...] = ()
    extra: dict[str, float] = field(default_factory=dict)


def _stack(found: Found, key: str) -> np.ndarray:
    """(N, D), by name: the order of files does not matter. Features of windows give several rows per clip."""
    return np.vstack([found[name][key] for name in sorted(found)])


def frechet(key: str, mine: Found, theirs: Found, seed: int) -> Computed:
    """FD of all clips, an interval over clips of the set, and FD∞."""
    a, b = _stack_pair(key, mine, theirs)
    names = np.array(sorted(mine))
    interval = bootstrap(
        names, lambda drawn: frechet_distance(np.vstack([mine[n][key] for n in drawn]), b), seed, _RESAMPLES
    )
    infinity = frechet_infinity(a, b, seed)
    notes = [f"FD∞ {infinity.value:.4g}, FD {infinity.at_n:.4g} at n = {len(a)}"]
    least = min(len(a), len(b))
    if least <= a.shape[1]:
        notes.append(
            f"{least} samples for {a.shape[1]} dimensions: covariances are singular, FD is biased upwards, prefer FD∞"
        )
    extra = {"fd_infinity": infinity.value, "fd_infinity_residual": infinity.residual}
    return Computed(interval, len(mine), tuple(notes), extra)


def kernel(key: str, mine: Found, theirs: Found, seed: int) -> Computed:
    a, b = _stack_pair(key, mine, theirs)
    return Computed(kernel_distance(a, b, seed), len(a))


def _stack_pair(key: str, mine: Found, theirs: Found) -> tuple[np.ndarray, np.ndarray]:
    if len(mine) < 2 or len(theirs) < 2:
        raise NotComputed(f"it needs 2 clips on each side, got {len(mine)} and {len(theirs)}")
    return _stack(mine, key), _stack(theirs, key)


def kl(key: str, mine: Found, theirs: Found, seed: int) -> Computed:
    """KL(reference ‖ generated) over clips that have a reference of the same name; class scores normalised to sum 1."""
    pairs = sorted(set(mine) & set(theirs))
    if not pairs:
        raise NotComputed("no clip has a reference of the same name")
    values = paired_kl(np.stack([theirs[n][key] for n in pairs]), np.stack([mine[n][key] for n in pairs]))
    return Computed(bootstrap_mean(values, seed), len(pairs))


def inception(key: str, mine: Found, theirs: Found, seed: int) -> Computed:
    rows = _stack(mine, key)
    rows = rows / rows.sum(axis=1, keepdims=True)
    return Computed(bootstrap(rows, lambda p: inception_score(p)[0], seed, _RESAMPLES), len(rows))


def text(key: str, mine: Found, theirs: Found, seed: int) -> Computed:
    values = [text_similarity(np.atleast_2d(f[key]), f["text"]) for _, f in sorted(mine.items()) if "text" in f]
    if not values:
        raise NotComputed("no clip has a caption: give --captions, or a manifest with captions")
    return Computed(bootstrap_mean(np.array(values), seed), len(values))


def offset_class(key: str, mine: Found, theirs: Found, seed: int) -> Computed:
    return Computed(bootstrap_mean(np.array([desync(mine[n][key]) for n in sorted(mine)]), seed), len(mine))


def pair(key: str, mine: Found, theirs: Found, seed: int) -> Computed:
    """Cosine of the two features that `key` names, mean over the clips that have both."""
    one, other = key.split()
    values = [text_similarity(np.atleast_2d(f[one]), f[other]) for _, f in sorted(mine.items()) if one in f]
    if not values:
        raise NotComputed("no clip has a caption: give --captions, or a manifest with captions")
    return Computed(bootstrap_mean(np.array(values), seed), len(values))


def mean(key: str, mine: Found, theirs: Found, seed: int) -> Computed:
    """Of a score that the network gives each frame."""
    values = np.array([mine[name][key].mean() for name in sorted(mine)])
    return Computed(bootstrap_mean(values, seed), len(values))


def avh(key: str, mine: Found, theirs: Found, seed: int) -> Computed:
    values = [avh_score(mine[n][key], mine[n]["audio"]) for n in sorted(mine)]
    return Computed(bootstrap_mean(np.array(values), seed), len(values))


def javis(key: str, mine: Found, theirs: Found, seed: int) -> Computed:
    values = []
    for name in sorted(mine):
        frames, fps = mine[name][key], float(mine[name]["fps"])
        windows = [frames[round(a * fps) : round(b * fps)] for a, b in javis_windows(len(frames) / fps)]
        values.append(javis_score(windows, mine[name]["windows"]))
    return Computed(bootstrap_mean(np.array(values), seed), len(values))


KINDS: Mapping[str, Callable[[str, Found, Found, int], Computed]] = {
    "frechet": frechet,
    "kernel": kernel,
    "kl": kl,
    "inception": inception,
    "text": text,
    "desync": offset_class,
    "pair": pair,
    "mean": mean,
    "avh": avh,
    "javis": javis,
}
NEED_REFERENCE = {"frechet", "kernel", "kl"}
