"""Memory of a call at its peak, beyond q, k, v and the gradient of the output: counted from its buffers.

What a call keeps between its passes is its result and the plan; the rest lives for a few launches. FlashAttention-2 is
counted by the buffers that its authors' kernel asks for, which PyTorch's is, and by the contiguous copies (B, N, H, D)
that PyTorch makes for its backward pass. Both kernels' allocators may round up.
"""

from __future__ import annotations

from dataclasses import dataclass

from hyperattn_core.planning.samples import NUM_CLASSES
from hyperattn_core.triton_backend.kernels.mean_keys import ENTRIES
from tools.roofline.call_sizes import DOUBLE_BYTES, FLOAT_BYTES, INDEX_BYTES, LSE_BYTES, CallSizes

# FlashAttention-2 rounds lengths and head sizes up in what it keeps in float32.
_FLASH_ROWS = 128
_FLASH_COLUMNS = 32
_WIDE_FLASH_COLUMNS = 64
# Queries of a piece of a tile, as the usual configurations of the query kernel take it.
_PIECE_QUERIES = 64


@dataclass(frozen=True)
class PeakMemory:
    """Bytes beyond the inputs and the gradient of the output.

    Attributes:
        kept: what lies there between forward and backward pass, the output included.
        forward: the most during a forward pass.
        backward: the most during the backward pass, what was kept included.
    """

    kept: int
    forward: int
    backward: int

    @property
    def forward_backward(self) -> int:
        """The most during both."""
        return max(self.forward, self.backward)


def hyper_peak(call: CallSizes) -> PeakMemory:
    """Peaks of hyper_attention in the kernels, with leaves through FlashAttention-2; errors as for forward_costs."""
    where, queries, keys, itemsize = call.geometry, call.queries, call.keys, call.itemsize
    head_dim, value_dim = call.dims
    result, leaves = (queries * (value_dim * itemsize + lse_bytes) for lse_bytes in (LSE_BYTES, FLOAT_BYTES))
    plan = where.data_size * INDEX_BYTES + where.drawn_size * FLOAT_BYTES
    partial = where.partial_rows * (value_dim * itemsize + LSE_BYTES)
    kept = plan + result
    row = (head_dim + value_dim) * FLOAT_BYTES
    means = call.has_means * where.num_key_nodes * (row + ENTRIES.value * FLOAT_BYTES)
    tiles = call.has_means * where.sides[1].rows * where.sides[1].num_tiles * row
    forward = max(
        plan + _planning_bytes(call), kept + partial + means + max(tiles, leaves if call.is_causal else 0)
    )  # fmt: skip

    base = kept + queries * 2 * FLOAT_BYTES + means + call.has_means * where.num_key_nodes * row
    parts, sums = where.sample_parts_size * row, where.drawn_size * row
    pieces = max(level.num_nodes * level.num_tiles for level in where.levels) * where.sides[0].rows
    mean_parts = call.has_means * pieces * -(-call.tile_size // _PIECE_QUERIES) * row
    dq, dk, dv = queries * head_dim, keys * head_dim, keys * value_dim
    grads = (dq + dk + dv) * itemsize
    if not call.is_causal:
        return PeakMemory(kept, forward, base + sums + max(parts, tiles, dq * itemsize + mean_parts, grads))
    rounded = itemsize if itemsize < FLOAT_BYTES else 0
    # Of out and its gradient, which are views of leaves.
    leaf_workspace = _flash_workspace(call) + queries * FLOAT_BYTES + 2 * _contiguous_copy(call)
    steps = (
        parts,
        tiles,
        (dk + dv) * itemsize + dq * FLOAT_BYTES + mean_parts,
        grads + leaf_workspace,
        grads + dq * FLOAT_BYTES,
        (dq + dk + dv) * itemsize + dk * FLOAT_BYTES,
        (dq + dv) * itemsize + (dk + dv) * FLOAT_BYTES,
        dq * itemsize + (dk + dv) * FLOAT_BYTES + dk * rounded,
    )
    return PeakMemory(kept, forward, base + sums + max(steps))


def flash2_peak(call: CallSizes) -> PeakMemory:
    """Peaks of FlashAttention-2: its backward pass sums dq up in float32, and keeps a delta of every row."""
    batch, heads, kv_heads, _, num_keys = call.shape
    queries, keys, itemsize = call.queries, call.keys, call.itemsize
    head_dim, value_dim = call.dims
    kept = queries * (value_dim * itemsize + FLOAT_BYTES)
    grads = (queries * head_dim + keys * (head_dim + value_dim)) * itemsize
    # Fewer kv heads than query heads: dk and dv come one for each query head first.
    spread = 0 if heads == kv_heads else batch * heads * num_keys * (head_dim + value_dim) * itemsize
    # Of the gradient of out; out itself is as the forward pass has left it.
    return PeakMemory(kept, kept, kept + grads + spread + _flash_workspace(call) + _contiguous_copy(call))


def _contiguous_copy(call: CallSizes) -> int:
    """A copy of (B, H, N, Dv) in the order (B, N, H, Dv), which one head is in already."""
    batch, heads, *_ = call.shape
    return 0 if batch * heads == 1 else call.queries * call.dims[1] * call.itemsize


def _flash_workspace(call: CallSizes) -> int:
    """dq in float32 and the delta of every row, as FlashAttention-2's backward pass makes them."""
    batch, heads, _, length, _ = call.shape
    head_dim = call.head_dim
    columns = _FLASH_COLUMNS if head_dim <= 4 * _FLASH_COLUMNS else _WIDE_FLASH_COLUMNS
    padded = -(-length // _FLASH_ROWS) * _FLASH_ROWS
    return batch * heads * padded * (-(-head_dim // columns) * columns + 1) * FLOAT_BYTES


def _planning_bytes(call: CallSizes) -> int:
    """Ranks, histograms and their scan, and the draw of probed samples, which are given up once the plan is made."""
    where = call.geometry
    tiles = sum(side.rows * side.num_tiles for side in where.sides)
    scanned = (len(where.levels) * tiles + where.totals_rows) * INDEX_BYTES
    sorting = (call.queries + call.keys) * call.rank_bytes + (tiles + scanned) * where.num_ranks
    if not where.draws_probed:
        return sorting
    scoring = (2 * where.probe_parts_size + where.probe_norms_size) * FLOAT_BYTES
    designs, sums = where.num_key_nodes * (2 * DOUBLE_BYTES + INDEX_BYTES), where.draw_tiles * DOUBLE_BYTES
    drawing = designs + sums + where.drawn_size * (INDEX_BYTES + FLOAT_BYTES)
    return sorting + where.classes_size + where.class_tiles * NUM_CLASSES + max(scoring, drawing)
