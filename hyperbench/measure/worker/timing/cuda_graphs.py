"""A call captured in a CUDA graph and replayed: the launch costs next to nothing, and what was captured is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperbench.measure.worker.errors.accuracy import EXACT_TOLERANCES, IncorrectError, relative_frobenius

_WARMUP_CALLS = 3


class GraphedCall:
    """The replay of one call; `check` says whether a replay still computes what the call itself did.

    `prepare` makes the call, which takes no argument, launches all its work on the current stream and waits for
    nothing; it runs on the stream of the capture, on which a backward pass follows its forward pass. `cuda` is
    torch.cuda or stands for it. Raises whatever preparing and capturing raise, and IncorrectError as `check` does.
    """

    def __init__(self, prepare: Callable[[], Callable[[], object]], dtype: str, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._tolerance = EXACT_TOLERANCES[dtype]
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            call = prepare()
            for _ in range(_WARMUP_CALLS):
                eager = call()
        cuda.current_stream().wait_stream(side)
        cuda.synchronize()
        self._expected = [x.clone() for x in tensors_of(eager)]
        del eager
        if not self._expected:
            raise IncorrectError("protocol.cuda_graph=true: the call returns no tensor whose replay could be checked")
        self._graph = cuda.CUDAGraph()
        with cuda.graph(self._graph, stream=side):
            self._static = call()
        self.check()

    def __call__(self) -> object:
        """Replay; the result lies where it always does, and the next replay overwrites it."""
        self._graph.replay()
        return self._static

    def check(self) -> None:
        """Overwrite the output, replay, and raise IncorrectError unless it is again that of the call itself."""
        outputs = tensors_of(self._static)
        for out in outputs:
            out.detach().fill_(float("nan"))
        self._graph.replay()
        self._cuda.synchronize()
        for out, expected in zip(outputs, self._expected, strict=True):
            error = relative_frobenius(out.detach(), expected)
            if not error <= self._tolerance:
                raise IncorrectError(
                    "the replay of the CUDA graph must give the output of the call: they differ by "
                    f"{error:.3g}, above {self._tolerance:g}; the graph did not capture all of the work"
                )


def tensors_of(result: object) -> list[Tensor]:
    """The tensors of a result: itself, or those among its items."""
    items = result if isinstance(result, list | tuple) else [result]
    return [item for item in items if isinstance(item, Tensor)]
