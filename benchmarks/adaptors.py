"""What each adaptor is worth for sync: a bouncing ball's sound from its video, the video tower frozen.

    python benchmarks/adaptors.py [--adaptors figure,aligned,…] [--steps 600] [-o results.json]

The world is small enough for one CPU core: a blob of 16 × 8 pixels under gravity, a burst in an 80-frame, 8-channel
"audio latent" at each bounce. Stage 1 (video alone) is trained once and shared; stage 2 (adaptors and audio tower)
is trained per adaptor from the same start. Score: F1 of bounces heard within ±80 ms on unseen videos.
With -o, what is in results.json already is kept, so the adaptors can be run one by one. `--seed` starts adaptors and
audio tower otherwise; the worlds and the video tower stay.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from syncflow.models.config import AdaptorConfig, AudioTowerConfig, ModelConfig, VideoTowerConfig
from syncflow.models.d_dit import DualDiT
from syncflow.models.flow import flow_loss, interpolate, target_velocity
from syncflow.models.generation import Shown, generate_sound, make_setting
from syncflow.models.guidance import Guidance
from syncflow.models.sampler import time_grid

FRAMES, FPS, AUDIO_FRAMES, AUDIO_HZ, ROWS, COLS, CHANNELS = 32, 16.0, 80, 40.0, 16, 8, 8
VIDEO = VideoTowerConfig(
    in_channels=1, patch_size=(1, 4, 4), hidden_size=64, depth=2, num_heads=2, caption_channels=8, model_max_length=1,
    input_sq_size=16, patch_norm=True,
)  # fmt: skip
WHOLE_FRAME = AdaptorConfig(cells=(4, 2), group=(4, 2))
ADAPTORS = {
    "figure": WHOLE_FRAME.model_copy(update={"residual": False, "group": None, "time": "none"}),
    "time": WHOLE_FRAME.model_copy(update={"residual": False, "group": None}),
    "residual": WHOLE_FRAME.model_copy(update={"group": None}),
    "aligned": WHOLE_FRAME,
    "rotary": WHOLE_FRAME.model_copy(update={"time": "rotary"}),
}
DIRECTION = torch.nn.functional.normalize(torch.linspace(-1, 1, CHANNELS) + 0.1, dim=0) * CHANNELS**0.5


def world(n: int, seed: int) -> tuple[Tensor, Tensor, list[list[float]]]:
    """Videos (n, 1, T, 16, 8), sounds (n, 8, 80), and the times of the bounces in seconds."""
    g = torch.Generator().manual_seed(seed)
    height, column, gravity = torch.rand(n, generator=g), torch.rand(n, generator=g), torch.rand(n, generator=g)
    events: list[list[float]] = []
    video, audio = torch.zeros(n, 1, FRAMES, ROWS, COLS), 0.3 * torch.randn(n, CHANNELS, AUDIO_FRAMES, generator=g)
    rows, cols = torch.arange(ROWS)[:, None], torch.arange(COLS)[None]
    for i in range(n):
        y, v, t, step = 0.3 + 0.7 * float(height[i]), 0.0, 0.0, 1 / 960
        pull, bounces, places = 3.0 + 6.0 * float(gravity[i]), [], []
        while t < FRAMES / FPS:
            if abs(t * FPS - round(t * FPS)) < step * FPS / 2 and len(places) < FRAMES:
                places.append(y)
            v -= pull * step
            y += v * step
            if y < 0 and v < 0:
                y, v = 0.0, -0.85 * v
                bounces.append(t)
            t += step
        events.append(bounces)
        for f, place in enumerate(places):
            row, col = (ROWS - 2) * (1 - place) + 0.5, 1 + (COLS - 3) * float(column[i])
            video[i, 0, f] = 3 * torch.exp(-((rows - row) ** 2 + (cols - col) ** 2) / 2) - 0.4
        at = torch.arange(AUDIO_FRAMES) / AUDIO_HZ
        for event in bounces:
            since = at - event
            audio[i] += 2 * DIRECTION[:, None] * torch.where(since >= -0.5 / AUDIO_HZ, torch.exp(-since / 0.06), 0.0)
    return video, audio, events


def heard(audio: Tensor) -> list[list[float]]:
    """Times at which the burst of `world` begins in (n, 8, 80)."""
    level = torch.einsum("nct,c->nt", audio, DIRECTION) / CHANNELS
    rise = torch.nn.functional.pad(level, (1, 0))[:, 1:] - torch.nn.functional.pad(level, (1, 0))[:, :-1]
    found = []
    for r in rise:
        peaks = [
            k for k in range(AUDIO_FRAMES)
            if r[k] > 0.8 and r[k] >= r[max(0, k - 2) : k + 3].max()
        ]  # fmt: skip
        found.append([k / AUDIO_HZ for k in peaks])
    return found


def f1(truth: list[list[float]], found: list[list[float]], tolerance_s: float = 0.08) -> float:
    """Share of events matched one to one within the tolerance."""
    matched = 0
    for wanted, got in zip(truth, found, strict=True):
        free = list(got)
        for event in wanted:
            near = min(free, key=lambda g: abs(g - event), default=None)
            if near is not None and abs(near - event) <= tolerance_s:
                free.remove(near)
                matched += 1
    return 2 * matched / max(1, sum(map(len, truth)) + sum(map(len, found)))


def conditions(n: int) -> dict[str, Tensor]:
    """Arguments of the model that are the same for every clip of this world."""
    v = torch.arange(FRAMES)[:, None] / FPS + torch.tensor([0, 1 / FPS])
    a = torch.arange(AUDIO_FRAMES)[:, None] / AUDIO_HZ + torch.tensor([0, 1 / AUDIO_HZ])
    return {
        "text": torch.zeros(n, 1, 8),
        "video_time_s": v.expand(n, -1, -1),
        "audio_time_s": a.expand(n, -1, -1),
        "fps": torch.full((n,), FPS),
        "size": torch.full((n, 2), 16.0),
    }


def train(model: DualDiT, steps: int, data: tuple[Tensor, Tensor], *, sound: bool, batch: int = 16) -> None:
    model.train()
    parts = [model.adaptors, model.audio] if sound else [model.video]
    parameters = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 50, (steps - s) / (0.2 * steps)))
    g = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(len(data[0]), (batch,), generator=g)
        video, audio = data[0][rows], data[1][rows]
        t = torch.rand(batch, generator=g)
        z_video, z_audio = torch.randn(video.shape, generator=g), torch.randn(audio.shape, generator=g)
        noisy = interpolate(z_audio, audio, t) if sound else None
        # `want_video` off: stage 2 needs no output of the frozen tower.
        out = model(
            interpolate(z_video, video, t), noisy, t, train_video=not sound, want_video=not sound, **conditions(batch)
        )
        if sound:
            loss = flow_loss(out.audio, target_velocity(z_audio, audio)).mean()
        else:
            loss = flow_loss(out.video, target_velocity(z_video, video)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def score(model: DualDiT, data: tuple[Tensor, Tensor, list[list[float]]], shown: Shown) -> float:
    video, audio, events = data
    about = conditions(len(video))
    setting = make_setting(
        model, list(about["text"]), about["video_time_s"], about["audio_time_s"], about["fps"], about["size"]
    )
    g = torch.Generator().manual_seed(2)
    noise = torch.randn(video.shape, generator=g), torch.randn(audio.shape, generator=g)
    made = generate_sound(
        model, setting, video, noise, time_grid(16), guidance=Guidance(video=1, audio=1), shown=shown, fresh=g
    )
    return f1(events, heard(made))


def stage_1(args: argparse.Namespace, audio: AudioTowerConfig, data: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The video tower that all adaptors share; with -o, kept beside the results."""
    kept = args.output and args.output.with_suffix(f".{args.video_steps}.safetensors")
    if kept and kept.is_file():
        return load_file(kept)
    torch.manual_seed(0)
    model = DualDiT(ModelConfig(video=VIDEO, adaptor=WHOLE_FRAME, audio=audio))
    start = time.process_time()
    train(model, args.video_steps, data, sound=False)
    print(f"stage 1: {time.process_time() - start:.0f} s of CPU", flush=True)
    if kept:
        save_file(model.video.state_dict(), kept)
    return model.video.state_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adaptors", default=",".join(ADAPTORS))
    parser.add_argument("--steps", type=int, default=1200, help="of stage 2, per adaptor")
    parser.add_argument("--video-steps", type=int, default=300, help="of stage 1, once")
    parser.add_argument("--seed", type=int, default=0, help="of the start of stage 2")
    parser.add_argument("-o", "--output", type=Path, default=None)
    args = parser.parse_args()

    train_video, train_audio, _ = world(2000, seed=0)
    unseen = world(48, seed=1)
    results: dict[str, dict[str, float]] = {
        "truth": {"clean": f1(unseen[2], heard(unseen[1]))},
        "shuffled": {"clean": f1(unseen[2], heard(unseen[1].roll(1, 0)))},
    }
    if args.output and args.output.is_file():
        results |= json.loads(args.output.read_text())
    print(results, flush=True)
    audio = AudioTowerConfig(in_channels=CHANNELS, hidden_size=64, num_heads=2)
    tower = stage_1(args, audio, (train_video, train_audio))
    for name in args.adaptors.split(","):
        if name in results:
            continue
        torch.manual_seed(args.seed)
        model = DualDiT(ModelConfig(video=VIDEO, adaptor=ADAPTORS[name], audio=audio))
        model.video.load_state_dict(tower)
        start = time.process_time()
        train(model, args.steps, (train_video, train_audio), sound=True)
        spent = time.process_time() - start
        results[name] = {shown: score(model, unseen, shown) for shown in ("clean", "noised", "fresh", "once")}
        results[name] |= {"cpu_s": spent, "parameters": sum(p.numel() for p in model.adaptors.parameters())}
        print(name, {k: round(v, 3) for k, v in results[name].items()}, flush=True)
        if args.output:
            args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
