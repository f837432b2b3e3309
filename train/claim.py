"""One job at a time in an output folder: two would cut off each other's metrics and delete each other's checkpoints."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from syncflow.errors import UserError
from syncflow.train.engine import Ranks, everyones

BEAT_S = 4.0
_LINE = 512


@contextlib.contextmanager
def claim(output: Path, ranks: Ranks) -> Iterator[None]:
    """Hold `output` for this job, on all ranks together.

    The first rank locks `OUTPUT/running` and writes to it every few seconds. On one machine the lock decides: the
    kernel drops it however the job ends. A file system may not tell of locks of other machines, or keep those of a
    dead one; so for them it decides whether the file still changes, which needs no clocks that agree.

    Raises:
        UserError: another job holds it.
    """
    with contextlib.ExitStack() as held:
        problem = ""
        if ranks.first:
            try:
                output.mkdir(parents=True, exist_ok=True)
                held.enter_context(_held(output / "running"))
            except UserError as error:
                problem = str(error)
        if problem := everyones(problem, ranks)[0]:
            raise UserError(problem)
        yield


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    before = _read(path)
    elsewhere = bool(before) and before.get("machine") != _machine()
    if elsewhere:
        deadline = time.monotonic() + 2.5 * BEAT_S
        while time.monotonic() < deadline:
            time.sleep(BEAT_S / 8)
            if (now := _read(path)) != before and now:
                raise _taken(path, now)
    with path.open("r+b" if path.exists() else "w+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not elsewhere:
                raise _taken(path, before) from None
        except OSError:  # a file system without locks
            pass
        _write(file.fileno(), 0)  # before anything else: who comes next must find it
        done = threading.Event()
        beats = threading.Thread(target=_beat, args=(file.fileno(), done), name="claim", daemon=True)
        beats.start()
        try:
            yield
        finally:
            done.set()
            beats.join()
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), 0)  # the next job need not watch it


def _beat(handle: int, done: threading.Event) -> None:
    count = 1
    while not done.wait(BEAT_S):
        _write(handle, count)
        count += 1


def _write(handle: int, count: int) -> None:
    note = {"host": os.uname().nodename, "pid": os.getpid(), "machine": _machine(), "beat": count}
    with contextlib.suppress(OSError):  # a full disk
        os.pwrite(handle, json.dumps(note).ljust(_LINE).encode(), 0)


def _read(path: Path) -> dict:
    """Opened anew each time, which is when shared file systems look again; empty where there is nothing to read."""
    try:
        note = json.loads(path.read_text() or "{}")
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _taken(path: Path, note: dict) -> UserError:
    who = f"process {note['pid']} on {note['host']}" if {"pid", "host"} <= note.keys() else "it has just started"
    return UserError(f"{path.parent} is in use by another job ({who}): stop that one, or give another --output")


def _machine() -> str:
    """The same in all containers of a machine, another after it was started anew."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else os.uname().nodename
