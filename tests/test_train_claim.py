"""Two jobs in one output folder: the second is refused, whatever ended the first."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from syncflow.errors import UserError
from syncflow.train import claim as claims
from syncflow.train.claim import claim
from syncflow.train.engine import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
HOLD = """
import sys
from pathlib import Path
import torch
from syncflow.train import claim as claims
from syncflow.train.engine import Ranks
claims.everyones = lambda value, ranks: [value]
claims.BEAT_S = 0.1
if len(sys.argv) > 2:
    claims._machine = lambda: sys.argv[2]
with claims.claim(Path(sys.argv[1]), Ranks(0, 1, torch.device("cpu"))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "everyones", lambda value, ranks: [value])


def hold(output: Path, *machine: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(output), *machine]
    job = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert job.stdout
    assert job.stdout.readline() == "held\n"
    return job


def test_a_second_job_on_this_machine_is_refused_until_the_first_ends_or_is_killed(tmp_path: Path) -> None:
    for end in (lambda job: job.communicate(""), lambda job: job.kill()):
        job = hold(tmp_path / "out")
        try:
            with (
                pytest.raises(UserError, match="out is in use by another job") as error,
                claim(tmp_path / "out", ALONE),
            ):
                pass
            assert "\n" not in str(error.value)
        finally:
            end(job)
            job.wait()
        began = time.monotonic()
        with claim(tmp_path / "out", ALONE):
            assert time.monotonic() - began < claims.BEAT_S  # nothing to watch
    assert (tmp_path / "out" / "running").read_bytes() == b""


def test_a_job_on_another_machine_is_refused_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's lock may be invisible, or outlive it: the file that changes decides."""
    monkeypatch.setattr(claims, "BEAT_S", 4.0)
    job = hold(tmp_path / "out", "another machine")
    monkeypatch.setattr("fcntl.lockf", lambda *a: None)  # a file system on which locks do not reach so far
    try:
        with (
            pytest.raises(UserError, match=rf"in use by another job \(process {job.pid} on "),
            claim(tmp_path / "out", ALONE),
        ):
            pass
    finally:
        job.kill()
        job.wait()
    monkeypatch.setattr(claims, "BEAT_S", 0.2)

    def still_locked(*_: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr("fcntl.lockf", still_locked)  # one that keeps a dead machine's locks
    with claim(tmp_path / "out", ALONE):
        deadline = time.monotonic() + 30
        while claims._read(tmp_path / "out" / "running").get("machine") != claims._machine():  # the old note, or half
            assert time.monotonic() < deadline
            time.sleep(0.05)
