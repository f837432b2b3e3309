"""The house stands: links, and no import by a bare folder name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import syncflow

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("models", "preprocess", "train", "eval", "infra")


def test_the_rooms_are_the_top_level_folders() -> None:
    package = Path(syncflow.__file__).parent
    for room in (*ROOMS, "configs"):
        assert (package / room).is_symlink()
        assert not (package / room).readlink().is_absolute()
        assert (package / room).resolve() == ROOT / room


def test_nothing_imports_a_room_by_its_bare_name() -> None:
    files = [path for room in (*ROOMS, "syncflow", "tests", "benchmarks") for path in (ROOT / room).glob("**/*.py")]
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.append(node.module)
            assert not {name.split(".")[0] for name in names} & set(ROOMS), path


# What a node of each kind may do without: a trainer has no Ray, a Ray node no DeepSpeed, a generator neither.
WITHOUT = {
    "models": ("ray", "deepspeed", "mlflow", "webdataset", "librosa", "cv2", "open_clip", "laion_clap"),
    "train": ("ray", "librosa", "cv2", "open_clip", "laion_clap", "scenedetect"),
    "preprocess": ("deepspeed", "librosa"),
    "eval": ("ray", "deepspeed", "webdataset"),
    "infra": ("torch", "ray", "deepspeed", "mlflow"),
}


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_opens_without_the_others_packages(room: str) -> None:
    modules = [f"syncflow.{room}.{path.stem}" for path in sorted((ROOT / room).glob("*.py")) if path.stem != "__init__"]
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({WITHOUT[room]!r}))\n"  # None: importing it raises
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
