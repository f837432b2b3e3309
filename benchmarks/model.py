"""Speed of the model as ratios measured in one run, against a plain, literal implementation of the same blocks.

    python benchmarks/model.py [--device cuda] [--repeat 5] [-o model.json]

Each figure is a ratio of medians of alternating runs, so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from syncflow.models.attention import CrossAttention, SelfAttention
from syncflow.models.config import ModelConfig
from syncflow.models.d_dit import DualDiT
from syncflow.models.generation import generate_joint, generate_sound, make_setting
from syncflow.models.guidance import Guidance
from syncflow.models.sampler import time_grid
from syncflow.models.sizes import SIZES
from syncflow.models.video_tower import Block, Conditions, VideoTower

TARGETS = {
    "forward_backward_speedup": (">=", 1.3),
    "forward_backward_memory": ("<=", 1.0),
    "sounds_speedup": (">=", 2.5),
    "audio_share": ("<=", 0.35),
}


# -- the literal implementation ------------------------------------------------------------------------------------


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d)·v with the matrix written out in float32, as the public code does without flash attention."""
    scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).to(q.dtype) @ v


def plain_rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x·cos + (x turned by 90°)·sin, pair by pair."""
    cos, sin = rotation.real.repeat_interleave(2, -1), rotation.imag.repeat_interleave(2, -1)
    pairs = x.unflatten(-1, (-1, 2))
    turned = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
    return x * cos + turned * sin


def plain_self(module: SelfAttention, x: Tensor, rotation: Tensor | None) -> Tensor:
    b, n, e = x.shape
    q, k, v = module.qkv(x).view(b, n, 3, module.heads, -1).permute(2, 0, 3, 1, 4)
    q, k = module.q_norm(q), module.k_norm(k)
    if rotation is not None:
        q, k = plain_rotate(q, rotation), plain_rotate(k, rotation)
    return module.proj(plain_attention(q, k, v).transpose(1, 2).reshape(b, n, e))


def plain_cross(module: CrossAttention, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    b, n, e = x.shape
    kv = module.kv_linear(text).view(b, text.shape[1], 2, module.heads, -1)
    k, v = kv.permute(2, 0, 3, 1, 4)
    q = module.q_linear(x).view(b, n, module.heads, -1).transpose(1, 2)
    mask = None if mask is None else mask[:, None, None]
    return module.proj(plain_attention(q, k, v, mask).transpose(1, 2).reshape(b, n, e))


def plain_block(block: Block, x: Tensor, conditions: Conditions, text: Tensor) -> Tensor:
    b, t, s, e = x.shape
    table = block.scale_shift_table + conditions.modulation
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = table[:, :, None].unbind(dim=3)
    y = block.norm1(x) * (1 + scale) + shift
    if block.temporal:
        y = plain_self(block.attn, y.transpose(1, 2).reshape(b * s, t, e), conditions.rotation)
        y = y.view(b, s, t, e).transpose(1, 2)
    else:
        y = plain_self(block.attn, y.reshape(b * t, s, e), None).view(b, t, s, e)
    x = x + gate * y
    x = x + plain_cross(block.cross_attn, x.reshape(b, t * s, e), text, conditions.text.mask).view(b, t, s, e)
    return x + gate_mlp * block.mlp(block.norm2(x) * (1 + scale_mlp) + shift_mlp)


def plain_tower(tower: VideoTower, inputs: dict[str, Tensor]) -> Tensor:
    """The tower with the literal blocks; same modules, same result."""
    text = tower.encode_text(inputs["y"], inputs["mask"])
    size = torch.stack([inputs["height"], inputs["width"]], -1)
    x, conditions = tower.begin(inputs["x"], inputs["timestep"], text, inputs["fps"], size)
    assert text.tokens is not None
    for pair in zip(tower.spatial_blocks, tower.temporal_blocks, strict=True):
        for block in pair:
            assert isinstance(block, Block)
            x = plain_block(block, x, conditions, text.tokens)
    return tower.end(x, conditions, inputs["x"])


# -- measuring -----------------------------------------------------------------------------------------------------


def ratio(slow: Callable[[], object], fast: Callable[[], object], repeat: int, device: torch.device) -> float:
    """Median time of `slow` over that of `fast`, taken in turns."""
    spent: dict[str, list[float]] = {"slow": [], "fast": []}
    for i in range(repeat + 1):
        for name, run in (("slow", slow), ("fast", fast)):
            synchronise(device)
            start = clock(device)
            run()
            synchronise(device)
            if i:  # the first round warms up
                spent[name].append(clock(device) - start)
    return statistics.median(spent["slow"]) / statistics.median(spent["fast"])


def clock(device: torch.device) -> float:
    """Processor time on a CPU: other programs' share of the machine is not ours to measure."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def kept_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storages.values())


def tower_inputs(config: ModelConfig, device: torch.device, batch: int, side: int, frames: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        name: tensor.to(device)
        for name, tensor in {
            "x": torch.randn(batch, 4, frames, side // 8, side // 8, generator=g),
            "timestep": 1000 * torch.rand(batch, generator=g),
            "y": torch.randn(batch, 60, config.video.caption_channels, generator=g),
            "mask": torch.arange(60)[None] < torch.tensor([60, 22])[torch.arange(batch) % 2][:, None],
            "fps": torch.full((batch,), 16.0),
            "height": torch.full((batch,), float(side)),
            "width": torch.full((batch,), float(side)),
        }.items()
    }


def measure(config: ModelConfig, device: torch.device, repeat: int, side: int, frames: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = DualDiT(config).to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    tower, found = model.video, {}
    inputs = tower_inputs(config, device, 2, side, frames)
    with torch.no_grad():
        difference = (tower(**inputs) - plain_tower(tower, inputs)).abs().max()
    found["largest_difference"] = float(difference)

    def step(forward: Callable[[], Tensor]) -> None:
        forward().square().mean().backward()

    found["forward_backward_speedup"] = ratio(
        lambda: step(lambda: plain_tower(tower, inputs)), lambda: step(lambda: tower(**inputs)), repeat, device
    )
    ours, plain = kept_bytes(lambda: tower(**inputs)), kept_bytes(lambda: plain_tower(tower, inputs))
    found["forward_backward_memory"] = ours / plain

    model.eval().requires_grad_(False)
    v = (torch.arange(frames)[:, None] / 16 + torch.tensor([0, 1 / 16])).expand(1, -1, -1).to(device)
    a = (torch.arange(80)[:, None] / 40 + torch.tensor([0, 1 / 40])).expand(1, -1, -1).to(device)
    about = {
        "video_time_s": v, "audio_time_s": a, "fps": torch.full((1,), 16.0, device=device),
        "size": torch.full((1, 2), float(side), device=device),
    }  # fmt: skip
    text = torch.randn(60, config.video.caption_channels, device=device)
    setting = make_setting(model, [text], **about)
    video = torch.randn(1, 4, frames, side // 8, side // 8, device=device)
    sounds = torch.randn(8, config.audio.in_channels, 80, device=device)
    guidance, times = Guidance(video=2, audio=2), time_grid(3)

    def sound(rows: Tensor) -> Tensor:
        return generate_sound(model, setting, video, (video, rows), times, guidance=guidance)

    found["sounds_speedup"] = ratio(
        lambda: [sound(sounds[k : k + 1]) for k in range(8)], lambda: sound(sounds), max(1, repeat // 2), device
    )

    def once_per_step() -> None:
        """Text projected in each step, conditional and unconditional one after the other."""
        z_video, z_audio = video, sounds[:1]
        for t, following in pairwise(times):
            merged = []
            for null in (False, True):
                out = model(z_video, z_audio, torch.full((1,), t, device=device), text=text[None],
                            null_text=torch.tensor([null], device=device), **about)  # fmt: skip
                merged.append(out)
            c, u = merged
            z_video = z_video + (following - t) * (u.video + 2 * (c.video - u.video))
            z_audio = z_audio + (following - t) * (u.audio + 2 * (c.audio - u.audio))

    found["generation_speedup"] = ratio(
        once_per_step,
        lambda: generate_joint(
            model, make_setting(model, [text], **about), (video, sounds[:1]), times, guidance=guidance
        ),
        repeat,
        device,
    )
    joint = {"text": text[None], **about}
    model.requires_grad_(True)

    def joint_step(audio: Tensor | None) -> None:
        out = model(video, audio, torch.rand(1, device=device), **joint)
        loss = out.video.square().mean() + (0 if out.audio is None else out.audio.square().mean())
        loss.backward()

    found["audio_share"] = 1 - ratio(lambda: joint_step(None), lambda: joint_step(sounds[:1]), repeat, device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="nano", choices=SIZES)
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--frames", type=int, default=32, help="latent frames")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=None)
    args = parser.parse_args()
    found = measure(SIZES[args.size], torch.device(args.device), args.repeat, args.side, args.frames)
    for name, value in found.items():
        sign, target = TARGETS.get(name, ("", None))
        verdict = "" if target is None else f"  (wanted {sign} {target})"
        print(f"{name:28}{value:10.3g}{verdict}")
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
