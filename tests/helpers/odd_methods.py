"""Methods that go wrong in every way a method can, and some that do not; for tests of the harness around them."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NOT_A_FUNCTION = 3


def exact(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Attention as it should be."""
    return scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1])


def a_bit_off(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, factor: float = 1.01) -> Tensor:
    """Attention times a factor."""
    return factor * exact(q, k, v, is_causal=is_causal)


def wrong_shape(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """A row too few."""
    return exact(q, k, v, is_causal=is_causal)[:, :, 1:]


def wrong_dtype(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Another dtype than that of the inputs."""
    return exact(q, k, v, is_causal=is_causal).to(torch.bfloat16)


def not_finite(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """One entry is no number."""
    out = exact(q, k, v, is_causal=is_causal)
    return torch.where(torch.arange(out.shape[2]).unsqueeze(1) == 3, float("nan"), out)


def no_tensor(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Any:
    """A tuple."""
    return exact(q, k, v, is_causal=is_causal), None


def no_gradient(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The graph is cut."""
    return exact(q, k, v, is_causal=is_causal).detach()


def no_gradient_of_q(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The graph is cut for one input."""
    return exact(q.detach(), k, v, is_causal=is_causal)


class _WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.1 * grad


def wrong_gradient(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The output is right, its gradient is not."""
    out: Tensor = _WrongBackward.apply(exact(q, k, v, is_causal=is_causal))
    return out


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError("the backward pass is not written yet")


def no_backward(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The output is right, its backward pass raises."""
    out: Tensor = _NoBackward.apply(exact(q, k, v, is_causal=is_causal))
    return out


def raises(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """No answer at all."""
    raise RuntimeError("no answer\nin two lines")


def not_written(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """No answer for this shape."""
    raise NotImplementedError("head_dim 8 is not supported")


def no_memory(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """No memory in all the world."""
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


class _Fails:
    """Answers a number of calls, then raises."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, after: int) -> Tensor:
        self.calls += 1
        if self.calls > after:
            raise RuntimeError("no more")
        return exact(q, k, v, is_causal=is_causal)


fails_later = _Fails()


def kills_its_process(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The end of the process, as the kernel brings it when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def hangs_at_128(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Never answers at length 128, where ODD_HANGS is set."""
    if q.shape[2] == 128 and os.environ.get("ODD_HANGS"):
        threading.Event().wait()
    return exact(q, k, v, is_causal=is_causal)


def keyword_defaults(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, rank: int = 4, kind: str = "a", dtype: Any = torch.float32
) -> Tensor:
    """A parameter whose default is no plain data."""
    assert dtype is torch.float32
    return exact(q, k, v, is_causal=is_causal)


def needs_a_value(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, rank: int) -> Tensor:
    """A parameter without a default."""
    return exact(q, k, v, is_causal=is_causal)


def takes_anything(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, **hyper: Any) -> Tensor:
    """Any parameter."""
    return exact(q, k, v, is_causal=is_causal)


def fails_for_seed_1(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, seed: int = 0) -> Tensor:
    """One draw of several goes wrong."""
    if seed == 1:
        raise RuntimeError("an unlucky draw")
    return exact(q, k, v, is_causal=is_causal)


class Staged:
    """Attention in three stages; what goes wrong with them is chosen by name."""

    def __init__(self, trouble: str = "") -> None:
        self.trouble = trouble
        self.calls: list[str] = []
        self.seen: list[Tensor] = []
        self.made = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, seed: int = 0) -> Tensor:
        return exact(q, k, v, is_causal=is_causal)

    def stages(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, seed: int = 0) -> Any:
        """scores, weights, out; none of them is to record a gradient."""
        done: dict[str, Tensor] = {}
        self.calls.clear()
        self.made += 1

        def scores() -> Tensor:
            self.calls.append("scores")
            self.seen.append(q)
            assert not torch.is_grad_enabled()
            hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1) & is_causal
            done["scores"] = (q @ k.mT / q.shape[3] ** 0.5).masked_fill(hidden, float("-inf"))
            return done["scores"]

        def weights() -> Tensor:
            self.calls.append("weights")
            if self.trouble == "fails" or (self.trouble == "fails later" and self.calls.count("weights") > 2):
                raise RuntimeError("no weights")
            if self.trouble == "kills" and self.calls.count("weights") > 1:
                os.kill(os.getpid(), signal.SIGKILL)
            done["weights"] = done["scores"].softmax(3)
            return done["weights"]

        def out() -> Any:
            self.calls.append("out")
            if self.trouble == "no output":
                return None
            return done["weights"] @ v * (1.01 if self.trouble == "another output" else 1.0)

        if self.trouble == "cannot begin":
            raise RuntimeError("no stages today")
        if self.trouble == "a list":
            return [scores, weights, out]
        if self.trouble == "a bad name":
            return {"scores": scores, "all": weights}
        if self.trouble == "changes" and self.made > 1:
            return {"scores": scores, "more": weights, "out": out}
        return {"scores": scores, "weights": weights, "out": out}


staged = Staged()
staged_fails = Staged("fails")
staged_fails_later = Staged("fails later")
staged_kills = Staged("kills")
staged_another_output = Staged("another output")
staged_no_output = Staged("no output")
staged_cannot_begin = Staged("cannot begin")
staged_a_list = Staged("a list")
staged_changes = Staged("changes")
staged_a_bad_name = Staged("a bad name")
