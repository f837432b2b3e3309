"""Notices that no step ends any more, and says which rank the others wait for."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

from syncflow.files import write_whole
from syncflow.train.engine import Ranks
from syncflow.train.launch import STALLED, report_end


class Watchdog:
    """Each rank notes its phase in a small file; a thread ends the rank when it has not moved for `stall_s`."""

    def __init__(self, folder: Path, ranks: Ranks, stall_s: float) -> None:
        self.folder, self.ranks, self.stall_s = folder, ranks, stall_s
        self._count, self._phase, self._moved = 0, "starting", time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def phase(self, name: str) -> None:
        """This rank now does `name`."""
        self._count += 1
        self._phase, self._moved = name, time.monotonic()

    @property
    def doing(self) -> str:
        return self._phase

    def _watch(self) -> None:
        interval = min(5.0, self.stall_s / 8)
        while not self._stop.wait(interval):
            self._write()
            if time.monotonic() - self._moved > self.stall_s:
                report_end(STALLED, self._blame())
                os._exit(STALLED)

    def _write(self) -> None:
        path = self.folder / f"rank-{self.ranks.rank:05d}.json"
        values = {"count": self._count, "phase": self._phase, "host": os.uname().nodename, "pid": os.getpid()}
        write_whole(path, json.dumps(values))

    def _blame(self) -> str:
        """The rank that came least far: the others wait for it."""
        notes = {}
        for rank in range(self.ranks.world_size):
            path = self.folder / f"rank-{rank:05d}.json"
            try:
                # Written when: by the file system's clock, for those of the machines may differ.
                notes[rank] = {**json.loads(path.read_text()), "written": path.stat().st_mtime}
            except (OSError, ValueError):
                return f"rank {rank} never came up; the same command goes on from the last checkpoint"
        # A host that is gone writes no notes; a rank that hangs still does, but came least far.
        newest = max(note["written"] for note in notes.values())
        silent = [rank for rank, note in notes.items() if newest - note["written"] > self.stall_s / 2]
        rank = min(silent or notes, key=lambda r: (notes[r]["count"], r))
        note = notes[rank]
        return (
            f"no step ended for {self.stall_s:.0f} s: rank {rank} (host {note['host']}, process {note['pid']}) stalled "
            f"while {note['phase']}; the same command goes on from the last checkpoint"
        )
