"""Real clips with sound through everything: autoencoders, shards, the three nano stages on two ranks, MLflow."""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from syncflow.cli import main
from syncflow.train.history import read_history

ROOT = Path(__file__).resolve().parent.parent
CLIPS = ["dog_beagle_bark", "drum_kit_man", "hammer_spoon", "chopping_cabbage", "tennis_child", "sewing_machine"]
CLIPS += ["keyboard_piano", "puppies_bark", "marimba", "tabla_boy", "anvil_hammer", "sheep_bleat"]
STEPS = 120
# Mean loss of the last quarter of steps, of the first quarter. Joint training begins where the others ended.
AT_MOST = {"1_video": 0.6, "2_audio": 0.8, "3_joint": 0.95}


def run(*command: str) -> None:
    ours = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SYNCFLOW_ALONE"}
    environment = {**{k: v for k, v in os.environ.items() if k not in ours}, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "syncflow", *command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_clips_are_learned_in_all_stages_and_mlflow_shows_it(develop: Path, tmp_path: Path) -> None:
    with (develop / "manifest.csv").open() as file:
        captions = {Path(row["file"]).stem: row["caption"] for row in csv.DictReader(file)}
    manifest = tmp_path / "manifest.csv"
    with manifest.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "caption"])
        writer.writerows([str(develop / f"{name}.mp4"), captions[name]] for name in CLIPS)
    configs, codecs, data, out = ROOT / "configs" / "nano", tmp_path / "codecs", tmp_path / "data", tmp_path / "out"
    tracking = ["--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    small = ["--clips", "36", "--video.steps", "40", "--audio.steps", "80"]
    autoencoders = str(configs / "0_autoencoders.yaml")
    run("train", autoencoders, "--input", str(manifest), "--output", str(codecs), *small, *tracking)
    paths = ["--video_autoencoder.path", str(codecs / "video"), "--audio_autoencoder.path", str(codecs / "audio")]
    preprocess = ["preprocess", str(configs / "preprocess.yaml"), "--input", str(manifest), "--output", str(data)]
    assert main([*preprocess, *paths, "--ray.workers", "0", *tracking]) == 0
    short = ["--steps", str(STEPS), "--optimizer.lr", "1e-3"]
    run("train", str(configs), "--data.path", str(data), "--output", str(out), *short, *tracking)

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    for stage, parts in (("1_video", ["video"]), ("2_audio", ["audio"]), ("3_joint", ["video", "audio"])):
        losses = [row["loss"] for row in read_history(out / stage / "metrics.jsonl") if "loss" in row]
        first, last = statistics.mean(losses[: STEPS // 4]), statistics.mean(losses[-STEPS // 4 :])
        print(f"{stage}: {first:.3f} -> {last:.3f}, {last / first:.2f} of its start")
        assert len(losses) == STEPS
        assert last < AT_MOST[stage] * first, stage
        [shown] = [run for run in runs if run.info.run_name == stage]
        for part in parts:
            curve = client.get_metric_history(shown.info.run_id, f"loss/{part}")
            assert sorted(m.step for m in curve) == list(range(1, STEPS + 1))
        assert [m.value for m in client.get_metric_history(shown.info.run_id, "loss")] == pytest.approx(losses)
        assert shown.data.tags["dataset.0"].startswith(str(data))
