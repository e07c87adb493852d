"""Error of variants of the estimator at equal work, by dense prototypes, on captured q, k and v and on Gaussian ones.

The baseline is the library's own plan (causal, "probed", "bucket"). Each lead changes one thing, or joins two, with
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
from typing import Any

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

PROBES, FLOOR = 32, 0.1  # the library's defaults
CAP, SEEDS = 4.0, 2
GAUSSIAN, RUNNING_MEAN, BASELINE = "gaussian", "the mean of earlier values", "defaults"
#: Leaf length, b and m of the baselines.
SIZES = ((512, 256, 256), (256, 64, 64))
WHOLE = 1 << 30


@dataclass(frozen=True)
class Lead:
    """A variant of the estimator, and b and m that make it about as much work as the baseline.

    Attributes:
        window: latest earlier keys that each query meets exactly, across the borders of leaves.
        sinks: first tokens that each query meets exactly.
        routed: `pairing="routed"`.
        kmeans: k-means clusters with so many keys on average in the place of hashed blocks; a query meets b keys, of
            the clusters whose mean keys have the largest inner product with it.
        flat: no recursion, no blocks: one sample of all keys before a leaf.
        shrink: the mean of drawn values is drawn to the mean of all (James and Stein).
        cap: largest weight of a sample.
        centroid: keys of a centroid (consecutive ones; WHOLE for a node's), 0 for none: its mean key, with the mean
            value, weighs as much as the samples of its keys lack of their number.
    """

    name: str
    block_size: int
    sample_size: int
    window: int = 0
    sinks: int = 0
    routed: bool = False
    kmeans: int = 0
    flat: bool = False
    shrink: bool = False
    cap: float = math.inf
    centroid: int = 0

    def params(self, leaf: int) -> HyperAttentionParams:
        """The library's parameters with these sizes."""
        pairing: Pairing = "routed" if self.routed else "bucket"
        return HyperAttentionParams(self.block_size, self.sample_size, min_seq_len=leaf, pairing=pairing)


def leads(leaf: int, b: int, m: int, seq_len: int) -> list[Lead]:
    """All that is compared at a size; what a query meets besides is taken from the blocks of its nodes."""
    nodes = math.log2(seq_len / leaf) / 2  # that a query is in, on average
    window = leaf // 4
    small = (b // 4, b + m - b // 4 - (b + m) // 24)  # fewer of the samples lie in the block, and would be met anyway
    few, without_window, without_sinks = (
        b - math.ceil(extra / nodes) for extra in ((seq_len - leaf) / 128, window**2 / 2 / leaf, 4)
    )
    flat = round(nodes * (b + m))
    capped: dict[str, Any] = {"cap": CAP, "centroid": WHOLE}
    return [
        Lead(BASELINE, b, m),
        Lead("smaller blocks, b / 4", *small),
        Lead("(a) James-Stein", b, m, shrink=True),
        Lead("(b) centroids as control variate", few, m, centroid=64),
        Lead("(b) centroids for what is not met", few, m, cap=1.0, centroid=64),
        Lead("(c) window", without_window, m, window=window),
        Lead("(d) first 4 tokens", without_sinks, m, sinks=4),
        Lead("(e) k-means", b, m, kmeans=32),
        Lead("(f) flat", 0, flat, flat=True),
        Lead("(g) capped weights", b, m, cap=CAP),
        Lead("(g) capped, one centroid a node", b, m, **capped),
        Lead("(g) and b / 4", *small, **capped),
        Lead("(g) and k-means", b, m, kmeans=32, **capped),
        Lead("(g) and flat", 0, flat, flat=True, **capped),
        Lead("routed", b, m, routed=True),
        Lead("(g) and routed", b, m, routed=True, **capped),
    ]


@dataclass(frozen=True)
class Head:
    """A head: q (N, D) with the scale folded in, that of its group (heads, N, D), exp of the logits minus `shift`."""

    q: Tensor
    group: Tensor
    k: Tensor
    v: Tensor
    weights: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Node:
    """Queries, the keys they meet exactly (`inside`, (Sq, S)), weights of the other keys (S,), 0 if not drawn."""

    queries: slice
    keys: slice
    inside: Tensor
    weight: Tensor


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
    order = scores.masked_fill(sizes == 0, -math.inf).argsort(dim=1, descending=True)
    room = count - (sizes[order].cumsum(1) - sizes[order])
    taken = torch.zeros_like(scores).scatter_(1, order, room.clamp(min=0).minimum(sizes[order]))
    age = (member.flip(0).cumsum(0).flip(0) * member).sum(1)
    return age <= taken[:, cluster]


def nodes_of(head: Head, plan: AttentionPlan | None, index: int, lead: Lead, leaf: int, seed: int) -> Iterator[Node]:
    """The nodes of a head: those of the library's plan, but for what the lead does otherwise."""
    if plan is None:
        for lo in range(leaf, len(head.k), leaf):
            weight = probed_weights(head, lo, lead.sample_size, seed)
            yield Node(slice(lo, lo + leaf), slice(0, lo), torch.zeros(leaf, lo, dtype=torch.bool), weight)
        return
    kv_head = index // len(head.group)
    for level in plan.levels:
        found, size = membership(plan, level, 0, index), level.node_len
        drawn = (level.key_order.long(), level.sample_index.long(), level.sample_weight.float())
        for order, samples, weights in zip(*(x[0, kv_head] for x in drawn), strict=True):
            a = int(order.min())
            keys, rows = slice(a, a + size), slice(a + size, a + 2 * size)
            weight = torch.zeros(size).index_put((order[samples] - a,), weights)
            if lead.kmeans:
                cluster = clusters(head.k[keys], size // lead.kmeans, seed)
                inside = best_keys(head.q[rows], head.k[keys], cluster, lead.block_size)
            elif lead.routed:
                inside = found.met(torch.arange(rows.start, rows.stop))[0][:, keys]
            else:
                inside = found.query_blocks[rows] == found.key_block[keys]
            yield Node(rows, keys, inside, weight)


def is_near(rows: slice, keys: slice, lead: Lead, leaf: int) -> Tensor:
    """Mask (Sq, S) of the keys that are met exactly without a node: of the leaf, in the window, the first ones."""
    t, j = torch.arange(rows.start, rows.stop)[:, None], torch.arange(keys.start, keys.stop)
    return (j <= t) & ((j >= t // leaf * leaf) | (j >= t - lead.window) | (j < lead.sinks))


def estimate(head: Head, nodes: Iterator[Node], lead: Lead, leaf: int) -> tuple[Tensor, float]:
    """The output (N, D), and the keys and centroids that a query meets on average."""
    n = len(head.k)
    num, den, met = torch.zeros_like(head.v), torch.zeros(n, 1), 0.0
    for lo in range(0, n, leaf):
        rows, first = slice(lo, lo + leaf), max(0, lo - lead.window)
        for keys in (slice(0, min(lead.sinks, first)), slice(first, lo + leaf)):
            mask = is_near(rows, keys, lead, leaf)
            x = head.weights[rows, keys] * mask
            num[rows] += x @ head.v[keys]
            den[rows] += x.sum(1, keepdim=True)
            met += float(mask.sum())
    for node in nodes:
        far = ~is_near(node.queries, node.keys, lead, leaf)
        is_drawn = node.weight > 1 + 1e-6  # weights of one are those of certain keys
        fixed = far & (node.inside | ((node.weight > 0) & ~is_drawn))
        x = head.weights[node.queries, node.keys] * fixed
        is_open = far & ~fixed
        rest, mass, centroids = rest_of(head, node, lead, is_open, is_drawn)
        num[node.queries] += x @ head.v[node.keys] + rest
        den[node.queries] += x.sum(1, keepdim=True) + mass
        met += float(fixed.sum() + is_open[:, is_drawn].sum()) + centroids * len(x)
    return num / den, met / n


def rest_of(head: Head, node: Node, lead: Lead, is_open: Tensor, is_drawn: Tensor) -> tuple[Tensor, Tensor, int]:
    """The sums (Sq, D) and (Sq, 1) for the keys that are not met for certain, and the number of centroids."""
    k, v, weight = head.k[node.keys], head.v[node.keys], node.weight[is_drawn].clamp(max=lead.cap)
    x = head.weights[node.queries, node.keys][:, is_drawn] * is_open[:, is_drawn] * weight
    total, mass = x @ v[is_drawn], x.sum(1, keepdim=True)
    is_uncertain = (node.weight == 0) | is_drawn
    if not bool(is_uncertain.any()):
        return total, mass, 0
    if lead.shrink:
        open_v, mean = v[is_uncertain], total / mass.clamp(min=1e-30)
        noise = (x.square() * (1 - 1 / weight)).sum(1, keepdim=True) / mass.square().clamp(min=1e-30)  # 1 / n_eff
        distance = (mean - open_v.mean(0)).square().sum(1, keepdim=True).clamp(min=1e-30)
        keep = (1 - noise * open_v.var(0, correction=0).sum() / distance).clamp(min=0)
        return mass * torch.lerp(open_v.mean(0), mean, keep), mass, 0
    if not lead.centroid:
        return total, mass, 0
    cell = torch.arange(len(k)) // lead.centroid
    member = torch.nn.functional.one_hot(cell).float() * is_uncertain[:, None]
    member = member[:, member.sum(0) > 0]
    sizes = member.sum(0)
    # What the samples lack of the number of keys; one query in S / b has them in its block.
    lack = (sizes - weight @ member[is_drawn]) * (1 - lead.block_size / len(k))
    logits = head.q[node.queries] @ (member.T @ k / sizes[:, None]).T - head.shift[node.queries]
    y = lack * logits.clamp(max=60).exp()
    return total + y @ (member.T @ v / sizes[:, None]), mass + y.sum(1, keepdim=True), len(sizes)


def head_of(q: Tensor, k: Tensor, v: Tensor, index: int) -> Head:
    """Head `index` of q (1, H, N, D) and k, v (1, Hkv, N, D)."""
    group = q.shape[1] // k.shape[1]
    kv = index // group
    members = q[0, kv * group :][:group] * q.shape[-1] ** -0.5
    logits = members[index % group] @ k[0, kv].T
    logits.masked_fill_(torch.ones_like(logits, dtype=torch.bool).triu_(1), -math.inf)
    shift = logits.amax(1, keepdim=True)
    return Head(members[index % group], members, k[0, kv], v[0, kv], logits.sub_(shift).exp_(), shift)


def errors_of(name: str, q: Tensor, k: Tensor, v: Tensor) -> Iterator[dict[str, Any]]:
    """A row for a head of each group, size, lead and seed, and for the mean of the values up to each position."""
    n, group = q.shape[2], q.shape[1] // k.shape[1]
    plans: dict[HyperAttentionParams, list[AttentionPlan]] = {}
    for index in (kv * group + kv % group for kv in range(k.shape[1])):
        head = head_of(q, k, v, index)
        exact = head.weights @ head.v / head.weights.sum(1, keepdim=True)
        mean = head.v.cumsum(0) / torch.arange(1, n + 1)[:, None]
        for leaf, block_size, sample_size in SIZES:
            told = {"input": name, "head": index, "leaf": leaf}
            yield {**told, "lead": RUNNING_MEAN, "seed": 0, "keys": 0.0, "error": relative_frobenius(mean, exact)}
            for lead in leads(leaf, block_size, sample_size, n):
                if not lead.flat and (params := lead.params(leaf)) not in plans:
                    plans[params] = [make_plan(q, k, params, seed, is_causal=True) for seed in range(SEEDS)]
                for seed in range(SEEDS):
                    plan = None if lead.flat else plans[lead.params(leaf)][seed]
                    out, keys = estimate(head, nodes_of(head, plan, index, lead, leaf, seed), lead, leaf)
                    error = relative_frobenius(out, exact)
                    yield {**told, "lead": lead.name, "seed": seed, "keys": round(keys, 1), "error": error}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The errors over heads, the mean over seeds first, as tables in Markdown."""
    lines = []
    for leaf in dict.fromkeys(row["leaf"] for row in rows):
        lines += ["", f"leaf {leaf}", "", "| | keys | mean | median | 9 of 10 below | worst | gaussian |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|"]
        for lead in dict.fromkeys(row["lead"] for row in rows):
            found: dict[tuple[str, int], list[float]] = {}
            some = [row for row in rows if (row["leaf"], row["lead"]) == (leaf, lead)]
            for row in some:
                found.setdefault((row["input"], row["head"]), []).append(row["error"])
            errors = {key: statistics.fmean(of_seeds) for key, of_seeds in found.items()}
            real = torch.tensor([error for key, error in errors.items() if key[0] != GAUSSIAN])
            other = statistics.fmean(error for key, error in errors.items() if key[0] == GAUSSIAN)
            cells = [*real.quantile(torch.tensor([0.5, 0.9])), real.max(), torch.tensor(other)]
            keys = statistics.fmean(row["keys"] for row in some if row["input"] != GAUSSIAN)
            lines.append(f"| {lead} | {keys:.0f} | {' | '.join(f'{float(x):.3f}' for x in (real.mean(), *cells))} |")
    return "\n".join(lines[1:])


def run(out: Path, path: str) -> str:
    """Compare all leads and write the folder; the tables. Raises ValueError, one line."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out={out} is there already and not an empty folder; name another")
    capture, rows = captures.read(path), []
    own = {
        "device": "cpu",
        "run_id": uuid.uuid4().hex[:12],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "schema_version": SCHEMA_VERSION,
    }
    settings = {"seeds": SEEDS, "sizes": SIZES, "cap": CAP, "capture": captures.sha256(path), **capture.metadata}
    environment = {**provenance.collect(probe.facts(), own, {}), "settings": settings}
    for layer, its in capture.layers.items():
        if its.rows < (least := 2 * max(size[0] for size in SIZES)) or its.rows & (its.rows - 1):
            raise ValueError(f"--capture {path}: {its.rows:,} rows; they must be a power of two from {least:,}")
        shape = Shape(1, its.heads, its.kv_heads, its.rows, its.head_dim)
        rows += errors_of(f"layer {layer}", *captured.draw(Numbers(0, "captured"), shape, path, layer, None))
    rows += errors_of(GAUSSIAN, *gaussian.draw(Numbers(0, GAUSSIAN), Shape(1, 2, 2, shape.seq_len, shape.head_dim)))
    out.mkdir(parents=True, exist_ok=True)
    (out / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")
    with (out / "errors.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "error": f"{row['error']:.5g}"} for row in rows)
    return table(rows)


def main(words: Sequence[str] | None = None) -> int:
    """Compare; 0 done, 2 bad usage, 130 interrupted."""
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
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
