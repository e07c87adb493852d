"""Memory grows linearly with the length: counted over every tensor that a call makes, forward and backward."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hyperattn_core import exact_attention, hyper_attention
from tests.helpers.core_inputs import PAIRINGS, qkv, small_params
from tests.helpers.ledger import Ledger

BLOCK_SIZE = SAMPLE_SIZE = 256
DIM = 16


def ledger_of(length: int, pairing: str, is_causal: bool) -> Ledger:
    """The ledger of one forward and backward call."""
    inputs = [x.requires_grad_() for x in qkv(queries=length, dim=DIM, dtype=torch.float32)]
    params = small_params(
        "stratified", pairing, block_size=BLOCK_SIZE, sample_size=SAMPLE_SIZE, num_projections=6, min_seq_len=512
    )
    with Ledger() as ledger:
        out, lse = hyper_attention(*inputs, params=params, is_causal=is_causal, return_lse=True)
        torch.autograd.grad(out.sum() + lse.sum(), inputs)
    return ledger


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_twice_the_length_takes_twice_the_memory(pairing: str, is_causal: bool) -> None:
    length = 16_384
    one, two = ledger_of(length, pairing, is_causal), ledger_of(2 * length, pairing, is_causal)
    assert two.peak_bytes < 2.1 * one.peak_bytes
    assert two.largest_numel <= 2 * one.largest_numel
    for ledger, n in ((one, length), (two, 2 * length)):
        # Less than the logits of either part would take: they live a chunk at a time.
        assert ledger.largest_numel < n * min(BLOCK_SIZE, SAMPLE_SIZE) / 2
    # A position more takes a few rows of inputs, outputs and gradients, and less than its row of float32 logits would.
    assert (two.peak_bytes - one.peak_bytes) / length < 4 * (BLOCK_SIZE + SAMPLE_SIZE)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_exact_attention_makes_no_square_tensor(fused: bool, is_causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused:
        monkeypatch.setattr("hyperattn_core.exact_aten.CPU_KERNEL_MIN_KEYS", 10**9)
        monkeypatch.setattr("hyperattn_core.exact_aten._CHUNK_ELEMENTS", 2**16)
    length = 2048
    inputs = [x.requires_grad_() for x in qkv(queries=length, dim=DIM, dtype=torch.float32)]
    with Ledger() as ledger:
        torch.autograd.grad(exact_attention(*inputs, is_causal=is_causal).sum(), inputs)  # type: ignore[union-attr]
    assert ledger.largest_numel <= length * length / 32


def test_the_ledger_sees_a_square_tensor() -> None:
    q, k, v = qkv(queries=512, dtype=torch.float32)
    with Ledger() as ledger:
        ((q @ k.transpose(2, 3)).softmax(3) @ v).sum()
    assert ledger.largest_numel == 512 * 512
    assert ledger.peak_bytes >= 2 * 4 * 512 * 512


RESIDENT = """
import sys
import torch
from hyperattn_core import HyperAttentionParams, hyper_attention

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024

def size_of_call(length):
    inputs = [torch.randn(1, 1, length, 64, requires_grad=True) for _ in range(3)]
    grad_out = torch.randn(1, 1, length, 64)
    params = HyperAttentionParams(sampling=sys.argv[1])
    out = hyper_attention(*inputs, is_causal=sys.argv[2] == "True", params=params)
    return sum(x.nbytes for x in (*inputs, grad_out, out, *torch.autograd.grad(out, inputs, grad_out)))

size_of_call(8192)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = status("VmRSS")
size = size_of_call(131_072)
print((status("VmHWM") - before) / size)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["probed", "truncated"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_long_call_takes_half_as_much_again_as_its_inputs_outputs_and_gradients(
    is_causal: bool, sampling: str
) -> None:
    """Of the resident set, at its peak: what kernels and NumPy hold is among it."""
    command = [sys.executable, "-c", RESIDENT, sampling, str(is_causal)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "PermissionError" in done.stderr:
        pytest.skip("this system does not let a process reset its peak of memory")
    assert done.returncode == 0, done.stderr
    assert 1.0 < float(done.stdout) < 1.5
