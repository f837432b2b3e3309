"""Metrics to MLflow through a spool: a job appends lines to a file, a thread ships them, training never waits.

A server that is down must not block or kill a job that costs a thousand GPU-hours. So `log` only appends a JSON
line to `<spool_dir>/spool.jsonl`; a daemon thread sends batches and remembers how far it came in
`spool.state.json`; what could not be sent is sent by the next start. Nothing is lost, nothing sent twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from syncflow.errors import UserError
from syncflow.files import write_whole
from syncflow.tracker import Tracker, TrackingConfig

SPOOL, STATE = "spool.jsonl", "spool.state.json"
BATCH_LINES = 300
RETRY_S = (1, 2, 5, 10, 30)
SYSTEM_S = 15.0
CLOSE_S = 30.0

log = logging.getLogger(__name__)


class NullTracker:
    """Tracking switched off."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...
    def params(self, values: Mapping[str, object]) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def artifact(self, path: Path, folder: str = "") -> None: ...
    def close(self) -> None: ...


def open_tracker(config: TrackingConfig, run_name: str, spool_dir: Path) -> Tracker:
    """The tracker of the job that writes to `spool_dir`; a run begun there is continued.

    Raises:
        UserError: the tracking URI is of a kind MLflow cannot write to.
    """
    if not config.enabled:
        return NullTracker()
    if not config.uri.startswith(("sqlite:///", "http://", "https://", "postgresql", "mysql")):
        raise UserError(f"tracking.uri {config.uri!r}: give sqlite:///path/to/mlflow.db or http://host:port")
    return SpoolTracker(config, run_name, spool_dir)


class SpoolTracker:
    """Appends to the spool; ships it to MLflow from a daemon thread."""

    def __init__(self, config: TrackingConfig, run_name: str, spool_dir: Path, close_s: float = CLOSE_S) -> None:
        spool_dir.mkdir(parents=True, exist_ok=True)
        self.path = spool_dir / SPOOL
        self.close_s = close_s
        self._reported = _last_steps(self.path)
        self._file: IO[str] = self.path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._shipper = _Shipper(config, run_name, spool_dir, self._stop)
        self._thread = threading.Thread(target=self._shipper.run, name="mlflow-spool", daemon=True)
        self._thread.start()
        self._closing = threading.Event()
        self._system = threading.Thread(target=self._watch_system, name="system-metrics", daemon=True)
        self._system.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Report finite metrics at `step`; a metric already reported at that step or a later one is left out."""
        with self._lock:
            fresh = {k: float(v) for k, v in metrics.items() if step > self._reported.get(k, -1) and math.isfinite(v)}
            self._reported.update(dict.fromkeys(fresh, step))
            if fresh:
                self._append({"kind": "metrics", "step": step, "values": fresh})

    def params(self, values: Mapping[str, object]) -> None:
        with self._lock:
            self._append({"kind": "params", "values": {k: str(v) for k, v in values.items()}})

    def tags(self, values: Mapping[str, str]) -> None:
        with self._lock:
            self._append({"kind": "tags", "values": dict(values)})

    def artifact(self, path: Path, folder: str = "") -> None:
        with self._lock:
            self._append({"kind": "artifact", "path": str(path.resolve()), "folder": folder})

    def close(self) -> None:
        """Ship what is left, for at most `close_s` seconds; the rest goes out when the job is next opened.

        The run is shown as failed where it is closed because of an error.
        """
        if sys.exc_info()[0] is not None:
            self._shipper.status = "FAILED"
        self._closing.set()
        self._system.join(self.close_s)
        self._stop.set()
        self._thread.join(self.close_s)
        with self._lock:
            self._file.close()
        left = self._shipper.bytes_left()
        if left:
            log.warning("tracking: %d bytes of %s are not sent yet; opening this job again sends them", left, self.path)

    def _watch_system(self) -> None:
        """MLflow's own view of this machine, through the spool: cores, memory, network, disk and, with nvidia-ml-py,
        GPUs. Its step counts the looks, as MLflow's own collector does."""
        monitors = _system_monitors()
        step = max((s for k, s in self._reported.items() if k.startswith("system/")), default=-1)
        pause_s = 1.0
        while not self._closing.wait(pause_s):
            step, pause_s = step + 1, SYSTEM_S
            for monitor in monitors:
                monitor.collect_metrics()
                self.log({f"system/{k}": v for k, v in monitor.aggregate_metrics().items()}, step)
                monitor.clear_metrics()

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps({"time_ms": int(time.time() * 1000), **line}) + "\n")
        self._file.flush()


class _Shipper:
    """Sends whole lines from where it stopped last time. Lives in its own thread."""

    def __init__(self, config: TrackingConfig, run_name: str, spool_dir: Path, stop: threading.Event) -> None:
        self.config, self.run_name, self.stop = config, run_name, stop
        self.spool, self.state_path = spool_dir / SPOOL, spool_dir / STATE
        state = json.loads(self.state_path.read_text()) if self.state_path.exists() else {}
        self.offset: int = state.get("offset", 0)
        self.run_id: str = state.get("run_id", "")
        self.client: Any = None
        self.status = "FINISHED"

    def bytes_left(self) -> int:
        return self.spool.stat().st_size - self.offset

    def run(self) -> None:
        failures = 0
        while True:
            try:
                stopping = self.stop.is_set()
                while self._ship_batch():
                    pass
                failures = 0
                if stopping:
                    self._finish()
                    return
                self.stop.wait(1.0)
            except Exception as error:
                if failures == 0:
                    log.warning("tracking: %s is away, metrics wait in %s (%s)", self.config.uri, self.spool, error)
                if self.stop.is_set():
                    return
                self.stop.wait(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1

    def _ship_batch(self) -> bool:
        """Send up to BATCH_LINES whole lines; true if any were sent."""
        with self.spool.open("rb") as file:
            file.seek(self.offset)
            lines: list[bytes] = []
            for raw in file:
                if not raw.endswith(b"\n") or len(lines) == BATCH_LINES:
                    break
                lines.append(raw)
        if not lines:
            return False
        self._connect()
        self._send([json.loads(raw) for raw in lines])
        self.offset += sum(map(len, lines))
        self._save()
        return True

    def _connect(self) -> None:
        if self.client is not None:
            return
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        with _alone(self.config.uri):
            client = MlflowClient(self.config.uri)
            if not self.run_id:
                experiment = client.get_experiment_by_name(self.config.experiment)
                experiment_id = (
                    experiment.experiment_id
                    if experiment
                    else client.create_experiment(self.config.experiment, artifact_location=self._artifacts())
                )
                self.run_id = client.create_run(experiment_id, run_name=self.run_name).info.run_id
                self._save()
            else:
                client.set_terminated(self.run_id, status="RUNNING")
        self.client = client

    def _artifacts(self) -> str | None:
        """Beside a SQLite file; a server keeps its own."""
        if not self.config.uri.startswith("sqlite:///"):
            return None
        database = Path(self.config.uri.removeprefix("sqlite:///")).resolve()
        return (database.parent / "mlflow-artifacts" / self.config.experiment).as_uri()

    def _send(self, lines: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run_id = self.run_id
        # Every row keeps the time it was spooled at: should a batch be sent twice (killed before its offset was
        # saved), MLflow sees the same rows and keeps one.
        metrics = [
            Metric(key, value, line["time_ms"], line["step"])
            for line in lines
            if line["kind"] == "metrics"
            for key, value in line["values"].items()
        ]
        params = {k: v for line in lines if line["kind"] == "params" for k, v in line["values"].items()}
        tags = {k: v for line in lines if line["kind"] == "tags" for k, v in line["values"].items()}
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])
        if params:
            known = self.client.get_run(run_id).data.params
            new = [Param(k, v[:6000]) for k, v in params.items() if k not in known]
            for start in range(0, len(new), 100):
                self.client.log_batch(run_id, params=new[start : start + 100])
        if tags:
            self.client.log_batch(run_id, tags=[RunTag(k, v[:5000]) for k, v in tags.items()])
        for line in lines:
            if line["kind"] == "artifact":
                if Path(line["path"]).is_file():
                    self.client.log_artifact(run_id, line["path"], line["folder"] or None)
                else:
                    log.warning("tracking: artifact %s is gone, not sent", line["path"])

    def _finish(self) -> None:
        if self.client is not None:
            self.client.set_terminated(self.run_id, status=self.status)

    def _save(self) -> None:
        write_whole(self.state_path, json.dumps({"offset": self.offset, "run_id": self.run_id}))


def _system_monitors() -> list[Any]:
    import psutil
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    psutil.cpu_percent()  # counts from here; the first answer would be 0
    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError) as error:
        log.debug("tracking: no metrics of GPUs: %s", error)
    return monitors


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Jobs open a SQLite file one after another: two that make the same tables at once get in each other's way."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(database.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _last_steps(spool: Path) -> dict[str, int]:
    """The last step each metric was reported at; a line torn by a kill is cut off."""
    reported: dict[str, int] = {}
    if not spool.exists():
        return reported
    data = spool.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with spool.open("r+b") as file:
            file.truncate(len(whole))
    for raw in whole.splitlines():
        line = json.loads(raw)
        if line["kind"] == "metrics":
            reported.update(dict.fromkeys(line["values"], line["step"]))
    return reported
