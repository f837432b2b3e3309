"""PANNs, VGGish and PaSST: the public files' parameters, and plain twins of what they hear and compute."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from syncflow.models.perception.panns import Cnn14, Cnn14Network
from syncflow.models.perception.passt import Passt, PasstConfig, PasstNetwork
from syncflow.models.perception.published import read_published
from syncflow.models.perception.vggish import Vggish, VggishNetwork

State = dict[str, Tensor]
Network = TypeVar("Network", bound=torch.nn.Module)
RATE = 16000


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """2.2 s of noise and a tone."""
    rng = np.random.default_rng(0)
    time = np.arange(int(2.2 * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 440 * time) + 0.02 * rng.normal(size=len(time))).astype(np.float32)


def shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def randomised(network: Network) -> Network:
    """Random parameters and statistics, but for the fixed ones of a spectrogram."""
    torch.manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and "extractor" not in name:
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else 0.3 * torch.randn_like(value))
    return network.eval()


def test_cnn14_has_the_published_parameters() -> None:
    expected: dict[str, tuple[int, ...]] = {
        "spectrogram_extractor.stft.conv_real.weight": (257, 1, 512),
        "spectrogram_extractor.stft.conv_imag.weight": (257, 1, 512),
        "logmel_extractor.melW": (257, 64),
        "fc1.weight": (2048, 2048),
        "fc1.bias": (2048,),
        "fc_audioset.weight": (527, 2048),
        "fc_audioset.bias": (527,),
    }
    norms = {"bn0": 64}
    for k, (of, to) in enumerate([(1, 64), (64, 128), (128, 256), (256, 512), (512, 1024), (1024, 2048)], 1):
        expected[f"conv_block{k}.conv1.weight"] = (to, of, 3, 3)
        expected[f"conv_block{k}.conv2.weight"] = (to, to, 3, 3)
        norms |= {f"conv_block{k}.bn1": to, f"conv_block{k}.bn2": to}
    for name, width in norms.items():
        expected |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        expected[f"{name}.num_batches_tracked"] = ()
    assert shapes(Cnn14Network()) == expected


def normal(state: State, name: str, x: Tensor) -> Tensor:
    """Batch normalisation of (B, C, ...) by stored statistics."""
    mean, var, weight, bias = (
        state[f"{name}.{part}"].view(1, -1, *[1] * (x.dim() - 2))
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def test_cnn14_equals_its_twin(sound: np.ndarray, tmp_path: Path) -> None:
    import librosa

    widths = (4, 4, 6, 6, 8, 8)
    network = randomised(Cnn14Network(widths))
    torch.save({"model": network.state_dict(), "sampler": {"indexes": np.arange(5)}}, tmp_path / "cnn14.pth")
    embedding, logits = Cnn14(tmp_path / "cnn14.pth", widths).sound(sound, RATE)

    mel = librosa.feature.melspectrogram(
        y=sound, sr=RATE, n_fft=512, hop_length=160, n_mels=64, fmin=50, fmax=8000, pad_mode="reflect"
    )
    state = network.state_dict()
    x = torch.from_numpy(10 * np.log10(np.maximum(mel, 1e-10))).float()[None]  # (1, M, T)
    x = normal(state, "bn0", x).transpose(1, 2)[:, None]
    for k in range(1, 7):
        for part in ("1", "2"):
            x = functional.conv2d(x, state[f"conv_block{k}.conv{part}.weight"], padding=1)
            x = normal(state, f"conv_block{k}.bn{part}", x).clamp(min=0)
        x = functional.avg_pool2d(x, 2) if k < 6 else x
    x = x.mean(3)
    x = (x.max(2).values + x.mean(2)) @ state["fc1.weight"].T + state["fc1.bias"]
    expected = x.clamp(min=0)
    np.testing.assert_allclose(embedding, expected[0], rtol=2e-3, atol=2e-3)
    heads = expected @ state["fc_audioset.weight"].T + state["fc_audioset.bias"]
    np.testing.assert_allclose(logits, heads[0], rtol=2e-3, atol=2e-3)


def test_vggish_has_the_published_parameters() -> None:
    with torch.device("meta"):
        network = VggishNetwork()
    expected: dict[str, tuple[int, ...]] = {}
    convolutions = {0: (64, 1), 3: (128, 64), 6: (256, 128), 8: (256, 256), 11: (512, 256), 13: (512, 512)}
    for k, (to, of) in convolutions.items():
        expected |= {f"features.{k}.weight": (to, of, 3, 3), f"features.{k}.bias": (to,)}
    for k, (to, of) in {0: (4096, 12288), 2: (4096, 4096), 4: (128, 4096)}.items():
        expected |= {f"embeddings.{k}.weight": (to, of), f"embeddings.{k}.bias": (to,)}
    assert shapes(network) == expected


def test_vggish_hears_windows_of_log_mel(sound: np.ndarray, tmp_path: Path) -> None:
    widths = (4, 4, 4, 4, 6, 6, 16)
    network = randomised(VggishNetwork(widths))
    torch.save(network.state_dict(), tmp_path / "vggish.pth")
    vggish = Vggish(tmp_path / "vggish.pth", widths)
    windows = vggish.sound(sound, RATE)
    assert windows.shape == (2, 128)

    hann = 0.5 - 0.5 * np.cos(2 * np.pi / 400 * np.arange(400))
    frames = np.stack([sound[k : k + 400] * hann for k in range(0, len(sound) - 399, 160)])
    bins = 1127 * np.log(1 + np.linspace(0, 8000, 257) / 700)
    edges = np.linspace(1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7500 / 700), 66)
    bank = np.empty((257, 64))
    for m in range(64):
        low, centre, high = edges[m : m + 3]
        bank[:, m] = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    mel = np.log(np.abs(np.fft.rfft(frames, 512)) @ bank + 0.01)
    np.testing.assert_allclose(vggish.mel(torch.from_numpy(sound)), mel, atol=1e-5)
    with torch.no_grad():
        for k in (0, 1):
            x = network.features(torch.from_numpy(mel[96 * k : 96 * (k + 1)]).float()[None, None])
            flat = [x[0, c, t, f] for t in range(6) for f in range(4) for c in range(6)]  # channels change fastest
            np.testing.assert_allclose(windows[k], network.embeddings(torch.stack(flat)), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"has 0\.50 s of sound; VGGish needs 0\.98 s"):
        vggish.sound(sound[:8000], RATE)


def test_passt_has_the_published_parameters() -> None:
    with torch.device("meta"):
        network = PasstNetwork(PasstConfig())
    expected: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 768),
        "dist_token": (1, 1, 768),
        "new_pos_embed": (1, 2, 768),
        "freq_new_pos_embed": (1, 768, 12, 1),
        "time_new_pos_embed": (1, 768, 1, 99),
        "patch_embed.proj.weight": (768, 1, 16, 16),
        "patch_embed.proj.bias": (768,),
        "head.1.weight": (527, 768),
        "head.1.bias": (527,),
        "head_dist.weight": (527, 768),
        "head_dist.bias": (527,),
    }
    for name in ("norm", "head.0", *(f"blocks.{k}.norm{part}" for k in range(12) for part in (1, 2))):
        expected |= {f"{name}.weight": (768,), f"{name}.bias": (768,)}
    for k in range(12):
        for name, to, of in (
            ("attn.qkv", 2304, 768),
            ("attn.proj", 768, 768),
            ("mlp.fc1", 3072, 768),
            ("mlp.fc2", 768, 3072),
        ):
            expected |= {f"blocks.{k}.{name}.weight": (to, of), f"blocks.{k}.{name}.bias": (to,)}
    assert shapes(network) == expected


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return unit * state[f"{name}.weight"] + state[f"{name}.bias"]


def test_passt_equals_its_twin(sound: np.ndarray, tmp_path: Path) -> None:
    config = PasstConfig(width=16, blocks=1, heads=2)
    network = randomised(PasstNetwork(config)).double()
    state, mel = network.state_dict(), torch.randn(1, 1, 128, 200, dtype=torch.double)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    tokens = [state[f"{name}_token"][0, 0] + state["new_pos_embed"][0, k] for k, name in enumerate(("cls", "dist"))]
    for f in range(12):
        for t in range(19):
            patch = mel[0, 0, 10 * f : 10 * f + 16, 10 * t : 10 * t + 16]
            where = state["time_new_pos_embed"][0, :, 0, t] + state["freq_new_pos_embed"][0, :, f, 0]
            seen = (state["patch_embed.proj.weight"][:, 0] * patch).flatten(1).sum(1) + state["patch_embed.proj.bias"]
            tokens.append(seen + where)
    x = torch.stack(tokens)
    q, k, v = linear("blocks.0.attn.qkv", layer_norm(state, "blocks.0.norm1", x, 1e-6)).chunk(3, dim=-1)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        heads.append((q[:, part] @ k[:, part].T / math.sqrt(8)).softmax(-1) @ v[:, part])
    x = x + linear("blocks.0.attn.proj", torch.cat(heads, dim=-1))
    y = linear("blocks.0.mlp.fc1", layer_norm(state, "blocks.0.norm2", x, 1e-6))
    x = x + linear("blocks.0.mlp.fc2", 0.5 * y * (1 + torch.erf(y / math.sqrt(2))))
    expected = layer_norm(state, "norm", x, 1e-6)[:2].mean(0)
    with torch.no_grad():
        embedding, logits = network(mel)
    torch.testing.assert_close(embedding[0], expected)
    torch.testing.assert_close(logits[0], linear("head.1", layer_norm(state, "head.0", expected, 1e-5)))

    torch.save(network.float().state_dict(), tmp_path / "passt.pt")
    passt = Passt(tmp_path / "passt.pt", config)
    short, filled = (passt.sound(s, 32000)[0] for s in (sound, np.pad(sound, (0, 400000))))
    np.testing.assert_array_equal(short, filled)  # silence after it, and nothing after 10 s


class Fetches:
    """What a checkpoint must not carry."""


def test_published_files_hold_numbers_but_no_code(tmp_path: Path) -> None:
    facts = {"loss": np.float64(0.25), "index": np.arange(3), "epoch": np.int64(7), "rate": np.float32(0.5)}
    torch.save({"model": {"w": torch.ones(2)}, **facts}, tmp_path / "facts.pt")
    found = read_published(tmp_path / "facts.pt")
    assert (found["loss"], found["epoch"], found["rate"]) == (0.25, 7, 0.5)
    np.testing.assert_array_equal(found["index"], np.arange(3))
    torch.save({"model": Fetches()}, tmp_path / "code.pt")
    with pytest.raises(Exception, match="Fetches"):
        read_published(tmp_path / "code.pt")
