"""One group in this process: every record it owes, whatever the methods do, and no timing behind a wrong answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hyperbench.flops import exact_flops
from hyperbench.measure.messages import Event
from hyperbench.measure.methods import method
from hyperbench.measure.worker import group as module
from hyperbench.measure.worker import report
from hyperbench.measure.worker.conditions.gpu_sensors import GpuReading
from hyperbench.measure.worker.conditions.machine import Machine
from hyperbench.store.schema import Pass, Status, Timing
from tests.helpers.fake_clock import FakeClock
from tests.helpers.measured_group import HYPER, PASSES, Measured, all_of, item, odd


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("passes", [PASSES, ("forward",), ("backward",)])
def test_a_group_reports_each_thing_it_owes_once(passes: tuple[str, ...], is_causal: bool) -> None:
    found = Measured(
        odd("exact", exact=True, is_causal=is_causal),
        item("hyperbench.measure.methods.hyper.hyper", hyper=HYPER, is_causal=is_causal),
        item("hyperbench.measure.methods.exact.cudnn", exact=True, is_causal=is_causal),
        odd("raises", is_causal=is_causal),
        passes=passes,
    )
    assert sorted(map(str, found.keys)) == sorted(map(str, found.expected))
    assert set(found.statuses("hyper").values()) == set(found.statuses("exact").values()) == {"ok"}


def test_a_timing_says_how_it_was_taken() -> None:
    found = Measured(item("hyperbench.measure.methods.hyper.hyper", hyper=HYPER)).timings("hyper")
    for name, timing in found.items():
        assert timing.samples_ms == (1.0, 1.0)
        assert timing.warmup_ms
        assert (timing.peak_memory_bytes, timing.resident_peak_bytes) == (100, 200)
        assert timing.implementation.startswith("hyperattn-core-")
        exact = exact_flops(timing.point, Pass(name))
        assert (timing.exact_equivalent_flops, timing.executed_flops is not None) == (exact, True)
        assert timing.protocol == "quick"


def test_errors_are_measured_for_every_seed_and_exact_is_exact() -> None:
    found = Measured(odd("exact", exact=True), item("hyperbench.measure.methods.hyper.hyper", hyper=HYPER))
    one, other = found.errors("hyper", 0), found.errors("hyper", 1)
    assert set(one) == set(other) > set(found.errors("exact"))
    for metric in ("out_rel_fro", "dq_rel_fro", "dk_rel_fro", "dv_rel_fro", "out_rel_op", "lse_mean_abs"):
        first, second = one[metric].value, other[metric].value
        assert first is not None
        assert second is not None
        assert first != second
        assert min(first, second) > 0
    assert one["mean_v_rel_fro"].value == other["mean_v_rel_fro"].value
    assert all(
        (row.value or 0) < 1e-5 for metric, row in found.errors("exact").items() if metric.startswith(("out", "d"))
    )


def test_the_seed_of_an_error_row_is_the_seed_of_its_draw() -> None:
    one = Measured(item("hyperbench.measure.methods.hyper.hyper", hyper={**HYPER, "seed": 0}))
    other = Measured(item("hyperbench.measure.methods.hyper.hyper", hyper={**HYPER, "seed": 5}))
    for seed in (0, 1):
        for metric, row in one.errors("hyper", seed).items():
            assert other.errors("hyper", seed)[metric].value == pytest.approx(row.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong_shape", "the output has shape (1, 2, 39, 8), not (1, 2, 40, 8)"),
        ("wrong_dtype", "the output is bfloat16, not float32"),
        ("not_finite", "the output has non-finite values"),
        ("no_tensor", "the output is a tuple, not a tensor"),
    ],
)
def test_nothing_is_timed_behind_a_wrong_output(name: str, words: str) -> None:
    found = Measured(odd(name), odd("exact", exact=True))
    assert found.statuses(name) == all_of("incorrect")
    assert {timing.message for timing in found.timings(name).values()} == {words}
    assert {row.status for row in found.errors(name).values()} == {Status.INCORRECT}
    assert found.statuses("exact") == all_of("ok")
    assert set(found.keys) == found.expected


def test_an_exact_method_that_is_off_is_incorrect_and_an_approximate_one_is_not() -> None:
    found = Measured(odd("a_bit_off", exact=True, hyper={"factor": 1.01}))
    assert found.statuses("a_bit_off") == all_of("incorrect")
    assert "an exact method must agree" in found.timings("a_bit_off")["forward"].message
    free = Measured(odd("a_bit_off", hyper={"factor": 1.01}))
    assert free.statuses("a_bit_off") == all_of("ok")
    assert free.errors("a_bit_off")["out_rel_fro"].value == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "exact", "status", "words"),
    [
        ("no_gradient", False, "incorrect", "the output has no gradient"),
        ("no_gradient_of_q", False, "incorrect", "the gradient of q is None"),
        ("wrong_gradient", True, "incorrect", "an exact method must agree with the reference: dq_rel_fro"),
        ("no_backward", False, "error", "RuntimeError: the backward pass is not written yet"),
    ],
)
def test_a_sound_forward_pass_is_timed_without_a_backward_one(name: str, exact: bool, status: str, words: str) -> None:
    found = Measured(odd(name, exact=exact))
    assert found.statuses(name) == {"forward": "ok", "backward": status, "forward_backward": status}
    assert found.timings(name)["backward"].message.startswith(words)
    errors = found.errors(name)
    assert errors["out_rel_fro"].status is Status.OK
    assert {str(errors[f"d{x}_rel_fro"].status) for x in "qkv"} <= {status, "ok"}
    assert set(found.keys) == found.expected


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("raises", "error", "RuntimeError: no answer in two lines"),
        ("not_written", "unsupported", "head_dim 8 is not supported"),
        ("no_memory", "oom", "RuntimeError: DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_what_a_method_raises_becomes_its_rows(name: str, status: str, words: str) -> None:
    found = Measured(odd(name), odd("exact", exact=True))
    assert found.statuses(name) == all_of(status)
    assert all(timing.message.startswith(words) for timing in found.timings(name).values())
    assert all(row.value is None for row in found.errors(name).values())
    assert found.statuses("exact") == all_of("ok")
    assert not found.measurement.poisoned


@pytest.mark.parametrize("after", range(0, 12, 2))
def test_a_method_that_fails_in_the_middle_owes_nothing(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target = odd("fails_later", hyper={"after": after})
    monkeypatch.setattr(method.find(target.point.target).function, "calls", 0)
    found = Measured(target)
    assert set(found.keys) == found.expected
    assert "error" in found.statuses("fails_later").values()
    timed = [t for t in found.timings("fails_later").values() if t.status is Status.OK]
    assert all(len(t.samples_ms) >= 2 for t in timed)


def test_what_cannot_run_here_says_why() -> None:
    found = Measured(item("hyperbench.measure.methods.exact.cudnn", exact=True))
    assert found.statuses("cudnn") == all_of("unsupported")
    assert "needs a CUDA GPU" in found.timings("cudnn")["forward"].message
    assert {row.status for row in found.errors("cudnn").values()} == {Status.UNSUPPORTED}
    assert all(message.event is Event.RECORD for message in found.messages)


def test_only_what_is_missing_is_measured() -> None:
    whole = Measured(odd("exact", exact=True))
    timed = {key for key in whole.keys if key[1] in ("forward", "backward")}
    errors = {key for key in whole.keys if isinstance(key[1], int)}
    rest = Measured(odd("exact", exact=True), finished=timed | errors)
    assert [key[1] for key in rest.keys] == ["forward_backward"]
    assert not any((message.unit and message.unit.work) == "reference" for message in rest.messages)


def test_a_group_without_a_reference_is_timed_and_says_so() -> None:
    found = Measured(odd("exact", exact=True), no_reference="no reference: it took too long")
    assert found.statuses("exact") == all_of("ok")
    assert {(row.status, row.message) for row in found.errors("exact").values()} == {
        (Status.ERROR, "no reference: it took too long")
    }


def test_a_reference_that_fails_leaves_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **options: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(module, "make_reference", fails)
    found = Measured(odd("exact", exact=True))
    assert found.statuses("exact") == all_of("ok")
    reasons = {row.message for row in found.errors("exact").values()}
    assert reasons == {"no reference: RuntimeError: can't allocate memory"}
    assert set(found.keys) == found.expected


def test_inputs_that_fail_are_the_end_of_the_whole_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(point: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(module, "make_inputs", fails)
    found = Measured(odd("exact", exact=True), odd("raises"))
    assert found.statuses("exact") == found.statuses("raises") == all_of("oom")
    assert set(found.keys) == found.expected


def test_an_unexplained_error_on_cuda_stops_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "poisons_device", lambda status, device: status is Status.ERROR)
    found = Measured(odd("raises"), odd("exact", exact=True))
    assert found.measurement.poisoned
    assert found.statuses("raises") == all_of("error")
    assert found.statuses("exact") == {}


def test_later_rounds_time_and_measure_no_errors() -> None:
    found = Measured(odd("exact", exact=True), round_=1)
    assert [key[-1] for key in found.keys] == [1, 1, 1]
    assert not found.errors("exact")


def test_torchs_default_device_and_dtype_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    items = odd("exact", exact=True), item("hyperbench.measure.methods.hyper.hyper", hyper=HYPER, is_causal=True)
    uniform = item("hyperbench.measure.methods.trivial.uniform", hyper={"sample_size": 4, "seed": 0}, is_causal=True)
    plain = Measured(*items, uniform)
    monkeypatch.setattr("hyperbench.measure.worker.gate.checks._outcomes", {})
    try:
        # As a method's module may leave them.
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float64)
        found = Measured(*items, uniform)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for name in ("exact", "hyper", "uniform"):
        assert found.statuses(name) == all_of("ok"), found.timings(name)
        errors, expected = ({m: row.value for m, row in one.errors(name).items()} for one in (found, plain))
        assert errors == expected


def test_a_later_round_that_wants_no_backward_pass_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gradients", lambda *_: pytest.fail("a backward pass was made"))
    point_id = odd("exact").point.point_id
    done = {(point_id, name, "", 1) for name in ("backward", "forward_backward")}
    assert Measured(odd("exact"), round_=1, finished=done).statuses("exact") == {"forward": "ok"}


def test_lengths_above_their_limits_are_not_compared() -> None:
    found = Measured(odd("exact"), error={"grad_max_seq_len": 39, "operator_norm_max_seq_len": 39})
    assert not {"dq_rel_fro", "out_rel_op"} & set(found.errors("exact"))
    assert set(found.keys) == found.expected


def test_the_reference_is_in_float64_up_to_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: list[torch.dtype] = []
    make = module.make_reference

    def watched(*args: Any, **options: Any) -> Any:
        dtypes.append(options["dtype"])
        return make(*args, **options)

    monkeypatch.setattr(module, "make_reference", watched)
    for limit, dtype in ((40, "float32"), (39, "float32"), (39, "float64")):
        found = Measured(odd("exact", exact=True, dtype=dtype), error={"float64_max_seq_len": limit})
        assert found.statuses("exact") == all_of("ok")
    assert dtypes == [torch.float64, torch.float32, torch.float64]


def test_a_draw_that_fails_takes_no_other_draw_with_it() -> None:
    one = odd("fails_for_seed_1", hyper={"seed": 0})
    done = Measured(one, error={"seeds": (0, 1, 2)})
    assert done.statuses("fails_for_seed_1") == all_of("ok")
    for seed in (0, 2):
        assert done.errors("fails_for_seed_1", seed)["out_rel_fro"].value is not None
    failed = done.errors("fails_for_seed_1", 1)["out_rel_fro"]
    assert failed.status is Status.ERROR
    assert "unlucky" in failed.message
    assert len(done.keys) == len(set(done.keys))
    assert set(done.keys) == done.expected


def test_a_finished_method_is_written_while_a_slower_one_is_still_timed() -> None:
    done = Measured(odd("exact"), odd("fails_for_seed_1", hyper={"seed": 0}), passes=("forward",))
    events = [(m.event, m.unit and m.unit.work) for m in done.messages]
    first_row = next(i for i, m in enumerate(done.messages) if isinstance(m.record, Timing))
    assert ("begin", "time") in events[first_row:]


def test_a_timing_says_what_its_first_call_took_and_what_was_in_memory_before() -> None:
    found = Measured(odd("exact", exact=True), clock=FakeClock(look_s=1.0)).timings("exact")
    assert {name: timing.first_call_ms for name, timing in found.items()} == {
        "forward": 1000.0, "backward": 1000.0, "forward_backward": 2000.0
    }  # fmt: skip
    assert {timing.memory_before_bytes for timing in found.values()} == {1000}


def test_conditions_and_flags_stand_in_the_record_and_throttling_marks_it() -> None:
    class Gpu:
        def read(self) -> GpuReading:
            return GpuReading(1200.0, 700.0, 85.0, ("sw_power_cap",))

    hot = Machine(Gpu(), "NVIDIA H100 80GB HBM3", 2, {"threads": 2})
    for timing in Measured(odd("exact", exact=True), machine=hot).timings("exact").values():
        assert timing.status is Status.THROTTLED
        assert timing.samples_ms
        assert "throttled" in timing.flags
        assert "sw_power_cap" in timing.message
        assert timing.conditions["threads"] == 2
        assert timing.conditions["sm_clock_mhz_min"] == 1200.0
        assert timing.conditions["input_copies"] >= 1
    quiet = Measured(odd("exact", exact=True)).timings("exact")["forward"]
    assert (quiet.status, "throttled" in quiet.flags) == (Status.OK, False)


def test_rows_of_a_part_are_drawn_anew_for_each_seed_and_their_errors_have_intervals() -> None:
    few = {"rows": 8, "operator_norm_max_seq_len": 0}
    hyper = item("hyperbench.measure.methods.hyper.hyper", hyper=HYPER, is_causal=True)
    part, whole = (Measured(hyper, passes=passes, error=few) for passes in (("forward",), PASSES))
    one, other = part.errors("hyper", 0), part.errors("hyper", 1)
    # The mean of the values is the same answer to both: only the rows differ.
    assert one["mean_v_rel_fro"].value != other["mean_v_rel_fro"].value
    for metric, row in one.items():
        estimated = metric not in ("zero_rel_fro", "causal_in_q")
        assert (row.low is not None) == (row.high is not None) == estimated, metric
    assert all((row.low, row.high) == (None, None) for row in whole.errors("hyper", 0).values())
    assert {"dq_rel_fro", "dk_rel_fro", "dv_rel_fro"} <= set(whole.errors("hyper", 0))
