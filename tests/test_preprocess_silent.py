"""Silent videos and still images: dropped where sound is required, else kept in buckets of their own and trained on."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import smallest_autoencoders
from train_data import read_losses, train, write_stages

from syncflow.errors import UserError
from syncflow.media import ffmpeg_path, probe
from syncflow.preprocess import inspect
from syncflow.preprocess.config import FiltersConfig, PreprocessConfig
from syncflow.preprocess.run import preprocess
from syncflow.samples import Dataset, open_dataset


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PreprocessConfig:
    return PreprocessConfig(
        **smallest_autoencoders(tmp_path_factory.mktemp("weights")),
        sound="optional",
        buckets=("64x64x32", "64x64x1"),
        # Limits on sound and motion say nothing of clips that have none.
        filters=FiltersConfig(duplicates=True, min_loudness_lufs=-70, min_sync_confidence=0, min_motion=0.01),
    )


@pytest.fixture(scope="module")
def clips(impacts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos with sound, three without, a film whose sound ends after 2 of its 6 s, a GIF, four pictures."""
    folder = tmp_path_factory.mktemp("clips")
    videos = sorted(impacts_dir.glob("*.mp4"))

    def ffmpeg(*arguments: object) -> None:
        subprocess.run([ffmpeg_path(), "-nostdin", "-v", "error", *map(str, arguments)], check=True)

    for k in range(3):
        ffmpeg("-i", videos[k], "-c", "copy", folder / f"sound-{k}.mp4")
        ffmpeg("-i", videos[3 + k], "-an", "-c", "copy", folder / f"silent-{k}.mp4")
    ffmpeg("-stream_loop", 2, "-i", videos[6], "-i", videos[6], "-map", "0:v", "-map", "1:a", folder / "ends.mkv")
    ffmpeg("-i", videos[7], "-vf", "fps=10", folder / "moving.gif")
    for k, suffix in enumerate(("png", "jpg", "webp")):
        ffmpeg("-i", videos[8 + k], "-frames:v", 1, "-update", 1, folder / f"picture-{k}.{suffix}")
    ffmpeg("-i", folder / "picture-0.png", "-vf", "scale=128:128", "-update", 1, folder / "picture-0-again.jpg")
    (folder / "manifest.csv").write_text("uri,caption\npicture-0.png,a red thing\n")
    return folder


@pytest.fixture(scope="module")
def mixed(config: PreprocessConfig, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mixed") / "set"
    preprocess(config, clips, out, pool="inline")
    return out


def stored(dataset: Dataset) -> dict[str, set[str]]:
    """Ids by bucket."""
    found: dict[str, set[str]] = {}
    for shard in dataset.shards:
        found.setdefault(shard.bucket, set()).update(sample.id for sample in shard.samples)
    return found


def test_each_goes_to_a_bucket_of_equal_fields(mixed: Path) -> None:
    dataset = open_dataset(str(mixed))
    assert stored(dataset) == {
        "64x64x32": {"sound-0-0000000", "sound-1-0000000", "sound-2-0000000", "ends-0000000"},
        "64x64x32-silent": {
            *(f"silent-{k}-0000000" for k in range(3)), "ends-0002000", "ends-0004000", "moving-0000000"
        },
        "64x64x1-silent": {f"picture-{k}-0000000" for k in range(3)},
    }  # fmt: skip
    shapes = {bucket.name: (bucket.video_shape, bucket.audio_shape) for bucket in dataset.card.buckets}
    assert shapes == {
        "64x64x32": ((4, 32, 1, 1), (8, 80)),
        "64x64x32-silent": ((4, 32, 1, 1), None),
        "64x64x1-silent": ((4, 1, 1, 1), None),
    }
    for sample in dataset:
        record, tensors = sample.record, sample.tensors
        sounding = record.num_samples > 0
        assert (
            {"audio_mean", "audio_std", "audio_time_s"} <= tensors.keys() if sounding else "audio_mean" not in tensors
        )
        assert (record.sync is not None) == ("loudness_lufs" in record.scores) == sounding
        assert ("motion" in record.scores) == (record.num_frames > 1)
        assert "black" in record.scores
        assert tensors["video_mean"].shape[1] == len(tensors["video_time_s"]) == record.num_frames
        if not sounding:
            assert (record.num_samples, record.valid_samples) == (0, (0, 0))
        if record.num_frames == 1:
            assert (record.start_s, record.end_s, record.valid_frames) == (0, Fraction(1, 16), 1)


def test_all_is_counted_and_a_picture_seen_twice_is_kept_once(mixed: Path) -> None:
    card = open_dataset(str(mixed)).card
    assert card.audio_autoencoder is not None
    assert card.audio_stats is not None
    assert (card.read, card.kept, card.rejected) == (14, 13, {"near_duplicate": 1})
    assert card.hours * 3600 == pytest.approx(10 * 2 + 3 / 16)
    (dropped,) = map(json.loads, (mixed / "rejects.jsonl").read_text().splitlines())
    # The table's rows come first: the picture named there is kept, and its enlarged copy is not.
    assert (dropped["id"], dropped["detail"]) == ("picture-0-again-0000000", "repeats picture-0-0000000")
    captions = {s.record.id: s.record.caption for s in open_dataset(str(mixed))}
    assert (captions["picture-0-0000000"], captions["silent-1-0000000"]) == ("a red thing", "silent")


def test_the_page_and_decoded_samples_show_them(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (mixed / "report.html").read_text()
    assert "64x64x1-silent" in page
    assert page.count("<img") == 6
    assert inspect.main([str(mixed), "--verify", "--decode", "13", "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "bucket 64x64x32-silent: 6 clips, video 4x32x1x1, no sound" in printed
    assert "all 13 samples are whole" in printed
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    kinds: Counter[str] = Counter()
    for row in rows:
        info = probe(tmp_path / row["uri"])
        kinds["still" if info.still else "silent" if info.audio is None else "sound"] += 1
    assert kinds == {"still": 3, "silent": 6, "sound": 4}
    assert {row["caption"] for row in rows if row["uri"].startswith("picture-0")} == {"a red thing"}


def test_stage_1_trains_on_all_of_it_and_stage_2_on_what_has_sound(mixed: Path, tmp_path: Path) -> None:
    stages = write_stages(tmp_path / "configs")
    common = ["--data.path", str(mixed), "--steps", "6"]
    assert train([str(stages / "1_video.yaml"), *common, "--output", str(tmp_path / "video")]) == 0
    losses = read_losses(tmp_path / "video", "loss/video")
    assert len(losses) == 6
    assert np.isfinite(list(losses.values())).all()
    init = ["--init-from", str(tmp_path / "video")]
    assert train([str(stages / "2_audio.yaml"), *common, *init, "--output", str(tmp_path / "audio")]) == 0
    assert np.isfinite(list(read_losses(tmp_path / "audio", "loss/audio").values())).all()

    from syncflow.train.config import load_stage
    from syncflow.train.loader import open_source

    for stage, buckets in (("1_video", 3), ("2_audio", 1)):
        source = open_source(load_stage(stages / f"{stage}.yaml", [*common, *init, "--output", str(tmp_path / "o")]))
        assert len(source.buckets) == buckets
        assert sum(stream.weight for stream in source.streams) == pytest.approx(1)


def test_without_any_sound_no_autoencoder_of_it_is_asked_for(
    config: PreprocessConfig, clips: Path, tmp_path: Path
) -> None:
    """Videos that have sound are stored without; a stage that learns sound refuses the set."""
    settings: dict[str, Any] = {
        "video_autoencoder": config.video_autoencoder,
        "buckets": config.buckets,
        "text": "online",
    }
    silent = PreprocessConfig(sound="none", **settings)
    card = preprocess(silent, clips, tmp_path / "set", pool="inline").card
    assert (card.audio_autoencoder, card.audio_stats) == (None, None)
    assert {bucket.name: bucket.samples for bucket in card.buckets} == {"64x64x32-silent": 10, "64x64x1-silent": 4}
    assert not any("audio_mean" in sample.tensors for sample in open_dataset(str(tmp_path / "set")))
    assert "no sound" in inspect.describe(open_dataset(str(tmp_path / "set")))
    stages = write_stages(tmp_path / "configs")
    common = ["--data.path", str(tmp_path / "set"), "--steps", "2"]
    assert train([str(stages / "1_video.yaml"), *common, "--output", str(tmp_path / "video")]) == 0
    with pytest.raises(UserError, match="has no sound, and this stage learns sound"):
        train([str(stages / "2_audio.yaml"), *common, "--output", str(tmp_path / "audio"),
               "--init-from", str(tmp_path / "video")])  # fmt: skip
    with pytest.raises(UserError, match="sound: none, now optional"):
        preprocess(config, clips, tmp_path / "set", pool="inline")


def test_what_looks_the_same_is_a_copy_where_sound_does_not_count(
    config: PreprocessConfig, clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("sound-0", "sound-1"):
        shutil.copy(clips / f"{name}.mp4", tmp_path / "videos")
    both = ["-i", str(clips / "sound-0.mp4"), "-i", str(clips / "sound-1.mp4"), "-map", "0:v", "-map", "1:a"]
    dubbed = str(tmp_path / "videos" / "zdubbed.mkv")
    subprocess.run([ffmpeg_path(), "-nostdin", "-v", "error", *both, "-c", "copy", dubbed], check=True)
    for sound, kept in (("optional", 3), ("none", 2)):
        chosen = config.model_copy(update={"sound": sound, "text": "online"})
        assert preprocess(chosen, tmp_path / "videos", tmp_path / sound, pool="inline").card.kept == kept


def test_required_sound_is_what_it_was(config: PreprocessConfig, clips: Path, tmp_path: Path) -> None:
    """Images and GIFs of a folder are not even looked at; those that a table names are dropped."""
    settings: dict[str, Any] = {
        "video_autoencoder": config.video_autoencoder,
        "audio_autoencoder": config.audio_autoencoder,
    }
    card = preprocess(PreprocessConfig(**settings, text="online"), clips, tmp_path / "set", pool="inline").card
    assert card.rejected == {"no_audio": 4, "audio_missing": 2}
    assert {bucket.name: bucket.samples for bucket in card.buckets} == {"64x64x32": 4}


def test_buckets_and_kinds_that_do_not_go_together_are_named(
    config: PreprocessConfig, clips: Path, tmp_path: Path
) -> None:
    settings = config.model_dump(exclude={"sound", "audio_autoencoder"})
    with pytest.raises(ValueError, match="64x64x1 is for still images, which have no sound: set sound to optional"):
        PreprocessConfig(**settings, audio_autoencoder=config.audio_autoencoder)
    with pytest.raises(ValueError, match="audio_autoencoder is required, but where sound is none"):
        PreprocessConfig(**settings, sound="optional")
    videos = config.model_copy(update={"buckets": ("64x64x32",), "text": "online"})
    table = tmp_path / "list.jsonl"
    table.write_text("\n".join(json.dumps({"uri": str(clips / n)}) for n in ("silent-0.mp4", "picture-1.jpg")))
    assert preprocess(videos, table, tmp_path / "set", pool="inline").card.rejected == {"no_bucket": 1}
    (dropped,) = map(json.loads, (tmp_path / "set" / "rejects.jsonl").read_text().splitlines())
    assert dropped["detail"] == "is a still image, and no bucket is of one frame"
