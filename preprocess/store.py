"""Where a data set is written: a local folder, or anything fsspec writes to (`s3://`, `gs://`, …).

Three promises everything else rests on, kept by both kinds:
`write` replaces a file whole or not at all, `create` lets exactly one of several writers win,
and `put` shows a file under its name only when it is complete.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from syncflow.errors import UserError

STALE_WIP_S = 3600.0


class Store(Protocol):
    """Files below one root, named by relative paths with `/`."""

    url: str

    def read(self, name: str) -> bytes | None:
        """The file's bytes; None where there is no such file."""

    def write(self, name: str, data: bytes, durable: bool = True) -> None:
        """Replace the file, whole. Not `durable`: it need not outlive a power cut."""

    def create(self, name: str, data: bytes) -> bool:
        """Make the file unless it exists: of several writers exactly one gets True."""

    def wip(self, name: str) -> Path:
        """A fresh local path to write a large file to before it is `put`."""

    def put(self, local: Path, name: str) -> None:
        """Move a finished local file to its name; it appears there complete."""

    def remove(self, name: str) -> None:
        """Delete a file; nothing happens where there is none."""

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted; empty where there is no such folder."""

    def folders(self) -> list[str]:
        """Names of the folders directly below the root, sorted."""

    def collect_wip(self, older_than_s: float = STALE_WIP_S) -> None:
        """Delete what dead writers left unfinished."""


def open_store(url: str) -> Store:
    """The store at a path or URL.

    Raises:
        UserError: the URL's kind is unknown, or the folder cannot be made.
    """
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"--output {url}: {error}") from error
    if isinstance(fs, LocalFileSystem):
        return LocalStore(Path(root))
    return RemoteStore(fs, root, url)


class LocalStore:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {root}: cannot make this folder ({error.strerror})") from error

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes, durable: bool = True) -> None:
        os.replace(self._temporary(name, data, durable), self.root / name)

    def create(self, name: str, data: bytes) -> bool:
        temporary = self._temporary(name, data)
        try:
            os.link(temporary, self.root / name)
            return True
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
            _sync_folder((self.root / name).parent)

    def wip(self, name: str) -> Path:
        folder = self.root / "_wip"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.{uuid.uuid4().hex}"

    def put(self, local: Path, name: str) -> None:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(local, target)
        _sync_folder(target.parent)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.root / folder) if entry.is_file())
        except FileNotFoundError:
            return []

    def folders(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())

    def collect_wip(self, older_than_s: float = STALE_WIP_S) -> None:
        _collect(self.root / "_wip", older_than_s)

    def _temporary(self, name: str, data: bytes, durable: bool = True) -> Path:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        temporary = self.wip(Path(name).name)
        with temporary.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        return temporary


class RemoteStore:
    """Objects are whole or absent by nature; files are finished on local disk first, because closing a half
    written remote file commits it."""

    def __init__(self, fs: Any, root: str, url: str) -> None:
        self.fs = fs
        self.root = root.rstrip("/")
        self.url = url
        self._scratch = Path(tempfile.gettempdir()) / "syncflow-wip"

    def read(self, name: str) -> bytes | None:
        try:
            return self.fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes, durable: bool = True) -> None:
        self.fs.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        try:
            self.fs.pipe_file(self._path(name), data, mode="create")
            return True
        except FileExistsError:
            return False

    def wip(self, name: str) -> Path:
        self._scratch.mkdir(exist_ok=True)
        return self._scratch / f"{name}.{uuid.uuid4().hex}"

    def put(self, local: Path, name: str) -> None:
        self.fs.put_file(str(local), self._path(name))
        local.unlink()

    def remove(self, name: str) -> None:
        try:
            self.fs.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def names(self, folder: str) -> list[str]:
        return self._names(self._path(folder), "file")

    def folders(self) -> list[str]:
        return self._names(self.root, "directory")

    def collect_wip(self, older_than_s: float = STALE_WIP_S) -> None:
        _collect(self._scratch, older_than_s)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _names(self, path: str, kind: str) -> list[str]:
        self.fs.invalidate_cache()
        try:
            entries = self.fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == kind)


def _collect(folder: Path, older_than_s: float) -> None:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        try:
            if time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()
        except FileNotFoundError:
            continue


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
