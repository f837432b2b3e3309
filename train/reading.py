"""Bytes of stored clips: pread by offset from local shards, range requests or a bounded cache from remote ones."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from syncflow.errors import UserError
from syncflow.samples import Dataset, IndexedSample, ShardMarker, StoredSample, unpack

_OPEN_FILES = 64


class ShardReader:
    """Reads clips of one data set. Each process makes its own: file handles do not survive a fork."""

    def __init__(self, dataset: Dataset, cache_dir: str = "", cache_bytes: int = 0) -> None:
        self.dataset = dataset
        self.local = isinstance(dataset.fs, LocalFileSystem)
        self.cache = ShardCache(Path(cache_dir), cache_bytes) if cache_dir and not self.local else None
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(self, shard: ShardMarker, place: int) -> StoredSample:
        """The clip at `place` of a shard.

        Raises:
            UserError: the shard is missing, cut short or damaged, naming the tar and the clip.
        """
        sample = shard.samples[place]
        try:
            return unpack(self._members(shard, sample))
        except (ValueError, KeyError) as error:
            raise UserError(f"{self.dataset.tar_path(shard)}: {sample.id} cannot be read: {error}") from error

    def _members(self, shard: ShardMarker, sample: IndexedSample) -> dict[str, bytes]:
        path = self.dataset.tar_path(shard)
        if not self.local:
            if self.cache is None:
                return self.dataset.read_members(shard, sample)
            path = str(self.cache.fetch(self.dataset, shard))
        members = {}
        for extension, member in sample.members.items():
            data = os.pread(self._open(path), member.size, member.offset)
            if len(data) != member.size or zlib.crc32(data) != member.crc32:
                raise UserError(f"{path}: {sample.id}.{extension} is damaged (checksum); preprocess this shard again")
            members[extension] = data
        return members

    def _open(self, path: str) -> int:
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: restore it, or delete its marker and preprocess again") from None
        self._files[path] = handle
        if len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return handle


class ShardCache:
    """Whole shards of object stores on a local disk, the longest unused deleted first; shared by all processes."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, dataset: Dataset, shard: ShardMarker) -> Path:
        # Tar names carry a unique suffix, so a name never stands for two contents.
        path = self.folder / f"{shard.bucket}-{shard.tar}"
        if not path.exists():
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            dataset.fs.get_file(dataset.tar_path(shard), str(part))
            self._make_room(part.stat().st_size)
            os.replace(part, path)
        os.utime(path)
        return path

    def _make_room(self, size: int) -> None:
        shards = sorted(self.folder.glob("*.tar"), key=lambda p: p.stat().st_mtime)
        used = sum(p.stat().st_size for p in shards)
        for path in shards:
            if used + size <= self.limit_bytes:
                return
            used -= path.stat().st_size
            path.unlink(missing_ok=True)  # a reader that has it open keeps its bytes
