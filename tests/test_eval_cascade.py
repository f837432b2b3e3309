"""The baselines' commands of docs/evaluation.md, run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from syncflow import cli

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"


def commands() -> list[list[str]]:
    section = PAGE.read_text().split("## Baselines")[1].split("\n## ")[0]
    found = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert found
    return [shlex.split(line) for line in found[1].splitlines()]


@pytest.mark.slow
def test_cascade_and_its_rivals_stand_in_one_report(
    tiny_model_dir: Path, impacts_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a ball bounces\na drum is hit\n")
    (tmp_path / "ANY_FOLDER_OF_MP4").symlink_to(impacts_dir)
    names = {"MODEL": str(tiny_model_dir), "REAL": str(impacts_dir)}
    for program, *argv in commands():
        assert program == "syncflow"
        fast = ["--steps", "1"] if argv[0] == "generate" else ["--workers", "1", "--resamples", "20"]
        assert cli.main([names.get(word, word) for word in argv] + fast) == 0
    joint, cascade = (
        [json.loads(line) for line in (tmp_path / folder / "manifest.jsonl").read_text().splitlines()]
        for folder in ("joint", "v2a")
    )
    assert len(joint) == len(cascade) == 8
    assert {row["task"] for row in cascade} == {"video_to_audio"}
    assert {Path(row["video"]).name for row in cascade} == {row["uri"] for row in joint}
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    roles = {one["name"]: (one["role"], one["clips"]) for one in report["sets"]}
    assert roles["joint"] == roles["v2a"] == ("generated", 8)
    assert roles["joint, sound shuffled"] == roles["joint, sound of same caption"] == ("baseline", 8)
    assert roles["other"][0] == "generated"
    assert "reference" in {role for role, _ in roles.values()}


def test_a_row_without_its_video_is_said(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"caption": "a drum", "uri": "gone.mp4"}) + "\n")
    argv = ["--prompts", tmp_path / "manifest.jsonl", "--video", tmp_path, "-o", tmp_path / "out"]
    assert cli.main(["generate", *map(str, argv), "--checkpoint", str(tiny_model_dir)]) == 2
    assert "names no video" in capsys.readouterr().err
