"""Methods that pass the check and go wrong while a stopwatch runs: the turn is looked at when it is over."""

from __future__ import annotations

import pytest
from torch import Tensor

from hyperbench.measure.methods import method
from hyperbench.measure.worker.timing import other_layers
from tests.helpers import odd_methods
from tests.helpers.fake_clock import FakeClock
from tests.helpers.measured_group import PASSES, Measured, all_of, item, odd
from tests.helpers.quoted import Quote

#: After the check of a forward pass, before its first sample.
DURING_WARM_UP = 10


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("later_in_place", Quote("the method changed v in place; it must leave its inputs as they are")),
        (
            "later_drifts",
            Quote(
                "while it was timed, its output became another than before, on the same inputs (relative difference "
                "0.001)"
            ),
        ),
        ("later_nan", Quote("while it was timed, the output has non-finite values")),
        ("later_nothing", Quote("while it was timed, the output is None")),
    ],
)
def test_what_goes_wrong_while_it_is_timed_has_no_time(
    name: str, words: Quote, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = item(f"tests.helpers.faulty_methods.{name}", hyper={"after": DURING_WARM_UP})
    monkeypatch.setattr(method.find(one.point.target).function, "calls", 0)
    found = Measured(odd("exact", exact=True), one, odd("takes_anything"), passes=("forward",))
    row = found.timings(name)["forward"]
    assert str(row.status) == "incorrect"
    assert words.stands_in(row.message), row.message
    # It took its turns between two others, which were on the inputs that they were promised.
    assert found.statuses("exact") == found.statuses("takes_anything") == {"forward": "ok"}


def test_one_that_goes_wrong_takes_no_later_pass_of_another_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    one = item("tests.helpers.faulty_methods.later_in_place", hyper={"after": DURING_WARM_UP + 2})
    monkeypatch.setattr(method.find(one.point.target).function, "calls", 0)
    found = Measured(odd("exact", exact=True), one)
    assert found.statuses("later_in_place")["forward"] == "incorrect"
    assert found.statuses("exact") == all_of("ok")
    assert set(found.keys) == found.expected


def test_a_graph_that_is_used_up_is_not_timed_as_if_it_were_new() -> None:
    found = Measured(item("tests.helpers.faulty_methods.spends_its_graph"))
    statuses = {"forward": "ok", "backward": "incorrect", "forward_backward": "ok"}
    assert found.statuses("spends_its_graph") == statuses
    assert Quote(
        "a second backward pass on one graph, under another grad_output, gives another gradient of q than a new graph"
    ).stands_in(found.timings("spends_its_graph")["backward"].message)


class Machine:
    """A machine whose caches hold what was used last: a call right after one of its own takes a fifth of the time."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.holds: object = None

    def use(self, who: object) -> None:
        """Take the time of a call."""
        self.now_ms += 1.0 if self.holds is who else 5.0
        self.holds = who


@pytest.mark.parametrize(("as_paper", "sample_ms"), [(False, 5.0), (True, 1.0)])
def test_what_is_quick_right_after_itself_alone_is_not_timed_there(
    as_paper: bool, sample_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    monkeypatch.setattr(other_layers.OtherLayers, "__call__", lambda self: machine.use("the other layers of a model"))

    def method(*inputs: Tensor, is_causal: bool) -> Tensor:
        machine.use(method)
        return odd_methods.exact(*inputs, is_causal=is_causal)

    monkeypatch.setattr(odd_methods, "takes_anything", method)
    clock = FakeClock(reads_s=lambda: machine.now_ms / 1e3)
    protocol = {"as_paper": as_paper, "warmup_max_s": 0.1, "budget_s": dict.fromkeys(PASSES, 0.1)}
    found = Measured(odd("takes_anything"), passes=("forward",), clock=clock, protocol=protocol)
    samples = found.timings("takes_anything")["forward"].samples_ms
    assert samples == pytest.approx([sample_ms] * len(samples))


def test_each_pass_is_timed_directly_and_none_is_a_sum() -> None:
    # What both take together is not the sum.
    times_ms = {"forward": 1.0, "backward": 2.0, "forward_backward": 7.0}
    clock = FakeClock(
        lambda number: times_ms[next(m.unit.pass_ for m in reversed(clock.heard) if m.unit and m.unit.pass_)]
    )
    found = Measured(odd("exact"), clock=clock)
    samples = {name: set(timing.samples_ms) for name, timing in found.timings("exact").items()}
    assert samples == {name: {times_ms[name]} for name in PASSES}
