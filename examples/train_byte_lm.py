"""Train a small byte-level language model with exact attention, with HyperAttention, and with a wrong gradient of it.

Every attention starts from the same weights and sees the same batches. The folder that is written holds losses.csv,
summary.json and environment.json; --table prints the tables of such a folder as Markdown. docs/training.md tells more.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

import torch
from byte_lm import Text, python_help
from detached_merge import check_lengths
from lm_gradients import calls_of, gradient_errors, share_met
from lm_summary import SummaryError, read_summary, summarise, table
from lm_training import ATTENTIONS, MAX_LAYERS, Row, Settings, evaluate, make_attend, train

from hyperattn_core import HyperAttentionParams
from hyperattn_core.backends import backend_for
from hyperbench.measure.probe import main as probe
from hyperbench.store import provenance
from hyperbench.store.schema import SCHEMA_VERSION

_QUICK = {
    "seeds": 1, "steps": 100, "batch": 4, "context": 128, "width": 64, "heads": 2, "eval_batches": 4,
    "min_seq_len": 16, "threads": 1,
}  # fmt: skip
_COUNTS = (
    ("seeds", 3, "trainings with each attention, from seeds 0 to N-1"),
    ("steps", 200, "optimiser steps"),
    ("batch", 4, "pieces of text in a step"),
    ("context", 512, "bytes in a piece"),
    ("width", 128, "columns of the model"),
    ("heads", 4, "heads of each layer"),
    ("layers", 2, "layers of the model"),
    ("eval-every", 50, "steps between evaluations"),
    ("eval-batches", 8, "held-out batches in an evaluation"),
    ("min-seq-len", 32, "length of the exact leaves"),
    ("block-size", 16, "keys of a block"),
    ("sample-size", 16, "sampled keys of a node"),
    ("num-projections", 7, "hyperplanes of the hash"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, and exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)


def _learning_rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text}")
    return value


def make_parser() -> argparse.ArgumentParser:
    """The command line; its defaults are the full setting."""
    parser = _Parser(
        prog=Path(__file__).name,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="folder to write (default results/runs/training-DEVICE-TIME)")
    add("--table", type=Path, metavar="DIR", help="print the tables of a folder as Markdown, and train nothing")
    add("--quick", action="store_true", help="a small setting, less than 20 s; what else is given still counts")
    add("--attentions", nargs="+", choices=ATTENTIONS, default=list(ATTENTIONS), help="to train with (default all)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU if there is one (default)")
    for name, value, text in _COUNTS:
        add(f"--{name}", type=_count, default=value, metavar="N", help=f"{text} (default %(default)s)")
    add("--learning-rate", type=_learning_rate, default=3e-3, metavar="X", help="of AdamW (default %(default)s)")
    add("--threads", type=_count, metavar="N", help="CPU threads (default: PyTorch's choice)")
    return parser


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, Settings | None]:
    """The arguments and the settings they make; exits with code 2 and one line where they do not fit together."""
    parser = make_parser()
    args = parser.parse_args(words)
    if args.quick:
        parser.set_defaults(**_QUICK)
        args = parser.parse_args(words)
    args.attentions = list(dict.fromkeys(args.attentions))
    if args.table is not None:
        return args, None
    try:
        return args, _settings(args)
    except ValueError as error:
        parser.error(str(error))


def _settings(args: argparse.Namespace) -> Settings:
    values, held_out = vars(args), len(python_help().held_out)
    if args.width % (2 * args.heads):
        raise ValueError(f"--width={args.width} must be a multiple of twice --heads={args.heads}")
    if args.layers > MAX_LAYERS:
        raise ValueError(f"--layers={args.layers} must be at most {MAX_LAYERS}")
    if args.context >= held_out:
        raise ValueError(f"--context={args.context} must be below the {held_out} held-out bytes")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: PyTorch sees no CUDA GPU here; allowed: auto, cpu")
    check_lengths(args.context, args.min_seq_len)
    if args.out is not None and args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"--out={args.out} is there already and not an empty folder; name another")
    known = {field.name for field in fields(HyperAttentionParams)}
    params = HyperAttentionParams(**{name: value for name, value in values.items() if name in known})
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    own = {field.name for field in fields(Settings)} - {"params", "device"}
    return Settings(params=params, device=device, **{name: values[name] for name in own})


def run(args: argparse.Namespace, settings: Settings, out: Path) -> dict[str, Any]:
    """Train all that was asked for; the files in the folder `out` are written anew after each training."""
    text = python_help()
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "environment.json", _environment(args, settings))
    rows: list[Row] = []
    seconds: dict[str, list[float]] = {name: [] for name in args.attentions}
    facts: dict[str, Any] = {"exact_read_with_hyper": [], "share_met": [], "gradient_errors": []}
    summary: dict[str, Any] = {}
    for seed in range(args.seeds):
        for name in args.attentions:
            trained = train(name, make_attend(name), text, settings, seed, _say)
            rows += trained.rows
            seconds[name].append(trained.seconds)
            if name == "exact":
                facts["exact_read_with_hyper"].append(evaluate(trained.model, make_attend("hyper"), text, settings))
            if name == "hyper":
                calls = calls_of(trained.model, text, settings)
                facts["share_met"].append(sum(share_met(call.plan) for call in calls) / len(calls))
                facts["gradient_errors"] += [{"seed": seed, **asdict(error)} for error in gradient_errors(calls)]
            summary = {**_origin(text, settings, args), **summarise(rows, seconds, facts)}
            _write_rows(out / "losses.csv", rows)
            _write_json(out / "summary.json", summary)
    return summary


def _origin(text: Text, settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    head_dim = settings.width // settings.heads
    return {
        "text": {
            "name": text.name,
            "sha256": text.sha256,
            "train_bytes": len(text.train),
            "held_out_bytes": len(text.held_out),
        },
        "settings": {**asdict(settings), "seeds": args.seeds, "attentions": args.attentions},
        "hyper_backend": backend_for(settings.device, torch.float32, head_dim, head_dim, settings.params)[0],
    }


def _environment(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    own = {
        "device": settings.device,
        "device_reason": f"--device={args.device}",
        "run_id": uuid.uuid4().hex[:12],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "schema_version": SCHEMA_VERSION,
    }
    return provenance.collect(probe.facts(), own, {})


def _write_rows(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Row))
        writer.writerows(asdict(row).values() for row in rows)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def _say(row: Row) -> None:
    train_loss = "" if row.train_loss is None else f", train {row.train_loss:.4f}"
    print(
        f"seed {row.seed} {row.attention} step {row.step}: held out {row.eval_loss:.4f},"
        f" read with exact {row.eval_loss_exact:.4f}{train_loss}",
        file=sys.stderr,
    )


def main(words: Sequence[str] | None = None) -> int:
    """Train or print; 0 done, 2 bad usage, 130 interrupted."""
    args, settings = parse(sys.argv[1:] if words is None else words)
    try:
        if settings is None:
            print(table(read_summary(args.table)))
            return 0
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        out = args.out or Path(f"results/runs/training-{settings.device}-{datetime.datetime.now():%Y%m%d-%H%M%S}")
        print(table(run(args, settings, out)))
    except SummaryError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"--out: {error.filename} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the trainings that were finished are in the folder", file=sys.stderr)
        return 130
    print(f"written to {out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
