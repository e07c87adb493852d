"""Frozen records of plain data: their types checked against their annotations, mappings turned into them. No torch."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any

import msgspec

#: The largest integer that a column of the tables holds.
MAX_INT = 2**63 - 1
_SHOWN_CHARS = 60
_MAX_LEVELS = 8


@cache
def hints(cls: Any) -> dict[str, Any]:
    """The annotated type of every field of a record."""
    return typing.get_type_hints(cls)


def decoded(hint: Any, value: Any) -> Any:
    """A value of JSON as its annotated type: mappings become records, lists tuples, texts enumerations.

    Raises ValueError on anything that does not fit, and on an unknown or missing key of the record itself.
    """
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        value = _whole(hint, value)
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise ValueError(f"a {getattr(hint, '__name__', hint)} record is malformed: {error}") from None


def _whole(cls: Any, data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record with the defaults of those that are missing. Raises ValueError on an unknown key."""
    defaults = _defaults(cls)
    if not defaults.keys() >= data.keys():
        unknown = sorted(data.keys() - defaults.keys())[0]
        raise ValueError(f"unknown key {unknown!r} in a {cls.__name__} record; allowed: {', '.join(sorted(defaults))}")
    if len(data) == len(defaults):
        return data
    # msgspec leaves a default to the class: the record itself would lack it, and the tables read the record's own.
    missing = dataclasses.MISSING
    return {name: value for name, value in {**defaults, **data}.items() if value is not missing}


@cache
def _defaults(cls: Any) -> dict[str, Any]:
    """Every field of a record with its default, MISSING where it has none or makes a new one each time."""
    return {field.name: field.default for field in dataclasses.fields(cls)}


@cache
def numbers(cls: Any) -> tuple[str, ...]:
    """The fields of a record that may hold a number that is no integer."""
    return tuple(name for name, hint in hints(cls).items() if float in (typing.get_args(hint) or (hint,)))


def check_types(record: Any) -> None:
    """Raise ValueError unless every field of a record is of its annotated type."""
    values = vars(record)
    cls: Any = type(record)
    for name, hint, check in _checks(cls, tuple(map(type, values.values()))):
        value = values[name]
        if not check(value):
            wanted = getattr(hint, "__name__", str(hint))
            raise ValueError(f"{name}={short(value)} of a {cls.__name__} record must be of type {wanted}")


# A journal has very many records whose fields are of few types: which of them need a look is worked out once.
@lru_cache(maxsize=4096)
def _checks(cls: Any, found: tuple[type, ...]) -> tuple[tuple[str, Any, Callable[[Any], bool]], ...]:
    """The fields whose values of these types do not fit by their type alone, with their annotated types and checks."""
    return tuple(
        (name, hint, _check(hint))
        for (name, hint), kind in zip(hints(cls).items(), found, strict=True)
        if kind in (int, str) or kind not in (typing.get_args(hint) or (hint,))
    )


def fits(value: Any, hint: Any) -> bool:
    """True if a value is of an annotated type; an integer is a number too, a truth value is neither."""
    return _check(hint)(value)


@cache
def _check(hint: Any) -> Callable[[Any], bool]:
    """A function that tells if a value is of an annotated type."""
    if isinstance(hint, types.UnionType):
        first, *others = (_check(option) for option in typing.get_args(hint))
        return lambda value: first(value) or any(check(value) for check in others)
    origin = typing.get_origin(hint)
    if origin is tuple:
        return partial(_is_tuple, typing.get_args(hint)[0])
    if origin is dict:
        return lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if hint in (int, float):
        return partial(_is_number, (int, float) if hint is float else int)
    if hint is str:
        return _is_text
    return lambda value: isinstance(value, hint)


def _is_tuple(kind: Any, value: Any) -> bool:
    if not isinstance(value, tuple):
        return False
    # Most are samples, and of one type.
    return (kind is float and set(map(type, value)) <= {float}) or all(map(_check(kind), value))


def _is_number(allowed: Any, value: Any) -> bool:
    if type(value) is float:
        return allowed is not int
    small = not isinstance(value, int) or -MAX_INT <= value <= MAX_INT
    return isinstance(value, allowed) and not isinstance(value, bool) and small


def _is_text(value: Any) -> bool:
    # Half of a surrogate pair is a str that no file can hold.
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value))


def is_plain(value: Any, levels: int = _MAX_LEVELS, *, only_finite: bool = False) -> bool:
    """True if JSON gives the value back as it is, and it is nested at most so many levels.

    `only_finite`: and it holds no infinity and no NaN at any level.
    """
    kind = type(value)
    if kind is str or kind is int or value is None:
        return True
    if isinstance(value, dict | list):
        if levels <= 0 or (isinstance(value, dict) and not all(isinstance(key, str) for key in value)):
            return False
        for item in value.values() if isinstance(value, dict) else value:
            if not is_plain(item, levels - 1, only_finite=only_finite):
                return False
        return True
    if isinstance(value, float) and only_finite:
        return math.isfinite(value)
    return isinstance(value, str | int | float)


def short(value: Any) -> str:
    """A value as it would be written in code, cut where that is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
