"""Predicted times of the launches of a call: `python -m tools.roofline.times` compiles the kernels and prints them.

A launch takes the longest of what its bytes, its matrix products and its instructions need on a card. Bytes and
products are those of `launches`. Instructions are counted in the compiled code: those of the main loop once for each of
its rounds, all others once, by every warp of every program. Nothing of it was measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import torch
import triton

from hyperattn_core.params import HyperAttentionParams, Sampling
from hyperattn_core.triton_backend.backward import key_config, tile_constants
from hyperattn_core.triton_backend.geometry import SORT_TILE, TILES_PER_PART, LevelGeometry
from hyperattn_core.triton_backend.plan import HASH_TILES, SCAN_TILES
from hyperattn_core.triton_backend.sampling import DESIGN_TILES, NORM_TILES, mean_constants, mean_grad_constants
from hyperattn_core.triton_backend.support import interpreted
from hyperattn_core.triton_backend.tuning.configs import default_backward_config, default_config
from tools.kernels.builds import builds
from tools.kernels.instructions import disassembly, largest_loop, length, loop_of
from tools.kernels.table import compile_kernel
from tools.roofline.call_sizes import CallSizes
from tools.roofline.launches import LaunchCost, backward_costs, forward_costs

_DTYPE = torch.bfloat16
_SLOTS = 4
#: The share of the issue slots that such kernels fill.
_ISSUED = 0.78
#: Between two launches of a stream.
_LAUNCH_S = 1.5e-6
_MERGE_ROWS = _DELTA_ROWS = 64
#: Kernels whose main loop is that of the products; of the others it is the longest, with the loops within it.
_BY_STEPS = ("attend", "queries", "keys", "samples")


@dataclass(frozen=True)
class Card:
    """A GPU: its rates as they are reached, and those of FlashAttention-2 on it as published, d = 64.

    Attributes:
        arch: 80 or 90.
        multiprocessors, hertz: of the card under load.
        flops_per_s: dense matrix products in half precision.
        bytes_per_s: of the memory.
        flash_flops_per_s: without and with a causal mask, forward and backward, at long lengths.
        leaf_flops_per_s: forward under a causal mask, by length.
    """

    name: str
    arch: int
    multiprocessors: int
    hertz: float
    flops_per_s: float
    bytes_per_s: float
    flash_flops_per_s: dict[bool, tuple[float, float]]
    leaf_flops_per_s: dict[int, float]


CARDS = (
    Card(
        "A100", 80, 108, 1.41e9, 312e12, 1.35e12, {False: (192e12, 170e12), True: (171e12, 171e12)},
        {1024: 98e12, 2048: 121e12, 4096: 140e12},
    ),
    Card(
        "H100", 90, 132, 1.70e9, 800e12, 2.8e12, {False: (324e12, 291e12), True: (299e12, 278e12)},
        {1024: 217e12, 2048: 257e12, 4096: 289e12},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One launch: how long each bound says that it takes, in seconds."""

    name: str
    memory_s: float
    products_s: float
    issue_s: float

    @property
    def seconds(self) -> float:
        """The longest of them, and the launch itself."""
        return max(self.memory_s, self.products_s, self.issue_s) + _LAUNCH_S


class Code(NamedTuple):
    """Instructions of a kernel outside and inside of its main loop, and the warps of a program."""

    outside: int
    inside: int
    num_warps: int


def predicted(call: CallSizes, card: Card) -> tuple[tuple[Launch, ...], tuple[Launch, ...]]:
    """The launches of a forward and of a backward pass, in order; errors are those of forward_costs."""
    call = replace(call, tile_size=default_config(card.arch, _DTYPE, call.head_dim).tile_size)
    compiled = _compiled(card.arch, call)
    rounds = {name: list(found) for name, found in _rounds(call, card.arch)}

    def launch(cost: LaunchCost, leaf_factor: float) -> Launch:
        memory_s, products_s, issue_s = cost.bytes / card.bytes_per_s, cost.flops / card.flops_per_s, 0.0
        if cost.name == "leaves":
            products_s = cost.flops / (leaf_factor * _leaf_rate(call, card))
        elif cost.name in compiled:
            code = compiled[cost.name]
            issued = sum(programs * (code.outside + code.inside * times) for programs, times in rounds[cost.name])
            issue_s = issued * code.num_warps / (_SLOTS * card.multiprocessors * card.hertz * _ISSUED)
        return Launch(cost.name, memory_s, products_s, issue_s)

    # A short leaf loses as much of the rate in the backward pass.
    forward_rate, backward_rate = card.flash_flops_per_s[True]
    return (
        tuple(launch(cost, 1.0) for cost in forward_costs(call)),
        tuple(launch(cost, backward_rate / forward_rate) for cost in backward_costs(call)),
    )


def flash_seconds(call: CallSizes, card: Card) -> tuple[float, float]:
    """FlashAttention-2's forward and backward pass at its published rates."""
    batch, heads, _, num_queries, num_keys = call.shape
    flops = 2.0 * batch * heads * num_queries * num_keys * sum(call.dims) / (2 if call.is_causal else 1)
    forward, backward = card.flash_flops_per_s[call.is_causal]
    return flops / forward, 2.5 * flops / backward


def _leaf_rate(call: CallSizes, card: Card) -> float:
    leaf = call.params.min_seq_len
    nearest = min(card.leaf_flops_per_s, key=lambda length: abs(length - leaf))
    return card.leaf_flops_per_s[nearest]


def _compiled(arch: int, call: CallSizes) -> dict[str, Code]:
    """The kernels as this call launches them, by name."""
    mask, found = "causal" if call.is_causal else "non-causal", {}
    for build in builds(arch, _DTYPE, call.head_dim):
        words = build.label.split()
        other = {"causal", "non-causal"} - {mask}
        if "routed" in words or (build.name == "pair" and "rank" in words):
            continue
        if build.name == "pair" or not other & set(words):
            text = disassembly(compile_kernel(build, arch).asm["cubin"])
            inside = loop_of(text).total() if build.name in _BY_STEPS else largest_loop(text)
            found[build.name] = Code(length(text) - inside, inside, build.num_warps)
    return found


def _rounds(call: CallSizes, arch: int) -> Iterator[tuple[str, Iterator[tuple[float, float]]]]:
    """For each kernel: programs, and rounds of the main loop in each, level by level."""
    where = call.geometry
    queries, keys = where.sides
    rows, group = queries.rows + keys.rows, queries.rows // keys.rows
    tiles, key_tiles = queries.rows * queries.num_tiles + keys.rows * keys.num_tiles, keys.rows * keys.num_tiles

    def levels(count: Callable[[LevelGeometry], tuple[float, float]]) -> Iterator[tuple[float, float]]:
        return (count(level) for level in where.levels)

    hashed = queries.rows * queries.num_tiles if where.draws_probed else tiles
    yield "hash", iter([(hashed / HASH_TILES, HASH_TILES)])
    held = (call.level_queries + call.level_keys) / (call.queries + call.keys)
    yield "scatter", iter([(tiles, held)])
    for name in ("probe", "score"):
        yield name, iter([(key_tiles, where.class_tiles / key_tiles)])
    yield "norm", levels(lambda x: (queries.rows * x.num_nodes, -(-x.probe_tiles // NORM_TILES)))
    yield "design", levels(lambda x: (keys.rows * x.num_nodes, -(-x.probe_tiles // DESIGN_TILES)))
    for name in ("sum", "draw"):
        yield name, levels(lambda x: (keys.rows * x.num_nodes * x.draw_tiles, 1))
    groups = where.num_ranks // 16
    yield "scan", levels(lambda x: (rows * x.num_nodes * groups, -(-x.node_len // (SORT_TILE * SCAN_TILES))))
    nodes = queries.rows * sum(level.num_nodes for level in where.levels)
    blocks = sum(level.num_blocks * level.num_nodes for level in where.levels)
    yield "pair", iter([(where.pair_programs, keys.rows * blocks / (where.pair_programs - nodes))])

    def used(level: LevelGeometry) -> float:
        """Tiles of all nodes: one a run of queries that meet one block is filled by half."""
        runs = min(level.num_blocks, where.num_ranks) * level.num_nodes
        return queries.rows * (sum(level.query_counts) / call.tile_size + runs / 2)

    def steps(level: LevelGeometry, block_n: int) -> int:
        return -(-level.block_size // block_n) + -(-level.num_samples // block_n)

    attend = default_config(arch, _DTYPE, call.head_dim)
    config = default_backward_config(arch, _DTYPE, call.head_dim)
    yield "attend", levels(lambda x: (used(x), steps(x, attend.block_n)))
    yield "merge", iter([(queries.rows * queries.length / _MERGE_ROWS, len(where.levels))])
    yield "delta", iter([(queries.rows * queries.length / _DELTA_ROWS, 0)])
    split = tile_constants(*call.dims, where.settings, config.block_m, config.key_block_n)["SPLIT"]
    of_keys = key_config(where.settings, config, call.head_dim)
    yield "queries", levels(lambda x: (used(x) * split, steps(x, config.query_block_n)))

    def sample_programs(level: LevelGeometry) -> tuple[float, float]:
        parts = queries.rows * level.num_nodes * -(-level.num_tiles // TILES_PER_PART)
        return parts * -(-level.num_samples // config.key_block_n), split * used(level) / parts

    def key_programs(level: LevelGeometry) -> tuple[float, float]:
        blocks = keys.rows * level.num_nodes * level.num_blocks
        return blocks * -(-level.block_size // of_keys.key_block_n), split * used(level) / blocks

    yield "tiles", iter([(key_tiles, 0)])
    means, spread = mean_constants(*call.dims), mean_grad_constants(*call.dims, split, config.block_m)

    def mean_programs(level: LevelGeometry) -> tuple[float, float]:
        return keys.rows * level.num_nodes, (call.node_tiles(level) + level.num_samples) / means["AT_ONCE"]

    yield "means", levels(mean_programs)
    yield "spread", levels(lambda x: (keys.rows * x.num_nodes, group * split * x.num_tiles / spread["AT_ONCE"]))
    yield "samples", levels(sample_programs)
    yield "keys", levels(key_programs)
    parts = [-(-level.num_tiles // TILES_PER_PART) for level in where.levels]
    yield (
        "reduce",
        iter(
            [
                (keys.rows * x.num_nodes * -(-x.num_samples // 16), group * n)
                for x, n in zip(where.levels, parts, strict=True)
            ]
        ),
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the tables for 12 heads of 64."""
    parser = argparse.ArgumentParser(prog="python -m tools.roofline.times", description=__doc__)
    parser.add_argument("--seq-len", type=int, default=131072)
    parser.add_argument("--min-seq-len", type=int, default=HyperAttentionParams().min_seq_len)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--sampling", default=HyperAttentionParams().sampling, choices=get_args(Sampling))
    given = parser.parse_args(arguments)
    if interpreted():
        # The decorated functions of this process are the interpreter's.
        env = {**os.environ, "TRITON_INTERPRET": "0"}
        words = sys.argv[1:] if arguments is None else arguments
        return subprocess.run([sys.executable, "-m", __spec__.name, *words], env=env, check=False).returncode
    params = HyperAttentionParams(min_seq_len=given.min_seq_len, sampling=given.sampling)
    call = CallSizes((1, 12, 12, given.seq_len, given.seq_len), 64, is_causal=given.causal, params=params)
    print(f"Triton {triton.__version__}; predicted ms, by the bound that is longest; nothing was measured")
    for card in CARDS:
        passes, flash = predicted(call, card), flash_seconds(call, card)
        for title, launches, exact_s in zip(("forward", "backward"), passes, flash, strict=True):
            print(f"\n{card.name} {title:12}{'memory':>9}{'products':>9}{'issue':>9}{'predicted':>10}")
            for launch in launches:
                columns = (launch.memory_s, launch.products_s, launch.issue_s, launch.seconds)
                print(
                    f"  {launch.name:15}"
                    + "".join(f"{1e3 * x:9.3f}" for x in columns[:3])
                    + f"{1e3 * columns[3]:10.3f}"
                )
            total = sum(launch.seconds for launch in launches)
            print(
                f"  {'all':15}{'':27}{1e3 * total:10.3f}   FlashAttention-2 {1e3 * exact_s:.1f}: {exact_s / total:.1f}x"
            )
        hyper_s = sum(launch.seconds for launches in passes for launch in launches)
        print(
            f"{card.name} both passes: {1e3 * hyper_s:.2f} against {1e3 * sum(flash):.1f}: {sum(flash) / hyper_s:.1f}x"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
