"""Probes: a few queries whose attention says how likely each key of a node is to be sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperattn_core.planning.draws import probe_positions
from hyperattn_core.planning.levels import LevelShape, node_rows
from hyperattn_core.precision import planning_dtype


def probe_scores(
    level: LevelShape, q: Tensor, k: Tensor, num_probes: int, seed: int, scale: float, *, is_causal: bool
) -> Tensor:
    """The root mean square of the weights that the probes of a node give each of its keys, (B, Hkv, G, S).

    A probe gives weights softmax(scale k.q) over all keys of the node. Under a causal mask the probes are the last
    num_probes queries at the positions of the keys, so that each of them, and each key, comes before every query of the
    node. Without a mask they are drawn from the seed. All heads of a group probe their kv head.

    Args:
        level: the nodes.
        q: queries (B, H, Nq, D).
        k: keys (B, Hkv, Nk, D).
        num_probes: P; all there are if they are fewer.
        seed: of the draw.
        scale: factor of the logits.
        is_causal: under a causal mask, Nq == Nk.

    Returns:
        Scores from 0 to 1, in order of position, float32 (float64 for float64 inputs).
    """
    (batch, heads), kv_heads, dtype = q.shape[:2], k.shape[1], planning_dtype(q)
    if is_causal:
        last = torch.arange(max(0, level.node_len - num_probes), level.node_len, device=q.device)
        positions = torch.tensor(level.key_starts, device=q.device).unsqueeze(1) + last
    else:
        positions = probe_positions(q.shape[2], num_probes, seed, str(q.device)).unsqueeze(0)
    probes = q[:, :, positions.view(-1)].unflatten(2, tuple(positions.shape)).unflatten(1, (kv_heads, -1))
    keys = node_rows(k, level.key_starts, level.node_len)
    scores = torch.zeros(batch, kv_heads, level.num_nodes, level.node_len, dtype=dtype, device=q.device)
    # A head at a time where a cache is to hold what it makes, all at once where a launch costs more than memory.
    whole = slice(None)
    on_cpu = q.device.type == "cpu"
    parts = [(b, h) for b in range(batch) for h in range(kv_heads)] if on_cpu else [(whole, whole)]
    for part in parts:
        part_keys = keys[part].to(dtype).transpose(-1, -2)
        for member in range(heads // kv_heads):
            part_probes = probes[(*part, member)].to(dtype) * scale
            weights = torch.matmul(part_probes, part_keys).softmax(-1)
            scores[part] += weights.square_().sum(-2)
    return scores.div_(probes.shape[2] * probes.shape[4]).sqrt_()
