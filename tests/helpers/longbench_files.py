"""Small files in the format of LongBench: one dataset of each group, with answers that a test can know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONTEXT = "The cat of Anna is black and the dog of Boris is white and nobody knows the colour of the bird. " * 12
#: A dataset of each group -> what its lines hold besides the context.
LINES: dict[str, dict[str, Any]] = {
    "multifieldqa_en": {"input": "What is the cat of Anna?", "answers": ["black", "It is black."]},
    "hotpotqa": {"input": "Who has a dog?", "answers": ["Boris"]},
    "gov_report": {"input": "", "answers": ["Anna has a cat. Boris has a dog."]},
    "trec": {"input": "Question: Who?\nType:", "answers": ["Person"], "all_classes": ["Person", "Place"]},
    "passage_count": {"input": "", "answers": ["3"]},
    "lcc": {"input": "", "answers": ["    return cat"]},
}


def line(dataset: str, number: int = 0, **changes: Any) -> str:
    """A line of a dataset's file; one that is changed to None is left out."""
    fields = {
        "input": "", "context": f"Example {number}. {CONTEXT}", "answers": ["black"], "length": 200, "dataset": dataset,
        "language": "en", "all_classes": None, "_id": f"{number:08d}", **LINES.get(dataset, {}), **changes,
    }  # fmt: skip
    return json.dumps({key: value for key, value in fields.items() if value is not None or key == "all_classes"})


def write(folder: Path, count: int = 2, **texts: str) -> Path:
    """A folder with a file of `count` lines for each group, or of these texts by dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    found = texts or {name: "".join(f"{line(name, i)}\n" for i in range(count)) for name in LINES}
    for name, text in found.items():
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder
