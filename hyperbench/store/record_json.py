"""Records as the plain JSON data of which journals and the messages of workers are made, and back."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache, lru_cache
from typing import Annotated, Any

import msgspec

from hyperbench.store.plain_data import MAX_INT, decoded, hints, numbers, short
from hyperbench.store.schema import ErrorRow, Pass, Point, Record, Status, Timing

_KINDS: dict[str, Any] = {"timing": Timing, "error": ErrorRow}
_INT = Annotated[int, msgspec.Meta(ge=-MAX_INT, le=MAX_INT)]
_NON_FINITE = ("inf", "-inf", "nan")
#: Kind of a stage in journals written before a stage became a timing.
_OLD_STAGE = "stage"


def to_json(record: Record) -> dict[str, Any]:
    """A record as plain JSON data with its kind; enumerations become their values, infinities and NaN their names."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(record, cls))
    data = {"kind": kind, **dataclasses.asdict(record)}
    for name, value in data.items():
        if isinstance(value, float) and not math.isfinite(value):
            data[name] = str(value)
    return data


def parsed(text: bytes) -> Any:
    """JSON text as the record that it is, and as plain data, for `from_json` to judge, where it is none.

    Raises ValueError on text that is no JSON, and RecursionError.
    """
    try:
        line = _decoder().decode(text)
        record: Any = object.__new__(_KINDS[type(line).__name__])
        values = record.__dict__
        values.update(zip(line.__struct_fields__, msgspec.structs.astuple(line), strict=True))
        values["point"] = _point(bytes(line.point))
        record.check_state()
        return record
    except ValueError:
        pass
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return json.loads(text)  # Python's own JSON has words for infinities and NaN


def from_json(data: Any) -> Record:
    """The inverse of `to_json`, also of what `parsed` gives.

    Raises ValueError on anything that is no record in a possible state.
    """
    if isinstance(data, Timing | ErrorRow):
        return data
    if not isinstance(data, dict):
        raise ValueError(f"a record is a mapping, not {short(data)}")
    fields = dict(data)
    if isinstance(fields.get("point"), dict):
        fields["point"] = decoded(Point, fields["point"])
    kind = fields.pop("kind", None)
    if kind == _OLD_STAGE:
        kind, fields = "timing", _from_old_stage(fields)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"unknown record kind {short(kind)}; allowed: {', '.join(_KINDS)}")
    cls: Any = _KINDS[kind]
    for name in numbers(cls):
        if fields.get(name) in _NON_FINITE:
            fields[name] = float(fields[name])
    record: Record = decoded(cls, fields)
    return record


@cache
def _decoder() -> msgspec.json.Decoder[Any]:
    """A decoder of lines: each becomes an object of a class that has the name of its kind, with its point as text."""
    lines = []
    ints: dict[Any, Any] = {int: _INT, int | None: _INT | None}
    for kind, cls in _KINDS.items():
        fields: list[Any] = []
        types: dict[str, Any] = {**hints(cls), "point": msgspec.Raw}
        for of in dataclasses.fields(cls):
            field: tuple[Any, ...] = (of.name, ints.get(types[of.name], types[of.name]))
            if of.default_factory is not dataclasses.MISSING:
                field = (*field, msgspec.field(default_factory=of.default_factory))
            elif of.default is not dataclasses.MISSING:
                field = (*field, of.default)
            fields.append(field)
        lines.append(msgspec.defstruct(kind, fields, tag_field="kind", tag=kind, forbid_unknown_fields=True))
    return msgspec.json.Decoder(lines[0] | lines[1])


# The records of a point share one: most of a journal is points.
@lru_cache(maxsize=4096)
def _point(text: bytes) -> Any:
    return decoded(Point, msgspec.json.decode(text))


def _from_old_stage(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a timing from those of an old record of a stage, which had a median with or without samples."""
    median_ms = fields.pop("median_ms", None)
    if not fields.get("stage"):
        raise ValueError("a record of a stage needs its name")
    samples_ms = fields.pop("samples_ms", None) or ([] if median_ms is None else [median_ms])
    defaults = {"pass_": Pass.FORWARD, "protocol": "", "round": 0, "status": Status.OK}
    return {**defaults, **fields, "samples_ms": samples_ms}
