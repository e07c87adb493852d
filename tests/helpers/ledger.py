"""What a piece of code allocates, counted over every tensor that its operations make."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):
    """Memory that the operations inside the context make: the largest tensor, and the most that was alive at once.

    Views of `known` tensors are not counted. With `collect`, neither are tensors that only wait for the collector of
    cycles: Triton's interpreter leaves some behind.
    """

    def __init__(self, known: Iterable[Tensor] = (), *, collect: bool = False) -> None:
        super().__init__()
        self._collect = collect
        self._known = {x.untyped_storage()._cdata for x in known}
        self.largest_numel = 0
        self.peak_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __enter__(self) -> Ledger:
        if self._collect:
            # What is there already stays: collecting again and again then looks at what is new alone.
            gc.collect()
            gc.freeze()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self._collect:
            gc.unfreeze()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                if storage._cdata in self._known:
                    continue
                size = storage.nbytes()
                self._alive[storage._cdata] = (StorageWeakRef(storage), size)
                self.largest_numel = max(self.largest_numel, size // x.element_size())
        if self._collect and self._alive_bytes() > self.peak_bytes:
            gc.collect()
        self.peak_bytes = max(self.peak_bytes, self._alive_bytes())
        return result

    def _alive_bytes(self) -> int:
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        return sum(size for _, size in self._alive.values())
