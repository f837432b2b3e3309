"""Validation: the same numbers every time, sound and videos that can be looked at, and no trace in the training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from train_data import ListTracker, train, write_autoencoders, write_dataset, write_stages

from syncflow.errors import UserError
from syncflow.eval.onset_offset import known_events
from syncflow.media import probe
from syncflow.train.history import read_history

LOOK = ["--validation.every", "4", "--validation.samples", "2", "--validation.sample-steps", "2"]
HOLD = ["--data.held-out", "3"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    return write_dataset(root / "set", autoencoders=write_autoencoders(root / "autoencoders"))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stages(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def looked(dataset: Path, stages: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ListTracker]:
    """All three stages, 8 steps each, with a validation after the fourth and the last."""
    out, tracker = tmp_path_factory.mktemp("runs"), ListTracker()
    args = ["--data.path", str(dataset), "--output", str(out), "--steps", "8", *HOLD, *LOOK]
    assert train([str(stages), *args], tracker) == 0
    return out, tracker


def found(output: Path) -> dict[int, dict[str, float]]:
    """Validation metrics by step."""
    rows = [row for row in read_history(output / "metrics.jsonl") if any(key.startswith("val/") for key in row)]
    return {int(row["step"]): row for row in rows}


def test_each_stage_shows_what_it_learns(looked: tuple[Path, ListTracker]) -> None:
    out, tracker = looked
    for stage, modalities, tasks in (
        ("1_video", ["video"], ["text_to_video"]),
        ("2_audio", ["audio"], ["stored", "video_to_audio"]),
        ("3_joint", ["video", "audio"], ["stored", "text_to_av", "video_to_audio"]),
    ):
        metrics = found(out / stage)
        assert sorted(metrics) == [4, 8]
        for row in metrics.values():
            losses = {key for key in row if key.startswith("val/loss/") and "/t" not in key}
            assert losses == {f"val/loss/{modality}" for modality in modalities}
            for modality in modalities:
                by_t = [row[f"val/loss/{modality}/t{t}"] for t in (0.1, 0.3, 0.5, 0.7, 0.9)]
                assert row[f"val/loss/{modality}"] == pytest.approx(sum(by_t) / 5)
        files = sorted((out / stage / "samples" / "step-00000008").iterdir())
        assert {path.stem.split("-")[-1] for path in files} == set(tasks)
        assert len(files) == 2 * len(tasks)
        assert set(files) <= set(tracker.artifacts)
        for path in files:
            info = probe(path)
            assert (info.width, info.height) == (64, 64)
            assert (info.audio is not None) == (stage != "1_video")
    assert math.isfinite(found(out / "3_joint")[8]["val/sync/stored/event_f1"])


def test_training_does_not_notice(
    looked: tuple[Path, ListTracker], dataset: Path, stages: Path, tmp_path: Path
) -> None:
    args = ["--data.path", str(dataset), "--output", str(tmp_path / "out"), "--steps", "8", *HOLD]
    assert train([str(stages), *args]) == 0
    for stage in ("1_video", "2_audio", "3_joint"):
        with_it, without = (root / stage / "model" / "model.safetensors" for root in (looked[0], tmp_path / "out"))
        ours, theirs = safetensors.torch.load_file(with_it), safetensors.torch.load_file(without)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()), stage


def test_the_same_weights_give_the_same_numbers(
    looked: tuple[Path, ListTracker], dataset: Path, stages: Path, tmp_path: Path
) -> None:
    """A learning rate of nearly 0, from the same model: two validations of one run agree, and those of a second run."""
    args = [str(stages / "3_joint.yaml"), "--init-from", str(looked[0] / "3_joint"), "--data.path", str(dataset)]
    args += ["--optimizer.lr", "1e-30", "--optimizer.weight-decay", "0", "--steps", "8", *HOLD, *LOOK]
    for seed in ("0", "0"):
        assert train([*args, "--output", str(tmp_path / "out"), "--seed", seed, "--steps", "8"]) == 0
        metrics = found(tmp_path / "out")
        assert {**metrics[4], "step": 0} == {**metrics[8], "step": 0}
    assert metrics[8]["val/loss/audio"] == found(looked[0] / "3_joint")[8]["val/loss/audio"]


def test_held_out_clips_are_never_trained_on(dataset: Path, stages: Path) -> None:
    from syncflow.train.config import load_stage
    from syncflow.train.loader import open_source, training_batches

    config = load_stage(stages / "1_video.yaml", ["--data.path", str(dataset), *HOLD])
    source = open_source(config)
    held = {shard.samples[place].id for _, shard, place in source.held_out}
    assert held == {"s0-b0-0021", "s0-b0-0022", "s0-b0-0023"}
    batches = training_batches(config.model_copy(update={"steps": 40}), source, 0, 1, 0)
    seen = {clip for step in batches for example in step for clip in example.ids}
    assert len(seen) == 21
    assert not seen & held


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (LOOK, r"validation needs clips that are not trained on: set data\.held_out to 2 or more"),
    ],
)
def test_nothing_to_look_at_is_refused(
    dataset: Path, stages: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    args = [str(stages / "1_video.yaml"), "--data.path", str(dataset), "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        train([*args, *flags])


def test_sync_metrics_of_known_events() -> None:
    from syncflow.train.validate import sync_metrics

    in_time = known_events([0.5, 1.0, 1.5], [0.5, 1.0, 1.5], 2.0)
    late = known_events([0.5, 1.0, 1.5], [0.6, 1.1, 1.6], 2.0)
    silent = known_events([0.5, 1.0, 1.5], [], 2.0)
    assert sync_metrics([in_time]) == pytest.approx({"event_f1": 1, "heard_per_seen": 1, "offset_ms": 0})
    assert sync_metrics([late]) == pytest.approx({"event_f1": 0, "heard_per_seen": 1, "offset_ms": 100})
    assert sync_metrics([in_time, silent]) == pytest.approx({"event_f1": 6 / 9, "heard_per_seen": 0.5, "offset_ms": 0})
    assert sync_metrics([known_events([], [], 2.0)]) == {}
