"""The worker: does one unit of work at a time, idempotently. It knows nothing of Ray.

A unit whose marker exists is done. Every clip is noted in a journal before it is worked on, so that whoever sees
the worker die knows which clip it died on.
"""

from __future__ import annotations

import faulthandler
import json
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import IO

from syncflow.media import MediaInfo, probe
from syncflow.preprocess import survey
from syncflow.preprocess.caption import GivenCaption, caption_stages
from syncflow.preprocess.config import BucketSize, PreprocessConfig
from syncflow.preprocess.decode import Decode
from syncflow.preprocess.encode import Encode
from syncflow.preprocess.fetch import Fetcher
from syncflow.preprocess.filters import filter_stages
from syncflow.preprocess.learned import match_stages, media_stages
from syncflow.preprocess.networks import network_identities
from syncflow.preprocess.plan import SURVEY, ClipPlan, Source, Surveyed, Unit, parse_survey, reject, survey_json
from syncflow.preprocess.shards import ShardWriter
from syncflow.preprocess.shots import Shots, make_shots
from syncflow.preprocess.store import LocalStore, Store, open_store
from syncflow.preprocess.work import Stage, Work, batches, run_stage, timed
from syncflow.samples import Bucket, EncoderIdentity, Reject, ShardMarker

JOURNAL = "_job/journal"


@dataclass(frozen=True)
class Encoders:
    """Whose latents they are, and of what shape."""

    identities: dict[str, EncoderIdentity]
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class Trouble:
    """What is known of clips that workers died on."""

    suspects: frozenset[str] = frozenset()
    """Worked on one at a time, so that the next death names its clip."""
    quarantined: Mapping[str, str] = field(default_factory=dict)
    """Dropped without a look: id -> reason."""


@dataclass(frozen=True)
class Outcome:
    """What became of a unit."""

    kind: str
    kept: int
    """Clips planned (survey) or written (shard)."""
    rejects: Mapping[tuple[str, str], int]
    """Dropped, by stage and reason."""


@dataclass(frozen=True)
class Status:
    done: int = 0
    """Sources or clips of the current unit that are through."""
    kept: int = 0
    open_ids: tuple[str, ...] = ()
    """What is being worked on, and for how long."""
    open_s: float = 0.0


class Worker:
    def __init__(self, config: PreprocessConfig, output: str, device: str = "cpu", threads: int | None = None) -> None:
        if threads:
            import torch

            torch.set_num_threads(threads)
        self.config = config
        self.device = device
        self.store: Store = open_store(output)
        self.fetcher = Fetcher()
        self.encode = Encode()
        self.stages: list[Stage] = [
            GivenCaption(),
            Decode(self.fetcher),
            *filter_stages(config.filters),
            *media_stages(config.filters, self.fetcher),
            *caption_stages(config.captions),
            *match_stages(config.filters),
            self.encode,
        ]
        self._is_set_up = False
        self._find_shots: Shots | None = None
        self._journal = Journal(self.store)
        self._done = self._kept = 0

    def encoders(self) -> Encoders:
        """
        Raises:
            UserError: weights that cannot be found or read, or sizes they cannot encode.
        """
        self._set_up()
        buckets = []
        for size in self.config.stored_buckets:
            video, audio = self.encode.latent_shapes(size)
            values = {"width": size.width, "height": size.height, "num_frames": size.num_frames}
            buckets.append(
                Bucket.model_validate({"name": size.name, **values, "video_shape": video, "audio_shape": audio})
            )
        return Encoders({**self.encode.identities(), **network_identities(self.config)}, tuple(buckets))

    def status(self) -> Status:
        ids, seconds = self._journal.oldest()
        return Status(self._done, self._kept, ids, seconds)

    def run(self, unit: Unit, fingerprint: str, attempt: str, trouble: Trouble) -> Outcome:
        """Do the unit, or find it done."""
        self._done = self._kept = 0
        if (data := self.store.read(unit.marker)) is not None:
            return outcome(unit, data)
        self._journal.open(attempt)
        try:
            if unit.kind == SURVEY:
                return self._survey(unit, fingerprint, trouble)
            self._set_up()
            return self._shard(unit, fingerprint, trouble)
        finally:
            self._journal.close()
            self.fetcher.close()

    def _set_up(self) -> None:
        if not self._is_set_up:
            for stage in self.stages:
                stage.setup(self.config, self.device)
            self._is_set_up = True

    def _survey(self, unit: Unit, fingerprint: str, trouble: Trouble) -> Outcome:
        found = Surveyed()
        for source in unit.sources:
            clips = self._survey_one(source, trouble, found)
            if isinstance(clips, Reject):
                found.rejects.append(clips)
            elif self.config.filters.duplicates:
                with timed(found.seconds, "signature"):
                    found.clips.extend(self._sign(probe(self.fetcher.local(source.uri)), clips, trouble))
            else:
                found.clips.extend(clips)
            self._done += 1
            self._kept += not isinstance(clips, Reject)
        data = survey_json(found, fingerprint)
        if not self.store.create(unit.marker, data):
            data = self.store.read(unit.marker) or data
        return outcome(unit, data)

    def _shots(self) -> Shots:
        if self._find_shots is None:
            self._find_shots = make_shots(self.config.split.shots, self.device)
        return self._find_shots

    def _survey_one(self, source: Source, trouble: Trouble, found: Surveyed) -> list[ClipPlan] | Reject:
        if source.id in trouble.quarantined:
            return reject(source, survey.STAGE, trouble.quarantined[source.id], "killed its workers, or hung")
        with self._journal.watch([source.id]):
            return survey.survey(source, self.config, self.fetcher, self._shots(), found)

    def _sign(self, info: MediaInfo, clips: list[ClipPlan], trouble: Trouble) -> Iterator[ClipPlan]:
        """With signatures. A clip that killed workers here goes on without: the decode stage decides about it."""
        for clip in clips:
            if clip.id not in trouble.quarantined:
                with self._journal.watch([clip.id]):
                    clip = survey.sign(clip, info, self.config)
            yield clip

    def _shard(self, unit: Unit, fingerprint: str, trouble: Trouble) -> Outcome:
        writer = ShardWriter(self.store, unit.bucket, unit.name)
        rejects: list[Reject] = []
        seconds: dict[str, float] = {}
        try:
            for batch in self._batches(unit, trouble, seconds):
                for stage in self.stages:
                    if stage.batched:
                        run_stage(stage, batch, self._journal.watch, seconds)
                for work in batch:
                    if work.reject is None:
                        with timed(seconds, "write"):
                            writer.add(work.sample(self.config.sample_rate))
                        self._kept += 1
                    else:
                        rejects.append(work.reject)
                    self._done += 1
            marker = writer.commit(unit.marker, fingerprint, rejects, seconds)
        except BaseException:
            writer.abandon()
            raise
        return outcome(unit, marker)

    def _batches(self, unit: Unit, trouble: Trouble, seconds: dict[str, float]) -> Iterator[list[Work]]:
        """Clips through the stages that take one at a time, in batches; suspects first and alone."""
        size = BucketSize.parse(unit.bucket)
        works = [Work(plan, size) for plan in unit.clips]
        for work in works:
            if work.plan.id in trouble.quarantined:
                work.drop("worker", trouble.quarantined[work.plan.id], "killed its workers, or hung")
        alone = [work for work in works if work.plan.id in trouble.suspects]
        others = [work for work in works if work.plan.id not in trouble.suspects]
        yield from batches(self._prepared(alone, seconds, 0), 1)
        yield from batches(self._prepared(others, seconds, self.config.decode_ahead), self.config.batch)

    def _prepared(self, works: Iterable[Work], seconds: dict[str, float], ahead: int) -> Iterator[Work]:
        def prepare(work: Work) -> Work:
            if work.reject is None:
                # Noted once for all of these stages: a note is a file written, or a request to an object store.
                with self._journal.watch([work.plan.id]):
                    for stage in self.stages:
                        if not stage.batched:
                            run_stage(stage, [work], lambda ids: nullcontext(), seconds)
            return work

        if not ahead:
            yield from map(prepare, works)
            return
        with ThreadPoolExecutor(ahead) as pool:
            waiting: deque = deque()
            for work in works:
                waiting.append(pool.submit(prepare, work))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


class Journal:
    """Which clips are being worked on, kept where it outlives the worker."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._attempt = ""
        self._open: dict[str, tuple[tuple[str, ...], float]] = {}
        self._lock = threading.Lock()
        self._trace: IO[str] | None = None

    def open(self, attempt: str) -> None:
        self._attempt, self._open = attempt, {}
        self.store.write(f"{JOURNAL}/{attempt}.json", b"[]", durable=False)
        if isinstance(self.store, LocalStore):
            # A native crash leaves its stack here; a worker killed from outside leaves nothing.
            self._trace = (self.store.root / JOURNAL / f"{attempt}.trace").open("w")
            faulthandler.enable(self._trace)

    def close(self) -> None:
        if self._trace is not None:
            faulthandler.disable()
            self._trace.close()
            self._trace = None
            self.store.remove(f"{JOURNAL}/{self._attempt}.trace")
        self.store.remove(f"{JOURNAL}/{self._attempt}.json")

    @contextmanager
    def watch(self, ids: Sequence[str]) -> Iterator[None]:
        token = uuid.uuid4().hex
        with self._lock:
            self._open[token] = (tuple(ids), time.monotonic())
            self._note()
        try:
            yield
        finally:
            with self._lock:
                del self._open[token]
                self._note()

    def oldest(self) -> tuple[tuple[str, ...], float]:
        """What has been worked on longest, and seconds per clip of it."""
        entries = list(self._open.values())
        if not entries:
            return (), 0.0
        ids, since = min(entries, key=lambda entry: entry[1])
        return ids, (time.monotonic() - since) / max(1, len(ids))

    def _note(self) -> None:
        ids = [clip for clips, _ in self._open.values() for clip in clips]
        self.store.write(f"{JOURNAL}/{self._attempt}.json", json.dumps(ids).encode(), durable=False)


def outcome(unit: Unit, done: bytes | ShardMarker) -> Outcome:
    """What a unit's marker says became of it."""
    if unit.kind == SURVEY:
        assert isinstance(done, bytes)
        found = parse_survey(done)
        return Outcome(SURVEY, len(found.clips), Counter((r.stage, r.reason) for r in found.rejects))
    marker = done if isinstance(done, ShardMarker) else ShardMarker.model_validate_json(done)
    return Outcome(unit.kind, len(marker.samples), Counter((r.stage, r.reason) for r in marker.rejects))
