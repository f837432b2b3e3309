"""Processes of a job: `syncflow train` starts its own ranks with torchrun; under torchrun it is a rank.

Exit codes: 0 done; 2 something the user can mend; 3 a rank was killed or lost; 4 a rank stalled; 75 (EX_TEMPFAIL)
preempted: state saved, the same command goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
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
from syncflow.samples import first_line
from syncflow.train.config import StageConfig
from syncflow.train.engine import ALONE
from syncflow.train.hosts import JOIN_S, meet

PREEMPTED, LOST, STALLED = 75, 3, 4
_REPORTS, _LAUNCHER = "SYNCFLOW_RANK_REPORTS", "SYNCFLOW_LAUNCHER"


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
    die_with_parent(int(os.environ[_LAUNCHER]))
    try:
        code = work()
        if code:
            report_end(code, "")
        # torchrun ends the other ranks as soon as one fails; a preempted rank has saved and is no failure.
        return 0
    except UserError as error:
        report_end(error.exit_code, str(error))
        return error.exit_code
    except Exception as error:
        if short := out_of_memory(error, "while starting"):
            report_end(short.exit_code, str(short))
            return short.exit_code
        if not _lost_another(error):
            report_end(1, traceback.format_exc())
            return 1
        report_end(
            LOST,
            f"rank {os.environ['RANK']} on {os.uname().nodename} lost another rank ({first_line(error)}); if no line "
            "says why, its host or the network went down: the same command goes on from the last checkpoint",
            consequence=True,
        )
        return LOST


def out_of_memory(error: Exception, doing: str) -> JobError | None:
    """What to lower, in one line, where `error` is of memory that could not be had."""
    text = str(error).lower()
    if not isinstance(error, MemoryError) and "out of memory" not in text and "can't allocate memory" not in text:
        return None
    return JobError(
        f"rank {os.environ.get('RANK', '0')} ran out of memory {doing} ({first_line(error)[:200]}); lower micro_batch, "
        "or set engine.activation_checkpointing, a higher engine.zero_stage or engine.offload_optimizer",
        LOST,
    )


def _lost_another(error: Exception) -> bool:
    """Whether a collective failed because a rank or its host is gone (gloo's and NCCL's words for it)."""
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("gloo/transport", "Connection closed by peer", "remote process exited")
    )


def report_end(code: int, message: str, consequence: bool = False) -> None:
    """Tell the launcher why this rank ends (no launcher: tell the terminal).

    Args:
        consequence: it ends because another did, whose report comes first.
    """
    rank = os.environ.get("RANK", "0")
    if _REPORTS not in os.environ:
        print(f"syncflow train: error: {message}", file=sys.stderr, flush=True)
        return
    path = Path(os.environ[_REPORTS]) / f"{rank}.json"
    if not path.exists():
        report = {"rank": int(rank), "code": code, "message": message, "consequence": consequence, "time": time.time()}
        write_whole(path, json.dumps(report))


def launch(config: StageConfig, argv: list[str]) -> int:
    """Start the ranks of this machine with torchrun and wait for them.

    Raises:
        UserError, JobError: what the ranks reported, as one line.
    """
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.run").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="syncflow-ranks-") as reports:
        os.environ[_REPORTS], os.environ[_LAUNCHER] = reports, str(os.getpid())
        os.environ.pop(ALONE, None)
        os.environ.setdefault("OMP_NUM_THREADS", str(config.engine.threads))
        meeting = meet(config.rendezvous, JOIN_S) if config.nodes > 1 else None
        if meeting and meeting.interface:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", meeting.interface)
        arguments = ("-u", "-m", "syncflow", "train", *argv)
        torchrun = LaunchConfig(
            min_nodes=config.nodes,
            max_nodes=config.nodes,
            nproc_per_node=config.ranks,
            run_id=hashlib.sha256(config.output.encode()).hexdigest()[:16],  # no other job is met by mistake
            rdzv_backend="c10d",
            rdzv_endpoint=config.rendezvous if meeting else "localhost:0",
            rdzv_configs={"is_host": meeting.is_host, "timeout": JOIN_S} if meeting else {},
            local_addr=meeting.address if meeting else "localhost",
            max_restarts=0,
            monitor_interval=0.1,
            # SIGTERM is ours: torchrun would give the ranks 30 s to save and then kill them.
            signals_to_handle="SIGQUIT",
        )
        stop = _Forward()
        failed = ""
        with stop.listening():
            try:
                try:
                    elastic_launch(torchrun, sys.executable)(*arguments)
                except RendezvousConnectionError:
                    # Two machines of a job that are one (tests, or two jobs' containers): the other was first.
                    if not torchrun.rdzv_configs.get("is_host") or meet(config.rendezvous).is_host:
                        raise
                    torchrun.rdzv_configs["is_host"] = False
                    elastic_launch(torchrun, sys.executable)(*arguments)
            except Exception as error:
                failed = _describe(error, config)
        del os.environ[_REPORTS], os.environ[_LAUNCHER]
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
    reports.sort(key=lambda r: (r["consequence"], r["code"] == 1, r["time"]))
    for report in reports:
        if report["code"] == PREEMPTED:
            if stopped_by == signal.SIGINT:
                raise KeyboardInterrupt
            return PREEMPTED
        if (report["consequence"] or report["code"] == 1) and "was killed by" in failed:
            break
        if report["code"] == 1:
            lines = report["message"].strip().splitlines()
            print(report["message"], file=sys.stderr, end="")
            raise JobError(f"rank {report['rank']} failed: {lines[-1]} (traceback above)", 1)
        raise JobError(report["message"], report["code"])
    if failed:
        raise JobError(f"{failed}; the same command goes on from the last checkpoint", LOST)
    return 0


def _describe(error: Exception, config: StageConfig) -> str:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    if isinstance(error, ChildFailedError) and error.failures:
        # Ranks that lose a partner fail too: the one that a signal killed is the cause (SIGTERM is torchrun's own).
        killed = [f for f in error.failures.values() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
        first = min(killed or error.failures.values(), key=lambda failure: failure.timestamp)
        code = first.exitcode
        why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"rank {first.local_rank} {why}{hint}"
    if isinstance(error, RendezvousError):
        return f"the {config.nodes} machines did not meet at {config.rendezvous} ({first_line(error)})"
    return f"torchrun: {first_line(error)}"
