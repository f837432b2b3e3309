"""Bytes of stored clips: pread by offset from local shards, range requests or a bounded cache from remote ones."""

from __future__ import annotations

import json
import math
import os
from collections import OrderedDict
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem
from isal import isal_zlib
from pydantic import BaseModel, NonNegativeInt, TypeAdapter, ValidationError

from syncflow.errors import UserError
from syncflow.samples import ClipRecord, Dataset, IndexedSample, ShardMarker, StoredSample, first_line
from syncflow.train.cache import ShardCache

_OPEN_FILES = 64
_TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class Facts(BaseModel):
    """What a batch is told of a clip. To parse the whole of its `ClipRecord` takes as long as to read its tensors."""

    id: str
    caption: str
    fps: str
    width: int
    height: int
    num_frames: int
    valid_frames: int
    sample_rate: int
    valid_samples: tuple[int, int]

    @property
    def fps_hz(self) -> float:
        return _number(self.fps)


class Place(NamedTuple):
    """Where a tensor lies in a clip's bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class RawClip(NamedTuple):
    """A clip as it lies in its shard: checked, and not copied."""

    facts: Facts
    record: memoryview
    """`ID.json`."""
    data: memoryview
    """Of all tensors."""
    layout: Mapping[str, Place]

    def bytes_of(self, name: str) -> memoryview:
        place = self.layout[name]
        return self.data[place.start : place.end]

    def sample(self) -> StoredSample:
        """The clip with its whole record; its tensors are views of what was read."""
        tensors = {
            name: torch.frombuffer(self.bytes_of(name), dtype=place.dtype).view(place.shape)
            for name, place in self.layout.items()
        }
        return StoredSample(ClipRecord.model_validate_json(bytes(self.record)), tensors)


class ShardReader:
    """Reads clips of one data set. Each process makes its own: file handles do not survive a fork."""

    def __init__(self, dataset: Dataset, cache_dir: str = "", cache_bytes: int = 0) -> None:
        self.dataset = dataset
        self.local = isinstance(dataset.fs, LocalFileSystem)
        self.cache = ShardCache(Path(cache_dir), cache_bytes) if cache_dir and not self.local else None
        self._files: OrderedDict[tuple[str, str], int] = OrderedDict()

    def read(self, shard: ShardMarker, place: int) -> StoredSample:
        """The clip at `place` of a shard. Raises as `read_raw` does."""
        clip = self.read_raw(shard, place)
        try:
            return clip.sample()
        except ValueError as error:
            raise self._unreadable(shard, place, error) from error

    def read_raw(self, shard: ShardMarker, place: int) -> RawClip:
        """The clip at `place` of a shard.

        Raises:
            UserError: the shard is missing, cut short or damaged, naming the tar and the clip.
        """
        sample = shard.samples[place]
        members = self._members(shard, sample)
        try:
            facts = Facts.model_validate_json(bytes(members["json"]))
            return RawClip(facts, members["json"], *_tensors(members["safetensors"]))
        except (ValueError, KeyError) as error:
            raise self._unreadable(shard, place, error) from error

    def _unreadable(self, shard: ShardMarker, place: int, error: Exception) -> UserError:
        said = first_line(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        return UserError(f"{self.dataset.tar_path(shard)}: {shard.samples[place].id} cannot be read: {said}")

    def _members(self, shard: ShardMarker, sample: IndexedSample) -> dict[str, memoryview]:
        if not self.local and self.cache is None:
            remote = self.dataset.read_members(shard, sample)
            return {extension: memoryview(bytearray(data)) for extension, data in remote.items()}
        # A clip's members lie side by side: one read.
        start = min([member.offset for member in sample.members.values()])
        end = max([member.offset + member.size for member in sample.members.values()])
        data = np.empty(end - start, np.uint8).data
        if self.cache:
            with self.cache.open(self.dataset, shard) as handle:
                os.preadv(handle, [data], start)  # of what is missing, the checksum tells
        else:
            os.preadv(self._open(shard), [data], start)
        members = {}
        for extension, member in sample.members.items():
            members[extension] = data[member.offset - start : member.offset - start + member.size]
            if isal_zlib.crc32(members[extension]) != member.crc32:
                raise UserError(
                    f"{self.dataset.tar_path(shard)}: {sample.id}.{extension} is damaged (checksum); "
                    "preprocess this shard again"
                )
        return members

    def _open(self, shard: ShardMarker) -> int:
        key = (shard.bucket, shard.tar)
        if key in self._files:
            self._files.move_to_end(key)
            return self._files[key]
        path = self.dataset.tar_path(shard)
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: restore it, or delete its marker and preprocess again") from None
        self._files[key] = handle
        if len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return handle


def _tensors(file: memoryview) -> tuple[memoryview, Mapping[str, Place]]:
    """The data of a safetensors file and what lies where in it; the library's `load` copies each tensor twice."""
    data_from = 8 + int.from_bytes(file[:8], "little")
    layout, size = _layout(bytes(file[8:data_from]))
    if data_from + size != len(file):
        raise ValueError(f"its tensors take {data_from + size} bytes, there are {len(file)}")
    return file[data_from:], layout


class _Entry(BaseModel):
    """A tensor in the header of a safetensors file."""

    dtype: Literal["F16", "BF16", "F32"]
    shape: tuple[NonNegativeInt, ...]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


_HEADER = TypeAdapter(dict[str, _Entry])


@lru_cache(maxsize=4096)
def _layout(header: bytes) -> tuple[Mapping[str, Place], int]:
    """What a header says, and the bytes its tensors take; clips of a bucket differ in their text's length only.

    Raises:
        ValueError: it is none, or its tensors do not have the bytes that they say.
    """
    entries = json.loads(header)
    if isinstance(entries, dict):
        entries.pop("__metadata__", None)
    layout = {}
    for name, entry in _HEADER.validate_python(entries).items():
        dtype, (start, end) = _TYPES[entry.dtype], entry.data_offsets
        if end - start != math.prod(entry.shape) * dtype.itemsize:
            raise ValueError(f"{name} of shape {list(entry.shape)} does not take {end - start} bytes")
        layout[name] = Place(dtype, entry.shape, start, end)
    return layout, max((place.end for place in layout.values()), default=0)


@lru_cache
def _number(text: str) -> float:
    return float(Fraction(text))
