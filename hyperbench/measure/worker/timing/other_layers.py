"""Work between two calls of attention as a model's other layers do it, so that no call is timed right after itself.

After a call of its own a method finds the caches, the heap and the code as it likes them, which in a model it never
does. Each method meets the same work before each of its calls, whatever other methods are measured beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from hyperbench.config.types import ProtocolConfig
from hyperbench.store.schema import Point

#: Entries of the hidden state at most: where calls take long it makes no difference what came before them.
_MOST_ELEMENTS = 2**18
#: Weights of other layers that are read as well: 8 MiB.
_WEIGHTS = 2**21


class OtherLayers:
    """A feed-forward layer, the projection to queries, keys and values, rotary embeddings, on a hidden state (N, D).

    They take memory and give it back, and what they made lives until the next time. Everything is in float32.
    """

    def __init__(self, num_tokens: int, width: int) -> None:
        generator = torch.Generator(device="cpu").manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float32)

        self._hidden = drawn(max(1, min(num_tokens, _MOST_ELEMENTS // width)), width)
        self._up, self._down, self._qkv = drawn(width, 4 * width), drawn(4 * width, width), drawn(width, 3 * width)
        self._weights = torch.zeros(_WEIGHTS, device="cpu", dtype=torch.float32)
        self._made: tuple[Tensor, ...] = ()

    def __call__(self) -> None:
        """Do the work once."""
        with torch.no_grad():
            x = self._hidden
            width = (x.shape[1],)
            x = x + gelu(layer_norm(x, width) @ self._up) @ self._down + self._weights.sum()
            q, k, v = (layer_norm(x, width) @ self._qkv).chunk(3, dim=1)
            sine, cosine = x.sin(), x.cos()
            self._made = (q * cosine - k * sine, k * cosine + q * sine, v.contiguous(), x)


def other_layers(point: Point, protocol: ProtocolConfig) -> Callable[[], object] | None:
    """The work before each sample of a point; None on a GPU, whose L2 cache is overwritten, and as the authors time."""
    if point.device == "cuda" or protocol.as_paper:
        return None
    return OtherLayers(point.batch * point.heads * point.seq_len, point.head_dim)
