"""Configuration: YAML file + command-line overrides -> one frozen, validated object; saved resolved."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from syncflow.errors import UserError


class Config(BaseModel):
    """Base of every configuration: frozen, and an unknown field is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


C = TypeVar("C", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"{path}: no such configuration file{hint}")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `field: value` lines, found {type(values).__name__}")
    return values


def validate(cls: type[C], values: dict[str, Any], where: str) -> C:
    """`values` as a configuration, or one line that names the field.

    Raises:
        UserError: an unknown field, a wrong type, or fields that do not fit together.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(cls, error)}") from error


def load(cls: type[C], path: Path | str | None, argv: Sequence[str] = (), prog: str = "syncflow") -> C:
    """The configuration in the YAML file `path` (or the defaults) with `--field value` flags on top.

    Raises:
        UserError: see `read_yaml` and `validate`; or a flag that does not parse.
        SystemExit: after `--help`.
    """
    import tyro

    base = validate(cls, read_yaml(Path(path)), str(path)) if path is not None else None
    if base is not None and not argv:
        return base
    if base is None and any(field.is_required() for field in cls.model_fields.values()):
        return _cli(tyro, cls, None, argv, prog)
    return _cli(tyro, cls, base if base is not None else cls(), argv, prog)


def _cli(tyro: Any, cls: type[C], default: C | None, argv: Sequence[str], prog: str) -> C:
    keywords = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(cls, args=list(argv), prog=prog, config=(tyro.conf.AvoidSubcommands,), **keywords)
    except SystemExit as stop:
        if not stop.code:
            raise
        message = _one_line(said.getvalue())
        if (error := _refusal(stop)) is not None:
            section = message.removeprefix("Error parsing ").split(":")[0]
            message = ("" if section == cls.__name__ else f"{section}.") + _explain(cls, error)
        raise UserError(f"command line: {message} (`{prog} --help` explains every option)") from None


def _refusal(stop: BaseException) -> ValidationError | None:
    """What pydantic said against the flags, where that is why tyro stopped."""
    cause = stop.__context__
    while cause is not None and not isinstance(cause, ValidationError):
        cause = cause.__context__
    return cause


def _one_line(box: str) -> str:
    """What tyro says in a framed box, on one line: its message and the option it thinks was meant."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]  # the first line is the frame's title

    def is_rule(line: str) -> bool:
        return set(line) <= set("─-╰╯")

    message = " ".join(itertools.takewhile(lambda line: not is_rule(line), itertools.dropwhile(is_rule, lines)))
    near = [line for line in lines if line.startswith("--") and not is_rule(line)]
    return message + (f"; did you mean {near[0]}?" if near and "Perhaps you meant" in box else "")


def save(config: BaseModel, path: Path) -> None:
    """Write the resolved configuration as YAML, so that it can be given to the same command again."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _explain(cls: type[BaseModel], error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _fields_at(cls, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
            lines.append(
                f"unknown field {place}" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}")
            )
        elif item["type"] == "value_error":
            lines.append((f"{place}: " if place else "") + item["msg"].removeprefix("Value error, "))
        elif item["type"] == "missing":
            lines.append(f"{place} is required")
        else:
            lines.append(f"{place}: {item['msg'][0].lower() + item['msg'][1:]}, got {item['input']!r}")
    return "; ".join(lines)


def _fields_at(cls: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model found at `place` below `cls`."""
    current: Any = cls
    for part in place:
        field = (
            current.model_fields.get(str(part))
            if isinstance(current, type) and issubclass(current, BaseModel)
            else None
        )
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), current)
    return sorted(current.model_fields)


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """The value of `--name VALUE` or `--name=VALUE` in argv, for what must be known before the full parse."""
    for i, word in enumerate(argv):
        if word == name and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(name + "="):
            return word.split("=", 1)[1]
    return None


def is_terminal() -> bool:
    """Whether a person watches: then progress is one live line, else plain lines."""
    return sys.stderr.isatty()
