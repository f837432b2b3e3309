"""Which clips make up step n: a pure function of (seed, global step), whatever the number of ranks or workers.

A *stream* is one bucket of one data set: its clips share a shape, so every rank's batch of a step does too.
A seeded schedule deals steps to streams by weight. Within a stream and epoch the shards are shuffled and laid
end to end; that sequence is cut into as many equal *lanes* as a batch has slots; each lane is shuffled in
windows and read on its own, so a rank touches few shards at a time. The state of it all is one integer.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_BLOCK = 1000  # steps that are dealt to the streams at a time


def philox(*key: object) -> np.random.Generator:
    """A generator that depends on nothing but `key`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


@dataclass(frozen=True)
class Stream:
    """A bucket as the order sees it: how many clips each shard holds, and the stream's share of the steps."""

    shards: tuple[int, ...]
    weight: float

    @property
    def samples(self) -> int:
        return sum(self.shards)


class Pick(NamedTuple):
    """One clip of a batch. `visit` counts how often this clip was due before (its epoch)."""

    stream: int
    shard: int
    place: int
    visit: int


class Order:
    """`at(step)` -> the picks of a step, one per slot of the global batch."""

    def __init__(self, streams: list[Stream], batch_size: int, seed: int, window: int = 1024) -> None:
        self.streams, self.batch_size, self.seed, self.window = streams, batch_size, seed, window
        self._quota = _quotas([stream.weight for stream in streams])
        self._block = lru_cache(maxsize=4)(self._deal_block)
        self._plan = lru_cache(maxsize=4)(self._lay_out_shards)
        self._shuffle = lru_cache(maxsize=4 * batch_size)(self._shuffle_window)

    def at(self, step: int) -> list[Pick]:
        stream, turn = self.stream_at(step)
        n = self.streams[stream].samples
        lanes = min(self.batch_size, n)
        length, rounds = n // lanes, -(-self.batch_size // lanes)
        picks = []
        for slot in range(self.batch_size):
            lane = slot % lanes
            visit, place = divmod(turn * rounds + slot // lanes, length)
            start = lane * length + place // self.window * self.window
            size = min(self.window, (lane + 1) * length - start)
            position = start + int(self._shuffle(stream, visit, start, size)[place % self.window])
            shards, ends = self._plan(stream, visit)
            k = bisect_right(ends, position)
            shard = shards[k]
            picks.append(Pick(stream, shard, position - ends[k] + self.streams[stream].shards[shard], visit))
        return picks

    def stream_at(self, step: int) -> tuple[int, int]:
        """The stream of a step, and how many earlier steps were the same stream's."""
        block, place = divmod(step, _BLOCK)
        dealt = self._block(block)
        stream = int(dealt[place])
        return stream, block * self._quota[stream] + int(np.count_nonzero(dealt[:place] == stream))

    def _deal_block(self, block: int) -> np.ndarray:
        dealt = np.repeat(np.arange(len(self.streams)), self._quota)  # (_BLOCK,)
        return philox("schedule", self.seed, block).permutation(dealt)

    def _lay_out_shards(self, stream: int, epoch: int) -> tuple[list[int], list[int]]:
        """Shard numbers in this epoch's order, and the position after the last clip of each."""
        sizes = np.array(self.streams[stream].shards)
        shards = philox("shards", self.seed, stream, epoch).permutation(len(sizes))
        return shards.tolist(), np.cumsum(sizes[shards]).tolist()

    def _shuffle_window(self, stream: int, epoch: int, start: int, size: int) -> np.ndarray:
        return philox("window", self.seed, stream, epoch, start).permutation(size)


def _quotas(weights: list[float]) -> list[int]:
    """Steps of a block per stream: proportional to weight, at least one, exactly _BLOCK in all."""
    shares = np.array(weights) / sum(weights) * _BLOCK
    quota = np.maximum(1, np.floor(shares).astype(int))
    while quota.sum() != _BLOCK:
        missing = 1 if quota.sum() < _BLOCK else -1
        error = (shares - quota) * missing
        error[(quota + missing) < 1] = -np.inf
        quota[int(np.argmax(error))] += missing
    return [int(q) for q in quota]
