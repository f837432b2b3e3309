"""What is read of a shard: batches equal to the clips as the library decodes them, and no header that is believed."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from train_data import write_dataset, write_stages

from syncflow.errors import UserError
from syncflow.samples import Member, ShardMarker, open_dataset
from syncflow.train.config import load_stage
from syncflow.train.loader import MicroBatches, open_source
from syncflow.train.reading import ShardReader


def test_batches_hold_what_the_library_decodes(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", buckets=2)
    stage = write_stages(tmp_path / "configs") / "3_joint.yaml"
    config = load_stage(stage, ["--data.path", str(data), "--init-from", "", "--data.max-tokens", "12"])
    stored = {sample.record.id: sample for sample in open_dataset(str(data))}
    batches = MicroBatches(config, open_source(config), 0, 1)
    lengths = set()
    for step in range(20):
        batch = batches[step]
        assert not isinstance(batch, UserError)
        for row, clip in enumerate(batch.ids):
            sample = stored[clip]
            for name in ("video_mean", "video_std", "video_time_s", "audio_mean", "audio_std", "audio_time_s"):
                assert batch.tensors[name].dtype == sample.tensors[name].dtype
                assert torch.equal(batch.tensors[name][row], sample.tensors[name]), name
            text, mask = batch.tensors["text"][row], batch.tensors["text_mask"][row]
            length = min(len(sample.tensors["text"]), 12)
            lengths.add(length)
            assert torch.equal(text[:length], sample.tensors["text"][:length])
            assert mask[:length].all()
            assert not text[length:].any()
            assert not mask[length:].any()
            assert batch.tensors["fps"][row] == float(sample.record.fps)
            assert batch.tensors["size"][row].tolist() == [sample.record.height, sample.record.width]
    assert len(lengths) > 3


def _forge(data: Path, file: bytes, clip: int = 0) -> ShardMarker:
    """The first shard, where clip's tensors are `file`, with a checksum to match."""
    dataset = open_dataset(str(data))
    shard = dataset.shards[0]
    tar = Path(dataset.tar_path(shard))
    at = tar.stat().st_size
    with tar.open("ab") as handle:
        handle.write(file)
    old = shard.samples[clip]
    member = Member(offset=at, size=len(file), crc32=zlib.crc32(file))
    forged = old.model_copy(update={"members": {**old.members, "safetensors": member}})
    samples = [*shard.samples]
    samples[clip] = forged
    return shard.model_copy(update={"samples": samples})


def _file(header: object, data: bytes = bytes(64)) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


WHOLE = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (_file({"x": WHOLE}, bytes(63)), "take 137 bytes, there are 136"),
        (_file({"x": {**WHOLE, "data_offsets": [64, 128]}}), "bytes, there are"),
        (_file({"x": {**WHOLE, "shape": [4, 5]}}), r"x of shape \[4, 5\] does not take 64 bytes"),
        (_file({"x": {**WHOLE, "shape": [-4, -4]}}), "cannot be read"),
        (_file({"x": {**WHOLE, "data_offsets": [-64, 0]}}), "cannot be read"),
        (_file({"x": {**WHOLE, "dtype": "Q"}}), r"cannot be read: x\.dtype: .*F16"),
        (_file({"x": "y"}), "cannot be read"),
        (_file(["x"]), "cannot be read"),
        (b"\xff" * 80, "cannot be read"),
        (b"\x01", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_header_that_lies_is_one_line(tmp_path: Path, file: bytes, says: str) -> None:
    """Checksums tell damage, not malice: whoever writes the shard writes them too."""
    data = write_dataset(tmp_path / "set", clips=4)
    shard = _forge(data, file)
    with pytest.raises(UserError, match=says) as error:
        ShardReader(open_dataset(str(data))).read(shard, 0)
    assert "\n" not in str(error.value)
    assert "s0-b0-0000" in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {**t, "video_mean": t["video_mean"][:, :-1].clone()}, r"video_mean of s0-b0-0001 is float16 \[4, 7"),
        (lambda t: {**t, "video_std": t["video_std"].float()}, "video_std of s0-b0-0001 is float32"),
        (lambda t: {**t, "text": t["text"][:, :-1].clone()}, r"text of s0-b0-0001 is float16 \[\d+, 383\]"),
        (lambda t: {name: x for name, x in t.items() if name != "text"}, "text of s0-b0-0001 is missing"),
    ],
)
def test_clips_of_a_bucket_that_differ_are_one_line(tmp_path: Path, change, says: str) -> None:
    from syncflow.train.collate import collate

    data = write_dataset(tmp_path / "set", clips=4)
    tensors = open_dataset(str(data)).read(1).tensors
    shard = _forge(data, safetensors.torch.save(change(tensors)), clip=1)
    config = load_stage(write_stages(tmp_path / "configs") / "1_video.yaml", ["--data.path", str(data)])
    reader = ShardReader(open_dataset(str(data)))
    with pytest.raises(UserError, match=says) as error:
        collate(config, open_source(config).stats, [(reader.read_raw(shard, place), 0) for place in (0, 1)])
    assert "\n" not in str(error.value)
