"""The spool: nothing lost, nothing twice, nothing blocked, with a real SQLite store and a real server that dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from syncflow.errors import UserError
from syncflow.infra.tracking import SPOOL, STATE, SpoolTracker, open_tracker
from syncflow.tracker import TrackingConfig


def history(config: TrackingConfig, folder: Path, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    run_id = json.loads((folder / STATE).read_text())["run_id"]
    return [(m.step, m.value) for m in MlflowClient(config.uri).get_metric_history(run_id, key)]


def test_metrics_params_tags_and_artifacts_arrive_once(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="test")
    page = tmp_path / "page.html"
    page.write_text("hello")
    for first, last in ((0, 30), (20, 40)):  # the second start resumes from a checkpoint at step 20
        tracker = open_tracker(config, "run", tmp_path / "job")
        tracker.params({"lr": 1e-4})
        tracker.tags({"stage": "video"})
        for step in range(first, last):
            tracker.log({"loss": step / 2, "nan": float("nan")}, step)
        tracker.artifact(page, "reports")
        tracker.close()
    assert history(config, tmp_path / "job", "loss") == [(step, step / 2) for step in range(40)]
    run_id = json.loads((tmp_path / "job" / STATE).read_text())["run_id"]
    client = MlflowClient(config.uri)
    run = client.get_run(run_id)
    assert run.data.params["lr"] == "0.0001"
    assert run.data.tags["stage"] == "video"
    assert run.info.status == "FINISHED"
    assert "nan" not in run.data.metrics
    assert [f.path for f in client.list_artifacts(run_id, "reports")] == ["reports/page.html"]
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_a_run_that_an_error_ended_is_shown_as_failed(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    for number, (error, status) in enumerate(
        ((UserError("too many steps were skipped"), "FAILED"), (None, "FINISHED"))
    ):
        tracker = open_tracker(config, "run", tmp_path / "job")
        tracker.log({"loss": 1.0}, number)
        with contextlib.suppress(UserError):
            try:
                if error:
                    raise error
            finally:
                tracker.close()
        run_id = json.loads((tmp_path / "job" / STATE).read_text())["run_id"]
        assert MlflowClient(config.uri).get_run(run_id).info.status == status


def test_a_batch_sent_again_after_a_kill_is_kept_once(tmp_path: Path) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    tracker = open_tracker(config, "run", tmp_path)
    for step in range(10):
        tracker.log({"loss": 1.0}, step)
    tracker.close()
    state = json.loads((tmp_path / STATE).read_text())
    (tmp_path / STATE).write_text(json.dumps({**state, "offset": 0}))  # killed between sending and remembering
    open_tracker(config, "run", tmp_path).close()
    assert len(history(config, tmp_path, "loss")) == 10


def test_a_line_torn_by_a_kill_is_cut_off(tmp_path: Path) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    tracker = open_tracker(config, "run", tmp_path)
    tracker.log({"loss": 1.0}, 0)
    tracker.close()
    with (tmp_path / SPOOL).open("a") as file:
        file.write('{"kind": "metr')
    tracker = open_tracker(config, "run", tmp_path)
    tracker.log({"loss": 0.5}, 1)
    tracker.close()
    assert history(config, tmp_path, "loss") == [(0, 1.0), (1, 0.5)]


@pytest.mark.slow
def test_a_server_that_hangs_or_dies_neither_blocks_nor_loses(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = TrackingConfig(uri=f"http://127.0.0.1:{port}")

    tracker = SpoolTracker(config, "run", tmp_path / "job", close_s=3.0)  # nobody listens yet
    slowest = 0.0
    for step in range(500):
        began = time.perf_counter()
        tracker.log({"loss": float(step)}, step)
        slowest = max(slowest, time.perf_counter() - began)
    began = time.perf_counter()
    tracker.close()
    assert slowest < 0.5
    assert time.perf_counter() - began < 6.0

    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "a"),
    ]
    with (tmp_path / "server.log").open("wb") as out:
        server = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()[-2000:]
                time.sleep(0.5)
        tracker = SpoolTracker(config, "run", tmp_path / "job", close_s=60.0)
        tracker.log({"loss": 500.0}, 500)
        tracker.close()
        assert history(config, tmp_path / "job", "loss") == [(step, float(step)) for step in range(501)]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_an_unusable_address_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sqlite:///"):
        open_tracker(TrackingConfig(uri="mlruns"), "run", tmp_path)


def test_the_machine_is_watched_through_the_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncflow.infra.tracking.SYSTEM_S", 0.2)
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    for looks in (2, 4):  # the second start goes on counting
        tracker = open_tracker(config, "run", tmp_path / "job")
        deadline = time.monotonic() + 60
        while (tmp_path / "job" / SPOOL).read_text().count("system/cpu_utilization_percentage") < looks:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        tracker.close()
    used = history(config, tmp_path / "job", "system/system_memory_usage_percentage")
    assert [step for step, _ in used] == list(range(len(used)))
    assert len(used) >= 4
    assert all(0 < value < 100 for _, value in used)
    assert history(config, tmp_path / "job", "system/network_receive_megabytes")
