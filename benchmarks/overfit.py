"""Can the nano model learn a handful of real clips by heart from their captions?

    python benchmarks/overfit.py CLIPS [-n 4] [--steps 600] [-o overfit.json]

CLIPS holds videos with sound and manifest.csv (columns file and caption). Pictures are coded by a nano autoencoder at
its starting point, the principal components of these clips' own 8 × 8 pixels, and sound by an untrained nano
autoencoder, of which only the latents count here. The model is trained on both losses, then asked for each caption.
What it makes is compared with the clip of the caption and with the other clips.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from syncflow.clock import Span, uniform_grid
from syncflow.media import decode_span
from syncflow.models.autoencoders import (
    AudioAutoencoder,
    AutoencoderSpec,
    VideoAutoencoder,
    load_audio_autoencoder,
    load_video_autoencoder,
)
from syncflow.models.autoencoders.nano import new_nano_audio_autoencoder, new_nano_video_autoencoder
from syncflow.models.d_dit import DualDiT
from syncflow.models.flow import flow_loss, interpolate, target_velocity
from syncflow.models.generation import generate_joint, make_setting, pad_text
from syncflow.models.guidance import Guidance
from syncflow.models.sampler import time_grid
from syncflow.models.sizes import SIZES
from syncflow.models.text import TextEncoderSpec, load_text_encoder
from syncflow.train.autoencoder_start import start_as_components

FPS, SECONDS, SIDE, SAMPLE_RATE = Fraction(8), 2, 64, 16000


def read_clips(folder: Path, n: int) -> tuple[list[str], Tensor, Tensor]:
    """Captions, frames (n, 3, T, 64, 64) in [-1, 1] and waveforms (n, L) of n clips spread over the manifest."""
    with (folder / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows = rows[:: max(1, len(rows) // n)][:n]
    clips = [
        decode_span(folder / row["file"], Span(Fraction(1), Fraction(1 + SECONDS)), fps=FPS, size=(SIDE, SIDE),
                    sample_rate=SAMPLE_RATE)
        for row in rows
    ]  # fmt: skip
    frames = torch.stack([torch.from_numpy(clip.frames).permute(3, 0, 1, 2) for clip in clips]) / 127.5 - 1
    return [row["caption"] for row in rows], frames, torch.stack([torch.from_numpy(clip.waveform) for clip in clips])


def autoencoders(frames: Tensor, folder: Path) -> tuple[VideoAutoencoder, AudioAutoencoder]:
    picture = new_nano_video_autoencoder(0)
    start_as_components(picture, pixel_unshuffle(frames.transpose(1, 2).flatten(0, 1), 8))
    picture.save_pretrained(folder / "video")
    new_nano_audio_autoencoder(0).save_pretrained(folder / "audio")
    return (
        load_video_autoencoder(AutoencoderSpec(kind="image", path=str(folder / "video"))),
        load_audio_autoencoder(AutoencoderSpec(kind="oobleck", path=str(folder / "audio"))),
    )


def standardised(z: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 per channel, (n, C, …)."""
    axes = (0, *range(2, z.dim()))
    return (z - z.mean(axes, keepdim=True)) / z.std(axes, keepdim=True)


def train(model: DualDiT, data: dict[str, Tensor], about: dict[str, Tensor], steps: int) -> list[float]:
    """The loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 20, (steps - s) / (0.3 * steps)))
    g = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        t = torch.rand(len(data["video"]), generator=g)
        noise = {name: torch.randn(z.shape, generator=g) for name, z in data.items()}
        out = model(*(interpolate(noise[name], z, t) for name, z in data.items()), t, **about)
        loss = sum(
            flow_loss(getattr(out, name), target_velocity(noise[name], z)).mean() for name, z in data.items()
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def psnr_db(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(4 / (a.clamp(-1, 1) - b).square().mean()))


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def run(folder: Path, n: int, steps: int) -> dict[str, object]:
    captions, frames, waveforms = read_clips(folder, n)
    with tempfile.TemporaryDirectory() as scratch:
        picture, sound = autoencoders(frames, Path(scratch))
    coded = picture.encode(frames).mean
    mean, std = (getattr(coded, of)((0, 2, 3, 4), keepdim=True) for of in ("mean", "std"))
    data = {"video": (coded - mean) / std, "audio": standardised(sound.encode(waveforms).mean)}
    encoder = load_text_encoder(TextEncoderSpec())
    texts = encoder.encode(captions)
    text, text_mask = pad_text(texts)
    grids = (uniform_grid(SECONDS * 8, 1, FPS), sound.grid(waveforms.shape[1]))
    times = [torch.from_numpy(grid.array()).expand(n, -1, -1) for grid in grids]
    where = {"fps": torch.full((n,), float(FPS)), "size": torch.full((n, 2), float(SIDE))}
    torch.manual_seed(0)
    model = DualDiT(SIZES["nano"])
    start = time.process_time()
    about = {"text": text, "text_mask": text_mask, "video_time_s": times[0], "audio_time_s": times[1], **where}
    losses = train(model, data, about, steps)
    spent_s = time.process_time() - start
    model.eval()
    setting = make_setting(model, texts, *times, **where)
    g = torch.Generator().manual_seed(7)
    noise = tuple(torch.randn(z.shape, generator=g) for z in data.values())
    made, heard = generate_joint(model, setting, noise, time_grid(20), guidance=Guidance(video=1, audio=1))
    decoded = picture.decode(made * std + mean, frames.shape[2])
    exact = picture.decode(coded, frames.shape[2])
    tenth = max(1, steps // 10)
    first, last = (sum(part) / len(part) for part in (losses[: max(1, tenth // 6)], losses[-tenth:]))
    return {
        "captions": captions,
        "steps": steps,
        "cpu_s": round(spent_s),
        "loss_first": first,
        "loss_last": last,
        "factor": first / last,
        "psnr_db": [[psnr_db(decoded[i], frames[j]) for j in range(n)] for i in range(n)],
        "psnr_of_autoencoder_db": [psnr_db(exact[i], frames[i]) for i in range(n)],
        "video_correlation": [[correlation(made[i], data["video"][j]) for j in range(n)] for i in range(n)],
        "audio_correlation": [[correlation(heard[i], data["audio"][j]) for j in range(n)] for i in range(n)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("-n", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("-o", "--output", type=Path, default=None)
    args = parser.parse_args()
    found = run(args.clips, args.n, args.steps)
    for name, value in found.items():
        print(f"{name}: {value}" if not isinstance(value, list) or isinstance(value[0], str) else f"{name}:")
        if isinstance(value, list) and not isinstance(value[0], str):
            for row in value:
                print("   ", " ".join(f"{v:7.2f}" for v in (row if isinstance(row, list) else [row])))
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
