"""Bring a source to this machine: local files are used where they are, others are fetched once."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import OrderedDict
from pathlib import Path, PurePosixPath

import fsspec

from syncflow.media import MediaError
from syncflow.samples import first_line

KEEP = 4  # files: clips of one source follow each other
TRIES = 3
PAUSE_S = 0.5  # after the first failure; twice as long after each further one


class Fetcher:
    """Local paths of sources. Fetched files are kept for a while; `close` removes them."""

    def __init__(self) -> None:
        self._fetched: OrderedDict[str, Path] = OrderedDict()
        self._folder: Path | None = None

    def local(self, uri: str) -> str:
        """
        Raises:
            MediaError: not_found, unreachable.
        """
        if "://" not in uri or uri.startswith("file://"):
            path = uri.removeprefix("file://")
            if not os.path.exists(path):
                raise MediaError("not_found", path, "there is no such file")
            return path
        if uri in self._fetched:
            self._fetched.move_to_end(uri)
            return str(self._fetched[uri])
        while len(self._fetched) >= KEEP:
            self._fetched.popitem(last=False)[1].unlink(missing_ok=True)
        self._fetched[uri] = self._fetch(uri)
        return str(self._fetched[uri])

    def close(self) -> None:
        self._fetched.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _fetch(self, uri: str) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="syncflow-fetch-"))
        suffix = PurePosixPath(uri.split("?")[0]).suffix[:8]
        handle, name = tempfile.mkstemp(suffix=suffix, dir=self._folder)
        os.close(handle)
        problem: Exception | None = None
        for attempt in range(TRIES):
            try:
                fs, remote = fsspec.core.url_to_fs(uri)
                fs.get_file(remote, name)
                return Path(name)
            except FileNotFoundError:
                os.unlink(name)
                raise MediaError("not_found", uri, "there is no such file") from None
            except Exception as error:  # network libraries raise their own kinds
                problem = error
                time.sleep(PAUSE_S * 2**attempt * (attempt < TRIES - 1))
        os.unlink(name)
        raise MediaError("unreachable", uri, f"cannot be fetched: {first_line(problem or OSError())}")
