"""Encoding: batches that do not fit are halved and come out the same; less precision stays near full precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from syncflow.clock import Span
from syncflow.media import Clip
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.models.autoencoders.nano import (
    NanoAudioConfig,
    NanoVideoConfig,
    new_nano_audio_autoencoder,
    new_nano_video_autoencoder,
)
from syncflow.preprocess.config import BucketSize, PreprocessConfig
from syncflow.preprocess.encode import Encode
from syncflow.preprocess.plan import ClipPlan, Source
from syncflow.preprocess.work import Work, run_stage

BUCKET = BucketSize(64, 64, 8)
LATENTS = ("video_mean", "video_std", "audio_mean", "audio_std")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PreprocessConfig:
    folder = tmp_path_factory.mktemp("weights")
    new_nano_video_autoencoder(0, NanoVideoConfig(block_out_channels=(8, 8, 8, 8))).save_pretrained(folder / "video")
    new_nano_audio_autoencoder(0, NanoAudioConfig(decoder_channels=4)).save_pretrained(folder / "audio")
    return PreprocessConfig(
        video_autoencoder=AutoencoderSpec(kind="image", path=str(folder / "video")),
        audio_autoencoder=AutoencoderSpec(kind="oobleck", path=str(folder / "audio")),
        buckets=(BUCKET.name,),
    )


def clips(count: int, config: PreprocessConfig) -> list[Work]:
    rng = np.random.default_rng(0)
    works = []
    for k in range(count):
        span = Span(Fraction(0), BUCKET.num_frames / config.rate)
        samples = config.num_samples(BUCKET)
        frames = rng.integers(0, 255, (BUCKET.num_frames, BUCKET.height, BUCKET.width, 3), dtype=np.uint8)
        waveform = rng.uniform(-0.5, 0.5, samples).astype(np.float32)
        clip = Clip(span, config.rate, frames, len(frames), config.sample_rate, waveform, (0, samples), ())
        works.append(Work(ClipPlan(f"clip-{k}", Source(f"clip-{k}", ""), span, BUCKET.name), BUCKET, clip, f"clip {k}"))
    return works


def encode(stage: Encode, works: list[Work]) -> list[dict[str, Tensor]]:
    run_stage(stage, works, lambda ids: nullcontext(), {})
    assert [work.reject for work in works] == [None] * len(works)
    return [work.tensors for work in works]


def short_of_memory(encode: Callable[[Any], Any], fits: int, sizes: list[int]) -> Callable[[Any], Any]:
    """`encode` on a machine that holds a batch of `fits`; notes what it is asked for."""

    def limited(batch: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(batch)

    return limited


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same(
    config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Encode()
    stage.setup(config, "cpu")
    whole = encode(stage, clips(7, config))
    asked: dict[str, list[int]] = {"video": [], "audio": [], "text": []}
    networks: dict[str, Any] = {"video": stage.video, "audio": stage.audio, "text": stage.text}
    for name, network in networks.items():
        monkeypatch.setattr(network, "encode", short_of_memory(network.encode, 2, asked[name]))
    halved = encode(stage, clips(7, config))
    sizes = [7, 3, 1, 2, 4, 2, 2]
    assert asked == {"video": sizes, "audio": sizes, "text": sizes}
    for one, other in zip(whole, halved, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name].float(), other[name].float(), atol=2e-3, rtol=2e-3, msg=name)


def test_a_clip_that_does_not_fit_alone_is_dropped_and_the_others_are_kept(
    config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Encode()
    stage.setup(config.model_copy(update={"text": "online"}), "cpu")
    works = clips(3, config)
    works[1].decoded.waveform[:] = 0.9  # how the machine below knows it
    assert stage.audio is not None
    audio = stage.audio.encode

    def limited(waveforms: Tensor) -> Any:
        if (waveforms[:, 0] == 0.9).any():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")
        return audio(waveforms)

    monkeypatch.setattr(stage.audio, "encode", limited)
    run_stage(stage, works, lambda ids: nullcontext(), {})
    assert [work.reject is None for work in works] == [True, False, True]
    assert works[1].reject is not None
    assert (works[1].reject.reason, works[1].reject.stage) == ("failed", "encode")
    assert "out of memory" in works[1].reject.detail
    assert all(torch.isfinite(works[k].tensors[name]).all() for k in (0, 2) for name in LATENTS)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_mixed_precision_stays_near_full_precision(
    config: PreprocessConfig, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Encode()
    stage.setup(config, "cpu")
    full = encode(stage, clips(4, config))
    mixed = Encode()
    mixed.setup(config, device)
    # A CPU is not asked to by itself: bfloat16 is no faster there.
    monkeypatch.setattr(mixed, "_autocast", lambda: torch.autocast(device, torch.bfloat16))
    for one, other in zip(full, encode(mixed, clips(4, config)), strict=True):
        for name in (*LATENTS, "text"):
            assert one[name].dtype == other[name].dtype == torch.float16
            exact, near = one[name].float(), other[name].float()
            error = float((near - exact).norm() / exact.norm())
            assert 0 < error < 0.03, f"{name}: {error:.4f} of its size off"
