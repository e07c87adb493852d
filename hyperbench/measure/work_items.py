"""Work items: what is left to do of each point of a run, and the groups in which points are measured. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hyperbench.config import tasks
from hyperbench.config.compose import RunConfig
from hyperbench.config.types import PLAIN_CALL, CallOptions, ErrorConfig, ProtocolConfig
from hyperbench.stats.samples import median
from hyperbench.store.schema import ALL_STAGES, Cause, ErrorRow, Pass, Point, Record, Status, Timing

Key = tuple[str, str, str, int] | tuple[str, int, str]
#: Every point's error rows, in the order they are written; lse_mean_abs comes first where a method has a log-sum-exp.
_OUTPUT_METRICS = ("out_rel_fro", "out_max_abs", "out_row_rel_p50", "out_row_rel_p90", "out_row_rel_p99")
GRAD_METRICS = ("dq_rel_fro", "dk_rel_fro", "dv_rel_fro")
#: A property and no error: 1 if later queries leave earlier outputs alone. Rows of points under a causal mask have it.
CAUSAL_IN_Q = "causal_in_q"
_CONTEXT_METRICS = ("mean_v_rel_fro", "zero_rel_fro")
#: Rows of every point where error.extra asks for them; those of each head come after their median and maximum.
HEAD_SUMMARY = ("out_rel_fro_head_median", "out_rel_fro_head_max")
_EXTRA_METRICS = {
    "theory": ("alpha", "kappa", "stable_rank"),
    "bias": ("out_bias_rel_fro", "out_std_rel_fro"),
}


@dataclass(frozen=True)
class WorkItem:
    """The work left to do at a point in one round: passes to time, seeds whose error is to be measured, stages.

    `exact` is true if the method claims to be exact, `stages` if stages of the forward pass are to be timed, all but
    those in `timed_stages`; `options` say how the method is called.
    """

    point: Point
    exact: bool
    passes: tuple[Pass, ...] = ()
    seeds: tuple[int, ...] = ()
    stages: bool = False
    timed_stages: tuple[str, ...] = ()
    options: CallOptions = PLAIN_CALL

    @property
    def is_empty(self) -> bool:
        """True if nothing is left to do."""
        return not (self.passes or self.seeds or self.stages)

    @property
    def backward(self) -> WorkItem:
        """Only the passes with a backward pass."""
        return self.only(passes=tuple(p for p in self.passes if p is not Pass.FORWARD))

    def only(self, **parts: Any) -> WorkItem:
        """The same point with nothing to do but these parts."""
        return WorkItem(self.point, self.exact, options=self.options, **parts)


@dataclass(frozen=True)
class Failure:
    """The status, message and cause of records that have no number."""

    status: Status
    message: str
    cause: Cause | None = None


@dataclass(frozen=True)
class Group:
    """Points on the same input of the same shape and masking: one reference serves them all.

    `isolated` is the method that they are of, if that has a worker process of its own, else "".
    """

    points: tuple[Point, ...]
    isolated: str = ""

    @property
    def key(self) -> str:
        """The id of the first point, which no other group of the run has."""
        return self.points[0].point_id

    @property
    def label(self) -> str:
        """The group in a few words, for progress and logs."""
        point = self.points[0]
        masking = "causal" if point.is_causal else "non-causal"
        return f"{point.input} n={point.seq_len:,} heads={point.heads} {masking} {point.dtype}"


def with_defaults(points: Iterable[Point], defaults: Mapping[str, Mapping[str, Any]]) -> tuple[Point, ...]:
    """The points with parameters that are null or not given filled in; points that become equal are one.

    `defaults` is target -> parameter -> value; a seed among them that is not given is that of the inputs. Raises
    ValueError on a value that no point can hold.
    """
    found: dict[str, Point] = {}
    for point in points:
        given = {name: value for name, value in point.hyper.items() if value is not None}
        own = defaults.get(point.target, {})
        seed = {"seed": point.seed} if "seed" in own else {}
        hyper = {**dict.fromkeys(point.hyper), **own, **seed, **given}
        filled = replace(point, hyper=hyper)
        found.setdefault(filled.point_id, filled)
    return tuple(found.values())


def groups_of(points: Sequence[Point], isolated: Collection[str] = ()) -> tuple[Group, ...]:
    """Points grouped by input, shape and masking, the cheap groups first; after them those of each isolated method."""
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for p in points:
        params = json.dumps(p.input_params, sort_keys=True)
        shape = (p.batch, p.heads, p.kv_heads, p.seq_len, p.head_dim)
        alone = p.method if p.method in isolated else ""
        groups.setdefault((alone, shape, p.is_causal, p.dtype, p.input, params, p.seed), []).append(p)
    found = [Group(tuple(points), alone) for (alone, *_), points in groups.items()]
    return tuple(sorted(found, key=lambda group: (group.isolated, _work(group.points[0]))))


class Progress:
    """Finished work of a run, read from its records: their keys, the stages of each point, and slow passes.

    A pass whose call takes longer than its budget is measured in fewer rounds. The first round that has a time
    decides, so that a run that is resumed decides as it did before.
    """

    def __init__(self, protocol: ProtocolConfig, records: Iterable[Record] = ()) -> None:
        self.finished: set[Key] = set()
        self._protocol = protocol
        self._first: dict[tuple[str, str], tuple[int, float]] = {}
        self._timed_stages: dict[tuple[str, int], dict[str, None]] = {}
        self._all_stages: set[tuple[str, int]] = set()
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count a record."""
        self.finished.add(record.key)
        if isinstance(record, Timing) and record.samples_ms and not record.stage:
            place = record.point.point_id, str(record.pass_)
            if place not in self._first or record.round < self._first[place][0]:
                self._first[place] = record.round, median(record.samples_ms) / 1e3
        elif isinstance(record, Timing) and record.stage:
            in_round = record.point.point_id, record.round
            timed = self._timed_stages.setdefault(in_round, {})
            timed[record.stage] = None
            if record.stage == ALL_STAGES or timed.keys() >= set(record.all_stages):
                self._all_stages.add(in_round)

    def includes(self, point: Point, pass_: str, round_: int) -> bool:
        """True if a pass of a point belongs to a round: it is not too slow for another one."""
        first = self._first.get((point.point_id, str(pass_)))
        return first is None or round_ - first[0] < self._protocol.rounds_for(pass_, first[1])

    def timed_stages(self, point: Point, round_: int) -> tuple[str, ...] | None:
        """The stages of a point that are finished in a round; None if all of them are."""
        in_round = point.point_id, round_
        return None if in_round in self._all_stages else tuple(self._timed_stages.get(in_round, ()))


def remaining(point: Point, config: RunConfig, round_: int, progress: Progress) -> WorkItem:
    """The work item of a point in a round; errors belong to the first round alone, stages to a forward pass."""
    point_id, finished = point.point_id, progress.finished
    seeds: tuple[int, ...] = ()
    if round_ == 0:
        metrics = expected_metrics(point, config.passes, config.error)
        seeds = tuple(
            seed
            for seed in draw_seeds(point, config.error)
            if any((point_id, seed, metric) not in finished for metric in metrics)
        )
    is_task = point.is_task
    has_stages = config.stages and not is_task and progress.includes(point, Pass.FORWARD, round_)
    timed_stages = progress.timed_stages(point, round_) if has_stages else None
    return WorkItem(
        point,
        point.method in config.exact_methods,
        passes=tuple(
            Pass(p)
            for p in config.passes
            if not is_task and (point_id, str(p), "", round_) not in finished and progress.includes(point, p, round_)
        ),
        seeds=seeds,
        stages=timed_stages is not None,
        timed_stages=timed_stages or (),
        options=config.call_options.get(point.method, PLAIN_CALL),
    )


def draw_seeds(point: Point, error: ErrorConfig) -> tuple[int, ...]:
    """The seeds of the draw whose error is measured; a method without a seed has one answer, under the input's seed.

    Of a task they are the numbers of its examples, as far as there are so many.
    """
    if point.is_task:
        return tasks.examples_of(point, error.seeds)
    return error.seeds if point.hyper.get("seed") is not None else (point.seed,)


def wants_grads(point: Point, passes: Iterable[str], error: ErrorConfig) -> bool:
    """True if gradients are compared at a point: a backward pass is asked for and the length is within the limit."""
    limit = error.grad_max_seq_len
    return any(p != Pass.FORWARD for p in passes) and (limit is None or point.seq_len <= limit)


def expected_metrics(point: Point, passes: Iterable[str], error: ErrorConfig) -> tuple[str, ...]:
    """The metrics that every method has at a point; what only some have is not waited for.

    That is lse_mean_abs and causal_in_q, and of error.extra what comes of a plan or a log-sum-exp.
    """
    if point.is_task:
        return tasks.metrics_of(point)
    metrics = list(_OUTPUT_METRICS)
    if point.seq_len <= error.operator_norm_max_seq_len:
        metrics.append("out_rel_op")
    if wants_grads(point, passes, error):
        metrics.extend(GRAD_METRICS)
    for name in error.extra:
        metrics.extend(_EXTRA_METRICS.get(name, ()))
    if "per_head" in error.extra:
        metrics.extend((*HEAD_SUMMARY, *map(head_metric, range(point.heads))))
    return (*metrics, *_CONTEXT_METRICS)


def head_metric(head: int) -> str:
    """The name of the error of one head of the output."""
    return f"out_rel_fro_head{head}"


def example_part(seed: int) -> str:
    """The part of the work of a task's point that an example is."""
    return f"example {seed}"


def failed_records(
    item: WorkItem, passes: Iterable[str], error: ErrorConfig, protocol: str, round_: int, failure: Failure
) -> Iterator[Record]:
    """A row of the given failure for everything that is left to do of a point."""
    point, status, message, cause = item.point, failure.status, failure.message, failure.cause
    for pass_ in item.passes:
        yield Timing(point, pass_, protocol, round_, status, message=message, cause=cause)
    for seed in item.seeds:
        for metric in expected_metrics(point, passes, error):
            yield ErrorRow(point, seed, metric, None, status, message, cause)
    if item.stages:
        yield Timing(point, Pass.FORWARD, protocol, round_, status, message=message, cause=cause, stage=ALL_STAGES)


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
