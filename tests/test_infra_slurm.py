"""A real Slurm, a controller and two nodes on this machine, runs what `syncflow submit` hands it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
PartitionName=debug Nodes=ALL Default=YES State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


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
            daemons.append(subprocess.Popen(["slurmd", "-D", "-N", node, "-f", conf], stderr=subprocess.DEVNULL))
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


def test_a_job_runs_to_its_end(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--cluster", "slurm", "--cpus", "2", "--memory-gb", "1", "--time", "00:05:00", "--name", "look"]
    assert main(["submit", *flags, "--", "doctor", "generate"]) == 0
    number = capfd.readouterr().out.split()[-1]
    log = tmp_path / f"look-{number}.log"
    deadline = time.monotonic() + 120
    while subprocess.run(["squeue", "-h", "-j", number], capture_output=True, text=True).stdout.strip():
        assert time.monotonic() < deadline
        time.sleep(1)
    assert "ok  generate" in log.read_text()
