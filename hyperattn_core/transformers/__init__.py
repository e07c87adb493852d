"""HyperAttention in the layers of a Hugging Face model, through the attention interface of transformers.

    from hyperattn_core.transformers import patched

    with patched(model, last=10, params=HyperAttentionParams(min_seq_len=512)) as patch:
        logits = model(input_ids).logits
    print(patch)  # a line per layer: calls by HyperAttention, and exact ones with their reasons

Needs transformers 5 (pip install 'hyperbench[lm]'), which nothing else in this package does.
"""

from hyperattn_core.transformers.interface import ExactAttentionError, ExactAttentionWarning, Patch
from hyperattn_core.transformers.patching import attention_modules, patched

__all__ = ["ExactAttentionError", "ExactAttentionWarning", "Patch", "attention_modules", "patched"]
