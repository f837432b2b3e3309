"""STDiT3 written out as plainly as it can be, from a dictionary of the public weights: the twin of `VideoTower`.

B batch, T × H × W patches, S = H·W, E width, L text tokens. One example at a time where that is the plainer way.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def plain_stdit3(
    weights: State, config: dict[str, Any], x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor,
    noisy: Tensor, fps: float, height: float, width: float,
) -> Tensor:  # fmt: skip
    """x (B, C, T, H, W), y (B, L, D), mask (B, L), noisy (B, T) -> (B, out, T, H, W)."""
    return torch.cat([
        _one(weights, config, x[b], timestep[b], y[b][mask[b].bool()], noisy[b], fps, height, width)[None]
        for b in range(len(x))
    ])  # fmt: skip


def _one(
    w: State, config: dict[str, Any], x: Tensor, timestep: Tensor, y: Tensor, noisy: Tensor,
    fps: float, height: float, width: float,
) -> Tensor:  # fmt: skip
    (pt, ph, pw), e, heads = config["patch_size"], config["hidden_size"], config["num_heads"]
    _, frames, rows, cols = x.shape
    padded = F.pad(x, (0, -cols % pw, 0, -rows % ph, 0, -frames % pt))
    tokens = F.conv3d(padded[None], w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=(pt, ph, pw))[0]
    _, t, h, wd = tokens.shape
    scale = math.sqrt(height * width) / config["input_sq_size"]
    base = round(math.sqrt(h * wd))
    place = torch.empty(h, wd, e)
    for i in range(h):
        for j in range(wd):
            across, down = _sinusoid(j / scale * base / wd, e // 2), _sinusoid(i / scale * base / h, e // 2)
            place[i, j] = torch.cat([across, down])
    tokens = (tokens.permute(1, 2, 3, 0) + place).reshape(t, h * wd, e)

    def condition(value: Tensor) -> Tensor:
        return _embed(w, "t_embedder", value) + _embed(w, "fps_embedder", torch.tensor(fps))

    # Every frame has its own condition: that of t, or of 0 where it is given clean.
    by_frame = [condition(timestep), condition(torch.tensor(0.0))]
    text = _mlp(w, "y_embedder.y_proj", y)
    for layer in range(config["depth"]):
        for name in (f"spatial_blocks.{layer}", f"temporal_blocks.{layer}"):
            modulations = [
                _linear(w, "t_block.1", F.silu(c)).view(6, e) + w[f"{name}.scale_shift_table"] for c in by_frame
            ]
            shift, scale_1, gate, shift_2, scale_2, gate_2 = (
                torch.stack([modulations[0 if noisy[k] else 1][part] for k in range(t)])[:, None] for part in range(6)
            )
            a = F.layer_norm(tokens, (e,), eps=1e-6) * (1 + scale_1) + shift
            if name.startswith("spatial"):
                a = torch.stack([_self(w, f"{name}.attn", a[k], heads, None) for k in range(t)])
            else:
                a = torch.stack([_self(w, f"{name}.attn", a[:, s], heads, w["rope.freqs"]) for s in range(h * wd)], 1)
            tokens = tokens + gate * a
            tokens = tokens + _cross(w, f"{name}.cross_attn", tokens.flatten(0, 1), text, heads).view_as(tokens)
            a = F.layer_norm(tokens, (e,), eps=1e-6) * (1 + scale_2) + shift_2
            tokens = tokens + gate_2 * _mlp(w, f"{name}.mlp", a)

    out = []
    for k in range(t):
        frame = tokens[k]
        # A clean frame is modulated twice, as the public code does it.
        for c in by_frame[: 1 if noisy[k] else 2]:
            shift, scale_1 = w["final_layer.scale_shift_table"] + c
            frame = F.layer_norm(frame, (e,), eps=1e-6) * (1 + scale_1) + shift
        out.append(_linear(w, "final_layer.linear", frame))
    patches = torch.stack(out).view(t, h, wd, pt, ph, pw, -1)
    video = patches.permute(6, 0, 3, 1, 4, 2, 5).reshape(-1, t * pt, h * ph, wd * pw)
    return video[:, :frames, :rows, :cols]


def _self(w: State, name: str, x: Tensor, heads: int, freqs: Tensor | None) -> Tensor:
    """x (N, E); rotary positions along N where there are `freqs`."""
    n, e = x.shape
    q, k, v = _linear(w, f"{name}.qkv", x).view(n, 3, heads, e // heads).permute(1, 2, 0, 3)  # (h, N, d)
    if f"{name}.q_norm.weight" in w:
        q, k = (a / (a.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.{which}_norm.weight"]
                for which, a in (("q", q), ("k", k)))  # fmt: skip
    if freqs is not None:
        angle = torch.arange(n)[:, None] * freqs
        q, k = _turned(q, angle), _turned(k, angle)
    weights = (q @ k.transpose(1, 2) / math.sqrt(e // heads)).softmax(-1)
    return _linear(w, f"{name}.proj", (weights @ v).transpose(0, 1).reshape(n, e))


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()], -1).flatten(-2)


def _cross(w: State, name: str, x: Tensor, text: Tensor, heads: int) -> Tensor:
    """x (N, E), text (L, E): L may be 0, and then nothing is seen."""
    n, e = x.shape
    q = _linear(w, f"{name}.q_linear", x).view(n, heads, e // heads).transpose(0, 1)
    k, v = _linear(w, f"{name}.kv_linear", text).view(len(text), 2, heads, e // heads).permute(1, 2, 0, 3)
    weights = (q @ k.transpose(1, 2) / math.sqrt(e // heads)).softmax(-1)  # (h, N, L)
    return _linear(w, f"{name}.proj", (weights @ v).transpose(0, 1).reshape(n, e))


def _embed(w: State, name: str, value: Tensor) -> Tensor:
    angle = value * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    hidden = F.silu(_linear(w, f"{name}.mlp.0", torch.cat([angle.cos(), angle.sin()])))
    return _linear(w, f"{name}.mlp.2", hidden)


def _sinusoid(position: float, width: int) -> Tensor:
    angle = position / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.cat([angle.sin(), angle.cos()])


def _mlp(w: State, name: str, x: Tensor) -> Tensor:
    return _linear(w, f"{name}.fc2", F.gelu(_linear(w, f"{name}.fc1", x), approximate="tanh"))


def _linear(w: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])
