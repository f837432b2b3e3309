"""Public Open-Sora weights, in the hub's layout, become a model directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5EncoderModel

from syncflow import cli
from syncflow.media import probe
from syncflow.models.autoencoders.nano import new_nano_audio_autoencoder
from syncflow.models.checkpoints import load_card, load_model
from syncflow.models.flow import shift_ratio


def test_imported_model_has_the_public_video_tower(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = shared / "reference"
    about = json.loads((reference / "stdit3_a.json").read_text())
    hub = tmp_path / "OpenSora-STDiT-v3"
    hub.mkdir()
    shutil.copy(reference / "stdit3_a_weights.safetensors", hub / "model.safetensors")
    (hub / "config.json").write_text(json.dumps({**about["config"], "model_type": "STDiT3", "drop_path": 0.0}))
    out = tmp_path / "imported"
    assert cli.main(["import", "--weights", str(hub), "--size", "nano", "-o", str(out)]) == 0
    assert "from Open-Sora" in capsys.readouterr().out

    model, card = load_model(out)
    assert not card.model.video.pred_sigma
    assert load_card(out).video_autoencoder.kind == "opensora"
    io = load_file(reference / "stdit3_a_io.safetensors")
    batch = len(io["x"])
    time_s = torch.arange(5)[:, None].expand(batch, 5, 2) / 16.0
    with torch.no_grad():
        found = model(
            io["x"], torch.randn(batch, 64, 10), 1 - io["timestep"] / 1000, text=io["y"][:, 0], text_mask=io["mask"],
            video_time_s=time_s, audio_time_s=torch.rand(batch, 10, 2), fps=torch.full((batch,), float(about["fps"])),
            size=torch.tensor([[float(about["height"]), float(about["width"])]] * batch),
        )  # fmt: skip
    assert (found.video - io["out"][:, :4]).abs().max() < 1e-4

    assert cli.main(["import", "--weights", str(hub), "-o", str(out)]) == 2
    assert cli.main(["import", "--weights", str(tmp_path), "-o", str(tmp_path / "x")]) == 2
    assert cli.main(["import", "--weights", str(hub), "-o", str(hub / "config.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_imported_model_generates_with_its_encoders(shared: Path, tmp_path: Path) -> None:
    """The documented command on the four repositories as the hub lays them out, all small; then a clip."""
    reference = shared / "reference"
    about = json.loads((reference / "stdit3_a.json").read_text())
    tower, pictures = tmp_path / "OpenSora-STDiT-v3", tmp_path / "OpenSora-VAE-v1.2"
    for folder, name in ((tower, "stdit3_a"), (pictures, "opensora_vae_a")):
        folder.mkdir()
        shutil.copy(reference / f"{name}_weights.safetensors", folder / "model.safetensors")
    (tower / "config.json").write_text(json.dumps(about["config"]))
    shutil.copy(reference / "opensora_vae_a.json", pictures / "config.json")
    sound, text = tmp_path / "stable-audio-open-1.0", tmp_path / "t5-v1_1-xxl"
    new_nano_audio_autoencoder(0).save_pretrained(sound / "vae")
    shutil.copytree(shared / "weights" / "t5_tokenizer", text)
    width = about["config"]["caption_channels"]
    t5 = T5Config(d_model=width, d_kv=8, d_ff=64, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu")
    T5EncoderModel(t5).save_pretrained(text)

    argv = ["--video-autoencoder", pictures, "--audio-autoencoder", sound, "--text-encoder", text, "--weights", tower]
    argv += ["--size", "nano", "--audio-channels", "8", "--sample-rate", "16000", "-o", tmp_path / "imported"]
    assert cli.main(["import", *map(str, argv)]) == 0
    card = load_card(tmp_path / "imported")
    # Open-Sora's own ratio for 256 x 256 and two chunks of 17 frames: half of the base's side, 10 latent frames.
    assert shift_ratio(256 * 256, 34, card.flow) == pytest.approx(0.5 * 10**0.5)
    out = ["--steps", "1", "--size", "32x32", "--duration", "0.5", "-o", tmp_path / "out"]
    assert cli.main(["generate", "rain on tin", "--checkpoint", str(tmp_path / "imported"), *map(str, out)]) == 0
    (clip,) = (tmp_path / "out").glob("*.mp4")
    info = probe(clip)
    assert (info.width, info.height, info.duration_s) == (32, 32, 0.5)
    assert info.audio is not None
