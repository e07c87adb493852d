"""`hyperbench capture`: q, k and v of a language model on a text, as a file for `input=captured`."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from hyperbench.commands.output import print_json, print_lines, print_pairs, stdout
from hyperbench.config import captures
from hyperbench.config.catalog import ConfigError, check_name
from hyperbench.measure.model_facts import ask

DTYPES = ("float16", "bfloat16", "float32", "int8")


@dataclass(frozen=True)
class Options:
    """The options of the command line; `layers` and `heads` are as they are written there, 0,8,16."""

    model: str | None
    text: str | None
    layers: str
    out: Path
    max_tokens: int | None = None
    heads: str | None = None
    dtype: str = "float16"
    licence: str | None = None


def capture(options: Options, *, as_json: bool) -> int:
    """Make the file in a process of its own and print what it holds. Raises ConfigError, one line; no file is left."""
    out = options.out
    check_name("--dtype", options.dtype, DTYPES)
    if options.max_tokens is not None and options.max_tokens < 1:
        raise typer.BadParameter(f"--max-tokens {options.max_tokens} must be at least 1")
    if out.exists():
        raise ConfigError(f"--out {out} is there already; choose another name")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    heads = None if options.heads is None else numbers("--heads", options.heads)
    request = {
        **asdict(options), "layers": numbers("--layers", options.layers), "heads": heads, "out": str(out.absolute()),
    }  # fmt: skip
    told = ask(request, shown=not as_json)
    layers = captures.read(str(out)).layers
    bytes_ = out.stat().st_size
    if as_json:
        print_json({"path": str(out), "bytes": bytes_, "layers": {n: asdict(x) for n, x in layers.items()}, **told})
        return 0
    print_pairs(told.items(), stdout())
    sizes = next(iter(layers.values()))
    print_lines([
        f"{out}: layers {', '.join(map(str, layers))}, {sizes.heads} query heads, {sizes.kv_heads} key heads,"
        f" {sizes.rows:,} rows, head_dim {sizes.head_dim}; {bytes_ / 1e6:.1f} MB",
        f"next: hyperbench run input=captured input.path={shlex.quote(str(out))} input.layer={options.layers}"
        f" shape.seq_len={sizes.rows} is_causal=true",
    ])  # fmt: skip
    return 0


def numbers(option: str, text: str) -> list[int]:
    """The numbers of a list such as 0,8,16. Raises BadParameter on anything else, and on one that is there twice."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= 6 for part in parts):
        raise typer.BadParameter(f"{option} {text} must be whole numbers with commas between them, such as 0,8,16")
    found = [int(part) for part in parts]
    if len(set(found)) < len(found):
        raise typer.BadParameter(f"{option} {text} names one twice")
    return found
