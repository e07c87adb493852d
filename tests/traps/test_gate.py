"""Methods that are honest at short lengths, or going forward alone: looked at on the point itself, and going back."""

from __future__ import annotations

from typing import Any

import pytest

from hyperbench.measure.methods import method
from hyperbench.measure.work_items import Failure
from hyperbench.measure.worker.gate import properties
from hyperbench.measure.worker.memory import CallCost
from hyperbench.store.schema import Status, Timing
from tests.helpers.fake_clock import FakeClock
from tests.helpers.gate_faults import HONEST
from tests.helpers.measured_group import HYPER, Measured, MemoryPeak, all_of, item, odd
from tests.helpers.quoted import Quote

LIBRARY = "hyperbench.measure.methods.hyper"
TRIVIAL = "hyperbench.measure.methods.trivial"
LONG = {"seq_len": 2 * HONEST, "heads": 1}
#: Of HyperAttention at that length: large enough to be quick.
COARSE = {**HYPER, "block_size": 32, "sample_size": 16, "min_seq_len": 64}
ONLY_LONG = "whatever it does at shorter ones"


@pytest.fixture(autouse=True)
def short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examine methods at a shorter length than usual, which costs less."""
    monkeypatch.setattr(properties, "_MIN_PROBE_LEN", HONEST)


def fault(name: str, **options: Any) -> Any:
    """A point of a faulty method."""
    return item(f"tests.helpers.gate_faults.{name}", **options)


@pytest.mark.parametrize(
    ("name", "is_causal", "words"),
    [
        (
            "zeros_when_long",
            False,
            Quote("the output of the last position stays the same when the values of other positions"),
        ),
        (
            "zeros_when_long",
            True,
            Quote("the output of the last position stays the same when the values of other positions"),
        ),
        ("remembers_when_long", False, "a memoised result: after q, k and v were changed in place"),
        ("remembers_when_long", True, "a memoised result: after q, k and v were changed in place"),
        ("leaks_when_long", True, "not causal: outputs up to position 85 change with the keys or the values after it"),
    ],
)
def test_what_goes_wrong_at_long_lengths_alone_is_seen_there(name: str, is_causal: bool, words: str) -> None:
    long = Measured(
        fault(name, is_causal=is_causal, **LONG), odd("exact", exact=True, is_causal=is_causal, **LONG),
        passes=("forward",),
    )  # fmt: skip
    assert long.statuses(name) == {"forward": "incorrect"}
    message = long.timings(name)["forward"].message
    assert Quote(words).stands_in(message)
    assert f"seq_len={2 * HONEST}, {ONLY_LONG}" in message
    # Its neighbour found the inputs as they were.
    assert long.statuses("exact") == {"forward": "ok"}
    short = Measured(fault(name, is_causal=is_causal, **{**LONG, "seq_len": HONEST}), passes=("forward",))
    assert short.statuses(name) == {"forward": "ok"}


@pytest.mark.parametrize(
    ("name", "which", "words"),
    [
        ("keeps_its_gradients", ("backward",), Quote("a second backward pass on one graph, under another grad_output")),
        ("keeps_by_place", ("backward",), Quote("a second backward pass on one graph, under another grad_output")),
        ("keeps_by_content", ("backward",), Quote("a memoised result: a second backward pass on one graph makes")),
        ("zero_gradients", ("backward", "forward_backward"), Quote("the gradient of q is zero everywhere")),
        ("zero_gradient_of_q", ("backward", "forward_backward"), Quote("the gradient of q is zero everywhere")),
        (
            "fixed_gradients",
            ("backward", "forward_backward"),
            Quote("the gradient of q stays the same when grad_output"),
        ),
    ],
)
def test_a_backward_pass_that_is_none_has_no_time(name: str, which: tuple[str, ...], words: str) -> None:
    found = Measured(fault(name), odd("exact", exact=True))
    assert found.statuses(name) == {**all_of("ok"), **dict.fromkeys(which, "incorrect")}
    assert found.timings(name)["backward"].message.startswith(words)
    assert found.statuses("exact") == all_of("ok")
    assert set(found.keys) == found.expected
    errors = found.errors(name)
    assert errors["out_rel_fro"].status is Status.OK
    assert (errors["dq_rel_fro"].status is Status.OK) == ("forward_backward" not in which)


@pytest.mark.parametrize("name", ["keeps_when_long", "zero_gradients_when_long"])
def test_a_backward_pass_is_looked_at_on_the_point_itself(name: str) -> None:
    passes = ("backward",)
    assert Measured(fault(name, **LONG), passes=passes).statuses(name) == {"backward": "incorrect"}
    assert Measured(fault(name, **{**LONG, "seq_len": HONEST}), passes=passes).statuses(name) == {"backward": "ok"}


def test_gradients_that_change_after_some_calls_of_one_graph_are_seen_while_it_is_timed() -> None:
    found = Measured(fault("spends_its_graph_later"))
    assert found.statuses("spends_its_graph_later") == {**all_of("incorrect"), "forward": "ok"}
    for name in ("backward", "forward_backward"):
        message = found.timings("spends_its_graph_later")[name].message
        assert Quote("while it was timed, its gradients became another than before").stands_in(message)


@pytest.mark.slow
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_honest_methods_pass_at_long_lengths(dtype: str, is_causal: bool) -> None:
    options: dict[str, Any] = {"dtype": dtype, "is_causal": is_causal, **LONG}
    found = Measured(
        item(f"{LIBRARY}.hyper", hyper=COARSE, **options),
        item(f"{LIBRARY}.hyper_paper", hyper={**COARSE, "sampling": "iid", "pairing": "rank"}, **options),
        item(f"{TRIVIAL}.uniform", hyper={"sample_size": 8, "seed": 0}, **options),
        item(f"{TRIVIAL}.mean_v", **options),
        item(f"{TRIVIAL}.zero", **options),
        item("hyperbench.measure.methods.exact.flash2", exact=True, **options),
        fault("honest_backward", exact=True, **options),
        fault("needs_no_queries", **options),
    )
    for one in found.task.items:
        name = one.point.method
        if is_causal and name == "needs_no_queries":
            continue
        assert found.statuses(name) == all_of("ok"), (name, found.timings(name))
        assert all("properties_at_point" not in t.conditions for t in found.timings(name).values())


def test_inputs_without_variety_refuse_no_gradient_that_is_zero_in_truth() -> None:
    for input_params in ({"std": 0.0},):
        found = Measured(odd("exact", input="gaussian", input_params=input_params))
        assert found.statuses("exact") == all_of("ok"), found.timings("exact")


class CountingPeak(MemoryPeak):
    """The first call of a pass takes ten times what later ones take."""

    def __init__(self) -> None:
        self.calls = 0

    def cost_of(self, ms: float) -> CallCost:
        """What the next call takes."""
        self.calls += 1
        self.peak_bytes = 1000 if self.calls in (1, 3, 4) else 100
        return super().cost_of(ms)


def measured_with(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> Measured:
    """One method, whose first calls are measured as more than later ones."""
    monkeypatch.setattr("tests.helpers.measured_group.MemoryPeak", CountingPeak)
    return Measured(odd("exact", **LONG), clock=clock)


def test_what_first_calls_allocate_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured_with(monkeypatch, FakeClock()).timings("exact")
    assert {t.peak_memory_bytes for t in found.values()} == {100}


def test_calls_that_are_too_slow_are_made_once_and_the_row_says_what_was_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: dict[str, Timing] = measured_with(monkeypatch, FakeClock(look_s=10.0)).timings("exact")
    assert {str(t.status) for t in found.values()} == {"ok"}
    assert found["forward"].peak_memory_bytes == 1000
    assert {t.conditions["properties_at_point"] for t in found.values()} == {"skipped"}


def test_an_error_of_the_device_in_a_backward_pass_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    found = Measured(odd("no_backward"), odd("exact", exact=True))
    assert found.measurement.poisoned
    # What failed is written at once, so that no further worker meets it; all else is still to be measured.
    assert found.statuses("no_backward") == {"backward": "error", "forward_backward": "error"}
    assert {m: str(r.status) for m, r in found.errors("no_backward").items()} == dict.fromkeys(
        ("dq_rel_fro", "dk_rel_fro", "dv_rel_fro"), "error"
    )
    assert found.statuses("exact") == {}


def test_the_next_worker_takes_the_forward_pass_and_calls_no_backward_one(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    one = odd("no_backward")
    point_id = one.point.point_id
    done = {(point_id, name, "", 0) for name in ("backward", "forward_backward")}
    without = {point_id: Failure(Status.ERROR, "broken")}
    found = Measured(one, odd("exact", exact=True), finished=done, without_backward=without)
    assert not found.measurement.poisoned
    assert found.statuses("no_backward") == {"forward": "ok"}
    assert found.errors("no_backward")["out_rel_fro"].status is Status.OK
    assert found.errors("no_backward")["dq_rel_fro"].message == "broken"
    assert found.statuses("exact") == all_of("ok")


@pytest.mark.parametrize("after", [8, 9, 10, 11, 14])
def test_an_error_of_the_device_while_timing_costs_the_others_nothing(
    after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    # A method that was examined before is called less often before it is timed.
    monkeypatch.setattr("hyperbench.measure.worker.gate.checks._outcomes", {})
    one = odd("fails_later", hyper={"after": after})
    monkeypatch.setattr(method.find(one.point.target).function, "calls", 0)
    found = Measured(odd("exact", exact=True), one, odd("takes_anything"), passes=("forward",))
    assert found.measurement.poisoned
    assert found.statuses("fails_later") == {"forward": "error"}
    for name in ("exact", "takes_anything"):
        assert found.statuses(name) in ({}, {"forward": "ok"})


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error leaves the device unusable, as on CUDA."""
    monkeypatch.setattr(
        "hyperbench.measure.worker.report.poisons_device", lambda status, device: status is Status.ERROR
    )
