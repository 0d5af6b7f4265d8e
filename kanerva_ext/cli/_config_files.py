"""Configurations from presets, TOML and JSON files, and ``--set``."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

from .. import pretrained
from ..data import describe_root
from ._config import Config, ConfigError, from_dict

PRESETS = Path(__file__).parents[1] / "configs"


def presets() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def describe_presets() -> str:
    """A line or two on each: what it is, and what its data needs."""
    lines = []
    for name in presets():
        first = (PRESETS / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
        data = load_config(name).data
        lines += [name, f"  {first.lstrip('# ')}", f"  {data.name} {describe_root(data.name)}"]
    return "\n".join(lines)


def load_config(source: str | Path, overrides: list[str] | None = None) -> Config:
    """The configuration of a preset's name or of a .toml or .json file.

    Args:
        source: a name of `presets`, or a path. A file may name another in ``base``, whose keys
            hold where it has none of its own.
        overrides: ``"section.key=value"`` each, the value in TOML's notation, or a bare word.

    Raises:
        ConfigError: no such file, or a value that does not fit.
    """
    return with_overrides(_load_values(str(source), ()), overrides)


def with_overrides(values: dict[str, Any], overrides: list[str] | None) -> Config:
    """The configuration of nested dicts after ``"section.key=value"`` each."""
    for override in overrides or []:
        _apply(values, override)
    return from_dict(values)


def _load_values(source: str, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = Path(source)
    if path.suffix not in (".toml", ".json"):
        path = PRESETS / f"{source}.toml"
        if not path.is_file() and Path(source).is_dir():
            inside = Path(source) / "config.json"
            hint = f"; {inside} is one" if inside.is_file() else ""
            raise ConfigError(f"{source} is a folder, not a .toml or .json file{hint}")
        if not path.is_file():
            if str(source).startswith(pretrained.PREFIX):
                raise ConfigError(
                    f"{source} is a trained model, not a configuration: a preset with "
                    f"--set training.start={source} starts with its parameters"
                )
            known = ", ".join(presets())
            raise ConfigError(f"{source}: no .toml or .json file, and no preset; those are {known}")
    if path in seen:
        raise ConfigError(f"{path} is its own base")
    values = _read(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the name of a preset or a file, got {base!r}")
    if base.endswith((".toml", ".json")):
        base = str(path.parent / base)
    return _merged(_load_values(base, (*seen, path)), values)


def _read(path: Path) -> dict[str, Any]:
    """What a .toml or .json file holds."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # editors on Windows put a mark before it
        values = json.loads(text) if path.suffix == ".json" else _toml().loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}: it must be UTF-8, got the byte 0x{error.object[error.start]:02x} in line "
            f"{line}; save it as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: it must be an object with the sections model, data and training, got "
            f"{type(values).__name__}"
        )
    return values


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return base | {
        key: base[key] | value
        if isinstance(value, dict) and isinstance(base.get(key), dict)
        else value
        for key, value in values.items()
    }


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise ConfigError(f"--set takes section.key=value, got {override!r}")
    try:
        value = _toml().loads(f"value = {text}")["value"]
    except ValueError:
        value = text.strip()  # a bare word
    keys = values.setdefault(section, {})
    if not isinstance(keys, dict):
        raise ConfigError(f"[{section}] must be a section, got {keys!r}")
    keys[name] = value


def _toml() -> types.ModuleType:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib
    try:
        import tomli
    except ImportError as error:
        raise ConfigError(f"{error}; pip install tomli") from error
    return tomli
