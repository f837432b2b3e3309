"""The data contract: samples survive packing, data sets are read as written, damage and mismatch are named."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.errors import UserError
from syncflow.samples import (
    FORMAT_VERSION,
    Batch,
    Bucket,
    ChannelStats,
    ClipRecord,
    DatasetCard,
    EncoderIdentity,
    IndexedSample,
    Member,
    ShardMarker,
    StoredSample,
    SyncMeasure,
    open_dataset,
    pack,
    unpack,
)


def record(clip_id: str = "a", **changes: object) -> ClipRecord:
    values: dict[str, object] = {
        "id": clip_id,
        "source": "file:///a b/狗.mp4",
        "start_s": Fraction(1001, 30000),
        "end_s": Fraction(61001, 30000),
        "fps": Fraction(24000, 1001),
        "width": 64,
        "height": 64,
        "num_frames": 48,
        "valid_frames": 47,
        "sample_rate": 16000,
        "num_samples": 32000,
        "valid_samples": (100, 31000),
        "caption": 'a "dog"\nbarks 🐕',
        "sync": SyncMeasure(offset_ms=-3.25, confidence=0.5, method="onsets"),
        "scores": {"motion": 0.1},
        "events_s": [0.1, 1 / 3],
        "provenance": {"autoencoder": "x"},
    }
    return ClipRecord.model_validate(values | changes)


def sample(clip_id: str, seed: int = 0) -> StoredSample:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    return StoredSample(
        record(clip_id),
        {
            "video_mean": noise(4, 6, 8, 8),
            "video_std": noise(4, 6, 8, 8).transpose(2, 3),  # not contiguous
            "audio_mean": noise(8, 20),
            "audio_std": noise(8, 20),
            "text": noise(5, 16),
            "video_time_s": torch.rand(6, 2, generator=generator),
            "audio_time_s": torch.rand(20, 2, generator=generator),
        },
    )


def test_a_sample_survives_packing_bit_by_bit() -> None:
    before = sample("a")
    members = pack(before)
    assert set(members) == {"json", "safetensors"}
    after = unpack(members)
    assert after.record == before.record
    assert after.tensors.keys() == before.tensors.keys()
    for name, tensor in before.tensors.items():
        assert after.tensors[name].dtype == tensor.dtype
        assert torch.equal(after.tensors[name], tensor), name
    assert pack(after) == members
    assert b"\n" not in members["json"]


@settings(max_examples=30, deadline=None)
@given(
    st.fractions(min_value=0, max_value=10**5, max_denominator=10**6),
    st.text(max_size=50),
    st.lists(st.floats(0, 1e4, allow_nan=False), max_size=5),
)
def test_records_keep_exact_times_and_any_text(start: Fraction, caption: str, events: list[float]) -> None:
    before = record(start_s=start, end_s=start + 2, caption=caption, events_s=events)
    assert unpack(pack(StoredSample(before, {}))).record == before


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="colour"):
        record(colour="red")


def card(**changes: object) -> DatasetCard:
    identity = EncoderIdentity(kind="image", path="/x", sha256="ab" * 32, channels=4)
    values: dict[str, object] = {
        "created_by": "test",
        "video_autoencoder": identity,
        "audio_autoencoder": identity,
        "text_encoder": identity,
        "fps": Fraction(24000, 1001),
        "sample_rate": 16000,
        "dtype": "bfloat16",
        "buckets": [
            Bucket(
                name="b", width=64, height=64, num_frames=48, video_shape=(4, 6, 8, 8), audio_shape=(8, 20), samples=3
            )
        ],
        "read": 4,
        "kept": 3,
        "rejected": {"no_audio": 1},
        "hours": 0.1,
        "video_stats": ChannelStats(mean=[0.0] * 4, std=[1.0] * 4),
        "audio_stats": ChannelStats(mean=[0.0] * 8, std=[1.0] * 8),
    }
    return DatasetCard.model_validate(values | changes)


def test_the_fingerprint_follows_the_meaning_and_nothing_else() -> None:
    base = card()
    identity = base.video_autoencoder
    same = [
        card(created_by="other", kept=2, hours=9.0, rejected={}),
        card(video_autoencoder=identity.model_copy(update={"path": "/elsewhere"})),
        DatasetCard.model_validate_json(base.model_dump_json()),
    ]
    for other in same:
        assert (other.fingerprint, base.differences(other)) == (base.fingerprint, [])
    differs = {
        "video_autoencoder": card(video_autoencoder=identity.model_copy(update={"sha256": "cd" * 32})),
        "audio_autoencoder": card(audio_autoencoder=identity.model_copy(update={"channels": 8})),
        "text_encoder": card(text_encoder=None),
        "fps": card(fps=Fraction(24)),
        "sample_rate": card(sample_rate=16001),
    }
    for field, other in differs.items():
        assert other.fingerprint != base.fingerprint
        [line] = base.differences(other)
        assert line.startswith(field)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two shards of two and one samples, and a tar that no marker names."""
    (tmp_path / "b").mkdir()
    (tmp_path / "dataset.json").write_text(card().model_dump_json())
    for shard, ids in (("000000", ["s0", "s1"]), ("000001", ["s2"])):
        tar_name = f"shard-{shard}-abcdef.tar"
        index = []
        with tarfile.open(tmp_path / "b" / tar_name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for clip_id in ids:
                members = {}
                for extension, data in pack(sample(clip_id, seed=int(clip_id[1]))).items():
                    header = tarfile.TarInfo(f"{clip_id}.{extension}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
                    start = tar.offset - (-(-len(data) // 512) * 512)
                    members[extension] = Member(offset=start, size=len(data), crc32=zlib.crc32(data))
                index.append(IndexedSample(id=clip_id, members=members))
        marker = ShardMarker(shard=shard, bucket="b", tar=tar_name, fingerprint="f", samples=index, rejects=[])
        (tmp_path / "b" / f"shard-{shard}.json").write_text(marker.model_dump_json())
    empty = ShardMarker(shard="000002", bucket="b", tar="", fingerprint="f", samples=[], rejects=[])
    (tmp_path / "b" / "shard-000002.json").write_text(empty.model_dump_json())
    (tmp_path / "b" / "shard-000003-lost.tar").write_bytes(b"half written")
    return tmp_path


def test_a_data_set_is_read_in_order_through_its_markers(dataset: Path) -> None:
    found = open_dataset(str(dataset))
    assert len(found) == 3
    assert [item.record.id for item in found] == ["s0", "s1", "s2"]
    assert torch.equal(found.read(2).tensors["text"], sample("s2", 2).tensors["text"])
    assert [problem for _, problem in found.verify()] == ["", "", ""]
    assert len(open_dataset(f"file://{dataset}")) == 3


def test_damage_is_found(dataset: Path) -> None:
    found = open_dataset(str(dataset))
    tar = next((dataset / "b").glob("shard-000000-*.tar"))
    data = bytearray(tar.read_bytes())
    data[found.shards[0].samples[1].members["safetensors"].offset + 50] ^= 1
    tar.write_bytes(data)
    assert [bool(problem) for _, problem in found.verify()] == [False, True, False]
    with pytest.raises(UserError, match="is damaged"):
        found.read(1)
    tar.write_bytes(data[: len(data) // 3])
    assert [bool(problem) for _, problem in found.verify()][1:] == [True, False]
    tar.unlink()
    with pytest.raises(UserError, match="is missing"):
        found.read(0)
    assert [bool(problem) for _, problem in found.verify()] == [True, True, False]


def test_a_folder_that_is_no_data_set(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset"):
        open_dataset(str(dataset / "b"))
    (dataset / "dataset.json").write_text(json.dumps({**json.loads(card().model_dump_json()), "format_version": 99}))
    with pytest.raises(UserError, match=f"format 99, this version reads {FORMAT_VERSION}"):
        open_dataset(str(dataset))
    (dataset / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        open_dataset(str(dataset))


def test_a_batch_moves_whole() -> None:
    batch = Batch(
        ids=["a"],
        video=torch.zeros(1, 4, 6, 8, 8),
        video_mask=torch.ones(1, 6, dtype=torch.bool),
        video_time_s=torch.zeros(1, 6, 2),
        audio=torch.zeros(1, 8, 20),
        audio_mask=torch.ones(1, 20, dtype=torch.bool),
        audio_time_s=torch.zeros(1, 20, 2),
        text=torch.zeros(1, 5, 16),
        text_mask=torch.ones(1, 5, dtype=torch.bool),
        null_text=torch.zeros(1, dtype=torch.bool),
        fps=torch.full((1,), 16.0),
        size=torch.full((1, 2), 64.0),
    )
    moved = batch.to("cpu", torch.bfloat16)
    assert {moved.video.dtype, moved.audio.dtype, moved.text.dtype} == {torch.bfloat16}
    assert moved.video_time_s.dtype == torch.float32
    assert moved.video_mask.dtype == torch.bool
    assert moved.ids == ["a"]
