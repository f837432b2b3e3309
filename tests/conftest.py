"""Fixtures shared by the suite: real clips where they are present, rendered clips everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time: what landed green stays green until the code changes.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real clips, weights and golden files beside the checkout."""
    folder = Path(os.environ.get("SYNCFLOW_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder of real clips and golden files at {folder} (set SYNCFLOW_SHARED)")
    return folder


@pytest.fixture(scope="session")
def develop(shared: Path) -> Path:
    """40 real clips with sound and a manifest.csv."""
    return shared / "data" / "develop"


@pytest.fixture(scope="session")
def nasty(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 clips that each break one assumption, with expected.json."""
    from syncflow.media import ffmpeg_path

    tools = tmp_path_factory.mktemp("tools")
    (tools / "ffmpeg").symlink_to(ffmpeg_path())
    out = tmp_path_factory.mktemp("nasty")
    subprocess.run(
        [sys.executable, shared / "data" / "make_nasty.py", shared / "data" / "develop", out],
        check=True,
        capture_output=True,
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
    )
    return out


@pytest.fixture(scope="session")
def impacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 rendered clips of 2 s at 64x64, with manifest.jsonl."""
    from syncflow.impacts import render

    out = tmp_path_factory.mktemp("impacts")
    render(12, out, seed=0)
    return out


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights (see tiny.py); not to be written to."""
    from tiny import make_model_dir

    return make_model_dir(tmp_path_factory.mktemp("tiny") / "model")
