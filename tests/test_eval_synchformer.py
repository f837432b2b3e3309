"""Synchformer: the public file's parameters, a plain twin of its forward pass, and what it makes of a clip."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from syncflow.models.perception.synchformer import OFFSETS_S, Synchformer
from syncflow.models.perception.synchformer_net import SynchformerConfig, SynchformerNetwork

State = dict[str, Tensor]
TINY = SynchformerConfig(width=24, blocks=2, heads=2, compare_blocks=1, compare_heads=2, side=32, segments=3)


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public file, as its authors' classes spell them."""
    d = 768
    shapes: dict[str, tuple[int, ...]] = {
        "vfeat_extractor.cls_token": (1, 1, d),
        "vfeat_extractor.pos_embed": (1, 197, d),
        "vfeat_extractor.temp_embed": (1, 8, d),
        "vfeat_extractor.patch_embed.proj.weight": (d, 3, 16, 16),
        "vfeat_extractor.patch_embed.proj.bias": (d,),
        "vfeat_extractor.patch_embed_3d.proj.weight": (d, 3, 2, 16, 16),
        "vfeat_extractor.patch_embed_3d.proj.bias": (d,),
        "afeat_extractor.ast.embeddings.cls_token": (1, 1, d),
        "afeat_extractor.ast.embeddings.distillation_token": (1, 1, d),
        "afeat_extractor.ast.embeddings.position_embeddings": (1, 74, d),
        "afeat_extractor.ast.embeddings.patch_embeddings.projection.weight": (d, 1, 16, 16),
        "afeat_extractor.ast.embeddings.patch_embeddings.projection.bias": (d,),
        "transformer.OFF_tok": (1, 1, d),
        "transformer.MOD_tok": (1, 1, d),
        "transformer.pos_emb_cfg.pos_emb": (1, 198, d),
    }

    def linear(name: str, to: int, of: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (to, of), (to,)

    def norms(*names: str) -> None:
        for name in names:
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (d,)

    norms("vfeat_extractor.norm", "afeat_extractor.ast.layernorm")
    norms("transformer.vis_in_lnorm", "transformer.aud_in_lnorm", "transformer.ln_f")
    for name, to in (("vproj", d), ("aproj", d), ("transformer.off_head", 21)):
        linear(name, to, d)
    for pool in ("vfeat_extractor.spatial_attn_agg", "afeat_extractor.freq_attn_agg"):
        shapes[f"{pool}.cls_token"] = (1, 1, d)
        shapes[f"{pool}.self_attn.in_proj_weight"], shapes[f"{pool}.self_attn.in_proj_bias"] = (3 * d, d), (3 * d,)
        linear(f"{pool}.self_attn.out_proj", d, d)
        linear(f"{pool}.linear1", 4 * d, d)
        linear(f"{pool}.linear2", d, 4 * d)
        norms(f"{pool}.norm1", f"{pool}.norm2")
    for k in range(12):
        block = f"vfeat_extractor.blocks.{k}"
        norms(f"{block}.norm1", f"{block}.norm2", f"{block}.norm3")
        for attention in ("attn", "timeattn"):
            linear(f"{block}.{attention}.qkv", 3 * d, d)
            linear(f"{block}.{attention}.proj", d, d)
        linear(f"{block}.mlp.fc1", 4 * d, d)
        linear(f"{block}.mlp.fc2", d, 4 * d)
        layer = f"afeat_extractor.ast.encoder.layer.{k}"
        norms(f"{layer}.layernorm_before", f"{layer}.layernorm_after")
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            linear(f"{layer}.attention.{part}", d, d)
        linear(f"{layer}.intermediate.dense", 4 * d, d)
        linear(f"{layer}.output.dense", d, 4 * d)
    for k in range(3):
        block = f"transformer.blocks.{k}"
        norms(f"{block}.ln1", f"{block}.ln2")
        for part in ("key", "query", "value", "proj"):
            linear(f"{block}.attn.{part}", d, d)
        linear(f"{block}.mlp.0", 4 * d, d)
        linear(f"{block}.mlp.2", d, 4 * d)
    return shapes


def test_the_network_has_the_published_parameters() -> None:
    with torch.device("meta"):
        network = SynchformerNetwork(SynchformerConfig())
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == published_shapes()


class Twin:
    """The published computation, one sample and one head at a time."""

    def __init__(self, network: SynchformerNetwork) -> None:
        self.state: State = network.state_dict()

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return unit * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def mlp(self, first: str, second: str, x: Tensor) -> Tensor:
        y = self.linear(first, x)
        return self.linear(second, 0.5 * y * (1 + torch.erf(y / math.sqrt(2))))

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = []
        for h in range(2):
            part = slice(h * 12, (h + 1) * 12)
            out.append((q[:, part] @ k[:, part].T / math.sqrt(12)).softmax(-1) @ v[:, part])
        return torch.cat(out, dim=-1)

    def divided(self, name: str, x: Tensor, lines: list[list[int]]) -> Tensor:
        """Each token attends to its own line and the class token, the class token to all."""
        q, k, v = self.linear(f"{name}.qkv", x).chunk(3, dim=-1)
        out = torch.empty_like(q)
        out[:1] = self.attend(q[:1], k, v)
        for line in lines:
            out[line] = self.attend(q[line], k[[0, *line]], v[[0, *line]])
        return self.linear(f"{name}.proj", out)

    def pool(self, name: str, x: Tensor) -> Tensor:
        x = torch.cat([self.state[f"{name}.cls_token"][0], x])
        y = self.norm(f"{name}.norm1", x, 1e-6)
        qkv = y @ self.state[f"{name}.self_attn.in_proj_weight"].T + self.state[f"{name}.self_attn.in_proj_bias"]
        x = x + self.linear(f"{name}.self_attn.out_proj", self.attend(*qkv.chunk(3, dim=-1)))
        return (x + self.mlp(f"{name}.linear1", f"{name}.linear2", self.norm(f"{name}.norm2", x, 1e-6)))[0]

    def pictures(self, segment: Tensor) -> Tensor:
        """(3, 16, 32, 32) -> (8, 24): four patches in each of eight pairs of frames."""
        v = "vfeat_extractor"
        weight, bias = (self.state[f"{v}.patch_embed_3d.proj.{part}"] for part in ("weight", "bias"))
        tokens = [self.state[f"{v}.cls_token"][0, 0] + self.state[f"{v}.pos_embed"][0, 0]]
        for t in range(8):
            for place, (y, x) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
                cube = segment[:, 2 * t : 2 * t + 2, y : y + 16, x : x + 16]
                where = self.state[f"{v}.pos_embed"][0, 1 + place] + self.state[f"{v}.temp_embed"][0, t]
                tokens.append((weight * cube).flatten(1).sum(1) + bias + where)
        out = torch.stack(tokens)
        over_time = [[1 + 4 * t + place for t in range(8)] for place in range(4)]
        over_space = [[1 + 4 * t + place for place in range(4)] for t in range(8)]
        for k in range(2):
            block = f"{v}.blocks.{k}"
            out = out + self.divided(f"{block}.timeattn", self.norm(f"{block}.norm3", out, 1e-6), over_time)
            out = out + self.divided(f"{block}.attn", self.norm(f"{block}.norm1", out, 1e-6), over_space)
            out = out + self.mlp(f"{block}.mlp.fc1", f"{block}.mlp.fc2", self.norm(f"{block}.norm2", out, 1e-6))
        out = self.norm(f"{v}.norm", out, 1e-6)
        return torch.stack([self.pool(f"{v}.spatial_attn_agg", out[line]) for line in over_space])

    def sounds(self, mel: Tensor) -> Tensor:
        """(128, 66) -> (6, 24)."""
        ast = "afeat_extractor.ast"
        weight, bias = (self.state[f"{ast}.embeddings.patch_embeddings.projection.{p}"] for p in ("weight", "bias"))
        tokens = [self.state[f"{ast}.embeddings.{name}_token"][0, 0] for name in ("cls", "distillation")]
        for band in range(12):
            for time in range(6):
                patch = mel[10 * band : 10 * band + 16, 10 * time : 10 * time + 16]
                tokens.append((weight[:, 0] * patch).flatten(1).sum(1) + bias)
        x = torch.stack(tokens) + self.state[f"{ast}.embeddings.position_embeddings"][0]
        for k in range(2):
            layer = f"{ast}.encoder.layer.{k}"
            y = self.norm(f"{layer}.layernorm_before", x, 1e-12)
            q, key, v = (self.linear(f"{layer}.attention.attention.{p}", y) for p in ("query", "key", "value"))
            x = x + self.linear(f"{layer}.attention.output.dense", self.attend(q, key, v))
            y = self.norm(f"{layer}.layernorm_after", x, 1e-12)
            x = x + self.mlp(f"{layer}.intermediate.dense", f"{layer}.output.dense", y)
        x = self.norm(f"{ast}.layernorm", x, 1e-12)
        columns = [[2 + 6 * band + time for band in range(12)] for time in range(6)]
        return torch.stack([self.pool("afeat_extractor.freq_attn_agg", x[column]) for column in columns])

    def logits(self, pictures: Tensor, mel: Tensor) -> Tensor:
        seen = torch.cat([self.linear("vproj", self.pictures(segment)) for segment in pictures])
        heard = torch.cat([self.linear("aproj", self.sounds(segment)) for segment in mel])
        t = "transformer"
        seen, heard = self.norm(f"{t}.vis_in_lnorm", seen, 1e-5), self.norm(f"{t}.aud_in_lnorm", heard, 1e-5)
        x = torch.cat([self.state[f"{t}.OFF_tok"][0], seen, self.state[f"{t}.MOD_tok"][0], heard])
        x = x + self.state[f"{t}.pos_emb_cfg.pos_emb"][0]
        block = f"{t}.blocks.0"
        y = self.norm(f"{block}.ln1", x, 1e-5)
        q, k, v = (self.linear(f"{block}.attn.{part}", y) for part in ("query", "key", "value"))
        x = x + self.linear(f"{block}.attn.proj", self.attend(q, k, v))
        x = x + self.mlp(f"{block}.mlp.0", f"{block}.mlp.2", self.norm(f"{block}.ln2", x, 1e-5))
        return self.linear(f"{t}.off_head", self.norm(f"{t}.ln_f", x[0], 1e-5))


def random_network() -> SynchformerNetwork:
    torch.manual_seed(0)
    network = SynchformerNetwork(TINY).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def test_the_network_equals_its_twin() -> None:
    network = random_network().double()
    pictures = torch.randn(2, 3, 3, 16, 32, 32, dtype=torch.double)
    mel = torch.randn(2, 3, 128, 66, dtype=torch.double)
    twin = Twin(network)
    with torch.no_grad():
        expected = torch.stack([twin.logits(*sample) for sample in zip(pictures, mel, strict=True)])
        torch.testing.assert_close(network(pictures, mel), expected)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Synchformer:
    path = tmp_path_factory.mktemp("synchformer") / "synchformer_state_dict.pth"
    torch.save(random_network().state_dict(), path)
    return Synchformer(path, TINY)


def test_segments_overlap_by_half(loaded: Synchformer) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (40, 32, 40, 3), dtype=np.uint8)
    sound = rng.normal(0, 0.1, 25000).astype(np.float32)
    picture = torch.from_numpy(frames[:32, :, 4:36]).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    segments = torch.stack([picture[k : k + 16].transpose(0, 1) for k in (0, 8, 16)])
    mel = torch.stack([loaded.mel(torch.from_numpy(sound[None, k : k + 10240]))[0] for k in (0, 5120, 10240)])
    with torch.no_grad():
        expected = loaded.network(segments[None], mel[None])[0]
    np.testing.assert_allclose(loaded.logits(frames, sound), expected.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match=r"is 1\.20 s long; Synchformer needs 1\.28 s"):
        loaded.logits(frames[:30], sound)


def test_mel_of_a_tone(loaded: Synchformer) -> None:
    """HTK mel bands of squared magnitudes: a tone is where its band is; the frame beyond the sound is a zero."""
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(10240) / 16000)[None]
    mel = loaded.mel(tone)[0]
    assert mel.shape == (128, 66)
    np.testing.assert_allclose(mel[:, 65], 4.2677393 / (2 * 4.5689974), rtol=1e-5)
    edges = torch.linspace(0, 2595 * math.log10(1 + 8000 / 700), 130)
    centre = 700 * (10 ** (edges[1:-1] / 2595) - 1)
    assert abs(float(centre[mel[:, 5:60].mean(1).argmax()]) - 1000) < 25
    silence = loaded.mel(torch.zeros(1, 10240))[0, :, :65]
    np.testing.assert_allclose(silence, (math.log(1e-6) + 4.2677393) / (2 * 4.5689974), rtol=1e-5)


def test_offset_is_how_late_the_sound_is(loaded: Synchformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of +0.6 s means that what is heard is seen 0.6 s later."""
    logits = np.zeros(21)
    logits[13] = 10
    monkeypatch.setattr(loaded, "logits", lambda frames, waveform: logits)
    late_s, sure = loaded.offset(np.zeros(0), np.zeros(0))
    assert late_s == pytest.approx(-0.6)
    assert sure == pytest.approx(math.exp(10) / (math.exp(10) + 20))
    assert OFFSETS_S[10] == 0


def test_first_and_last_window_of_a_clip(
    impacts_dir: Path, loaded: Synchformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rendered clip of 2 s: windows of 1.28 s from 0 and from 0.64 s, the last multiple of 0.32 s that fits."""
    from syncflow.clock import Span
    from syncflow.eval import extract
    from syncflow.eval.clips import find_clips
    from syncflow.media import MediaError, decode_span

    clip = find_clips(impacts_dir).clips[0]
    monkeypatch.setattr(extract.synchformer, "Synchformer", lambda path, device: loaded)
    rows = extract.Synchformer(tmp_path).features(clip)["logits"]
    span = Span(Fraction(64, 100), Fraction(192, 100))
    part = decode_span(clip.path, span, fps=Fraction(25), size=(32, 32), sample_rate=16000)
    np.testing.assert_allclose(rows[1], loaded.logits(part.frames, part.waveform), atol=1e-5)
    assert rows.shape == (2, 21)
    monkeypatch.setattr(loaded, "seconds", 4.8)
    with pytest.raises(MediaError, match=r"is 2\.00 s long; Synchformer needs 4\.80 s"):
        extract.Synchformer(tmp_path).features(clip)
