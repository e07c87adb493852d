"""Stages: each is timed once and by itself, behind the output of the method, and whatever happens becomes rows."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.config.types import ErrorConfig
from hyperbench.measure import work_items
from hyperbench.measure.messages import Message, Task, Work
from hyperbench.measure.methods import method as registry
from hyperbench.measure.runner.estimate import estimate_s
from hyperbench.measure.worker import report as report_module
from hyperbench.measure.worker.calls import rotated
from hyperbench.measure.worker.conditions.gpu_sensors import GpuReading
from hyperbench.measure.worker.conditions.machine import Machine
from hyperbench.measure.worker.group import GroupMeasurement
from hyperbench.store.schema import ALL_STAGES, Flag, Pass, Record, Status, StopReason, Timing
from tests.helpers.fake_clock import FakeClock
from tests.helpers.fake_worker import STAGES, FakeWorker, Site, dies, hangs
from tests.helpers.made_records import a_point, a_stage
from tests.helpers.made_runs import HYPER_DEFAULTS, prepared, tiny
from tests.helpers.measured_group import MemoryPeak

HYPER = "hyperbench.measure.methods.hyper.hyper"
SMALL = {**HYPER_DEFAULTS, "block_size": 8, "sample_size": 8, "num_projections": 3, "min_seq_len": 16}
NAMES = ("scores", "weights", "out")
ERROR = ErrorConfig(seeds=(0,), rows=8, grad_max_seq_len=None, operator_norm_max_seq_len=64, float64_max_seq_len=64)
POINT = a_point(hyper={"seed": 0}, seq_len=64)


def remaining(round_: int = 0, done: Iterable[Record] = (), stages: bool = True) -> work_items.WorkItem:
    """What is left of the point when some records are there."""
    config = dataclasses.replace(tiny().config, passes=("forward",), error=ERROR, stages=stages)
    return work_items.remaining(POINT, config, round_, work_items.Progress(config.protocol, done))


class UnknownPeak(MemoryPeak):
    """Tells no memory."""

    peak_bytes = None
    resident_peak_bytes = None


class Measured:
    """What a group with one point reports of its stages, and of all else."""

    def __init__(self, target: str, *, is_causal: bool = False, timed: tuple[str, ...] = (), **options: Any) -> None:
        shape = {"heads": 2, "kv_heads": 2, "seq_len": 40, "head_dim": 8, "input_params": {}}
        self.hyper = SMALL if target == HYPER else {}
        method = target if "." in target else f"tests.helpers.odd_methods.{target}"
        point = a_point(method="it", target=method, is_causal=is_causal, hyper=self.hyper, **shape)
        config = tiny().config
        item = work_items.WorkItem(point, False, options.get("passes", (Pass.FORWARD,)), (), True, timed)
        self.messages: list[Message] = []
        protocol = dataclasses.replace(config.protocol, **options.get("protocol", {}))
        task = Task((item,), ("forward",), protocol, config.error, options.get("round_", 0), None)
        clock, machine = options.get("clock") or FakeClock(float), options.get("machine")
        self.measurement = GroupMeasurement(task, self.messages.append, clock, UnknownPeak(), machine)
        gc.freeze()
        self.measurement.run()
        self.records = [m.record for m in self.messages if m.record is not None]
        self.rows = [r for r in self.records if isinstance(r, Timing) and r.stage]
        self.by_name = {r.stage: r for r in self.rows}


@pytest.mark.parametrize(
    ("target", "is_causal", "names"),
    [
        (HYPER, False, ("hash", "sort", "sample", "attend")),
        (HYPER, True, ("hash", "sort", "sample", "attend", "leaves", "merge")),
        ("staged", True, NAMES),
    ],
)
def test_every_stage_is_timed_once_and_knows_its_place(target: str, is_causal: bool, names: tuple[str, ...]) -> None:
    found = Measured(target, is_causal=is_causal)
    assert sorted(row.stage for row in found.rows) == sorted(names)
    protocol = tiny().config.protocol
    for row in found.rows:
        assert (row.status, row.all_stages, row.protocol, row.round) == (Status.OK, names, "quick", 0)
        assert protocol.slow_min_samples <= len(row.samples_ms) <= protocol.max_samples
        assert row.stop_reason in StopReason
    assert any(isinstance(r, Timing) and not r.stage and r.status is Status.OK for r in found.records)


def test_stages_come_after_the_passes_so_that_none_is_lost_to_them() -> None:
    stages = [bool(record.stage) for record in Measured("staged").records if isinstance(record, Timing)]
    assert {*stages} == {False, True}
    assert stages == sorted(stages)


def test_progress_names_the_stage() -> None:
    begun = [m.unit for m in Measured("staged").messages if m.unit is not None and m.unit.work is Work.STAGES]
    assert [unit.stage for unit in begun][:4] == ["", *NAMES]


def test_all_stages_run_in_order_before_any_is_timed() -> None:
    Measured("staged")
    method: Any = registry.find("tests.helpers.odd_methods.staged").function
    assert method.calls[:3] == list(NAMES)


@pytest.mark.parametrize("timed", [(), ("scores",), ("out", "scores"), NAMES[1:]])
def test_only_missing_stages_are_timed_though_all_are_run(timed: tuple[str, ...]) -> None:
    found = Measured("staged", timed=timed, passes=())
    assert sorted(found.by_name) == sorted(set(NAMES) - set(timed))
    assert found.records == found.rows
    method: Any = registry.find("tests.helpers.odd_methods.staged").function
    assert {name: method.calls.count(name) for name in timed} == dict.fromkeys(timed, 1)


@pytest.mark.parametrize(("look_s", "copies"), [(0.0, tiny().config.protocol.input_copies), (1e6, 1)])
def test_stages_work_on_several_inputs_in_turn_unless_making_them_takes_long(look_s: float, copies: int) -> None:
    method: Any = registry.find("tests.helpers.odd_methods.staged").function
    method.seen.clear()
    rows = Measured("staged", clock=FakeClock(look_s=look_s)).rows
    assert {row.conditions["input_copies"] for row in rows} == {copies}
    same = [torch.equal(a, b) for a, b in zip(method.seen, method.seen[1:], strict=False)]
    assert len(same) > len(NAMES)
    assert all(same) if copies == 1 else not any(same)


def test_what_the_rotated_stages_of_hyper_give_is_the_output_on_their_own_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 8, generator=generator) for _ in range(3))
    method = registry.find(HYPER)
    sets = [(one, method.stages(*one, is_causal=True, **SMALL)) for one in rotated((q, k, v), 3)]
    for _, stages in sets:
        for call in stages.values():
            call()
    # Each stage once more, the sets in turn: none meets what another set left.
    outs: list[object] = []
    for name in sets[0][1]:
        outs = [stages[name]() for _, stages in sets]
    for (one, _), out in zip(sets, outs, strict=True):
        assert isinstance(out, torch.Tensor)
        assert torch.equal(out, method.function(*one, is_causal=True, **SMALL))


def test_a_steady_stage_has_no_flag_of_its_samples_and_a_growing_one_drifts() -> None:
    many = {"min_samples": 20, "max_samples": 20, "budget_s": {"forward": 1e3}}

    def of_samples(clock: FakeClock) -> list[set[str]]:
        return [set(row.flags) - {Flag.BUSY_MACHINE} for row in Measured("staged", clock=clock, protocol=many).rows]

    assert of_samples(FakeClock()) == [set()] * 3
    assert of_samples(FakeClock(float)) == [{Flag.DRIFT}] * 3


def test_a_stage_whose_launch_takes_longer_than_its_work_is_flagged() -> None:
    for row in Measured("staged", clock=FakeClock(host_ms=2.0)).rows:
        assert Flag.HOST_BOUND in row.flags
        assert row.host_ms == 2.0
        assert row.status is Status.OK


def test_held_down_clocks_mark_a_stage_and_its_conditions_are_kept() -> None:
    class Gpu:
        def read(self) -> GpuReading:
            return GpuReading(1200.0, 700.0, 85.0, ("sw_power_cap",))

    rows = Measured("staged", machine=Machine(Gpu(), None, 2, {"threads": 2})).rows
    assert len(rows) == len(NAMES)
    for row in rows:
        assert row.status is Status.THROTTLED
        assert row.samples_ms
        assert "throttled" in row.flags
        assert "throttled: sw_power_cap" in row.message
        assert (row.conditions["threads"], row.conditions["sm_clock_mhz_min"]) == (2, 1200.0)


def test_a_round_is_that_of_its_task() -> None:
    assert {row.round for row in Measured("staged", round_=2).rows} == {2}


@pytest.mark.parametrize(
    ("target", "names", "status", "words"),
    [
        (
            "exact",
            (ALL_STAGES,),
            "unsupported",
            "tests.helpers.odd_methods.exact does not tell the stages of its forward pass",
        ),
        ("staged_cannot_begin", (ALL_STAGES,), "error", "RuntimeError: no stages today"),
        ("staged_a_list", (ALL_STAGES,), "error", "must return a dict of calls by name, not list"),
        ("staged_a_bad_name", (ALL_STAGES,), "error", "by other names than 'all': 'all'"),
        ("staged_changes", NAMES, "error", "stages must be the same on all inputs of a shape: ['scores', 'weights', "),
        ("staged_fails", NAMES, "error", "RuntimeError: no weights"),
        ("staged_another_output", NAMES, "incorrect", "the last stage must give the output of the method"),
        ("staged_no_output", NAMES, "incorrect", "the output is None, not a tensor"),
    ],
)
def test_what_goes_wrong_before_the_timing_is_a_row_for_each_and_leaves_the_pass(
    target: str, names: tuple[str, ...], status: str, words: str
) -> None:
    found = Measured(target)
    assert tuple(row.stage for row in found.rows) == names
    for row in found.rows:
        assert (str(row.status), row.samples_ms) == (status, ())
        assert words in row.message
        assert "\n" not in row.message
    assert [r.status for r in found.records if isinstance(r, Timing) and not r.stage] == [Status.OK]
    assert not found.measurement.poisoned


def test_a_stage_that_fails_later_takes_no_other_stage_with_it() -> None:
    found = Measured("staged_fails_later").by_name
    assert {name: str(row.status) for name, row in found.items()} == {"scores": "ok", "weights": "error", "out": "ok"}
    assert found["weights"].message == "RuntimeError: no weights"


def test_a_method_that_fails_its_check_has_a_row_that_says_so() -> None:
    (row,) = Measured("raises").rows
    assert (row.stage, row.status) == (ALL_STAGES, Status.ERROR)
    assert "no answer" in row.message


def test_an_unexplained_error_on_cuda_ends_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "poisons_device", lambda status, device: status is Status.ERROR)
    assert Measured("staged_fails").measurement.poisoned


def test_the_stages_of_hyper_take_its_parameters_and_its_draw() -> None:
    point = a_point(heads=2, kv_heads=1, seq_len=64, head_dim=8)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, point.seq_len, 8, generator=generator) for h in (2, 1, 1))
    method = registry.find(HYPER)
    for changes in ({}, {"seed": 5}, {"block_size": 16, "pairing": "rank"}):
        hyper: dict[str, Any] = {**SMALL, **changes}
        out: object = None
        for stage in method.stages(q, k, v, is_causal=True, **hyper).values():
            out = stage()
        assert isinstance(out, torch.Tensor)
        assert torch.equal(out, method.function(q, k, v, is_causal=True, **hyper))


@given(st.lists(st.sampled_from(STAGES)), st.booleans())
def test_stages_are_finished_when_each_has_a_record(names: list[str], failed: bool) -> None:
    done = [
        a_stage(POINT, name, all_stages=STAGES, status=Status.OOM, message="no memory")
        if failed
        else a_stage(POINT, name, 1.0, all_stages=STAGES)
        for name in names
    ]
    item = remaining(0, done)
    assert item.stages == (set(names) < set(STAGES))
    if item.stages:
        assert set(item.timed_stages) == set(names)
    # Another round and another point have theirs to come, and without being asked for there are none.
    assert remaining(1, done).stages
    assert remaining(0, [dataclasses.replace(record, point=a_point()) for record in done]).timed_stages == ()
    assert not remaining(0, done, stages=False).stages


def test_giving_up_leaves_no_stage_to_do() -> None:
    rows = list(
        work_items.failed_records(
            remaining(), ("forward",), ERROR, "strict", 0, work_items.Failure(Status.TIMEOUT, "slow")
        )
    )
    (row,) = [r for r in rows if isinstance(r, Timing) and r.stage]
    assert (row.stage, row.status, row.message, row.protocol) == (ALL_STAGES, Status.TIMEOUT, "slow", "strict")
    assert remaining(1, [row]).stages
    assert not remaining(0, [row]).stages


def test_stages_have_their_part_in_the_estimate() -> None:
    run = prepared("stages=true", "method=hyper")
    alone = estimate_s(work_items.WorkItem(run.points[0], False, stages=True), run.config, 1e11)
    assert set(alone) == {"check", "stages"}
    assert alone["stages"] > 0
    assert run.estimates_s()[0] > prepared("method=hyper").estimates_s()[0]


def staged_run(*words: str) -> Site:
    """Two methods at one length, one pass, with stages."""
    return Site(tiny("shape.seq_len=64", "method=[math,hyper]", "passes=[forward]", "stages=true", *words))


def all_stages(*methods: str, rounds: int = 1) -> set[tuple[str, str, int]]:
    """Every stage of these methods in every round."""
    return {(m, name, r) for m in methods for name in STAGES for r in range(rounds)}


def test_a_run_measures_every_stage_in_every_round_and_the_bar_ends_at_its_end() -> None:
    site = staged_run("protocol.rounds=2")
    expected_s = site.runner().remaining_s()
    outcome = site.run()
    assert len(site.stages) == len(set(site.stages))
    assert set(site.stages) == all_stages("math", "hyper", rounds=2)
    assert outcome.stage_statuses == {Status.OK: 12}
    assert set(site.keys) == site.expected
    assert site.listener.cost_s == pytest.approx(expected_s)
    assert site.runner().remaining_s() == 0
    assert "hyper second gaussian n=64 heads=1 non-causal float32" in site.listener.labels


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_resuming_times_the_missing_stages_and_no_other(data: st.DataObject) -> None:
    whole = staged_run()
    whole.run()
    kept = data.draw(st.lists(st.sampled_from(whole.journal.records), unique_by=lambda record: repr(record.key)))
    site = staged_run()
    site.journal.records = list(kept)
    had = site.stages
    site.run()
    assert sorted(site.stages) == sorted(whole.stages)
    assert site.stages[: len(had)] == had
    assert set(site.keys) == site.expected


@settings(max_examples=30, deadline=None)
@given(stop=st.integers(0, 40))
def test_ctrl_c_in_the_middle_of_stages_loses_none(stop: int) -> None:
    left = stop

    class Interrupted(FakeWorker):
        def receive(self, timeout_s: float) -> Message:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return super().receive(timeout_s)

    run = tiny("shape.seq_len=64", "method=[math,hyper]", "passes=[forward]", "stages=true")
    site = Site(run, make=Interrupted)
    site.run()
    again = staged_run()
    again.journal.records = list(site.journal.records)
    again.run()
    assert again.stages[: len(site.stages)] == site.stages
    assert len(again.stages) == len(set(again.stages))
    assert set(again.stages) == all_stages("math", "hyper")


@pytest.mark.parametrize(("fate", "status"), [(dies, "oom"), (hangs, "timeout")])
def test_a_worker_lost_in_a_stage_leaves_what_was_timed_and_a_row_for_the_rest(fate: Any, status: str) -> None:
    when = {"unit": "stages", "stage": "second", "method": "math"}
    run = tiny("shape.seq_len=64", "method=[math,hyper]", "passes=[forward]", "stages=true")
    site = Site(run, dies(-9, **when) if fate is dies else hangs(**when))
    outcome = site.run()
    assert set(site.stages) == {("math", "first", 0), ("math", ALL_STAGES, 0), *all_stages("hyper")}
    assert outcome.stage_statuses == {Status.OK: 4, status: 1}
    assert site.statuses() == {("math", 64): {"ok"}, ("hyper", 64): {"ok"}}
    # On demand the rest is timed.
    again = staged_run()
    again.journal.records = list(site.journal.records)
    again.run()
    assert again.stages == site.stages
    again.run(retry_failed=True)
    assert set(again.stages) >= all_stages("math", "hyper")
    assert again.stages.count(("math", "first", 0)) == 1


def test_a_run_without_stages_asks_for_none() -> None:
    site = Site(tiny("shape.seq_len=64", "method=[math,hyper]", "passes=[forward]"))
    site.run()
    assert site.stages == []
