"""`report.html` of a data set: what was kept, what was dropped and why, scores, throughput, and clips to look at.

One file that holds everything it shows. The clips are cut from their sources again, as a model would see and hear
them before encoding; where sources are no longer at hand they are left out.
"""

from __future__ import annotations

import base64
import html
import io
import random
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from syncflow.clock import Span
from syncflow.media import Clip, MediaError, decode_span, write_mp4
from syncflow.preprocess.card import BELIEVE_FROM, Totals, believed
from syncflow.preprocess.fetch import Fetcher
from syncflow.samples import ClipRecord, Dataset

CLIPS = 6
SHEET_FRAMES = 8
BINS = 24
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ddd}
td.n{text-align:right}.row{display:flex;flex-wrap:wrap;gap:1.5rem}figure{margin:0}figcaption{max-width:34rem}
video{width:15rem}svg rect{fill:#4878a8}small{color:#777}"""


def build(dataset: Dataset, totals: Totals, seconds: float) -> str:
    """The page."""
    card = dataset.card
    title = f"{card.kept} clips, {card.hours * 3600:.0f} s, of {card.read} read"
    sound = f"{card.sample_rate} Hz" if card.audio_autoencoder else "no sound"
    parts = [
        f"<h1>{html.escape(Path(dataset.path).name)}: {title}</h1>",
        f"<p>{float(card.fps):g} fps, {sound}, {card.dtype}; fingerprint {card.fingerprint}; "
        f"made in {seconds:.0f} s by {html.escape(card.created_by)}.</p>",
        "<h2>Dropped</h2>" + _drops(totals),
        "<h2>Buckets</h2>" + _table(("bucket", "clips"), [(b.name, b.samples) for b in card.buckets]),
        "<h2>Time of the workers</h2>" + _throughput(totals, card.read),
        "<h2>Sources</h2>" + _row([histogram("seconds long", totals.durations_s, "sources")]),
        "<h2>Scores</h2>" + _scores(totals),
        "<h2>Clips</h2>" + _clips(dataset),
    ]
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>" + "\n".join(parts)


def histogram(name: str, values: Sequence[float], of: str = "clips") -> str:
    """A figure of bars; the axis says where they begin and end."""
    data = np.asarray(values, dtype=np.float64)
    counts, edges = np.histogram(data, BINS)
    bars = "".join(
        f'<rect x="{10 * k}" y="{80 - 80 * n / counts.max():.1f}" width="9" height="{80 * n / counts.max():.1f}"/>'
        for k, n in enumerate(counts)
    )
    middle = f"median {np.median(data):.3g}, {len(data)} {of}"
    return (
        f'<figure><svg width="{10 * BINS}" height="80">{bars}</svg><br><small>{edges[0]:.3g} … {edges[-1]:.3g}</small>'
        f"<figcaption><b>{html.escape(name)}</b> {middle}</figcaption></figure>"
    )


def _drops(totals: Totals) -> str:
    if not totals.rejected:
        return "<p>Nothing was dropped.</p>"
    rows = [(stage, reason, count) for (stage, reason), count in totals.rejected.most_common()]
    return _table(("stage", "reason", "clips"), rows) + "<p>Each is listed in rejects.jsonl.</p>"


def _throughput(totals: Totals, read: int) -> str:
    rows = []
    for name, values in sorted(totals.sums.items(), key=lambda item: -item[1][0]):
        if name.startswith("seconds."):
            rate = f"{read / values[0]:.1f}" if values[0] else "-"
            rows.append((name.removeprefix("seconds."), f"{values[0]:.1f}", rate))
    return _table(("stage", "worker seconds", "clips/s of one worker"), rows)


def _scores(totals: Totals) -> str:
    scores = dict(totals.scores)
    if "sync.offset_ms" in scores:
        scores["sync.offset_ms"] = believed(scores["sync.offset_ms"], scores["sync.confidence"])
    figures = [histogram(name.removeprefix("score."), values) for name, values in sorted(scores.items()) if values]
    note = f"<p><small>Offsets of clips that show one (confidence from {BELIEVE_FROM:g}).</small></p>"
    return _row(figures) + (note if scores.get("sync.offset_ms") else "")


def _row(figures: Sequence[str]) -> str:
    return f'<div class="row">{"".join(figures)}</div>' if figures else "<p>None were measured.</p>"


def _clips(dataset: Dataset) -> str:
    fetcher = Fetcher()
    count = min(CLIPS, len(dataset))
    figures = []
    try:
        for k in sorted(random.Random(0).sample(range(len(dataset)), count)):
            record = dataset.read(k).record
            try:
                figures.append(_figure(record, _cut(record, fetcher)))
            except MediaError:
                continue
    finally:
        fetcher.close()
    return f'<div class="row">{"".join(figures)}</div>' if figures else "<p>The sources are no longer at hand.</p>"


def _cut(record: ClipRecord, fetcher: Fetcher) -> Clip:
    span = Span(record.start_s, record.end_s)
    size = (record.width, record.height)
    path = fetcher.local(record.source)
    return decode_span(
        path, span, fps=record.fps, size=size, sample_rate=record.sample_rate if record.num_samples else None
    )


def _figure(record: ClipRecord, clip: Clip) -> str:
    count = min(SHEET_FRAMES, len(clip.frames))
    picked = clip.frames[np.linspace(0, len(clip.frames) - 1, count).astype(int)]  # (8, H, W, 3)
    player = f"{_player(clip)}<br>" if len(clip.frames) > 1 else ""
    said = [html.escape(record.caption or "no caption")]
    if record.sync is not None:
        said.append(f"offset {record.sync.offset_ms:.0f} ms (confidence {record.sync.confidence:.2f})")
    said += [f"{name} {score:.3g}" for name, score in record.scores.items()]
    return (
        f'<figure>{player}<img src="data:image/jpeg;base64,{_jpeg(np.concatenate(list(picked), axis=1))}" '
        f'width="{60 * count}">'
        f"<figcaption>{said[0]}<br><small>{html.escape(record.id)}: {', '.join(said[1:])}</small></figcaption></figure>"
    )


def _player(clip: Clip) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, clip.frames, clip.fps, clip.waveform if clip.sample_rate else None, clip.sample_rate)
        video = base64.b64encode(path.read_bytes()).decode()
    return f'<video controls loop src="data:video/mp4;base64,{video}"></video>'


def _jpeg(picture: np.ndarray) -> str:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=85)
    return base64.b64encode(data.getvalue()).decode()


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"
