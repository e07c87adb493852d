"""What one method does to its worker costs the others nothing, through the parent, and is not paid for twice."""

from __future__ import annotations

from typing import Any

import pytest

from hyperbench.measure.messages import Event, Message, Task, Work
from hyperbench.measure.runner.worker_process import WorkerGone
from hyperbench.measure.worker.group import GroupMeasurement
from hyperbench.store.schema import ErrorRow, Pass, Status, Timing
from tests.helpers.fake_clock import FakeClock
from tests.helpers.fake_worker import FakeWorker, Site, befalls, begins, dies, hangs
from tests.helpers.made_records import a_stage
from tests.helpers.made_runs import tiny
from tests.helpers.measured_group import MemoryPeak

KILL = -9


class InThisProcess(FakeWorker):
    """Measures for real, here; what leaves its device unusable ends it."""

    def _script(self, task: Task) -> Any:
        messages: list[Any] = []
        measurement = GroupMeasurement(task, messages.append, FakeClock(), MemoryPeak())
        measurement.run()
        yield from messages
        if measurement.poisoned:
            yield Message(Event.LEAVE)


def by_method(site: Site) -> dict[str, dict[str, list[str]]]:
    """Method -> pass -> its statuses, round by round."""
    found: dict[str, dict[str, list[str]]] = {}
    for record in site.journal.records:
        if isinstance(record, Timing):
            found.setdefault(record.point.method, {}).setdefault(str(record.pass_), []).append(str(record.status))
    return found


def test_a_backward_pass_that_breaks_the_device_costs_no_other_pass_or_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hyperbench.measure.worker.report.poisons_device", lambda status, device: status is Status.ERROR
    )
    run = tiny(
        "shape.seq_len=64", "method=math", "+method.bad._target_=tests.helpers.odd_methods.no_backward",
        "protocol.rounds=2", "error.seeds=[0]",
    )  # fmt: skip
    site = Site(run, make=InThisProcess, most_workers=8)
    site.run()
    ok, error = ["ok", "ok"], ["error", "error"]
    assert by_method(site) == {
        "math": {"forward": ok, "backward": ok, "forward_backward": ok},
        "bad": {"forward": ok, "backward": error, "forward_backward": error},
    }
    kinds = (Timing, ErrorRow)
    keys = [r.key for r in site.journal.records if isinstance(r, kinds) and getattr(r, "metric", "") != "lse_mean_abs"]
    assert len(keys) == len(set(keys))
    assert set(keys) == site.expected
    errors = {r.metric: r for r in site.journal.records if isinstance(r, ErrorRow) and r.point.method == "bad"}
    assert errors["out_rel_fro"].status is Status.OK
    assert "not written yet" in errors["dq_rel_fro"].message


@pytest.mark.parametrize("ending", ["leave", "done"])
def test_a_worker_that_leaves_without_a_row_costs_the_cell_it_began_alone(ending: str) -> None:
    site = Site(tiny("shape.seq_len=64", "method=[math,hyper]"), befalls(ending, unit="check", method="math"))
    site.run()
    assert site.statuses() == {("math", 64): {"error"}, ("hyper", 64): {"ok"}}


@pytest.mark.parametrize(("fate", "status"), [(hangs, "timeout"), (dies, "error")])
def test_what_hangs_or_crashes_is_paid_for_once(fate: Any, status: str) -> None:
    run = tiny("shape.seq_len=64", "method=[math,hyper]", "passes=[forward]", "protocol.rounds=4")
    bad = fate(unit="time", method="math")
    site = Site(run, bad)
    site.run()
    assert by_method(site) == {"math": {"forward": [status] * 4}, "hyper": {"forward": ["ok"] * 4}}
    # One for each round, and one after the misfortune if there was anything left to do.
    assert len(site.workers) <= 5
    again = Site(run, bad)
    again.journal.records = [r for r in site.journal.records if getattr(r, "round", 0) < 2]
    again.run()
    assert by_method(again)["math"]["forward"] == [status] * 4
    assert len(again.workers) == 2


@pytest.mark.parametrize("part", ["backward", "forward", "stages"])
def test_memory_that_runs_out_in_one_part_skips_that_part_of_longer_points(part: str) -> None:
    run = tiny("shape.seq_len=64,128", "method=[math,hyper]", "stages=true")
    point = next(p for p in run.points if (p.method, p.seq_len) == ("math", 64))
    name = run.config.protocol.name
    row = {
        "stages": a_stage(point, "first", all_stages=("first",), protocol=name, status=Status.OOM, message="no memory"),
        "backward": Timing(point, Pass.BACKWARD, name, 0, Status.OOM, message="no memory"),
        "forward": Timing(point, Pass.FORWARD, name, 0, Status.OOM, message="no memory"),
    }[part]
    site = Site(run)
    site.journal.records = [row]
    site.run()
    long = [r for r in site.journal.records if (r.point.method, r.point.seq_len) == ("math", 128)]
    skipped = {
        "stages" if r.stage else str(r.pass_)
        for r in long if not isinstance(r, ErrorRow) and r.status is Status.SKIPPED_AFTER_OOM
    }  # fmt: skip
    backward = {"backward", "forward_backward"}
    assert skipped == {"stages": {"stages"}, "backward": backward, "forward": {"forward", "stages", *backward}}[part]
    assert set(site.keys) == site.expected
    asked = [t for worker in site.workers for t in worker.tasks if t.items[0].point.seq_len == 128]
    without = {point_id for task in asked for point_id in task.without_backward}
    # Nor is it called for the errors of gradients.
    assert len(without) == (part == "backward")


def test_a_kill_in_the_check_of_a_backward_pass_leaves_the_forward_pass() -> None:
    class Checks(FakeWorker):
        def _script(self, task: Task) -> Any:
            for item in task.items:
                point_id = item.point.point_id
                if set(item.passes) - {Pass.FORWARD}:
                    yield begins(Work.CHECK, point_id, Pass.BACKWARD)
            yield from super()._script(task)

    gone = befalls(WorkerGone(KILL, out_of_memory=True), unit="check", method="math", **{"pass": "backward"})
    site = Site(tiny("shape.seq_len=64,128", "method=[math,hyper]"), make=lambda: Checks(gone))
    site.run()
    found = {
        (r.point.seq_len, str(r.pass_)): str(r.status)
        for r in site.journal.records if isinstance(r, Timing) and r.point.method == "math"
    }  # fmt: skip
    skipped = "skipped_after_oom"
    assert found == {
        (64, "forward"): "ok", (64, "backward"): "oom", (64, "forward_backward"): "oom",
        (128, "forward"): "ok", (128, "backward"): skipped, (128, "forward_backward"): skipped,
    }  # fmt: skip
    assert set(site.keys) == site.expected
