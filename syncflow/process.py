"""What a job must know of its process: the code it runs, its memory, and not outliving whoever started it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def die_with_parent(parent: int) -> None:
    """Linux: SIGKILL this process when process `parent`, which started it, dies: a killed job leaves nothing running.

    A parent that died before it was asked for is no parent any more, and nothing would be sent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def keep_freed_memory() -> None:
    """Linux, on a CPU: have malloc keep what a step frees for the next one.

    By default glibc hands large blocks back to the system at once, and every step faults the same pages in again.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def git_commit() -> str:
    """The commit of the running code, with "+changes" where the checkout differs from it; "" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run(["git", "-C", root, "status", "-s", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "") if head.returncode == 0 else ""
