"""From a call to a timing: prepared on copies of its inputs, sampled in turns, judged by samples and conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hyperbench.config.types import ProtocolConfig
from hyperbench.flops import above_peak_note
from hyperbench.measure.inputs import Inputs
from hyperbench.measure.worker.calls import in_turn, number_of_copies, rotated, timed_call
from hyperbench.measure.worker.clock import Clock
from hyperbench.measure.worker.conditions.conditions import Conditions
from hyperbench.measure.worker.gate.result_check import ResultCheck
from hyperbench.measure.worker.subject import Subject
from hyperbench.measure.worker.timing.cuda_graphs import GraphedCall
from hyperbench.measure.worker.timing.other_layers import other_layers
from hyperbench.measure.worker.timing.sampler import Sampler, interleave
from hyperbench.stats.samples import median
from hyperbench.stats.shape import has_drift, has_two_modes
from hyperbench.store.schema import Flag, Pass, Status

#: Forward passes made to prepare copies for a backward pass, or for stages, take at most this part of its budget.
_PREPARE_SHARE = 0.1
#: Steps of the events of CUDA, in milliseconds: samples that differ by one are the same.
_EVENT_STEP_MS = 1e-3


@dataclass(frozen=True)
class Judged:
    """Verdict on a timing from its samples and conditions; a throttled timing is marked, never dropped."""

    status: Status
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    host_ms: float | None


@dataclass(kw_only=True)
class TimedCall:
    """A call under measurement, on a `device`, and its conditions, to which `facts` are added.

    A pass has the check of its results as well, and its captured calls, `graphs`, in graph mode.
    """

    sampler: Sampler
    conditions: Conditions
    facts: dict[str, Any]
    device: str
    result_check: ResultCheck | None = None
    graphs: list[GraphedCall] = field(default_factory=list)

    def failure(self) -> Exception | None:
        """The reason for no timing: an exception of the call, another answer than before, or a graph's; else None."""
        found = self.sampler.failure or (None if self.result_check is None else self.result_check.failure)
        if found is not None:
            return found
        try:
            for graph in self.graphs:
                graph.check()
        except Exception as error:  # of the measured code
            return error.with_traceback(None)
        return None

    def judge(self, executed_flops: float | None = None, peak_flops_per_s: float | None = None) -> Judged:
        """Flags, status and notes of the samples, held against the peak rate where it is known."""
        samples = self.sampler.samples_ms
        host_ms = median(self.sampler.host_ms) if self.sampler.host_ms else None
        flags = self.conditions.flags()
        if has_drift(samples):
            flags.append(Flag.DRIFT)
        if has_two_modes(samples, _EVENT_STEP_MS if self.device == "cuda" else 0.0):
            flags.append(Flag.BIMODAL)
        if host_ms is not None and host_ms > median(samples):
            flags.append(Flag.HOST_BOUND)
        notes = []
        reasons = self.conditions.throttle_reasons
        if reasons:
            notes.append(f"throttled: {', '.join(reasons)}")
        if note := above_peak_note(executed_flops, median(samples), peak_flops_per_s):
            flags.append(Flag.ABOVE_PEAK)
            notes.append(note)
        in_order = tuple(str(flag) for flag in Flag if flag in flags)
        return Judged(Status.THROTTLED if reasons else Status.OK, in_order, tuple(notes), host_ms)


def enough_copies(
    copies: list[Inputs], protocol: ProtocolConfig, budget_s: float, forward_ms: float, kept_bytes: int | None = None
) -> list[Inputs]:
    """The sets of inputs that a call is timed on in turn; `copies` begins with the inputs, missing ones are added.

    `kept_bytes` is given where each set keeps what a forward pass left, which took `forward_ms` (see number_of_copies).
    """
    spare_calls = _PREPARE_SHARE * budget_s * 1e3 / forward_ms if forward_ms > 0 else protocol.input_copies
    count = number_of_copies(copies[0], protocol.input_copies, protocol.input_copies_bytes, spare_calls, kept_bytes)
    if len(copies) < count:
        copies[:] = rotated(copies[0], count)
    return copies[:count]


def take_turns(
    timed: Sequence[TimedCall],
    protocol: ProtocolConfig,
    budget_s: float,
    on_turn: Callable[[int], object],
    on_done: Callable[[int], object],
) -> None:
    """Sample all to their ends, in turns where the protocol has them, and read the conditions around each turn.

    `on_turn` is told the index of the call whose turn is about to begin, `on_done` that of one that is done, at once.
    """

    def begin(index: int) -> None:
        on_turn(index)
        timed[index].conditions.begin_turn()

    interleave(
        [one.sampler for one in timed],
        budget_s / protocol.slices,
        begin,
        on_done,
        lambda index: timed[index].conditions.end_turn(len(timed[index].sampler.samples_ms)),
        in_turns=not protocol.fixed_time,
    )


def prepare_pass(
    subject: Subject,
    pass_: Pass,
    copies: list[Inputs],
    grad_output: Tensor,
    clock: Clock,
    protocol: ProtocolConfig,
    conditions: Conditions,
    result_check_of: Callable[[Callable[[], object], int], ResultCheck],
) -> TimedCall:
    """A pass of a subject, ready to be sampled on several copies of its inputs in turn.

    `copies` begins with the inputs themselves; missing copies are added to it, for the methods that come after as well.
    `result_check_of` makes the check of the call on the inputs themselves: of that call, and every how many calls it
    comes. Raises whatever the method raises.
    """
    budget_s = protocol.budget_s[pass_]
    forward_ms = subject.first_ms.get(Pass.FORWARD, 0.0)
    graph_bytes = subject.peak_bytes(Pass.FORWARD_BACKWARD) if pass_ is Pass.BACKWARD else None
    used = enough_copies(copies, protocol, budget_s, forward_ms, graph_bytes)
    graphs: list[GraphedCall] = []

    def call_on(inputs: Inputs) -> Callable[[], object]:
        def prepare() -> Callable[[], object]:
            attend = subject.ready(inputs)
            with subject.seeded():
                return timed_call(attend, pass_, inputs, grad_output, accumulate=protocol.as_paper)

        if not protocol.cuda_graph:
            return prepare()
        graphs.append(GraphedCall(prepare, subject.point.dtype))
        return graphs[-1]

    calls = [call_on(inputs) for inputs in used]
    result_check = result_check_of(calls[0], len(calls))
    return TimedCall(
        sampler=Sampler(
            in_turn([result_check.call, *calls[1:]]),
            result_check,
            protocol,
            budget_s,
            other_layers(subject.point, protocol),
        ),
        conditions=conditions,
        facts={"input_copies": len(calls), **({"cuda_graph": True} if graphs else {})},
        device=subject.point.device,
        result_check=result_check,
        graphs=graphs,
    )
