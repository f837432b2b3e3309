"""Write a shard: a plain WebDataset tar, our index of offsets and checksums, and the marker that commits both.

The marker is made first-wins: whoever is second deletes its own tar, so any number of workers may write the same
shard at the same time and one result counts.
"""

from __future__ import annotations

import os
import tarfile
import uuid
import zlib
from collections.abc import Mapping

import torch
import webdataset

from syncflow.preprocess.store import Store
from syncflow.samples import IndexedSample, Member, Reject, ShardMarker, StoredSample, pack

BLOCK = 512  # bytes of a tar header
BUFFER = 1 << 20


class ShardWriter:
    """One attempt at a shard. `add` samples, then `commit`; or `abandon` it."""

    def __init__(self, store: Store, bucket: str, shard: str) -> None:
        self.store, self.bucket, self.shard = store, bucket, shard
        self.samples: list[IndexedSample] = []
        self.stats: dict[str, list[float]] = {}
        self._path = store.wip(f"{bucket}-{shard}.tar")
        self._file = self._path.open("xb", buffering=BUFFER)
        self._tar = webdataset.TarWriter(self._file, encoder=False, mtime=0)
        # The stream it opens itself copies in blocks of 10 KB, which costs a third of the speed.
        self._tar.tarstream = tarfile.TarFile(
            fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=BUFFER
        )

    def add(self, sample: StoredSample) -> None:
        members = pack(sample)
        index: dict[str, Member] = {}
        offset = self._tar.tarstream.offset
        for extension in sorted(members):  # the order TarWriter writes them in
            data = members[extension]
            index[extension] = Member(offset=offset + BLOCK, size=len(data), crc32=zlib.crc32(data))
            offset += BLOCK + -(-len(data) // BLOCK) * BLOCK
        self._tar.write({"__key__": sample.record.id, **members})
        assert self._tar.tarstream.offset == offset, f"{sample.record.id}: the tar is not laid out as indexed"
        self.samples.append(IndexedSample(id=sample.record.id, members=index))
        self._count(sample)

    def commit(self, name: str, fingerprint: str, rejects: list[Reject], seconds: Mapping[str, float]) -> ShardMarker:
        """Show the tar, then the marker; returns the marker that counts, ours or an earlier one."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        tar = f"shard-{self.shard}-{uuid.uuid4().hex[:8]}.tar" if self.samples else ""
        if tar:
            self.store.put(self._path, f"{self.bucket}/{tar}")
        else:
            self._path.unlink()
        for stage, value in seconds.items():
            self.stats[f"seconds.{stage}"] = [round(value, 4)]
        marker = ShardMarker(
            shard=self.shard,
            bucket=self.bucket,
            tar=tar,
            fingerprint=fingerprint,
            samples=self.samples,
            rejects=rejects,
            stats=self.stats,
        )
        if self.store.create(name, marker.model_dump_json().encode()):
            return marker
        if tar:
            self.store.remove(f"{self.bucket}/{tar}")
        first = self.store.read(name)
        assert first is not None, f"{name} was there and is gone"
        return ShardMarker.model_validate_json(first)

    def abandon(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _count(self, sample: StoredSample) -> None:
        """Sums of what a draw from the posterior is and of its square: E[z] = mean, E[z²] = mean² + std².

        A clip in single precision, all of them in double.
        """
        for kind in ("video", "audio") if "audio_mean" in sample.tensors else ("video",):
            mean, std = (sample.tensors[f"{kind}_{part}"].float().flatten(1) for part in ("mean", "std"))  # (C, N)
            squares = torch.linalg.vecdot(mean, mean) + torch.linalg.vecdot(std, std)  # (C,)
            self._sum(f"{kind}_count", [float(mean.shape[1])])
            self._sum(f"{kind}_sum", mean.sum(1).tolist())
            self._sum(f"{kind}_square", squares.tolist())
        record = sample.record
        self._sum("duration_s", [float(record.end_s - record.start_s)])
        for name, score in record.scores.items():
            self.stats.setdefault(f"score.{name}", []).append(round(score, 5))
        if record.sync is not None:
            self.stats.setdefault("sync.offset_ms", []).append(round(record.sync.offset_ms, 3))
            self.stats.setdefault("sync.confidence", []).append(round(record.sync.confidence, 4))

    def _sum(self, name: str, values: list[float]) -> None:
        self.stats[name] = [a + b for a, b in zip(self.stats.get(name, [0.0] * len(values)), values, strict=True)]
