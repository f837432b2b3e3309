"""Still images are read as ffmpeg's decoders show them, upright, and by their own name."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from syncflow.clock import Span
from syncflow.media import decode_span, probe

TICK = Span(Fraction(0), Fraction(1, 16))


def corners(width: int = 64, height: int = 48) -> np.ndarray:
    """(H, W, 3): red on the upper left, blue on the lower right, else black."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (255, 0, 0)
    picture[height // 2 :, width // 2 :] = (0, 0, 255)
    return picture


def shown(path: Path) -> np.ndarray:
    """(H, W, 3) of the file's only frame, in its own size."""
    clip = decode_span(path, TICK, fps=Fraction(16), size=None, sample_rate=None)
    assert (clip.valid_frames, len(clip.frames), clip.decode_errors) == (1, 1, ())
    assert (clip.sample_rate, len(clip.waveform), clip.valid_samples) == (0, 0, (0, 0))
    return clip.frames[0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_kinds_and_modes(tmp_path: Path, suffix: str, mode: str) -> None:
    if (suffix, mode) in {("jpg", "P"), ("jpg", "RGBA"), ("webp", "P")}:
        pytest.skip("there is no such file")
    picture = Image.fromarray(corners()).convert(mode)
    picture.save(tmp_path / f"a.{suffix}", quality=98)
    info = probe(tmp_path / f"a.{suffix}")
    assert info.still
    assert info.audio is None
    assert (info.width, info.height) == (64, 48)
    assert np.abs(shown(tmp_path / f"a.{suffix}").astype(int) - np.asarray(picture.convert("RGB"))).mean() < 4


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    Image.fromarray(corners()).save(tmp_path / f"a.{suffix}", quality=98, exif=exif)
    info = probe(tmp_path / f"a.{suffix}")
    assert (info.width, info.height, info.rotation) == (48, 64, 90)
    assert np.abs(shown(tmp_path / f"a.{suffix}").astype(int) - np.rot90(corners(), -1)).mean() < 4


@pytest.mark.parametrize(
    "name", ["a%03d.png", "a%d.jpg", "a*.png", "a?.png", "a{1}.png", "-a.png", "a b\n.png", "%.png"]
)
def test_a_name_is_no_pattern(tmp_path: Path, name: str) -> None:
    for other in ("a001.png", "a1.jpg", "ab.png", "a1.png"):
        Image.fromarray(255 - corners()).save(tmp_path / other)
    Image.fromarray(corners()).save(tmp_path / name, quality=98)
    assert np.abs(shown(tmp_path / name).astype(int) - corners()).mean() < 4


def test_videos_are_no_stills(tmp_path: Path, impacts_dir: Path) -> None:
    assert not probe(next(impacts_dir.glob("*.mp4"))).still
    frames = [Image.fromarray(np.roll(corners(), k, axis=1)) for k in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    info = probe(tmp_path / "a.gif")
    assert not info.still
    assert info.duration_s == Fraction(4, 10)
