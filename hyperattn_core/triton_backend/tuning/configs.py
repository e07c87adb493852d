"""Configurations of the kernels: a small set per architecture, the first of which is the default."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

#: Compute capabilities, ten times, that configurations are made for; another GPU takes the nearest older one's.
ARCHITECTURES = (80, 90)


@dataclass(frozen=True)
class AttendConfig:
    """Build options of the attend kernel.

    Attributes:
        tile_size: queries per program, the plan's tile.
        block_n: keys per step of the online softmax.
        num_warps: warps per program.
        num_stages: stages of the software pipeline that loads keys and values; the load of the indices that say which
            takes two of them, so that 5 hold two steps of keys and values.
        max_registers: registers per thread that the compiler may use, None for no limit.
    """

    tile_size: int
    block_n: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def __str__(self) -> str:
        limit = f", {self.max_registers} registers" if self.max_registers else ""
        return f"{self.tile_size}x{self.block_n}, {self.num_warps} warps, {self.num_stages} stages{limit}"


@dataclass(frozen=True)
class BackwardConfig:
    """Build options of the backward kernels.

    Attributes:
        block_m: most queries per step or program; a tile of the plan that is larger is taken in pieces.
        query_block_n: keys per step where a program owns queries.
        key_block_n: keys per program where a program owns keys.
        num_warps: warps per program.
        num_stages: stages of the software pipeline.
        key_warps: warps of a program that owns keys, where they are others.
        key_stages: stages of the key kernel, where they are others.
    """

    block_m: int
    query_block_n: int
    key_block_n: int
    num_warps: int
    num_stages: int
    key_warps: int | None = None
    key_stages: int | None = None

    def __str__(self) -> str:
        sizes = f"{self.block_m} queries, {self.query_block_n} and {self.key_block_n} keys"
        return f"{sizes}, {self.num_warps} warps, {self.num_stages} stages"


def candidates(arch: int, dtype: torch.dtype, head_dim: int) -> tuple[AttendConfig, ...]:
    """The configurations worth trying, the default first, which does not spill with Triton 3.6.0 and the pinned one.

    But for float32 with rows of more than 128 numbers.
    """
    if dtype == torch.float32:  # Products without tensor cores: registers decide.
        if head_dim <= 64:
            return (AttendConfig(32, 32, 4, 2), AttendConfig(64, 32, 8, 2))
        return (AttendConfig(16, 16, 8, 1),)
    if head_dim <= 64:
        return (
            AttendConfig(128, 64, 4, 3),
            AttendConfig(128, 64, 4, 5),
            AttendConfig(64, 64, 4, 3),
            AttendConfig(64, 64, 4, 5, 168 if head_dim > 32 else None),
        )
    if head_dim <= 128:
        return (
            AttendConfig(64, 32, 4, 5),
            AttendConfig(64, 32, 4, 3, 168 if arch >= 90 else None),
            AttendConfig(64, 64, 4, 3),
            AttendConfig(128, 32, 8, 3),
        )
    return (AttendConfig(64, 32, 8, 3),) if arch >= 90 else (AttendConfig(32, 32, 4, 3),)


def default_config(arch: int, dtype: torch.dtype, head_dim: int) -> AttendConfig:
    """The configuration that is taken where nothing was measured."""
    return candidates(arch, dtype, head_dim)[0]


def default_backward_config(arch: int, dtype: torch.dtype, head_dim: int) -> BackwardConfig:
    """The configuration of the backward kernels, which do not spill with Triton 3.6.0 and the pinned one."""
    if dtype == torch.float32:
        if head_dim <= 128:
            return BackwardConfig(16, 16, 16, 8 if head_dim > 64 else 4, 2)
        return BackwardConfig(16, 16, 16, 8, 1 if arch >= 90 else 2)
    if head_dim <= 64:
        # A warp takes 16 keys: with 4 for 32 keys, or registers for 64, sm_80 would do work twice, or spill.
        return BackwardConfig(64, 64, 64, 4, 3) if arch >= 90 else BackwardConfig(64, 64, 32, 4, 3, 2, 1)
    if head_dim <= 128:
        return BackwardConfig(64, 32, 32, 8, 2)
    return BackwardConfig(32, 16, 16, 8, 2) if arch >= 90 else BackwardConfig(16, 16, 16, 4, 2)


def backward_candidates(arch: int, dtype: torch.dtype, head_dim: int) -> tuple[BackwardConfig, ...]:
    """The configurations of the backward kernels worth trying, the default first; none spills, as above."""
    default = default_backward_config(arch, dtype, head_dim)
    if dtype == torch.float32 or head_dim > 128:
        return (default,)
    options = (default, *(dataclasses.replace(default, num_warps=8, num_stages=stages) for stages in (2, 3)))
    return tuple(dict.fromkeys(options))


def with_tile(config: AttendConfig, tile_size: int) -> AttendConfig:
    """The configuration for a plan that was cut into tiles of another size."""
    if tile_size == config.tile_size:
        return config
    if tile_size >= 64:
        return dataclasses.replace(config, tile_size=tile_size)
    # Fewer rows need fewer warps, no limit on what each of their threads holds, and leave room for keys of more steps.
    # Lists of blocks, which tiles of routed queries have, take registers: fewer keys at a time leave some for them.
    block_n = config.block_n if tile_size >= 16 else min(32, config.block_n)
    stages = 5 if block_n == 64 else config.num_stages
    return dataclasses.replace(
        config, tile_size=tile_size, block_n=block_n, num_warps=min(4, config.num_warps), num_stages=stages,
        max_registers=None,
    )  # fmt: skip
