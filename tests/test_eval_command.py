"""The command from folders to its three files, and on everything that can be wrong with a folder."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from syncflow.errors import UserError
from syncflow.eval.command import main
from syncflow.impacts import render_clip
from syncflow.media import write_mp4
from syncflow.tracker import TrackingConfig


class Recorder:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.files: list[str] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics |= metrics

    def params(self, values: Mapping[str, object]) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None:
        self.files.append(path.name)

    def close(self) -> None: ...


def run(*argv: object) -> Recorder:
    recorder = Recorder()

    def open_tracker(config: TrackingConfig, run_name: str, spool_dir: Path) -> Recorder:
        return recorder

    assert main([str(word) for word in argv], open_tracker) == 0
    return recorder


def results(folder: Path) -> dict[str, dict]:
    text = (folder / "metrics.json").read_text()
    assert "NaN" not in text
    page = re.sub('base64,[^"]+', "", (folder / "report.html").read_text())
    assert not re.search(r"\bnan\b|\binf\b", page, re.IGNORECASE)
    return {one["name"]: one for one in json.loads(text)["sets"]}


def copy_shifted(source: Path, out: Path, shift_ms: int, count: int) -> Path:
    """The first clips of rendered impacts, their sound shifted, with their manifest."""
    out.mkdir()
    rows = (source / "manifest.jsonl").read_text().splitlines()[:count]
    (out / "manifest.jsonl").write_text("\n".join(rows))
    for index, row in enumerate(map(json.loads, rows)):
        clip = render_clip(0, index)
        n = round(shift_ms * clip.sample_rate / 1000)
        sound = np.pad(clip.waveform, (max(n, 0), max(-n, 0)))[max(-n, 0) :][: len(clip.waveform)]
        write_mp4(out / row["uri"], clip.frames, clip.fps, sound, clip.sample_rate)
    return out


@pytest.fixture(scope="module")
def late(impacts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_shifted(impacts_dir, tmp_path_factory.mktemp("shifted") / "late", 120, 4)


@pytest.fixture(scope="module")
def judged(late: Path, impacts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    out = tmp_path_factory.mktemp("judged")
    return out, run("--generated", late, "--reference", impacts_dir, "-o", out, "--workers", 2)


def test_numbers_of_impacts_are_the_truth(judged: tuple[Path, Recorder]) -> None:
    out, recorder = judged
    sets = results(out)
    late, reference = sets["late"]["metrics"], list(sets.values())[-1]["metrics"]
    assert late["onset_offset"]["value"] == pytest.approx(120, abs=10)
    assert late["within_80ms"]["value"] < 0.5 < late["within_160ms"]["value"]
    assert reference["onset_offset"]["value"] == pytest.approx(0, abs=10)
    assert reference["onset_f1"]["value"] >= 0.95
    assert sets["late, sound shuffled"]["role"] == "baseline"
    assert recorder.metrics["late/onset_offset"] == late["onset_offset"]["value"]
    assert recorder.files == ["metrics.json", "clips.csv", "report.html"]
    for metric in (*late.values(), *reference.values()):
        assert metric["protocol"]["id"]
        assert metric["low"] <= metric["value"] <= metric["high"]


def test_report_stands_alone_and_rows_are_complete(judged: tuple[Path, Recorder]) -> None:
    out, _ = judged
    page = (out / "report.html").read_text()
    assert page.count("<video") == 4 + 12
    assert page.count("data:video/mp4;base64,") == 4 + 12
    assert 'class="join"' in page
    with (out / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 + 12
    assert {row["events"] for row in rows} == {"known"}


def test_workers_order_and_reruns_do_not_matter(judged: tuple[Path, Recorder], late: Path, tmp_path: Path) -> None:
    out, _ = judged
    renamed = tmp_path / "late"
    renamed.mkdir()
    for path in sorted(late.iterdir(), reverse=True):
        shutil.copyfile(path, renamed / path.name)
    run("--generated", renamed, "-o", tmp_path / "one", "--workers", 1)
    assert results(tmp_path / "one")["late"]["metrics"] == results(out)["late"]["metrics"]
    first = (tmp_path / "one" / "clips.csv").read_bytes()
    run("--generated", renamed, "-o", tmp_path / "one", "--workers", 2)
    assert (tmp_path / "one" / "clips.csv").read_bytes() == first


def test_comparison_with_earlier_numbers(judged: tuple[Path, Recorder], late: Path, tmp_path: Path) -> None:
    out, _ = judged
    metrics = json.loads((out / "metrics.json").read_text())
    run("--generated", late, "-o", out, "--against", out / "metrics.json")
    assert json.loads((out / "metrics.json").read_text())["against"]
    metrics["sets"][0]["metrics"]["av_align"]["protocol"]["fps"] = [25.0]
    (tmp_path / "other.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match=r"fps 16\.0 against 25\.0"):
        run("--generated", late, "-o", out, "--against", tmp_path / "other.json")


def test_nasty_clips_are_listed_and_the_rest_is_judged(nasty: Path, tmp_path: Path) -> None:
    run("--generated", nasty, "-o", tmp_path, "--metrics", "av_align,onset_offset,loudness,motion", "--workers", 2)
    (one,) = [s for s in results(tmp_path).values() if s["role"] == "generated"]
    failed = {failure["clip"]: failure["reason"] for failure in one["failed"]}
    assert failed["no_audio"] == "no_audio"
    assert {"truncated_no_moov", "zero_bytes"} <= set(failed)
    assert one["clips"] + len(failed) == 13
    assert "zero_bytes" in (tmp_path / "report.html").read_text()


def test_silent_and_static_clips_have_no_nan(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    clip = render_clip(1, 0)
    still = np.repeat(clip.frames[:1], len(clip.frames), axis=0)
    write_mp4(folder / "silent.mp4", clip.frames, clip.fps, np.zeros_like(clip.waveform), clip.sample_rate)
    write_mp4(folder / "static.mp4", still, clip.fps, clip.waveform, clip.sample_rate)
    write_mp4(folder / "both.mp4", still, clip.fps, np.zeros_like(clip.waveform), clip.sample_rate)
    run("--generated", folder, "-o", tmp_path / "out", "--workers", 1)
    metrics = results(tmp_path / "out")["odd"]["metrics"]
    assert "no clip has both visible motion and sound" in metrics["onset_offset"]["not_computed"]
    assert "notes" in metrics["loudness"]
    with (tmp_path / "out" / "clips.csv").open() as file:
        notes = {row["clip"]: row["notes"] for row in csv.DictReader(file)}
    assert "silent" in notes["silent"]
    assert "static" in notes["static"]


def test_metrics_without_weights_say_why(late: Path, tmp_path: Path) -> None:
    names = "fad_efficientat,clip_score,desync,javis_score"
    run("--generated", late, "--reference", late, "-o", tmp_path, "--metrics", names, "--weights", tmp_path / "none")
    metrics = results(tmp_path)["late"]["metrics"]
    assert all("not_computed" in metric for metric in metrics.values())
    assert "syncflow weights pull" in metrics["clip_score"]["not_computed"]


def test_distance_of_sounds_with_real_weights(late: Path, impacts_dir: Path, shared: Path, tmp_path: Path) -> None:
    names = "fad_efficientat,kl_efficientat,is_efficientat"
    arguments = (
        "--generated",
        late,
        "--reference",
        impacts_dir,
        "--metrics",
        names,
        "--weights",
        shared / "weights" / "mn04",
        "--workers",
        1,
    )
    run(*arguments, "-o", tmp_path)
    metrics = results(tmp_path)["late"]["metrics"]
    assert metrics["fad_efficientat"]["value"] > 0
    assert "fd_infinity" in metrics["fad_efficientat"]
    assert any("singular" in note for note in metrics["fad_efficientat"]["notes"])
    assert 0 <= metrics["kl_efficientat"]["value"] < 2
    assert metrics["is_efficientat"]["protocol"]["backbone"].startswith("efficientat-mn04:899a8c621706")
    run(*arguments, "-o", tmp_path)
    assert results(tmp_path)["late"]["metrics"] == metrics


def test_systems_side_by_side_under_names(late: Path, impacts_dir: Path, tmp_path: Path) -> None:
    """Two folders of one name get names; sets of other lengths are judged, and said not to be comparable."""
    folder = tmp_path / "late"
    folder.mkdir()
    for index in range(2):
        clip = render_clip(4, index, duration_s=Fraction(3))
        write_mp4(folder / f"other{index}.mp4", clip.frames, clip.fps, clip.waveform, clip.sample_rate)
    out = tmp_path / "out"
    run("--generated", f"ours={late}", folder, "--reference", impacts_dir, "-o", out, "--workers", 1)
    sets = results(out)
    assert {"ours", "late", "ours, sound shuffled", "late, sound shuffled"} <= set(sets)
    warnings = json.loads((out / "metrics.json").read_text())["warnings"]
    assert any("ours and late may not be compared" in warning and "duration" in warning for warning in warnings)
    assert any("no clip of late has a reference of the same name" in warning for warning in warnings)


def test_sound_of_the_same_caption_is_the_cascade(impacts_dir: Path, tmp_path: Path) -> None:
    """Where captions have several clips each: other sound of the same caption, which is not in time."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = [json.loads(row) for row in (impacts_dir / "manifest.jsonl").read_text().splitlines()[:5]]
    for row, caption in zip(rows, ("one", "one", "two", "two", "alone"), strict=True):
        row["caption"] = caption
        shutil.copyfile(impacts_dir / row["uri"], folder / row["uri"])
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run("--generated", folder, "-o", tmp_path / "out", "--workers", 1)
    sets = results(tmp_path / "out")
    blind = sets["pairs, sound of same caption"]
    assert blind["clips"] == 4
    assert blind["metrics"]["onset_f1"]["value"] < 0.7 < sets["pairs"]["metrics"]["onset_f1"]["value"]


def test_numbers_reach_mlflow(late: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    from syncflow.infra.tracking import open_tracker

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    out = tmp_path / "out"
    argv = ["--generated", str(late), "-o", str(out), "--workers", "1", "--tracking.uri", uri]
    assert main(argv, open_tracker) == 0
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'syncflow'")
    (found,) = client.search_runs([experiment.experiment_id])
    told = results(out)["late"]["metrics"]
    assert found.data.metrics["late/onset_offset"] == pytest.approx(told["onset_offset"]["value"])
    assert found.data.metrics["late/av_align"] == pytest.approx(told["av_align"]["value"])
    assert {"metrics.json", "clips.csv", "report.html"} <= {f.path for f in client.list_artifacts(found.info.run_id)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--generated", "nowhere"], "no such folder"),
        (["--generated", "empty"], "no video here"),
        (["--generated", "empty", "--metrics", "av_aligned"], "did you mean av_align"),
        (["--generated", "junk"], "none of its 1 videos can be judged"),
        (["--generated", "junk", "--captions", "none.csv"], "no such file"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.mp4").write_text("this is no video")
    with pytest.raises(UserError, match=message) as error:
        run(*arguments, "-o", tmp_path / "out")
    assert "\n" not in str(error.value)
