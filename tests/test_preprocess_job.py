"""The whole job in this process: what goes in comes out or is accounted for, and a second start changes nothing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from syncflow.errors import UserError
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.models.autoencoders.nano import (
    NanoAudioConfig,
    NanoVideoConfig,
    new_nano_audio_autoencoder,
    new_nano_video_autoencoder,
)
from syncflow.preprocess import inspect
from syncflow.preprocess.command import closing
from syncflow.preprocess.config import PreprocessConfig
from syncflow.preprocess.estimate import estimate
from syncflow.preprocess.run import Summary, preprocess
from syncflow.samples import open_dataset


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest autoencoders of the kinds nano uses."""
    folder = tmp_path_factory.mktemp("weights")
    tiny = NanoVideoConfig(block_out_channels=(8, 8, 8, 8))
    new_nano_video_autoencoder(0, tiny).save_pretrained(folder / "video")
    new_nano_audio_autoencoder(0, NanoAudioConfig(decoder_channels=4)).save_pretrained(folder / "audio")
    return folder


@pytest.fixture(scope="module")
def config(weights: Path) -> PreprocessConfig:
    return PreprocessConfig(
        video_autoencoder=AutoencoderSpec(kind="image", path=str(weights / "video")),
        audio_autoencoder=AutoencoderSpec(kind="oobleck", path=str(weights / "audio")),
        shard_clips=5,
        batch=4,
    )


@pytest.fixture(scope="module")
def made(config: PreprocessConfig, impacts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, Path]:
    out = tmp_path_factory.mktemp("dataset") / "made"
    return preprocess(config, impacts_dir, out, pool="inline"), out


def rejects_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_data_set_of_rendered_clips(made: tuple[Summary, Path], impacts_dir: Path) -> None:
    summary, out = made
    dataset = open_dataset(str(out))
    rows = {row["id"]: row for row in map(json.loads, (impacts_dir / "manifest.jsonl").read_text().splitlines())}
    assert (summary.card.read, summary.card.kept, len(dataset)) == (12, 12, 12)
    assert all(problem == "" for _, problem in dataset.verify())
    for sample in dataset:
        record, row = sample.record, rows[sample.record.provenance["source_id"]]
        assert record.caption == row["caption"]
        assert record.events_s == pytest.approx(row["events_s"])
        assert record.end_s - record.start_s == Fraction(2)
        bucket = dataset.card.buckets[0]
        assert sample.tensors["video_mean"].shape == sample.tensors["video_std"].shape == bucket.video_shape
        assert sample.tensors["audio_mean"].shape == bucket.audio_shape
        for kind, shape in (("video", bucket.video_shape), ("audio", bucket.audio_shape)):
            times = sample.tensors[f"{kind}_time_s"]
            assert len(times) == shape[1]
            assert (times[0, 0], times[-1, 1]) == (0, 2)
        assert sample.tensors["text"].shape[1] == dataset.card.text_encoder.channels  # type: ignore[union-attr]


def test_latents_are_those_of_the_clip_whatever_the_batch(
    made: tuple[Summary, Path], config: PreprocessConfig, impacts_dir: Path, tmp_path: Path
) -> None:
    alone = config.model_copy(update={"batch": 1, "shard_clips": 100, "decode_ahead": 2})
    preprocess(alone, impacts_dir, tmp_path / "alone", pool="inline")
    found = {s.record.id: s for s in open_dataset(str(tmp_path / "alone"))}
    for sample in open_dataset(str(made[1])):
        other = found.pop(sample.record.id)
        assert other.record == sample.record
        for name, tensor in sample.tensors.items():
            np.testing.assert_allclose(other.tensors[name].float(), tensor.float(), atol=2e-2, err_msg=name)
    assert not found


def test_a_finished_job_is_recognised_and_left_alone(
    made: tuple[Summary, Path], config: PreprocessConfig, impacts_dir: Path
) -> None:
    before = snapshot(made[1])
    again = preprocess(config, impacts_dir, made[1], pool="inline")
    assert again.already_done
    assert again.card == made[0].card
    assert snapshot(made[1]).keys() == before.keys()


def test_what_is_missing_is_made_again_and_the_rest_is_kept(
    made: tuple[Summary, Path], config: PreprocessConfig, impacts_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "torn"
    shutil.copytree(made[1], out)
    (out / "dataset.json").unlink()
    (out / "64x64x32" / "shard-000001.json").unlink()  # killed after the tar was shown, before it was committed
    kept = (out / "64x64x32" / "shard-000000.json").read_bytes()
    again = preprocess(config, impacts_dir, out, pool="inline")
    assert not again.already_done
    assert again.card == made[0].card
    assert (out / "64x64x32" / "shard-000000.json").read_bytes() == kept
    assert len(list((out / "64x64x32").glob("*.tar"))) == 3, "the tar nobody committed is collected"
    ids = [s.record.id for s in open_dataset(str(out))]
    assert sorted(ids) == sorted(s.record.id for s in open_dataset(str(made[1])))


def test_another_job_in_the_same_folder_is_refused_with_the_difference_named(
    made: tuple[Summary, Path], config: PreprocessConfig, impacts_dir: Path, weights: Path, tmp_path: Path
) -> None:
    out = made[1]
    with pytest.raises(UserError, match="fps: 16, now 12"):
        preprocess(config.model_copy(update={"fps": "12"}), impacts_dir, out, pool="inline")
    fewer = tmp_path / "fewer"
    shutil.copytree(impacts_dir, fewer)
    lines = (fewer / "manifest.jsonl").read_text().splitlines()
    (fewer / "manifest.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(UserError, match="another input"):
        preprocess(config, fewer, out, pool="inline")
    other = tmp_path / "other"
    new_nano_video_autoencoder(1, NanoVideoConfig(block_out_channels=(8, 8, 8, 8))).save_pretrained(other)
    spec = AutoencoderSpec(kind="image", path=str(other))
    with pytest.raises(UserError, match="other weights, video_autoencoder"):
        preprocess(config.model_copy(update={"video_autoencoder": spec}), impacts_dir, out, pool="inline")


def test_nasty_clips_end_as_they_should_among_good_ones(config: PreprocessConfig, nasty: Path, tmp_path: Path) -> None:
    expected = json.loads((nasty / "expected.json").read_text())
    out = tmp_path / "out"
    summary = preprocess(config, nasty, out, pool="inline")
    sources: dict[str, Counter[str]] = {}
    for sample in open_dataset(str(out)):
        sources.setdefault(Path(sample.record.source).name, Counter())["kept"] += 1
    for reject in rejects_in(out):
        sources.setdefault(Path(reject["source"]).name, Counter())[reject["reason"]] += 1

    def ended(part: str) -> Counter[str]:
        return next(counts for name, counts in sources.items() if part in name)

    assert len(sources) == len(expected) == 13
    for part, reason in {
        "no_audio": "no_audio",
        "truncated_no_moov": "unreadable",
        "zero_bytes": "empty_file",
        "very_short": "too_short",
    }.items():
        assert ended(part) == {reason: 1}, part
    for part in ("vfr_drums", "portrait", "audio_5_1", 'we"ird', "latin1", "odd_dims", "audio_offset"):
        assert set(ended(part)) == {"kept"}, part
    assert ended("corrupt_middle")["kept"] >= 1
    assert ended("corrupt_middle")["decode_errors"] >= 1
    assert ended("truncated_faststart")["kept"] <= 1, "half of its 4 s are there"
    late = next(s for s in open_dataset(str(out)) if "audio_offset" in s.record.source and s.record.start_s == 0)
    assert late.record.valid_samples[0] == pytest.approx(8000, abs=400)
    assert (
        summary.card.read
        == summary.card.kept + sum(summary.card.rejected.values())
        == sum(sum(counts.values()) for counts in sources.values())
    )
    assert "rejects.jsonl" in closing(summary, str(out))


def test_a_job_that_mostly_fails_stops_and_says_why(config: PreprocessConfig, tmp_path: Path) -> None:
    for k in range(80):
        (tmp_path / f"{k}.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"stopped: \d+ of the first \d+ clips cannot be used: \d+ unreadable"):
        preprocess(config, tmp_path, tmp_path / "out", pool="inline")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_job_of_which_nothing_is_left_says_so(config: PreprocessConfig, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match="none of 1 clips can be used: 1 empty_file"):
        preprocess(config, tmp_path, tmp_path / "out", pool="inline")


@pytest.mark.parametrize(
    ("choice", "captions", "dropped"),
    [("name", {"dog on wood", "my cat"}, 0), ("empty", {""}, 0), ("require", set(), 2)],
)
def test_clips_without_a_caption(
    config: PreprocessConfig, impacts_dir: Path, tmp_path: Path, choice: str, captions: set[str], dropped: int
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("a.mp4", "my-cat_03.mp4"):
        shutil.copy(next(impacts_dir.glob("*.mp4")), clips / name)
    (clips / "manifest.csv").write_text("uri,label\na.mp4,dog on wood\n")
    chosen = config.model_copy(update={"missing_caption": choice, "text": "online"})
    if dropped:
        with pytest.raises(UserError, match="2 no_caption"):
            preprocess(chosen, clips, tmp_path / "out", pool="inline")
        return
    preprocess(chosen, clips, tmp_path / "out", pool="inline")
    dataset = open_dataset(str(tmp_path / "out"))
    assert {s.record.caption for s in dataset} == captions
    assert dataset.card.text_encoder is None
    assert all("text" not in s.tensors for s in dataset)


def test_the_report_shows_drops_scores_and_clips(made: tuple[Summary, Path]) -> None:
    page = (made[1] / "report.html").read_text()
    assert "12 clips, 24 s, of 12 read" in page
    assert page.count("<video") == 6
    assert all(f"<b>{name}</b>" in page for name in ("seconds long", "motion", "loudness_lufs", "sync.offset_ms"))
    assert all(f"<td>{name}</td>" in page for name in ("probe", "shots", "decode", "filter_sync", "encode", "write"))


def test_a_dry_run_estimates_what_the_job_then_gives(
    made: tuple[Summary, Path], config: PreprocessConfig, impacts_dir: Path
) -> None:
    found = estimate(config.model_copy(update={"input": str(impacts_dir)}))
    size = sum(path.stat().st_size for path in (made[1] / "64x64x32").iterdir())
    assert (found.sources, found.clips) == (12, 12)
    assert found.hours == pytest.approx(made[0].card.hours)
    assert found.size_bytes == pytest.approx(size, rel=0.05)
    assert found.worker_hours > 0
    assert "at 2 per worker" in found.text(2.0)


def test_inspect_prints_verifies_decodes_and_finds_damage(
    made: tuple[Summary, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made[1], out)
    assert inspect.main([str(out), "--verify", "--decode", "3", "-o", str(tmp_path / "mp4")]) == 0
    printed = capsys.readouterr().out
    assert "read 12 = kept 12 + dropped 0" in printed
    assert "all 12 samples are whole" in printed
    rows = [json.loads(line) for line in (tmp_path / "mp4" / "manifest.jsonl").read_text().splitlines()]
    assert all((tmp_path / "mp4" / row["uri"]).stat().st_size > 1000 and row["events_s"] for row in rows)
    tar = next((out / "64x64x32").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 255
    tar.write_bytes(data)
    assert inspect.main([str(out), "--verify"]) == 1
    assert "1 of 12 samples are damaged" in capsys.readouterr().out
