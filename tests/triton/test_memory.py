"""The count of peak memory: against what calls allocate, and against FlashAttention-2's at the paper's length."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hyperattn_core import HyperAttentionParams
from hyperattn_core.exact_aten import BackwardInputs
from hyperattn_core.planning.packed import Settings
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.triton_backend.backward import backward
from hyperattn_core.triton_backend.configure import attend_config, backward_config
from hyperattn_core.triton_backend.forward import forward
from hyperattn_core.triton_backend.plan import packed_plan
from tests.helpers.ledger import Ledger
from tests.helpers.triton_inputs import Call, normal
from tools.roofline.call_sizes import CallSizes
from tools.roofline.peak_memory import flash2_peak, hyper_peak

TABLE_BYTES = 8192
PAPER = CallSizes((1, 12, 12, 131072, 131072), 64)


@pytest.mark.parametrize("leaf", [None, 1024, 2048, 4096])
def test_training_takes_at_most_half_as_much_again_as_flash_attention_2(leaf: int | None) -> None:
    params = HyperAttentionParams(min_seq_len=leaf or 1024)
    hyper = hyper_peak(dataclasses.replace(PAPER, params=params, is_causal=leaf is not None)).forward_backward
    flash = flash2_peak(PAPER).forward_backward
    inputs = 4 * 131072 * 12 * 64 * 2  # q, k, v and the gradient of the output, in half precision
    assert hyper <= 1.5 * flash
    assert inputs + hyper <= 1.5 * (inputs + flash)


def test_flash_attention_2_is_counted_as_its_buffers_are() -> None:
    """At n = 131,072: output, three gradients and a copy, dq in float32 (twice the size), two float32 numbers a row."""
    output = 131072 * 12 * 64 * 2
    assert flash2_peak(PAPER).backward == 7 * output + 2 * 131072 * 12 * 4
    assert flash2_peak(PAPER).kept == output + 131072 * 12 * 4


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["stratified", "probed", "truncated"])
@pytest.mark.parametrize(
    ("is_causal", "heads", "kv_heads", "value_dim"),
    [pytest.param(False, 2, 1, 32, marks=pytest.mark.slow), (True, 1, 1, None)],
)
def test_the_count_is_what_a_call_allocates(
    is_causal: bool, heads: int, kv_heads: int, value_dim: int | None, sampling: str
) -> None:
    """But for a few kilobytes of tables. Leaves of grouped heads and of two head sizes are a GPU's alone."""
    sizes = {"block_size": 32, "sample_size": 32, "num_projections": 3, "min_seq_len": 128, "sampling": sampling}
    call = Call(
        queries=420, heads=heads, kv_heads=kv_heads, dim=64, value_dim=value_dim, is_causal=is_causal,
        dtype=torch.bfloat16, params=sizes,
    )  # fmt: skip
    q, k, v = call.inputs()
    settings = Settings(call.parameters(), is_causal, 64)
    counted = hyper_peak(CallSizes(plan_shape(q, k), 64, v.shape[3], is_causal, call.parameters()))
    config, of_gradients = attend_config(q.device, q.dtype, 64, 64), backward_config(q.device, q.dtype, 64)
    packed_plan(q, k, 3, settings, 0.125)  # fills the tables that are kept
    with Ledger([q, k, v], collect=True) as ledger:
        packed = packed_plan(q, k, 3, settings, 0.125)
        out, lse = forward(q, k, v, packed, 0.125, config)
    assert ledger.peak_bytes == pytest.approx(counted.forward, abs=TABLE_BYTES)
    kept = sum(x.untyped_storage().nbytes() for x in (packed.data, packed.weights, out, lse))
    assert kept == counted.kept
    grad_out = normal(*out.shape, seed=7, dtype=out.dtype)
    given = [q, k, v, packed.data, packed.weights, out, lse, grad_out]
    with Ledger(given, collect=True) as ledger:
        backward(BackwardInputs(grad_out, None, q, k, v, out, lse), packed, 0.125, of_gradients)
    assert kept + ledger.peak_bytes == pytest.approx(counted.backward, abs=TABLE_BYTES)
