"""One bar for a person who watches, a plain line every few seconds for a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from syncflow.config import is_terminal
from syncflow.preprocess.worker import Status

EVERY_S = 5.0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Clips done, kept and dropped, per second, and the time left."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.done = self.kept = 0
        self._live = (0, 0)
        self._began = self._said = time.monotonic()
        self._bar: tqdm | None = None

    def __enter__(self) -> Progress:
        if is_terminal():
            # Some terminals do not tell their size, and tqdm would draw a bar of none.
            wide = os.get_terminal_size(sys.stderr.fileno()).columns > 0
            size: dict[str, Any] = {"dynamic_ncols": True} if wide else {"ncols": 80, "nrows": 24}
            self._bar = tqdm(total=self.total, desc=self.what, unit=" clips", **size)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live = (0, 0)
        if self._bar is not None:
            self._show_bar()
            self._bar.close()
        elif kind is None and self.done < self.total:
            say(self._line())

    def finished(self, done: int, kept: int) -> None:
        """A unit is committed."""
        self.done += done
        self.kept += kept
        if self._bar is None and self.done >= self.total:
            self._live = (0, 0)
            say(self._line())

    def tick(self, statuses: Sequence[Status]) -> None:
        """Where the units in work are."""
        self._live = (sum(s.done for s in statuses), sum(s.kept for s in statuses))
        if self._bar is not None:
            self._show_bar()
        elif self.done < self.total and time.monotonic() - self._said >= EVERY_S:
            self._said = time.monotonic()
            say(self._line())

    def _counts(self) -> tuple[int, int]:
        return min(self.total, self.done + self._live[0]), self.kept + self._live[1]

    def _show_bar(self) -> None:
        assert self._bar is not None
        done, kept = self._counts()
        self._bar.n = max(self._bar.n, done)  # a unit that is begun again would go back
        self._bar.set_postfix(kept=kept, dropped=max(0, done - kept))

    def _line(self) -> str:
        done, kept = self._counts()
        rate = done / max(1e-9, time.monotonic() - self._began)
        left = f", {(self.total - done) / rate:.0f} s left" if rate and done < self.total else ""
        return f"{self.what}: {done}/{self.total}, {kept} kept, {max(0, done - kept)} dropped, {rate:.1f}/s{left}"
