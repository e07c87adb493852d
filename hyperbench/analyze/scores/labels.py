"""Names of curves and panels: a method, with the settings in which several of its points differ."""

from __future__ import annotations

from collections.abc import Sequence

from hyperbench.analyze.format import printable
from hyperbench.analyze.scores.summary import Scored


def labels(found: Sequence[Scored]) -> list[str]:
    """A name for each: its method, and where that has several settings the words that not all of them share."""
    settings: dict[str, list[set[str]]] = {}
    for one in found:
        words = set(one.parameters.split())
        if words not in settings.setdefault(str(one.row["method"]), []):
            settings[str(one.row["method"])].append(words)
    names = []
    for one in found:
        method = str(one.row["method"])
        common = set.intersection(*settings[method])
        own = [word for word in one.parameters.split() if word not in common]
        names.append(printable(" ".join([method, *own])))
    return names


def settings_notes(found: Sequence[Scored]) -> list[str]:
    """A text for each name that tells all settings."""
    told = {name: one.parameters for name, one in zip(labels(found), found, strict=True) if one.parameters}
    return [f"{name}: {text}" for name, text in told.items()]
