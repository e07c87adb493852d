"""Frozen records of plain data: their types checked against their annotations, mappings turned into them. No torch."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import math
import types
import typing
from collections.abc import Callable
from enum import StrEnum
from functools import cache, partial
from typing import Any

#: The largest integer that a column of the tables holds.
MAX_INT = 2**63 - 1
_SHOWN_CHARS = 60
_MAX_LEVELS = 8
_NON_FINITE = ("inf", "-inf", "nan")


@cache
def hints(cls: Any) -> dict[str, Any]:
    """The annotated type of every field of a record."""
    return typing.get_type_hints(cls)


@cache
def _names(cls: Any) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(cls))


def from_mapping(cls: Any, data: Any) -> Any:
    """A record from a mapping of its fields. Raises ValueError on an unknown or missing key or a wrong value."""
    if not isinstance(data, dict):
        raise ValueError(f"a {cls.__name__} record is a mapping, not {short(data)}")
    names = _names(cls)
    if not names.issuperset(data):
        unknown = sorted(set(data) - names)[0]
        raise ValueError(f"unknown key {unknown!r} in a {cls.__name__} record; allowed: {', '.join(sorted(names))}")
    try:
        return cls(**data)
    except TypeError as error:
        raise ValueError(f"a {cls.__name__} record is malformed: {error}") from None


def decoded(hint: Any, value: Any) -> Any:
    """A value of JSON as its annotated type: mappings become records, lists tuples, texts enumerations or infinities.

    What does not fit is left as it is, for the record to refuse. Raises ValueError on an unknown or missing key.
    """
    decode = _decoder(hint)
    return value if decode is None else decode(value)


# A journal has very many values of few types: how each is decoded and checked is worked out once for a type.
@cache
def _decoder(hint: Any) -> Callable[[Any], Any] | None:
    """A function that decodes a value of JSON as an annotated type; None where it stays as it is."""
    if isinstance(hint, types.UnionType):
        inner = _decoder(typing.get_args(hint)[0])
        return None if inner is None else lambda value: None if value is None else inner(value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        item = None if args[0] in (int, float, str) else _decoder(args[0])
        items = tuple if item is None else lambda value: tuple(map(item, value))
        return lambda value: items(value) if isinstance(value, list) else value
    if origin is abc.Mapping:
        return lambda value: {name: decoded(args[1], item) for name, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return partial(_decoded_record, hint)
    if hint is float:
        return lambda value: float(value) if isinstance(value, str) and value in _NON_FINITE else value
    return hint if isinstance(hint, type) and issubclass(hint, StrEnum) else None


def _decoded_record(cls: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    fields = dict(value)
    for name, left, decode in _decoders(cls):
        if name in fields and type(fields[name]) not in left:
            fields[name] = decode(fields[name])
    return from_mapping(cls, fields)


@cache
def _decoders(cls: Any) -> tuple[tuple[str, frozenset[type], Callable[[Any], Any]], ...]:
    """The fields of a record that may have to be decoded: types of values that stay as they are, and the function."""
    decoders = {name: _decoder(hint) for name, hint in hints(cls).items()}
    return tuple((name, _sure(hints(cls)[name]), decode) for name, decode in decoders.items() if decode is not None)


def check_types(record: Any) -> None:
    """Raise ValueError unless every field of a record is of its annotated type."""
    values = vars(record)
    cls: Any = type(record)
    for name, hint, sure, check in _checks(cls):
        value = values[name]
        if type(value) not in sure and not check(value):
            wanted = getattr(hint, "__name__", str(hint))
            raise ValueError(f"{name}={short(value)} of a {cls.__name__} record must be of type {wanted}")


@cache
def _checks(cls: Any) -> tuple[tuple[str, Any, frozenset[type], Callable[[Any], bool]], ...]:
    return tuple((name, hint, _sure(hint), _check(hint)) for name, hint in hints(cls).items())


def _sure(hint: Any) -> frozenset[type]:
    """The types of which every value fits an annotated type and is what JSON gave: these need no look at the value."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return frozenset(t for t in options if isinstance(t, type) and t not in (int, str))


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
