"""What this machine gives at the moment: the limit that a benchmark's figures are held against.

    python benchmarks/machine.py

Cores that are shared or throttled give two processes less than twice the work of one, whoever asks.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

WORK = [sys.executable, "-c", "for _ in range(40_000_000): pass"]


def gain_of_two(repeats: int = 3) -> float:
    """How much more two processes that share nothing get done than one, the best of a few."""
    return max(2 * _seconds(1) / _seconds(2) for _ in range(repeats))


def resident_bytes(field: str) -> int:
    """Of this process: VmRSS now, or VmHWM at most. (What `getrusage` calls the peak begins with the parent's.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _seconds(processes: int) -> float:
    began = time.perf_counter()
    running = [subprocess.Popen(WORK) for _ in range(processes)]
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError("a process that only counts has failed")
    return time.perf_counter() - began


if __name__ == "__main__":
    print(f"two processes that share nothing: {gain_of_two():.2f} x one")
