"""Folders of rendered clips: complete, resumable, never mixed; and the command's errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from syncflow.cli import main
from syncflow.clock import Span
from syncflow.errors import UserError
from syncflow.impacts import render, render_clip
from syncflow.media import decode_span, probe


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_the_manifest_says_what_the_files_hold(impacts_dir: Path) -> None:
    found = rows(impacts_dir)
    assert len(found) == 12
    for index, row in enumerate(found):
        clip = render_clip(0, index)
        assert row["uri"] == f"impact-s0-{index:05d}.mp4"
        assert row["id"] == clip.id
        assert row["events_s"] == clip.events_s == [event["time_s"] for event in row["events"]]
        assert (row["caption"], row["video_caption"], row["audio_caption"], row["label"]) == (
            clip.caption,
            clip.video_caption,
            clip.audio_caption,
            clip.label,
        )
    for row in found[:4]:
        clip = render_clip(0, int(row["id"][-5:]))
        info = probe(impacts_dir / row["uri"])
        assert (info.width, info.height, info.rate, info.duration_s) == (64, 64, 16, 2)
        read = decode_span(info, Span(Fraction(0), Fraction(2)), fps=Fraction(16), size=None, sample_rate=16000)
        assert (read.valid_frames, read.valid_samples, read.decode_errors) == (32, (0, 32000), ())
        assert np.abs(read.frames.astype(int) - clip.frames).mean() < 6
        correlation = np.correlate(read.waveform[:16000], clip.waveform[100:15900])
        assert int(np.argmax(correlation)) == 100
    assert not [p for p in impacts_dir.iterdir() if p.name.startswith(".")]


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    render(3, tmp_path, seed=1, processes=1)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.mp4")}
    (tmp_path / "impact-s1-00001.mp4").unlink()
    render(5, tmp_path, seed=1, processes=1)
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.mp4")}
    assert len(after) == len(rows(tmp_path)) == 5
    assert after["impact-s1-00000.mp4"] == before["impact-s1-00000.mp4"]
    assert after["impact-s1-00001.mp4"] != before["impact-s1-00001.mp4"]
    with pytest.raises(UserError, match=r"seed 1 and not 2.*another folder"):
        render(3, tmp_path, seed=2)
    with pytest.raises(UserError, match="fps '16' and not '25'"):
        render(3, tmp_path, seed=1, fps=Fraction(25))


@pytest.mark.parametrize("container", ["mkv", "webm", "ts"])
def test_containers_and_rates(tmp_path: Path, container: str) -> None:
    fps = Fraction(24000, 1001)
    render(
        2,
        tmp_path,
        size=(80, 48),
        fps=fps,
        duration_s=Fraction(1),
        sample_rate=48000,
        container=container,  # type: ignore[arg-type]
        processes=1,
    )
    for row in rows(tmp_path):
        info = probe(tmp_path / row["uri"])
        assert (info.width, info.height) == (80, 48)
        assert info.audio is not None
        read = decode_span(
            info, Span(Fraction(0), Fraction(1)), fps=Fraction(24000, 1001), size=None, sample_rate=48000
        )
        true = render_clip(
            0, int(row["id"][-5:]), size=(80, 48), fps=Fraction(24000, 1001), duration_s=Fraction(1), sample_rate=48000
        )
        assert (read.valid_frames, read.decode_errors) == (24, ())
        lag = int(np.argmax(np.correlate(read.waveform, true.waveform[500:-500]))) - 500
        assert abs(lag) <= 48  # 1 ms


def test_killed_and_started_again_it_ends_the_same(tmp_path: Path) -> None:
    words = ["-m", "syncflow", "impacts", "render", "8", "-o", str(tmp_path / "a"), "--processes", "2"]
    command = [sys.executable, *words]
    child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    for _ in range(400):
        if len(list((tmp_path / "a").glob("*.mp4"))) >= 2:
            break
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    left = len(list((tmp_path / "a").glob("*.mp4")))
    assert left >= 2
    assert left < 8
    subprocess.run(command, check=True, capture_output=True)
    render(8, tmp_path / "b", processes=1)
    assert (tmp_path / "a" / "manifest.jsonl").read_bytes() == (tmp_path / "b" / "manifest.jsonl").read_bytes()
    for row in rows(tmp_path / "a"):
        assert (tmp_path / "a" / row["uri"]).read_bytes() == (tmp_path / "b" / row["uri"]).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["render", "2", "-o", "{out}", "--size", "64"], "WIDTHxHEIGHT"),
        (["render", "2", "-o", "{out}", "--size", "4x4"], "between 16 and 4096"),
        (["render", "2", "-o", "{out}", "--fps", "fast"], "not a rate"),
        (["render", "2", "-o", "{out}", "--duration", "0.1"], "between 0.25 and 600"),
        (["render", "2", "-o", "{out}", "--duration", "soon"], "duration"),
        (["render", "0", "-o", "{out}"], "at least 1"),
        (["render", "2", "-o", "{file}"], "cannot be written"),
        (["paint", "2"], "no action 'paint'"),
    ],
)
def test_mistakes_are_one_clear_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    places = {"out": str(tmp_path / "out"), "file": str(tmp_path / "file")}
    assert main(["impacts", *(word.format(**places) for word in arguments)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("syncflow impacts: error: ")
    assert message.count("\n") == 1
    assert said in message
    assert not list(tmp_path.glob("out/*.mp4"))


def test_the_command_renders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["impacts", "render", "2", "-o", str(tmp_path), "--seed", "4", "--size", "48x32", "--fps", "23.976"]
    assert main([*arguments, "--duration", "1/2", "--sample_rate", "22050", "--processes", "1"]) == 0
    assert "2 clips" in capsys.readouterr().out
    info = probe(tmp_path / "impact-s4-00001.mp4")
    assert (info.width, info.height, info.rate) == (48, 32, Fraction(24000, 1001))
    assert info.audio is not None
    assert info.audio.sample_rate == 22050
    with pytest.raises(SystemExit) as caught:
        main(["impacts", "render", "--help"])
    assert caught.value.code == 0
    assert "WIDTHxHEIGHT" in capsys.readouterr().out
