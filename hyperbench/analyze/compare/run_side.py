"""One side of a comparison: a run, or one method of it, with those of its rounds that count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperbench.analyze.compare.matching import setting
from hyperbench.config.catalog import nearest
from hyperbench.stats.samples import median
from hyperbench.store import origins
from hyperbench.store.origins import Origin
from hyperbench.store.run_folder import (
    JOURNAL,
    check_run_folder,
    read_config,
    read_environment,
    read_journal,
    read_origins,
)
from hyperbench.store.schema import Pass, Point, Timing


@dataclass(frozen=True)
class Side:
    """One side: a run, or one method of it; `timings` by point_id, pass and round, of which the last written counts.

    `environment` is that of the origin of its newest round; `notes` say which rounds of a run of several origins count.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    timings: dict[str, dict[Pass, dict[int, Timing]]]
    points: tuple[Point, ...]
    method: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def known_floor(self) -> float | None:
        """How far two measurements of the same call differ on this machine, relative; None where nobody measured it."""
        value = self.environment.get("aa_floor")
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if 0 <= value < math.inf else None

    @property
    def aa_floor(self) -> float:
        """The A/A floor; 0 where it was not measured."""
        return self.known_floor or 0.0

    @property
    def protocols(self) -> list[str]:
        """The protocols that the timings were made by, in alphabetical order."""
        return sorted({t.protocol for t in self.all_timings()})

    @property
    def num_rounds(self) -> int:
        """How many rounds there are at the most."""
        return len({t.round for t in self.all_timings()})

    def all_timings(self) -> Iterable[Timing]:
        """Every timing, in the order of the journal."""
        return (t for passes in self.timings.values() for rounds in passes.values() for t in rounds.values())


def read_side(path: Path, method: str | None) -> Side:
    """Read a run, or one method of it. Raises ValueError on a folder that is no run's or damaged, or lacks the method.

    Where the rounds have several origins (code, libraries, driver), those of the newest count; see `of_newest_origin`.
    """
    folder = check_run_folder(path)
    config, environment = read_config(folder), read_environment(folder)
    found = [r for r in read_journal(folder / JOURNAL) if isinstance(r, Timing) and not r.stage]
    names = dict.fromkeys(timing.point.method for timing in found)
    if method is not None and method not in names:
        allowed = f"allowed: {', '.join(names)}" if names else "it holds no timing yet"
        raise ValueError(f"method {method!r} is none of run {folder}; {allowed}{nearest(method, names)}")
    known = read_origins(folder, environment)
    kept = of_newest_origin(found, known, _budgets_ms(config))
    timings: dict[str, dict[Pass, dict[int, Timing]]] = {}
    points: dict[str, Point] = {}
    for timing in kept:
        if method is None or timing.point.method == method:
            points.setdefault(timing.point.point_id, timing.point)
            timings.setdefault(timing.point.point_id, {}).setdefault(timing.pass_, {})[timing.round] = timing
    used = sorted({t.round for passes in timings.values() for rounds in passes.values() for t in rounds.values()})
    if used:
        newest = origins.of_round(known, used[-1]).environment
        # The A/A floor is measured where a run is begun, and holds for all of its origins: they are of one machine.
        floor = environment.get("aa_floor") if newest.get("aa_floor") is None else newest["aa_floor"]
        environment = {**newest, "aa_floor": floor}
    told = origins.described(known, sorted({timing.round for timing in found}))
    notes = [f"{told}; of each pass only whole rounds of the newest one are compared"] if told else []
    return Side(folder, config, environment, timings, tuple(points.values()), method, tuple(notes))


def of_newest_origin(
    timings: Sequence[Timing], known: Sequence[Origin], budgets_ms: Mapping[str, float]
) -> list[Timing]:
    """The timings that a comparison may take together: for every pass of a setting (all methods on one input, of one
    shape and masking) those of the newest origin that has a whole round of it.

    A round is whole that lacks no method of the setting, but for those that are not measured in every round: because
    their call is longer than the budget of the pass (`budgets_ms`, in milliseconds by pass), or because they failed.
    What has no whole round keeps the newest origin's rounds, whole or not. All timings where there is one origin.
    """
    if len({id(origins.of_round(known, timing.round)) for timing in timings}) < 2:
        return list(timings)
    groups: dict[tuple[str, Pass], dict[str, dict[int, Timing]]] = {}
    for timing in timings:
        group = groups.setdefault((setting(timing.point), timing.pass_), {})
        group.setdefault(timing.point.point_id, {})[timing.round] = timing
    kept: set[tuple[str, Pass, int]] = set()
    for (_, pass_), points in groups.items():
        expected = [rounds for rounds in points.values() if _in_every_round(rounds, budgets_ms.get(pass_, math.inf))]
        every = sorted({round_ for rounds in points.values() for round_ in rounds})
        whole = {round_ for round_ in every if all(round_ in rounds for rounds in expected)}
        chosen = _newest(known, whole or every)
        for point_id, rounds in points.items():
            own = [r for r in rounds if r in chosen and (r in whole or not whole)]
            kept |= {(point_id, pass_, r) for r in own or _newest(known, rounds)}
    return [t for t in timings if (t.point.point_id, t.pass_, t.round) in kept]


def _in_every_round(rounds: Mapping[int, Timing], budget_ms: float) -> bool:
    """Whether a point is measured in each round: whether it has times, none of them above the budget of the pass."""
    return all(t.samples_ms and median(t.samples_ms) <= budget_ms for t in rounds.values())


def _newest(known: Sequence[Origin], rounds: Iterable[int]) -> set[int]:
    """Those of the rounds that belong to the newest origin among theirs."""
    listed = list(rounds)
    newest = origins.of_round(known, max(listed))
    return {round_ for round_ in listed if origins.of_round(known, round_) is newest}


def _budgets_ms(config: Mapping[str, Any]) -> dict[str, float]:
    """The budget of each pass in milliseconds, as far as the configuration tells."""
    protocol = config.get("protocol")
    budgets = protocol.get("budget_s") if isinstance(protocol, dict) else None
    found = budgets.items() if isinstance(budgets, dict) else ()
    return {str(p): 1000.0 * s for p, s in found if isinstance(s, int | float) and not isinstance(s, bool)}
