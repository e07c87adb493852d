"""One wrong row of an exact method is refused; the rounding of real kernels in any dtype and any row is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from hyperbench.measure.inputs import make_inputs
from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.errors.reference import Reference, make_reference
from tests.helpers.made_records import a_point

FAMILIES = ("gaussian", "clustered", "clustered_values", "heavy_keys")


def answered(dtype: str, family: str, is_causal: bool, head_dim: int = 64) -> tuple[torch.Tensor, Reference]:
    """What PyTorch's own kernel gives, and the reference."""
    shape: dict[str, Any] = {"heads": 2, "kv_heads": 2, "seq_len": 1024, "head_dim": head_dim}
    point = a_point(**shape, dtype=dtype, input=family, input_params={}, is_causal=is_causal)
    inputs = make_inputs(point)
    found = make_reference(
        *inputs, None, is_causal=is_causal, num_rows=1024, dtype=torch.float64, operator_norm=False, seed=0
    )
    return scaled_dot_product_attention(*inputs, is_causal=is_causal), found


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_real_kernels_keep_to_the_bound_in_every_row(dtype: str, family: str, is_causal: bool) -> None:
    # Rows of one entry come closest to nothing, and then lose most of what they are.
    for head_dim in (1, 64):
        accuracy.check_rows(*answered(dtype, family, is_causal, head_dim), dtype)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("position", [0, 500, 1023])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_row_that_is_lost_is_named(dtype: str, position: int, is_causal: bool) -> None:
    out, found = answered(dtype, "gaussian", is_causal)
    out[0, 1, position] = 0.0
    if dtype == "bfloat16" and not is_causal:
        # In the error of the whole it hides.
        accuracy.check_exact({"out_rel_fro": accuracy.output_errors(out, found)["out_rel_fro"]}, dtype)
    with pytest.raises(IncorrectError, match=f"that of position {position} is off by 1 of its size"):
        accuracy.check_rows(out, found, dtype)
