"""Main function of the child process that scores language models; as hyperbench/measure/worker/main.py otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from hyperbench.measure.worker.main import Measurement, serve


def scoring(task: Any, emit: Callable[[Any], None], clock: Any, settings: Any) -> Measurement:
    """The measurement of one task of a language model."""
    from hyperbench.measure.models.scoring import Scoring

    return Scoring(task, emit, clock, settings)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:], scoring)
