"""Reading from and writing to object storage, against a real S3-compatible server.

moto's server disagrees with other packages here, so it lives in an environment of its own:
python -m venv moto && moto/bin/pip install "moto[server]", then SYNCFLOW_MOTO=moto/bin/python.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.models.autoencoders.nano import (
    NanoAudioConfig,
    NanoVideoConfig,
    new_nano_audio_autoencoder,
    new_nano_video_autoencoder,
)
from syncflow.preprocess.config import PreprocessConfig
from syncflow.preprocess.run import preprocess
from syncflow.preprocess.store import open_store
from syncflow.samples import open_dataset


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    python = os.environ.get("SYNCFLOW_MOTO")
    if not python:
        pytest.skip("no S3 server: set SYNCFLOW_MOTO to a python with moto[server]")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(endpoint, timeout=5)
                    break
                except OSError:
                    time.sleep(0.2)
            fsspec.filesystem("s3").mkdir("clips-and-shards")
            yield "s3://clips-and-shards"
        finally:
            server.terminate()
            server.wait()


def test_a_store_on_s3_lets_the_first_win(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"{bucket}/store")
    assert store.read("a/marker.json") is None
    assert store.create("a/marker.json", b"first")
    assert not store.create("a/marker.json", b"second")
    assert store.read("a/marker.json") == b"first"
    store.write("a/marker.json", b"third")
    assert store.read("a/marker.json") == b"third"
    (tmp_path / "x").write_bytes(b"tar")
    store.put(tmp_path / "x", "a/x.tar")
    assert store.names("a") == ["marker.json", "x.tar"]
    store.remove("a/x.tar")
    assert store.names("a") == ["marker.json"]


def test_from_s3_to_s3_gives_what_local_files_give(bucket: str, impacts_dir: Path, tmp_path: Path) -> None:
    new_nano_video_autoencoder(0, NanoVideoConfig(block_out_channels=(8, 8, 8, 8))).save_pretrained(tmp_path / "video")
    new_nano_audio_autoencoder(0, NanoAudioConfig(decoder_channels=4)).save_pretrained(tmp_path / "audio")
    config = PreprocessConfig(
        video_autoencoder=AutoencoderSpec(kind="image", path=str(tmp_path / "video")),
        audio_autoencoder=AutoencoderSpec(kind="oobleck", path=str(tmp_path / "audio")),
        text="online",
        shard_clips=5,
    )
    s3 = fsspec.filesystem("s3")
    for path in impacts_dir.iterdir():
        if path.suffix in (".mp4", ".jsonl"):
            s3.put_file(str(path), f"{bucket}/clips/{path.name}")
    rows = (impacts_dir / "manifest.jsonl").read_text() + '{"uri": "is-not-there.mp4"}\n'
    s3.pipe_file(f"{bucket}/clips/manifest.jsonl", rows.encode())

    remote = preprocess(config, f"{bucket}/clips/manifest.jsonl", f"{bucket}/dataset", pool="inline")
    local = preprocess(config, impacts_dir, tmp_path / "local", pool="inline")
    assert remote.card.rejected == {"not_found": 1}
    assert remote.card.kept == local.card.kept == 12
    found = {sample.record.id: sample for sample in open_dataset(f"{bucket}/dataset")}
    for sample in open_dataset(str(tmp_path / "local")):
        other = found.pop(sample.record.id)
        assert other.record.source == f"{bucket}/clips/{Path(sample.record.source).name}"
        assert all((other.tensors[name] == tensor).all() for name, tensor in sample.tensors.items())
    assert not found
    assert all(not problem for _, problem in open_dataset(f"{bucket}/dataset").verify())
    assert preprocess(config, f"{bucket}/clips/manifest.jsonl", f"{bucket}/dataset", pool="inline").already_done
