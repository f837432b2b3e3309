"""Truth in milliseconds, stage by stage: source -> decode -> cut -> shard -> back, with nothing lost in between.

The autoencoders of this test keep every pixel and sample, so what a shard gives back is what was cut.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from exact import exact_autoencoders, frames_of, specs, waveform_of
from test_core_sync_truth import CONTAINERS, DURATION_S, INDEX, RATES, SAMPLE_RATE, SEED, SIZE, lag_ms, read_stamp
from test_core_sync_truth import write_master as write_stamped

from syncflow.impacts import render_clip
from syncflow.media import ffmpeg_path
from syncflow.preprocess.config import PreprocessConfig, SplitConfig
from syncflow.preprocess.run import preprocess
from syncflow.samples import StoredSample, open_dataset

FPS = Fraction(16)


@pytest.fixture(scope="module", autouse=True)
def exact() -> Iterator[None]:
    with exact_autoencoders():
        yield


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], np.ndarray, list[StoredSample]]:
    """Frame times by source, the true sound, and the stored clips of every rate in every container, sound late."""
    folder = tmp_path_factory.mktemp("truth")
    clips = folder / "clips"
    clips.mkdir()
    waveform = render_clip(
        SEED, INDEX, size=(16, 16), fps=Fraction(1), duration_s=DURATION_S, sample_rate=SAMPLE_RATE
    ).waveform
    times: dict[str, np.ndarray] = {}
    for rate in RATES:
        master = folder / f"{rate}.mp4"
        master_times = write_stamped(master, rate, waveform)
        for container in CONTAINERS:
            name = f"{rate.replace('.', '_')}-{container}"
            times[name] = master_times
            codecs = ["-c", "copy"]
            if container == "webm":
                codecs = ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libopus"]
                codecs += ["-fps_mode", "passthrough", "-enc_time_base:v", "1/1000", "-b:v", "800k"]
            inputs = ["-i", str(master), "-itsoffset", "0.5", "-i", str(master), "-map", "0:v", "-map", "1:a"]
            target = clips / f"{name}.{container}"
            subprocess.run([ffmpeg_path(), "-nostdin", "-v", "error", *inputs, *codecs, str(target)], check=True)
    config = PreprocessConfig(
        **specs(folder),
        text="online",
        buckets=(f"{SIZE[0]}x{SIZE[1]}x32",),
        sample_rate=SAMPLE_RATE,
        split=SplitConfig(stride_s=3.1),  # off the grid of frames: cuts are snapped to it
    )
    preprocess(config, clips, folder / "dataset", pool="inline")
    return times, waveform, list(open_dataset(str(folder / "dataset")))


def test_every_source_gave_its_clips(truth: tuple[dict[str, np.ndarray], np.ndarray, list[StoredSample]]) -> None:
    times, _, samples = truth
    starts = {name: [s.record.start_s for s in samples if s.record.provenance["source_id"] == name] for name in times}
    for name, found in starts.items():
        assert found == [Fraction(0), Fraction(50, 16), Fraction(100, 16)], name


def test_sound_comes_back_within_a_millisecond(
    truth: tuple[dict[str, np.ndarray], np.ndarray, list[StoredSample]],
) -> None:
    _, waveform, samples = truth
    for sample in samples:
        record = sample.record
        found = waveform_of(sample)
        true = np.zeros(len(found))
        first = round((float(record.start_s) - 0.5) * SAMPLE_RATE)
        part = waveform[max(0, first) : first + len(true)]
        true[max(0, -first) : max(0, -first) + len(part)] = part
        assert abs(lag_ms(found, true)) < 1, record.id
        silent = max(0, -first)
        assert record.valid_samples[0] == pytest.approx(silent, abs=0.025 * SAMPLE_RATE), record.id
        assert not found[: record.valid_samples[0]].any(), "silence before the sound begins is not invented"


def test_pictures_come_back_within_half_a_frame(
    truth: tuple[dict[str, np.ndarray], np.ndarray, list[StoredSample]],
) -> None:
    times, _, samples = truth
    for sample in samples:
        record = sample.record
        frame_times = times[record.provenance["source_id"]]
        pixels = frames_of(sample)
        assert record.valid_frames == len(pixels) == 32
        middles = sample.tensors["video_time_s"][:, 0].double().numpy() + float(record.start_s)
        for frame, tick_s in zip(pixels, middles, strict=True):
            shown_s = frame_times[read_stamp(frame)]
            nearest_s = frame_times[np.abs(frame_times - tick_s).argmin()]
            on_screen_s = frame_times[np.searchsorted(frame_times, tick_s + 0.001, side="right") - 1]
            half_s = 0.5 / float(FPS)
            # The nearest frame, which is within half a frame; in a longer pause of the picture the one on screen.
            assert abs(shown_s - tick_s) <= max(half_s, abs(nearest_s - tick_s)) + 0.003 or shown_s == on_screen_s
