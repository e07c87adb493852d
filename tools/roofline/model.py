"""Costs of a call on a GPU, launch by launch, and its peak of memory: `python -m tools.roofline.model`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import get_args

from hyperattn_core.params import HyperAttentionParams, Sampling
from tools.roofline.call_sizes import CallSizes
from tools.roofline.launches import LaunchCost, backward_costs, forward_costs, total_cost
from tools.roofline.peak_memory import PeakMemory, flash2_peak, hyper_peak


def main(arguments: list[str] | None = None) -> int:
    """Print the tables for a call in half precision."""
    parser = argparse.ArgumentParser(prog="python -m tools.roofline.model", description=__doc__)
    parser.add_argument("--seq-len", type=int, default=131072)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--causal", action="store_true")
    defaults = HyperAttentionParams()
    for name in ("block_size", "sample_size", "min_seq_len"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    parser.add_argument("--sampling", choices=get_args(Sampling), default=defaults.sampling)
    given = parser.parse_args(arguments)
    try:
        params = dataclasses.replace(
            defaults, block_size=given.block_size, sample_size=given.sample_size, min_seq_len=given.min_seq_len,
            sampling=given.sampling,
        )  # fmt: skip
        shape = (1, given.heads, given.heads, given.seq_len, given.seq_len)
        call = CallSizes(shape, given.head_dim, is_causal=given.causal, params=params)
        forward, backward, hyper = forward_costs(call), backward_costs(call), hyper_peak(call)
    except ValueError as error:
        parser.error(str(error))
    _print_costs("forward", forward)
    _print_costs("backward", backward)
    print(f"{'peak MB':9}{'forward':>10}{'kept':>12}{'backward':>10}")
    _print_peak("hyper", hyper)
    _print_peak("flash2", flash2_peak(call))
    return 0


def _print_costs(title: str, costs: tuple[LaunchCost, ...]) -> None:
    print(f"{title:9}{'read MB':>10}{'written MB':>12}{'GFLOP':>10}{'10^9 exp':>10}")
    for cost in (*costs, total_cost(costs)):
        print(
            f"{cost.name:9}{cost.read_bytes / 1e6:10.1f}{cost.written_bytes / 1e6:12.1f}"
            f"{cost.flops / 1e9:10.1f}{cost.exponentials / 1e9:10.3f}"
        )
    print()


def _print_peak(name: str, peak: PeakMemory) -> None:
    print(f"{name:9}{peak.forward / 1e6:10.1f}{peak.kept / 1e6:12.1f}{peak.backward / 1e6:10.1f}")


if __name__ == "__main__":
    sys.exit(main())
