"""What a shard is: readable by anyone, indexed by us, committed once."""

from __future__ import annotations

import io
import json
import tarfile
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import webdataset

from syncflow.preprocess.shards import ShardWriter
from syncflow.preprocess.store import LocalStore, RemoteStore, Store, open_store
from syncflow.samples import ClipRecord, Reject, ShardMarker, StoredSample, unpack


def make_sample(name: str, seed: int = 0, text_tokens: int = 5) -> StoredSample:
    generator = torch.Generator().manual_seed(seed)
    record = ClipRecord(
        id=name,
        source=f"/clips/{name}.mp4",
        start_s=Fraction(0),
        end_s=Fraction(2),
        fps=Fraction(16),
        width=64,
        height=64,
        num_frames=32,
        valid_frames=32,
        sample_rate=16000,
        num_samples=32000,
        valid_samples=(0, 32000),
        caption="ein Hund bellt 狗",
        scores={"motion": 0.5},
    )
    shapes = {"video_mean": (4, 3, 2, 2), "video_std": (4, 3, 2, 2), "audio_mean": (2, 7), "audio_std": (2, 7)}
    tensors = {k: torch.randn(shape, generator=generator).half() for k, shape in shapes.items()}
    tensors |= {k: tensors[k].abs() for k in ("video_std", "audio_std")}
    tensors["text"] = torch.randn(text_tokens, 8, generator=generator).half()
    return StoredSample(record, tensors)


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "out")
    found = open_store(f"memory://{tmp_path.name}-{request.node.name}")
    assert isinstance(found, RemoteStore)
    return found


def test_a_store_keeps_its_three_promises(store: Store) -> None:
    assert store.read("a/b.json") is None
    store.write("a/b.json", b"1")
    store.write("a/b.json", b"22")
    assert store.read("a/b.json") == b"22"
    assert store.create("a/c.json", b"first")
    assert not store.create("a/c.json", b"second")
    assert store.read("a/c.json") == b"first"
    path = store.wip("x.tar")
    path.write_bytes(b"tar")
    assert "x.tar" not in store.names("a")
    store.put(path, "a/x.tar")
    assert store.names("a") == ["b.json", "c.json", "x.tar"]
    assert not path.exists()
    store.remove("a/x.tar")
    store.remove("a/x.tar")
    assert store.names("a") == ["b.json", "c.json"]
    assert store.names("nothing") == []


def write(store: Store, samples: list[StoredSample], rejects: list[Reject] | None = None) -> ShardMarker:
    writer = ShardWriter(store, "64x64x32", "000000")
    for sample in samples:
        writer.add(sample)
    return writer.commit("64x64x32/shard-000000.json", "f", rejects or [], {"decode": 1.5})


def test_a_shard_is_an_ordinary_tar_and_the_index_says_where_everything_is(store: Store) -> None:
    samples = [make_sample(f"clip-{i}", i, text_tokens=3 + i) for i in range(5)]
    marker = write(store, samples)
    data = store.read(f"64x64x32/{marker.tar}")
    assert data is not None

    with tarfile.open(fileobj=io.BytesIO(data)) as tar:  # the slow, obvious way
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
        assert {m.mtime for m in tar.getmembers()} == {0}
        assert all(not m.pax_headers for m in tar.getmembers())
    for sample, indexed in zip(samples, marker.samples, strict=True):
        by_index = {e: data[m.offset : m.offset + m.size] for e, m in indexed.members.items()}
        assert by_index == {e: members[f"{indexed.id}.{e}"] for e in ("json", "safetensors")}
        back = unpack(by_index)
        assert back.record == sample.record
        assert all(torch.equal(back.tensors[name], tensor) for name, tensor in sample.tensors.items())


def test_any_webdataset_reader_opens_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    marker = write(store, [make_sample(f"clip-{i}", i) for i in range(3)])
    url = str(tmp_path / "64x64x32" / marker.tar)
    found = list(webdataset.WebDataset(url, shardshuffle=False))
    assert [s["__key__"] for s in found] == ["clip-0", "clip-1", "clip-2"]
    assert json.loads(found[0]["json"])["id"] == "clip-0"


def test_the_first_to_commit_wins_and_the_other_leaves_nothing(store: Store) -> None:
    first = ShardWriter(store, "64x64x32", "000000")
    second = ShardWriter(store, "64x64x32", "000000")
    for writer in (first, second):
        writer.add(make_sample("clip"))
    name = "64x64x32/shard-000000.json"
    winner = second.commit(name, "f", [], {})
    assert first.commit(name, "f", [], {}) == winner
    assert store.names("64x64x32") == sorted([winner.tar, "shard-000000.json"])


def test_a_shard_of_which_nothing_is_left_has_a_marker_and_no_tar(store: Store) -> None:
    reject = Reject(id="x", source="/x.mp4", stage="decode", reason="decode_errors")
    marker = write(store, [], [reject])
    assert (marker.tar, marker.samples, marker.rejects) == ("", [], [reject])
    assert store.names("64x64x32") == ["shard-000000.json"]


def test_statistics_are_those_of_latents_drawn_from_the_posteriors(tmp_path: Path) -> None:
    samples = [make_sample(f"clip-{i}", i) for i in range(4)]
    stats = write(LocalStore(tmp_path), samples).stats
    mean = torch.stack([s.tensors["video_mean"].double() for s in samples])  # (N, C, T, H, W)
    std = torch.stack([s.tensors["video_std"].double() for s in samples])
    noise = torch.randn(2000, *mean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = mean + std * noise  # (K, N, C, T, H, W)
    per_channel = draws.transpose(0, 2).flatten(1)
    count = stats["video_count"][0]
    found_mean = torch.tensor(stats["video_sum"]) / count
    found_var = torch.tensor(stats["video_square"]) / count - found_mean**2
    exact_mean, exact_square = mean.transpose(0, 1).flatten(1), (mean**2 + std**2).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(stats["video_sum"]).double(), exact_mean.sum(1), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(stats["video_square"]).double(), exact_square.sum(1), atol=0, rtol=1e-5)
    torch.testing.assert_close(found_mean.double(), per_channel.mean(1), atol=0.02, rtol=0)
    torch.testing.assert_close(found_var.sqrt().double(), per_channel.std(1), atol=0.02, rtol=0)
