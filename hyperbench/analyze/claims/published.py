"""The published claims, as data: read from results/paper, or from the copy inside an installed package."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hyperbench.config.catalog import nearest
from hyperbench.store.files import StoreError, load_yaml, read_mapping
from hyperbench.store.plain_data import decoded

#: The methods that claims about HyperAttention are held against.
METHODS = ("hyper_paper", "hyper")
_PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Claim:
    """One published claim; `recalled` ones were written from memory and are labelled so wherever they are shown.

    `check` names the rule by which runs are held against it, with the rule's parameters.
    """

    id: str
    claim: str
    setting: dict[str, Any]
    quantity: str
    value: float | None
    source: str
    recalled: bool
    check: dict[str, Any]
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


def reference_folder() -> Path | None:
    """The folder of the reference runs, results/reference; None where it does not come along, as in a wheel."""
    folder = _PACKAGE.parent / "results" / "reference"
    return folder if folder.is_dir() else None


def load_claims(path: Path | None = None) -> list[Claim]:
    """Every published claim, in the order of the file. Raises StoreError (one line) on a malformed entry."""
    path = data_folder() / "claims.yaml" if path is None else path
    entries = read_mapping(path, load_yaml).get("claims")
    if not isinstance(entries, list):
        raise StoreError(f"{path} is damaged: it holds no list of claims")
    try:
        return [_claim(entry) for entry in entries]
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from None


def published_points(figure: str) -> list[PublishedPoint]:
    """The claims that a figure marks as published points."""
    return [
        PublishedPoint(claim, at["seq_len"], at["is_causal"], at["device"], claim.value)
        for claim, at in ((claim, claim.setting) for claim in load_claims())
        if claim.figure == figure and claim.value is not None
    ]


def _claim(entry: Any) -> Claim:
    """A claim from an entry of the file. Raises ValueError on an unknown or missing key or a wrong value."""
    if not isinstance(entry, dict):
        raise ValueError(f"a claim is a mapping, not {entry!r}")
    names = [field.name for field in fields(Claim)]
    for name in entry:
        if name not in names:
            known = f"allowed: {', '.join(names)}{nearest(str(name), names)}"
            raise ValueError(f"claim {entry.get('id')!r}: unknown key {name!r}; {known}")
    try:
        claim: Claim = decoded(Claim, entry)
    except ValueError as error:
        raise ValueError(f"claim {entry.get('id')!r}: {error}") from None
    return claim
