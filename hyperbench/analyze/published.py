"""The published claims and curves, as data: read from results/paper, or from the copy inside an installed package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Claim:
    """One published claim; `recalled` ones were written from memory and are labelled so wherever they are shown."""

    id: str
    claim: str
    setting: dict[str, Any]
    quantity: str
    value: float | None
    source: str
    recalled: bool
    figure: str | None = None
    caveat: str = ""

    @property
    def label(self) -> str:
        """The claim with its source, marked as recalled where it is."""
        return f"{self.claim} [{'recalled: ' if self.recalled else ''}{self.source}]"


@dataclass(frozen=True)
class PublishedPoint:
    """A claim that is a point of a figure: a speedup at one length and masking."""

    claim: Claim
    seq_len: int
    is_causal: bool
    device: str
    speedup: float


def data_folder() -> Path:
    """The folder of the published data. Raises FileNotFoundError if it is in neither place."""
    places = (_PACKAGE / "paper", _PACKAGE.parent / "results" / "paper")
    for place in places:
        if (place / "claims.yaml").is_file():
            return place
    raise FileNotFoundError(f"the published data (claims.yaml) is in none of: {', '.join(map(str, places))}")


def load_claims() -> list[Claim]:
    """Every published claim, in the order of the file. Raises ValueError on a malformed entry."""
    import yaml

    path = data_folder() / "claims.yaml"
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["claims"]
    try:
        return [Claim(**entry) for entry in entries]
    except TypeError as error:
        raise ValueError(f"{path}: malformed claim: {error}") from None


def published_points(figure: str) -> list[PublishedPoint]:
    """The claims that a figure marks as published points."""
    return [
        PublishedPoint(claim, at["seq_len"], at["is_causal"], at["device"], claim.value)
        for claim, at in ((claim, claim.setting) for claim in load_claims())
        if claim.figure == figure and claim.value is not None
    ]
