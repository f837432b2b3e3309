"""What is to be done, as plain records: sources of a manifest, the clips cut from them, and units of work.

Everything here is a pure function of manifest and configuration, so that a job that was killed plans the same
clips, with the same names, in the same shards when it is started again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any

from syncflow.clock import Span
from syncflow.media import printable
from syncflow.samples import Reject

MAX_SOURCE_ID = 72  # + "-" + start in ms + ".safetensors" stays below the 100 characters of a USTAR name
SURVEY, SHARD = "survey", "shard"


@dataclass(frozen=True)
class Source:
    """One row of the manifest. Times are seconds from the first video frame."""

    id: str
    uri: str
    start_s: Fraction | None = None
    end_s: Fraction | None = None
    caption: str = ""
    video_caption: str = ""
    audio_caption: str = ""
    label: str = ""
    events_s: tuple[float, ...] | None = None
    provenance: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipPlan:
    """A clip to make: a span of a source, for one bucket."""

    id: str
    source: Source
    span: Span
    bucket: str
    signature: bytes = b""
    """What copies of it share (signature.py), where near-duplicates are looked for and it can be decoded."""


@dataclass(frozen=True)
class Surveyed:
    """What the first round found in some sources."""

    clips: list[ClipPlan] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent, by what on."""
    durations_s: list[float] = field(default_factory=list)
    """Of the sources that could be read."""


@dataclass(frozen=True)
class Unit:
    """What one worker does in one go and commits once: survey some sources, or write one shard."""

    kind: str
    name: str
    bucket: str
    sources: tuple[Source, ...] = ()
    clips: tuple[ClipPlan, ...] = ()

    @property
    def marker(self) -> str:
        """The file that says, once it exists, that the unit is done."""
        return f"_job/survey/{self.name}.json" if self.kind == SURVEY else f"{self.bucket}/shard-{self.name}.json"

    @property
    def key(self) -> str:
        return f"{self.kind}-{self.bucket}-{self.name}" if self.bucket else f"{self.kind}-{self.name}"


def safe_id(name: str) -> str:
    """`name` as a key for tar members and files: letters, digits, _ and -; a hash is added where it was changed.

    A dot would end the key in a WebDataset tar.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name.replace("/", "_")).strip("_-")[:MAX_SOURCE_ID]
    if safe == name.replace("/", "_") and safe:
        return safe
    return f"{safe[: MAX_SOURCE_ID - 9]}-{short_hash(name)}".lstrip("-")


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def clip_id(source_id: str, start_s: Fraction) -> str:
    """Unique where source ids are: the start in milliseconds is always added."""
    return f"{source_id}-{int(start_s * 1000):07d}"


def survey_units(sources: Iterable[Source], count: int) -> Iterator[Unit]:
    """Sources in order, in parts: small enough to spread over workers, large enough not to litter."""
    size = min(512, max(4, count // 64))
    for number, part in enumerate(_chunks(sources, size)):
        yield Unit(SURVEY, f"{number:06d}", "", sources=tuple(part))


def shard_units(clips: Iterable[ClipPlan], shard_clips: int) -> Iterator[Unit]:
    """Clips in order, dealt into shards of one bucket each."""
    open_shards: dict[str, list[ClipPlan]] = {}
    numbers: dict[str, int] = {}

    def close(bucket: str) -> Unit:
        number = numbers.get(bucket, 0)
        numbers[bucket] = number + 1
        return Unit(SHARD, f"{number:06d}", bucket, clips=tuple(open_shards.pop(bucket)))

    for clip in clips:
        open_shards.setdefault(clip.bucket, []).append(clip)
        if len(open_shards[clip.bucket]) == shard_clips:
            yield close(clip.bucket)
    for bucket in sorted(open_shards):
        yield close(bucket)


def source_line(source: Source) -> str:
    """One line of JSON. ASCII, so that names that are not UTF-8 pass through."""
    values = asdict(source)
    for name in ("start_s", "end_s"):
        values[name] = None if values[name] is None else str(values[name])
    return json.dumps(values, sort_keys=True)


def parse_source(line: str | bytes) -> Source:
    return _source(json.loads(line))


def survey_json(found: Surveyed, fingerprint: str) -> bytes:
    rows = [
        {
            "id": clip.id,
            "source": json.loads(source_line(clip.source)),
            "span": [str(clip.span.start_s), str(clip.span.end_s)],
            "bucket": clip.bucket,
            "signature": base64.b64encode(clip.signature).decode(),
        }
        for clip in found.clips
    ]
    dropped = [reject.model_dump() for reject in found.rejects]
    seconds = {name: round(value, 4) for name, value in found.seconds.items()}
    durations = [round(value, 3) for value in found.durations_s]
    values = {"fingerprint": fingerprint, "clips": rows, "rejects": dropped}
    return json.dumps({**values, "seconds": seconds, "durations_s": durations}).encode()


def parse_survey(data: bytes) -> Surveyed:
    values = json.loads(data)
    clips = [
        ClipPlan(
            row["id"],
            _source(row["source"]),
            Span(Fraction(row["span"][0]), Fraction(row["span"][1])),
            row["bucket"],
            base64.b64decode(row["signature"]),
        )
        for row in values["clips"]
    ]
    rejects = [Reject.model_validate(row) for row in values["rejects"]]
    return Surveyed(clips, rejects, values["seconds"], values["durations_s"])


def reject(item: Source | ClipPlan, stage: str, reason: str, detail: str = "") -> Reject:
    uri = item.uri if isinstance(item, Source) else item.source.uri
    return Reject(id=item.id, source=printable(uri), stage=stage, reason=reason, detail=printable(detail)[:500])


def _source(values: dict[str, Any]) -> Source:
    source = Source(**values)
    return replace(
        source,
        start_s=None if source.start_s is None else Fraction(source.start_s),
        end_s=None if source.end_s is None else Fraction(source.end_s),
        events_s=None if source.events_s is None else tuple(source.events_s),
    )


def _chunks(items: Iterable[Source], size: int) -> Iterator[list[Source]]:
    chunk: list[Source] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
