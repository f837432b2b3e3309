"""A job's memory in its output folder: which input and configuration it was begun with, and what is planned.

_job/job.json         the configuration's meaning, the input's digest
_job/sources.jsonl    the manifest as it was read, one source a line; _job/rejects.jsonl its unusable rows
_job/encoders.json    the weights, by hash, and the shapes of their latents
_job/survey/*.json    markers of the first round: clips planned
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from syncflow import __version__
from syncflow.errors import UserError
from syncflow.media import printable
from syncflow.preprocess.config import PreprocessConfig
from syncflow.preprocess.manifest import read_manifest, searched
from syncflow.preprocess.plan import Source, Surveyed, Unit, parse_source, parse_survey, source_line, survey_units
from syncflow.preprocess.store import Store
from syncflow.preprocess.worker import Encoders
from syncflow.samples import Bucket, EncoderIdentity, Reject, first_line

JOB, SOURCES, REJECTS, ENCODERS = "_job/job.json", "_job/sources.jsonl", "_job/rejects.jsonl", "_job/encoders.json"
OTHER_FOLDER = "give another --output, or delete this one"


class Job:
    """A job begun, or begun again.

    Raises:
        UserError: the output folder belongs to another configuration or input; the difference is named.
    """

    def __init__(self, store: Store, config: PreprocessConfig) -> None:
        self.store = store
        self._folder = Path(tempfile.mkdtemp(prefix="syncflow-job-"))
        self.sources_path, self._rejects_path = self._folder / "sources.jsonl", self._folder / "rejects.jsonl"
        self.sources, self.bad_rows, digest = self._list_input(config)
        meaning = {name: json.loads(json.dumps(value)) for name, value in config.meaning().items()}
        ours = {"meaning": meaning, "input": digest, "sources": self.sources, "bad_rows": self.bad_rows}
        self.fingerprint = _digest(ours)
        self._begin(ours)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def row_rejects(self) -> Iterator[Reject]:
        """Rows of the manifest that cannot be used."""
        with self._rejects_path.open() as file:
            for line in file:
                yield Reject.model_validate_json(line)

    def survey_units(self) -> Iterator[Unit]:
        with self.sources_path.open() as file:
            yield from survey_units(map(parse_source, file), self.sources)

    def surveyed(self) -> Iterator[Surveyed]:
        """What the first round found, in the order of the manifest."""
        for unit in self.survey_units():
            data = self.store.read(unit.marker)
            assert data is not None, f"{unit.marker} is missing though its round is over"
            yield parse_survey(data)

    def encoders(self) -> Encoders | None:
        data = self.store.read(ENCODERS)
        if data is None:
            return None
        values = json.loads(data)
        return Encoders(
            {name: EncoderIdentity.model_validate(row) for name, row in values["identities"].items()},
            tuple(Bucket.model_validate(row) for row in values["buckets"]),
        )

    def remember(self, found: Encoders) -> Encoders:
        """Keep the weights' identities with the job; whoever is first decides."""
        values = {
            "identities": {name: identity.model_dump() for name, identity in found.identities.items()},
            "buckets": [bucket.model_dump() for bucket in found.buckets],
        }
        self.store.create(ENCODERS, json.dumps(values, indent=1).encode())
        self.check_weights(found.identities)
        return found

    def check_weights(self, found: dict[str, EncoderIdentity]) -> None:
        """
        Raises:
            UserError: these are other weights than the job was begun with.
        """
        first = self.encoders()
        assert first is not None, "weights are compared once they are remembered"
        for name, identity in found.items():
            before = first.identities[name]
            if (before.kind, before.sha256) != (identity.kind, identity.sha256):
                raise UserError(
                    f"{self.store.url} was begun with other weights, {name}: {before.kind} {before.sha256[:12]} "
                    f"({before.path}), now {identity.kind} {identity.sha256[:12]} ({identity.path}); {OTHER_FOLDER}"
                )

    def shard_fingerprint(self, encoders: Encoders) -> str:
        return _digest({"job": self.fingerprint, **{k: v.sha256 for k, v in encoders.identities.items()}})

    def _list_input(self, config: PreprocessConfig) -> tuple[int, int, str]:
        """Write sources and unusable rows to local files; how many of each, and a digest."""
        sources = bad_rows = 0
        digest = hashlib.sha256()
        with self.sources_path.open("w") as good, self._rejects_path.open("w") as bad:
            for item in read_manifest(config.input, searched(config)):
                file: IO[str] = good if isinstance(item, Source) else bad
                line = source_line(item) if isinstance(item, Source) else item.model_dump_json()
                file.write(line + "\n")
                digest.update(line.encode() + b"\n")
                sources += isinstance(item, Source)
                bad_rows += isinstance(item, Reject)
        return sources, bad_rows, digest.hexdigest()[:16]

    def _begin(self, ours: dict) -> None:
        data = self.store.read(JOB)
        if data is None:
            content = {"created_by": f"syncflow {__version__}", **ours}
            try:
                for path, name in ((self.sources_path, SOURCES), (self._rejects_path, REJECTS)):
                    self.store.write(name, path.read_bytes())
                self.store.create(JOB, json.dumps(content, indent=1).encode())
            except OSError as error:
                raise UserError(f"--output {self.store.url}: cannot be written to ({first_line(error)})") from error
            data = self.store.read(JOB) or b""
        theirs = json.loads(data)
        before, now = theirs["meaning"], ours["meaning"]
        different = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if different:
            what = "; ".join(f"{n}: {_show(before.get(n))}, now {_show(now.get(n))}" for n in different)
            raise UserError(f"{self.store.url} was begun with another configuration, {what}; {OTHER_FOLDER}")
        if theirs["input"] != ours["input"]:
            raise UserError(f"{self.store.url} was begun with another input: {self._difference()}; {OTHER_FOLDER}")

    def _difference(self) -> str:
        """The first source in which the input now differs from the one the job was begun with."""
        before = (self.store.read(SOURCES) or b"").decode().splitlines()
        now = self.sources_path.read_text().splitlines()
        for line, other in itertools.zip_longest(before, now):
            if line != other:
                old = printable(parse_source(line).uri) if line else "nothing"
                new = printable(parse_source(other).uri) if other else "nothing"
                what = f"{old} was there, now {new}" if old != new else f"{old} is described otherwise"
                return f"it listed {len(before)} clips' sources, now {len(now)}; first difference: {what}"
        return "other rows of the manifest cannot be used"


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _show(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
