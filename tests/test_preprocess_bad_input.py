"""Input that cannot be used: one clear line each, naming row and column, and the rest goes on."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from tiny import smallest_autoencoders

from syncflow.errors import UserError
from syncflow.preprocess import fetch
from syncflow.preprocess.config import PreprocessConfig
from syncflow.preprocess.run import ENOUGH, preprocess
from syncflow.samples import open_dataset


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PreprocessConfig:
    return PreprocessConfig(
        **smallest_autoencoders(tmp_path_factory.mktemp("weights")),
        text="online",
    )


@pytest.fixture
def nobody() -> str:
    """An address on this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_every_bad_row_is_one_line_and_the_good_ones_are_kept(
    config: PreprocessConfig,
    impacts_dir: Path,
    nobody: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fetch, "PAUSE_S", 0.01)
    good = sorted(map(str, impacts_dir.glob("*.mp4")))[:3]
    manifest = write(
        tmp_path / "list.jsonl",
        [
            {"uri": good[0], "id": "one"},
            {"uri": good[1], "start_s": "soon"},
            {"uri": good[1], "id": "one"},
            {"caption": "no file"},
            {"uri": good[1], "id": "two"},
            {"uri": f"{nobody}/clip.mp4", "id": "refused"},
            {"uri": "gone.mp4", "id": "gone"},
            {"uri": "nosuch://host/clip.mp4", "id": "what"},
            {"uri": good[2], "id": "three"},
        ],
    )
    out = tmp_path / "out"
    summary = preprocess(config, manifest, out, pool="inline")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dropped: ")]
    assert said == [
        f"dropped: row 2: column start_s: not a number of seconds: 'soon' ({good[1]})",
        f"dropped: row 3: column id: one was used above; the first is kept ({good[1]})",
        "dropped: row 4: column uri: empty (row-4)",
    ]
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(row["id"], row["stage"], row["reason"]) for row in rejects] == [
        ("row-2", "manifest", "bad_row"),
        ("one", "manifest", "duplicate_id"),
        ("row-4", "manifest", "bad_row"),
        ("refused", "probe", "unreachable"),
        ("gone", "probe", "not_found"),
        ("what", "probe", "unreachable"),
    ]
    assert all("\n" not in row["detail"] and row["detail"] for row in rejects)
    assert nobody in rejects[3]["source"]
    assert "nosuch" in rejects[5]["detail"]
    kept = [sample.record.provenance["source_id"] for sample in open_dataset(str(out))]
    assert kept == ["one", "two", "three"]
    assert (summary.card.read, summary.card.kept) == (9, 3)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_without_the_column_that_names_files_says_which_it_has(
    config: PreprocessConfig, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"list.{suffix}"
    if suffix == "csv":
        path.write_text("path,caption\na.mp4,hello\n")
    elif suffix == "jsonl":
        write(path, [{"path": "a.mp4", "caption": "hello"}])
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"path": "a.mp4", "caption": "hello"}]), path)
    with pytest.raises(UserError) as caught:
        preprocess(config, path, tmp_path / "out", pool="inline")
    assert (
        str(caught.value) == f"{path}: no column `uri` (or `file`) that names the videos; columns found: path, caption"
    )


def test_a_manifest_that_cannot_be_reached_is_one_line(config: PreprocessConfig, nobody: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be reached|no such file") as caught:
        preprocess(config, f"{nobody}/list.jsonl", tmp_path / "out", pool="inline")
    assert "\n" not in str(caught.value)
    assert nobody in str(caught.value)


def test_an_output_that_cannot_be_written_is_one_line(
    config: PreprocessConfig, impacts_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output .*file/out: cannot make this folder") as caught:
        preprocess(config, impacts_dir, tmp_path / "file" / "out", pool="inline")
    assert "\n" not in str(caught.value)


def test_a_job_whose_server_is_down_stops_long_before_its_end(
    config: PreprocessConfig, nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PAUSE_S", 0.0)
    rows = 10 * ENOUGH
    manifest = write(tmp_path / "list.jsonl", [{"uri": f"{nobody}/{k}.mp4"} for k in range(rows)])
    with pytest.raises(
        UserError, match=r"stopped: (\d+) of the first (\d+) clips cannot be used: .*unreachable"
    ) as stop:
        preprocess(config, manifest, tmp_path / "out", pool="inline")
    read = int(str(stop.value).split("the first ")[1].split()[0])
    assert ENOUGH <= read < 2 * ENOUGH
    assert "mend the input, or raise max_failed" in str(stop.value)
