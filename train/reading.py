"""Bytes of stored clips: pread by offset from local shards, range requests or a bounded cache from remote ones."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections import OrderedDict
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from syncflow.errors import UserError
from syncflow.samples import ClipRecord, Dataset, IndexedSample, ShardMarker, StoredSample
from syncflow.train.cache import ShardCache

_OPEN_FILES = 64
_TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class ShardReader:
    """Reads clips of one data set. Each process makes its own: file handles do not survive a fork."""

    def __init__(self, dataset: Dataset, cache_dir: str = "", cache_bytes: int = 0) -> None:
        self.dataset = dataset
        self.local = isinstance(dataset.fs, LocalFileSystem)
        self.cache = ShardCache(Path(cache_dir), cache_bytes) if cache_dir and not self.local else None
        self._files: OrderedDict[tuple[str, str], int] = OrderedDict()

    def read(self, shard: ShardMarker, place: int) -> StoredSample:
        """The clip at `place` of a shard.

        Raises:
            UserError: the shard is missing, cut short or damaged, naming the tar and the clip.
        """
        sample = shard.samples[place]
        members = self._members(shard, sample)
        try:
            record = ClipRecord.model_validate_json(bytes(members["json"]))
            return StoredSample(record, _tensors(members["safetensors"]))
        except (ValueError, KeyError) as error:
            raise UserError(f"{self.dataset.tar_path(shard)}: {sample.id} cannot be read: {error}") from error

    def _members(self, shard: ShardMarker, sample: IndexedSample) -> dict[str, memoryview]:
        if not self.local and self.cache is None:
            remote = self.dataset.read_members(shard, sample)
            return {extension: memoryview(bytearray(data)) for extension, data in remote.items()}
        # A clip's members lie side by side: one read, and tensors that are views of it.
        start = min([member.offset for member in sample.members.values()])
        end = max([member.offset + member.size for member in sample.members.values()])
        data = memoryview(bytearray(end - start))
        with self.cache.open(self.dataset, shard) if self.cache else nullcontext(self._open(shard)) as handle:
            os.preadv(handle, [data], start)  # of what is missing, the checksum tells
        members = {}
        for extension, member in sample.members.items():
            members[extension] = data[member.offset - start : member.offset - start + member.size]
            if zlib.crc32(members[extension]) != member.crc32:
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


def _tensors(data: memoryview) -> dict[str, Tensor]:
    """The tensors of a safetensors file as views of `data`; the library's `load` copies each twice."""
    length = int.from_bytes(data[:8], "little")
    return {
        name: torch.frombuffer(data, dtype=dtype, count=count, offset=8 + length + start).view(shape)
        for name, dtype, shape, count, start in _layout(bytes(data[8 : 8 + length]))
    }


@lru_cache(maxsize=1024)
def _layout(header: bytes) -> list[tuple[str, torch.dtype, tuple[int, ...], int, int]]:
    """(name, dtype, shape, elements, first byte) of each tensor; clips of a bucket differ in their text's length."""
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    return [
        (name, _TYPES[entry["dtype"]], tuple(entry["shape"]), math.prod(entry["shape"]), entry["data_offsets"][0])
        for name, entry in entries.items()
    ]
