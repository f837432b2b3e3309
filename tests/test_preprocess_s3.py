"""Reading from and writing to object storage, against a real S3-compatible server (see s3_server.py)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import yaml
from s3_server import s3_server
from tiny import smallest_autoencoders

from syncflow.errors import UserError
from syncflow.preprocess import inspect
from syncflow.preprocess.config import PreprocessConfig, RayConfig
from syncflow.preprocess.run import preprocess
from syncflow.preprocess.store import open_store
from syncflow.samples import open_dataset
from syncflow.train.reading import ShardReader

pytestmark = pytest.mark.slow
BUCKET = "s3://clips-and-shards"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "server.log") as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield BUCKET


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PreprocessConfig:
    return PreprocessConfig(
        **smallest_autoencoders(tmp_path_factory.mktemp("weights")),
        text="online",
        shard_clips=2,
        batch=1,
        ray=RayConfig(workers=0),
    )


@pytest.fixture(scope="module")
def manifest(bucket: str, impacts_dir: Path) -> str:
    """12 clips in the bucket, and a row whose file is not there."""
    s3 = fsspec.filesystem("s3")
    for path in impacts_dir.glob("*.mp4"):
        s3.put_file(str(path), f"{bucket}/clips/{path.name}")
    rows = (impacts_dir / "manifest.jsonl").read_text() + '{"uri": "is-not-there.mp4"}\n'
    s3.pipe_file(f"{bucket}/clips/manifest.jsonl", rows.encode())
    return f"{bucket}/clips/manifest.jsonl"


@pytest.fixture(scope="module")
def local(config: PreprocessConfig, impacts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The data set that local files give in a local folder."""
    out = tmp_path_factory.mktemp("local") / "dataset"
    preprocess(config, impacts_dir, out)
    return str(out)


def same_clips(one: str, other: str) -> None:
    found = {sample.record.id: sample for sample in open_dataset(one)}
    assert len(found) == len(open_dataset(one)) == 12
    for sample in open_dataset(other):
        twin = found.pop(sample.record.id)
        assert Path(twin.record.source).name == Path(sample.record.source).name
        assert all((twin.tensors[name] == tensor).all() for name, tensor in sample.tensors.items())
    assert not found


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


def test_from_s3_to_s3_gives_what_local_files_give(
    bucket: str,
    manifest: str,
    local: str,
    config: PreprocessConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = f"{bucket}/dataset"
    summary = preprocess(config, manifest, out)
    assert (summary.card.read, summary.card.kept, summary.card.rejected) == (13, 12, {"not_found": 1})
    same_clips(out, local)
    assert {s.record.source.rpartition("/")[0] for s in open_dataset(out)} == {f"{bucket}/clips"}
    assert preprocess(config, manifest, out).already_done

    assert inspect.main([out, "--verify"]) == 0
    assert "all 12 samples are whole" in capsys.readouterr().out

    dataset = open_dataset(out)  # as a trainer reads it: by ranges of the tars, and through a cache of whole ones
    straight, cached = ShardReader(dataset), ShardReader(dataset, str(tmp_path / "cache"), 1 << 30)
    clips = [(shard, place) for shard in dataset.shards for place in range(len(shard.samples))]
    for (shard, place), sample in zip(clips, dataset, strict=True):
        for reader in (straight, cached):
            found = reader.read(shard, place)
            assert found.record == sample.record
            assert all((found.tensors[name] == tensor).all() for name, tensor in sample.tensors.items())
    assert len(list((tmp_path / "cache").glob("*.tar"))) == len(dataset.shards)


def test_a_job_on_s3_killed_and_started_again_loses_nothing(
    bucket: str, manifest: str, local: str, config: PreprocessConfig, tmp_path: Path
) -> None:
    out = f"{bucket}/killed"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "syncflow", "preprocess", str(path), "--input", manifest, "--output", out]
    store = open_store(out)

    def shards() -> list[str]:
        return [name for name in store.names("64x64x32") if name.endswith(".json")]

    kills = 0
    for enough in (1, 3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(shards()) < enough:
            time.sleep(0.05)
        kills += process.poll() is None
        process.kill()
        process.wait()
        assert store.read("dataset.json") is None
    assert kills == 2
    before = {name: store.read(f"64x64x32/{name}") for name in shards()}

    subprocess.run(command, check=True)
    same_clips(out, local)
    assert all(store.read(f"64x64x32/{name}") == data for name, data in before.items()), "what was committed stays"
    dataset = open_dataset(out)
    assert all(not problem for _, problem in dataset.verify())
    tars = {name for name in store.names("64x64x32") if name.endswith(".tar")}
    assert tars == {shard.tar for shard in dataset.shards}
    assert dataset.card.read == dataset.card.kept + sum(dataset.card.rejected.values()) == 13


def test_what_is_not_on_s3_is_one_clear_line(bucket: str, config: PreprocessConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        preprocess(config, f"{bucket}/nothing/manifest.csv", tmp_path / "a")
    with pytest.raises(UserError, match="no-such-bucket"):
        preprocess(config, "s3://no-such-bucket/manifest.csv", tmp_path / "b")
    rows = [{"uri": "s3://no-such-bucket/a.mp4"}, {"uri": f"{bucket}/nothing/b.mp4"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="none of 2 clips can be used: 2 not_found"):
        preprocess(config, tmp_path / "list.jsonl", tmp_path / "c")


def test_a_bucket_that_is_not_there_cannot_be_written_to(
    bucket: str, config: PreprocessConfig, impacts_dir: Path
) -> None:
    with pytest.raises(UserError, match="--output s3://no-such-bucket/out") as caught:
        preprocess(config, impacts_dir, "s3://no-such-bucket/out")
    assert "\n" not in str(caught.value)
