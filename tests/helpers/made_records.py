"""Records drawn at random, all of them possible, for tests of what is written and read."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from hyperbench.store.schema import (
    PARAMETER_TYPES,
    ErrorRow,
    Flag,
    Pass,
    Point,
    Record,
    Status,
    StopReason,
    Timing,
)

names = st.text(min_size=1, max_size=8)
milliseconds = st.floats(0, 1e9)
sizes = st.integers(1, 2**40)
seeds = st.integers(0, 2**63 - 1)
parameters = st.dictionaries(
    st.sampled_from(("block_size", "sample_size", "num_projections", "min_seq_len")), st.none() | sizes
)
free_values = st.none() | st.booleans() | st.integers(-10, 10) | st.floats(allow_nan=False) | names
free_parameters = st.dictionaries(
    names.filter(lambda name: name not in PARAMETER_TYPES), free_values | st.lists(free_values, max_size=3), max_size=3
)

conditions = st.dictionaries(
    names,
    st.none() | st.booleans() | st.integers(-10, 10) | st.floats(-1e9, 1e9) | st.lists(names, max_size=3),
    max_size=3,
)


def a_point(**changes: Any) -> Point:
    """One point; its fields as given, the others always the same."""
    fields: dict[str, Any] = {
        "method": "hyper",
        "target": "some.module.hyper",
        "device": "cpu",
        "dtype": "float32",
        "is_causal": False,
        "batch": 1,
        "heads": 4,
        "kv_heads": 2,
        "seq_len": 1024,
        "head_dim": 64,
        "input": "gaussian",
        "seed": 0,
        "hyper": {"block_size": 256, "sampling": "stratified"},
        "input_params": {"std": 1.0},
    }
    return Point(**{**fields, **changes})


def a_timing(point: Point | None = None, **changes: Any) -> Timing:
    """One timing with samples; its fields as given."""
    fields: dict[str, Any] = {
        "point": point or a_point(),
        "pass_": Pass.FORWARD,
        "protocol": "strict",
        "round": 0,
        "status": Status.OK,
        "implementation": "some-kernel",
        "stop_reason": StopReason.PRECISION,
        "samples_ms": (1.5, 1.0, 2.0),
        "warmup_ms": (3.0,),
        "peak_memory_bytes": 4096,
        "exact_equivalent_flops": 8e9,
        "executed_flops": 1e9,
    }
    return Timing(**{**fields, **changes})


def a_stage(point: Point, stage: str, *samples_ms: float, **changes: Any) -> Timing:
    """The timing of a stage of the forward pass; without samples give its status."""
    fields = {"protocol": "strict", "round": 0, "status": Status.OK, **changes}
    return Timing(point, Pass.FORWARD, samples_ms=samples_ms, stage=stage, **fields)


@st.composite
def points(draw: st.DrawFn) -> Point:
    """Any point."""
    kv_heads = draw(st.integers(1, 64))
    return Point(
        method=draw(names),
        target=draw(names),
        device=draw(names),
        dtype=draw(names),
        is_causal=draw(st.booleans()),
        batch=draw(sizes),
        heads=kv_heads * draw(st.integers(1, 8)),
        kv_heads=kv_heads,
        seq_len=draw(sizes),
        head_dim=draw(sizes),
        input=draw(names),
        seed=draw(seeds),
        hyper={**draw(free_parameters), **draw(parameters)},
        input_params=draw(free_parameters),
    )


@st.composite
def timings(draw: st.DrawFn) -> Timing:
    """Any timing of a pass or of a stage, of any status."""
    status = draw(st.sampled_from(Status))
    samples = draw(st.lists(milliseconds, min_size=1, max_size=9)) if status.has_timing else []
    stage = draw(st.just("") | names)
    others = draw(st.just(()) | st.lists(names, max_size=3).map(tuple)) if stage else ()
    return Timing(
        point=draw(points()),
        pass_=draw(st.sampled_from(Pass)),
        protocol=draw(names),
        round=draw(st.integers(0, 9)),
        status=status,
        implementation=draw(st.text(max_size=8)),
        stop_reason=draw(st.none() | st.sampled_from(StopReason)),
        samples_ms=tuple(samples),
        warmup_ms=tuple(draw(st.lists(milliseconds, max_size=3))),
        peak_memory_bytes=draw(st.none() | st.integers(0, 2**62)),
        exact_equivalent_flops=draw(st.none() | st.floats()),
        executed_flops=draw(st.none() | st.floats()),
        message=draw(st.text(max_size=20)),
        first_call_ms=draw(st.none() | milliseconds),
        host_ms=draw(st.none() | milliseconds),
        memory_before_bytes=draw(st.none() | st.integers(0, 2**62)),
        flags=tuple(map(str, draw(st.lists(st.sampled_from(Flag), unique=True)))) if samples else (),
        conditions=draw(conditions),
        stage=stage,
        all_stages=(stage, *others) if others else (),
    )


@st.composite
def error_rows(draw: st.DrawFn) -> ErrorRow:
    """Any error row; infinities and NaN are values too."""
    status = draw(st.sampled_from(Status))
    return ErrorRow(
        point=draw(points()),
        seed=draw(seeds),
        metric=draw(names),
        value=draw(st.floats()) if status.has_timing else None,
        status=status,
        message=draw(st.text(max_size=20)),
    )


def records() -> st.SearchStrategy[Record]:
    """Any record."""
    return st.one_of(timings(), error_rows())
