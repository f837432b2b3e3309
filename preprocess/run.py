"""The job, top to bottom: read the manifest, survey the sources, write the shards, add it all up."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from syncflow.errors import UserError
from syncflow.preprocess import card as cards
from syncflow.preprocess import report
from syncflow.preprocess.config import PreprocessConfig, RayConfig
from syncflow.preprocess.duplicates import near_duplicates
from syncflow.preprocess.encode import identities
from syncflow.preprocess.job import Job
from syncflow.preprocess.networks import check_networks, network_identities
from syncflow.preprocess.plan import ClipPlan, Unit, reject, shard_units
from syncflow.preprocess.pool import Pool, open_pool
from syncflow.preprocess.progress import Progress, say
from syncflow.preprocess.store import Store, open_store
from syncflow.preprocess.worker import Outcome, Worker
from syncflow.samples import DatasetCard, Reject, open_dataset

FAILING_STAGES = frozenset({"manifest", "probe", "decode", "encode", "worker"})  # filters may drop most on purpose
ENOUGH = 50  # clips read before "mostly failing" is believed


@dataclass(frozen=True)
class Summary:
    """How a job ended."""

    card: DatasetCard
    totals: cards.Totals
    seconds: float
    already_done: bool

    @property
    def rejected(self) -> Counter[tuple[str, str]]:
        """By stage and reason."""
        return self.totals.rejected


def preprocess(
    config: PreprocessConfig,
    input: str | Path | None = None,
    output: str | Path | None = None,
    pool: Literal["inline"] | None = None,
    worker: type[Worker] = Worker,
) -> Summary:
    """Raw videos -> a data set. Killed and called again, it goes on; finished, it returns at once.

    Args:
        input, output: in place of the configuration's.
        pool: `inline` works in this process, whatever the configuration's `ray` says.
        worker: a subclass with stages of your own.

    Raises:
        UserError: nothing to read, another job's folder, weights that cannot be read, or (nearly) nothing usable.
    """
    given = {"input": str(input) if input else config.input, "output": str(output) if output else config.output}
    config = config.model_copy(update=given)
    if pool == "inline":
        config = config.model_copy(update={"ray": RayConfig(workers=0)})
    if not config.output:
        raise UserError("--output is missing: give the folder (or URL) the data set is to be written to")
    check_networks(config)
    began = time.monotonic()
    store = open_store(config.output)
    job = Job(store, config)
    try:
        return _run(job, store, config, worker, began)
    finally:
        job.close()


def _run(job: Job, store: Store, config: PreprocessConfig, worker: type[Worker], began: float) -> Summary:
    for number, item in enumerate(job.row_rejects()):
        if number == 5:
            say(f"... {job.bad_rows - 5} more rows cannot be used; see rejects.jsonl")
            break
        say(f"dropped: {item.detail} ({item.source or item.id})")
    store.collect_wip()
    say(f"{job.sources} sources in {config.input}")
    encoders = job.encoders()
    if encoders is not None:
        job.check_weights({**identities(config), **network_identities(config)})
    finished = encoders is not None and store.read("dataset.json") is not None
    if not finished:
        workers = open_pool(config, config.output, worker)
        try:
            encoders = encoders or job.remember(workers.encoders())
            repeats = _work(job, config, workers, job.shard_fingerprint(encoders))
        finally:
            workers.close()
    else:
        repeats = _repeats(job, config)
    assert encoders is not None

    totals = cards.Totals()
    cards.write_rejects(store, _rejects(job, store, config, repeats, totals), totals)
    if not totals.kept:
        raise UserError(f"none of {sum(totals.rejected.values())} clips can be used: {reasons(totals.rejected)}")
    card = cards.write_card(store, config, encoders, totals)
    cards.remove_orphans(store, totals)
    seconds = time.monotonic() - began
    if not finished:
        store.write("report.html", report.build(open_dataset(config.output), totals, seconds).encode())
    return Summary(card, totals, time.monotonic() - began, finished)


def _work(job: Job, config: PreprocessConfig, pool: Pool, fingerprint: str) -> dict[str, str]:
    """Both rounds; returns the near-duplicates found between them."""
    guard = _Guard(config.max_failed, job.bad_rows)
    with Progress("looking into sources", job.sources) as progress:

        def surveyed(unit: Unit, found: Outcome) -> None:
            guard.add(found.kept, found.rejects)
            progress.finished(len(unit.sources), len(unit.sources) - sum(found.rejects.values()))

        pool.run(job.survey_units(), job.fingerprint, surveyed, progress.tick)

    repeats = _repeats(job, config)
    planned = sum(len(found.clips) for found in job.surveyed()) - len(repeats)
    guard = _Guard(config.max_failed, 0)
    with Progress("encoding clips", planned) as progress:

        def written(unit: Unit, done: Outcome) -> None:
            guard.add(done.kept, done.rejects)
            progress.finished(len(unit.clips), done.kept)

        pool.run(_shards(job, config, repeats), fingerprint, written, progress.tick)
    return repeats


def _clips(job: Job) -> Iterator[ClipPlan]:
    return itertools.chain.from_iterable(found.clips for found in job.surveyed())


def _repeats(job: Job, config: PreprocessConfig) -> dict[str, str]:
    """Clips that are not made because they repeat an earlier one -> that one."""
    return near_duplicates(_clips(job)) if config.filters.duplicates else {}


def _shards(job: Job, config: PreprocessConfig, repeats: Mapping[str, str]) -> Iterator[Unit]:
    return shard_units((clip for clip in _clips(job) if clip.id not in repeats), config.shard_clips)


def _rejects(
    job: Job, store: Store, config: PreprocessConfig, repeats: Mapping[str, str], totals: cards.Totals
) -> Iterator[Reject]:
    """Everything dropped, in the order of the plan; surveys and shards are added to `totals` on the way."""
    yield from job.row_rejects()
    for found in job.surveyed():
        totals.add_survey(found)
        yield from found.rejects
    for clip in _clips(job) if repeats else ():
        if clip.id in repeats:
            yield reject(clip, "duplicates", "near_duplicate", f"repeats {repeats[clip.id]}")
    for marker in cards.markers(store, (unit.marker for unit in _shards(job, config, repeats))):
        totals.add(marker)
        yield from marker.rejects


class _Guard:
    """Stops a job that mostly fails, early."""

    def __init__(self, max_failed: float, failed: int) -> None:
        self.max_failed = max_failed
        self.read = self.failed = failed
        self.reasons: Counter[tuple[str, str]] = Counter()

    def add(self, kept: int, rejects: Mapping[tuple[str, str], int]) -> None:
        self.read += kept + sum(rejects.values())
        self.reasons.update(rejects)
        self.failed += sum(count for (stage, _), count in rejects.items() if stage in FAILING_STAGES)
        if self.read >= ENOUGH and self.failed > self.max_failed * self.read:
            raise UserError(
                f"stopped: {self.failed} of the first {self.read} clips cannot be used: {reasons(self.reasons)}; "
                "mend the input, or raise max_failed"
            )


def reasons(rejected: Counter[tuple[str, str]]) -> str:
    return ", ".join(f"{count} {reason} ({stage})" for (stage, reason), count in rejected.most_common())
