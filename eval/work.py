"""Clips over processes or a Ray cluster: the same results in the same order for any number of workers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from syncflow.config import is_terminal
from syncflow.eval.clips import ClipFile, Failure
from syncflow.media import MediaError

R = TypeVar("R")
_PLAIN_EVERY_S = 5.0


def map_clips(
    measure: Callable[..., R],
    clips: Sequence[ClipFile],
    arguments: tuple[Any, ...],
    workers: int,
    what: str,
    ray: str = "",
) -> tuple[list[R | None], list[Failure]]:
    """`measure(clip, *arguments)` for every clip; None and a `Failure` for each that cannot be measured.

    Args:
        ray: address of a Ray cluster to do it on, see `on_ray`; else `workers` processes of this machine.
    """
    results: list[R | None] = [None] * len(clips)
    failures: dict[int, Failure] = {}
    if ray and clips:
        from syncflow.eval import on_ray

        outcomes = on_ray.outcomes(attempt, measure, clips, arguments, workers, ray)
    else:
        outcomes = _outcomes(measure, clips, arguments, workers)
    for index, outcome in progress(outcomes, len(clips), what):
        if isinstance(outcome, Failure):
            failures[index] = outcome
        else:
            results[index] = outcome
    return results, [failures[index] for index in sorted(failures)]


def _outcomes(
    measure: Callable[..., R], clips: Sequence[ClipFile], arguments: tuple[Any, ...], workers: int
) -> Iterator[tuple[int, R | Failure]]:
    if workers <= 1 or len(clips) <= 1:
        yield from ((index, attempt(measure, clip, arguments)) for index, clip in enumerate(clips))
        return
    pending = set(range(len(clips)))
    try:
        with _pool(min(workers, len(clips))) as pool:
            jobs = {pool.submit(attempt, measure, clip, arguments): index for index, clip in enumerate(clips)}
            for job in as_completed(jobs):
                outcome = job.result()
                pending.discard(jobs[job])
                yield jobs[job], outcome
    except BrokenProcessPool:
        # a clip ended its process: each that is left gets a process of its own, so that only the culprit is lost
        for index in sorted(pending):
            try:
                with _pool(1) as pool:
                    outcome = pool.submit(attempt, measure, clips[index], arguments).result()
            except BrokenProcessPool:
                outcome = Failure(clips[index].name, "crash", "its process was killed while this clip was measured")
            yield index, outcome


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Clips are what runs side by side; libraries that spread each over all cores would only fight.

    The last bits of a matrix product depend on how many threads share it: with one they are the same everywhere.
    """
    import cv2
    from threadpoolctl import threadpool_limits

    cv2.setNumThreads(1)
    with threadpool_limits(limits=1, user_api="blas"):
        yield


def attempt(measure: Callable[..., R], clip: ClipFile, arguments: tuple[Any, ...]) -> R | Failure:
    try:
        with _one_thread():
            return measure(clip, *arguments)
    except MediaError as error:
        return Failure(clip.name, error.reason, error.detail)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        message = " ".join(str(error).split()) or "no message"
        return Failure(clip.name, "error", f"{type(error).__name__}: {message}"[:300])


def progress(items: Iterable[R], total: int, what: str) -> Iterator[R]:
    """A bar where a person watches, else a plain line every few seconds."""
    if is_terminal():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=what, unit="clip", file=sys.stderr)
        return
    said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - said >= _PLAIN_EVERY_S or done == total:
            said = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)


def default_workers() -> int:
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
