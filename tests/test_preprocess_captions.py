"""Captions: given ones are kept; models of the real classes, small and random, say the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_perception
import torch
from tiny_perception import RATE, a_clip, a_sound, make_work

from syncflow.errors import UserError
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.models.perception.captioners import PictureCaptioner, SoundCaptioner
from syncflow.preprocess.caption import GivenCaption, ModelCaption
from syncflow.preprocess.config import CaptionsConfig, PreprocessConfig
from syncflow.preprocess.networks import check_networks, network_identities
from syncflow.preprocess.work import Work


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioners")
    tiny_perception.save_llava(folder / "llava")
    tiny_perception.save_qwen2_vl(folder / "qwen2_vl")
    tiny_perception.save_qwen2_audio(folder / "qwen2_audio")
    return folder


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_any_image_text_to_text_model_says_the_same_in_any_batch(models: Path, name: str) -> None:
    see = PictureCaptioner(models / name, "what is seen", max_new_tokens=8)
    clips = [a_clip(seed) for seed in range(5)]
    said = see(clips)
    assert said == see(clips[:2]) + see(clips[2:])
    assert len(set(said)) > 1, "what is said depends on what is shown"
    assert all(said)
    other = PictureCaptioner(models / name, "describe the water", max_new_tokens=8)
    assert other(clips) != said, "and on what is asked"


def test_an_audio_text_to_text_model_hears_sounds_of_different_lengths(models: Path) -> None:
    hear = SoundCaptioner(models / "qwen2_audio", "what is heard", max_new_tokens=8)
    sounds = [a_sound(seed, seconds) for seed, seconds in enumerate((2.0, 2.0, 1.3, 3.0))]
    said = hear(sounds, RATE)
    assert said == [hear([sound], RATE)[0] for sound in sounds]
    assert len(set(said)) > 1


def make_config(models: Path, video: bool = True, audio: bool = True, **more: object) -> PreprocessConfig:
    spec = AutoencoderSpec(kind="image", path="unused")
    captions = {
        "video": {"on": video, "path": str(models / "llava"), "frames": 3, "max_new_tokens": 5},
        "audio": {"on": audio, "path": str(models / "qwen2_audio"), "max_new_tokens": 5},
    }
    values = {"video_autoencoder": spec, "audio_autoencoder": spec, "captions": captions, **more}
    return PreprocessConfig.model_validate(values)


def caption(config: PreprocessConfig, works: list[Work]) -> ModelCaption:
    stages = GivenCaption(), ModelCaption()
    for stage in stages:
        stage.setup(config, "cpu")
        stage([work for work in works if work.reject is None])
    return stages[1]


def test_given_captions_are_kept_and_missing_parts_written(models: Path) -> None:
    whole, seen, none = make_work(0, caption="A dog."), make_work(1, video_caption="A cat runs"), make_work(2)
    caption(make_config(models), [whole, seen, none])
    assert (whole.caption, whole.video_caption, whole.audio_caption) == ("A dog.", "", "")
    assert whole.provenance["caption_from"] == "manifest"
    assert seen.video_caption == "A cat runs"
    assert seen.audio_caption
    assert seen.caption.startswith("A cat runs. " + seen.audio_caption)
    assert none.video_caption
    assert none.audio_caption
    assert none.video_caption in none.caption
    assert none.audio_caption in none.caption
    assert none.provenance["caption_from"] == seen.provenance["caption_from"] == "models"
    only_seen = make_work(2)
    caption(make_config(models, audio=False), [only_seen])
    assert only_seen.audio_caption == ""
    assert only_seen.video_caption == none.video_caption


def test_a_model_with_nothing_to_say_leaves_it_to_the_configuration(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PictureCaptioner, "__call__", lambda self, clips: [""] * len(clips))
    named, dropped = make_work(0), make_work(0)
    caption(make_config(models, audio=False), [named])
    assert (named.caption, named.provenance["caption_from"]) == ("dog barks", "file name")
    caption(make_config(models, audio=False, missing_caption="require"), [dropped])
    assert dropped.reject is not None
    assert dropped.reject.reason == "no_caption"


def test_out_of_memory_halves_the_batch_and_says_the_same(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = [make_work(seed) for seed in range(4)]
    caption(make_config(models, audio=False), calm)
    sizes: list[int] = []
    real: Callable[..., list[str]] = PictureCaptioner.__call__

    def small_memory(self: PictureCaptioner, clips: list[np.ndarray]) -> list[str]:
        sizes.append(len(clips))
        if len(clips) > 1:
            raise torch.OutOfMemoryError
        return real(self, clips)

    monkeypatch.setattr(PictureCaptioner, "__call__", small_memory)
    pressed = [make_work(seed) for seed in range(4)]
    caption(make_config(models, audio=False), pressed)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    assert [work.caption for work in pressed] == [work.caption for work in calm]


def test_absent_weights_are_named_in_one_line_before_anything_starts(models: Path, tmp_path: Path) -> None:
    check_networks(make_config(models))
    config = make_config(tmp_path / "gone")
    with pytest.raises(UserError, match=r"captions\.video\.path.*captions\.audio\.path.*turn this off") as error:
        check_networks(config)
    assert "\n" not in str(error.value)
    check_networks(make_config(tmp_path / "gone", video=False, audio=False))


def test_the_wrong_class_of_weights_is_one_line(models: Path) -> None:
    with pytest.raises(UserError, match=r"captions\.video\.path.*cannot be read by AutoModelForImageTextToText"):
        PictureCaptioner(models / "qwen2_audio", "what")


def test_who_captions_and_how_is_part_of_what_a_job_means(models: Path) -> None:
    off, on = make_config(models, False, False), make_config(models)
    assert off.meaning()["captions.video.on"] is False
    assert "captions.video.prompt" not in off.meaning()
    assert on.meaning()["captions.video.frames"] == 3
    assert not any(name.endswith("path") for name in on.meaning() if name.startswith("captions"))
    identities = network_identities(on)
    assert identities.keys() == {"captions.video", "captions.audio"}
    assert network_identities(off) == {}
    captions = on.captions.model_copy(
        update={"video": on.captions.video.model_copy(update={"path": str(models / "qwen2_vl")})}
    )
    assert isinstance(captions, CaptionsConfig)
    other = network_identities(on.model_copy(update={"captions": captions}))
    assert other["captions.video"].sha256 != identities["captions.video"].sha256
