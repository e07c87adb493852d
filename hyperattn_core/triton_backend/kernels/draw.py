"""Draws on the device, bit for bit those of `planning.draws`: uniform samples and Gaussian projections."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.planning import draws
from hyperattn_core.triton_backend.kernels.common import field, size

GAMMA, MIX_1, MIX_2 = (tl.constexpr(x) for x in (draws.GAMMA, draws.MIX_1, draws.MIX_2))
LEVEL_PLACES = tl.constexpr(draws.LEVEL_PLACES)
LN_2, ROOT_2, PI = tl.constexpr(draws.LN_2), tl.constexpr(draws.ROOT_2), tl.constexpr(draws.PI)
SERIES = tl.constexpr({"log": draws.LOG_SERIES, "sin": draws.SIN_SERIES})


@triton.constexpr_function
def num_terms(name):
    """Coefficients of a polynomial."""
    return len(SERIES.value[name])


@triton.constexpr_function
def coefficient(name, place):
    """A coefficient of a polynomial."""
    return SERIES.value[name][place]


@triton.jit
def shifted(x, BITS: tl.constexpr):
    """x >> BITS of a number without a sign."""
    return (x >> BITS) & ((1 << (64 - BITS)) - 1)


@triton.jit
def uniform(key, place):
    """The number of a key at some places (int64), float64 in [0, 1): as `draws` makes it."""
    z = (place + 1) * GAMMA + key
    z = (z ^ shifted(z, 30)) * MIX_1
    z = (z ^ shifted(z, 27)) * MIX_2
    return shifted(z ^ shifted(z, 31), 11).to(tl.float64) * (2.0**-53)


@triton.jit
def series(x, NAME: tl.constexpr):
    """A polynomial in float64; its coefficients begin with that of the highest power."""
    total = tl.full(x.shape, coefficient(NAME, 0), tl.float64)
    for i in tl.static_range(1, num_terms(NAME)):
        total = total * x + coefficient(NAME, i)
    return total


@triton.jit
def log(x):
    """The natural logarithm as `draws` makes it; no product and sum may become one instruction."""
    bits = x.to(tl.int64, bitcast=True)
    mantissa = ((bits & ((1 << 52) - 1)) | (1023 << 52)).to(tl.float64, bitcast=True)
    exponent = ((bits >> 52) - 1023).to(tl.float64)
    ratio = (mantissa - ROOT_2) / (mantissa + ROOT_2)
    return (exponent + 0.5) * LN_2 + ratio * series(ratio * ratio, "log")


@triton.jit
def cos_of_turn(x):
    """cos(2 pi x) likewise."""
    angle = (x - 0.5) * PI
    sine = angle * series(angle * angle, "sin")
    return sine * sine * 2.0 - 1.0


@triton.jit(do_not_specialize=["key", "key_rows"])
def uniform_kernel(index, table, key, key_rows, STRATIFIED: tl.constexpr, BLOCK: tl.constexpr):
    """Uniform draws of indices into the sorted keys of all nodes, (row, node, sample) of one level after another."""
    level = tl.program_id(1)
    count, node_len = size(table, level, "num_samples"), field(table, level, "node_len")
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    low = tl.zeros_like(at)
    high = low + node_len
    if STRATIFIED:
        slot = at % tl.maximum(count, 1)
        low = slot * node_len // tl.maximum(count, 1)
        high = (slot + 1) * node_len // tl.maximum(count, 1)
    drawn = uniform(key, level.to(tl.int64) * LEVEL_PLACES + at)
    found = low + (drawn * (high - low).to(tl.float64)).to(tl.int64)
    inside = at < field(table, level, "num_nodes") * count * key_rows
    tl.store(index + field(table, level, "samples_drawn") + at, found.to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["key"])
def projection_kernel(
    split, key, D: tl.constexpr, PROJECTIONS: tl.constexpr, BLOCK_D: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Gaussian directions, rounded to float32, as a sum of TERMS numbers in the dtype of `split`.

    `split` is (TERMS, BLOCK_D, COLUMNS). What a term leaves for the next is exact in float32.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    place = (row * PROJECTIONS + column).to(tl.int64)
    radius = uniform(key, place + D * PROJECTIONS) + 2.0**-53
    drawn = tl.sqrt(tl.maximum(log(radius) * -2.0, 0.0)) * cos_of_turn(uniform(key, place))
    left = tl.where((row < D) & (column < PROJECTIONS), drawn.to(tl.float32), 0.0)
    for term in tl.static_range(TERMS):
        part = left.to(split.dtype.element_ty)
        tl.store(split + (term * BLOCK_D + row) * COLUMNS + column, part)
        left -= part.to(tl.float32)
