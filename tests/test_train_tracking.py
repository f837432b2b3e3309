"""What a person sees of a training: MLflow's page, asked through its client; the metrics file; lines in a log."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from train_data import train, write_autoencoders, write_dataset, write_stages

from syncflow.infra.tracking import open_tracker
from syncflow.train.history import read_history

STEPS = 8


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short joint stage from a short video stage, on one rank, tracked for real."""
    from syncflow.train.command import main

    root = tmp_path_factory.mktemp("job")
    data = write_dataset(root / "set", autoencoders=write_autoencoders(root / "autoencoders"))
    configs = write_stages(root / "configs", log_every=2)
    common = ["--data.path", str(data), "--data.held-out", "2"]
    assert train([str(configs / "1_video.yaml"), *common, "--output", str(root / "1"), "--steps", "2"]) == 0
    joint = [str(configs / "3_joint.yaml"), *common, "--init-from", str(root / "1"), "--output", str(root / "3")]
    joint += ["--tracking.enabled", "--tracking.uri", f"sqlite:///{root}/mlflow.db", "--tracking.experiment", "test"]
    joint += ["--validation.every", "4", "--validation.samples", "1", "--validation.sample-steps", "2"]
    joint += ["--checkpoint.every", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("syncflow.train.stages.peak_flops", lambda ranks: 1e12)
        for steps in (5, STEPS):  # killed after the fifth step, with a checkpoint of the third
            assert main([*joint, "--steps", str(steps)], open_tracker) == 0
            if steps == 5:
                shutil.rmtree(root / "3" / "checkpoints" / "step-00000005")
                (root / "3" / "done.json").unlink()
    return root


def test_mlflow_shows_all_of_it(job: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{job}/mlflow.db")
    experiment = client.get_experiment_by_name("test")
    assert experiment
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "3_joint"
    assert run.info.status == "FINISHED"

    def steps(key: str) -> list[int]:
        return [metric.step for metric in client.get_metric_history(run.info.run_id, key)]

    for key in ("loss", "loss/video", "loss/audio"):
        assert steps(key) == list(range(1, STEPS + 1)), key
    every_2 = ["lr", "grad_norm", "grad_norm/video", "grad_norm/adaptors", "grad_norm/audio", "clips_per_s"]
    every_2 += ["tokens_per_s", "media_s_per_s", "step_s", "mfu", "data_wait_share", "memory_gb", "skipped_steps"]
    for key in every_2:
        assert set(steps(key)) >= {2, 4, 6, 8}, key
    for modality in ("video", "audio"):
        found = [t for t in range(4) if steps(f"loss/{modality}/t{t}")]
        assert len(found) >= 3, modality
        assert steps(f"val/loss/{modality}") == [4, 8]
        assert steps(f"val/loss/{modality}/t0.5") == [4, 8]
    assert steps("val/sync/stored/event_f1") == [4, 8]

    values = run.data.metrics
    assert values["grad_norm"] ** 2 == pytest.approx(
        sum(values[f"grad_norm/{part}"] ** 2 for part in ("video", "adaptors", "audio")), rel=0.05
    )
    assert 0 <= values["data_wait_share"] < 1
    assert 0 < values["mfu"] < 1
    assert values["clips_per_s"] * values["step_s"] == pytest.approx(4)
    assert values["media_s_per_s"] == pytest.approx(values["clips_per_s"] * 0.5)

    lineage = json.loads((job / "3" / "model" / "lineage.json").read_text())
    tags = run.data.tags
    assert tags["stage"] == "3_joint"
    assert tags["parent"] == str(job / "1" / "model")
    assert tags["parent_sha256"] == lineage["parent_sha256"]
    assert tags["dataset.0"] == f"{job / 'set'} {lineage['datasets'][str(job / 'set')]}"
    assert re.fullmatch(r"([0-9a-f]{40}(\+changes)?)?", tags["git_commit"])
    assert run.data.params["batch_size"] == "4"
    assert run.data.params["flow.audio_weight"] == "1.0"

    samples = client.list_artifacts(run.info.run_id, "samples/step-00000008")
    assert sorted(Path(item.path).name.split("-")[-1] for item in samples) == [
        "stored.mp4", "text_to_av.mp4", "video_to_audio.mp4"
    ]  # fmt: skip
    assert all(item.file_size for item in samples)


def test_metrics_cover_the_whole_stage_whatever_interrupted_it(job: Path) -> None:
    rows = read_history(job / "3" / "metrics.jsonl")
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    metrics = json.loads((job / "3" / "model" / "metrics.json").read_text())
    assert metrics["steps"] == STEPS
    assert metrics["loss_first"] == losses[1]
    assert metrics["loss_last"] == losses[STEPS]
    assert metrics["val/loss/audio"] == next(row["val/loss/audio"] for row in rows[::-1] if "val/loss/audio" in row)
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_a_torn_line_of_metrics_is_cut_off(tmp_path: Path) -> None:
    from syncflow.train.history import History

    path = tmp_path / "metrics.jsonl"
    history = History(path, 0)
    for step in (1, 2, 3):
        history.add(step, {"loss": 4.0 - step, "nan": math.nan})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    again = History(path, 2)
    again.add(3, {"loss": 0.5})
    assert read_history(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 0.5}]
    assert again.summary() == {"steps": 3, "loss_first": 3.0, "loss_last": 0.5}


def test_a_log_has_plain_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "set")
    args = [str(write_stages(tmp_path / "configs") / "1_video.yaml"), "--data.path", str(data), "--steps", "3"]
    assert train([*args, "--output", str(tmp_path / "log")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "step" in line]
    assert "1_video  step 3/3  loss video " in lines[-1]
    assert not any("\r" in line or "\x1b" in line for line in lines)

    monkeypatch.setattr("syncflow.train.report.is_terminal", lambda: True)
    assert train([*args, "--output", str(tmp_path / "terminal")]) == 0
    said = capsys.readouterr().err
    assert "\r\x1b[K1_video  step 3/3" in said
