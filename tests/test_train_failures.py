"""What goes wrong around a real job: a full memory, a full disk, a tracking server that dies, a database made twice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch
from train_data import read_losses, train, write_dataset, write_stages

from syncflow.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set")


def start(config: Path, *flags: str, log: Path, new_session: bool = False, **environment: str) -> subprocess.Popen[str]:
    ours = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SYNCFLOW_ALONE"}
    inherited = {k: v for k, v in os.environ.items() if k not in ours}
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "syncflow", "train", str(config), *flags],
            stdout=file,
            stderr=file,
            text=True,
            start_new_session=new_session,
            env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        )


OUT_OF_MEMORY = """
import os
if os.environ.get("RANK") == "1":
    import torch
    from syncflow.train.engine import Engine
    backward, steps = Engine.backward, []
    def full(self, batch):
        steps.append(batch)
        if len(steps) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 1 has 140 MiB free")
        return backward(self, batch)
    Engine.backward = full
"""


@pytest.mark.slow
def test_a_rank_out_of_memory_is_one_line_that_says_what_to_lower(dataset: Path, tmp_path: Path) -> None:
    """The error is raised for real in one of two real ranks; the other must not wait for it."""
    config = write_stages(tmp_path / "configs", ranks=2, micro_batch=2) / "1_video.yaml"
    (tmp_path / "sitecustomize.py").write_text(OUT_OF_MEMORY)
    log = tmp_path / "log.txt"
    flags = ["--data.path", str(dataset), "--output", str(tmp_path / "out"), "--checkpoint.every", "2"]
    job = start(config, *flags, log=log, PYTHONPATH=str(tmp_path))
    assert job.wait(120) == 3, log.read_text()
    errors = [line for line in log.read_text().splitlines() if "error" in line.lower()]
    assert len(errors) == 1, log.read_text()
    assert "rank 1 ran out of memory in step 4 of 1_video, forward and backward (CUDA out of memory." in errors[0]
    assert "lower micro_batch" in errors[0]
    assert start(config, *flags, log=log).wait(120) == 0, log.read_text()
    assert "resumes at step 2" in log.read_text()


def test_a_signal_to_all_processes_of_a_job_saves_it(dataset: Path, tmp_path: Path) -> None:
    """As systemd, Slurm and `timeout` send it: also to the loader's workers, on which the last step still waits."""
    config = write_stages(tmp_path / "configs", steps=1_000_000) / "1_video.yaml"
    out, log = tmp_path / "out", tmp_path / "log.txt"
    tracking = ["--tracking.enabled", "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    flags = ["--data.path", str(dataset), "--output", str(out), "--data.workers", "2", *tracking]
    for again in (False, True):
        job = start(config, *flags, log=log, new_session=True)
        wait_until(lambda: max(read_losses(out, "loss"), default=0) > (200 if again else 3), job, log)  # noqa: B023
        os.killpg(job.pid, signal.SIGTERM)
        assert job.wait(120) == 75, log.read_text()
    assert log.read_text().count("saved; the same command goes on") == 2
    assert "Traceback" not in log.read_text()


def test_a_second_job_in_the_same_folder_is_refused(dataset: Path, tmp_path: Path) -> None:
    config = write_stages(tmp_path / "configs", steps=1_000_000) / "1_video.yaml"
    out = tmp_path / "out"
    flags = ["--data.path", str(dataset), "--output", str(out)]
    tracking = ["--tracking.enabled", "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    job = start(config, *flags, *tracking, log=tmp_path / "first.txt")
    try:
        wait_until(lambda: bool(read_losses(out, "loss")), job, tmp_path / "first.txt")
        assert start(config, *flags, log=tmp_path / "second.txt").wait(120) == 2
        said = (tmp_path / "second.txt").read_text()
        assert said.count("\n") == 1
        assert f"{out} is in use by another job (process {job.pid} on " in said
        assert job.poll() is None
    finally:
        job.kill()
        job.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_is_full_loses_no_checkpoint(
    dataset: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_stages(tmp_path / "configs") / "1_video.yaml")
    out = small_disk / "out"
    args = [config, "--data.path", str(dataset), "--checkpoint.every", "2", "--ema-decay", "0.9"]
    assert train([*args, "--output", str(out), "--steps", "4"]) == 0
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_bsize - 50_000))
    with pytest.raises(UserError, match=r"No space left on device.*make room and run the same command") as error:
        train([*args, "--output", str(out), "--steps", "8"])
    assert "\n" not in str(error.value)
    assert "training goes on, the checkpoint before is kept" in capsys.readouterr().err
    assert (out / "checkpoints" / "step-00000004" / "checkpoint.json").exists()
    assert not list((out / "checkpoints").glob("*.wip"))
    filler.unlink()
    assert train([*args, "--output", str(out), "--steps", "8"]) == 0
    assert "resumes at step 4" in capsys.readouterr().err
    assert train([*args, "--output", str(tmp_path / "whole"), "--steps", "8"]) == 0
    ours, theirs = (safetensors.torch.load_file(o / "model" / "model.safetensors") for o in (out, tmp_path / "whole"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_job_goes_on_only_with_the_data_it_began_with(dataset: Path, tmp_path: Path) -> None:
    config = str(write_stages(tmp_path / "configs") / "1_video.yaml")
    args = [config, "--output", str(tmp_path / "out")]
    assert train([*args, "--data.path", str(dataset), "--steps", "2"]) == 0
    other = write_dataset(tmp_path / "other", video_sha="ff")
    with pytest.raises(UserError, match=r"checkpoints of another run \(data: .* there, .* here\)"):
        train([*args, "--data.path", str(other), "--steps", "4"])


def mlflow_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "a")]
    with (folder / "server.txt").open("ab") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return server
        except OSError:
            assert time.monotonic() < deadline, (folder / "server.txt").read_text()[-2000:]
            time.sleep(0.5)


def wait_until(done: Callable[[], bool], job: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline, log.read_text()
        assert job.poll() is None, log.read_text()
        time.sleep(0.5)


def _runs(client: MlflowClient) -> list[Run]:
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def end(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_outlives_its_tracking_server_and_ships_its_rows_later(dataset: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = write_stages(tmp_path / "configs", steps=1_000_000) / "1_video.yaml"
    out, log = tmp_path / "out", tmp_path / "log.txt"
    tracking = ["--tracking.enabled", "--tracking.uri", f"http://127.0.0.1:{port}"]
    server = mlflow_server(tmp_path, port)
    try:
        job = start(config, "--data.path", str(dataset), "--output", str(out), *tracking, log=log)
        client = MlflowClient(f"http://127.0.0.1:{port}")
        wait_until(lambda: bool(_runs(client)) and "loss" in _runs(client)[0].data.metrics, job, log)
        end(server)
        before = max(read_losses(out, "loss"))
        wait_until(lambda: max(read_losses(out, "loss")) > before + 100, job, log)  # it goes on
        server = mlflow_server(tmp_path, port)
        job.send_signal(signal.SIGTERM)
        assert job.wait(120) == 75, log.read_text()
        spooled = read_losses(out, "loss")
        seen = client.get_metric_history(_runs(client)[0].info.run_id, "loss")
        assert sorted(m.step for m in seen) == sorted(spooled)
        assert {m.step: m.value for m in seen} == spooled
    finally:
        end(server)


OPEN = """
import sys
from pathlib import Path
from syncflow.infra.tracking import open_tracker
from syncflow.tracker import TrackingConfig
tracker = open_tracker(TrackingConfig(uri=sys.argv[1]), sys.argv[2], Path(sys.argv[2]))
tracker.log({"loss": 1.0}, 1)
tracker.close()
"""


@pytest.mark.slow
def test_jobs_that_make_the_same_database_do_not_collide(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    jobs = [
        subprocess.Popen([sys.executable, "-c", OPEN, uri, str(tmp_path / name)], stderr=subprocess.PIPE, text=True)
        for name in ("one", "two", "three")
    ]
    said = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], said
    assert not any(words in text for text in said for words in ("already exists", "Traceback", "away")), said
    from mlflow import MlflowClient

    runs = _runs(MlflowClient(uri))
    assert sorted(Path(run.info.run_name).name for run in runs) == ["one", "three", "two"]
    assert all(run.data.metrics == {"loss": 1.0} for run in runs)
