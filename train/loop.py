"""The training loop of every stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from syncflow.errors import UserError
from syncflow.train import guard
from syncflow.train.checkpoint import Progress, Saver
from syncflow.train.collate import MicroBatch
from syncflow.train.config import StageConfig, learning_rate
from syncflow.train.ema import Ema
from syncflow.train.engine import Engine, Ranks, everyones
from syncflow.train.launch import StopRequest
from syncflow.train.report import Meter, Report
from syncflow.train.watchdog import Watchdog


@dataclass
class Training:
    """All that a stage's loop works with."""

    config: StageConfig
    ranks: Ranks
    engine: Engine
    ema: Ema
    progress: Progress
    batches: Iterator[list[MicroBatch]]
    saver: Saver
    report: Report | None
    """On the first rank."""
    validate: Callable[[int], None]
    """Called with the number of steps done, where one is due."""
    stop: StopRequest
    watchdog: Watchdog


def train(run: Training) -> bool:
    """Train until the last step; false if asked to stop before (the state is saved then).

    Raises:
        UserError: the data cannot be read, or too many steps were bad.
    """
    config, engine, progress, watch = run.config, run.engine, run.progress, run.watchdog
    while progress.step < config.steps:
        started = time.monotonic()
        watch.phase("waiting for data")
        batches = next(run.batches)
        waited_s = time.monotonic() - started

        watch.phase("forward and backward")
        meter = Meter(config, run.ranks.device)
        for i, batch in enumerate(batches):
            if i:
                engine.accumulate()
            meter.add(batch, *engine.backward(batch))
        unsaved = run.saver.take_problem()
        watch.phase("summing over ranks")
        totals = meter.reduce(engine.gradient_squares(), waited_s, run.stop.signal != 0, bool(unsaved))

        bad = guard.is_bad(totals, progress, config.guard)
        watch.phase("optimizer")
        run.saver.wait_copied()
        lr = learning_rate(config, progress.step)
        engine.update(lr, skip=bool(bad))
        if not bad:
            run.ema.update()
        guard.count(progress, totals, bad)
        progress.step += 1

        if run.report:
            run.report.step(progress.step, totals, lr, time.monotonic() - started, progress.skipped)
        if bad:
            ids = [i for rank in everyones([i for batch in batches for i in batch.ids], run.ranks) for i in rank]
            if run.report:
                run.report.say(f"step {progress.step} skipped: {bad}; clips {', '.join(ids)}")
            guard.check(progress, bad, ids, config.guard)
        if totals.unsaved:
            _tell_unsaved(run, unsaved)
        if totals.stop or progress.step % config.checkpoint.every == 0 or progress.step == config.steps:
            watch.phase("checkpoint")
            run.saver.save(engine, run.ema, snapshot(run))
        if totals.stop and progress.step < config.steps:
            finish_saving(run)
            return False
        if config.validation.every and progress.step % config.validation.every == 0:
            watch.phase("validation")
            run.validate(progress.step)
    finish_saving(run)
    return True


def snapshot(run: Training) -> Progress:
    run.progress.ema_updates = run.ema.updates
    run.progress.adam_step = run.engine.adam_step
    return run.progress


def finish_saving(run: Training) -> None:
    """Wait for the save under way; one that failed ends the job, since nothing would come after it."""
    run.saver.wait()
    problems = [problem for problem in everyones(run.saver.take_problem(), run.ranks) if problem]
    if problems:
        raise UserError(f"{problems[0]}; checkpoints before it are whole: make room and run the same command again")


def _tell_unsaved(run: Training, mine: str) -> None:
    problem = next((p for p in everyones(mine, run.ranks) if p), "")
    if run.report:
        run.report.say(f"{problem}; training goes on, the checkpoint before is kept")
