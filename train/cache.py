"""Whole shards of object stores on a local disk: bounded, shared by every process that names the same folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from syncflow.errors import UserError
from syncflow.samples import Dataset, ShardMarker

_POLL_S = 0.02


class ShardCache:
    """Shards are fetched as they are asked for; before one comes, the longest unused go.

    A shard is fetched into `TAR.SIZE.part`, which its process keeps locked, and takes its name when it is whole. Room
    for it is reserved by its SIZE. A part that nobody locks was left behind by a kill, and is deleted.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def open(self, dataset: Dataset, shard: ShardMarker) -> Iterator[int]:
        """A descriptor of the whole tar, to read from at once: kept open it would hold bytes that no bound counts.

        Raises:
            UserError: the store does not have it, or it is larger than the bound.
        """
        # Tar names carry a unique suffix, so a name never stands for two contents.
        path = self.folder / f"{shard.bucket}-{shard.tar}"
        while True:
            with contextlib.suppress(FileNotFoundError):
                handle = os.open(path, os.O_RDONLY)
                break
            self._fetch(dataset, dataset.tar_path(shard), path)
        try:
            os.utime(handle)
            yield handle
        finally:
            os.close(handle)

    def _fetch(self, dataset: Dataset, remote: str, path: Path) -> None:
        try:
            size = dataset.fs.size(remote)
            if size > self.limit_bytes:
                raise UserError(
                    f"data.cache_gb {self.limit_bytes / 1e9:g} is less than {remote} ({size / 1e9:.2g} GB): raise it"
                )
            while (held := self._reserve(path, size)) is None:
                if path.exists():
                    return
                time.sleep(_POLL_S)
            with held:
                dataset.fs.get_file(remote, held.name)
                with self._alone():
                    os.replace(held.name, path)
        except FileNotFoundError:
            raise UserError(f"{remote} is missing: restore it, or delete its marker and preprocess again") from None

    def _reserve(self, path: Path, size: int) -> IO[bytes] | None:
        """The locked part to fetch into; None while another process fetches it or there is no room."""
        with self._alone():
            if path.exists():
                return None
            used = sum(int(part.suffixes[-2][1:]) for part in self.folder.glob("*.part") if not _left_behind(part))
            tars = {tar: tar.stat() for tar in self.folder.glob("*.tar")}
            used += sum(stat.st_size for stat in tars.values())
            for tar, stat in sorted(tars.items(), key=lambda item: item[1].st_mtime):
                if used + size > self.limit_bytes:
                    tar.unlink()
                    used -= stat.st_size
            part = path.with_name(f"{path.name}.{size}.part")
            if used + size > self.limit_bytes or part.exists():
                return None
            held = part.open("wb")
            fcntl.flock(held, fcntl.LOCK_EX)
            return held

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            yield


def _left_behind(part: Path) -> bool:
    with part.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        part.unlink()
        return True
