"""Records: an id that is the configuration, JSON that loses nothing, and no record in an impossible state."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.store import tables
from hyperbench.store.record_json import from_json, parsed, to_json
from hyperbench.store.schema import ErrorRow, Pass, Point, Record, Status, StopReason, Timing
from tests.helpers.made_records import a_point, a_stage, a_timing, error_rows, points, records

#: A stage as it stands in journals of before stages were timings.
OLD_STAGE: dict[str, Any] = {"kind": "stage", "point": a_point().as_dict(), "stage": "hash", "median_ms": 1.0}


OTHER_VALUES: dict[str, Any] = {
    "method": "math",
    "target": "some.module.math",
    "device": "cuda",
    "dtype": "bfloat16",
    "is_causal": True,
    "batch": 2,
    "heads": 8,
    "kv_heads": 4,
    "seq_len": 1025,
    "head_dim": 128,
    "input": "clustered",
    "seed": 1,
    "hyper": {"block_size": 256, "sampling": "iid"},
    "input_params": {"std": 2.0},
}
#: What may stand in a damaged journal in the place of anything.
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(2**63) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Point)])
def test_the_id_depends_on_every_field(name: str) -> None:
    changed = dataclasses.replace(a_point(), **{name: OTHER_VALUES[name]})
    assert changed.point_id != a_point().point_id


@given(points())
def test_the_id_depends_on_nothing_else(point: Point) -> None:
    shuffled = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value
        for key, value in reversed(point.as_dict().items())
    }
    again = Point.from_dict(shuffled)
    assert again == point
    assert again.point_id == point.point_id
    assert len(point.point_id) == 12
    int(point.point_id, 16)


def test_the_id_is_the_same_in_another_process() -> None:
    program = (
        "import sys, json; from hyperbench.store.schema import Point; print(Point(**json.load(sys.stdin)).point_id)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(a_point().as_dict()), capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )  # fmt: skip
    assert done.stdout.strip() == a_point().point_id


@settings(deadline=None)
@given(records())
def test_records_survive_json(record: Record) -> None:
    text = json.dumps(to_json(record))
    # A NaN is not equal to itself; its repr is.
    assert repr(from_json(json.loads(text))) == repr(from_json(parsed(text.encode()))) == repr(record)


@settings(deadline=None)
@given(error_rows())
def test_infinities_and_nan_are_written_as_names(row: ErrorRow) -> None:
    plain = dataclasses.replace(row, point=a_point())
    json.dumps(to_json(plain), allow_nan=False)


@pytest.mark.parametrize("status", [s for s in Status if not s.has_timing])
def test_a_failure_carries_no_samples_and_no_error(status: Status) -> None:
    with pytest.raises(ValueError, match="cannot carry samples"):
        a_timing(status=status)
    with pytest.raises(ValueError, match="cannot have value"):
        ErrorRow(a_point(), 0, "out_rel_fro", 0.5, status)


def test_only_ok_and_throttled_carry_a_timing() -> None:
    assert {s for s in Status if s.has_timing} == {Status.OK, Status.THROTTLED}
    for status in (Status.OK, Status.THROTTLED):
        with pytest.raises(ValueError, match="needs samples"):
            a_timing(status=status, samples_ms=())
        with pytest.raises(ValueError, match="cannot have value"):
            ErrorRow(a_point(), 0, "out_rel_fro", None, status)


@pytest.mark.parametrize("sample", [-1e-9, float("nan"), float("inf"), "1", None, True])
def test_a_sample_is_a_time(sample: Any) -> None:
    with pytest.raises(ValueError, match="samples_ms"):
        a_timing(samples_ms=(1.0, sample))
    with pytest.raises(ValueError, match="warmup_ms"):
        a_timing(warmup_ms=(sample,))
    with pytest.raises(ValueError, match="samples_ms"):
        from_json({**OLD_STAGE, "median_ms": sample if sample is not None else "None"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples_ms": (1.0, -1.0)}, "samples_ms"),
        ({"status": Status.OOM}, "status oom cannot carry samples"),
        ({"all_stages": ("sort", "attend")}, "stage='hash'"),
        ({"all_stages": ("hash",), "stage": ""}, "stage='' must be one of"),
        ({"all_stages": "hash"}, "all_stages"),
        ({"flags": ("tired",)}, "flags='tired' is unknown; allowed: bimodal"),
        ({"flags": ("drift",), "samples_ms": (), "status": Status.OOM}, "a timing without samples has none"),
        ({"host_ms": -1.0}, "host_ms"),
        ({"conditions": {"power_w_max": float("inf")}}, "conditions of a timing"),
        ({"round": -1}, "round"),
    ],
)
def test_a_stage_refuses_what_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(a_stage(a_point(), "hash", 1.0), **changes)


def test_an_old_record_of_a_stage_is_read_as_a_timing() -> None:
    more = {"all_stages": ["hash", "sort"], "protocol": "strict", "round": 2, "message": "slow", "flags": ["drift"]}
    samples = {"samples_ms": [1.0, 2.0], "stop_reason": "budget"}
    assert from_json({**OLD_STAGE, "median_ms": 1.5, **samples, **more}) == a_stage(
        a_point(), "hash", 1.0, 2.0, all_stages=("hash", "sort"), round=2, message="slow", flags=("drift",),
        stop_reason=StopReason.BUDGET,
    )  # fmt: skip
    # The first journals had the median alone, and stages that could not be timed have none.
    assert from_json(OLD_STAGE) == a_stage(a_point(), "hash", 1.0, protocol="")
    lost = {**OLD_STAGE, "median_ms": None, "status": "oom", "samples_ms": []}
    assert from_json(lost) == a_stage(a_point(), "hash", protocol="", status=Status.OOM)
    for damage in ({"status": "oom"}, {"median_ms": None}, {"stage": ""}, {"stage": None}, {"colour": 1}):
        with pytest.raises(ValueError):
            from_json({**OLD_STAGE, **damage})
    for name in ("point", "stage", "median_ms"):
        with pytest.raises(ValueError):
            from_json({key: value for key, value in OLD_STAGE.items() if key != name})


@pytest.mark.parametrize(
    "changes",
    [
        {"seq_len": 0},
        {"batch": -1},
        {"head_dim": 0},
        {"heads": 0},
        {"kv_heads": 3},
        {"seq_len": 1024.0},
        {"seq_len": True},
        {"seq_len": 2**63},
        {"is_causal": 1},
        {"method": None},
        {"hyper": []},
        {"hyper": {1: 2}},
        {"hyper": {"block_size": "256"}},
        {"hyper": {"block_size": 2.5}},
        {"hyper": {"sampling": 1}},
        {"hyper": {"function": print}},
        {"input_params": {"std": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": 1}}}}}}}}}},
    ],
)
def test_a_point_refuses_what_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"[pP]oint"):
        a_point(**changes)


@pytest.mark.parametrize("changes", [{"round": -1}, {"peak_memory_bytes": -1}, {"peak_memory_bytes": 1.5}])
def test_a_timing_refuses_what_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        a_timing(**changes)


def test_unknown_keys_and_kinds_are_named() -> None:
    good = to_json(a_timing())
    with pytest.raises(ValueError, match="unknown record kind 'timeing'; allowed: timing, error"):
        from_json({**good, "kind": "timeing"})
    with pytest.raises(ValueError, match="unknown key 'colour' in a Timing record"):
        from_json({**good, "colour": 1})
    with pytest.raises(ValueError, match="unknown key 'colour' in a Point record"):
        from_json({**good, "point": {**good["point"], "colour": 1}})


@pytest.mark.parametrize("record", [a_timing(), ErrorRow(a_point(), 0, "m", 1.0), a_stage(a_point(), "hash", 1.0)])
def test_a_missing_key_is_refused_or_has_its_default(record: Record) -> None:
    good = to_json(record)
    given = dataclasses.MISSING
    defaults = {f.name for f in dataclasses.fields(record) if f.default is not given or f.default_factory is not given}
    for name in good:
        rest = {key: value for key, value in good.items() if key != name}
        if name in defaults and not (name == "samples_ms" and isinstance(record, Timing)):
            from_json(rest)
        else:
            with pytest.raises(ValueError):
                from_json(rest)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_record_is_refused_or_is_good_for_the_tables(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from([to_json(a_timing()), to_json(ErrorRow(a_point(), 0, "m", 1.0))]))
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(good)))
        damaged = {**good, name: data.draw(JUNK)}
    else:
        name = data.draw(st.sampled_from(sorted(good["point"])))
        damaged = {**good, "point": {**good["point"], name: data.draw(JUNK)}}
    text = json.dumps(damaged).encode()
    try:
        record = from_json(damaged)
    except ValueError as error:
        with pytest.raises(ValueError, match=f"^{re.escape(str(error))}$"):
            from_json(parsed(text))
        return
    assert repr(from_json(parsed(text))) == repr(record)
    made = tables.build([record], "run")
    assert sum(len(frame) for frame in made.values()) == 1


@given(JUNK)
def test_what_is_no_record_at_all_is_refused(junk: Any) -> None:
    with pytest.raises(ValueError):
        from_json(junk)


@given(points(), st.sampled_from(Pass), st.integers(0, 3))
def test_the_key_of_a_timing_is_point_pass_stage_and_round(point: Point, pass_: Pass, round_: int) -> None:
    one = a_timing(point, pass_=pass_, round=round_)
    other = dataclasses.replace(one, status=Status.OOM, samples_ms=(), stop_reason=None, message="no memory")
    assert one.key == other.key
    assert one.key != dataclasses.replace(one, round=round_ + 1).key
    assert one.key != dataclasses.replace(one, stage=str(pass_)).key
    assert isinstance(one, Timing)


@pytest.mark.parametrize("ends", [(0.4, None), (None, 0.6), (0.6, 0.7), (0.1, 0.4), (math.nan, 0.6)])
def test_an_interval_of_an_error_is_around_its_value(ends: tuple[float | None, float | None]) -> None:
    for low, high in ((0.4, 0.6), (0.5, math.inf), (None, None)):
        assert ErrorRow(a_point(), 0, "out_rel_fro", 0.5, low=low, high=high).value == 0.5
    with pytest.raises(ValueError, match=r"of an error row must be around value=0\.5"):
        ErrorRow(a_point(), 0, "out_rel_fro", 0.5, low=ends[0], high=ends[1])
