"""A forward pass as stages that can be run one at a time, so that each can be timed by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Stages = dict[str, Callable[[], object]]
#: Work of a stage on the results of the stages before it, by their names.
Step = Callable[[Mapping[str, Any]], object]


def chained(steps: Mapping[str, Step]) -> Stages:
    """Stages that hand on their results: each step is called with those of the steps before it, by name.

    A stage that is called before all those before it have run raises RuntimeError. A step must leave the results that
    it is given as they are.
    """
    results: dict[str, Any] = {}
    names = list(steps)

    def stage(name: str) -> Callable[[], object]:
        before, step = names[: names.index(name)], steps[name]

        def run() -> object:
            missing = [earlier for earlier in before if earlier not in results]
            if missing:
                raise RuntimeError(f"stage {name!r} needs the result of stage {missing[0]!r}: run the stages in order")
            with torch.no_grad():
                results[name] = step(results)
            return results[name]

        return run

    return {name: stage(name) for name in names}
