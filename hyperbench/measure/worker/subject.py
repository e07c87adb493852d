"""The subjects of a measurement: the inputs of a group, and a method of it with what its check found."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from hyperbench.measure import work_items
from hyperbench.measure.inputs import Inputs
from hyperbench.measure.methods import method as registry
from hyperbench.measure.methods.method import Attend, arranged
from hyperbench.measure.worker.calls import seeded
from hyperbench.measure.worker.errors.extra import Answer
from hyperbench.measure.worker.errors.reference import Reference
from hyperbench.measure.worker.fingerprints import Fingerprint
from hyperbench.measure.worker.memory import CallCost
from hyperbench.store.schema import Pass, Point, Status


@dataclass(frozen=True)
class GroupInputs:
    """The inputs that all methods of a group share: those of `point`, on its device, in its dtype.

    `inputs` are q (B, H, N, D), k and v (B, Hkv, N, D), `grad_output` (B, H, N, D) is the same for all backward passes.
    `reference` is None where there is none to compare with.
    """

    point: Point
    inputs: Inputs
    grad_output: Tensor
    reference: Reference | None = None

    def arranged(self, layout: str) -> GroupInputs:
        """The same for methods of a layout: tensors that lie in memory as these take them."""
        q, k, v = (arranged(x, layout) for x in self.inputs)
        return replace(self, inputs=(q, k, v), grad_output=arranged(self.grad_output, layout))


@dataclass
class Subject:
    """The method of a work item under measurement, with what its check found.

    That is what a call of each pass took (`costs`), how many milliseconds its first call in this process and its set-up
    took (`setup_ms`, None where it has none), which passes failed, and why. `given` is what each pass gave before it
    was timed, `causal_in_q` is true if later queries leave earlier outputs alone (None without a causal mask), `leak`
    says what else is not causal in a method that may leak. `unlooked` are the passes whose properties were to be looked
    for at the point itself and were not, for want of time or memory.
    """

    item: work_items.WorkItem
    method: registry.Method
    costs: dict[Pass, CallCost] = field(default_factory=dict)
    first_ms: dict[Pass, float] = field(default_factory=dict)
    failed: dict[Pass, tuple[Status, str]] = field(default_factory=dict)
    given: dict[Pass, Fingerprint] = field(default_factory=dict)
    causal_in_q: bool | None = None
    unlooked: set[Pass] = field(default_factory=set)
    setup_ms: float | None = None
    leak: str = ""

    def peak_bytes(self, pass_: Pass) -> int:
        """Peak memory of a pass; 0 where it is not known."""
        return (self.costs[pass_].peak_bytes or 0) if pass_ in self.costs else 0

    @property
    def point(self) -> Point:
        """The point that is measured."""
        return self.item.point

    def ready(self, inputs: Inputs, *, seed: int | None = None) -> Attend:
        """The method for these inputs, its set-up made, under another seed of the draw if one is given."""
        with self.seeded():
            return self.method.ready(*inputs, is_causal=self.point.is_causal, **self.hyper(seed))

    def seeded(self) -> AbstractContextManager[None]:
        """Give a method that takes no seed that of the point, for the calls within."""
        return seeded(self.method, self.point)

    def call(self, q: Tensor, k: Tensor, v: Tensor, *, seed: int | None = None) -> Tensor:
        """One call of the method on these inputs, set-up and all, under another seed of the draw if one is given."""
        attend = self.ready((q, k, v), seed=seed)
        with self.seeded():
            return attend(q, k, v)

    def answer(self, inputs: Inputs, seed: int, out: Tensor, lse: Tensor | None) -> Answer:
        """An output, and its log-sum-exp if there is one, on these inputs under a seed: an answer to be measured."""
        q, k, _ = inputs
        plan = self.method.plan and partial(self.method.plan, q, k, is_causal=self.point.is_causal, **self.hyper(seed))
        return Answer(self.point, inputs, out, lse, plan, lambda other: self.call(*inputs, seed=other))

    def hyper(self, seed: int | None) -> dict[str, Any]:
        """The method's parameters, the seed of the draw replaced where there is one."""
        replaced = seed is not None and self.point.hyper.get("seed") is not None
        return {**self.point.hyper, "seed": seed} if replaced else dict(self.point.hyper)
