"""Which clips workers died on, kept beside the data set so that a restarted job knows it too."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from syncflow.preprocess.plan import Unit
from syncflow.preprocess.store import Store
from syncflow.preprocess.worker import JOURNAL, Trouble

STRIKES = "_job/strikes"
CRASHES = 2
"""Native crashes of workers on one clip, after which it is quarantined."""
DEATHS = 3
"""The same for deaths without a trace, which an operator's or the kernel's SIGKILL also leaves."""


@dataclass
class _Record:
    deaths: int = 0
    crashes: int = 0
    hung: bool = False


@dataclass
class Strikes:
    """Deaths by unit and clip. Deaths with several clips open make suspects; alone, a clip collects strikes."""

    store: Store
    _known: dict[str, dict[str, _Record]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.store.names(STRIKES):
            rows = json.loads(self.store.read(f"{STRIKES}/{name}") or b"{}")
            self._known[name.removesuffix(".json")] = {clip: _Record(**row) for clip, row in rows.items()}

    def trouble(self, unit: Unit) -> Trouble:
        records = self._known.get(unit.key, {})
        quarantined = {clip: reason for clip, record in records.items() if (reason := _verdict(record))}
        return Trouble(frozenset(records) - frozenset(quarantined), quarantined)

    def record(self, unit: Unit, attempt: str, hung: bool) -> None:
        """A worker died, or was ended because it hung, in this attempt at `unit`."""
        ids = json.loads(self.store.read(f"{JOURNAL}/{attempt}.json") or b"[]")
        crashed = bool(self.store.read(f"{JOURNAL}/{attempt}.trace"))
        records = self._known.setdefault(unit.key, {})
        for clip in ids:
            record = records.setdefault(clip, _Record())
            if len(ids) == 1:
                record.deaths += 1
                record.crashes += crashed
                record.hung |= hung
        if ids:
            rows = {clip: vars(record) for clip, record in records.items()}
            self.store.write(f"{STRIKES}/{unit.key}.json", json.dumps(rows).encode())
        self.forget(attempt)

    def forget(self, attempt: str) -> None:
        for suffix in (".json", ".trace"):
            self.store.remove(f"{JOURNAL}/{attempt}{suffix}")


def _verdict(record: _Record) -> str:
    """The reason a clip is dropped for, or nothing."""
    if record.hung:
        return "timeout"
    return "crashed_worker" if record.crashes >= CRASHES or record.deaths >= DEATHS else ""
