"""Speed of the model as ratios measured in one run, against a plain, literal implementation of the same blocks.

    python benchmarks/model.py [--device cuda] [--towers nano-64 …] [--repeat 5] [-o model.json]

Each figure is a ratio of medians of alternating runs, so that a busy machine slows both sides alike. Peak memory is
that of two fresh processes, each of which makes one training step of the video tower (on a CPU: resident memory above
what the loaded model needs; on CUDA: allocated memory).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from machine import resident_bytes
from torch import Tensor, nn

from syncflow.models.attention import CrossAttention, SelfAttention
from syncflow.models.config import ModelConfig
from syncflow.models.d_dit import DualDiT
from syncflow.models.flops import Lengths, forward_cost
from syncflow.models.generation import generate_joint, generate_sound, make_setting
from syncflow.models.guidance import Guidance
from syncflow.models.layers import RMSNorm
from syncflow.models.sampler import time_grid
from syncflow.models.sizes import SIZES
from syncflow.models.video_tower import Block, Conditions, VideoTower

TARGETS = {
    "forward_backward": (">=", 1.3),
    "forward_backward_compiled": (">=", 1.3),
    "peak_memory": ("<=", 1.0),
    "sounds": (">=", 2.5),
    "audio_share": ("<=", 0.35),
}


@dataclass(frozen=True)
class Work:
    """What a video tower is timed on."""

    size: str
    layers: int
    """Of the size's own number, to fit a small machine: every layer costs the same."""
    side: int
    """Pixels."""
    frames: int
    """Latent frames."""
    batch: int

    def config(self) -> ModelConfig:
        chosen = SIZES[self.size]
        return chosen.model_copy(update={"video": chosen.video.model_copy(update={"depth": self.layers})})


TOWERS = {
    "nano-64": Work("nano", 4, 64, 32, 4),
    "nano-256": Work("nano", 2, 256, 32, 1),
    "nano-512": Work("nano", 2, 512, 9, 1),
    "base-256": Work("base", 2, 256, 9, 1),
    "base-512": Work("base", 1, 512, 5, 1),
    "xl-512": Work("xl", 28, 512, 9, 1),
}
"""By width and pixels; xl is for a GPU."""


# -- the literal implementation ------------------------------------------------------------------------------------


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d)·v with the matrix written out in float32, as the public code does without flash attention."""
    scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).to(q.dtype) @ v


def plain_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """x / sqrt(mean(x²) + ε) · weight in float32, as the public code writes it out."""
    assert isinstance(norm, RMSNorm)
    wide = x.float()
    return norm.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)).to(x.dtype)


def plain_rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x·cos + (x turned by 90°)·sin, pair by pair."""
    cos, sin = rotation.real.repeat_interleave(2, -1), rotation.imag.repeat_interleave(2, -1)
    pairs = x.unflatten(-1, (-1, 2))
    turned = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
    return x * cos + turned * sin


def plain_self(module: SelfAttention, x: Tensor, rotation: Tensor | None) -> Tensor:
    b, n, e = x.shape
    q, k, v = module.qkv(x).view(b, n, 3, module.heads, -1).permute(2, 0, 3, 1, 4)
    q, k = plain_norm(module.q_norm, q), plain_norm(module.k_norm, k)
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


def medians(runs: dict[str, Callable[[], object]], repeat: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, taken in turns; a first round warms up."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeat + 1):
        for name, run in runs.items():
            synchronise(device)
            start = clock(device)
            run()
            synchronise(device)
            if i:
                spent[name].append(clock(device) - start)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def clock(device: torch.device) -> float:
    """Processor time on a CPU: other programs' share of the machine is not ours to measure."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


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


def training_step(work: Work, device: torch.device) -> tuple[VideoTower, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = work.config()
    tower = VideoTower(config.video).to(device)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
            parameter.grad = torch.zeros_like(parameter)
    return tower, tower_inputs(config, device, work.batch, work.side, work.frames)


def peak_bytes(name: str, which: str, device: torch.device) -> int:
    """Most memory that a training step takes beyond model, gradients and inputs; in this process, which is new."""
    tower, inputs = training_step(TOWERS[name], device)
    torch.ones(512, 512) @ torch.ones(512, 512)  # the libraries' own buffers are no part of it
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resident_bytes("VmRSS")
    out = tower(**inputs) if which == "ours" else plain_tower(tower, inputs)
    out.square().mean().backward()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() - before
    return resident_bytes("VmHWM") - before


def measure_tower(name: str, device: torch.device, repeat: int, compiled: bool) -> dict[str, float]:
    """A training step of the video tower against the plain one."""
    work = TOWERS[name]
    tower, inputs = training_step(work, device)
    with torch.no_grad():
        difference = (tower(**inputs) - plain_tower(tower, inputs)).abs().max()

    def ours() -> None:
        tower(**inputs).square().mean().backward()

    def plain() -> None:
        plain_tower(tower, inputs).square().mean().backward()

    peaks = {
        which: int(subprocess.run(
            [sys.executable, __file__, "--peak", name, which, "--device", str(device)],
            check=True, capture_output=True, text=True,
        ).stdout)
        for which in ("ours", "plain")
    }  # fmt: skip
    lengths = Lengths(work.frames, work.side // 8, work.side // 8, 1, inputs["y"].shape[1])
    flops = 3 * work.batch * forward_cost(work.config(), lengths).video
    width, tokens = work.config().video.hidden_size, 4096
    a, b = torch.randn(tokens, width, device=device), torch.randn(width, 4 * width, device=device)
    runs = {"plain": plain, "ours": ours, "product": lambda: a @ b}
    if compiled:
        torch.compiler.reset()  # one tower's shapes are no reason to give up on the next
        fused = copy.deepcopy(tower)
        for block in [*fused.spatial_blocks, *fused.temporal_blocks]:
            block.compile()
        runs["compiled"] = lambda: fused(**inputs).square().mean().backward()
    spent = medians(runs, repeat, device)
    found = {"forward_backward_compiled": spent["plain"] / spent["compiled"]} if compiled else {}
    return found | {
        "forward_backward": spent["plain"] / spent["ours"],
        "peak_memory": peaks["ours"] / peaks["plain"],
        "peak_megabytes": peaks["ours"] / 1e6,
        "flops_of_a_plain_product": flops / spent["ours"] / (8 * tokens * width**2 / spent["product"]),
        "largest_difference": float(difference),
    }


def measure_generation(device: torch.device, repeat: int) -> dict[str, float]:
    """Generation, and the parts of a joint training step, of the whole nano model at 128 x 128."""
    config, side, frames = SIZES["nano"], 128, 32
    torch.manual_seed(0)
    model = DualDiT(config).to(device)
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

    def one_by_one() -> None:
        for k in range(8):
            sound(sounds[k : k + 1])

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

    def once() -> None:
        own = make_setting(model, [text], **about)
        generate_joint(model, own, (video, sounds[:1]), times, guidance=guidance)

    runs = {"one_by_one": one_by_one, "together": lambda: sound(sounds), "per_step": once_per_step, "once": once}
    spent = medians(runs, repeat, device)
    joint = {"text": text[None], **about}
    model.requires_grad_(True)

    def joint_step(audio: Tensor | None) -> None:
        out = model(video, audio, torch.rand(1, device=device), **joint)
        loss = out.video.square().mean() + (0 if out.audio is None else out.audio.square().mean())
        loss.backward()

    steps = medians({"video": lambda: joint_step(None), "both": lambda: joint_step(sounds[:1])}, repeat, device)
    return {
        "sounds": spent["one_by_one"] / spent["together"],
        "text_once_and_one_batch": spent["per_step"] / spent["once"],
        "audio_share": 1 - steps["video"] / steps["both"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--towers", nargs="*", choices=TOWERS, default=[name for name in TOWERS if name != "xl-512"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also the tower with compiled blocks (a minute each)")
    parser.add_argument("--peak", nargs=2, metavar=("TOWER", "WHICH"), help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=None)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.peak:
        print(peak_bytes(*args.peak, device))
        return
    found: dict[str, dict[str, float]] = {}
    for name in [*args.towers, "generation"]:
        if name == "generation":
            made = measure_generation(device, args.repeat)
        else:
            made = measure_tower(name, device, args.repeat, args.compile)
        found[name] = made
        for what, value in made.items():
            sign, target = TARGETS.get(what, ("", None))
            verdict = "" if target is None else f"  (wanted {sign} {target})"
            print(f"{name:12}{what:26}{value:10.3g}{verdict}", flush=True)
        if args.output:
            args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
