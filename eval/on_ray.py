"""Clips over a Ray cluster: small batches as tasks, which Ray starts again where their worker or node died.

The folders of clips, the weights and the output are read under the same paths by every node.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from syncflow.errors import UserError
from syncflow.eval.clips import ClipFile, Failure

_BATCH = 8
"""Clips per task at most: what is lost with a worker, less what it had already kept."""
_TRIES = 2
"""How often Ray starts a task again whose worker died, before its clips are tried one by one."""

Attempt = Callable[..., Any]
Outcome = tuple[int, Any]


def outcomes(
    attempt: Attempt,
    measure: Callable[..., Any],
    clips: Sequence[ClipFile],
    arguments: tuple[Any, ...],
    workers: int,
    address: str,
) -> Iterator[Outcome]:
    """(index, `attempt(measure, clip, arguments)`) of every clip, in the order in which they are done.

    Args:
        address: of the cluster: auto, host:port; `local` starts Ray here with `workers` workers.

    Raises:
        UserError: no cluster answers.
    """
    with _connected(address, workers) as ray:
        cores = workers if address == "local" else max(1, int(ray.cluster_resources().get("CPU", 1)))
        size = max(1, min(_BATCH, len(clips) // (4 * cores)))
        batch = ray.remote(num_cpus=1, max_retries=_TRIES)(_attempt_all)
        kept = ray.put((measure, arguments))
        clips = [replace(clip, path=clip.path.absolute()) for clip in clips]  # workers run in folders of their own
        waiting = [list(range(first, min(first + size, len(clips)))) for first in range(0, len(clips), size)][::-1]
        running: dict[Any, list[int]] = {}
        while waiting or running:
            while waiting and len(running) < 2 * cores:  # so that a big set does not fill the cluster's memory
                indices = waiting.pop()
                running[batch.remote(attempt, [clips[i] for i in indices], kept)] = indices
            (done,), _ = ray.wait(list(running))
            indices = running.pop(done)
            try:
                yield from zip(indices, ray.get(done), strict=True)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                if len(indices) > 1:  # only the culprit is lost
                    waiting += [[i] for i in indices]
                    continue
                detail = f"its worker died while this clip was measured ({type(error).__name__})"
                yield indices[0], Failure(clips[indices[0]].name, "crash", detail)


def _attempt_all(attempt: Attempt, clips: Sequence[ClipFile], kept: tuple[Any, tuple[Any, ...]]) -> list[Any]:
    measure, arguments = kept
    return [attempt(measure, clip, arguments) for clip in clips]


@contextmanager
def _connected(address: str, workers: int) -> Iterator[Any]:
    if address == "local" and "RAY_AUTH_MODE" not in os.environ:
        # Ray listens on all interfaces: nobody without this run's token may give it work
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--ray needs the package ray (pip install 'syncflow[preprocess]')") from error
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        quiet |= {"num_cpus": workers, "include_dashboard": False}
    try:
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if colon:  # Ray itself waits for more than a minute
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(f"--ray {address}: no Ray cluster answers there ({first})") from error
    try:
        yield ray
    finally:
        ray.shutdown()
