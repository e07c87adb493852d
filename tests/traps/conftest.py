"""The helpers of the tests of measuring serve here too, and so does what makes them quick."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "measure"))


@pytest.fixture(autouse=True, scope="module")
def small_and_quick() -> Iterator[None]:
    """PyTorch on one thread, and what was there before out of the collector's sight, while a module of tests runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)
