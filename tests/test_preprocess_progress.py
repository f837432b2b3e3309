"""Progress: a bar for a person, also on terminals that do not tell their size; plain lines for a log."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios

import pytest

from syncflow.preprocess.progress import Progress
from syncflow.preprocess.worker import Status


def work() -> None:
    """A job of eight clips in two units, one of which drops a clip."""
    with Progress("encoding clips", 8) as progress:
        progress.tick([Status(done=2, kept=2)])
        progress.finished(4, 4)
        progress.tick([Status(done=1, kept=0)])
        progress.finished(4, 3)
        progress.tick([])


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (24, 100)])
def test_a_person_sees_one_bar(monkeypatch: pytest.MonkeyPatch, rows: int, columns: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        work()
        shown = os.read(ours, 65536).decode()
    os.close(ours)
    last = shown.rstrip().split("\r")[-1]
    assert last.startswith("encoding clips: 100%|")
    assert "8/8" in last
    assert "dropped=1, kept=7" in last


def test_a_log_gets_a_plain_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncflow.preprocess.progress.EVERY_S", 0.0)
    work()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[:3] for line in lines] == [
        ["encoding clips: 2/8", "2 kept", "0 dropped"],
        ["encoding clips: 5/8", "4 kept", "1 dropped"],
        ["encoding clips: 8/8", "7 kept", "1 dropped"],
    ]
    assert [("s left" in line) for line in lines] == [True, True, False]
