"""HyperAttention (Han et al., ICLR 2024): attention in near-linear time, forward and backward."""

from hyperattn_core.functional import exact_attention, hyper_attention, make_plan
from hyperattn_core.merge import merge_attention
from hyperattn_core.oracle import oracle_attention
from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.plan import AttentionPlan, LevelPlan
from hyperattn_core.torch_backend.scratch import release_scratch

__all__ = [
    "AttentionPlan",
    "HyperAttentionParams",
    "LevelPlan",
    "exact_attention",
    "hyper_attention",
    "make_plan",
    "merge_attention",
    "oracle_attention",
    "release_scratch",
]
