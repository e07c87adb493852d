"""What goes wrong between a clock and a device that works beside it, on a GPU that is only pretended."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from hyperbench.analyze.show import show_run
from hyperbench.commands import doctor
from hyperbench.measure.probe.diagnose import flush_ratio, flush_times
from hyperbench.measure.worker.clock import CudaClock
from hyperbench.measure.worker.timing import passes
from hyperbench.measure.worker.timing.cuda_graphs import GraphedCall
from hyperbench.store.schema import Timing
from tests.helpers import pretended_gpu
from tests.helpers.made_rounds import write_run
from tests.helpers.measured_group import Measured, item, odd
from tests.helpers.odd_methods import exact
from tests.helpers.pretended_gpu import SIDE, PretendedGpu
from tests.helpers.quoted import Quote

FORWARD = ("forward",)


class OnGpu:
    """Attention on a pretended GPU: how its work is launched is chosen by a test, and changed while it runs."""

    gpu: PretendedGpu
    launch: Callable[[PretendedGpu], object]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        OnGpu.launch(OnGpu.gpu)
        return exact(q, k, v, is_causal=is_causal)


on_gpu = OnGpu()


class Graphed:
    """Attention whose output a graph fills again, as long as it is told to launch its work."""

    gpu: PretendedGpu
    factor = 1.0
    launches = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        out = torch.empty_like(q)

        def work() -> None:
            out.copy_(Graphed.factor * exact(q, k, v, is_causal=is_causal))

        if Graphed.launches:
            Graphed.gpu.launch(1.0, work)
        else:
            work()
        return out


graphed = Graphed()


def timed_on(launch: Callable[[PretendedGpu], object], **options: Any) -> Timing:
    """The timing of a method that launches its work like this."""
    OnGpu.gpu, OnGpu.launch = PretendedGpu(), staticmethod(launch)  # type: ignore[assignment]
    clock: Any = CudaClock(OnGpu.gpu, OnGpu.gpu.allocate, OnGpu.gpu.now_s)
    found = Measured(item("tests.traps.test_device.on_gpu"), passes=FORWARD, clock=clock, **options)
    return found.timings("on_gpu")["forward"]


def test_work_that_goes_on_after_the_clock_has_stopped_has_no_time() -> None:
    row = timed_on(lambda gpu: gpu.launch(5.0, stream=SIDE))
    assert (row.status, row.samples_ms) == ("incorrect", ())
    assert Quote(
        "work left unsynchronised: the device was at work for another 5 ms after each call had ended; "
        "the current stream must wait for others that a method uses"
    ).stands_in(row.message)


def test_work_on_another_stream_that_is_waited_for_is_timed_with_the_rest() -> None:
    def launch(gpu: PretendedGpu) -> None:
        side, current = gpu.Stream(), gpu.current_stream()
        side.wait_stream(current)
        gpu.launch(5.0, stream=SIDE)
        current.wait_stream(side)

    row = timed_on(launch)
    assert row.status == "ok"
    assert all(sample == pytest.approx(5.0) for sample in row.samples_ms)


@pytest.mark.parametrize(("device_ms", "host_ms", "is_flagged"), [(0.01, 0.2, True), (5.0, 0.2, False)])
def test_a_launch_that_takes_longer_than_the_work_is_told(
    device_ms: float, host_ms: float, is_flagged: bool, tmp_path: Any
) -> None:
    row = timed_on(lambda gpu: [gpu.launch(device_ms / 10, host_ms=host_ms / 10) for _ in range(10)])
    assert row.host_ms == pytest.approx(host_ms)
    # The work queues behind a sleep of the device: its launch is no part of the time.
    assert row.samples_ms == pytest.approx([device_ms] * len(row.samples_ms))
    assert (row.flags == ("host_bound",)) == is_flagged
    quote = Quote("host_bound: on_gpu (1 row): the host takes longer to launch the call than the device to do it: "
                  "by itself it takes as long as its launch")  # fmt: skip
    assert quote.stands_in(shown(row, tmp_path)) == is_flagged


def shown(row: Timing, folder: Any) -> str:
    """What `hyperbench show` prints of a run of this timing."""
    console = Console(file=io.StringIO(), width=200)
    show_run(write_run(folder / "run", [row]), console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_flush_is_no_part_of_a_time() -> None:
    row = timed_on(lambda gpu: gpu.launch(2.0))
    assert all(sample == pytest.approx(2.0) for sample in row.samples_ms)


class TimesTheFlush(CudaClock):
    """The mistake: the flush stands between the events."""

    def time_ms(self, call: Callable[[], object], *, is_load: bool = False) -> float:
        def both() -> None:
            self.flush()
            call()

        return super().time_ms(both, is_load=is_load)


def doctor_says(clock: CudaClock, gpu: PretendedGpu) -> str:
    """What `hyperbench doctor` says of a clock's flush."""
    warm = CudaClock(gpu, lambda size: SimpleNamespace(zero_=gpu.read), gpu.now_s)
    report = {"flush_ratio": flush_ratio(clock, warm, gpu.read), **flush_times(clock)}
    return "\n".join(doctor.flush_lines(report))


def clock_on(gpu: PretendedGpu, kind: type[CudaClock] = CudaClock) -> CudaClock:
    """A clock of a pretended GPU."""
    return kind(gpu, gpu.allocate, gpu.now_s)


NO_EFFECT = Quote("the L2 flush has no effect here: times are those of inputs that lie in the cache already")
IS_TIMED = Quote(
    "a call that does nothing takes 0.43 ms and the L2 flush 0.86 ms: the flush is timed with the call, and every time "
    "is too long by it"
)


def test_the_doctor_shows_that_the_flush_has_an_effect() -> None:
    gpu = PretendedGpu()
    said = doctor_says(clock_on(gpu), gpu)
    ratio = pretended_gpu.COLD_MS / pretended_gpu.WARM_MS
    assert said == Quote(f"a read after the L2 flush takes {ratio:.2f} times that of a warm one")
    assert Quote("a read after the L2 flush takes 1.64 times that of a warm one").stands_in(said)


def test_a_flush_too_small_for_the_cache_has_no_effect_and_the_doctor_says_so() -> None:
    gpu = PretendedGpu(l2_bytes=pretended_gpu.L2_BYTES // 100)
    said = doctor_says(clock_on(gpu), gpu)
    assert "takes 1.00 times" in said
    assert NO_EFFECT.stands_in(said)
    assert not IS_TIMED.stands_in(said)


def test_a_flush_inside_the_events_is_seen_by_the_doctor() -> None:
    gpu = PretendedGpu()
    said = doctor_says(clock_on(gpu, TimesTheFlush), gpu)
    assert IS_TIMED.stands_in(said)
    assert not NO_EFFECT.stands_in(said)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> PretendedGpu:
    """Graph mode on a pretended GPU."""
    gpu = Graphed.gpu = PretendedGpu()
    monkeypatch.setattr(passes, "GraphedCall", partial(GraphedCall, cuda=gpu))
    monkeypatch.setattr(Graphed, "factor", 1.0)
    return gpu


class ChangesTheGraph(CudaClock):
    """After some samples the replay gives another output than the call itself did."""

    after = 4

    def time_ms(self, call: Callable[[], object], *, is_load: bool = False) -> float:
        self.after -= 1
        if self.after < 0:
            Graphed.factor = 3.0
        return super().time_ms(call, is_load=is_load)


def replayed(clock: Any) -> Timing:
    """The timing of the forward pass of `graphed` in graph mode."""
    found = Measured(
        item("tests.traps.test_device.graphed"),
        passes=FORWARD,
        clock=clock,
        protocol={"cuda_graph": True, "input_copies": 1},
    )
    return found.timings("graphed")["forward"]


@pytest.mark.parametrize("launches", [True, False])
def test_work_that_no_graph_has_captured_has_no_time(
    graphs: PretendedGpu, monkeypatch: pytest.MonkeyPatch, launches: bool
) -> None:
    monkeypatch.setattr(Graphed, "launches", launches)
    row = replayed(clock_on(graphs))
    assert row.status == ("ok" if launches else "incorrect")
    assert bool(row.samples_ms) == launches
    quote = Quote("the replay of the CUDA graph must give the output of the call: they differ by ..., above 0.0001; "
                  "the graph did not capture all of the work")  # fmt: skip
    assert quote.stands_in(row.message) == (not launches)


def test_a_replay_that_gives_another_output_later_has_no_time(graphs: PretendedGpu) -> None:
    row = replayed(clock_on(graphs, ChangesTheGraph))
    assert (row.status, row.samples_ms) == ("incorrect", ())
    assert Quote("while it was timed, its output became another than before, on the same inputs (relative difference "
                 "0.001)").stands_in(row.message)  # fmt: skip


def test_an_answer_that_comes_one_call_late_is_none() -> None:
    # What a method returns before its work is done is read as it is: nobody waits for it.
    row = Measured(item("tests.helpers.faulty_methods.answers_late"), odd("exact"), passes=FORWARD).timings(
        "answers_late"
    )["forward"]
    assert (row.status, row.samples_ms) == ("incorrect", ())
    assert Quote("the output stays the same when v changes; a method that ignores it says so: ignores = ('v',)"
                 ).stands_in(row.message)  # fmt: skip
