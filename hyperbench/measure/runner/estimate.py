"""Estimate of the time of a run, from its configuration and the rate of exact attention on this machine. No torch.

It is meant to be within a factor of two of the truth; the constants were chosen so on two CPU cores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hyperbench.config import tasks
from hyperbench.config.compose import RunConfig
from hyperbench.config.types import ProtocolConfig
from hyperbench.flops import exact_flops, hyper_flops
from hyperbench.measure import work_items
from hyperbench.measure.runner.schedule import items_of
from hyperbench.store.schema import Pass, Point

#: (point id, part of its work)
Part = tuple[str, str]
#: Parts of a call that count no operations, and the rate of approximate attention relative to exact attention's.
_OVERHEAD_S = 2e-3
_APPROXIMATE_RATE = 0.5
#: Seconds of a check apart from its calls (measuring memory, comparing, a part of examining the method on short
#: inputs), and of making an element of the inputs.
_CHECK_S = 0.1
_ELEMENT_S = 3e-9
#: Cost of the reference for each query-key pair, in operations that exact attention would do in the same time: its
#: rows (softmax and products) in float64, and the operator norm (some eighty products with one dense matrix).
_ROW_PAIR_FLOPS = 4e3
_NORM_PAIR_FLOPS = 2.2e4
#: The same for what error.extra asks for: properties of the input (some ten products with D^-1 A, made anew each time),
#: and the mass that a plan catches (masks, and the heaviest keys of each row).
_THEORY_PAIR_FLOPS = 1.5e4
_RECALL_PAIR_FLOPS = 4e3
_REFERENCE_S = 0.05
#: Work of other layers before each sample on a CPU (see worker/timing/other_layers): seconds for an entry of the hidden
#: state, and entries at most.
_BETWEEN_S, _BETWEEN_ELEMENTS = 2e-8, 2**18
#: Stages of a method as far as the estimate of time goes; how many there are, only the method knows.
_TYPICAL_STAGES = 5
#: Tokens that a language model knows, as far as the estimate of time goes, and the rate of operations, relative to
#: exact attention's, at which it generates them one by one.
_VOCABULARY, _DECODING_RATE = 5e4, 0.05
#: The part of the time over which samples are spread that one of several calls in turns fills itself.
_SHARED = 0.5


@dataclass(frozen=True)
class Speed:
    """Speed of this machine: the rate of exact attention, and the seconds until a worker process is ready."""

    flops_per_s: float = 1e11
    start_s: float = 3.0


def plan_s(
    groups: Sequence[work_items.Group], progress: work_items.Progress, config: RunConfig, speed: Speed
) -> dict[str, float]:
    """Seconds that what is not finished is likely to take, by the id of the point; the workers' starts are shared."""
    found: defaultdict[str, float] = defaultdict(float)
    for round_ in range(config.protocol.rounds):
        # An isolated method has worker processes of its own.
        by_worker: defaultdict[str, dict[Part, float]] = defaultdict(dict)
        for group in groups:
            items = [_likely(item, round_, config, speed) for item in items_of(group, round_, config, progress)]
            by_worker[group.isolated] |= group_s([item for item in items if not item.is_empty], config, speed)
        for costs in by_worker.values():
            points = {point_id for point_id, _ in costs}
            for point_id in points:
                found[point_id] += speed.start_s / len(points)
            for (point_id, _), cost_s in costs.items():
                found[point_id] += cost_s
    return dict(found)


def _likely(item: work_items.WorkItem, round_: int, config: RunConfig, speed: Speed) -> work_items.WorkItem:
    """The likely part of an item in a round: passes that turn out slow get fewer rounds."""
    rounds_for = config.protocol.rounds_for
    passes = [p for p in item.passes if round_ < rounds_for(p, _call_s(item, p, speed.flops_per_s))]
    return replace(item, passes=tuple(passes))


def group_s(items: Sequence[work_items.WorkItem], config: RunConfig, speed: Speed) -> dict[Part, float]:
    """Seconds that each part of the work of a group is likely to take; inputs and reference are part of its checks."""
    if items and items[0].point.is_task:
        return _task_s(items, speed.flops_per_s)
    costs = {
        (item.point.point_id, part): cost_s
        for item in items
        for part, cost_s in estimate_s(item, config, speed.flops_per_s).items()
    }
    for item in items:
        costs[item.point.point_id, "check"] += common_s(items, config, speed.flops_per_s) / len(items)
    return costs


def _task_s(items: Sequence[work_items.WorkItem], flops_per_s: float) -> dict[Part, float]:
    """Seconds of each example of a task at each point: passes from the first patched layer on, and a share of the
    exact one.

    A layer of a usual model has twelve times as many parameters as the square of its width.
    """
    p = items[0].point
    layers, width = int(p.input_params[tasks.MODEL_LAYERS]), p.heads * p.head_dim
    layer_s = (24.0 * width**2 * p.seq_len + exact_flops(p, Pass.FORWARD)) / flops_per_s
    head_s = 2.0 * _VOCABULARY * width * p.seq_len / flops_per_s
    # A step of generation reads every weight for one token.
    step_s = (24.0 * width**2 * layers + 2.0 * _VOCABULARY * width) / (_DECODING_RATE * flops_per_s)
    found: dict[Part, float] = {}
    for item in items:
        patched = tasks.numbered(str(item.point.hyper.get(tasks.LAYERS, "")), layers)
        own_s = head_s + layer_s * (layers - min(patched, default=layers)) + tasks.answer_tokens(p) * step_s
        for seed in item.seeds:
            sharing = sum(seed in other.seeds for other in items)
            found[item.point.point_id, work_items.example_part(seed)] = own_s + layers * layer_s / sharing
    return found


def common_s(items: Sequence[work_items.WorkItem], config: RunConfig, flops_per_s: float) -> float:
    """Seconds that the inputs of a group are likely to take, and its reference where errors are measured."""
    if not items:
        return 0.0
    p, error = items[0].point, config.error
    inputs_s = _ELEMENT_S * p.batch * p.seq_len * p.head_dim * 2 * (p.heads + p.kv_heads)
    if not any(item.seeds for item in items):
        return inputs_s
    grads = work_items.wants_grads(p, config.passes, error)
    norm = p.seq_len <= error.operator_norm_max_seq_len
    in_float64 = p.dtype == "float64" or p.seq_len <= error.float64_max_seq_len
    slowness = 1.0 if in_float64 else 0.5
    whole = grads or norm or p.seq_len <= error.rows
    if whole and not in_float64:
        flops = exact_flops(p, Pass.FORWARD_BACKWARD if grads else Pass.FORWARD)
    else:
        # Drawn rows are others for each seed.
        draws = 1 if whole else max(1, *(len(item.seeds) for item in items))
        rows = p.seq_len if whole else draws * error.rows
        flops = p.batch * p.heads * p.seq_len * rows * slowness * _ROW_PAIR_FLOPS * (1.0 if grads else 0.5)
    if norm:
        flops += p.batch * p.heads * p.seq_len**2 * slowness * _NORM_PAIR_FLOPS
    if "theory" in error.extra:
        # Under a causal mask of half of the queries over half of the keys.
        flops += p.batch * p.heads * p.seq_len**2 * slowness * _THEORY_PAIR_FLOPS * (0.25 if p.is_causal else 1.0)
    return _REFERENCE_S + inputs_s + flops / flops_per_s


def _extra_s(item: work_items.WorkItem, config: RunConfig, forward_s: float, flops_per_s: float) -> float:
    """Seconds that the measures of error.extra are likely to take for one method; those of its input are common."""
    p, error, cost_s = item.point, config.error, 0.0
    if "bias" in error.extra:
        cost_s += forward_s * len(work_items.draw_seeds(p, error))
    # Only the method knows whether it has a plan; one with blocks is likely to.
    if "recall" in error.extra and p.hyper.get("block_size") is not None:
        whole = work_items.wants_grads(p, config.passes, error) or p.seq_len <= error.operator_norm_max_seq_len
        pairs = p.batch * p.heads * p.seq_len * (p.seq_len if whole else min(error.rows, p.seq_len))
        cost_s += len(item.seeds) * pairs * _RECALL_PAIR_FLOPS / flops_per_s
    return cost_s


def estimate_s(item: work_items.WorkItem, config: RunConfig, flops_per_s: float) -> dict[str, float]:
    """Seconds that the parts of an item are likely to take: `check` (errors too), each pass to be timed, `stages`."""
    if item.is_empty:
        return {}
    protocol = config.protocol
    call_s = {pass_: _call_s(item, pass_, flops_per_s) for pass_ in Pass}
    both = call_s[Pass.FORWARD_BACKWARD] if any(p != Pass.FORWARD for p in config.passes) else call_s[Pass.FORWARD]
    parts = {"check": _CHECK_S + call_s[Pass.FORWARD] + both * max(1, len(item.seeds))}
    if item.seeds:
        parts["check"] += _extra_s(item, config, call_s[Pass.FORWARD], flops_per_s)
    between_s = _between_s(item.point, protocol)
    for pass_ in item.passes:
        fitting = min(protocol.max_samples, protocol.budget_s[pass_] / (call_s[pass_] + between_s))
        # Steady calls reach their precision well before the budget.
        samples = max(protocol.slow_min_samples, min(fitting, 2.0 * protocol.min_samples))
        # Samples are spread over some time, which the methods share.
        least_s = min(protocol.budget_s[pass_], _SHARED * protocol.min_spread_s)
        steady_s = max(samples * (call_s[pass_] + between_s), least_s)
        parts[str(pass_)] = protocol.budget_s[pass_] if protocol.fixed_time else steady_s
        if pass_ is Pass.BACKWARD:  # its graph is made once
            parts[str(pass_)] += call_s[Pass.FORWARD]
        parts[str(pass_)] += _warmup_s(call_s[pass_], protocol)
    if item.stages:
        # Each of them has the budget of the forward pass; together they take as long as one.
        forward_s = call_s[Pass.FORWARD]
        fitting = min(protocol.max_samples, _TYPICAL_STAGES * protocol.budget_s[Pass.FORWARD] / forward_s)
        samples = max(protocol.slow_min_samples, min(fitting, 2.0 * protocol.min_samples))
        calls = samples + protocol.warmup_min_calls + 2
        least_s = protocol.warmup_min_s + min(protocol.budget_s[Pass.FORWARD], _SHARED * protocol.min_spread_s)
        parts["stages"] = calls * (forward_s + _TYPICAL_STAGES * between_s) + _TYPICAL_STAGES * least_s
    return parts


def _warmup_s(call_s: float, protocol: ProtocolConfig) -> float:
    if call_s < protocol.skip_warmup_above_s:
        return protocol.warmup_min_calls * call_s + protocol.warmup_min_s
    return call_s if call_s < max(protocol.skip_warmup_above_s, protocol.keep_first_above_s) else 0.0


def _between_s(p: Point, protocol: ProtocolConfig) -> float:
    if p.device == "cuda" or protocol.as_paper:
        return 0.0
    return _BETWEEN_S * min(p.batch * p.heads * p.seq_len * p.head_dim, _BETWEEN_ELEMENTS)


def _call_s(item: work_items.WorkItem, pass_: Pass, flops_per_s: float) -> float:
    p = item.point
    if all(isinstance(p.hyper.get(name), int) for name in ("block_size", "sample_size", "min_seq_len")):
        flops = hyper_flops(p, pass_) / _APPROXIMATE_RATE
    elif item.exact:
        flops = exact_flops(p, pass_)
    else:
        flops = 0.0
    return flops / flops_per_s + _OVERHEAD_S
