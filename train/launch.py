"""Processes of a job: `syncflow train` starts its own ranks with torchrun; under torchrun it is a rank.

Exit codes: 0 done; 2 something the user can mend; 3 a rank was killed or lost; 4 a rank stalled; 75 (EX_TEMPFAIL)
preempted: state saved, the same command goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from syncflow.errors import UserError
from syncflow.files import write_whole
from syncflow.process import die_with_parent
from syncflow.train.config import StageConfig
from syncflow.train.engine import ALONE

PREEMPTED, LOST, STALLED = 75, 3, 4
_REPORTS = "SYNCFLOW_RANK_REPORTS"


class JobError(UserError):
    """The job ended for a reason that is not in the configuration."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_rank() -> bool:
    """Whether torchrun (or another launcher that speaks its environment) started this process."""
    return "RANK" in os.environ and ALONE not in os.environ


class StopRequest:
    """Set by SIGTERM or SIGINT; the loop looks at it once a step, on all ranks together."""

    def __init__(self) -> None:
        self.signal = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice
        self.signal = number


def run_rank(work: Callable[[], int]) -> int:
    """Run as a rank: whatever ends it is reported to the launcher, which prints it once."""
    if _REPORTS not in os.environ:
        return work()
    die_with_parent()
    try:
        code = work()
        if code:
            report_end(code, "")
        # torchrun ends the other ranks as soon as one fails; a preempted rank has saved and is no failure.
        return 0
    except UserError as error:
        report_end(error.exit_code, str(error))
        return error.exit_code
    except MemoryError as error:
        report_end(LOST, _out_of_memory(str(error)))
        return LOST
    except Exception as error:
        text = str(error)
        if "out of memory" in text.lower() or "can't allocate memory" in text.lower():
            report_end(LOST, _out_of_memory(text))
        else:
            report_end(1, traceback.format_exc())
        return 1


def report_end(code: int, message: str) -> None:
    """Tell the launcher why this rank ends (no launcher: tell the terminal)."""
    rank = os.environ.get("RANK", "0")
    if _REPORTS not in os.environ:
        print(f"syncflow train: error: {message}", file=sys.stderr, flush=True)
        return
    path = Path(os.environ[_REPORTS]) / f"{rank}.json"
    if not path.exists():
        write_whole(path, json.dumps({"rank": int(rank), "code": code, "message": message, "time": time.time()}))


def launch(config: StageConfig, argv: list[str]) -> int:
    """Start the ranks of this machine with torchrun and wait for them.

    Raises:
        UserError, JobError: what the ranks reported, as one line.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.run").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="syncflow-ranks-") as reports:
        os.environ[_REPORTS] = reports
        os.environ.pop(ALONE, None)
        os.environ.setdefault("OMP_NUM_THREADS", str(config.engine.threads))
        several = config.nodes > 1
        torchrun = LaunchConfig(
            min_nodes=config.nodes,
            max_nodes=config.nodes,
            nproc_per_node=config.ranks,
            run_id="syncflow",
            rdzv_backend="c10d",
            rdzv_endpoint=config.rendezvous if several else "localhost:0",
            local_addr=None if several else "localhost",
            max_restarts=0,
            monitor_interval=0.1,
            # SIGTERM is ours: torchrun would give the ranks 30 s to save and then kill them.
            signals_to_handle="SIGQUIT",
        )
        stop = _Forward()
        failed = ""
        with stop.listening():
            try:
                elastic_launch(torchrun, sys.executable)("-u", "-m", "syncflow", "train", *argv)
            except Exception as error:
                failed = _describe(error)
        del os.environ[_REPORTS]
        return _verdict([json.loads(p.read_text()) for p in Path(reports).glob("*.json")], failed, stop.signal)


class _Forward(StopRequest):
    """SIGTERM to the launcher goes on to its ranks, which save and end by themselves."""

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.signal != 0
        self.signal = number
        for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL if again and number == signal.SIGINT else signal.SIGTERM)


def _verdict(reports: list[dict], failed: str, stopped_by: int) -> int:
    """One exit code or one error from what the ranks said."""
    reports.sort(key=lambda r: (r["code"] == 1, r["time"]))  # when a rank fails, others fail of its absence
    for report in reports:
        if report["code"] == PREEMPTED:
            if stopped_by == signal.SIGINT:
                raise KeyboardInterrupt
            return PREEMPTED
        if report["code"] == 1 and "was killed by" in failed:
            break
        if report["code"] == 1:
            lines = report["message"].strip().splitlines()
            print(report["message"], file=sys.stderr, end="")
            raise JobError(f"rank {report['rank']} failed: {lines[-1]} (traceback above)", 1)
        raise JobError(report["message"], report["code"])
    if failed:
        raise JobError(f"{failed}; the same command goes on from the last checkpoint", LOST)
    return 0


def _describe(error: Exception) -> str:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if isinstance(error, ChildFailedError) and error.failures:
        # Ranks that lose a partner fail too: the one that a signal killed is the cause (SIGTERM is torchrun's own).
        killed = [f for f in error.failures.values() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
        first = min(killed or error.failures.values(), key=lambda failure: failure.timestamp)
        code = first.exitcode
        why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"rank {first.local_rank} {why}{hint}"
    return f"torchrun: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def _out_of_memory(text: str) -> str:
    rank = os.environ.get("RANK", "0")
    first = text.strip().splitlines()[0] if text.strip() else "MemoryError"
    return (
        f"rank {rank} ran out of memory ({first[:200]}); lower micro_batch, or set engine.activation_checkpointing, "
        "a higher engine.zero_stage or engine.offload_optimizer"
    )
