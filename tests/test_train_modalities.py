"""Data that lacks something: sound, pictures in motion, stored text. Used where a stage can, refused where not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from train_data import read_losses, train, write_dataset, write_stages

from syncflow.errors import UserError
from syncflow.models.text import TextEncoderSpec, load_text_encoder


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stages(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("silent") / "set", sound=False)


def test_stage_1_learns_the_same_with_and_without_sound(stages: Path, silent: Path, tmp_path: Path) -> None:
    """It does not look at the sound, so silent videos are as good."""
    losses = {}
    for name, data in (("silent", silent), ("sound", write_dataset(tmp_path / "set"))):
        args = ["--data.path", str(data), "--output", str(tmp_path / name), "--steps", "6"]
        assert train([str(stages / "1_video.yaml"), *args]) == 0
        losses[name] = read_losses(tmp_path / name, "loss")
    assert losses["silent"] == losses["sound"]
    # Video tokens alone are counted: 8 frames of 4 x 4 patches.
    tokens, clips = (read_losses(tmp_path / "sound", f"{what}_per_s")[6] for what in ("tokens", "clips"))
    assert tokens / clips == pytest.approx(8 * 4 * 4)


def test_a_stage_that_learns_sound_goes_on_from_one_without(stages: Path, silent: Path, tmp_path: Path) -> None:
    common = ["--output", str(tmp_path / "video"), "--steps", "4"]
    assert train([str(stages / "1_video.yaml"), "--data.path", str(silent), *common]) == 0
    sound = write_dataset(tmp_path / "set", seed=1)
    args = ["--init-from", str(tmp_path / "video"), "--output", str(tmp_path / "audio"), "--steps", "4"]
    assert train([str(stages / "2_audio.yaml"), "--data.path", str(sound), *args]) == 0
    assert all(math.isfinite(loss) for loss in read_losses(tmp_path / "audio", "loss/audio").values())


@pytest.mark.parametrize("stage", ["2_audio", "3_joint"])
def test_sound_is_asked_for_where_it_is_learned(stages: Path, silent: Path, tmp_path: Path, stage: str) -> None:
    """Also where only one of several data sets lacks it."""
    assert train([str(stages / "1_video.yaml"), "--data.path", str(silent), "--output", str(tmp_path / "v"),
                  "--steps", "1"]) == 0  # fmt: skip
    both = f"\ndata:\n  datasets:\n  - {{path: {write_dataset(tmp_path / 'set')}}}\n  - {{path: {silent}}}\n"
    config = tmp_path / f"{stage}.yaml"
    config.write_text((stages / f"{stage}.yaml").read_text() + both)
    with pytest.raises(UserError, match=r"silent.*has no sound, and this stage learns sound"):
        train([str(config), "--init-from", str(tmp_path / "v"), "--output", str(tmp_path / "o")])


def test_images_videos_and_videos_with_sound_are_mixed_by_weight(stages: Path, silent: Path, tmp_path: Path) -> None:
    """Images are clips of one frame, in a bucket of their own."""
    images = write_dataset(tmp_path / "images", frames=1, sound=False, seed=5)
    sounding = write_dataset(tmp_path / "set", seed=6)
    config = tmp_path / "1_mixed.yaml"
    sets = [f"  - {{path: {path}, weight: {weight}}}" for path, weight in ((images, 2), (silent, 1), (sounding, 1))]
    config.write_text((stages / "1_video.yaml").read_text() + "\ndata:\n  datasets:\n" + "\n".join(sets) + "\n")
    assert train([str(config), "--output", str(tmp_path / "out"), "--steps", "8"]) == 0
    losses = read_losses(tmp_path / "out", "loss/video")
    assert len(losses) == 8
    assert all(math.isfinite(loss) for loss in losses.values())

    from syncflow.train.config import load_stage
    from syncflow.train.loader import open_source
    from syncflow.train.order import Order

    source = open_source(load_stage(config, ["--output", str(tmp_path / "out")]))
    order = Order(source.streams, 4, seed=0)
    dealt = [source.datasets[source.buckets[order.stream_at(step)[0]][0]].path for step in range(1000)]
    assert [dealt.count(str(path)) for path in (images, silent, sounding)] == [500, 250, 250]


def test_captions_embedded_while_training_are_as_good_as_stored(stages: Path, tmp_path: Path) -> None:
    """float16 on the disk is all the difference; a resume in between makes none."""
    encoder = load_text_encoder(TextEncoderSpec())
    stored = write_dataset(tmp_path / "stored", text=encoder)
    online = write_dataset(tmp_path / "online", text=None)
    config = str(stages / "1_video.yaml")
    assert train([config, "--data.path", str(stored), "--output", str(tmp_path / "s"), "--steps", "8"]) == 0
    assert train([config, "--data.path", str(online), "--output", str(tmp_path / "o"), "--steps", "8"]) == 0
    for steps in ("3", "8"):
        assert train([config, "--data.path", str(online), "--output", str(tmp_path / "r"), "--steps", steps]) == 0
    theirs, ours = read_losses(tmp_path / "s", "loss"), read_losses(tmp_path / "o", "loss")
    assert len(ours) == 8
    assert all(ours[step] == pytest.approx(theirs[step], abs=2e-4) for step in theirs)
    whole, resumed = (
        safetensors.torch.load_file(tmp_path / name / "model" / "model.safetensors") for name in ("o", "r")
    )
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_text_that_fits_the_model_is_asked_for(stages: Path, tmp_path: Path) -> None:
    online = write_dataset(tmp_path / "online", text=None)
    args = [str(stages / "1_video.yaml"), "--data.path", str(online), "--output", str(tmp_path / "o")]
    with pytest.raises(UserError, match=r"has 384 text width, model\.video\.caption_channels is 32"):
        train([*args, "--model.video.caption-channels", "32"])
    with pytest.raises(UserError, match=r"text_encoder\.path: .*nowhere"):
        train([*args, "--data.text-encoder.path", str(tmp_path / "nowhere")])
    mixed = tmp_path / "1_mixed.yaml"
    both = f"\ndata:\n  datasets:\n  - {{path: {write_dataset(tmp_path / 'stored')}}}\n  - {{path: {online}}}\n"
    mixed.write_text((stages / "1_video.yaml").read_text() + both)
    with pytest.raises(UserError, match=r"cannot be mixed: text_encoder: .* against online"):
        train([str(mixed), "--output", str(tmp_path / "o")])
