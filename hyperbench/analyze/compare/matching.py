"""Which points belong together: those of two runs by their configuration, those of two methods by their shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperbench.store.schema import Point

#: What two runs of one configuration may differ in: where they ran, and where the method's code lies.
_PLACE = ("device", "target")
#: What two methods on one input differ in.
_METHOD = ("method", "target", "hyper")


@dataclass
class Matching:
    """Pairs of points (of A, of B), and the points that have no partner, each in the order of its run."""

    pairs: list[tuple[Point, Point]] = field(default_factory=list)
    only_a: list[Point] = field(default_factory=list)
    only_b: list[Point] = field(default_factory=list)


def match_runs(a: Sequence[Point], b: Sequence[Point]) -> Matching:
    """Match the points of two runs: by point_id, and what is left by configuration without the device.

    A configuration that a run holds twice (on two devices) is matched by point_id alone.
    """
    partner = {point.point_id: point for point in b}
    found = {point.point_id: partner[point.point_id] for point in a if point.point_id in partner}
    left_b = _by_key((p for p in b if p.point_id not in found), _configuration)
    left_a = _by_key((p for p in a if p.point_id not in found), _configuration)
    for key, points in left_a.items():
        others = left_b.get(key, [])
        if len(points) == len(others) == 1:
            found[points[0].point_id] = others[0]
    return _matching(a, b, [(p, found[p.point_id]) for p in a if p.point_id in found])


def match_methods(a: Sequence[Point], b: Sequence[Point]) -> Matching:
    """Match the points of two methods on the same input, shape and masking.

    Where a method has several configurations there, each meets the other's only one, or the one of equal parameters.
    """
    groups = _by_key(b, _shape)
    sizes = {key: len(points) for key, points in _by_key(a, _shape).items()}
    pairs = []
    for point in a:
        key = _shape(point)
        others = groups.get(key, [])
        if sizes[key] > 1 and len(others) > 1:
            others = [other for other in others if other.hyper == point.hyper]
        pairs += [(point, other) for other in others]
    return _matching(a, b, pairs)


def setting(point: Point) -> str:
    """What all methods of a group share: input, shape, masking, device; all of a point but the method."""
    return _without(point, _METHOD)


def _matching(a: Sequence[Point], b: Sequence[Point], pairs: list[tuple[Point, Point]]) -> Matching:
    in_a, in_b = {x.point_id for x, _ in pairs}, {y.point_id for _, y in pairs}
    return Matching(pairs, [p for p in a if p.point_id not in in_a], [p for p in b if p.point_id not in in_b])


def _by_key(points: Iterable[Point], key: Callable[[Point], str]) -> dict[str, list[Point]]:
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(key(point), []).append(point)
    return groups


def _configuration(point: Point) -> str:
    return _without(point, _PLACE)


def _shape(point: Point) -> str:
    return _without(point, (*_METHOD, "device"))


def _without(point: Point, names: Sequence[str]) -> str:
    kept: dict[str, Any] = {name: value for name, value in point.as_dict().items() if name not in names}
    return json.dumps(kept, sort_keys=True)
