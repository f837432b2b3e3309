"""The house stands: links, and no import by a bare folder name."""

from __future__ import annotations

import ast
from pathlib import Path

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
