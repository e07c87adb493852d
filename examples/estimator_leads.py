"""Error of variants of the estimator at equal work, by dense prototypes, on captured q, k and v and on Gaussian ones.

The baseline is a plan of the library (causal, "probed", "bucket"). Each lead changes one thing, or joins two, with
sizes by which a query meets about as many keys; a centroid counts as a key, planning is not counted. The folder that
is written holds errors.csv (a row for each head, size, seed and lead) and environment.json.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import math
import statistics
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

import torch
from torch import Tensor

from hyperattn_core import HyperAttentionParams
from hyperattn_core.functional import make_plan
from hyperattn_core.params import Pairing
from hyperattn_core.planning.membership import membership
from hyperattn_core.planning.plan import AttentionPlan
from hyperattn_core.planning.samples import systematic_samples
from hyperbench.config import captures
from hyperbench.config.catalog import ConfigError
from hyperbench.measure.inputs import Numbers, Shape, captured, gaussian
from hyperbench.measure.probe import main as probe
from hyperbench.measure.worker.errors.accuracy import relative_frobenius
from hyperbench.store import provenance
from hyperbench.store.schema import SCHEMA_VERSION

PROBES, FLOOR, CAP, SEEDS = 32, 0.1, 4.0, 2  # the first two are the library's defaults
GAUSSIAN, RUNNING_MEAN = "gaussian", "the mean of earlier values"
#: Leaf length, b and m of the baselines; longest leaf first.
SIZES = ((512, 256, 256), (256, 64, 64))
WHOLE = 1 << 30


@dataclass(frozen=True)
class Lead:
    """A variant of the estimator, and b and m that make it about as much work as the baseline."""

    name: str
    block_size: int
    sample_size: int
    window: int = 0  # latest earlier keys that each query meets exactly, across the borders of leaves
    sinks: int = 0  # first tokens that each query meets exactly
    pairing: Pairing = "bucket"
    kmeans: int = 0  # mean size of k-means clusters; a query meets b keys, of those whose mean keys suit it best
    flat: bool = False  # no recursion, no blocks: one sample of all keys before a leaf
    shrink: bool = False  # the mean of the drawn values goes towards the mean of all (James and Stein)
    cap: float = math.inf  # largest weight of a sample
    centroid: int = 0  # consecutive keys (WHOLE: a node's) whose mean stands for what the samples' weights lack of them


def leads(leaf: int, b: int, m: int, seq_len: int) -> list[Lead]:
    """All that is compared at a size; what a query meets besides is taken from the blocks of its nodes."""
    nodes, window = math.log2(seq_len / leaf) / 2, leaf // 4  # nodes that a query is in, on average
    small = (b // 4, b + m - b // 4 - (b + m) // 24)  # fewer of the samples lie in the block, and would be met anyway
    few, less_window, less_sinks = (b - math.ceil(x / nodes) for x in ((seq_len - leaf) / 128, window**2 / 2 / leaf, 4))
    flat, capped = round(nodes * (b + m)), dict[str, Any](cap=CAP, centroid=WHOLE)
    return [
        Lead("defaults", b, m),
        Lead("smaller blocks", *small),
        Lead("shrinkage", b, m, shrink=True),
        Lead("centroids, control variate", few, m, centroid=64),
        Lead("centroids for the rest", few, m, cap=1.0, centroid=64),
        Lead("window", less_window, m, window=window),
        Lead("first 4 tokens", less_sinks, m, sinks=4),
        Lead("k-means", b, m, kmeans=32),
        Lead("flat", 0, flat, flat=True),
        Lead("capped", b, m, cap=CAP),
        Lead("capped, mean key", b, m, **capped),
        Lead("capped, mean key, smaller blocks", *small, **capped),
        Lead("capped, mean key, k-means", b, m, kmeans=32, **capped),
        Lead("capped, mean key, flat", 0, flat, flat=True, **capped),
        Lead("routed", b, m, pairing="routed"),
        Lead("capped, mean key, routed", b, m, pairing="routed", **capped),
    ]


class Head(NamedTuple):
    """A head: q (N, D) with the scale folded in, that of its group (heads, N, D), exp of the logits minus `shift`."""

    q: Tensor
    group: Tensor
    k: Tensor
    v: Tensor
    weights: Tensor
    shift: Tensor


#: Queries, keys, the keys they meet exactly (Sq, S), weights of the other keys (S,), 0 where not drawn.
Node = tuple[slice, slice, Tensor, Tensor]


def probed_weights(head: Head, before: int, count: int, seed: int) -> Tensor:
    """Weights of `count` of the keys before a position, drawn as the queries right before it attend to them."""
    t = torch.arange(max(0, before - PROBES), before)
    logits = (head.group[:, t] @ head.k[:before].T).masked_fill(torch.arange(before) > t[:, None], -math.inf)
    scores = logits.softmax(-1).square().mean((0, 1)).sqrt()
    offset = torch.rand(1, generator=torch.Generator().manual_seed(100_003 * seed + before), dtype=torch.float64)
    index, weight = systematic_samples(scores, min(count, before), FLOOR, offset)
    return torch.zeros(before).index_put((index.long(),), weight.float())


def clusters(keys: Tensor, count: int, seed: int) -> Tensor:
    """The cluster of each key (S,) after ten rounds of Lloyd's algorithm from random keys."""
    means = keys[torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed))[:count]]
    for _ in range(10):
        member = torch.nn.functional.one_hot(torch.cdist(keys, means).argmin(1), count).float()
        sizes = member.sum(0)[:, None]
        means = torch.where(sizes > 0, member.T @ keys / sizes.clamp(min=1), means)
    return torch.cdist(keys, means).argmin(1)


def best_keys(q: Tensor, keys: Tensor, cluster: Tensor, count: int) -> Tensor:
    """Mask (Sq, S) of `count` keys of each query: of the clusters with the best mean keys, of the last the newest."""
    member = torch.nn.functional.one_hot(cluster).float()
    sizes = member.sum(0)
    scores = q @ (member.T @ keys / sizes.clamp(min=1)[:, None]).T
    liking = scores.argsort(1).argsort(1)[:, cluster]
    best = (liking * len(keys) + torch.arange(len(keys))).topk(min(count, len(keys)), dim=1).indices
    return torch.zeros_like(liking, dtype=torch.bool).scatter_(1, best, True)


def nodes_of(head: Head, plan: AttentionPlan | None, index: int, lead: Lead, leaf: int, seed: int) -> Iterator[Node]:
    """The nodes of a head: those of the library's plan, but for what the lead does otherwise."""
    if plan is None:
        for lo in range(leaf, len(head.k), leaf):
            weight = probed_weights(head, lo, lead.sample_size, seed)
            yield slice(lo, lo + leaf), slice(0, lo), torch.zeros(leaf, lo, dtype=torch.bool), weight
        return
    for level in plan.levels:
        found, size = membership(plan, level, 0, index), level.node_len
        drawn = (level.key_order.long(), level.sample_index.long(), level.sample_weight.float())
        for order, samples, weights in zip(*(x[0, index // len(head.group)] for x in drawn), strict=True):
            a = int(order.min())
            keys, rows = slice(a, a + size), slice(a + size, a + 2 * size)
            weight = torch.zeros(size).index_put((order[samples] - a,), weights)
            if lead.kmeans:
                cluster = clusters(head.k[keys], size // lead.kmeans, seed)
                inside = best_keys(head.q[rows], head.k[keys], cluster, lead.block_size)
            elif lead.pairing == "routed":
                inside = found.met(torch.arange(rows.start, rows.stop))[0][:, keys]
            else:
                inside = found.query_blocks[rows] == found.key_block[keys]
            yield rows, keys, inside, weight


def is_near(rows: slice, keys: slice, lead: Lead, leaf: int) -> Tensor:
    """Mask (Sq, S) of the keys that are met exactly without a node: of the leaf, in the window, the first ones."""
    t, j = torch.arange(rows.start, rows.stop)[:, None], torch.arange(keys.start, keys.stop)
    return (j <= t) & ((j >= t // leaf * leaf) | (j >= t - lead.window) | (j < lead.sinks))


def estimate(head: Head, nodes: Iterator[Node], lead: Lead, leaf: int) -> tuple[Tensor, float]:
    """The output (N, D), and the keys and centroids that a query meets on average."""
    n, num, den, met = len(head.k), torch.zeros_like(head.v), torch.zeros(len(head.k), 1), 0.0
    for lo in range(0, n, leaf):
        rows, first = slice(lo, lo + leaf), max(0, lo - lead.window)
        for keys in (slice(0, min(lead.sinks, first)), slice(first, lo + leaf)):
            mask = is_near(rows, keys, lead, leaf)
            x = head.weights[rows, keys] * mask
            num[rows] += x @ head.v[keys]
            den[rows] += x.sum(1, keepdim=True)
            met += float(mask.sum())
    for rows, keys, inside, weight in nodes:
        far = ~is_near(rows, keys, lead, leaf)
        is_drawn = weight > 1 + 1e-6  # weights of one are those of certain keys
        fixed = far & (inside | ((weight > 0) & ~is_drawn))
        x, is_open = head.weights[rows, keys] * fixed, far & ~fixed
        rest, mass, centroids = rest_of(head, (rows, keys, is_open, weight), lead, is_drawn)
        num[rows] += x @ head.v[keys] + rest
        den[rows] += x.sum(1, keepdim=True) + mass
        met += float(fixed.sum() + is_open[:, is_drawn].sum()) + centroids * len(x)
    return num / den, met / n


def rest_of(head: Head, node: Node, lead: Lead, is_drawn: Tensor) -> tuple[Tensor, Tensor, int]:
    """The sums (Sq, D), (Sq, 1) for the keys that are not met for certain, `is_open` (Sq, S); the centroids' number."""
    rows, keys, is_open, weights = node
    k, v, weight = head.k[keys], head.v[keys], weights[is_drawn].clamp(max=lead.cap)
    x = head.weights[rows, keys][:, is_drawn] * is_open[:, is_drawn] * weight
    total, mass, is_uncertain = x @ v[is_drawn], x.sum(1, keepdim=True), (weights == 0) | is_drawn
    if not (bool(is_uncertain.any()) and (lead.shrink or lead.centroid)):
        return total, mass, 0
    if lead.shrink:
        open_v, mean = v[is_uncertain], total / mass.clamp(min=1e-30)
        noise = (x.square() * (1 - 1 / weight)).sum(1, keepdim=True) / mass.square().clamp(min=1e-30)  # 1 / n_eff
        distance = (mean - open_v.mean(0)).square().sum(1, keepdim=True)
        keep = (1 - noise * open_v.var(0, correction=0).sum() / distance.clamp(min=1e-30)).clamp(min=0)
        return mass * torch.lerp(open_v.mean(0), mean, keep), mass, 0
    member = torch.nn.functional.one_hot(torch.arange(len(k)) // lead.centroid).float() * is_uncertain[:, None]
    member = member[:, member.sum(0) > 0]
    sizes = member.sum(0)
    # What the samples lack of the number of keys; one query in S / b has them in its block.
    lack = (sizes - weight @ member[is_drawn]) * max(0.0, 1 - lead.block_size / len(k))
    logits = head.q[rows] @ (member.T @ k / sizes[:, None]).T - head.shift[rows]
    y = lack * logits.exp()
    return total + y @ (member.T @ v / sizes[:, None]), mass + y.sum(1, keepdim=True), len(sizes)


def head_of(q: Tensor, k: Tensor, v: Tensor, index: int) -> Head:
    """Head `index` of q (1, H, N, D) and k, v (1, Hkv, N, D)."""
    kv, member = divmod(index, group := q.shape[1] // k.shape[1])
    members = q[0, kv * group :][:group] * q.shape[-1] ** -0.5
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu_(1)
    logits = (members[member] @ k[0, kv].T).masked_fill_(later, -math.inf)
    shift = logits.amax(1, keepdim=True)
    return Head(members[member], members, k[0, kv], v[0, kv], logits.sub_(shift).exp_(), shift)


def errors_of(name: str, q: Tensor, k: Tensor, v: Tensor) -> Iterator[dict[str, Any]]:
    """A row for a head of each group, size, lead and seed, and for the mean of the values up to each position."""
    n, group = q.shape[2], q.shape[1] // k.shape[1]
    for index in (kv * group + kv % group for kv in range(k.shape[1])):
        head = head_of(q, k, v, index)
        exact = head.weights @ head.v / head.weights.sum(1, keepdim=True)
        mean = head.v.cumsum(0) / torch.arange(1, n + 1)[:, None]
        for leaf, block_size, sample_size in SIZES:
            told = {"input": name, "head": index, "leaf": leaf}
            yield {**told, "lead": RUNNING_MEAN, "seed": 0, "keys": 0.0, "error": relative_frobenius(mean, exact)}
            for lead in leads(leaf, block_size, sample_size, n):
                b, m = lead.block_size or 1, lead.sample_size
                params = HyperAttentionParams(b, m, min_seq_len=leaf, sampling="probed", pairing=lead.pairing)
                for seed in range(SEEDS):
                    plan = None if lead.flat else make_plan(q, k, params, seed, is_causal=True)
                    out, keys = estimate(head, nodes_of(head, plan, index, lead, leaf, seed), lead, leaf)
                    error = relative_frobenius(out, exact)
                    yield {**told, "lead": lead.name, "seed": seed, "keys": round(keys, 1), "error": error}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The errors over heads, the mean over seeds first, as tables in Markdown."""
    lines = []
    for leaf in dict.fromkeys(row["leaf"] for row in rows):
        lines.append(f"\n| leaf {leaf} | keys | mean | median | 9 of 10 below | worst | gaussian |\n|---{'|---:' * 6}|")
        for lead in dict.fromkeys(row["lead"] for row in rows):
            some = [row for row in rows if (row["leaf"], row["lead"]) == (leaf, lead)]
            found: dict[tuple[str, int], list[float]] = {}
            for row in some:
                found.setdefault((row["input"], row["head"]), []).append(row["error"])
            real = torch.tensor([statistics.fmean(x) for key, x in found.items() if key[0] != GAUSSIAN])
            other = torch.tensor([x for key, x in found.items() if key[0] == GAUSSIAN])
            keys = statistics.fmean(row["keys"] for row in some if row["input"] != GAUSSIAN)
            cells = [real.mean(), *real.quantile(torch.tensor([0.5, 0.9])), real.max(), other.mean()]
            lines.append(f"| {lead} | {keys:.0f} | {' | '.join(f'{float(x):.3f}' for x in cells)} |")
    return "\n".join(lines)


def run(out: Path, path: str) -> str:
    """Compare all leads and write the folder; the tables. Raises ValueError, one line."""
    capture, rows = captures.read(path), []
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    own = {"device": "cpu", "run_id": uuid.uuid4().hex[:12], "started": started, "schema_version": SCHEMA_VERSION}
    settings = {"seeds": SEEDS, "sizes": SIZES, "capture": captures.sha256(path), **capture.metadata}
    environment = {**provenance.collect(probe.facts(), own, {}), "settings": settings}
    if any(its.rows < (least := 2 * SIZES[0][0]) or its.rows & (its.rows - 1) for its in capture.layers.values()):
        raise ValueError(f"--capture {path}: its rows must be a power of two from {least:,}, see --max-tokens")
    out.mkdir(parents=True)
    for layer, its in capture.layers.items():
        shape = Shape(1, its.heads, its.kv_heads, its.rows, its.head_dim)
        rows += errors_of(f"layer {layer}", *captured.draw(Numbers(0, "captured"), shape, path, layer, None))
    rows += errors_of(GAUSSIAN, *gaussian.draw(Numbers(0, GAUSSIAN), Shape(1, 2, 2, shape.seq_len, shape.head_dim)))
    (out / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")
    with (out / "errors.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "error": f"{row['error']:.5g}"} for row in rows)
    return table(rows)


def main(words: Sequence[str] | None = None) -> int:
    """Compare; 0 done, 2 bad usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder to write")
    parser.add_argument("--capture", metavar="FILE", required=True, help="q, k, v of `hyperbench capture`, all layers")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    try:
        print(run(args.out, args.capture))
    except (ValueError, OSError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
