"""Tiny random language models of several families, in memory or in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hyperbench.measure.models.language_model import LanguageModel
from hyperbench.measure.models.load import Loaded

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 256, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "gpt_neox": {},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 40},
}


def tiny(family: str, **changes: Any) -> Any:
    """A random causal model of three layers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    # Weights as they come make nearly uniform attention, in which nothing is seen.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(8)
    return model


class Words:
    """A tokenizer: a token for each word and line break, by the order in which they come."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """The tokens of a text."""
        words = text.replace("\n", " \n ").replace(".", " .").split(" ")
        return {"input_ids": [self.known.setdefault(word, len(self.known)) for word in words if word]}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of some tokens; one that no word has is a number."""
        words = {token: word for word, token in self.known.items()}
        return " ".join(words.get(token, str(token)) for token in ids)


def language_model(family: str = "llama", **changes: Any) -> LanguageModel:
    """One that scores can be taken of; its tokenizer knows words."""
    return LanguageModel(Loaded(tiny(family, vocab_size=4000, **changes), Words(), "tiny", ""))


def saved(folder: Path, **changes: Any) -> Path:
    """A folder with a tiny Llama and a tokenizer of its own, as transformers writes and reads them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from hyperbench.measure.models.texts import shipped_texts

    tokenizer = Tokenizer(models.WordLevel(unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=2000, special_tokens=["[unk]"], show_progress=False)
    texts = [text.text[:20_000] for text in shipped_texts()]
    tokenizer.train_from_iterator([*texts, "apple bridge candle dragon eagle forest garden hammer island"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[unk]").save_pretrained(folder)
    tiny("llama", vocab_size=2000, **changes).save_pretrained(folder)
    return folder
