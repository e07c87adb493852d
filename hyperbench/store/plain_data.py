"""Frozen records of plain data: their types checked against their annotations, mappings turned into them. No torch."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import math
import types
import typing
from enum import StrEnum
from typing import Any

#: The largest integer that a column of the tables holds.
MAX_INT = 2**63 - 1
_SHOWN_CHARS = 60
_MAX_LEVELS = 8
_NON_FINITE = ("inf", "-inf", "nan")
_HINTS: dict[type[Any], dict[str, Any]] = {}


def hints(cls: type[Any]) -> dict[str, Any]:
    """The annotated type of every field of a record."""
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def from_mapping(cls: type[Any], data: Any) -> Any:
    """A record from a mapping of its fields. Raises ValueError on an unknown or missing key or a wrong value."""
    if not isinstance(data, dict):
        raise ValueError(f"a {cls.__name__} record is a mapping, not {short(data)}")
    names = [f.name for f in dataclasses.fields(cls)]
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r} in a {cls.__name__} record; allowed: {', '.join(sorted(names))}")
    try:
        return cls(**data)
    except TypeError as error:
        raise ValueError(f"a {cls.__name__} record is malformed: {error}") from None


def decoded(hint: Any, value: Any) -> Any:
    """A value of JSON as its annotated type: mappings become records, lists tuples, texts enumerations or infinities.

    What does not fit is left as it is, for the record to refuse. Raises ValueError on an unknown or missing key.
    """
    if isinstance(hint, types.UnionType):
        return None if value is None else decoded(typing.get_args(hint)[0], value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(value) if args[0] in (int, float, str) else tuple(decoded(args[0], item) for item in value)
    if origin is abc.Mapping:
        return {name: decoded(args[1], item) for name, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        known = hints(hint)  # type: ignore[arg-type]
        return from_mapping(hint, {name: decoded(known.get(name), item) for name, item in value.items()})  # type: ignore[arg-type]
    if hint is float and isinstance(value, str) and value in _NON_FINITE:
        return float(value)
    return hint(value) if isinstance(hint, type) and issubclass(hint, StrEnum) else value


def check_types(record: Any) -> None:
    """Raise ValueError unless every field of a record is of its annotated type."""
    for name, hint in hints(type(record)).items():
        value = getattr(record, name)
        if not fits(value, hint):
            wanted = getattr(hint, "__name__", str(hint))
            raise ValueError(f"{name}={short(value)} of a {type(record).__name__} record must be of type {wanted}")


def fits(value: Any, hint: Any) -> bool:
    """True if a value is of an annotated type; an integer is a number too, a truth value is neither."""
    if isinstance(hint, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    origin = typing.get_origin(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(item, typing.get_args(hint)[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if hint in (int, float):
        allowed = (int, float) if hint is float else int
        small = not isinstance(value, int) or -MAX_INT <= value <= MAX_INT
        return isinstance(value, allowed) and not isinstance(value, bool) and small
    if hint is str:
        # Half of a surrogate pair is a str that no file can hold.
        return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)
    return isinstance(value, hint)


def is_plain(value: Any, levels: int = _MAX_LEVELS, *, only_finite: bool = False) -> bool:
    """True if JSON gives the value back as it is, and it is nested at most so many levels.

    `only_finite`: and it holds no infinity and no NaN at any level.
    """
    if isinstance(value, dict | list):
        if levels <= 0 or (isinstance(value, dict) and not all(isinstance(key, str) for key in value)):
            return False
        items = value.values() if isinstance(value, dict) else value
        return all(is_plain(item, levels - 1, only_finite=only_finite) for item in items)
    if isinstance(value, float) and only_finite:
        return math.isfinite(value)
    return value is None or isinstance(value, str | int | float)


def short(value: Any) -> str:
    """A value as it would be written in code, cut where that is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
