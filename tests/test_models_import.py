"""Public Open-Sora weights, in the hub's layout, become a model directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from syncflow import cli
from syncflow.models.checkpoints import load_card, load_model


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
    assert capsys.readouterr().err.count("\n") == 2
