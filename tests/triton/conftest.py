"""One thread for small tensors, and no kernel test where the kernels are not the interpreter's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hyperattn_core.triton_backend.support import interpreted


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def interpreter() -> None:
    """These tests run the kernels on CPU tensors."""
    if not interpreted():
        pytest.skip("the kernels run in Triton's interpreter here: TRITON_INTERPRET=1")
