"""Perplexity of a language model with HyperAttention in all of its layers: of a text, and of one that is read twice.

A text that comes again, with another one between, is known by heart to exact attention; an approximation has to find
the few keys that matter. The folder that is written holds losses.csv (a row for each piece of text, setting and part)
and environment.json. Needs transformers (pip install 'hyperbench[lm]') and the small model or --model.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import math
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

import torch
from torch import Tensor

from hyperattn_core import HyperAttentionParams
from hyperattn_core.transformers import patched
from hyperbench.flops import hyper_keys
from hyperbench.measure.models.load import Loaded, load
from hyperbench.measure.models.texts import Text, read_text
from hyperbench.measure.probe import main as probe
from hyperbench.store import provenance
from hyperbench.store.schema import SCHEMA_VERSION

#: Sampling and pairing of each setting; exact attention besides.
SETTINGS = {
    "stratified": ("stratified", "bucket"), "probed": ("probed", "bucket"), "truncated": ("truncated", "bucket"),
    "routed": ("probed", "routed"), "routed, truncated": ("truncated", "routed"),
}  # fmt: skip
EXACT = "exact"
#: The parts of a piece: a text once, and the readings of the same quarter before and after another half.
ONCE, FIRST, FILLER, SECOND = "once", "first reading", "between", "second reading"
_ROWS_AT_ONCE = 512


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", required=True, help="folder to write")
    add("--text", metavar="FILE", help="a text in UTF-8 (default: the help that ships with Python)")
    add("--model", metavar="DIR_OR_NAME", help="a Hugging Face model (default: the small one)")
    for name, value, text in (
        ("seq-len", 2048, "tokens of a piece"),
        ("pieces", 3, "pieces of the text, evenly apart"),
        ("block-size", 128, "keys of a block"),
        ("sample-size", 32, "sampled keys of a node"),
        ("min-seq-len", 128, "length of the exact leaves"),
    ):
        add(f"--{name}", type=int, default=value, metavar="N", help=f"{text} (default %(default)s)")
    return parser


def pieces_of(ids: Sequence[int], length: int, count: int) -> list[tuple[list[int], list[int]]]:
    """`count` pieces of `length` tokens, each as it is and as quarter, half and the same quarter again.

    Raises ValueError if the text is too short for them, or the length no multiple of four.
    """
    if length < 4 or length % 4 or count < 1:
        raise ValueError(f"--seq-len={length} must be a multiple of 4, and --pieces={count} at least 1")
    if len(ids) < length + count - 1:
        raise ValueError(f"--seq-len={length}, --pieces={count}: the text has {len(ids):,} tokens")
    found = []
    for i in range(count):
        once = list(ids[(start := i * (len(ids) - length) // max(1, count - 1)) : start + length])
        found.append((once, once[: length // 4] + once[length // 4 : 3 * length // 4] + once[: length // 4]))
    return found


@torch.no_grad()
def losses(model: Any, ids: Sequence[int]) -> Tensor:
    """The loss (natural logarithm) of each token but the first, (N - 1,); the model's embedding is its head too."""
    hidden = model(input_ids=torch.tensor([list(ids)]), use_cache=False).last_hidden_state[0, :-1]
    head, wanted = model.get_input_embeddings().weight, torch.tensor(list(ids[1:]))
    parts = zip(hidden.split(_ROWS_AT_ONCE), wanted.split(_ROWS_AT_ONCE), strict=True)
    return torch.cat([torch.nn.functional.cross_entropy(rows @ head.T, ids, reduction="none") for rows, ids in parts])


def read(loaded: Loaded, ids: Sequence[int], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each piece, setting and part: the mean loss over the tokens of the part."""
    quarter = args.seq_len // 4
    for number, (once, twice) in enumerate(pieces_of(ids, args.seq_len, args.pieces)):
        for setting in (EXACT, *SETTINGS):
            params = params_of(setting, args)
            layers = [] if params is None else None
            with patched(loaded.model, layers, params=params, seed=number, strict=True):
                of_once, of_twice = losses(loaded.model, once), losses(loaded.model, twice)
            parts = {
                ONCE: of_once, FIRST: of_twice[: quarter - 1], FILLER: of_twice[quarter - 1 : 3 * quarter - 1],
                SECOND: of_twice[3 * quarter - 1 :],
            }  # fmt: skip
            for part, found in parts.items():
                yield {
                    "piece": number,
                    "setting": setting,
                    "part": part,
                    "tokens": len(found),
                    "loss": float(found.mean()),
                }


def params_of(setting: str, args: argparse.Namespace) -> HyperAttentionParams | None:
    """The parameters of a setting; None for exact attention."""
    if setting == EXACT:
        return None
    sampling, pairing = SETTINGS[setting]
    return HyperAttentionParams(
        args.block_size, args.sample_size, min_seq_len=args.min_seq_len, sampling=sampling, pairing=pairing  # type: ignore[arg-type]
    )  # fmt: skip


def table(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> str:
    """Perplexities as a table in Markdown: over all pieces, and the lowest and highest of one."""
    keys = hyper_keys(args.seq_len, args.block_size, args.sample_size, args.min_seq_len, is_causal=True)
    lines = [f"about {keys:.0f} keys a query, {args.seq_len / 2:.0f} by exact attention", ""]
    lines += [f"| | {ONCE} | {FIRST} | {SECOND} |", "|---|---:|---:|---:|"]
    for setting in (EXACT, *SETTINGS):
        cells = []
        for part in (ONCE, FIRST, SECOND):
            found = [row["loss"] for row in rows if (row["setting"], row["part"]) == (setting, part)]
            low, high = math.exp(min(found)), math.exp(max(found))
            cells.append(f"{math.exp(sum(found) / len(found)):.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _environment(loaded: Loaded, text: Text, args: argparse.Namespace) -> dict[str, Any]:
    own = {
        "device": "cpu",
        "run_id": uuid.uuid4().hex[:12],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "schema_version": SCHEMA_VERSION,
    }
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "model")}
    told = {"model": loaded.name, "text_sha256": text.sha256, **settings, "text": text.name}
    return {**provenance.collect(probe.facts(), own, {}), "settings": told}


def run(args: argparse.Namespace) -> str:
    """Read all pieces with every setting and write the folder; the table. Raises ValueError, one line."""
    for setting in SETTINGS:
        params_of(setting, args)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"--out={args.out} is there already and not an empty folder; name another")
    text, loaded = read_text(args.text), load(args.model)
    if not loaded.model.config.get_text_config().tie_word_embeddings:
        raise ValueError(f"--model {args.model}: its head is not its embedding, and only those are read here")
    rows = list(read(loaded, loaded.tokenizer(text.text)["input_ids"], args))
    args.out.mkdir(parents=True, exist_ok=True)
    environment = json.dumps(_environment(loaded, text, args), indent=2)
    (args.out / "environment.json").write_text(environment + "\n", encoding="utf-8")
    with (args.out / "losses.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return table(rows, args)


def main(words: Sequence[str] | None = None) -> int:
    """Read; 0 done, 2 bad usage, 130 interrupted."""
    args = make_parser().parse_args(words)
    try:
        print(run(args))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
