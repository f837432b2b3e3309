"""A pool of workers: Ray actors of our own, or this process.

Actors are never restarted by Ray: a lost one is replaced by a new one and its unit goes back to the queue, and an
actor gets work only after it answered. That survives lost workers and lost nodes without hanging.
"""

from __future__ import annotations

import os
import secrets
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from syncflow.errors import UserError
from syncflow.preprocess.config import PreprocessConfig
from syncflow.preprocess.plan import Unit
from syncflow.preprocess.store import open_store
from syncflow.preprocess.strikes import Strikes
from syncflow.preprocess.worker import Encoders, Outcome, Status, Trouble, Worker
from syncflow.samples import first_line

TICK_S = 0.5
TRIES = 3
"""Attempts at a unit whose worker lives on but reports an error, such as a full disk."""

OnOutcome = Callable[[Unit, Outcome], None]
OnTick = Callable[[Sequence[Status]], None]


class Pool(Protocol):
    def encoders(self) -> Encoders: ...

    def run(self, units: Iterable[Unit], fingerprint: str, on_outcome: OnOutcome, on_tick: OnTick) -> None:
        """Do every unit. `on_outcome` may raise to stop."""

    def close(self) -> None: ...


def open_pool(config: PreprocessConfig, output: str, worker: type[Worker] = Worker) -> Pool:
    return (InlinePool if config.ray.workers == 0 else RayPool)(config, output, worker)


class InlinePool:
    """The same worker in this process, for small jobs and tests. Nothing outlives a clip that crashes it."""

    def __init__(self, config: PreprocessConfig, output: str, worker: type[Worker] = Worker) -> None:
        self.worker = worker(config, output, "cuda" if config.ray.gpus_per_worker else "cpu")

    def encoders(self) -> Encoders:
        return self.worker.encoders()

    def run(self, units: Iterable[Unit], fingerprint: str, on_outcome: OnOutcome, on_tick: OnTick) -> None:
        for unit in units:
            on_outcome(unit, self.worker.run(unit, fingerprint, f"{unit.key}.{uuid.uuid4().hex[:8]}", Trouble()))
            on_tick([])

    def close(self) -> None:
        return


@dataclass
class _Actor:
    handle: Any
    ping: Any
    """Its first answer, once it has loaded its networks; until then it gets no work."""
    ready: bool = False
    unit: Unit | None = None
    attempt: str = ""
    result: Any = None
    status: Any = None
    heard_s: float = 0.0
    last: Status = field(default_factory=Status)


class RayPool:
    def __init__(self, config: PreprocessConfig, output: str, worker: type[Worker] = Worker) -> None:
        self.config, self.output = config, output
        self.store = open_store(output)
        self.strikes = Strikes(self.store)
        self._ray, self._started_ray = _connect(config)
        self._workers = _count(config, self._ray.cluster_resources())
        gpus, cpus = config.ray.gpus_per_worker, config.ray.cpus_per_worker
        self._remote = self._ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0, max_concurrency=2
        )(worker)
        self._arguments = (config, output, "cuda" if gpus else "cpu", max(1, int(cpus)))
        self._actors: list[_Actor] = []
        self._failed_starts = 0
        self._failures: Counter[str] = Counter()

    def encoders(self) -> Encoders:
        for _ in range(TRIES):
            while len(self._actors) < self._workers:  # all of them load their networks meanwhile
                self._spawn()
            (first,), _ = self._ray.wait([actor.ping for actor in self._actors], num_returns=1)
            actor = next(actor for actor in self._actors if actor.ping == first)
            try:
                found = self._ray.get(first)
                actor.ready = True
                return found
            except self._ray.exceptions.RayTaskError as error:
                raise _as_user_error(error, "a worker cannot start") from error
            except self._ray.exceptions.RayError:
                self._actors.remove(actor)
        raise UserError("workers die while they load the networks: is there enough memory? try fewer ray.workers")

    def run(self, units: Iterable[Unit], fingerprint: str, on_outcome: OnOutcome, on_tick: OnTick) -> None:
        todo = iter(units)
        waiting: deque[Unit] = deque()
        while True:
            self._refill(waiting, todo)
            self._hand_out(waiting, fingerprint)
            if not waiting and not any(actor.unit for actor in self._actors):
                return
            self._hear(waiting, on_outcome)
            self._watch(waiting)
            on_tick([actor.last for actor in self._actors if actor.unit])

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._actors.clear()
        if self._started_ray:
            self._ray.shutdown()

    def _refill(self, waiting: deque[Unit], todo: Iterator[Unit]) -> None:
        while len(waiting) < self._workers:
            unit = next(todo, None)
            if unit is None:
                return
            waiting.append(unit)

    def _hand_out(self, waiting: deque[Unit], fingerprint: str) -> None:
        busy = sum(actor.unit is not None for actor in self._actors)
        while len(self._actors) < min(self._workers, busy + len(waiting)):
            self._spawn()
        for actor in self._actors:
            if waiting and actor.ready and actor.unit is None:
                unit = waiting.popleft()
                actor.unit, actor.attempt = unit, f"{unit.key}.{uuid.uuid4().hex[:8]}"
                actor.heard_s, actor.last, actor.status = time.monotonic(), Status(), None
                trouble = self.strikes.trouble(unit)
                actor.result = actor.handle.run.remote(unit, fingerprint, actor.attempt, trouble)

    def _spawn(self) -> None:
        handle = self._remote.remote(*self._arguments)
        self._actors.append(_Actor(handle, ping=handle.encoders.remote()))

    def _hear(self, waiting: deque[Unit], on_outcome: OnOutcome) -> None:
        """Wait a moment for answers, and act on them."""
        asked = {}
        for actor in self._actors:
            if not actor.ready:
                asked[actor.ping] = actor
            if actor.result is not None:
                asked[actor.result] = actor
        ready, _ = self._ray.wait(list(asked), num_returns=1, timeout=TICK_S)
        for ref in ready:
            actor = asked[ref]
            unit = actor.unit
            try:
                answer = self._ray.get(ref)
            except self._ray.exceptions.RayTaskError as error:
                if unit is None:
                    raise _as_user_error(error, "a worker cannot start") from error
                actor.unit = actor.result = None
                self._failed(unit, error)
                waiting.append(unit)
                continue
            except self._ray.exceptions.RayError as error:
                self._lost(actor, waiting, error)
                continue
            if unit is None:
                actor.ready, self._failed_starts = True, 0
            else:
                actor.unit = actor.result = None
                on_outcome(unit, answer)

    def _failed(self, unit: Unit, error: Any) -> None:
        self._failures[unit.key] += 1
        if isinstance(error.cause, UserError) or self._failures[unit.key] >= TRIES:
            raise _as_user_error(error, f"{unit.key} failed {self._failures[unit.key]} times") from error

    def _lost(self, actor: _Actor, waiting: deque[Unit], error: BaseException | None, hung: bool = False) -> None:
        """Replace an actor that died; see which clip it died on, unless its node went with it."""
        self._actors.remove(actor)
        if actor.unit is None:
            self._failed_starts += 1
            if self._failed_starts > TRIES * self._workers:
                raise UserError(f"workers die at their start: {first_line(error or RuntimeError())}")
            return
        if error is not None and _node_died(str(error)):
            self.strikes.forget(actor.attempt)
        else:
            self.strikes.record(actor.unit, actor.attempt, hung)
        waiting.append(actor.unit)

    def _watch(self, waiting: deque[Unit]) -> None:
        """Ask every busy actor what it is doing; end those that hang."""
        limit_s = self.config.clip_timeout_s * 1.5 + 5  # ffmpeg's own limit comes first
        for actor in [actor for actor in self._actors if actor.unit]:
            if actor.status is None:
                actor.status = actor.handle.status.remote()
            elif self._ray.wait([actor.status], timeout=0)[0]:
                try:
                    actor.last = self._ray.get(actor.status)
                    actor.heard_s = time.monotonic()
                except self._ray.exceptions.RayError:
                    pass  # its result says so too
                actor.status = None
            silent_s = time.monotonic() - actor.heard_s
            if actor.last.open_s > limit_s or silent_s > limit_s + 60:
                self._ray.kill(actor.handle)
                self._lost(actor, waiting, None, hung=True)


def _connect(config: PreprocessConfig) -> tuple[Any, bool]:
    """Ray, connected, and whether it was started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = config.ray.address or os.environ.get("RAY_ADDRESS", "")
    if not address and "RAY_AUTH_MODE" not in os.environ:
        # Ray listens on all interfaces: nobody without this job's token may give it work.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        return ray, False
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"ray.address {address}: no Ray cluster answers there ({first_line(error)})") from error
        return ray, True
    cpus = max(os.cpu_count() or 1, int((config.ray.workers or 1) * config.ray.cpus_per_worker + 0.999))
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=100 << 20, **quiet)
    return ray, True


def _count(config: PreprocessConfig, resources: dict[str, float]) -> int:
    if config.ray.workers is not None:
        return config.ray.workers
    if config.ray.gpus_per_worker:
        workers = int(resources.get("GPU", 0) / config.ray.gpus_per_worker)
        if not workers:
            raise UserError(f"ray.gpus_per_worker is {config.ray.gpus_per_worker:g}, but Ray sees no GPU; set it to 0")
        return workers
    return max(1, int(resources.get("CPU", 1) / config.ray.cpus_per_worker))


def _node_died(message: str) -> bool:
    return "node has died" in message or "node died" in message or "node was terminated" in message


def _as_user_error(error: Any, what: str) -> UserError:
    if isinstance(error.cause, UserError):
        return error.cause
    return UserError(f"{what}: {type(error.cause).__name__}: {first_line(error.cause)}")
