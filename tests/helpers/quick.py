"""What makes these tests quick: small tensors want one thread, and the collector need not look at every library."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def small_and_quick() -> Iterator[None]:
    """PyTorch on one thread, and what was there before out of the collector's sight, while a module of tests runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)
