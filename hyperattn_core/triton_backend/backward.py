"""The backward pass at a packed plan: exact gradients of the estimator, without atomics."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import triton
from torch import Tensor

from hyperattn_core.exact import as_leaves, exact_backward, leaf_slices, store_leaves
from hyperattn_core.exact_aten import BackwardInputs, Gradients
from hyperattn_core.planning.packed import Packed, Settings
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.triton_backend.device_tables import level_table
from hyperattn_core.triton_backend.geometry import (
    TILES_PER_PART,
    block_dim,
    blocks_per_tile,
    dim_constants,
    geometry,
)
from hyperattn_core.triton_backend.kernels import key_grad, query_grad, sample_grad
from hyperattn_core.triton_backend.kernels.common import LOG2_E
from hyperattn_core.triton_backend.packing import dense_rows
from hyperattn_core.triton_backend.sampling import MeanKeys
from hyperattn_core.triton_backend.tuning.configs import BackwardConfig

_ROWS = 64
#: Registers of a thread of the key kernel, and of the query kernel for routed tiles: left to itself the compiler takes
#: fewer, and spills.
KEY_REGISTERS = 255
_REDUCE_SLOTS = 16
# The least that tensor cores take: blocks of routed keys are smaller.
_ROUTED_KEYS_AT_ONCE = 16


def backward(inputs: BackwardInputs, packed: Packed, scale: float, config: BackwardConfig) -> Gradients:
    """dq, dk, dv in the dtype of q, from the final out (B, H, Nq, Dv) and lse (B, H, Nq) of every row.

    A causal call adds the levels to the gradients of its leaves one after another, in float32: first dq, then dk and
    dv, so that only those two are held in float32 together.
    """
    work = BackwardWork(inputs, packed, scale, config)
    work.delta()
    work.mean_keys()
    work.samples()
    if packed.settings.is_causal:
        work.leaves()
    levels = range(len(work.where.levels))
    dq = work.total(0)
    for level in levels:
        work.queries(level, dq)
    dq = dq.to(inputs.q.dtype)
    dk, dv = work.total(1), work.total(2)
    for level in levels:
        work.keys(level, dk, dv)
    dk = dk.to(inputs.k.dtype)
    return dq, dk, dv.to(inputs.v.dtype)


class BackwardWork:
    """The buffers of one backward pass, and its steps."""

    def __init__(self, inputs: BackwardInputs, packed: Packed, scale: float, config: BackwardConfig) -> None:
        self.q, self.k, self.v = (dense_rows(x) for x in (inputs.q, inputs.k, inputs.v))
        rest = {name: x.contiguous() for name, x in vars(inputs).items() if x is not None and name not in "qkv"}
        self.inputs = replace(inputs, q=self.q, k=self.k, v=self.v, **rest)
        self.packed, self.scale, self.config = packed, scale, config
        self.where = where = geometry(plan_shape(self.q, self.k), packed.settings)
        self.table = level_table(where, str(self.q.device))
        self.deltas = torch.empty_like(self.inputs.lse, dtype=torch.float32)
        # Of a row in which one key outweighs all others this is that key's logit to the last bit: it weighs one.
        self.lse2 = torch.mul(self.inputs.lse, LOG2_E.value, out=torch.empty_like(self.deltas))
        self.sums = self._floats(where.drawn_size)
        self.means = MeanKeys(self.k, self.v, packed, where)
        self.mean_grads = self.means.floats(where.num_key_nodes)
        self.leaf_grads: list[list[tuple[slice, Tensor]]] = [[], [], []]

    def delta(self) -> None:
        """delta = rowsum(grad_out * out) - grad_lse."""
        inputs, rows = self.inputs, self.inputs.lse.numel()
        query_grad.delta_kernel[(triton.cdiv(rows, _ROWS),)](
            inputs.out, inputs.grad_out, inputs.lse if inputs.grad_lse is None else inputs.grad_lse, self.deltas, rows,
            **delta_constants(self.v.shape[3], inputs.grad_lse is not None), num_warps=4,
        )  # fmt: skip

    def mean_keys(self) -> None:
        """The mean keys of truncated samples, as the forward pass met them."""
        self.means.make()

    def samples(self) -> None:
        """dk and dv of the sampled keys: parts of the queries, then their sum, over all levels at once."""
        where = self.where
        most = max(level.num_samples for level in where.levels)
        if most == 0:
            return
        queries, keys = where.sides
        programs = max(
            -(-level.num_tiles // TILES_PER_PART) * level.num_nodes
            * max(1, triton.cdiv(level.num_samples, self.config.key_block_n))
            for level in where.levels
        )  # fmt: skip
        parts = self._floats(where.sample_parts_size)
        sample_grad.sample_kernel[(programs * queries.rows, len(where.levels))](
            *self._rows(), self.packed.data, self.packed.weights, self.table,
            *parts, *self._strides(),
            self.q.shape[1], queries.rows // keys.rows, queries.rows, self.q.shape[2], TILES_PER_PART,
            self.scale, **self._constants(self.config.key_block_n),
            num_warps=self.config.key_warps or self.config.num_warps, num_stages=self.config.num_stages,
        )  # fmt: skip
        grid = (keys.rows * where.max_nodes, len(where.levels), triton.cdiv(most, _REDUCE_SLOTS))
        sample_grad.reduce_kernel[grid](
            *parts, *self.sums, self.table, queries.rows // keys.rows, keys.rows, TILES_PER_PART,
            **reduce_constants(self.q.shape[3], self.v.shape[3]), num_warps=4,
        )  # fmt: skip

    def leaves(self) -> None:
        """Gradients of the exact leaves, from the final out and lse: what the levels are added to."""
        leaf = self.where.settings.params.min_seq_len
        for part in leaf_slices(self.q.shape[2], leaf):
            grads = exact_backward(self.inputs.map(partial(as_leaves, part=part, leaf_len=leaf)), True, self.scale)
            for found, grad in zip(self.leaf_grads, grads, strict=True):
                found.append((part, grad))

    def total(self, which: int) -> Tensor:
        """Buffer that sums the gradient of q, k or v (0, 1, 2): it begins with that of the leaves, which are given up.

        A call of one level writes its gradients as they are returned, and finds nothing there.
        """
        x = (self.q, self.k, self.v)[which]
        dtype = torch.float32 if self.where.settings.is_causal else x.dtype
        total = torch.empty(x.shape, dtype=dtype, device=x.device)
        for part, grad in self.leaf_grads[which]:
            store_leaves(total, part, grad)
        self.leaf_grads[which].clear()
        return total

    def queries(self, level: int, dq: Tensor) -> None:
        """dq over the keys of one level, written where there are no leaves, else added; and the gradients of its mean
        keys."""
        sizes = self.where.levels[level]
        constants = self._constants(query_keys(self.where.settings, self.config))
        pieces = constants["SPLIT"] * sizes.num_tiles * sizes.num_nodes * self.where.sides[0].rows
        parts = self.means.floats(pieces)
        query_grad.query_kernel[(pieces,)](
            *self._rows(), self.packed.data, self.packed.weights, self.table, self.means.rows, parts, dq,
            *self._strides(), level, self.q.shape[1], self.q.shape[1] // self.k.shape[1], self.q.shape[2], self.scale,
            ACCUMULATE=self.where.settings.is_causal, HAS_MEANS=self.means.exist, **constants,
            num_warps=self.config.num_warps, num_stages=self.config.num_stages,
            maxnreg=query_registers(self.where.settings),
        )  # fmt: skip
        self.means.add_up(level, parts, self.mean_grads, constants["SPLIT"], constants["BLOCK_M"])

    def keys(self, level: int, dk: Tensor, dv: Tensor) -> None:
        """dk and dv of one level, as queries does: every key of its nodes, with what it got as a sample or through the
        mean."""
        sizes = self.where.levels[level]
        config = key_config(self.where.settings, self.config, max(self.q.shape[3], self.v.shape[3]))
        pieces = triton.cdiv(sizes.block_size, config.key_block_n) * sizes.num_blocks
        key_grad.key_kernel[(pieces * sizes.num_nodes * self.where.sides[1].rows,)](
            *self._rows(), self.packed.data, self.packed.weights, self.table, *self.sums, self.mean_grads,
            dk, dv, *self._strides(), level, self.k.shape[1], self.q.shape[1] // self.k.shape[1],
            self.q.shape[2], self.k.shape[2], self.scale,
            ACCUMULATE=self.where.settings.is_causal, HAS_MEANS=self.means.exist,
            **self._constants(config.key_block_n),
            num_warps=config.key_warps or config.num_warps, num_stages=config.key_stages or config.num_stages,
            maxnreg=KEY_REGISTERS,
        )  # fmt: skip

    def _floats(self, rows: int) -> list[Tensor]:
        """Rows for a dk and for a dv, in float32."""
        return [torch.empty(rows, x.shape[3], dtype=torch.float32, device=x.device) for x in (self.k, self.v)]

    def _rows(self) -> tuple[Tensor, ...]:
        return self.q, self.k, self.v, self.inputs.grad_out, self.lse2, self.deltas

    def _strides(self) -> list[int]:
        return [x.stride(dim) for x in (self.q, self.k, self.v) for dim in range(3)]

    def _constants(self, block_n: int) -> dict[str, int]:
        return tile_constants(self.q.shape[3], self.v.shape[3], self.where.settings, self.config.block_m, block_n)


def delta_constants(value_dim: int, has_grad_lse: bool) -> dict[str, int]:
    """The compile-time values of the delta kernel."""
    return {"HAS_GRAD_LSE": has_grad_lse, "DV": value_dim, "BLOCK_DV": block_dim(value_dim), "BLOCK_M": _ROWS}


def reduce_constants(head_dim: int, value_dim: int) -> dict[str, int]:
    """The compile-time values of the reduce kernel."""
    return {"BLOCK_N": _REDUCE_SLOTS, **dim_constants(head_dim, value_dim)}


def tile_constants(head_dim: int, value_dim: int, settings: Settings, block_m: int, block_n: int) -> dict[str, int]:
    """The compile-time values that the query, sample and key kernels share."""
    block_m = min(block_m, max(16, triton.next_power_of_2(settings.tile_size)))
    sizes = {"SPLIT": triton.cdiv(settings.tile_size, block_m), "BLOCK_M": block_m, "BLOCK_N": block_n}
    return {"PER_TILE": blocks_per_tile(settings), **sizes, **dim_constants(head_dim, value_dim)}


def query_registers(settings: Settings) -> int | None:
    """The limit on registers of a thread of the query kernel."""
    return KEY_REGISTERS if settings.params.pairing == "routed" else None


def query_keys(settings: Settings, config: BackwardConfig) -> int:
    """Keys per step of the query kernel: fewer for routed tiles, whose lists take registers."""
    return min(32, config.query_block_n) if settings.params.pairing == "routed" else config.query_block_n


def key_config(settings: Settings, config: BackwardConfig, head_dim: int) -> BackwardConfig:
    """The configuration of the key kernel: with "routed" pairing its blocks have fewer keys than tensor cores take."""
    if settings.params.pairing != "routed":
        return config
    warps = 2 if head_dim <= 64 else 4
    return replace(config, key_block_n=_ROUTED_KEYS_AT_ONCE, key_warps=warps, key_stages=1)
