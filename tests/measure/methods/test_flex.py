"""FlexAttention: exact where it compiles, refused where it cannot, and its causal mask made without N x N entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbench.measure.methods import flex as module
from hyperbench.measure.methods.flex import causal_block_mask, flex
from tests.helpers.brute_force import attention, drawn


@pytest.mark.slow
@pytest.mark.parametrize("seq_len", [1, 128, 300, 512])
def test_the_causal_mask_is_that_of_pytorch(seq_len: int) -> None:
    # Loads the compiler.
    from torch.nn.attention.flex_attention import create_block_mask

    ours = causal_block_mask(seq_len, "cpu")
    theirs = create_block_mask(lambda b, h, i, j: i >= j, None, None, seq_len, seq_len, device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert ours.shape == theirs.shape
    if seq_len % 128 == 0:
        assert torch.equal(ours.kv_num_blocks, theirs.kv_num_blocks)
        assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)


def test_a_backward_pass_on_a_cpu_is_refused_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_compiled", lambda: pytest.fail("compiled"))
    q, k, v = (x.float().requires_grad_() for x in drawn(1, 1, 1, 16, 16)[:3])
    with pytest.raises(NotImplementedError, match="no backward pass on a CPU"):
        flex(q, k, v, is_causal=False)


def test_what_it_needs_and_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "not float64" in str(flex.why_unsupported("cpu", "float64"))
    assert "not float64" in str(flex.why_unsupported("cuda", "float64"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "C++ compiler to be compiled, and no-such-compiler is not there" in str(
        flex.why_unsupported("cpu", "float32")
    )
    monkeypatch.setattr(module.shutil, "which", lambda name: name)
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "needs the headers of Python" in str(flex.why_unsupported("cpu", "float32"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert "AVX2" in str(flex.why_unsupported("cpu", "float32"))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert "Triton" in str(flex.why_unsupported("cuda", "bfloat16"))
    assert flex.implementation("cpu").endswith("-flex-cpu")


@pytest.mark.slow
@pytest.mark.skipif(flex.why_unsupported("cpu", "float32") is not None, reason="FlexAttention cannot be compiled here")
@pytest.mark.parametrize(("shape", "is_causal"), [((1, 4, 2, 300, 16), True), ((2, 2, 2, 300, 16), False)])
def test_it_is_exact_to_rounding(shape: tuple[Any, ...], is_causal: bool) -> None:
    q, k, v = (x.float() for x in drawn(*shape)[:3])
    attend = flex.prepare(q, k, v, is_causal=is_causal)
    expected = attention(q.double(), k.double(), v.double(), is_causal)
    assert float((attend(q, k, v) - expected).abs().max()) < 1e-5
