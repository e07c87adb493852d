"""The oracle against the definition, written once more with loops over queries and keys and nothing shared."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hyperattn_core import AttentionPlan, make_plan, oracle_attention
from hyperattn_core.oracle import weight_matrix
from hyperattn_core.planning import draws
from tests.helpers.core_inputs import CHOICES, assert_close, normal, qkv, small_params
from tests.helpers.probed import inclusion, probe_weights
from tests.helpers.slow import slow

#: Keys that are met as their mean, or a single one, and the weight.
Terms = Iterator[tuple[tuple[int, ...], float]]


def gray_rank_of(row: Tensor, directions: Tensor) -> int:
    """The place, along the Gray code, of the code of a row's positive projections."""
    bits = [float(row @ directions[:, i]) > 0 for i in range(directions.shape[1])]
    code = sum(2**i for i, bit in enumerate(bits) if bit)
    return next(rank for rank in range(2 ** len(bits)) if rank ^ (rank >> 1) == code)


class Definition:
    """The estimator of one query head as the contract says it: which keys a query sums, and with which weight."""

    def __init__(self, plan: AttentionPlan, q: Tensor, k: Tensor, head: tuple[int, int], kv_head: tuple[int, int]):
        directions = draws.projections(plan.seed, q.shape[3], plan.params.num_projections, "cpu")
        self.plan, self.kv_head = plan, kv_head
        self.query_ranks = [gray_rank_of(row, directions) for row in q[head].double()]
        self.key_ranks = [gray_rank_of(row, directions) for row in k[kv_head].double()]
        group = q.shape[1] // k.shape[1]
        self.own_queries = q[head]
        self.group_queries, self.keys = q[head[0], kv_head[1] * group : (kv_head[1] + 1) * group], k[kv_head]

    def terms(self, query: int) -> Terms:
        """(keys, weight) of every term of a query's sums."""
        params, num_keys = self.plan.params, len(self.key_ranks)
        if not self.plan.is_causal:
            yield from self.node(query, range(len(self.query_ranks)), range(num_keys), 0, 0)
            return
        yield from self.recursion(query, 0, num_keys, params.min_seq_len)

    def recursion(self, query: int, start: int, stop: int, leaf: int) -> Terms:
        """Algorithm 4: exact up to the leaf's length, else two halves and the queries of the second on the first."""
        if stop - start <= leaf:
            yield from (((key,), 1.0) for key in range(start, query + 1))
            return
        half, level = leaf, 0
        while 2 * half < stop - start:
            half, level = 2 * half, level + 1
        middle = start + half
        if query < middle:
            yield from self.recursion(query, start, middle, leaf)
        else:
            yield from self.node(query, range(middle, stop), range(start, middle), level, start // (2 * half))
            yield from self.recursion(query, middle, stop, leaf)

    def node(self, query: int, queries: range, keys: range, level: int, node: int) -> Terms:
        """Algorithm 3: the query's block of the sorted keys, and the samples outside it."""
        params, total = self.plan.params, len(keys)
        is_routed = params.pairing == "routed"
        sorted_keys = list(keys) if is_routed else sorted(keys, key=lambda j: self.key_ranks[j])
        own = self.routed(query, queries, keys) if is_routed else self.block(query, queries, keys)
        yield from (((sorted_keys[i],), 1.0) for i in own)
        drawn = self.plan.levels[level].sample_index[(*self.kv_head, node)].tolist()
        if params.uses_probes and drawn:
            yield from self.probed(keys, [sorted_keys[i] for i in drawn], {sorted_keys[i] for i in own})
            return
        edges = [s * total // max(1, len(drawn)) for s in range(len(drawn) + 1)]
        for s, i in enumerate(drawn):
            if i not in own:
                yield (sorted_keys[i],), total / len(drawn) if params.sampling == "iid" else edges[s + 1] - edges[s]

    def probed(self, keys: range, drawn: list[int], own: set[int]) -> Terms:
        """Probed samples, or truncated ones and the mean of the keys that are not certain to be drawn."""
        probability = self.probabilities(keys, len(drawn))
        most = 4.0 if self.plan.params.sampling == "truncated" else math.inf
        yield from (((key,), min(1 / probability[key], most)) for key in drawn if key not in own)
        uncertain = tuple(key for key in keys if probability[key] < 1 - 1e-9)
        if most == 4.0 and uncertain:
            lack = len(uncertain) - sum(min(1 / probability[key], most) for key in drawn if key in uncertain)
            if lack > 0 and self.plan.params.block_size < len(keys):
                yield uncertain, lack * (1 - self.plan.params.block_size / len(keys))

    def block(self, query: int, queries: range, keys: range) -> list[int]:
        """The places of the keys of a query's block among the sorted keys."""
        params, total = self.plan.params, len(keys)
        block_size = min(params.block_size, total)
        if params.pairing == "rank":
            sorted_queries = sorted(queries, key=lambda i: self.query_ranks[i])
            place = sorted_queries.index(query) * total // len(queries)
        else:
            rank = self.query_ranks[query]
            below = sum(self.key_ranks[j] < rank for j in keys)
            upto = sum(self.key_ranks[j] <= rank for j in keys)
            place = min((below + upto) // 2, total - 1)
        block = place // block_size
        return list(range(block * block_size, min((block + 1) * block_size, total)))

    def routed(self, query: int, queries: range, keys: range) -> list[int]:
        """The places of the keys that a query, and those before it among its eight, choose: runs of four."""
        total, met = len(keys), set()
        means = torch.stack([self.keys[keys[i : i + 4]].double().mean(0) for i in range(0, total, 4)])
        for other in range(query - (query - queries.start) % 8, query + 1):
            logits = means @ self.own_queries[other].double()
            best = sorted(range(len(means)), key=lambda i: -float(logits[i]))[: self.plan.params.block_size // 32]
            met |= {4 * i + j for i in best for j in range(4) if 4 * i + j < total}
        return sorted(met)

    def probabilities(self, keys: range, count: int) -> dict[int, float]:
        """Probed sampling: how likely each key of a node is among its samples."""
        params, num_queries = self.plan.params, self.group_queries.shape[1]
        if self.plan.is_causal:
            at = list(keys)[-params.num_probes :]
        else:
            at = draws.probe_positions(num_queries, params.num_probes, self.plan.seed, "cpu").tolist()
        scale = self.keys.shape[1] ** -0.5
        scores = probe_weights(self.group_queries[:, at].flatten(0, 1), self.keys[list(keys)], scale)
        return dict(zip(keys, inclusion(scores, count, params.probe_floor).tolist(), strict=True))


def by_definition(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp and the weight of every key, by loops."""
    batch, heads, num_queries, _ = q.shape
    out = torch.zeros(batch, heads, num_queries, v.shape[3], dtype=torch.float64)
    lse = torch.zeros(batch, heads, num_queries, dtype=torch.float64)
    weights = torch.zeros(batch, heads, num_queries, k.shape[2], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            kv_head = (b, h * k.shape[1] // heads)
            definition = Definition(plan, q, k, (b, h), kv_head)
            for query in range(num_queries):
                num, den = torch.zeros(v.shape[3], dtype=torch.float64), 0.0
                for keys, weight in definition.terms(query):
                    key, value = (x[kv_head][list(keys)].double().mean(0) for x in (k, v))
                    term = weight * math.exp(scale * float(q[b, h, query].double() @ key))
                    num += term * value
                    den += term
                    if len(keys) == 1:
                        weights[b, h, query, keys[0]] += weight
                out[b, h, query], lse[b, h, query] = num / den, math.log(den)
    return out, lse, weights


@pytest.mark.parametrize(
    ("sampling", "pairing"), [*CHOICES, ("truncated", "bucket"), *slow(("truncated", "routed"), ("truncated", "rank"))]
)
@pytest.mark.parametrize(
    ("queries", "keys", "is_causal"),
    [*slow((24, 24, False), (37, 37, False)), (19, 41, False), *slow((41, 19, False), (40, 40, True)), (53, 53, True)],
)
def test_the_oracle_is_the_definition(queries: int, keys: int, is_causal: bool, sampling: str, pairing: str) -> None:
    for seed, dim, params in (
        (0, 4, small_params(sampling, pairing)),
        (1, 3, small_params(sampling, pairing, block_size=5, sample_size=11, num_projections=2, min_seq_len=6)),
        (2, 3, small_params(sampling, pairing, block_size=3, sample_size=1, num_projections=4, min_seq_len=1)),
    ):
        q, k, v = qkv(queries=queries, keys=keys, heads=4, kv_heads=2, dim=dim, value_dim=2, seed=seed)
        plan = make_plan(q, k, params, seed, is_causal=is_causal, tile_size=4)
        assert not plan.is_exact
        out, lse, weights = by_definition(q, k, v, plan, scale=0.6)
        assert_close(weight_matrix(plan), weights)
        got, got_lse = oracle_attention(q, k, v, plan, scale=0.6)
        assert_close(got, out)
        assert_close(got_lse, lse)


def test_batches_have_plans_of_their_own() -> None:
    q, k, v = qkv(queries=30, batch=3, heads=2, dim=3)
    plan = make_plan(q, k, small_params("iid", "bucket"))
    out, lse, weights = by_definition(q, k, v, plan, scale=3**-0.5)
    assert_close(weight_matrix(plan), weights)
    got, got_lse = oracle_attention(q, k, v, plan)
    assert_close(got, out)
    assert_close(got_lse, lse)


def test_the_oracle_is_differentiable() -> None:
    q, k, v = (normal(1, 1, 9, 2, seed=i).requires_grad_() for i in range(3))
    plan = make_plan(q, k, small_params("iid", "bucket", block_size=2, min_seq_len=2))
    assert torch.autograd.gradcheck(lambda *x: oracle_attention(*x, plan), (q, k, v))
