"""Filters with weights: scores are what the networks say, limits drop, absent weights are said before any work."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tiny_perception
import torch
from tiny_perception import RATE, a_clip, a_sound, make_work

from syncflow.clock import Span
from syncflow.errors import UserError
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.models.perception.aesthetic import Aesthetic
from syncflow.models.perception.clap import TransformersClap
from syncflow.models.perception.synchformer import Synchformer
from syncflow.models.perception.synchformer_net import SynchformerConfig, SynchformerNetwork
from syncflow.preprocess import learned
from syncflow.preprocess.config import CaptionsConfig, PreprocessConfig
from syncflow.preprocess.fetch import Fetcher
from syncflow.preprocess.learned import around, match_stages, media_stages
from syncflow.preprocess.networks import check_networks, network_identities
from syncflow.preprocess.plan import ClipPlan, Source
from syncflow.preprocess.run import preprocess
from syncflow.preprocess.work import Work
from syncflow.preprocess.worker import Worker
from syncflow.samples import open_dataset

SMALL_SYNC = SynchformerConfig(width=24, blocks=2, heads=2, compare_blocks=1, compare_heads=2, side=32, segments=3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("perception")
    tiny_perception.save_clip(folder)
    tiny_perception.save_clap(folder / "clap")
    torch.save(published_head(8).state_dict(), folder / "head.pth")
    torch.manual_seed(0)
    torch.save(SynchformerNetwork(SMALL_SYNC).state_dict(), folder / "sync.pth")
    return folder


def published_head(width: int) -> torch.nn.Module:
    """The improved aesthetic predictor as its author spells it, for features of any width."""
    torch.manual_seed(1)
    model = torch.nn.Module()
    model.layers = torch.nn.Sequential(
        torch.nn.Linear(width, 1024),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(1024, 128),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(128, 64),
        torch.nn.Dropout(0.1),
        torch.nn.Linear(64, 16),
        torch.nn.Linear(16, 1),
    )
    return model.eval()


def make_config(weights: Path, *on: str, **limits: object) -> PreprocessConfig:
    spec = AutoencoderSpec(kind="image", path="unused")
    clip = {"path": str(weights / "clip.pt"), "architecture": tiny_perception.TINY_CLIP, "frames": 3}
    aesthetic = {"path": str(weights / "head.pth"), "clip_path": clip["path"], "architecture": clip["architecture"]}
    clap, sync = {"path": str(weights / "clap")}, {"path": str(weights / "sync.pth")}
    filters: dict[str, dict] = {"clip": clip, "aesthetic": aesthetic, "clap": clap, "synchformer": sync}
    for name in on:
        filters[name]["on"] = True
    for name, limit in limits.items():
        section, field = name.split("_", 1)
        filters[section][field] = limit
    return PreprocessConfig.model_validate({"video_autoencoder": spec, "audio_autoencoder": spec, "filters": filters})


def judge(config: PreprocessConfig, work: Work) -> Work:
    for stage in [*media_stages(config.filters, Fetcher()), *match_stages(config.filters)]:
        stage.setup(config, "cpu")
        stage([work])
    return work


def captioned(caption: str = "A dog barks", **parts: str) -> Work:
    work = make_work(0)
    work.caption = caption
    work.video_caption, work.audio_caption = parts.get("seen", ""), parts.get("heard", "")
    return work


def test_scores_are_what_the_networks_say(weights: Path) -> None:
    import open_clip

    work = judge(make_config(weights, "clip", "clap"), captioned())
    network = open_clip.create_model(tiny_perception.TINY_CLIP)
    network.load_state_dict(torch.load(weights / "clip.pt", weights_only=True))
    config = open_clip.get_model_preprocess_cfg(network)
    network.eval()
    tokens = open_clip.get_tokenizer(tiny_perception.TINY_CLIP)(["A dog barks"])
    frames = torch.from_numpy(work.decoded.frames[[1, 4, 6]].copy()).permute(0, 3, 1, 2).float() / 255
    frames = torch.nn.functional.interpolate(frames, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    frames = (frames - torch.tensor(config["mean"])[:, None, None]) / torch.tensor(config["std"])[:, None, None]
    with torch.no_grad():
        wanted = torch.cosine_similarity(network.encode_image(frames), network.encode_text(tokens)).mean()
    assert work.scores["clip_match"] == pytest.approx(float(wanted), abs=1e-4)

    clap = TransformersClap(weights / "clap")
    sound, text = clap.sound(work.decoded.waveform, RATE), clap.texts(["A dog barks"])[0]
    cosine = float(sound @ text / np.linalg.norm(sound) / np.linalg.norm(text))
    assert work.scores["clap_match"] == pytest.approx(cosine, abs=1e-5)


def test_each_match_takes_its_part_of_the_caption(weights: Path) -> None:
    config = make_config(weights, "clip", "clap")
    both = judge(config, captioned("nothing of it", seen="a man", heard="rain falls"))
    seen, heard = judge(config, captioned("a man")), judge(config, captioned("rain falls"))
    assert both.scores["clip_match"] == pytest.approx(seen.scores["clip_match"], abs=1e-6)
    assert both.scores["clap_match"] == pytest.approx(heard.scores["clap_match"], abs=1e-6)
    assert judge(config, captioned("")).scores == {}


def test_the_aesthetic_head_is_the_published_chain(weights: Path, tmp_path: Path) -> None:
    head = published_head(8)
    features = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    with torch.no_grad():
        wanted = head.get_submodule("layers")(torch.nn.functional.normalize(torch.from_numpy(features)))[:, 0]
    assert Aesthetic(weights / "head.pth")(features) == pytest.approx(wanted.numpy(), abs=1e-5)
    torch.save(torch.nn.Linear(8, 1).state_dict(), tmp_path / "linear.pth")
    assert Aesthetic(tmp_path / "linear.pth")(features).shape == (5,)
    torch.save({"a": torch.zeros(4, 4)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not a chain of linear layers"):
        Aesthetic(tmp_path / "other.pth")
    torch.save(published_head(9).state_dict(), tmp_path / "wide.pth")
    config = make_config(weights, "aesthetic", aesthetic_path=str(tmp_path / "wide.pth"))
    with pytest.raises(UserError, match="takes 9 numbers, this CLIP network gives 8"):
        judge(config, captioned())


@pytest.mark.parametrize(
    ("name", "limit", "score", "reason"),
    [
        ("clip", "min_match", "clip_match", "clip_mismatch"),
        ("clap", "min_match", "clap_match", "clap_mismatch"),
        ("aesthetic", "min_score", "aesthetic", "unaesthetic"),
    ],
)
def test_limits_drop_what_lies_below_them(weights: Path, name: str, limit: str, score: str, reason: str) -> None:
    value = judge(make_config(weights, name), captioned()).scores[score]
    assert judge(make_config(weights, name, **{f"{name}_{limit}": value - 0.01}), captioned()).reject is None
    dropped = judge(make_config(weights, name, **{f"{name}_{limit}": value + 0.01}), captioned()).reject
    assert dropped is not None
    assert dropped.reason == reason


def test_what_synchformer_looks_at_lies_around_the_clip_and_in_the_source() -> None:
    def look(start: str, end: str, duration: str) -> Span | None:
        return around(Span(Fraction(start), Fraction(end)), Fraction("4.8"), Fraction(duration))

    assert look("4", "6", "10") == Span(Fraction("2.6"), Fraction("7.4"))
    assert look("0", "2", "10") == Span(Fraction(0), Fraction("4.8"))
    assert look("8", "10", "10") == Span(Fraction("5.2"), Fraction(10))
    assert look("0", "2", "4.8") == Span(Fraction(0), Fraction("4.8"))
    assert look("0", "2", "4.7") is None


def test_synchformer_looks_at_the_source_and_is_believed_where_it_is_sure(
    weights: Path, impacts_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "Synchformer", lambda path, device: Synchformer(path, SMALL_SYNC, device))
    row = json.loads((impacts_dir / "manifest.jsonl").read_text().splitlines()[0])
    video = str(impacts_dir / (row.get("uri") or row["file"]))

    def work() -> Work:
        made = captioned()
        made.plan = ClipPlan("a-0000000", Source("a", video), Span(Fraction(0), Fraction(2)), "64x64x8")
        return made

    config = make_config(weights, "synchformer")
    scores = judge(config, work()).scores
    assert scores.keys() == {"synchformer_offset_s", "synchformer_confidence"}
    assert abs(scores["synchformer_offset_s"]) <= 2
    assert 0 < scores["synchformer_confidence"] <= 1
    said = (1.2, 0.6)
    monkeypatch.setattr(Synchformer, "offset", lambda *_: said)
    dropped = judge(make_config(weights, "synchformer", synchformer_max_offset_s=0.5), work()).reject
    assert dropped is not None
    assert dropped.reason == "out_of_sync"
    for limits in ({"max_offset_s": 1.2}, {"max_offset_s": 0.5, "believe_from": 0.7}):
        settings = {f"synchformer_{name}": value for name, value in limits.items()}
        assert judge(make_config(weights, "synchformer", **settings), work()).reject is None


def test_captions_are_written_for_what_is_kept_and_then_compared(weights: Path, tmp_path: Path) -> None:
    config = make_config(weights, "clip", "clap", "aesthetic", "synchformer")
    captions = CaptionsConfig.model_validate({"video": {"on": True}})
    stages = Worker(config.model_copy(update={"captions": captions}), str(tmp_path)).stages
    alone, together = ([s.name for s in stages if s.batched is batched] for batched in (False, True))
    assert alone == ["caption", "decode", "filter_picture", "filter_sound", "filter_sync"]
    assert together == [
        "filter_synchformer",
        "filter_aesthetic",
        "caption_models",
        "filter_clip",
        "filter_clap",
        "encode",
    ]


def test_absent_weights_are_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCFLOW_WEIGHTS", str(tmp_path))
    spec = AutoencoderSpec(kind="image", path="unused")
    base = {"video_autoencoder": spec, "audio_autoencoder": spec}
    check_networks(PreprocessConfig.model_validate(base))
    for name in ("clip", "aesthetic", "clap", "synchformer"):
        config = PreprocessConfig.model_validate({**base, "filters": {name: {"on": True}}})
        with pytest.raises(UserError, match=rf"^filters\.{name}\.path: .*syncflow weights pull") as error:
            check_networks(config)
        assert "\n" not in str(error.value)
    config = PreprocessConfig.model_validate({**base, "filters": {"clip": {"on": True, "path": "gone.pt"}}})
    with pytest.raises(UserError, match=r"filters\.clip\.path: no weights at 'gone\.pt'"):
        preprocess(config, tmp_path, tmp_path / "out", pool="inline")
    assert not (tmp_path / "out").exists(), "said before anything is begun"


def test_weights_that_are_something_else_are_one_line(weights: Path, tmp_path: Path) -> None:
    for name, other in (("clip", weights / "head.pth"), ("clap", tmp_path), ("synchformer", weights / "head.pth")):
        config = make_config(weights, name, **{f"{name}_path": str(other)})
        with pytest.raises(UserError, match=rf"filters\.{name}") as error:
            judge(config, captioned())
        assert "\n" not in str(error.value)


def test_a_job_stores_scores_and_its_judges_and_refuses_others(
    weights: Path, impacts_dir: Path, tmp_path: Path
) -> None:
    from syncflow.models.autoencoders.nano import (
        NanoAudioConfig,
        NanoVideoConfig,
        new_nano_audio_autoencoder,
        new_nano_video_autoencoder,
    )

    tiny = NanoVideoConfig(block_out_channels=(8, 8, 8, 8))
    new_nano_video_autoencoder(0, tiny).save_pretrained(tmp_path / "video")
    new_nano_audio_autoencoder(0, NanoAudioConfig(decoder_channels=4)).save_pretrained(tmp_path / "audio")
    autoencoders = {
        "video_autoencoder": AutoencoderSpec(kind="image", path=str(tmp_path / "video")),
        "audio_autoencoder": AutoencoderSpec(kind="oobleck", path=str(tmp_path / "audio")),
    }

    def config(*on: str, **limits: object) -> PreprocessConfig:
        return make_config(weights, *on, **limits).model_copy(update=autoencoders)

    out = tmp_path / "out"
    summary = preprocess(config("clip", "aesthetic"), impacts_dir, out, pool="inline")
    assert summary.card.kept == 12
    assert summary.card.networks.keys() == {"filters.clip", "filters.aesthetic", "filters.aesthetic.clip"}
    matches = [sample.record.scores["clip_match"] for sample in open_dataset(str(out))]
    assert all("aesthetic" in sample.record.scores for sample in open_dataset(str(out)))
    with pytest.raises(UserError, match=r"filters\.clip\.on: True, now False"):
        preprocess(config("aesthetic"), impacts_dir, out, pool="inline")
    tiny_perception.save_clip(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"other weights, filters\.clip:"):
        preprocess(
            config("clip", "aesthetic", clip_path=str(tmp_path / "other" / "clip.pt")), impacts_dir, out, pool="inline"
        )

    middle = float(np.median(matches))
    limited = preprocess(config("clip", clip_min_match=middle), impacts_dir, tmp_path / "limited", pool="inline")
    dropped = sum(match < middle for match in matches)
    assert limited.rejected == {("filter_clip", "clip_mismatch"): dropped}
    assert limited.card.kept + dropped == limited.card.read == 12


def test_identities_are_by_content(weights: Path, tmp_path: Path) -> None:
    found = network_identities(make_config(weights, "clip", "clap", "synchformer"))
    assert found.keys() == {"filters.clip", "filters.clap", "filters.synchformer"}
    copy = tmp_path / "copy.pt"
    copy.write_bytes((weights / "clip.pt").read_bytes())
    moved = network_identities(make_config(weights, "clip", clip_path=str(copy)))
    assert moved["filters.clip"].sha256 == found["filters.clip"].sha256
    assert make_config(weights, "clip", clip_path=str(copy)).meaning() == make_config(weights, "clip").meaning()


def test_frames_are_spread_over_what_is_real() -> None:
    work = make_work(0)
    work.decoded.frames[:] = np.arange(8, dtype=np.uint8)[:, None, None, None]
    assert work.even_frames(4)[:, 0, 0, 0].tolist() == [1, 3, 5, 7]
    work.decoded.valid_frames = 2
    assert work.even_frames(4)[:, 0, 0, 0].tolist() == [0, 0, 1, 1]
    assert a_clip(0).shape[1:] == (64, 64, 3)
    assert len(a_sound(0)) == 2 * RATE
