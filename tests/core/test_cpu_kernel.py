"""The path through PyTorch's fused kernel for CPUs: its batches, its scratch tensors, and the dtype it computes in."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hyperattn_core import HyperAttentionParams, hyper_attention, make_plan, release_scratch
from hyperattn_core.exact_aten import cpu_kernel_dtype
from hyperattn_core.torch_backend import batches as batches_module
from hyperattn_core.torch_backend import scratch as scratch_module
from hyperattn_core.torch_backend.batches import LevelBatches
from tests.core.test_causal import changed_after, unchanged_up_to
from tests.helpers.core_inputs import bits, doubled, qkv, relative_error, with_gradients

PARAMS = HyperAttentionParams(block_size=64, sample_size=32, min_seq_len=128)


@pytest.fixture
def no_scratch() -> Iterator[None]:
    """Nothing is kept from earlier calls, and nothing is left for later ones."""
    release_scratch()
    yield
    release_scratch()


@pytest.fixture
def with_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU says that it multiplies tiles of bfloat16 and float16."""
    for name in ("_is_amx_tile_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True)
    cpu_kernel_dtype.cache_clear()
    yield
    cpu_kernel_dtype.cache_clear()


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
@pytest.mark.parametrize(("block_size", "leaf"), [(16, 50), (256, 400), (500, 600)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_every_query_is_in_one_part_with_all_keys_of_its_block(
    is_causal: bool, block_size: int, leaf: int, heads: int, kv_heads: int
) -> None:
    q, k, _ = qkv(queries=1300, batch=2, heads=heads, kv_heads=kv_heads)
    params = HyperAttentionParams(block_size=block_size, sample_size=20, min_seq_len=leaf)
    for level in make_plan(q, k, params, is_causal=is_causal).levels:
        expected = {}
        for b, h, node in torch.cartesian_prod(*(torch.arange(n) for n in level.query_order.shape[:3])).tolist():
            kv_head = h // (heads // kv_heads)
            tiles = zip(*(x[b, h, node].tolist() for x in (level.tile_first, level.tile_count)), strict=True)
            for (first, count), (block,) in zip(tiles, level.tile_block[b, h, node].tolist(), strict=True):
                start = block * level.block_size
                keys = (
                    level.key_order[b, kv_head, node, start : start + level.block_size]
                    + (b * kv_heads + kv_head) * 1300
                )
                for query in level.query_order[b, h, node, first : first + count].tolist():
                    expected[(b * heads + h) * 1300 + query] = set(keys.tolist())
        found = {}
        for batch in LevelBatches(level, 1300, 1300, torch.float64, is_causal=is_causal):
            assert (batch.targets == batch.queries)[batch.targets < q[..., 0].numel()].all()
            for targets, keys, weights in zip(batch.targets, batch.keys, batch.log_weights.flatten(1), strict=True):
                in_block = weights[: level.block_size] == 0
                met = set(keys[: level.block_size][in_block].tolist())
                for target in targets[targets < q[..., 0].numel()].tolist():
                    assert target not in found
                    found[target] = met
        assert found == expected


@pytest.mark.parametrize("size", [1, 200, 4096])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_size_of_a_batch_changes_nothing(is_causal: bool, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = qkv(queries=700, batch=2, heads=4, kv_heads=2, dtype=torch.float32)
    call = {"params": PARAMS, "is_causal": is_causal, "enable_gqa": True}
    whole = with_gradients(lambda *x: hyper_attention(*x, **call), inputs)
    monkeypatch.setattr(batches_module, "_KEYS_PER_THREAD", size)
    parts = with_gradients(lambda *x: hyper_attention(*x, **call), inputs)
    assert torch.equal(bits(parts[0]), bits(whole[0]))
    for one, other in zip(parts, whole, strict=True):
        assert relative_error(one, other) < 1e-6


@pytest.mark.usefixtures("no_scratch")
class TestScratch:
    """Scratch tensors between calls."""

    def kept(self) -> dict[str, Tensor]:
        """The tensors that are kept, by name."""
        return {name: x for buffers in scratch_module._kept.values() for name, x in buffers._flat.items()}

    def attend(self, seed: int = 0) -> Tensor:
        """One causal call."""
        out = hyper_attention(*qkv(queries=600, dtype=torch.float32, seed=seed), params=PARAMS, is_causal=True)
        assert isinstance(out, Tensor)
        return out

    def test_the_next_call_uses_them_again(self) -> None:
        self.attend()
        before = {name: x.data_ptr() for name, x in self.kept().items()}
        assert before
        self.attend()
        assert {name: x.data_ptr() for name, x in self.kept().items()} == before

    def test_they_are_given_up_on_request(self) -> None:
        self.attend()
        release_scratch()
        assert not self.kept()

    def test_what_is_above_the_bound_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attend()
        sizes = sorted(x.nbytes for x in self.kept().values())
        monkeypatch.setattr(scratch_module, "KEPT_BYTES", sum(sizes) - 1)
        self.attend()
        assert sorted(x.nbytes for x in self.kept().values()) == sizes[:-1]

    def test_no_output_lies_in_them(self) -> None:
        first = self.attend()
        expected = first.clone()
        self.attend(1)
        assert torch.equal(first, expected)

    def test_calls_at_the_same_time_have_their_own(self) -> None:
        expected = [self.attend(seed) for seed in range(4)]
        found: dict[int, Tensor] = {}

        def work(seed: int) -> None:
            for _ in range(5):
                found[seed] = self.attend(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for seed, out in enumerate(expected):
            assert torch.equal(bits(found[seed]), bits(out))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_lower_precisions_lose_no_more_than_exact_attention_does(
    is_causal: bool, tiles: bool, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    if tiles:
        request.getfixturevalue("with_tiles")
    assert cpu_kernel_dtype(dtype) == (dtype if tiles else torch.float32)
    q, k, v = qkv(queries=700, heads=4, dim=32, dtype=dtype)
    plan = make_plan(q, k, PARAMS, is_causal=is_causal)
    ours = with_gradients(lambda *x: hyper_attention(*x, plan=plan, is_causal=is_causal), (q, k, v))
    wide = with_gradients(lambda *x: hyper_attention(*x, plan=plan, is_causal=is_causal), doubled(q, k, v))
    theirs = with_gradients(lambda *x: scaled_dot_product_attention(*x, is_causal=is_causal), (q, k, v))
    exact = with_gradients(lambda *x: scaled_dot_product_attention(*x, is_causal=is_causal), doubled(q, k, v))
    for a, b, c, d in zip(ours, wide, theirs, exact, strict=True):
        assert a.dtype == dtype
        # Weights of samples are large, and the sum of few of them is rounded more than that of many.
        assert relative_error(a, b) < 2 * relative_error(c, d)


@pytest.mark.usefixtures("with_tiles")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precisions_are_causal_with_tiles_too(dtype: torch.dtype) -> None:
    q, k, v = qkv(queries=1500, heads=2, dim=32, dtype=dtype)
    call = {"params": PARAMS, "is_causal": True, "return_lse": True}
    before = hyper_attention(q, k, v, **call)
    for t in (130, 700, 1400):
        after = hyper_attention(*(changed_after(x, t, "new") for x in (q, k, v)), **call)
        assert unchanged_up_to(t, before, after)
