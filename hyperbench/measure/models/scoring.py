"""One task of a language model in this process: each example by exact attention, then by each method and its layers."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from hyperbench.config.tasks import ATTENTION_MS, LAYERS, layer_metric, metrics_of, numbered, own_parameters
from hyperbench.measure.messages import Task, Work
from hyperbench.measure.methods import method as registry
from hyperbench.measure.methods.exact import flash2
from hyperbench.measure.models.language_model import Attend, LanguageModel, Reading, loaded_model
from hyperbench.measure.models.tasks import example
from hyperbench.measure.models.tasks.example import Example
from hyperbench.measure.work_items import WorkItem
from hyperbench.measure.worker.clock import Clock
from hyperbench.measure.worker.conditions.machine import Machine
from hyperbench.measure.worker.failures import classify, poisons_device
from hyperbench.measure.worker.memory import CallCost, memory_peak_for
from hyperbench.measure.worker.report import Emit, Report
from hyperbench.measure.worker.settings import Settings
from hyperbench.store.schema import ErrorRow, Point, Status

#: The metrics of a pass over the whole model, where it was timed as a whole; the memory of one example tells it.
_WHOLE, _PEAK = "forward_ms", "peak_memory_bytes"


class Scoring:
    """One task: all points of a group, whose examples are the same; `run` writes its scores as they are finished."""

    def __init__(self, task: Task, emit: Emit, clock: Clock, settings: Settings) -> None:
        self._task = task
        self._settings = settings
        self._settings.isolated = task.isolated
        self._report = Report(task, emit, Machine(), settings)
        # A clock is asked between passes whether the run is to end; attention is timed inside of them.
        self._clock = clock

    @property
    def poisoned(self) -> bool:
        """True if an error left the device unusable in this process: the rest is another worker's."""
        return self._report.poisoned

    def run(self) -> None:
        """Score everything the task asks for; whatever the measured code raises becomes rows."""
        items = [item for item in self._task.items if item.seeds]
        if not items:
            return
        point = items[0].point
        for number in sorted({seed for item in items for seed in item.seeds}):
            wanted = [item for item in items if number in item.seeds]
            self._report.begin(Work.INPUTS, point)
            try:
                model = model_of(point)
                made = example(model, point.seq_len, point.input_params, number)
                self._report.begin(Work.REFERENCE, point)
                exact = self._timed(partial(self._exactly, model, made, wanted))
            except Exception as error:
                for item in wanted:
                    self._fail(item, number, error)
                if self.poisoned:
                    return
                continue
            for item in wanted:
                self._report.begin(Work.ERRORS, item.point)
                try:
                    self._score(item, number, model, made, exact)
                except Exception as error:  # of the measured code
                    self._fail(item, number, error)
                if self.poisoned:
                    return

    def _exactly(self, model: LanguageModel, made: Example, items: list[WorkItem]) -> Reading:
        """A pass by exact attention, which keeps what the passes of the items begin with."""
        starts = {min(_layers(item, model)) for item in items} - {0}
        attend: dict[int, Attend] = dict.fromkeys(range(model.num_layers), _exact)
        return model.read(made.ids, attend, keep=sorted(starts), generates=made.generates)

    def _score(self, item: WorkItem, number: int, model: LanguageModel, made: Example, exact: Reading) -> None:
        """Write the scores of one example at one point."""
        point = item.point
        layers, way = _layers(item, model), self._way(item)
        attend = {i: way if i in layers else _exact for i in range(min(layers), model.num_layers)}
        read = partial(model.read, made.ids, attend, seed=number)
        if item.exact and registry.find(point.target).function is flash2:
            found = exact
        else:
            found = self._timed(partial(read, after=exact, generates=made.generates))
        scores = made.score(found)
        if ATTENTION_MS in metrics_of(point):
            scores |= {layer_metric(layer): ms for layer, ms in found.attention_ms.items()}
            scores[ATTENTION_MS] = sum((exact.attention_ms | found.attention_ms).values())
            if found.forward_ms is not None:
                scores[_WHOLE] = found.forward_ms
                if number == self._task.error.seeds[0] and (peak := self._peak_bytes(read, point)) is not None:
                    scores[_PEAK] = float(peak)
        for metric, found_score in scores.items():
            value, message = found_score if isinstance(found_score, tuple) else (found_score, "")
            self._report.write(ErrorRow(point, number, metric, value, message=message))

    def _way(self, item: WorkItem) -> Attend:
        """The method of an item as a function of q, k, v and the seed of a layer."""
        method = registry.find(item.point.target, item.options)
        reason = method.why_unsupported(item.point.device, item.point.dtype)
        if reason:
            raise NotImplementedError(reason)
        given = {name: value for name, value in own_parameters(item.point).items() if value is not None}

        def attend(q: Tensor, k: Tensor, v: Tensor, *, seed: int) -> Tensor:
            own = {**given, "seed": seed} if method.takes_seed else given
            with self._settings.standard():
                return method.ready(q, k, v, is_causal=True, **own)(q, k, v)

        return attend

    def _peak_bytes(self, read: Callable[[], Reading], point: Point) -> int | None:
        """The most that a pass takes above what is there before it, in one of its own; None where that is not known."""
        found: list[list[CallCost]] = []
        meter = memory_peak_for(point.device)
        self._clock.time_ms(lambda: found.append(meter.measure([read], time.perf_counter)[1]), is_load=True)
        return found[0][-1].peak_bytes

    def _timed(self, call: Callable[[], Reading]) -> Reading:
        """The result of a call, unless the run is to end before it."""
        found: list[Reading] = []
        self._clock.time_ms(lambda: found.append(call()), is_load=True)
        return found[0]

    def _fail(self, item: WorkItem, number: int, error: Exception) -> None:
        """Write a failed row for every score of an example at a point."""
        status, message = classify(error)
        self._report.poisoned = self.poisoned or poisons_device(status, item.point.device)
        for metric in metrics_of(item.point):
            self._report.write(ErrorRow(item.point, number, metric, None, Status(status), message))


@lru_cache(maxsize=1)
def _model(model: str | None, path: str | None, dtype: str, device: str) -> LanguageModel:
    return loaded_model(model, path, dtype, device)


def model_of(point: Point) -> LanguageModel:
    """The model of a point, loaded once in this process. Raises ValueError, one line, where it cannot be loaded."""
    params: dict[str, Any] = point.input_params
    return _model(params.get("model"), params.get("path"), point.dtype, point.device)


def _layers(item: WorkItem, model: LanguageModel) -> tuple[int, ...]:
    """The layers that attend by an item's method: all of an exact one's."""
    return numbered(str(item.point.hyper.get(LAYERS, "all")), model.num_layers)


def _exact(q: Tensor, k: Tensor, v: Tensor, *, seed: int) -> Tensor:
    return flash2(q, k, v, is_causal=True)
