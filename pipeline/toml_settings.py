"""From a TOML file to frozen, typed dataclasses; an error of an unknown name suggests the nearest one.

A table of the file is a config, and its keys are the fields. A missing key keeps the dataclass's default.
Reads: text. Writes: configs, their values as JSON, and a description of the differences of two configs.

    [ingest]
    spacing_mm = 1.5
    ct_window_hu = [-991, 500]
"""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.errors import ConfigError

Config = TypeVar("Config")


def read_tables(path: Path, known: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """Return the tables of a TOML file by name; a known table that is missing is empty.

    Args:
        path: The file.
        known: Names of the tables that may occur.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or has an unknown table.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the config {path} cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config {path} is no valid TOML: {error}") from error
    names = list(known)
    for name, value in document.items():
        if name not in names:
            raise ConfigError(f"{path}: unknown table [{name}]{_nearest(name, names)}")
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: [{name}] must be a table, got {value!r}")
    return {name: document.get(name, {}) for name in names}


def parse_config(
    table: Mapping[str, Any], kind: type[Config], *, where: str, base: Config | None = None
) -> Config:
    """Return a config of the class `kind` with a table's values.

    Args:
        table: Values by field name.
        kind: A frozen, keyword-only dataclass with a default for every field.
        where: Name of the table in error messages, such as "[ingest]".
        base: Config that missing values are taken from; None for the defaults.

    Raises:
        ConfigError: A name is unknown, or a value has the wrong type or is refused by the dataclass.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in table:
        if name not in names:
            raise ConfigError(f"{where}: unknown setting {name!r}{_nearest(name, names)}")
    values = {
        name: _parse(value, hints[name], f"{where} {name}", getattr(base, name, None))
        for name, value in table.items()
    }
    try:
        return kind(**values) if base is None else replace(base, **values)  # type: ignore[type-var]
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def config_values(config: object) -> dict[str, Any]:
    """Return all settings of a config by name, as JSON values (tuples become lists)."""
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"a config is a dataclass, got {config!r}")
    values = _plain(asdict(config))
    assert isinstance(values, dict)
    return values


def describe_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the settings that differ as text: "max_proposals 1000 -> 2000, margin_mm 5 -> 10"."""
    old, new = _flat(before), _flat(after)
    changed = [
        f"{name} {_show(old.get(name))} -> {_show(new.get(name))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    return ", ".join(changed)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _parse(value: Any, hint: Any, where: str, base: Any = None) -> Any:
    """Return the value in the type that the dataclass declares; ints become floats, lists become tuples."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return parse_config(value, hint, where=where, base=base)
    if origin in (Union, types.UnionType):
        return _parse_union(value, arguments, where)
    if origin is Literal:
        if value in arguments:
            return value
        near = _nearest(str(value), [str(a) for a in arguments])
        raise ConfigError(f"{where} must be one of {', '.join(map(repr, arguments))}, got {value!r}{near}")
    if origin is tuple:
        return _parse_tuple(value, arguments, where)
    if origin is dict and isinstance(value, dict):
        return {str(name): _parse(item, arguments[1], f"{where} {name}") for name, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} must be {_name(hint)}, got {value!r}")


def _parse_union(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    for choice in choices:
        if choice is not type(None):
            try:
                return _parse(value, choice, where)
            except ConfigError:
                continue
    raise ConfigError(f"{where} must be {' or '.join(_name(c) for c in choices)}, got {value!r}")


def _parse_tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{where} must be a list, got {value!r}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_parse(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
    if len(value) != len(arguments):
        raise ConfigError(f"{where} must be a list of {len(arguments)}, got {len(value)}: {value!r}")
    return tuple(_parse(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True)))


def _name(hint: Any) -> str:
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    if hint is type(None):
        return "left out"
    return names.get(hint) or ("a table" if get_origin(hint) is dict else "a list")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _show(value: Any) -> str:
    return "unset" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
