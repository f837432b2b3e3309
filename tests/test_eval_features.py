"""Networks on real weights where they are present, and the same classes small and random elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from syncflow.errors import UserError
from syncflow.eval import extract
from syncflow.eval.across import avh_score, desync, javis_score, javis_windows, text_similarity
from syncflow.eval.clips import ClipFile, find_clips
from syncflow.eval.extract import Aesthetic, I3d, OpenClip, Tagger, TransformersClap, VideoMae, even_frames
from syncflow.eval.loudness import integrated_loudness
from syncflow.eval.weights import main as weights_command
from syncflow.models.perception.checkpoints import BACKBONES, Located, WeightsUnavailable, locate
from syncflow.models.perception.clip import Clip


@pytest.fixture
def clip(impacts_dir: Path) -> ClipFile:
    return find_clips(impacts_dir).clips[0]


@pytest.mark.slow
def test_tagger_finds_the_same_class_as_nearest_neighbour(shared: Path, develop: Path) -> None:
    import csv

    network = Tagger(shared / "weights" / "mn04" / "mn04_as_mAP_432.pt")
    clips = find_clips(develop).clips
    found = [network.features(clip) for clip in clips]
    with (shared / "weights" / "mn04" / "class_labels_indices.csv").open() as file:
        names = [row["display_name"] for row in csv.DictReader(file)]
    top = {c.name: names[int(np.argmax(f["probabilities"]))] for c, f in zip(clips, found, strict=True)}
    assert top["fireworks_timer"] == "Fireworks"
    assert top["printer_cat"] == "Printer"
    assert "cry" in top["baby_cry"]
    families = [{"drum_kit_man", "tabla_boy"}, {"dog_beagle_bark", "puppies_bark"}, {"keyboard_piano", "piano_topview"}]
    unit = np.stack([f["embedding"] / np.linalg.norm(f["embedding"]) for f in found])
    near = unit @ unit.T - 2 * np.eye(len(clips))
    order = {clips[i].name: [clips[j].name for j in np.argsort(-near[i])[:5]] for i in range(len(clips))}
    hits = [any(other in order[one] for other in family - {one}) for family in families for one in family]
    assert np.mean(hits) > 0.6


def test_tagger_on_two_real_clips(shared: Path, develop: Path) -> None:
    network = Tagger(shared / "weights" / "mn04" / "mn04_as_mAP_432.pt")
    fireworks = network.features(ClipFile("f", develop / "fireworks_timer.mp4"))
    assert fireworks["embedding"].shape == (384,)
    assert 0.85 < fireworks["probabilities"].max() < 0.97
    labels = (shared / "weights" / "mn04" / "class_labels_indices.csv").read_text().splitlines()[1:]
    assert "Fireworks" in labels[int(fireworks["probabilities"].argmax())]


def test_videomae_of_the_same_class(clip: ClipFile, tmp_path: Path) -> None:
    from transformers import VideoMAEConfig, VideoMAEModel

    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32,
        patch_size=16,
        num_frames=4,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    VideoMAEModel(config).save_pretrained(tmp_path / "mae")
    first, again = (VideoMae(tmp_path / "mae").features(clip)["embedding"] for _ in range(2))
    assert first.shape == (24,)
    np.testing.assert_array_equal(first, again)


def test_clap_of_the_same_class(clip: ClipFile, tmp_path: Path) -> None:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizerFast

    torch.manual_seed(0)
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 300,
    }
    sound = {
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
    }
    ClapModel(ClapConfig(text_config=text, audio_config=sound, projection_dim=8)).save_pretrained(tmp_path / "clap")
    letters = {
        token: k for k, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *map(chr, range(33, 127)), "Ġ"])
    }
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = RobertaTokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=77)
    ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc"), tokenizer).save_pretrained(tmp_path / "clap")
    found = TransformersClap(tmp_path / "clap").features(clip)
    assert found["audio"].shape == found["text"].shape == (8,)


def test_clip_of_the_same_class(clip: ClipFile, tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    name = "syncflow-test-tiny"
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    network = open_clip.create_model(name).eval()
    torch.save(network.state_dict(), tmp_path / "clip.pt")
    judge = OpenClip(tmp_path / "clip.pt", name)
    found = judge.features(clip)
    assert found["frames"].shape == (8, 8)
    assert -1 <= text_similarity(found["frames"], found["text"]) <= 1
    # probabilities of the two prompts by open_clip's own preprocessing and softmax
    _, _, prepare = open_clip.create_model_and_transforms(name)
    with torch.no_grad():
        picture = network.encode_image(prepare(Image.fromarray(even_frames(clip, 8, 32)[0]))[None])
        prompts = network.encode_text(open_clip.get_tokenizer(name)(["Good photo.", "Bad photo."]))
    cosines = torch.nn.functional.cosine_similarity(picture, prompts)
    assert found["quality"].shape == (8,)
    assert found["quality"][0] == pytest.approx((100 * cosines).softmax(0)[0].item(), abs=1e-3)


def test_clip_as_openai_publishes_it(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    name = "syncflow-test-openai"
    config = {
        "embed_dim": 8,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    network = open_clip.create_model(name).half().eval()
    archive = torch.nn.Module()
    for parameter, value in network.state_dict().items():
        *path, last = parameter.split(".")
        level = archive
        for part in path:
            if not hasattr(level, part):
                level.add_module(part, torch.nn.Module())
            level = getattr(level, part)
        level.register_buffer(last, value)
    for size in ("input_resolution", "context_length", "vocab_size"):
        archive.register_buffer(size, torch.tensor(1))
    torch.jit.save(torch.jit.script(archive), str(tmp_path / "ViT.pt"))
    with pytest.raises(RuntimeError, match="TorchScript"):
        torch.load(tmp_path / "ViT.pt", weights_only=True)
    loaded = Clip(tmp_path / "ViT.pt", name)
    texts = loaded.texts(["a hammer hits an anvil"])
    with torch.no_grad():
        expected = network.float().encode_text(loaded.tokenize(["a hammer hits an anvil"]))
    np.testing.assert_allclose(texts, expected.numpy(), atol=1e-5)


def test_aesthetic_score_reads_two_files(clip: ClipFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))
    torch.save(head.state_dict(), tmp_path / "head.pth")
    with pytest.raises(WeightsUnavailable, match="syncflow weights pull clip-vit-l14"):
        Aesthetic(tmp_path / "head.pth")
    features = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    monkeypatch.setattr(extract, "locate", lambda name, home: Located(BACKBONES[name], home / "clip.pt", ""))
    monkeypatch.setattr(extract, "Clip", lambda *_: SimpleNamespace(side=32, frames=lambda frames: features))
    scores = Aesthetic(tmp_path / "head.pth").features(clip)["scores"]
    unit = torch.from_numpy(features / np.linalg.norm(features, axis=1, keepdims=True))
    np.testing.assert_allclose(scores, head.eval()(unit)[:, 0].detach(), atol=1e-6)


class TinyI3d(torch.nn.Module):
    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True
    ) -> torch.Tensor:
        return x.mean(dim=(2, 3, 4))


def test_torchscript_i3d(clip: ClipFile, tmp_path: Path) -> None:
    torch.jit.script(TinyI3d()).save(str(tmp_path / "i3d.pt"))
    assert I3d(tmp_path / "i3d.pt").features(clip)["embedding"].shape == (3,)
    (tmp_path / "weights.pt").write_bytes(b"no network")
    with pytest.raises(WeightsUnavailable, match="not TorchScript"):
        I3d(tmp_path / "weights.pt")


def test_absent_refused_or_altered_weights_are_reasons(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="syncflow weights pull efficientat-mn04"):
        locate("efficientat-mn04", tmp_path)
    with pytest.raises(WeightsUnavailable, match="forbids commercial use"):
        locate("videomae-base-k400", tmp_path, commercial_safe=True)
    (tmp_path / BACKBONES["efficientat-mn04"].file).write_bytes(b"altered")
    with pytest.raises(WeightsUnavailable, match="not the published"):
        locate("efficientat-mn04", tmp_path)
    with pytest.raises(UserError, match="did you mean clip-vit-b32"):
        locate("clip-vit-b33", tmp_path)


def test_weights_list_and_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights_command(["list", "--home", str(tmp_path)]) == 0
    everything = capsys.readouterr().out
    assert all(name in everything for name in BACKBONES)
    weights_command(["list", "--home", str(tmp_path), "--commercial-safe"])
    assert "imagebind-huge" not in capsys.readouterr().out
    assert "sha256 899a8c621706" in everything
    assert "commit 8fa0f1c6d043" in everything
    with pytest.raises(UserError, match="not for commercial use"):
        weights_command(["pull", "imagebind-huge", "--commercial-safe", "--home", str(tmp_path)])


def test_pull_from_an_address_checks_what_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from syncflow.eval import weights

    source = tmp_path / "published.pt"
    source.write_bytes(b"weights")
    backbone = dataclasses.replace(BACKBONES["i3d-k400"], url=source.as_uri(), file="i3d.pt")
    home = tmp_path / "home"
    weights.pull(backbone, home)
    assert (home / "i3d.pt").read_bytes() == b"weights"
    (home / "i3d.pt").write_bytes(b"other")
    with pytest.raises(UserError, match="delete it and pull again"):
        weights.pull(backbone, home)
    gone = dataclasses.replace(backbone, url=(tmp_path / "nowhere").as_uri(), file="j.pt")
    with pytest.raises(UserError, match="cannot be reached"):
        weights.pull(gone, home)
    assert not list(home.glob(".*"))


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError) as raised:
        weights_command(["pull", "clap-htsat-unfused", "--home", str(tmp_path)])
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith("laion/clap-htsat-unfused cannot be fetched from Hugging Face (OSError: no route to")
    assert not list(tmp_path.iterdir())


def test_scores_across_modalities() -> None:
    frames = np.array([[1.0, 0], [0, 1], [1, 0], [1, 0], [0, 1]])
    assert avh_score(frames, np.array([1.0, 0])) == pytest.approx(0.6)
    assert javis_score([frames], np.array([[1.0, 0]])) == pytest.approx(0)
    assert javis_score([frames[[0, 2, 3]]], np.array([[1.0, 0]])) == pytest.approx(1)
    assert javis_windows(2.8) == [(0.0, 2.0), (0.5, 2.5), (pytest.approx(0.8), pytest.approx(2.8))]
    assert javis_windows(1.2) == [(0.0, 1.2)]
    logits = np.eye(21)[[13, 10]]
    assert desync(logits) == pytest.approx(0.3)


@pytest.mark.parametrize("sample_rate", [16000, 48000])
def test_loudness_of_the_standard_tone(sample_rate: int) -> None:
    """BS.1770: a 997 Hz sine at full scale in one channel reads -3.01 LUFS."""
    time = np.arange(5 * sample_rate) / sample_rate
    tone = np.sin(2 * np.pi * 997 * time)
    assert integrated_loudness(tone, sample_rate) == pytest.approx(-3.01, abs=0.1)
    assert integrated_loudness(tone / 10, sample_rate) == pytest.approx(-23.01, abs=0.1)
    assert integrated_loudness(np.zeros(sample_rate), sample_rate) is None
