"""Shards of object stores on a local disk: bounded, whole, shared by processes that know nothing of each other."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from train_data import read_losses, train, write_dataset, write_stages

from syncflow.errors import UserError
from syncflow.samples import open_dataset
from syncflow.train.cache import ShardCache
from syncflow.train.reading import ShardReader

SHARDS = 8


class _Handler(SimpleHTTPRequestHandler):
    """Serves tars in two halves, slowly while `slow` is set."""

    slow = False

    def log_message(self, format: str, *args: object) -> None:
        pass

    def copyfile(self, source, outputfile) -> None:
        data = source.read()
        outputfile.write(data[: len(data) // 2])
        outputfile.flush()
        if _Handler.slow and self.path.endswith(".tar"):
            time.sleep(2)
        outputfile.write(data[len(data) // 2 :])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set", clips=SHARDS * 3, per_shard=3)


@pytest.fixture(scope="module")
def url(dataset: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(dataset)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def tar_bytes(dataset: Path) -> int:
    sizes = {tar.stat().st_size for tar in (dataset / "b0").glob("*.tar")}
    return max(sizes)


def used(cache: Path) -> int:
    total = 0
    for path in cache.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def start_reader(url: str, cache: Path, limit: int, turn: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, url, str(cache), str(limit), str(turn)])


def read_all(url: str, cache: str, limit: int, turn: int) -> None:
    """In a process of its own: every clip of every shard, three times over, beginning somewhere."""
    data = open_dataset(url)
    reader = ShardReader(data, cache, limit)
    for round_ in range(3):
        for i in range(SHARDS):
            shard = data.shards[(i * 3 + turn + round_) % SHARDS]
            for place, sample in enumerate(shard.samples):
                assert reader.read(shard, place).record.id == sample.id


def test_processes_share_it_within_the_bound(dataset: Path, url: str, tmp_path: Path) -> None:
    limit = int(tar_bytes(dataset) * 3.5)
    readers = [start_reader(url, tmp_path / "cache", limit, turn) for turn in (0, 3)]
    most = 0
    while any(reader.poll() is None for reader in readers):
        most = max(most, used(tmp_path / "cache") if (tmp_path / "cache").exists() else 0)
        time.sleep(0.002)
    assert [reader.returncode for reader in readers] == [0, 0]
    assert 0 < most <= limit
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_killed_download_is_never_read(dataset: Path, url: str, tmp_path: Path) -> None:
    cache, limit = tmp_path / "cache", tar_bytes(dataset) * 2
    _Handler.slow = True
    try:
        victim = start_reader(url, cache, limit, 0)
        deadline = time.monotonic() + 60
        while not [part for part in cache.glob("*.part") if part.stat().st_size] and time.monotonic() < deadline:
            time.sleep(0.01)
        victim.kill()
        victim.wait()
    finally:
        _Handler.slow = False
    left = list(cache.glob("*.part"))
    assert len(left) == 1
    assert not list(cache.glob("*.tar"))
    data = open_dataset(url)
    for shard in data.shards:
        ShardReader(data, str(cache), limit).read(shard, 0)
    assert not list(cache.glob("*.part"))
    whole = {f"{shard.bucket}-{shard.tar}": dataset / shard.bucket / shard.tar for shard in data.shards}
    kept = list(cache.glob("*.tar"))
    assert kept
    assert all(tar.read_bytes() == whole[tar.name].read_bytes() for tar in kept)


def test_what_cannot_be_fetched_is_one_line(dataset: Path, url: str, tmp_path: Path) -> None:
    data = open_dataset(url)
    with pytest.raises(UserError, match=r"data\.cache_gb .* is less than .*\.tar"):
        ShardReader(data, str(tmp_path / "small"), 1000).read(data.shards[0], 0)
    gone = data.shards[0].model_copy(update={"tar": "shard-000000-gone.tar"})
    with (
        pytest.raises(UserError, match=r"gone\.tar is missing: restore it"),
        ShardCache(tmp_path / "c", 10**9).open(data, gone),
    ):
        pass


def test_training_from_an_object_store_is_the_same(dataset: Path, url: str, tmp_path: Path) -> None:
    """With a worker process: what talks to the store must survive being forked."""
    args = [str(write_stages(tmp_path / "configs") / "1_video.yaml"), "--steps", "6", "--data.workers", "1"]
    assert train([*args, "--data.path", str(dataset), "--output", str(tmp_path / "local")]) == 0
    cache = ["--data.cache-gb", str(tar_bytes(dataset) * 2.5 / 1e9), "--data.cache-dir", str(tmp_path / "cache")]
    assert train([*args, "--data.path", url, "--output", str(tmp_path / "remote"), *cache]) == 0
    assert read_losses(tmp_path / "remote", "loss") == read_losses(tmp_path / "local", "loss")
    assert 0 < used(tmp_path / "cache") <= tar_bytes(dataset) * 2.5


def test_any_fsspec_url_will_do(dataset: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(dataset), "/cache-test/set", recursive=True)
    try:
        data = open_dataset("memory://cache-test/set")
        for cache in ("", str(tmp_path / "cache")):
            reader = ShardReader(data, cache, tar_bytes(dataset) * 2)
            ids = [reader.read(shard, 1).record.id for shard in data.shards]
            assert ids == [open_dataset(str(dataset)).read(3 * i + 1).record.id for i in range(SHARDS)]
        assert used(tmp_path / "cache") <= tar_bytes(dataset) * 2
    finally:
        memory.rm("/cache-test", recursive=True)


if __name__ == "__main__":
    read_all(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
