"""The helpers of tests/core are on the path here too, and the small tensors take one thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "core"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def full_memory() -> Iterator[None]:
    """New tensors begin full of NaN, or of the largest integer, so that what nobody writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
