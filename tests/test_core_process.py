"""Not outliving whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")

CHILD = "from syncflow.process import die_with_parent; die_with_parent({parent}); print('alive', flush=True); "


def test_a_child_dies_with_its_parent() -> None:
    child = CHILD.format(parent="__import__('os').getppid()") + "import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
        began = time.monotonic()
        process.kill()
        assert process.stdout.read() == ""  # the pipe ends with its last writer, the child
        assert time.monotonic() - began < 30


def test_a_child_whose_parent_died_before_it_asked_dies_too() -> None:
    gone = subprocess.run([sys.executable, "-c", CHILD.format(parent=os.getpid() + 1)], capture_output=True, text=True)
    assert gone.returncode == -signal.SIGKILL
    assert gone.stdout == ""
