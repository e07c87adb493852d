"""A short process that makes a capture: load a model, run it on a text, write q, k and v of some layers to a file.

Or that describes a model: its layers, heads and context, from its configuration alone.

Reads one JSON request from stdin and answers with one JSON object on stdout; what it is doing goes to stderr.
Started by hyperbench/child/start.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from hyperbench import __version__
from hyperbench.child.code import admit_current_folder
from hyperbench.store.schema import TASK

#: Tokens that are taken where nothing is said of them.
DEFAULT_TOKENS = 4096


def main() -> None:
    """Answer the request on stdin."""
    # What libraries print must not mix with the answer.
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    try:
        request = json.load(sys.stdin)
        answer = describe(request["describe"]) if "describe" in request else capture(request)
    except ValueError as error:
        answer = {"problem": " ".join(str(error).split())}
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # of a model's code, or for want of memory
        answer = {"problem": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    with os.fdopen(answer_fd, "w") as out:
        json.dump(answer, out)


def describe(request: dict[str, Any]) -> dict[str, Any]:
    """The facts of a model that are known without its weights; its task and text are tried. Raises ValueError."""
    from hyperbench.measure.methods.method import imported
    from hyperbench.measure.models.load import configuration
    from hyperbench.measure.models.texts import read_text

    if request.get(TASK) is not None:
        admit_current_folder([request[TASK]])
        imported(request[TASK], f"input.{TASK}")
    if request.get("text") is not None:
        read_text(request["text"])
    return configuration(request.get("model"), request.get("path"))


def capture(request: dict[str, Any]) -> dict[str, Any]:
    """Make the capture that a request describes, and say what it holds. Raises ValueError, one line."""
    from hyperbench.measure.models import capture as recorder
    from hyperbench.measure.models.load import load
    from hyperbench.measure.models.texts import read_text

    layers, heads, dtype, out = (request[key] for key in ("layers", "heads", "dtype", "out"))
    text = read_text(request["text"])
    _say(f"loading {request['model'] or 'the small model'} ...")
    loaded = load(request["model"])
    ids = tokens(loaded, text.text, request["max_tokens"])
    _say(f"running {loaded.name} on {len(ids):,} tokens of {text.name} ...")
    found = recorder.record(loaded.model, ids, layers, heads)
    licences = request["licence"] or "; ".join(filter(None, (loaded.licence, text.licence))) or "not told"
    config = loaded.model.config.get_text_config()
    metadata = {
        "model": loaded.name,
        "text": text.name,
        "text_sha256": text.sha256,
        "positions": f"0 to {len(ids) - 1}",
        "rotary": "in" if getattr(config, "rope_parameters", None) else "none",
        "heads": "all" if heads is None else ",".join(map(str, heads)),
        "licence": licences,
        "made_by": f"hyperbench {__version__}",
    }
    recorder.save(Path(out), found, dtype, metadata)
    return metadata


def tokens(loaded: Any, text: str, most: int | None) -> list[int]:
    """The first tokens of a text: as many as are asked for, else 4,096 or as many as there are.

    Raises ValueError if the text or the model has fewer than are asked for.
    """
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and context is not None and most > context:
        raise ValueError(f"--max-tokens {most} is more than the context of {loaded.name}, {context} tokens")
    count = most if most is not None else min(DEFAULT_TOKENS, context or DEFAULT_TOKENS)
    from hyperbench.measure.models.texts import TOKEN_CHARS

    ids: list[int] = loaded.tokenizer(text[: count * TOKEN_CHARS])["input_ids"][:count]
    if most is not None and len(ids) < most:
        raise ValueError(f"--max-tokens {most} is more than the text has: {len(ids)} tokens")
    if not ids:
        raise ValueError("the text has no tokens")
    return ids


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
