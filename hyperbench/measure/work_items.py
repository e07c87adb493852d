"""The points of a run, grouped as they are measured, and what each of them still needs.

No torch: this is the parent's side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hyperbench.config.compose import PointConfig, RunConfig
from hyperbench.config.types import ErrorConfig, ProtocolConfig
from hyperbench.stats.samples import median
from hyperbench.store.schema import ALL_STAGES, ErrorRow, Pass, Point, Record, Status, Timing

Key = tuple[str, str, str, int] | tuple[str, int, str]
#: Every point's error rows, in the order they are written; lse_mean_abs comes first where a method has a log-sum-exp.
_OUTPUT_METRICS = ("out_rel_fro", "out_max_abs", "out_row_rel_p50", "out_row_rel_p90", "out_row_rel_p99")
GRAD_METRICS = ("dq_rel_fro", "dk_rel_fro", "dv_rel_fro")
#: A property and no error: 1 if later queries leave earlier outputs alone. Rows of points under a causal mask have it.
CAUSAL_IN_Q = "causal_in_q"
_CONTEXT_METRICS = ("mean_v_rel_fro", "zero_rel_fro")


@dataclass(frozen=True)
class Cell:
    """A point of the grid, and whether its method claims to be exact."""

    point: Point
    exact: bool


@dataclass(frozen=True)
class Todo:
    """What a cell still needs in one round: passes to time, seeds whose error is to be measured, stages.

    `stages` says whether stages of the forward pass are to be timed, all but those in `timed_stages`.
    """

    cell: Cell
    passes: tuple[Pass, ...]
    seeds: tuple[int, ...]
    stages: bool = False
    timed_stages: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the cell needs nothing more."""
        return not (self.passes or self.seeds or self.stages)


@dataclass(frozen=True)
class Group:
    """Cells on the same input of the same shape and masking: one reference serves them all."""

    cells: tuple[Cell, ...]

    @property
    def key(self) -> str:
        """What tells the group from others of the run: the id of its first point."""
        return self.cells[0].point.point_id

    @property
    def label(self) -> str:
        """The group in a few words, for progress and logs."""
        point = self.cells[0].point
        masking = "causal" if point.is_causal else "non-causal"
        return f"{point.input} n={point.seq_len:,} heads={point.heads} {masking} {point.dtype}"


def resolve(config: RunConfig, defaults: Mapping[str, Mapping[str, Any]]) -> tuple[Cell, ...]:
    """The cells of a configuration; parameters that are null or not given are filled in from `defaults`.

    `defaults` is target -> parameter -> value. Raises ValueError on a value that no point can hold.
    """
    cells: dict[str, Cell] = {}
    for configured in config.points:
        given = {name: value for name, value in configured.hyper.items() if value is not None}
        hyper = {**dict.fromkeys(configured.hyper), **defaults.get(configured.target, {}), **given}
        point = _point(configured, hyper, config.device.name)
        cells.setdefault(point.point_id, Cell(point, configured.exact))
    return tuple(cells.values())


def group(cells: Sequence[Cell]) -> tuple[Group, ...]:
    """Cells grouped by input, shape and masking, the cheap groups first."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        p = cell.point
        params = tuple(sorted(p.input_params.items()))
        shape = (p.batch, p.heads, p.kv_heads, p.seq_len, p.head_dim)
        groups.setdefault((shape, p.is_causal, p.dtype, p.input, params, p.seed), []).append(cell)
    return tuple(Group(tuple(found)) for found in sorted(groups.values(), key=lambda found: _work(found[0].point)))


class FinishedStages:
    """The stages that have a record, by point and round, and of which points they are all there are."""

    def __init__(self) -> None:
        self._timed: dict[tuple[str, int], dict[str, None]] = {}
        self._whole: set[tuple[str, int]] = set()

    def add(self, record: Timing) -> None:
        """Count the record of a stage."""
        place = record.point.point_id, record.round
        timed = self._timed.setdefault(place, {})
        timed[record.stage] = None
        if record.stage == ALL_STAGES or timed.keys() >= set(record.all_stages):
            self._whole.add(place)

    def timed(self, point: Point, round_: int) -> tuple[str, ...] | None:
        """The stages of a point that are finished in a round; None where all of them are."""
        place = point.point_id, round_
        return None if place in self._whole else tuple(self._timed.get(place, ()))


class RoundLimits:
    """In how many rounds a pass of a point is measured: in fewer where a call takes longer than its budget.

    The first round that has a time decides, so that a run that goes on decides as it did before.
    """

    def __init__(self, protocol: ProtocolConfig) -> None:
        self._protocol = protocol
        self._first: dict[tuple[str, str], tuple[int, float]] = {}

    def add(self, record: Record) -> None:
        """Take note of a record."""
        if isinstance(record, Timing) and record.samples_ms and not record.stage:
            place = record.point.point_id, str(record.pass_)
            if place not in self._first or record.round < self._first[place][0]:
                self._first[place] = record.round, median(record.samples_ms) / 1e3

    def wants(self, point: Point, pass_: str, round_: int) -> bool:
        """Whether a pass of a point is to be measured in a round."""
        first = self._first.get((point.point_id, str(pass_)))
        return first is None or round_ - first[0] < self._protocol.rounds_for(pass_, first[1])


def todo(
    cell: Cell,
    passes: Iterable[str],
    error: ErrorConfig,
    round_: int,
    finished: set[Key],
    stages: FinishedStages | None = None,
    *,
    errors_in: int | None = 0,
    limits: RoundLimits | None = None,
) -> Todo:
    """What a cell needs in a round, given the keys of the records that are there; errors belong to one round alone.

    Stages are wanted where `stages` is given; it knows which of them are finished. `limits` knows which passes are too
    slow for another round; with a forward pass its stages are.
    """
    point = cell.point
    timed = tuple(
        Pass(p)
        for p in passes
        if (point.point_id, str(p), "", round_) not in finished and (limits is None or limits.wants(point, p, round_))
    )
    seeds: tuple[int, ...] = ()
    if round_ == errors_in:
        wanted = expected_metrics(point, passes, error)
        seeds = tuple(
            seed
            for seed in draw_seeds(point, error)
            if any((point.point_id, seed, metric) not in finished for metric in wanted)
        )
    if stages is not None and limits is not None and not limits.wants(point, Pass.FORWARD, round_):
        stages = None
    timed_stages = stages.timed(point, round_) if stages is not None else None
    return Todo(cell, timed, seeds, timed_stages is not None, timed_stages or ())


def draw_seeds(point: Point, error: ErrorConfig) -> tuple[int, ...]:
    """The seeds of the draw whose error is measured; a method without a seed has one answer, under the input's seed."""
    return error.seeds if point.hyper.get("seed") is not None else (point.seed,)


def wants_grads(point: Point, passes: Iterable[str], error: ErrorConfig) -> bool:
    """Whether gradients are compared at a point: a backward pass is asked for and the length is within the limit."""
    limit = error.grad_max_seq_len
    return any(p != Pass.FORWARD for p in passes) and (limit is None or point.seq_len <= limit)


def expected_metrics(point: Point, passes: Iterable[str], error: ErrorConfig) -> tuple[str, ...]:
    """The metrics that every method has at a point; lse_mean_abs and causal_in_q are not waited for."""
    metrics = list(_OUTPUT_METRICS)
    if point.seq_len <= error.operator_norm_max_seq_len:
        metrics.append("out_rel_op")
    if wants_grads(point, passes, error):
        metrics.extend(GRAD_METRICS)
    return (*metrics, *_CONTEXT_METRICS)


def failed_records(
    wanted: Todo, passes: Iterable[str], error: ErrorConfig, protocol: str, round_: int, status: Status, message: str
) -> Iterator[Record]:
    """A row of the given status for everything that a cell still needs."""
    point = wanted.cell.point
    for pass_ in wanted.passes:
        yield Timing(point, pass_, protocol, round_, status, message=message)
    for seed in wanted.seeds:
        for metric in expected_metrics(point, passes, error):
            yield ErrorRow(point, seed, metric, None, status, message)
    if wanted.stages:
        yield Timing(point, Pass.FORWARD, protocol, round_, status, message=message, stage=ALL_STAGES)


def expects_skip(point: Point, oom: Iterable[Point]) -> Point | None:
    """A shorter or equal point of the same method and configuration that ran out of memory, or None."""
    for other in oom:
        if _but_length(other) == _but_length(point) and point.seq_len >= other.seq_len and point != other:
            return other
    return None


def _but_length(point: Point) -> dict[str, Any]:
    return {name: value for name, value in point.as_dict().items() if name != "seq_len"}


def _work(point: Point) -> tuple[float, bool]:
    return (float(point.batch * point.heads * point.head_dim) * point.seq_len**2, point.is_causal)


def _point(configured: PointConfig, hyper: dict[str, Any], device: str) -> Point:
    return Point(
        method=configured.method,
        target=configured.target,
        device=device,
        dtype=configured.dtype,
        is_causal=configured.is_causal,
        input=configured.input,
        seed=configured.seed,
        hyper=hyper,
        input_params=dict(configured.input_params),
        **configured.shape,
    )
