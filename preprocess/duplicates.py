"""Near-duplicates across a data set, found by signature: a pure function of the plan, whoever made its parts and when.

Of clips that are alike the first in the plan is kept. Candidates share all of a few sampled bits (locality-sensitive
hashing by bit sampling), so that a million clips are not compared with each other; candidates are then compared whole.

Letters: N clips, S bytes of a signature.
Source: Indyk & Motwani, "Approximate nearest neighbors", 1998.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from syncflow.preprocess.plan import ClipPlan, short_hash
from syncflow.preprocess.signature import BYTES, PARTS

FARTHEST = {"still": 0.7, "motion": 0.72, "sound": 0.57}
"""Largest distance of copies in each part."""
FARTHEST_MEAN = np.array([0.0, 0.2, 0.35, 0.5])
"""Largest mean distance of copies where one, two or all three parts say something."""
FEW = 8
"""A part with no more bits than these set in either clip says nothing: dark, still or silent."""
TABLES, SAMPLED = 32, 22  # tables of the still part, and as many of the sound
CROWDED = 256
"""Sampled bits that so many different clips share say nothing (dark pictures, silence): nobody is sought by them."""
_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def near_duplicates(clips: Iterable[ClipPlan]) -> dict[str, str]:
    """Ids of clips that repeat an earlier one of the plan -> the id of that one, which is itself kept.

    Different moments of one file are never duplicates of each other.
    """
    ids: list[str] = []
    places: list[tuple[int, int]] = []  # (file, start in ms)
    rows: list[bytes] = []
    for clip in clips:
        if clip.signature:
            ids.append(clip.id)
            places.append((int(short_hash(clip.source.uri), 16), int(clip.span.start_s * 1000)))
            rows.append(clip.signature)
    if not rows:
        return {}
    signatures = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, BYTES)  # (N, S)
    repeats: dict[str, str] = {}
    kept: dict[int, list[int]] = {}  # by what they share
    for i, shared in _sharing(signatures):
        groups = (kept.get(key, []) for key in shared)
        known = {j for group in groups if len(group) < CROWDED for j in group}
        near = sorted(j for j in known if not _moments_of_one_file(places[i], places[j]))
        match = [j for j, is_copy in zip(near, alike(signatures[i], signatures[near]), strict=True) if is_copy]
        if match:
            repeats[ids[i]] = ids[match[0]]
            continue
        for key in shared:
            group = kept.setdefault(key, [])
            if len(group) < CROWDED:
                group.append(i)
    return repeats


def _moments_of_one_file(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] == other[0] and one[1] != other[1]


def alike(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the (M, S) signatures are of copies of the (S,) one: near in every part that says something, if any."""
    near = np.ones(len(others), bool)
    total, parts = np.zeros(len(others)), np.zeros(len(others), int)
    for name, (distance, bits) in distances(one, others).items():
        says = bits > FEW
        near &= (distance <= FARTHEST[name]) | ~says
        total += distance * says
        parts += says
    return near & (parts > 0) & (total <= FARTHEST_MEAN[parts] * parts)


def distances(one: np.ndarray, others: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By part: of the bits set in either, the share set in one alone (M,); and how many are set in either (M,)."""
    found, start = {}, 0
    for name, size in PARTS.items():
        part = slice(start, start + size // 8)
        start = part.stop
        differ = _ONES[one[part] ^ others[:, part]].sum(1, dtype=np.int64)
        either = _ONES[one[part] | others[:, part]].sum(1, dtype=np.int64)
        found[name] = (differ / np.maximum(1, either), either)
    return found


def _sharing(signatures: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """In order, each clip that shares sampled bits with another, with the numbers of what it shares."""
    number = 0
    owners: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    for places in _tables():
        keys = _sample(signatures, places)  # (N,)
        _, group, count = np.unique(keys, return_inverse=True, return_counts=True)
        shares = np.flatnonzero(count[group] > 1)
        owners.append(shares)
        numbers.append(number + group[shares])
        number += len(count)
    owner, what = np.concatenate(owners), np.concatenate(numbers)
    order = np.argsort(owner, kind="stable")
    owner, what = owner[order], what[order]
    for part in np.split(np.arange(len(owner)), np.flatnonzero(np.diff(owner)) + 1):
        if len(part):
            yield int(owner[part[0]]), what[part].tolist()


def _tables() -> Iterator[np.ndarray]:
    """Places of sampled bits; of motion none, which sets few."""
    draw = np.random.default_rng(0)
    first = 0
    for name, size in PARTS.items():
        if name != "motion":
            for _ in range(TABLES):
                yield first + np.sort(draw.choice(size, SAMPLED, replace=False))
        first += size


def _sample(signatures: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(N,) integers of the bits at `places` of each (N, S) signature."""
    keys = np.zeros(len(signatures), np.uint32)
    for place in places:
        keys = keys * np.uint32(2) + (signatures[:, place // 8] >> np.uint8(7 - place % 8) & 1)
    return keys
