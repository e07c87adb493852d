"""Methods that come to a bad end at length 128: one runs out of memory, one takes the interpreter along, one hangs."""

from __future__ import annotations

import os
import resource
import stat
import threading

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hyperbench.measure.worker.memory import read_status_bytes

_SPARE_BYTES = 2**26
_WANTED_BYTES = 2**31


def exact(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Attention as it should be."""
    return scaled_dot_product_attention(q, k, v, is_causal=is_causal)


def wants_memory(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Asks for more memory than the process is allowed from here on."""
    if q.shape[2] >= 128:
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (read_status_bytes("VmSize") + _SPARE_BYTES, before[1]))
        try:
            torch.empty(_WANTED_BYTES, dtype=torch.uint8).fill_(1)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    return exact(q, k, v, is_causal=is_causal)


def aborts(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Takes the interpreter along."""
    if q.shape[2] == 128:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.abort()
    return exact(q, k, v, is_causal=is_causal)


def hangs(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Says so in the pipe HANGS_AT and never answers, as long as there is that pipe."""
    if q.shape[2] == 128 and os.path.exists(os.environ["HANGS_AT"]):
        os.write(os.open(os.environ["HANGS_AT"], os.O_WRONLY), b"x")
        threading.Event().wait()
    return exact(q, k, v, is_causal=is_causal)


def closes_descriptors(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Closes all that it did not open."""
    if q.shape[2] == 128:
        os.closerange(3, 256)
        threading.Event().wait(600)
    return exact(q, k, v, is_causal=is_causal)


def writes_to_descriptors(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Writes a line to every pipe that it finds open."""
    if q.shape[2] == 128:
        for fd in range(3, 64):
            if stat.S_ISFIFO(_mode(fd)):
                try:
                    os.write(fd, b"progress\n")
                except OSError:
                    continue  # it is for reading
    return exact(q, k, v, is_causal=is_causal)


def leaves_a_helper(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Ends, and leaves a process behind that holds all descriptors."""
    if q.shape[2] == 128:
        if os.fork() == 0:
            threading.Event().wait(600)
        os._exit(7)
    return exact(q, k, v, is_causal=is_causal)


def _mode(fd: int) -> int:
    try:
        return os.fstat(fd).st_mode
    except OSError:
        return 0
