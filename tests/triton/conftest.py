"""One thread for small tensors, and no kernel test where the kernels are not the interpreter's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl

from hyperattn_core.triton_backend.support import interpreted


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class PatchOnce:
    """Triton's patch of its language for the interpreter, made once a launch and not again by each device function.

    That saves about half of the interpreter's time. Functions that name the language otherwise are patched for
    themselves, as Triton's own are.
    """

    def __init__(self, patch: Callable[[Any], Any]) -> None:
        self._patch = patch
        self._names: dict[Any, frozenset[str]] = {}
        self._done: set[frozenset[str]] = set()
        self._scope: Any = None

    def __call__(self, fn: Any) -> PatchOnce:
        if fn not in self._names:
            modules = (getattr(value, "__name__", "") for value in fn.__globals__.values())
            self._names[fn] = frozenset({"triton.language", "triton.language.core"}.intersection(modules))
        if self._names[fn] not in self._done:
            scope = self._patch(fn)
            # The first function of a launch is its kernel, whose end puts everything back.
            self._scope = self._scope if self._done else scope
            self._done.add(self._names[fn])
        return self

    def restore(self) -> None:
        """Undo the patch at the end of a launch."""
        self._done.clear()
        self._scope.restore()


def quick_sort(x: Any) -> Any:
    """tl.sort of a vector by NumPy: the interpreter takes a second for Triton's own, a network of exchanges."""
    from triton.runtime.interpreter import TensorHandle

    return tl.core.tensor(TensorHandle(np.sort(x.handle.data), x.handle.dtype), x.type)


@pytest.fixture(scope="session", autouse=True)
def interpreter() -> Iterator[None]:
    """These tests run the kernels on CPU tensors."""
    if not interpreted():
        pytest.skip("the kernels run in Triton's interpreter here: TRITON_INTERPRET=1")
    from triton.runtime import interpreter as triton_interpreter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_interpreter, "_patch_lang", PatchOnce(triton_interpreter._patch_lang))
        patch.setattr(tl, "sort", quick_sort)
        yield
