"""Two hosts of one rank each: network namespaces with a cable between, host names that no one can look up."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from train_data import read_losses, write_dataset, write_stages

from syncflow.errors import UserError
from syncflow.train.hosts import meet

STEPS = 80


def test_a_rendezvous_is_looked_at_from_here() -> None:
    here = meet("127.0.0.1:29871")
    assert (here.address, here.interface) == ("127.0.0.1", "lo")
    for wrong in ("nowhere", "host:", "no-such-host.invalid:29500"):
        with pytest.raises(UserError, match="rendezvous"):
            meet(wrong)


def test_a_name_that_is_not_known_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    known, asked = socket.getaddrinfo, []

    def late(host: str, port: int, **how: int) -> list:
        asked.append(host)
        if len(asked) < 3:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known("127.0.0.1", port, **how)

    monkeypatch.setattr(socket, "getaddrinfo", late)
    assert meet("pod-0.job:29872", wait_s=30).address == "127.0.0.1"
    assert asked == ["pod-0.job"] * 3


class Hosts:
    """Two network namespaces, each with a host name of its own; `run` starts a command on one of them."""

    def __init__(self) -> None:
        self.names = [f"sf{os.getpid()}{side}" for side in "ab"]
        self.addresses = ["10.199.71.1", "10.199.71.2"]

    def set_up(self) -> None:
        for name in self.names:
            _ip("netns", "add", name)
        near, far = self.names
        _ip("link", "add", "cable", "netns", near, "type", "veth", "peer", "name", "cable", "netns", far)
        for name, address in zip(self.names, self.addresses, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", name, "link", "set", device, "up")

    def start(self, host: int, log: Path, *command: str) -> subprocess.Popen[str]:
        name = self.names[host]
        inside = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh"]
        ours = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SYNCFLOW_ALONE"}
        environment = {**{k: v for k, v in os.environ.items() if k not in ours}, "OMP_NUM_THREADS": "1"}
        with log.open("a") as file:
            return subprocess.Popen([*inside, *command], stdout=file, stderr=file, text=True, env=environment)

    def kill(self, host: int) -> None:
        for pid in _ip("netns", "pids", self.names[host]).split():
            os.kill(int(pid), signal.SIGKILL)

    def tear_down(self) -> None:
        for host, name in enumerate(self.names):
            self.kill(host)
            _ip("netns", "del", name)


def _ip(*arguments: str) -> str:
    tool = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if tool is None:
        pytest.skip("needs the `ip` command (Debian: iproute2)")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")
    return done.stdout


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid():
        pytest.skip("network namespaces need root")
    two = Hosts()
    two.set_up()
    yield two
    two.tear_down()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hosts_train_as_one_host_does_and_survive_the_loss_of_one(hosts: Hosts, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set")
    config = write_stages(tmp_path / "configs", micro_batch=2, steps=STEPS) / "1_video.yaml"
    train = [sys.executable, "-m", "syncflow", "train", str(config), "--data.path", str(data), "--tracking.uri"]
    train += [f"sqlite:///{tmp_path}/mlflow.db", "--tracking.enabled", "--checkpoint.every", "2"]

    def start_both(name: str, port: int, *flags: str) -> list[subprocess.Popen[str]]:
        meeting = ["--nodes", "2", "--rendezvous", f"{hosts.addresses[0]}:{port}"]
        command = [*train, "--output", str(tmp_path / name), *meeting, *flags]
        return [hosts.start(host, tmp_path / f"{name}-{host}.txt", *command) for host in (1, 0)]

    def said(name: str) -> str:
        return "".join(f"--- host {host}\n" + (tmp_path / f"{name}-{host}.txt").read_text() for host in (0, 1))

    one = subprocess.run([*train, "--output", str(tmp_path / "one"), "--ranks", "2"], capture_output=True, text=True)
    assert one.returncode == 0, one.stderr
    assert [job.wait(300) for job in start_both("two", 29500)] == [0, 0], said("two")
    assert read_losses(tmp_path / "two", "loss") == read_losses(tmp_path / "one", "loss")

    for lost in (1, 0):  # also the host of the rendezvous
        name = f"lost-{lost}"
        far, near = start_both(name, 29501 + lost)
        _wait_for_step(tmp_path / name, 5)
        hosts.kill(lost)
        killed = time.monotonic()
        survivor = near if lost else far
        assert survivor.wait(120) == 3, said(name)
        assert time.monotonic() - killed < 30
        for job in (far, near):
            job.wait(30)
        log = (tmp_path / f"{name}-{1 - lost}.txt").read_text()
        errors = [line for line in log.splitlines() if "error" in line]
        assert len(errors) == 1, log
        assert "lost another rank" in errors[0]
        assert "goes on from the last checkpoint" in errors[0]
        assert "Traceback" not in log
        assert [job.wait(300) for job in start_both(name, 29511 + lost)] == [0, 0], said(name)
        assert "resumes at step" in said(name)
        whole = _weights(tmp_path / "one")
        assert all(torch.equal(tensor, whole[key]) for key, tensor in _weights(tmp_path / name).items())


def _weights(output: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(output / "model" / "model.safetensors")


def _wait_for_step(output: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while not (output / "spool.jsonl").exists() or max(read_losses(output, "loss"), default=0) < step:
        assert time.monotonic() < deadline
        time.sleep(0.05)
