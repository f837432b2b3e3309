"""Real clips: what a shard holds is in sync with its original, as the ffmpeg command line decodes it on its own.

Letters: N frames of the source, T frames and L samples of a clip, H x W pixels.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from exact import SAMPLE_RATE, exact_autoencoders, frames_of, specs, waveform_of
from test_core_sync_truth import lag_ms

from syncflow.media import ffmpeg_path
from syncflow.preprocess.config import PreprocessConfig, SplitConfig
from syncflow.preprocess.run import preprocess
from syncflow.samples import StoredSample, open_dataset

WIDTH, HEIGHT, FRAMES, FPS = 64, 48, 32, Fraction(16)
ALIKE = 0.5  # mean grey levels: as near to a frame as another picture may be to count as it


@dataclass(frozen=True)
class Original:
    """A source, decoded by the ffmpeg command line; times from its first frame."""

    times_s: np.ndarray  # (N,)
    frames: np.ndarray  # (N, H, W, 3)
    waveform: np.ndarray  # from the first frame on


def original(path: str) -> Original:
    command = [ffmpeg_path(), "-nostdin", "-hide_banner", "-copyts", "-i", path]
    picture = ["-map", "0:v:0", "-vf", f"showinfo,scale={WIDTH}:{HEIGHT}:flags=bicubic", "-fps_mode", "passthrough"]
    seen = subprocess.run([*command, *picture, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True)
    times_s = np.array([float(t) for t in re.findall(rb"pts_time:([-\d.]+)", seen.stderr)])
    frames = np.frombuffer(seen.stdout, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    assert len(frames) == len(times_s) > 0
    # Timestamps count: one of the clips has a gap of 36 ms in its sound, which ffmpeg closes unless told otherwise.
    sound = [
        "-map",
        "0:a:0",
        "-af",
        "aresample=async=1:first_pts=0:min_hard_comp=0.02",
        "-ac",
        "1",
        "-ar",
        str(SAMPLE_RATE),
    ]
    heard = subprocess.run([*command, *sound, "-f", "f32le", "-"], capture_output=True)
    waveform = np.frombuffer(heard.stdout, np.float32)
    return Original(times_s - times_s[0], frames, waveform[round(times_s[0] * SAMPLE_RATE) :])


def check_sound(sample: StoredSample, source: Original) -> bool:
    """Whether there was anything to hear."""
    first = round(float(sample.record.start_s) * SAMPLE_RATE)
    true = source.waveform[first : first + sample.record.num_samples]
    found = waveform_of(sample)[: len(true)]
    if np.abs(true).max() < 1e-3:
        return False
    assert abs(lag_ms(found, true)) < 1, sample.record.id
    # How far apart was judged above; this asks whether it is the same sound.
    fits = [
        np.corrcoef(np.roll(found, shift), true)[0, 1] for shift in range(-SAMPLE_RATE // 1000, SAMPLE_RATE // 1000)
    ]
    assert max(fits) > 0.95, sample.record.id
    return True


def check_pictures(sample: StoredSample, source: Original) -> int:
    """Of how many frames the time can be told from the picture alone."""
    half_s = max(0.5 / float(FPS), 0.5 * float(np.median(np.diff(source.times_s)))) + 0.002
    told = 0
    for k, frame in enumerate(frames_of(sample)[: sample.record.valid_frames]):
        tick_s = float(sample.record.start_s + k / FPS)
        unlike = np.abs(source.frames - frame).mean((1, 2, 3))  # (N,)
        alike = np.flatnonzero(unlike <= unlike.min() + ALIKE)
        assert unlike.min() < 2 * ALIKE, f"{sample.record.id}: frame {k} is none of the source's"
        assert np.abs(source.times_s[alike] - tick_s).min() <= half_s, f"{sample.record.id}: frame {k}"
        told += np.abs(source.times_s[alike] - tick_s).max() < 0.2
    return told


def check(clips: list[Path], folder: Path) -> None:
    """Three clips of each source, the last after a seek, against the source."""
    (folder / "clips").mkdir()
    for path in clips:
        (folder / "clips" / path.name).symlink_to(path.resolve())
    config = PreprocessConfig(
        **specs(folder),
        text="online",
        buckets=(f"{WIDTH}x{HEIGHT}x{FRAMES}",),
        fit="stretch",
        sample_rate=SAMPLE_RATE,
        split=SplitConfig(stride_s=3.1, max_clips=3),
    )
    with exact_autoencoders():
        summary = preprocess(config, folder / "clips", folder / "dataset", pool="inline")
    assert summary.card.kept == summary.card.read >= len(clips)
    originals: dict[str, Original] = {}
    frames = told = heard = 0
    for sample in open_dataset(str(folder / "dataset")):
        source = sample.record.source
        if source not in originals:
            originals = {source: original(source)}
        heard += check_sound(sample, originals[source])
        told += check_pictures(sample, originals[source])
        frames += sample.record.valid_frames
    assert heard >= 0.9 * summary.card.kept
    assert told >= 0.5 * frames, "most pictures are distinct enough to say when they are shown"


def test_real_clips_come_back_in_sync(develop: Path, tmp_path: Path) -> None:
    check(sorted(develop.glob("*.mp4"))[::5], tmp_path)


@pytest.mark.slow
def test_every_real_clip_comes_back_in_sync(develop: Path, tmp_path: Path) -> None:
    clips = sorted(develop.glob("*.mp4"))
    assert len(clips) == 40
    check([clip for k, clip in enumerate(clips) if k % 5], tmp_path)
