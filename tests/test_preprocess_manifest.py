"""Reading what is to be processed, and the plan that follows from it."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from syncflow.clock import Span
from syncflow.errors import UserError
from syncflow.preprocess.manifest import read_manifest
from syncflow.preprocess.plan import (
    ClipPlan,
    Source,
    Surveyed,
    clip_id,
    parse_source,
    parse_survey,
    safe_id,
    shard_units,
    source_line,
    survey_json,
    survey_units,
)
from syncflow.samples import Reject


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def split(location: Path | str) -> tuple[list[Source], list[Reject]]:
    items = list(read_manifest(str(location)))
    return [i for i in items if isinstance(i, Source)], [i for i in items if isinstance(i, Reject)]


def test_a_folder_is_searched_to_the_bottom_in_a_fixed_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a/z.MKV", "a/notes.txt", "a.webm")
    sources, rejects = split(tmp_path)
    assert [s.uri for s in sources] == [str(tmp_path / n) for n in ("a.webm", "a/z.MKV", "b.mp4")]
    assert [s.id for s in sources] == ["a", "a_z", "b"]
    assert not rejects


def test_a_manifest_in_the_folder_adds_to_it_and_hides_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "manifest.csv").write_text("file,caption,license\nb.mp4,a dog barks,CC0\n")
    sources, _ = split(tmp_path)
    assert {s.id: s.caption for s in sources} == {"b": "a dog barks", "a": ""}
    assert sources[0].provenance == {"license": "CC0"}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_kind_of_table_says_the_same(tmp_path: Path, kind: str) -> None:
    rows: list[dict] = [
        {"uri": "x/one.mp4", "id": "first", "start_s": 0.5, "end_s": 2.5, "caption": "one", "events_s": "[1.0, 2.0]"},
        {"uri": "/abs/two.mp4", "id": None, "start_s": None, "end_s": None, "caption": None, "events_s": None},
        {"uri": "s3://bucket/k/three.mp4", "id": "", "start_s": 1, "end_s": None, "caption": "3", "events_s": None},
    ]
    path = tmp_path / f"list.{kind}"
    if kind == "csv":
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    sources, rejects = split(path)
    assert not rejects
    assert [s.uri for s in sources] == [str(tmp_path / "x/one.mp4"), "/abs/two.mp4", "s3://bucket/k/three.mp4"]
    assert sources[0].id == "first"
    assert (sources[0].start_s, sources[0].end_s) == (Fraction(1, 2), Fraction(5, 2))
    assert sources[0].events_s == (1.0, 2.0)
    assert sources[1].start_s is None
    assert sources[2].start_s == 1


def test_bad_rows_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(
        "uri,id,start_s,end_s\n"
        "good.mp4,g,,\n"
        "late.mp4,l,abc,\n"
        ",nothing,,\n"
        "back.mp4,b,3,2\n"
        "again.mp4,g,,\n"
        "wide.mp4,w,1,2,3,4\n"
        "fine.mp4,f,0,2\n"
    )
    sources, rejects = split(path)
    assert [s.id for s in sources] == ["g", "f"]
    assert [(r.reason, r.detail) for r in rejects] == [
        ("bad_row", "row 2: column start_s: not a number of seconds: 'abc'"),
        ("bad_row", "row 3: column uri: empty"),
        ("bad_row", "row 4: column end_s: 2.0 is not after start_s 3.0"),
        ("duplicate_id", "row 5: column id: g was used above; the first is kept"),
        ("bad_row", "row 6: more cells than columns"),
    ]


def test_spans_of_one_file_are_different_sources_but_the_same_row_twice_is_not(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    rows = [{"uri": "a.mp4", "start_s": s, "end_s": s + 2} for s in (0, 2, 2)]
    path.write_text("\n".join(map(json.dumps, rows)))
    sources, rejects = split(path)
    assert len({s.id for s in sources}) == 2
    assert [r.reason for r in rejects] == ["duplicate_id"]
    assert [s.id for s in sources] == [s.id for s in split(path)[0]]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "missing", "no such file or folder"),
        (lambda p: touch(p, "readme.txt"), "no videos here"),
        (lambda p: touch(p, "list.csv") / "list.csv", "no column `uri`"),
        (lambda p: touch(p, "list.doc") / "list.doc", "expected a folder"),
        (lambda p: "nosuch://x/y.csv", "nosuch"),
    ],
)
def test_nothing_to_read_is_one_clear_line(tmp_path: Path, make, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        list(read_manifest(str(make(tmp_path))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["we\"ird 'n' \n狗.x", "a.b.c", "x" * 300, "..", "ok-name_1", "a/b", "latin\udce9"])
def test_ids_are_safe_for_tars_and_files_and_stay_different(name: str) -> None:
    safe = safe_id(name)
    assert safe.isascii()
    assert not set(safe) & set("./ \n'\"")
    assert len(clip_id(safe, Fraction(10**7)) + ".safetensors") <= 100
    assert safe_id(name + "!") != safe


def test_plans_survive_being_written_down(tmp_path: Path) -> None:
    source = Source("a", "/x/latin\udce9.mp4", Fraction(1, 3), None, "é", events_s=(0.1, 0.2), provenance={"k": "v"})
    assert parse_source(source_line(source)) == source
    clip = ClipPlan("a-0000333", source, Span(Fraction(1, 3), Fraction(7, 3)), "64x64x32", b"\x01\x02")
    reject = Reject(id="b", source="s", stage="probe", reason="no_audio")
    found = Surveyed([clip], [reject], {"probe": 0.5}, [2.5])
    assert parse_survey(survey_json(found, "f")) == found


def test_units_hold_every_clip_once_and_one_bucket_each() -> None:
    sources = [Source(f"s{i}", "u") for i in range(1000)]
    parts = list(survey_units(sources, len(sources)))
    assert [s for unit in parts for s in unit.sources] == sources
    span = Span(Fraction(0), Fraction(2))
    clips = [ClipPlan(f"c{i}", sources[0], span, ("wide", "tall")[i % 3 == 0]) for i in range(100)]
    shards = list(shard_units(clips, 16))
    assert sorted(c.id for s in shards for c in s.clips) == sorted(c.id for c in clips)
    assert len({shard.marker for shard in shards}) == len(shards)
    for shard in shards:
        assert {clip.bucket for clip in shard.clips} == {shard.bucket}
        assert len(shard.clips) <= 16


def bad_rows(path: Path) -> dict[str, str]:
    """What is said of each row that cannot be used; the good ones are `b`."""
    found = list(read_manifest(str(path)))
    assert [item.id for item in found if isinstance(item, Source)] == ["b"]
    return {item.id: item.detail for item in found if isinstance(item, Reject)}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"uri": true}', "column uri: expected text, got True"),
        ('{"uri": "a.mp4", "start_s": 1e400}', "column start_s: not a number of seconds: inf"),
        ('{"uri": "a.mp4", "start_s": "1e400"}', "column start_s: 1e400 s are years"),
        ('{"uri": "a.mp4", "start_s": true}', "column start_s: not a number of seconds: True"),
        ('{"uri": "a.mp4", "events_s": [0.5, NaN]}', "column events_s: not a list of seconds: [0.5, nan]"),
        ('{"uri": "a.mp4", "caption": ["x"]}', "column caption: expected text, got ['x']"),
        ('{"uri": "a.mp4", "start_s": ' + "9" * 5000 + "}", 'not a JSON object: {"uri": "a.mp4", "start_s": 999'),
        ('{"uri": "a.mp4", "x": ' + "[" * 10**5 + "]" * 10**5 + "}", 'not a JSON object: {"uri": "a.mp4", "x": [[['),
        ("\udcff\udcfe{\0", r"not a JSON object: \xff\xfe{\x00"),
    ],
)
def test_a_wrong_line_is_said_and_passed_over(tmp_path: Path, row: str, says: str) -> None:
    (tmp_path / "list.jsonl").write_bytes(f'{row}\n{{"uri": "b.mp4"}}\n'.encode("utf-8", "surrogateescape"))
    (found,) = bad_rows(tmp_path / "list.jsonl").items()
    assert found[0] == "row-1"
    assert found[1].startswith(f"row 1: {says}")


def test_cells_may_be_long_and_quotes_must_be_closed(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    long = "word " * 60_000
    table.write_text(f'uri, caption \nb.mp4, {long}\n\nc.mp4" x,1\n"d.mp4" x,1\na.mp4,"never closed\nb2.mp4,x\n')
    found = list(read_manifest(str(table)))
    captions = {item.id: item.caption for item in found if isinstance(item, Source)}
    assert captions["b"] == long.strip(), "columns are found by name, whatever the space around it"
    said = [item.detail for item in found if isinstance(item, Reject)]
    assert said == ["row 3: ',' expected after '\"'", "row 4: a quote is opened and never closed"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "uri;caption\na.mp4;x\n", "columns found: uri;caption; columns are to be separated by commas"),
        ("a.csv", "uri\tcaption\na.mp4\tx\n", r"columns found: uri\tcaption; columns are to be separated by commas"),
        ("a.csv", "uri,id,uri\na.mp4,1,b.mp4\n", "column uri is there twice"),
        ("a.csv", "", "no column `uri` (or `file`) that names the videos; columns found: none"),
        ("a.csv", "uri,caption\n", "the table has no rows"),
        ("a.jsonl", "\n\n", "the table has no rows"),
        ("a.csv", '"uri,caption\na.mp4,x\n', "cannot be read: unexpected end of data in its first line"),
        ("a.parquet", "", "cannot be read: Parquet file size is 0 bytes"),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        list(read_manifest(str(tmp_path / name)))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_byte_order_marks_line_ends_and_empty_cells_of_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfuri,caption\r\nb.mp4,"x, ""y"""\r\n')
    (source,) = read_manifest(str(tmp_path / "a.csv"))
    assert isinstance(source, Source)
    assert (source.id, source.caption) == ("b", 'x, "y"')
    columns = {"uri": ["b.mp4", None], "start_s": [None, 1.0], "caption": [None, "x"], "id": [None, 1]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert bad_rows(tmp_path / "a.parquet") == {"row-2": "row 2: column uri: empty"}
