"""VideoMAE-v2's public file: its parameters in transformers' classes, against a plain twin of the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from syncflow.eval.clips import ClipFile, find_clips
from syncflow.eval.extract import VideoMaeV2
from syncflow.models.perception.videomae2 import VideoMae2

WIDTH, BLOCKS, HEADS, HIDDEN, PATCH, SIDE, FRAMES = 24, 2, 3, 40, 8, 16, 4


def public_state() -> dict[str, Tensor]:
    """Random parameters under the public names and shapes, but for the sizes."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (WIDTH, 3, 2, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "fc_norm.weight": (WIDTH,),
        "fc_norm.bias": (WIDTH,),
        "head.weight": (174, WIDTH),
        "head.bias": (174,),
    }
    for k in range(BLOCKS):
        shapes |= {
            f"blocks.{k}.{name}": shape
            for name, shape in {
                "norm1.weight": (WIDTH,),
                "norm1.bias": (WIDTH,),
                "attn.q_bias": (WIDTH,),
                "attn.v_bias": (WIDTH,),
                "attn.qkv.weight": (3 * WIDTH, WIDTH),
                "attn.proj.weight": (WIDTH, WIDTH),
                "attn.proj.bias": (WIDTH,),
                "norm2.weight": (WIDTH,),
                "norm2.bias": (WIDTH,),
                "mlp.fc1.weight": (HIDDEN, WIDTH),
                "mlp.fc1.bias": (HIDDEN,),
                "mlp.fc2.weight": (WIDTH, HIDDEN),
                "mlp.fc2.bias": (WIDTH,),
            }.items()
        }
    torch.manual_seed(0)
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


def plain(state: dict[str, Tensor], frames: np.ndarray) -> np.ndarray:
    """The published forward pass, head by head."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255  # (1, 3, T, H, W)
    video = functional.interpolate(video[0].transpose(0, 1), size=SIDE, mode="bilinear").transpose(0, 1)[None]
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    x = functional.conv3d(video, weight, bias, stride=(2, PATCH, PATCH)).flatten(2)[0].T  # (N, D)
    for n in range(len(x)):
        for d in range(WIDTH):
            angle = n / 10000 ** (2 * (d // 2) / WIDTH)
            x[n, d] += np.sin(angle) if d % 2 == 0 else np.cos(angle)
    for k in range(BLOCKS):
        block = f"blocks.{k}."
        y = norm(x, block + "norm1")
        q, key, v = (y @ part.T for part in state[block + "attn.qkv.weight"].chunk(3))
        q, v = q + state[block + "attn.q_bias"], v + state[block + "attn.v_bias"]
        heads = []
        for h in range(HEADS):
            own = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
            heads.append((q[:, own] @ key[:, own].T / (WIDTH // HEADS) ** 0.5).softmax(dim=-1) @ v[:, own])
        x = x + torch.cat(heads, dim=1) @ state[block + "attn.proj.weight"].T + state[block + "attn.proj.bias"]
        y = functional.gelu(
            norm(x, block + "norm2") @ state[block + "mlp.fc1.weight"].T + state[block + "mlp.fc1.bias"]
        )
        x = x + y @ state[block + "mlp.fc2.weight"].T + state[block + "mlp.fc2.bias"]
    return norm(x.mean(dim=0), "fc_norm").numpy()


@pytest.mark.parametrize("inside", ["", "model", "module"])
def test_features_equal_the_published_forward_pass(tmp_path: Path, inside: str) -> None:
    state = public_state()
    torch.save({inside: state} if inside else state, tmp_path / "public.pth")
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 20, 20, 3), dtype=np.uint8)
    found = VideoMae2(tmp_path / "public.pth", HEADS, FRAMES, SIDE).video(frames)
    np.testing.assert_allclose(found, plain(state, frames), atol=2e-5)


def test_every_parameter_must_fit(tmp_path: Path) -> None:
    state = public_state()
    del state["blocks.1.attn.q_bias"]
    torch.save(state, tmp_path / "public.pth")
    with pytest.raises(RuntimeError, match=r"query\.bias"):
        VideoMae2(tmp_path / "public.pth", HEADS, FRAMES, SIDE)


def test_features_of_a_clip(impacts_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(public_state(), tmp_path / "public.pth")
    monkeypatch.setattr(
        "syncflow.eval.extract.videomae2.VideoMae2", lambda path, device: VideoMae2(path, HEADS, FRAMES, SIDE, device)
    )
    clip: ClipFile = find_clips(impacts_dir).clips[0]
    assert VideoMaeV2(tmp_path / "public.pth").features(clip)["embedding"].shape == (WIDTH,)
