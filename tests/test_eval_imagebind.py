"""ImageBind: the public file's parameters, a plain twin of its forward pass, and what it sees of a clip."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from syncflow.models.perception.imagebind import (
    ImageBind,
    ImageBindConfig,
    ImageBindNetwork,
    TowerSize,
    even_windows,
)

State = dict[str, Tensor]
TINY = ImageBindConfig(TowerSize(32, 2, 2), TowerSize(24, 2, 2), TowerSize(16, 2, 2), dimensions=8, side=28)


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of `imagebind_huge.pth` for three modalities, as its authors' classes spell them."""
    shapes: dict[str, tuple[int, ...]] = {
        "modality_preprocessors.vision.cls_token": (1, 1, 1280),
        "modality_preprocessors.vision.rgbt_stem.proj.1.weight": (1280, 3, 2, 14, 14),
        "modality_preprocessors.vision.pos_embedding_helper.pos_embed": (1, 257, 1280),
        "modality_preprocessors.text.pos_embed": (1, 77, 1024),
        "modality_preprocessors.text.mask": (77, 77),
        "modality_preprocessors.text.token_embedding.weight": (49408, 1024),
        "modality_preprocessors.audio.cls_token": (1, 1, 768),
        "modality_preprocessors.audio.rgbt_stem.proj.weight": (768, 1, 16, 16),
        "modality_preprocessors.audio.rgbt_stem.norm_layer.weight": (768,),
        "modality_preprocessors.audio.rgbt_stem.norm_layer.bias": (768,),
        "modality_preprocessors.audio.pos_embedding_helper.pos_embed": (1, 229, 768),
        "modality_trunks.vision.pre_transformer_layer.0.weight": (1280,),
        "modality_trunks.vision.pre_transformer_layer.0.bias": (1280,),
        "modality_heads.text.proj.0.weight": (1024,),
        "modality_heads.text.proj.0.bias": (1024,),
        "modality_heads.text.proj.1.weight": (1024, 1024),
        "modality_postprocessors.text.1.log_logit_scale": (),
        "modality_postprocessors.audio.1.log_logit_scale": (),
    }
    for name, width, blocks in (("vision", 1280, 32), ("text", 1024, 24), ("audio", 768, 12)):
        if name != "text":
            shapes[f"modality_heads.{name}.0.weight"] = shapes[f"modality_heads.{name}.0.bias"] = (width,)
            shapes[f"modality_heads.{name}.2.weight"] = (1024, width)
        for k in range(blocks):
            block = f"modality_trunks.{name}.blocks.{k}."
            for norm in ("norm_1", "norm_2"):
                shapes[f"{block}{norm}.weight"] = shapes[f"{block}{norm}.bias"] = (width,)
            shapes |= {
                f"{block}attn.in_proj_weight": (3 * width, width),
                f"{block}attn.in_proj_bias": (3 * width,),
                f"{block}attn.out_proj.weight": (width, width),
                f"{block}attn.out_proj.bias": (width,),
                f"{block}mlp.fc1.weight": (4 * width, width),
                f"{block}mlp.fc1.bias": (4 * width,),
                f"{block}mlp.fc2.weight": (width, 4 * width),
                f"{block}mlp.fc2.bias": (width,),
            }
            if name == "audio":
                shapes[f"{block}attn.bias_k"] = shapes[f"{block}attn.bias_v"] = (1, 1, width)
    return shapes


def test_the_huge_network_has_the_published_parameters() -> None:
    with torch.device("meta"):
        network = ImageBindNetwork(ImageBindConfig())
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == published_shapes()


def norm(state: State, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]
    )


def twin_attention(state: State, name: str, x: Tensor, heads: int, causal: bool) -> Tensor:
    q, k, v = (x @ state[f"{name}.in_proj_weight"].T + state[f"{name}.in_proj_bias"]).chunk(3, dim=-1)
    if f"{name}.bias_k" in state:
        k = torch.cat([k, state[f"{name}.bias_k"].expand(len(x), 1, -1)], dim=1)
        v = torch.cat([v, state[f"{name}.bias_v"].expand(len(x), 1, -1)], dim=1)
    each = x.shape[-1] // heads
    out = []
    for h in range(heads):
        part = slice(h * each, (h + 1) * each)
        logits = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(each)
        if causal:
            logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        out.append(logits.softmax(-1) @ v[..., part])
    return torch.cat(out, dim=-1) @ state[f"{name}.out_proj.weight"].T + state[f"{name}.out_proj.bias"]


def twin_trunk(state: State, name: str, x: Tensor, heads: int, causal: bool = False) -> Tensor:
    for k in range(2):
        block = f"modality_trunks.{name}.blocks.{k}"
        x = x + twin_attention(state, f"{block}.attn", norm(state, f"{block}.norm_1", x), heads, causal)
        y = norm(state, f"{block}.norm_2", x) @ state[f"{block}.mlp.fc1.weight"].T + state[f"{block}.mlp.fc1.bias"]
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        x = x + y @ state[f"{block}.mlp.fc2.weight"].T + state[f"{block}.mlp.fc2.bias"]
    return x


def twin_head(state: State, name: str, x: Tensor) -> Tensor:
    y = norm(state, f"modality_heads.{name}.0", x[:, 0]) @ state[f"modality_heads.{name}.2.weight"].T
    return y / y.norm(dim=-1, keepdim=True)


def with_class(state: State, name: str, tokens: Tensor) -> Tensor:
    first = state[f"modality_preprocessors.{name}.cls_token"].expand(len(tokens), 1, -1)
    positions = state[f"modality_preprocessors.{name}.pos_embedding_helper.pos_embed"]
    return torch.cat([first, tokens], dim=1) + positions


@pytest.fixture(scope="module")
def tiny() -> ImageBindNetwork:
    torch.manual_seed(0)
    network = ImageBindNetwork(TINY).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def test_vision_equals_its_twin(tiny: ImageBindNetwork) -> None:
    state, video = tiny.state_dict(), torch.randn(2, 3, 2, 28, 28, dtype=torch.double)
    weight = state["modality_preprocessors.vision.rgbt_stem.proj.1.weight"].flatten(1)
    cubes = [video[..., y : y + 14, x : x + 14].flatten(1) @ weight.T for y in (0, 14) for x in (0, 14)]
    x = norm(
        state, "modality_trunks.vision.pre_transformer_layer.0", with_class(state, "vision", torch.stack(cubes, 1))
    )
    torch.testing.assert_close(tiny.vision(video), twin_head(state, "vision", twin_trunk(state, "vision", x, 2)))
    still = video[:, :, :1].repeat(1, 1, 2, 1, 1)
    torch.testing.assert_close(tiny.vision(video[:, :, 0]), tiny.vision(still))


def test_audio_equals_its_twin(tiny: ImageBindNetwork) -> None:
    state, mel = tiny.state_dict(), torch.randn(2, 1, 128, 204, dtype=torch.double)
    stem = "modality_preprocessors.audio.rgbt_stem"
    weight = state[f"{stem}.proj.weight"].flatten(1)
    patches = [
        mel[..., y : y + 16, x : x + 16].flatten(1) @ weight.T
        for y in range(0, 128 - 15, 10)
        for x in range(0, 204 - 15, 10)
    ]
    x = with_class(state, "audio", norm(state, f"{stem}.norm_layer", torch.stack(patches, 1), eps=1e-5))
    scale = min(math.exp(float(state["modality_postprocessors.audio.1.log_logit_scale"])), 100)
    torch.testing.assert_close(tiny.audio(mel), scale * twin_head(state, "audio", twin_trunk(state, "audio", x, 2)))


def test_text_equals_its_twin(tiny: ImageBindNetwork) -> None:
    state, ids = tiny.state_dict(), torch.zeros(2, 77, dtype=torch.long)
    ids[0, :4], ids[1, :3] = torch.tensor([49406, 5, 9, 49407]), torch.tensor([49406, 7, 49407])
    pre = "modality_preprocessors.text"
    x = state[f"{pre}.token_embedding.weight"][ids] + state[f"{pre}.pos_embed"]
    x = twin_trunk(state, "text", x, 2, causal=True)[[0, 1], [3, 2]]
    y = norm(state, "modality_heads.text.proj.0", x) @ state["modality_heads.text.proj.1.weight"].T
    scale = min(math.exp(float(state["modality_postprocessors.text.1.log_logit_scale"])), 100)
    torch.testing.assert_close(tiny.text(ids), scale * functional.normalize(y, dim=-1))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> ImageBind:
    torch.manual_seed(1)
    state = ImageBindNetwork(TINY).state_dict()
    state["modality_heads.depth.0.weight"] = torch.ones(3)  # the public file holds more modalities
    path = tmp_path_factory.mktemp("imagebind") / "imagebind.pth"
    torch.save(state, path)
    return ImageBind(path, TINY)


def test_a_file_that_lacks_a_parameter_is_refused(tmp_path: Path) -> None:
    state = ImageBindNetwork(TINY).state_dict()
    del state["modality_heads.text.proj.1.weight"]
    torch.save(state, tmp_path / "torn.pth")
    with pytest.raises(RuntimeError, match=r"modality_heads\.text\.proj\.1\.weight"):
        ImageBind(tmp_path / "torn.pth", TINY)


def test_embeddings_of_a_clip(loaded: ImageBind) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (60, 28, 44, 3), dtype=np.uint8)
    alone = loaded.pictures(frames, batch=7)
    assert alone.shape == (60, 8)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(loaded.pictures(frames[5:6])[0], alone[5], atol=1e-5)
    assert loaded.texts(["a dog barks", "rain"]).shape == (2, 8)
    still = np.repeat(frames[:1, :, 8:36], 60, axis=0)  # a square that stands still: every view is the same picture
    np.testing.assert_allclose(loaded.video(still, fps=20), loaded.pictures(still[:1])[0], atol=1e-5)


def test_sound_is_heard_in_three_windows(loaded: ImageBind) -> None:
    rng = np.random.default_rng(1)
    sound = rng.normal(0, 0.1, 5 * 16000).astype(np.float32)
    windows = [loaded.sound(sound[k : k + 32000], 16000) for k in (0, 24000, 48000)]
    np.testing.assert_allclose(loaded.sound(sound, 16000), np.mean(windows, axis=0), rtol=1e-4, atol=1e-4)
    assert even_windows(5, 2, 3) == [(0, 2), (1.5, 3.5), (3, 5)]
    assert even_windows(1.2, 2, 3) == [(0, 2)] * 3


def test_mel_bands_of_a_tone(loaded: ImageBind) -> None:
    """A tone of 1 kHz is loudest in the Kaldi mel band around 1 kHz; beyond the sound is the mean's negative."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000).astype(np.float32)
    values = loaded.mel([tone], 16000, return_tensors="np").input_values[0]  # (204, 128)
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), 130)
    centre = 700 * (np.exp(edges[1:-1] / 1127) - 1)
    assert abs(centre[values[:190].mean(axis=0).argmax()] - 1000) < 25
    np.testing.assert_allclose(values[198:], 4.268 / 9.138, rtol=1e-5)


def test_scores_of_rendered_clips(impacts_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ImageBind metric from files to numbers, with a small network of the same class."""
    from syncflow.eval import extract
    from syncflow.eval.across import avh_score, javis_score
    from syncflow.eval.catalogue import FEATURES
    from syncflow.eval.clips import find_clips
    from syncflow.eval.feature_scores import KINDS

    torch.manual_seed(1)
    torch.save(ImageBindNetwork(TINY).state_dict(), tmp_path / "imagebind.pth")
    monkeypatch.setattr(extract.imagebind, "ImageBindConfig", lambda: TINY)
    network = extract.ImageBind(tmp_path / "imagebind.pth")
    found = {clip.name: network.features(clip) for clip in find_clips(impacts_dir).clips[:2]}
    one = next(iter(found.values()))
    assert one["frames"].shape == (32, 8)
    assert one["windows"].shape == (1, 8)
    values = {}
    for name, metric in FEATURES.items():
        if metric.backbone == "imagebind-huge":
            computed = KINDS[metric.kind](metric.key, found, {}, 0)
            values[name] = computed.interval.value
            assert computed.clips == 2
    assert values["avh_score"] == pytest.approx(np.mean([avh_score(f["frames"], f["audio"]) for f in found.values()]))
    worst = [javis_score([f["frames"]], f["windows"]) for f in found.values()]
    assert values["javis_score"] == pytest.approx(np.mean(worst))
    assert values["javis_score"] <= values["avh_score"]
    assert len(values) == 5
    assert all(-1 <= value <= 1 for value in values.values())
