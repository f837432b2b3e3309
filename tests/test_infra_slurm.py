"""A real Slurm, a controller and two nodes on this machine, runs what `syncflow submit` hands it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from train_data import read_losses, write_dataset, write_stages

from syncflow.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))),
        reason="needs root and Slurm (Debian: slurmctld slurmd slurm-client munge)",
    ),
]

SLURM_CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000
SlurmdTimeout=10
PartitionName=debug Nodes=ALL Default=YES State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start_node(root: Path, node: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["slurmd", "-D", "-N", node, "-f", root / "slurm.conf"], stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = Path("/tmp") / f"syncflow-slurm-{os.getpid()}"  # a munge socket needs a short path that others may enter
    for folder in ("", "state", "spool.n1", "spool.n2"):
        (root / folder).mkdir(mode=0o755)
    key = root / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for path in (root, key):
        shutil.chown(path, "munge", "munge")
    conf = root / "slurm.conf"
    conf.write_text(SLURM_CONF.format(root=root, ports=free_ports(3)))
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={root}/munge.sock"]
    munged += [f"--pid-file={root}/munged.pid", f"--log-file={root}/munged.log", f"--seed-file={root}/munged.seed"]
    daemons = [subprocess.Popen(munged, user="munge", group="munge", stderr=subprocess.DEVNULL)]
    try:
        os.environ["SLURM_CONF"] = str(conf)
        time.sleep(1)
        daemons.append(subprocess.Popen(["slurmctld", "-D", "-c", "-f", conf], stderr=subprocess.DEVNULL))
        for node in ("n1", "n2"):
            daemons.append(start_node(root, node))
        deadline = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout:
            assert time.monotonic() < deadline, (root / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.5)
        yield root
    finally:
        os.environ.pop("SLURM_CONF", None)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(root, ignore_errors=True)


def submit(capfd: pytest.CaptureFixture[str], name: str, *words: str) -> str:
    """The number of the job."""
    flags = ["--cluster", "slurm", "--cpus", "2", "--memory-gb", "1", "--time", "00:20:00", "--name", name]
    assert main(["submit", *flags, *words]) == 0
    return capfd.readouterr().out.split()[-1]


def state(job: str) -> dict[str, str]:
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    return dict(word.split("=", 1) for word in shown.split() if "=" in word)


def wait_until(done: Callable[[], bool], log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.5)


def test_a_job_runs_to_its_end(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    number = submit(capfd, "look", "--", "doctor", "generate")
    log = tmp_path / f"look-{number}.log"
    wait_until(lambda: state(number)["JobState"] == "COMPLETED", log)
    assert "ok  generate" in log.read_text()


def test_what_a_person_must_mend_is_said_and_not_queued_again(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_stages(tmp_path / "configs", micro_batch=2) / "1_video.yaml"
    words = ["--nodes", "2", "--", "train", str(config), "--data.path", str(tmp_path), "--output", str(tmp_path / "o")]
    number = submit(capfd, "wrong", *words)
    log = tmp_path / f"wrong-{number}.log"
    wait_until(lambda: state(number)["JobState"] == "FAILED", log)
    assert state(number)["ExitCode"] == "2:0"
    assert "no dataset.json here" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.timeout(1800)
def test_a_training_on_two_nodes_outlives_preemption_and_a_dead_node(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_dataset(tmp_path / "set")
    config = write_stages(tmp_path / "configs", micro_batch=2, steps=400) / "1_video.yaml"
    train = ["train", str(config), "--data.path", str(data), "--checkpoint.every", "5"]
    tracking = ["--tracking.enabled", "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    out = tmp_path / "out"
    number = submit(capfd, "tower", "--nodes", "2", "--", *train, "--output", str(out), *tracking)
    log = tmp_path / f"tower-{number}.log"

    def step() -> int:
        return int(max(read_losses(out, "loss"), default=0)) if (out / "spool.jsonl").exists() else 0

    def is_queued_again(restarts: int) -> bool:
        return state(number)["Restarts"] == str(restarts) and state(number)["JobState"] == "PENDING"

    wait_until(lambda: step() >= 5, log)
    before = step()
    subprocess.run(["scancel", "--signal=TERM", number], check=True)  # as before the time limit, or for another job
    wait_until(lambda: is_queued_again(1), log)
    subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=True)  # not in two minutes
    said = log.read_text()
    assert "saved; the same command goes on" in said
    assert "exit code 75, queued again" in said
    wait_until(lambda: "resumes at step" in log.read_text() and step() > before + 20, log)

    for pid in _processes_on(slurm, "n2"):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_queued_again(2), log)
    # The two minutes are kept here: Slurm still tells n2 to end the old job, and would take the new one for it.
    replaced = start_node(slurm, "n2")
    try:
        subprocess.run(["scontrol", "update", "NodeName=n2", "State=RESUME"])
        wait_until(lambda: state(number)["JobState"] == "COMPLETED", log, 600)
    finally:
        replaced.terminate()
        replaced.wait()
    assert log.read_text().count("resumes at step") == 2
    assert (out / "model" / "model.safetensors").exists()
    whole = [sys.executable, "-m", "syncflow", *train, "--output", str(tmp_path / "whole"), "--ranks", "2", *tracking]
    subprocess.run(whole, check=True)
    assert read_losses(out, "loss") == read_losses(tmp_path / "whole", "loss")


def test_a_cancelled_training_is_not_queued_again(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is asked to stop as a preempted one is, and saves; but a person wanted its end."""
    monkeypatch.chdir(tmp_path)
    data = write_dataset(tmp_path / "set")
    config = write_stages(tmp_path / "configs", steps=1_000_000) / "1_video.yaml"
    out = tmp_path / "out"
    words = ["train", str(config), "--data.path", str(data), "--output", str(out), "--tracking.enabled"]
    number = submit(capfd, "cancel", "--", *words, "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db")
    log = tmp_path / f"cancel-{number}.log"
    wait_until(lambda: bool(read_losses(out, "loss")), log)
    subprocess.run(["scancel", number], check=True)
    wait_until(lambda: state(number)["JobState"] == "CANCELLED", log)
    wait_until(lambda: "saved; the same command goes on" in log.read_text(), log)
    assert state(number)["Restarts"] == "0"
    assert "queued again" not in log.read_text()


def _processes_on(root: Path, node: str) -> list[int]:
    """Slurm's daemon of that node, its keepers of job steps, and what they started."""
    daemons, keepers, tasks = list[int](), set[int](), list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            environment = (folder / "environ").read_bytes().decode().split("\0")
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if words[0] == "slurmd" and node in words and str(root / "slurm.conf") in words:
            daemons.append(int(folder.name))
        elif f"SLURMD_NODENAME={node}" in environment and f"SLURM_CONF={root}/slurm.conf" in environment:
            tasks.append(int(folder.name))
            if "slurmstepd" in Path(f"/proc/{parent}/comm").read_text():
                keepers.add(parent)
    return [*daemons, *keepers, *tasks]
