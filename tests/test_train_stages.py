"""Stages in one process: what they train, freeze and hand on, how they resume, and what they refuse."""

from __future__ import annotations

import json
import math
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from train_data import TINY, ListTracker, read_losses, train, write_dataset, write_stages

from syncflow.errors import UserError
from syncflow.models.checkpoints import load_model
from syncflow.train.checkpoint import Saver
from syncflow.train.collate import MicroBatch
from syncflow.train.order import Pick


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stages(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def trained(dataset: Path, stages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three stages, 12 steps each, one process."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train([str(stages), "--data.path", str(dataset), "--output", str(out), "--steps", "12"]) == 0
    return out


def weights(output: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(output / "model" / "model.safetensors")


def test_stages_hand_on_what_they_do_not_train(trained: Path) -> None:
    video, audio, joint = (weights(trained / name) for name in ("1_video", "2_audio", "3_joint"))
    changed = {
        stage: {name.split(".")[0] for name in new if not torch.equal(old[name], new[name])}
        for stage, old, new in (("2_audio", video, audio), ("3_joint", audio, joint))
    }
    assert changed["2_audio"] == {"adaptors", "audio"}
    assert changed["3_joint"] == {"video", "adaptors", "audio"}


def test_outputs_are_model_directories_with_their_lineage(trained: Path, dataset: Path) -> None:
    model, card = load_model(trained / "3_joint" / "model")
    assert card.video_stats is not None
    assert card.video_stats.std == [0.9] * 4
    lineage = json.loads((trained / "3_joint" / "model" / "lineage.json").read_text())
    assert lineage["parent"] == str((trained / "2_audio" / "model").resolve())
    done = json.loads((trained / "2_audio" / "done.json").read_text())
    assert lineage["parent_sha256"] == done["sha256"]
    assert list(lineage["datasets"]) == [str(dataset)]
    assert sum(p.numel() for p in model.parameters()) > 1000


def test_losses_fall_and_are_logged_per_modality_and_quarter_of_t(trained: Path) -> None:
    for stage, modalities in (("1_video", ["video"]), ("2_audio", ["audio"]), ("3_joint", ["video", "audio"])):
        for modality in modalities:
            losses = read_losses(trained / stage, f"loss/{modality}")
            assert sorted(losses) == list(range(1, 13))
            assert all(math.isfinite(loss) for loss in losses.values())
            assert read_losses(trained / stage, f"loss/{modality}/t2")
        assert read_losses(trained / stage, "data_wait_share")
    first = read_losses(trained / "1_video", "loss/video")
    assert first[12] < first[1]


def test_a_finished_folder_is_left_alone(
    trained: Path, dataset: Path, stages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "3_joint" / "done.json").stat().st_mtime_ns
    assert train([str(stages), "--data.path", str(dataset), "--output", str(trained), "--steps", "12"]) == 0
    assert (trained / "3_joint" / "done.json").stat().st_mtime_ns == before
    assert "already done" in capsys.readouterr().err


def test_more_steps_go_on_from_the_end(trained: Path, dataset: Path, stages: Path, tmp_path: Path) -> None:
    out = tmp_path / "longer"
    shutil.copytree(trained / "1_video", out)
    args = [str(stages / "1_video.yaml"), "--data.path", str(dataset), "--output", str(out)]
    assert train([*args, "--steps", "15"]) == 0
    whole = tmp_path / "whole"
    assert train([*args[:-1], str(whole), "--steps", "15"]) == 0
    assert read_losses(out, "loss") == read_losses(whole, "loss")
    assert all(torch.equal(a, weights(whole)[name]) for name, a in weights(out).items())


def test_stage_3_begins_with_exactly_stage_2s_weights(
    trained: Path, dataset: Path, stages: Path, tmp_path: Path
) -> None:
    """A learning rate of nearly 0: what comes out is what went in."""
    out = tmp_path / "still"
    args = ["--data.path", str(dataset), "--output", str(out), "--steps", "1", "--optimizer.lr", "1e-30"]
    config = str(stages / "3_joint.yaml")
    assert train([config, *args, "--init-from", str(trained / "2_audio"), "--optimizer.weight-decay", "0"]) == 0
    assert all(torch.equal(tensor, weights(trained / "2_audio")[name]) for name, tensor in weights(out).items())


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_zero_stages_agree(trained: Path, dataset: Path, stages: Path, tmp_path: Path, zero_stage: int) -> None:
    out = tmp_path / "zero"
    args = ["--data.path", str(dataset), "--output", str(out), "--steps", "12"]
    assert train([str(stages / "1_video.yaml"), *args, "--engine.zero-stage", str(zero_stage)]) == 0
    ours, theirs = read_losses(out, "loss"), read_losses(trained / "1_video", "loss")
    assert all(abs(ours[step] - theirs[step]) < 1e-6 for step in theirs)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_an_offloaded_optimizer_trains_alike(
    trained: Path, dataset: Path, stages: Path, tmp_path: Path, zero_stage: int
) -> None:
    out = tmp_path / "offload"
    args = ["--data.path", str(dataset), "--output", str(out), "--engine.zero-stage", str(zero_stage)]
    assert train([str(stages / "1_video.yaml"), *args, "--steps", "12", "--engine.offload-optimizer"]) == 0
    ours, theirs = read_losses(out, "loss"), read_losses(trained / "1_video", "loss")
    assert all(abs(ours[step] - theirs[step]) < 1e-5 for step in theirs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_model_trains_alike(trained: Path, dataset: Path, stages: Path, tmp_path: Path) -> None:
    out = tmp_path / "compiled"
    args = ["--data.path", str(dataset), "--output", str(out), "--steps", "12", "--engine.compile"]
    assert train([str(stages / "1_video.yaml"), *args]) == 0
    ours, theirs = read_losses(out, "loss"), read_losses(trained / "1_video", "loss")
    assert all(abs(ours[step] - theirs[step]) < 1e-5 for step in theirs)


def test_bf16_and_activation_checkpointing_train_alike(
    trained: Path, dataset: Path, stages: Path, tmp_path: Path
) -> None:
    args = [str(stages / "3_joint.yaml"), "--data.path", str(dataset), "--init-from", str(trained / "2_audio")]
    for name, extra, tolerance in (
        ("recompute", ["--engine.activation-checkpointing", "--micro-batch", "2"], 1e-6),
        ("bf16", ["--engine.precision", "bf16"], 3e-2),
    ):
        out = tmp_path / name
        assert train([*args, "--output", str(out), "--steps", "12", *extra]) == 0
        ours, theirs = read_losses(out, "loss"), read_losses(trained / "3_joint", "loss")
        assert all(abs(ours[step] - theirs[step]) < tolerance for step in theirs), name


def test_bf16_resumes_bitwise(dataset: Path, stages: Path, tmp_path: Path) -> None:
    args = [str(stages / "1_video.yaml"), "--data.path", str(dataset), "--engine.precision", "bf16"]
    assert train([*args, "--output", str(tmp_path / "whole"), "--steps", "8"]) == 0
    for steps in ("4", "8"):
        assert train([*args, "--output", str(tmp_path / "parts"), "--steps", steps]) == 0
    parts = weights(tmp_path / "parts")
    assert all(torch.equal(tensor, parts[name]) for name, tensor in weights(tmp_path / "whole").items())


def test_several_data_sets_and_buckets_are_mixed(stages: Path, tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", buckets=2)
    two = write_dataset(tmp_path / "two", seed=1)
    text = (stages / "1_video.yaml").read_text()
    mixed = tmp_path / "1_mixed.yaml"
    mixed.write_text(
        text + f"\ndata:\n  workers: 1\n  datasets:\n  - {{path: {one}, weight: 2}}\n  - {{path: {two}}}\n"
    )
    assert train([str(mixed), "--output", str(tmp_path / "out"), "--steps", "6"]) == 0


def _scale_latents(monkeypatch: pytest.MonkeyPatch, factor: float, clips: str) -> None:
    """Clips whose id ends so come out of the loader with their video latents scaled."""
    from syncflow.train.loader import MicroBatches

    original = MicroBatches.build

    def scaled(self: MicroBatches, picks: list[Pick]) -> MicroBatch:
        batch = original(self, picks)
        mean = batch.tensors["video_mean"].float()
        for row, clip in zip(mean, batch.ids, strict=True):
            if clip.endswith(clips):
                row *= factor
        batch.tensors["video_mean"] = mean
        return batch

    monkeypatch.setattr(MicroBatches, "build", scaled)


def test_nan_latents_are_skipped_counted_and_named(
    dataset: Path, stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [str(stages / "1_video.yaml"), "--data.path", str(dataset)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        _scale_latents(monkeypatch, math.nan, "0003")
        assert train([*args, "--output", str(tmp_path / "skips"), "--steps", "12"]) == 0
    said = capsys.readouterr().err
    assert "skipped: the loss is not finite" in said
    assert "s0-b0-0003" in said
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "skips").values())

    with pytest.MonkeyPatch.context() as monkeypatch:
        _scale_latents(monkeypatch, math.nan, "")
        with pytest.raises(UserError, match=r"3 steps in a row were skipped up to step 3: .*of the last batch: s0-"):
            train([*args, "--output", str(tmp_path / "stops"), "--steps", "12", "--guard.max-skipped", "3"])


def test_a_spike_is_skipped(dataset: Path, stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _scale_latents(monkeypatch, 1e4, "0003")
    out = tmp_path / "spike"
    args = ["--data.path", str(dataset), "--output", str(out), "--steps", "30", "--optimizer.clip", "0"]
    assert train([str(stages / "1_video.yaml"), *args]) == 0
    assert read_losses(out, "skipped_steps")[30] >= 1


def test_a_checkpoint_is_of_its_step_however_long_copying_takes(
    dataset: Path, stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [str(stages / "1_video.yaml"), "--data.path", str(dataset), "--steps", "2"]
    args += ["--checkpoint.every", "1", "--checkpoint.keep", "5"]
    assert train([*args, "--output", str(tmp_path / "fast")]) == 0
    copy = Saver._copy

    def slow(self: Saver, values: dict[str, Tensor]) -> None:
        time.sleep(1)
        copy(self, values)

    monkeypatch.setattr(Saver, "_copy", slow)
    assert train([*args, "--output", str(tmp_path / "slow")]) == 0
    fast, late = (
        [path.read_bytes() for path in sorted((tmp_path / name / "checkpoints").glob("step-*/*.safetensors"))]
        for name in ("fast", "slow")
    )
    assert len(fast) == 2
    assert fast == late


def test_a_full_disk_loses_no_checkpoint(
    dataset: Path, stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on file sizes stands in for the full disk: the write fails in the same place, for real."""
    out = tmp_path / "out"
    args = ["--data.path", str(dataset), "--output", str(out), "--checkpoint.every", "2"]
    args.insert(0, str(stages / "1_video.yaml"))
    assert train([*args, "--steps", "4"]) == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"step-00000008 could not be saved.*make room and run the same command"):
            train([*args, "--steps", "8"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "training goes on, the checkpoint before is kept" in capsys.readouterr().err
    assert not list((out / "checkpoints").glob("*.wip"))
    assert (out / "checkpoints" / "step-00000004" / "checkpoint.json").exists()
    assert train([*args, "--steps", "8"]) == 0


def test_a_damaged_checkpoint_is_passed_over(
    dataset: Path, stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [str(stages / "1_video.yaml"), "--data.path", str(dataset), "--checkpoint.every", "2"]
    assert train([*args, "--output", str(tmp_path / "whole"), "--steps", "6"]) == 0
    out = tmp_path / "hurt"
    assert train([*args, "--output", str(out), "--steps", "4"]) == 0
    victim = out / "checkpoints" / "step-00000004" / "rank-00000.safetensors"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert train([*args, "--output", str(out), "--steps", "6"]) == 0
    said = capsys.readouterr().err
    assert "rank-00000.safetensors is damaged; it is passed over" in said
    assert "resumes at step 2" in said
    assert all(torch.equal(tensor, weights(out)[name]) for name, tensor in weights(tmp_path / "whole").items())


def _missing_shard(data: Path) -> None:
    next((data / "b0").glob("*.tar")).unlink()


def _damaged_shards(data: Path) -> None:
    for tar in (data / "b0").glob("*.tar"):
        tar.write_bytes(bytes(b ^ 1 if i % 1000 == 999 else b for i, b in enumerate(tar.read_bytes())))


def _cut_shards(data: Path) -> None:
    for tar in (data / "b0").glob("*.tar"):
        tar.write_bytes(tar.read_bytes()[:3000])


def _no_clips(data: Path) -> None:
    for marker in (data / "b0").glob("*.json"):
        marker.unlink()


def _no_card(data: Path) -> None:
    (data / "dataset.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing_shard, r"\.tar is missing: restore it"),
        (_damaged_shards, r"\.tar: s0-b0-\d+\.\w+ is damaged \(checksum\)"),
        (_cut_shards, r"is damaged \(checksum\)"),
        (_no_clips, r"holds no clips"),
        (_no_card, r"no dataset\.json here"),
    ],
)
def test_broken_data_is_one_line(
    dataset: Path, stages: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    data = tmp_path / "set"
    shutil.copytree(dataset, data)
    damage(data)
    with pytest.raises(UserError, match=message) as error:
        train([str(stages / "1_video.yaml"), "--data.path", str(data), "--output", str(tmp_path / "o"), "--steps", "6"])
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_refused(trained: Path, dataset: Path, stages: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", video_sha="ff")
    joint = [str(stages / "3_joint.yaml"), "--init-from", str(trained / "2_audio"), "--output", str(tmp_path / "o")]
    with pytest.raises(UserError, match=r"encoded by another video autoencoder than .*2_audio was trained on \(ff"):
        train([*joint, "--data.path", str(other)])
    with pytest.raises(UserError, match=r"video\.depth is 1 there, 3 here"):
        train([*joint, "--data.path", str(dataset), "--model.video.depth", "3"])
    with pytest.raises(UserError, match=r"has 4 video latent channels, model.video.in_channels is 5"):
        train([str(stages / "1_video.yaml"), "--data.path", str(dataset), "--output", str(tmp_path / "o"),
               "--model.video.in-channels", "5"])  # fmt: skip
    with pytest.raises(UserError, match=r"holds the checkpoints of another run \(batch_size: 4 there, 8 here\)"):
        train([str(stages / "1_video.yaml"), "--data.path", str(dataset), "--output", str(trained / "1_video"),
               "--batch-size", "8", "--steps", "20"])  # fmt: skip
    with pytest.raises(UserError, match=r"init_from .*: no model there"):
        train([*joint[:1], "--init-from", str(tmp_path), "--output", str(tmp_path / "o"), "--data.path", str(dataset)])


def test_the_tracker_is_told_of_lineage(dataset: Path, stages: Path, tmp_path: Path) -> None:
    tracker = ListTracker()
    args = [str(stages / "1_video.yaml"), "--data.path", str(dataset), "--output", str(tmp_path / "o"), "--steps", "3"]
    assert train(args, tracker) == 0
    assert tracker.tag_values["dataset.0"].startswith(str(dataset))
    assert tracker.param_values["optimizer.lr"] == TINY["optimizer"]["lr"]  # type: ignore[index]
    assert tracker.closed
