"""Baselines at equal work: each is what a dense mask makes of exact attention, and meets as many keys as hyper does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperattn_core import HyperAttentionParams, make_plan
from hyperattn_core.oracle import weight_matrix
from hyperbench.flops import exact_flops, hyper_keys
from hyperbench.measure.methods import method as registry
from hyperbench.measure.methods.budget import nearest_size, ramp_sum
from hyperbench.measure.methods.local import block_only, window_sinks
from hyperbench.measure.methods.top_k import top_k
from hyperbench.measure.methods.trivial import uniform
from hyperbench.measure.methods.windows.attention import WindowAttention
from hyperbench.measure.methods.windows.band import Band
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import Pass
from tests.helpers.brute_force import attention, drawn
from tests.helpers.commands import QUICK, process
from tests.helpers.core_inputs import LAYOUTS, laid_out
from tests.helpers.ledger import Ledger
from tests.helpers.made_records import a_point
from tests.helpers.measured_group import Measured, all_of, item

LOCAL = "hyperbench.measure.methods.local"
#: Small enough that HyperAttention of short inputs is an estimate.
SIZES = {"block_size": 8, "sample_size": 6, "min_seq_len": 16}
BASELINES = {
    "window_sinks": f"{LOCAL}.window_sinks",
    "block_only": f"{LOCAL}.block_only",
    "uniform": "hyperbench.measure.methods.trivial.uniform",
    "top_k": "hyperbench.measure.methods.top_k.top_k",
}
MATCHED = {name: {"match": "hyper", **SIZES} if name != "top_k" else {"num_keys": None, **SIZES} for name in BASELINES}
MATCHED["block_only"] |= {"num_projections": 3, "pairing": "bucket", "seed": 0}
MATCHED["uniform"] |= {"seed": 0}
MATCHED["window_sinks"] |= {"window": None, "sinks": 2}
DTYPES = [("float64", 1e-10), ("float32", 1e-5), ("bfloat16", 3e-2), ("float16", 4e-3)]
both_masks = pytest.mark.parametrize("is_causal", [False, True])


def met_by_band(seq_len: int, window: int, sinks: int, is_causal: bool) -> Tensor:
    """True where query t (rows) meets key j: the definition, position by position."""
    before = window - 1 if is_causal else window // 2
    after = 0 if is_causal else window - 1 - before
    t, j = torch.arange(seq_len).unsqueeze(1), torch.arange(seq_len)
    met = ((j >= t - before) & (j <= t + after)) | (j < sinks)
    return met & (j <= t) if is_causal else met


def masked(q: Tensor, k: Tensor, v: Tensor, met: Tensor) -> Tensor:
    """Dense attention of q (B, H, N, D) over the keys that are met."""
    group = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    logits = (q @ keys.transpose(2, 3) / math.sqrt(q.shape[3])).masked_fill(~met, -math.inf)
    return logits.softmax(3) @ values


def with_gradients(out: Tensor, leaves: list[Tensor], grad_output: Tensor) -> list[Tensor]:
    """The output and the gradients."""
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_output)]


def leaves_of(*inputs: Tensor) -> list[Tensor]:
    """Copies that ask for a gradient."""
    return [x.detach().clone().requires_grad_() for x in inputs]


def at(seq_len: int, method: str, is_causal: bool, **hyper: Any) -> Any:
    """A point of a baseline."""
    shape = {"heads": 2, "kv_heads": 1, "seq_len": seq_len, "head_dim": 8, "input_params": {}}
    return a_point(
        **shape, method=method, target=BASELINES[method], is_causal=is_causal, hyper={**MATCHED[method], **hyper}
    )


def pairs_of(method: str, seq_len: int, is_causal: bool, **hyper: Any) -> float:
    """Keys per query at a point by the operations that the method says it executes."""
    point = at(seq_len, method, is_causal, **hyper)
    flops = registry.find(BASELINES[method]).executed_flops(point, Pass.FORWARD, False)
    assert flops is not None
    return flops / (4 * point.batch * point.heads * point.head_dim * seq_len)


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 70), st.booleans())
def test_a_band_has_the_pairs_of_its_definition(seq_len: int, window: int, sinks: int, is_causal: bool) -> None:
    met, band = met_by_band(seq_len, window, sinks, is_causal), Band.of(window, sinks, seq_len, is_causal=is_causal)
    assert band.pairs == int(met.sum())
    whole = torch.ones_like(met).tril() if is_causal else torch.ones_like(met)
    assert band.is_everything == torch.equal(met, whole)


@pytest.mark.parametrize("by_kernels", [False, True])
@both_masks
@pytest.mark.parametrize(
    ("seq_len", "window", "sinks"),
    [(1, 1, 0), (5, 1, 0), (37, 1, 3), (60, 2, 1), (61, 5, 0), (97, 6, 3), (97, 7, 20), (300, 70, 4), (301, 41, 0),
     (331, 200, 5), (50, 49, 4), (40, 90, 2)],
)  # fmt: skip
def test_a_window_is_what_its_mask_makes_of_exact_attention(
    seq_len: int, window: int, sinks: int, is_causal: bool, by_kernels: bool
) -> None:
    q, k, v, g = drawn(2, 4, 2, seq_len, 8)
    leaves, same = leaves_of(q, k, v), leaves_of(q, k, v)
    band = Band.of(window, sinks, seq_len, is_causal=is_causal)
    found = with_gradients(WindowAttention.apply(*leaves, band, by_kernels), leaves, g)
    met = met_by_band(seq_len, window, sinks, is_causal)
    expected = with_gradients(masked(same[0], same[1], same[2], met), same, g)
    for x, y in zip(found, expected, strict=True):
        assert torch.allclose(x, y, rtol=1e-9, atol=1e-11)


@both_masks
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_a_window_in_every_dtype_and_with_grouped_heads(dtype: str, tolerance: float, is_causal: bool) -> None:
    seq_len, window, sinks = 250, 40, 4
    wide = drawn(2, 4, 2, seq_len, 16)
    inputs = [x.to(getattr(torch, dtype)) for x in wide]
    leaves, same = leaves_of(*inputs[:3]), leaves_of(*(x.double() for x in inputs[:3]))
    out = window_sinks(*leaves, is_causal=is_causal, window=window, sinks=sinks)
    assert out.dtype == inputs[0].dtype
    found = with_gradients(out, leaves, inputs[3])
    met = met_by_band(seq_len, window, sinks, is_causal)
    expected = with_gradients(masked(same[0], same[1], same[2], met), same, inputs[3].double())
    for x, y in zip(found, expected, strict=True):
        assert float((x.double() - y).norm()) <= tolerance * float(y.norm())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_window_of_tensors_with_other_strides(layout: str) -> None:
    q, k, v, _ = drawn(2, 2, 2, 90, 8)
    q, k, v = (laid_out(x, layout) for x in (q, k, v))
    out = window_sinks(q, k, v, is_causal=True, window=9)
    assert torch.allclose(out, masked(q, k, v, met_by_band(90, 9, 4, True)), rtol=1e-9)


@both_masks
def test_a_window_of_all_keys_is_exact_attention(is_causal: bool) -> None:
    q, k, v, _ = drawn(1, 2, 1, 70, 8)
    window = 70 if is_causal else 139
    for size in (window, 2 * window):
        out = window_sinks(q, k, v, is_causal=is_causal, window=size, sinks=0)
        assert torch.allclose(out, attention(q, k, v, is_causal), rtol=1e-10)
    out = window_sinks(q, k, v, is_causal=is_causal, window=window - 2, sinks=0)
    assert not torch.allclose(out, attention(q, k, v, is_causal), rtol=1e-4)


@both_masks
@pytest.mark.parametrize("pairing", ["bucket", "rank"])
def test_blocks_without_a_sample_are_what_their_mask_makes_of_exact_attention(pairing: str, is_causal: bool) -> None:
    q, k, v, g = drawn(1, 4, 2, 75, 8)
    hyper = {**SIZES, "num_projections": 3, "pairing": pairing}
    plan = make_plan(q, k, HyperAttentionParams(**{**hyper, "sample_size": 1}), 5, is_causal=is_causal)  # type: ignore[arg-type]
    # What is sampled weighs as many keys as its node has, what is in the block, or the leaf, one.
    met = weight_matrix(plan) == 1
    leaves, same = leaves_of(q, k, v), leaves_of(q, k, v)
    found = with_gradients(block_only(*leaves, is_causal=is_causal, seed=5, **hyper), leaves, g)
    expected = with_gradients(masked(same[0], same[1], same[2], met), same, g)
    for x, y in zip(found, expected, strict=True):
        assert torch.allclose(x, y, rtol=1e-9, atol=1e-11)
    hyper["block_size"] = 75
    out = block_only(q, k, v, is_causal=is_causal, **hyper)
    assert torch.allclose(out, attention(q, k, v, is_causal), rtol=1e-9)


@both_masks
def test_top_k_meets_the_keys_that_weigh_most(is_causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperbench.measure.methods.top_k._MAX_SCORES", 4 * 45 * 8)
    q, k, v, g = drawn(1, 4, 2, 45, 8)
    logits = (q @ k.repeat_interleave(2, dim=1).transpose(2, 3)).masked_fill(
        torch.ones(45, 45).triu(1).bool() & torch.tensor(is_causal), -math.inf
    )
    met = (logits >= logits.sort(3, descending=True).values[..., 6:7]) & logits.isfinite()
    leaves, same = leaves_of(q, k, v), leaves_of(q, k, v)
    found = with_gradients(top_k(*leaves, is_causal=is_causal, num_keys=7), leaves, g)
    expected = with_gradients(masked(same[0], same[1], same[2], met), same, g)
    for x, y in zip(found, expected, strict=True):
        assert torch.allclose(x, y, rtol=1e-9, atol=1e-11)
    for num_keys in (45, 400):
        out = top_k(q, k, v, is_causal=is_causal, num_keys=num_keys)
        assert torch.allclose(out, attention(q, k, v, is_causal), rtol=1e-9)


@both_masks
def test_uniform_meets_the_keys_that_were_drawn(is_causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperbench.measure.methods.trivial._MASKED_ROWS", 16)
    q, k, v, _ = drawn(1, 1, 1, 50, 8)
    # The weight of a key is what a value of one, there alone, makes of the output.
    weights = torch.cat(
        [
            uniform(q, k, x.expand_as(v), is_causal=is_causal, sample_size=5, seed=1)[..., :1]
            for x in torch.eye(50)[:, None, None, :, None].double()
        ],
        dim=3,
    )
    met = weights[0, 0] > 0
    assert int(met[-1].sum()) == 10
    assert torch.equal(met, met[-1] & torch.ones(50, 50).tril().bool() if is_causal else met[-1].expand(50, 50))
    assert met[:, 0].all() or not is_causal
    out = uniform(q, k, v, is_causal=is_causal, sample_size=5, seed=1)
    assert torch.allclose(out, masked(q, k, v, met), rtol=1e-9)


@pytest.mark.parametrize("method", BASELINES)
def test_nothing_later_changes_what_came_before(method: str) -> None:
    function, hyper = registry.find(BASELINES[method]).function, MATCHED[method]
    seq_len = 230
    inputs = tuple(x.float() for x in drawn(1, 2, 1, seq_len, 16)[:3])
    before = function(*inputs, is_causal=True, **hyper)
    for t in (1, 17, 100, 129, 228):
        later = [torch.cat([x[:, :, : t + 1], -50 * x[:, :, t + 1 :].flip(2)], dim=2) for x in inputs]
        after = function(*later, is_causal=True, **hyper)
        assert torch.equal(before[:, :, : t + 1], after[:, :, : t + 1])
        assert not torch.equal(before, after)


@both_masks
@pytest.mark.parametrize(
    ("seq_len", "b", "m", "leaf"), [(64, 8, 8, 16), (100, 16, 4, 32), (131, 8, 24, 16), (50, 16, 8, 64)]
)
def test_hyper_has_the_keys_that_are_counted(seq_len: int, b: int, m: int, leaf: int, is_causal: bool) -> None:
    generator = torch.Generator().manual_seed(seq_len)
    params = HyperAttentionParams(block_size=b, sample_size=m, num_projections=3, min_seq_len=leaf)
    met = []
    for seed in range(4):
        q, k = (torch.randn(1, 1, seq_len, 4, generator=generator) for _ in "qk")
        plan = make_plan(q, k, params, seed, is_causal=is_causal)
        met.append(float((weight_matrix(plan) > 0).sum()) / seq_len)
    # Blocks are not met in proportion to their keys: which queries a draw sends to a short last block is its own.
    assert sum(met) / len(met) == pytest.approx(hyper_keys(seq_len, b, m, leaf, is_causal=is_causal), abs=1.0)


@both_masks
@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("seq_len", [128, 1024, 5000, 131_072])
def test_a_matched_baseline_meets_as_many_keys_as_hyper(method: str, seq_len: int, is_causal: bool) -> None:
    sizes = {"block_size": 256, "sample_size": 128, "min_seq_len": 512}
    wanted = hyper_keys(seq_len, 256, 128, 512, is_causal=is_causal)
    if method == "top_k":
        point = at(seq_len, method, is_causal, **sizes)
        count = int(top_k.note(point).split("best ")[1].split(" ")[0])
        keys = ramp_sum(seq_len, count) / seq_len if is_causal else count
        assert top_k.executed_flops(point, Pass.FORWARD) == exact_flops(point, Pass.FORWARD)
    else:
        keys = pairs_of(method, seq_len, is_causal, **sizes)
    assert keys == pytest.approx(wanted, abs=1.0)
    note = registry.find(BASELINES[method]).note(at(seq_len, method, is_causal, **sizes))
    assert note.endswith(f"{keys:,.1f} keys a query, hyper {wanted:,.1f}")


def test_the_pairs_that_are_told_are_those_that_meet() -> None:
    for is_causal in (False, True):
        seq_len, window = 77, Band.of(11, 3, 77, is_causal=is_causal)
        assert pairs_of("window_sinks", seq_len, is_causal, window=11, sinks=3, match=None) == window.keys
        assert pairs_of("block_only", 64, is_causal, match=None) == hyper_keys(64, 8, 0, 16, is_causal=is_causal)
    assert pairs_of("uniform", 64, False, match=None) == 12
    assert pairs_of("uniform", 64, True, match=None) == 6.5


@settings(max_examples=40)
@given(st.integers(0, 300), st.integers(0, 300))
def test_a_ramp_is_the_sum_that_it_says(length: int, most: int) -> None:
    assert ramp_sum(length, most) == sum(min(i, most) for i in range(1, length + 1))


@settings(max_examples=40)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.floats(0, 12))
def test_the_nearest_size_is_the_nearest(values: list[float], wanted: float) -> None:
    ordered = sorted(values)
    size = nearest_size(lambda i: ordered[i - 1], wanted, len(ordered))
    assert abs(ordered[size - 1] - wanted) == min(abs(x - wanted) for x in ordered)


@both_masks
@pytest.mark.parametrize("method", ["window_sinks", "uniform", "block_only"])
def test_memory_grows_with_the_length_alone(method: str, is_causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperbench.measure.methods.windows.slices._MAX_SCORES", 2**16)
    function = registry.find(BASELINES[method]).function
    sizes = {"block_size": 64, "sample_size": 64, "min_seq_len": 128, "match": None if is_causal else "hyper"}
    own = {"window": 128 if is_causal else None} if method == "window_sinks" else {}
    peaks = []
    for seq_len in (2048, 4096):
        leaves = leaves_of(*(x.float() for x in drawn(1, 1, 1, seq_len, 8)[:3]))
        with Ledger() as ledger:
            out = function(*leaves, is_causal=is_causal, **sizes, **own)
            torch.autograd.grad(out.sum(), leaves)
        peaks.append(ledger.peak_bytes)
        assert ledger.largest_numel < seq_len * 128
    assert peaks[1] < 2.2 * peaks[0]


@pytest.mark.parametrize(
    ("dtype", "is_causal"),
    [
        ("float32", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("float32", False), ("bfloat16", True), ("bfloat16", False)]
        ),
    ],
)
def test_the_gate_lets_baselines_pass(dtype: str, is_causal: bool) -> None:
    options: dict[str, Any] = {"dtype": dtype, "is_causal": is_causal, "seq_len": 48}
    found = Measured(*(item(target, hyper=MATCHED[name], **options) for name, target in BASELINES.items()))
    for name in BASELINES:
        assert found.statuses(name) == all_of("ok"), (name, found.timings(name))
        message = found.timings(name)["forward"].message
        assert "keys a query, hyper" in message


@pytest.mark.parametrize(
    ("method", "hyper", "words"),
    [
        ("window_sinks", {}, "window=None and match=None: give one of the two"),
        ("window_sinks", {"window": 8, "match": "hyper"}, "window=8 and match=hyper: give one of the two"),
        ("window_sinks", {"window": 0}, "window must be an integer of at least 1, got 0"),
        ("window_sinks", {"window": 8, "sinks": -1}, "sinks must be an integer of at least 0"),
        ("window_sinks", {"match": "hiper"}, "match must be one of hyper, got 'hiper'; did you mean 'hyper'"),
        ("uniform", {"match": "flash2"}, "match must be one of hyper, got 'flash2'"),
        ("uniform", {"match": "hyper", "block_size": 0}, "block_size must be an integer of at least 1"),
        ("block_only", {"match": 3}, "match must be one of hyper, got 3"),
        ("block_only", {"pairing": "bukket"}, "pairing must be one of .* did you mean 'bucket'"),
        ("top_k", {"num_keys": 0}, "num_keys must be an integer of at least 1"),
        ("top_k", {"num_key": 5}, "has no parameter 'num_key'; .*did you mean 'num_keys'"),
    ],
)
def test_what_a_baseline_does_not_take_is_one_line(method: str, hyper: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        registry.find(BASELINES[method]).check(hyper)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_of_all_baselines(tmp_path: Path) -> None:
    methods = ["flash2", "hyper", *BASELINES, "mean_v", "zero"]
    words = (*QUICK, f"method=[{','.join(methods)}]", "shape.seq_len=3000", "error.seeds=[0]", "input=clustered_values")
    done = process(tmp_path, "run", *words, "out=run")
    assert done.code == 0, done.err
    timings = load_run(tmp_path / "run").timings
    assert set(timings["status"]) == {"ok"}
    assert set(timings["method"]) == set(methods)
    forward = timings[timings["pass"] == "forward"].set_index(["is_causal", "method"])["executed_flops"]
    for is_causal in (False, True):
        hyper, *others = (
            float(forward[is_causal, name]) for name in ("hyper", "window_sinks", "block_only", "uniform")
        )
        # A sample in the query's own block is computed and weighs nothing.
        assert all(0.85 * hyper <= other <= 1.01 * hyper for other in others)
