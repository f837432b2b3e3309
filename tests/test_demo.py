"""The whole path at its smallest: videos -> shards -> three stages -> clips -> report, killed on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from syncflow.cli import main
from syncflow.media import probe

pytestmark = pytest.mark.timeout(1500)  # the first test waits for the whole path, beside another test worker

SMALL = ["--clips", "8", "--video-autoencoder-steps", "6", "--audio-autoencoder-steps", "6"]
SMALL += ["--steps", "3", "--generate", "2", "--sampling-steps", "2"]


def run_demo(out: Path, *flags: str, kill_after_s: float | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "syncflow", "demo", "-o", str(out), *SMALL, *flags]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = demo.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        demo.send_signal(signal.SIGKILL)
        said, _ = demo.communicate()
    return subprocess.CompletedProcess(command, demo.returncode, said)


def outcome(out: Path) -> dict[str, bytes]:
    """What the demo made that must not depend on whether it was killed on the way."""
    weights = {path.parent.parent.name: path.read_bytes() for path in out.glob("train/*/model/model.safetensors")}
    clips = {path.name: path.read_bytes() for path in (out / "generated").glob("*.mp4")}
    return {**weights, **clips}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out put"  # paths with spaces must do
    done = run_demo(out)
    assert done.returncode == 0, done.stdout[-3000:]
    return out


def test_every_room_leaves_its_work(demo: Path) -> None:
    card = json.loads((demo / "dataset" / "dataset.json").read_text())
    assert card["kept"] + sum(card["rejected"].values()) == card["read"] == 8
    for stage in ("1_video", "2_audio", "3_joint"):
        assert (demo / "train" / stage / "model" / "model.safetensors").stat().st_size > 100_000
    rows = [json.loads(line) for line in (demo / "generated" / "manifest.jsonl").read_text().splitlines()]
    assert {row["task"] for row in rows} == {"text_to_av", "video_to_audio"}
    shapes = set()
    for row in rows:
        info = probe(demo / "generated" / row["uri"])
        assert info.audio is not None
        assert abs(info.duration_s - 2) < 0.1
        shapes.add((info.width, info.height))
    assert shapes == {(64, 64), (96, 64)}
    page = (demo / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") >= len(rows)
    assert page.count("<svg") == 3
    assert (demo / "evaluation" / "report.html").exists()


def test_a_second_run_reuses_what_is_done(demo: Path) -> None:
    before = outcome(demo)
    began = time.monotonic()
    again = run_demo(demo)
    assert again.returncode == 0
    assert again.stdout.count("done already") == 8
    assert time.monotonic() - began < 30
    assert outcome(demo) == before


def test_another_demo_in_the_same_folder_is_refused(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(demo), *SMALL, "--seed", "7"]) == 2
    assert "--seed 0, not 7" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_again_and_again_it_ends_the_same(demo: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    for _ in range(6):
        stopped = run_demo(tmp_path / "demo", kill_after_s=chance.uniform(10, 60))
        if stopped.returncode == 0:
            break
        assert stopped.returncode == -signal.SIGKILL, stopped.stdout[-3000:]
    finished = run_demo(tmp_path / "demo")
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert outcome(tmp_path / "demo") == outcome(demo)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_real_and_nasty_clips(develop: Path, nasty: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for folder in (develop, nasty):
        for path in folder.iterdir():
            if path.suffix in (".mp4", ".mkv"):
                os.symlink(path, videos / path.name)
    done = run_demo(tmp_path / "demo", "--videos", str(videos))
    assert done.returncode == 0, done.stdout[-3000:]
    rejects = [json.loads(line) for line in (tmp_path / "demo" / "dataset" / "rejects.jsonl").read_text().splitlines()]
    dropped = {Path(row["source"]).name: row["reason"] for row in rejects}
    assert {"no_audio.mp4", "zero_bytes.mp4", "truncated_no_moov.mp4", "very_short_0_3s.mp4"} <= set(dropped)
    card = json.loads((tmp_path / "demo" / "dataset" / "dataset.json").read_text())
    assert card["kept"] + len(rejects) == card["read"]
    for reason in set(dropped.values()):
        assert reason in done.stdout


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--videos", "/nowhere"], "/nowhere: no such file or folder"),
        (["--videos", "{empty}"], "the folder is empty"),
        (["--ranks", "two"], "Error parsing --ranks"),
        (["--cilps", "3"], "did you mean --clips"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    flags = [flag.replace("{empty}", str(tmp_path / "empty")) for flag in flags]
    assert main(["demo", "-o", str(tmp_path / "out"), *flags]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
