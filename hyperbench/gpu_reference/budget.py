"""A budget of time: how it is written, how long the steps are likely to take, and how much of them fits. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hyperbench.flops import PASS_FACTORS, exact_pairs, hyper_pairs
from hyperbench.store.schema import Pass

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
#: Seconds of a `hyperbench run` before its first call: two processes that import torch, and kernels to be compiled.
_START_S = 18.0
_ROUND_S = 8.0
_GROUP_S = 2.5
_FIGURES_S = 8.0
_DRAW_S_PER_NUMBER = 15e-9
_POINT_S = 0.5
_CALL_S = 1e-3
_CALLS = (2.0, 18.0)
#: HyperAttention's products run at this part of the rate of exact attention, for the estimate only.
_HYPER_RATE = 0.3
_TESTS_S = 300.0
_TESTS_SHARE = 0.35
#: Tests marked slow are left to budgets of at least this.
_ALL_TESTS_FROM_S = 1200.0
_HEAD_DIM = 64
_BLOCK_SIZE = _SAMPLE_SIZE = 256
BACKWARD = ("backward", "forward_backward")
#: From what the strict protocol asks for down to one process, which no comparison can be made with.
ROUNDS = (5, 3, 1)


@dataclass(frozen=True)
class Scale:
    """The sizes of everything that is measured.

    Attributes:
        seq_lens: of the paper's figure, ascending.
        heads: of all steps but the long one, which has one.
        long_seq_len: of the point that shows linear memory.
        leaves: lengths of the causal leaves that are compared at the largest of seq_lens.
        settings: further overrides of every run.
    """

    seq_lens: tuple[int, ...]
    heads: int
    long_seq_len: int
    leaves: tuple[int, ...]
    settings: tuple[str, ...] = ()


PAPER = Scale((4096, 8192, 16384, 32768, 65536, 131072), 12, 1048576, (1024, 2048, 4096))
#: The same steps in seconds, to try the logic on any machine.
TINY = Scale(
    (64, 96), 1, 192, (16, 32),
    ("method.hyper.block_size=16", "method.hyper.sample_size=16", "method.hyper.min_seq_len=32", "error.seeds=[0]",
     "protocol.min_samples=2", "protocol.max_samples=2", "protocol.warmup_min_s=0", "protocol.warmup_max_s=0.01",
     "protocol.warmup_min_calls=1"),
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What of a scale is measured.

    Attributes:
        forward: lengths of the forward pass, ascending.
        backward: lengths of the passes with a backward, ascending; none where they are left out.
        extras: the other steps, of "long", "min_seq_len" and "stages".
        point_budget_s: budget of a point and pass in one round.
        rounds: fresh processes in which everything is measured.
    """

    forward: tuple[int, ...]
    backward: tuple[int, ...]
    extras: tuple[str, ...]
    point_budget_s: float
    rounds: int = ROUNDS[0]


def parse_budget(text: str) -> float | None:
    """Seconds of a budget such as 90s, 8m or 1h; None for no budget. Raises ValueError, one line, on anything else."""
    if not text.strip():
        return None
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([smh])", text.strip())
    seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    if seconds <= 0:
        raise ValueError(f"GPU_BUDGET={text} must be a positive number with s, m or h, such as 90s, 8m or 1h")
    return seconds


def choices(scale: Scale) -> Iterator[Choice]:
    """What may be measured, the most first: each drops what is missed least of the one before.

    First rounds go; then the backward passes, their small lengths before the large ones; then points get shorter
    budgets; then the small lengths of the forward pass go, then the other steps. The largest length is never dropped.
    """
    extras = ("long", "min_seq_len", "stages")
    full = Choice(scale.seq_lens, scale.seq_lens, extras, 5.0)
    for rounds in ROUNDS[:-1]:
        yield replace(full, rounds=rounds)
    once = replace(full, rounds=ROUNDS[-1])
    for backward in (*_suffixes(scale.seq_lens), ()):
        yield replace(once, backward=backward)
    short = replace(once, backward=(), point_budget_s=2.0)
    lengths = [forward for forward in _suffixes(scale.seq_lens) if len(forward) > 1]
    for forward in lengths:
        yield replace(short, forward=forward)
    fewest = lengths[-1] if lengths else scale.seq_lens
    for count in range(len(extras) - 1, -1, -1):
        yield replace(short, forward=fewest, extras=extras[:count])
    yield replace(short, forward=scale.seq_lens[-1:], extras=(), point_budget_s=1.0)


def choose(scale: Scale, budget_s: float | None, flops_per_s: float) -> Choice:
    """The most that fits into the budget. Raises ValueError, one line, if not even the least does."""
    if budget_s is None:
        return next(choices(scale))
    for choice in choices(scale):
        needed_s = total_s(scale, choice, budget_s, flops_per_s)
        if needed_s <= budget_s:
            return choice
    raise ValueError(f"GPU_BUDGET={budget_s:g}s is too short: the least takes about {needed_s:.0f}s")


def total_s(scale: Scale, choice: Choice, budget_s: float | None, flops_per_s: float) -> float:
    """Seconds that the tests and all steps of a choice are likely to take."""
    return tests_s(budget_s) + sum(step_s(name, scale, choice, flops_per_s) for name in step_names(choice))


def step_names(choice: Choice) -> tuple[str, ...]:
    """The steps of a choice in the order they run: what is missed most comes first."""
    return ("fig4", *choice.extras, *(("fig4-backward",) if choice.backward else ()))


def step_s(name: str, scale: Scale, choice: Choice, flops_per_s: float) -> float:
    """Seconds that one step is likely to take, its figures included."""
    lengths: Sequence[int] = {"fig4-backward": choice.backward, "long": (scale.long_seq_len,),
                              "min_seq_len": scale.seq_lens[-1:]}.get(name, choice.forward)  # fmt: skip
    heads = 1 if name == "long" else scale.heads
    exact = {"fig4": 2, "fig4-backward": 2, "min_seq_len": 1}.get(name, 0)
    hyper = len(scale.leaves) if name == "min_seq_len" else 1
    passes = BACKWARD if name == "fig4-backward" else ("forward",)
    seconds = 0.0
    for seq_len in lengths:
        for is_causal in (True,) if name == "min_seq_len" else (False, True):
            seconds += _GROUP_S + 4.0 * heads * seq_len * _HEAD_DIM * _DRAW_S_PER_NUMBER
            for pass_ in passes:
                pair_flops = 4.0 * heads * _HEAD_DIM * PASS_FACTORS[Pass(pass_)]
                exact_call_s = pair_flops * exact_pairs(seq_len, is_causal=is_causal) / flops_per_s + _CALL_S
                flops = pair_flops * hyper_pairs(
                    seq_len, _BLOCK_SIZE, _SAMPLE_SIZE, scale.leaves[0], is_causal=is_causal
                )
                hyper_call_s = flops / (_HYPER_RATE * flops_per_s) + _CALL_S
                seconds += exact * _point_s(exact_call_s, choice) + hyper * _point_s(hyper_call_s, choice)
    once_s = _START_S + (0.0 if name == "long" else _FIGURES_S)
    return once_s + seconds + (choice.rounds - 1) * (_ROUND_S + seconds)


def tests_s(budget_s: float | None) -> float:
    """Seconds that the tests are likely to take: with a budget, never more than their limit."""
    limit_s = tests_limit_s(budget_s)
    return _TESTS_S if limit_s is None else min(_TESTS_S, limit_s)


def tests_limit_s(budget_s: float | None) -> float | None:
    """Seconds after which the tests are stopped, None for no limit."""
    return None if budget_s is None else _TESTS_SHARE * budget_s


def wants_slow_tests(budget_s: float | None) -> bool:
    """Whether the tests marked slow run too."""
    return budget_s is None or budget_s >= _ALL_TESTS_FROM_S


def _point_s(call_s: float, choice: Choice) -> float:
    low, high = _CALLS
    return _POINT_S + call_s * (2.0 + min(high, max(low, choice.point_budget_s / call_s)))


def _suffixes(lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [lengths[start:] for start in range(len(lengths))]
