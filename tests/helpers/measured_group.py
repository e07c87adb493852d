"""One group measured in this process, with a clock and a memory peak that make nothing of the machine."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterable
from typing import Any

from hyperbench.config.types import PLAIN_CALL, CallOptions
from hyperbench.measure import work_items
from hyperbench.measure.messages import Message, Task
from hyperbench.measure.worker.conditions.machine import Machine
from hyperbench.measure.worker.group import GroupMeasurement
from hyperbench.measure.worker.memory import CallCost
from hyperbench.store.schema import ErrorRow, Status, Timing
from tests.helpers.fake_clock import FakeClock
from tests.helpers.made_records import a_point
from tests.helpers.made_runs import tiny

PASSES = ("forward", "backward", "forward_backward")
SHAPE = {"heads": 2, "kv_heads": 1, "seq_len": 40, "head_dim": 8, "input_params": {}}
HYPER = {"block_size": 8, "sample_size": 8, "num_projections": 3, "min_seq_len": 16, "sampling": "stratified",
         "pairing": "bucket", "seed": 0}  # fmt: skip


class MemoryPeak:
    """Each peak is a hundred bytes above what was there, and the resident set rises by two hundred."""

    peak_bytes: int | None = 100
    resident_peak_bytes: int | None = 200

    def measure(
        self, calls: Iterable[Callable[[], Any]], now_s: Callable[[], float]
    ) -> tuple[list[Any], list[CallCost]]:
        """Make the calls."""
        results, costs = [], []
        for call in calls:
            start_s = now_s()
            results.append(call())
            costs.append(self.cost_of((now_s() - start_s) * 1e3))
        return results, [*costs, dataclasses.replace(costs[-1], ms=sum(cost.ms for cost in costs))]

    def cost_of(self, ms: float) -> CallCost:
        """What the next call takes."""
        return CallCost(ms, 1000, self.peak_bytes, self.resident_peak_bytes)


def item(
    target: str,
    *,
    exact: bool = False,
    hyper: dict[str, Any] | None = None,
    options: CallOptions = PLAIN_CALL,
    **changes: Any,
) -> work_items.WorkItem:
    """A point of a method by its target, nothing to do yet."""
    point = a_point(**{**SHAPE, "method": target.rpartition(".")[2], "target": target, "hyper": hyper or {}, **changes})
    return work_items.WorkItem(point, exact, options=options)


def odd(name: str, **options: Any) -> work_items.WorkItem:
    """A point of an odd method."""
    return item(f"tests.helpers.odd_methods.{name}", **options)


class Measured:
    """What a group reports."""

    def __init__(
        self,
        *items: work_items.WorkItem,
        passes: tuple[str, ...] = PASSES,
        round_: int = 0,
        clock: Any = None,
        machine: Machine | None = None,
        **options: Any,
    ) -> None:
        config = tiny().config
        error = dataclasses.replace(config.error, **options.pop("error", {}))
        protocol = dataclasses.replace(config.protocol, **options.pop("protocol", {}))
        exact = frozenset(one.point.method for one in items if one.exact)
        options_of = {one.point.method: one.options for one in items}
        config = dataclasses.replace(config, passes=passes, error=error, exact_methods=exact, call_options=options_of)
        progress = work_items.Progress(protocol)
        progress.finished |= options.pop("finished", set())
        left = tuple(work_items.remaining(one.point, config, round_, progress) for one in items)
        self.task = Task(left, passes, protocol, error, round_, None, **options)
        self.messages: list[Message] = []
        clock = clock or FakeClock()
        clock.heard = self.messages
        self.measurement = GroupMeasurement(self.task, self.messages.append, clock, MemoryPeak(), machine)
        # The collector runs after each method; as in a worker, it need not look at every library each time.
        gc.freeze()
        self.measurement.run()
        self.records = [m.record for m in self.messages if m.record is not None]

    @property
    def expected(self) -> set[work_items.Key]:
        """The keys it owes."""
        task, failure = self.task, work_items.Failure(Status.ERROR, "")
        return {
            r.key
            for one in task.items
            for r in work_items.failed_records(one, task.passes, task.error, "", task.round, failure)
            if isinstance(r, Timing | ErrorRow)
        }

    @property
    def keys(self) -> list[work_items.Key]:
        """The keys of what it reported, apart from those that only some methods have."""
        some = ("lse_mean_abs", work_items.CAUSAL_IN_Q)
        return [r.key for r in self.records if not (isinstance(r, ErrorRow) and r.metric in some)]  # type: ignore[union-attr]

    def timings(self, method: str) -> dict[str, Timing]:
        """Pass -> timing of a method."""
        return {str(r.pass_): r for r in self.records if isinstance(r, Timing) and r.point.method == method}

    def errors(self, method: str, seed: int = 0) -> dict[str, ErrorRow]:
        """Metric -> error of a method."""
        rows = [r for r in self.records if isinstance(r, ErrorRow) and r.point.method == method and r.seed == seed]
        return {r.metric: r for r in rows}

    def statuses(self, method: str) -> dict[str, str]:
        """Pass -> status of a method."""
        return {name: str(timing.status) for name, timing in self.timings(method).items()}


def all_of(status: str) -> dict[str, str]:
    """The same status for every pass."""
    return dict.fromkeys(PASSES, status)
