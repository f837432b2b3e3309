"""A real S3-compatible server (moto's) for tests, in an environment of its own.

moto's server asks for a graphql-core that other packages here refuse, so it does not live in the suite's own
environment: the first test that wants it makes `.venv/s3-server` (some 20 s), later runs find it there.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MOTO = "moto[server]==5.2.5"
FOLDER = Path(sys.prefix) / "s3-server"


def server_python() -> Path:
    """A python with moto's server; skips where its packages cannot be installed."""
    python, done = FOLDER / "bin" / "python", FOLDER / MOTO.partition("==")[2]
    with Path(f"{FOLDER}.lock").open("w") as lock:  # of several test processes one makes it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            venv.create(FOLDER, with_pip=True, clear=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "15", MOTO]
            made = subprocess.run(install, capture_output=True, text=True)
            if made.returncode != 0:
                problem = (made.stderr.strip() or "no word").splitlines()[-1]
                pytest.skip(f"no S3 server: pip cannot install {MOTO} into {FOLDER}: {problem}")
            done.touch()
    return python


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """The server's endpoint URL, for as long as the context lasts."""
    command = [str(server_python()), "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        endpoint = _endpoint(server, log)
        urllib.request.urlopen(endpoint, timeout=60).close()
        yield endpoint
    finally:
        server.terminate()
        server.wait()


def _endpoint(server: subprocess.Popen, log: Path) -> str:
    """Where it says it listens: it chose a free port itself."""
    for _ in range(600):
        for line in log.read_text().splitlines():
            if "Running on" in line:
                return line.rpartition(" ")[2]
        assert server.poll() is None, log.read_text()
        time.sleep(0.2)
    raise TimeoutError(f"the S3 server does not start: {log.read_text()}")
