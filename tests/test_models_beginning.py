"""Clips that begin with given frames and sound; and where on the flow sampling spends its steps."""

from __future__ import annotations

import json
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from syncflow import cli
from syncflow.clock import Span, causal_grid
from syncflow.errors import UserError
from syncflow.media import decode_span, probe, read_sound, write_mp4
from syncflow.models.beginning import covered
from syncflow.models.flow import FlowConfig
from syncflow.models.pipeline import SyncFlowPipeline
from syncflow.models.sampler import time_grid


@pytest.fixture(scope="module")
def pipeline(tiny_model_dir: Path) -> SyncFlowPipeline:
    return SyncFlowPipeline.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def half_second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 frames at 16 fps with a tone."""
    path = tmp_path_factory.mktemp("given") / "half.mp4"
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    frames = np.stack([np.roll(np.broadcast_to(ramp[None, :, None], (64, 64, 3)), 5 * k, axis=1) for k in range(8)])
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000).astype(np.float32)
    write_mp4(path, frames, Fraction(16), tone, 16000)
    return path


def test_a_clip_begins_with_the_frames_and_the_sound_of_a_video(pipeline: SyncFlowPipeline, half_second: Path) -> None:
    (clip,) = pipeline("rain", beginning=half_second, steps=2, duration_s=1)
    given = decode_span(
        half_second, Span(Fraction(0), probe(half_second).duration_s), fps=Fraction(16), size=None, sample_rate=16000
    )
    pixels = torch.from_numpy(given.frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    autoencoder = pipeline.encoders.video
    coded = autoencoder.decode(autoencoder.encode(pixels).mean, 8)[0].permute(1, 2, 3, 0)
    shown = ((coded.clamp(-1, 1) + 1) * 127.5).numpy()
    assert np.abs(clip.frames[:8] - shown).max() <= 1
    assert np.abs(clip.frames[8:] - shown[-1]).mean() > 3

    sound = pipeline.encoders.audio
    heard = torch.from_numpy(given.waveform)[None]
    again = sound.decode(sound.encode(heard).mean, len(given.waveform))[0].numpy()[:4000]
    # Well before the end of what is given, where the network does not yet see what comes after.
    assert np.corrcoef(clip.waveform[:4000], again)[0, 1] > 0.99


def test_an_image_is_the_first_frame(pipeline: SyncFlowPipeline, tmp_path: Path) -> None:
    Image.fromarray(np.full((96, 96, 3), 200, dtype=np.uint8)).save(tmp_path / "first.png")
    (clip,) = pipeline("rain", beginning=tmp_path / "first.png", steps=1, duration_s=0.25)
    (free,) = pipeline("rain", steps=1, duration_s=0.25)
    assert clip.frames.shape == (4, 64, 64, 3)
    assert not np.array_equal(clip.frames[0], free.frames[0])


def test_sound_alone_is_continued(pipeline: SyncFlowPipeline, tmp_path: Path) -> None:
    """The beginning of the sound is the file's, through the autoencoder; the video and the rest are made."""
    noise = np.random.default_rng(0)
    stereo = (0.3 * noise.standard_normal((24000, 1)) * np.array([1.0, 0.5])).astype(np.float32)  # 0.5 s at 48 kHz
    with wave.open(str(tmp_path / "given.wav"), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(48000)
        out.writeframes(np.round(stereo * 32767).astype("<i2").tobytes())
    given = read_sound(tmp_path / "given.wav", 16000, Fraction(10))
    assert len(given) == 8000
    assert given.std() == pytest.approx(0.3 * 0.75 * (1 / 3) ** 0.5, rel=0.05)  # both channels, a third of the band
    assert len(read_sound(tmp_path / "given.wav", 16000, Fraction(1, 4))) == 4000
    (clip,) = pipeline("rain", beginning=tmp_path / "given.wav", steps=2, duration_s=1)
    (free,) = pipeline("rain", steps=2, duration_s=1)
    sound = pipeline.encoders.audio
    again = sound.decode(sound.encode(torch.from_numpy(given)[None]).mean, 8000)[0].numpy()[:4000]
    off = {name: np.linalg.norm(made.waveform[:4000] - again) for name, made in (("given", clip), ("free", free))}
    assert off["given"] < 0.1 * off["free"]
    assert np.array_equal(clip.frames, free.frames)  # nothing is told to the video tower
    with pytest.raises(UserError, match=r"as long as the clip.*nothing is left"):
        pipeline("rain", beginning=tmp_path / "given.wav", duration_s=0.25, steps=1)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "given.wav").read_bytes()[:44])
    with pytest.raises(UserError, match="no sound that can be decoded"):
        pipeline("rain", beginning=tmp_path / "cut.wav", duration_s=0.25, steps=1)


def test_only_whole_latents_are_given() -> None:
    grid = causal_grid(17, 4, Fraction(16))  # 1, 4, 4, 4, 4 frames
    assert covered(grid, Fraction(8, 16)).tolist() == [[True, True, False, False, False]]
    assert covered(grid, Fraction(9, 16)).tolist() == [[True, True, True, False, False]]


def test_beginnings_that_leave_nothing_to_make_are_refused(pipeline: SyncFlowPipeline, half_second: Path) -> None:
    with pytest.raises(UserError, match="nothing is left to be made"):
        pipeline("rain", beginning=half_second, duration_s=0.5, steps=1)
    with pytest.raises(UserError, match="one or the other"):
        pipeline("rain", beginning=half_second, video=half_second, steps=1)
    with pytest.raises(UserError, match="no such file"):
        pipeline("rain", beginning=half_second.with_name("none.png"), steps=1)


def test_sampling_spends_its_steps_where_the_model_was_trained(tiny_model_dir: Path) -> None:
    pipeline = SyncFlowPipeline.from_pretrained(tiny_model_dir)
    flow = FlowConfig(shift=True, base_pixels=64 * 64, base_frames=8)
    pipeline.card = pipeline.card.model_copy(update={"flow": flow})
    asked: list[float] = []
    pipeline.model.register_forward_pre_hook(lambda _, args: asked.append(float(args[2][0])))
    pipeline("rain", steps=3, size=(128, 128), duration_s=1, guidance=1)
    assert asked == pytest.approx(time_grid(3, 8**0.5)[:-1])  # 4 times the pixels, twice the frames
    assert asked[1] < 1 / 3


def test_command_begins_with_a_file(tiny_model_dir: Path, half_second: Path, tmp_path: Path) -> None:
    argv = ["generate", "rain", "--checkpoint", str(tiny_model_dir), "-o", str(tmp_path), "--steps", "1"]
    assert cli.main([*argv, "--begin-with", str(half_second), "--duration", "0.75"]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert row["task"] == "continuation"
    assert "after-half" in row["uri"]
