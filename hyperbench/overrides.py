"""The command line's KEY=VALUE words: read with Hydra's own parser, split into plain overrides and axes of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperbench import catalog
from hyperbench.catalog import ConfigError, check_name, nearest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_ADD = "+"
#: Keys that hold a list by themselves; a comma makes a longer list of them and no axis.
_LIST_KEYS = ("passes", "error.seeds")


@dataclass(frozen=True)
class Overrides:
    """What a command line asks for.

    Attributes:
        plain: overrides for Hydra; a swept key stands here with the first of its values.
        axes: key -> values, for keys with several values.
        fixed: key -> value, for keys with one value.
        methods: the chosen methods, or None for those of the sweep.
        groups: group -> chosen names.
        out: the folder named by out=DIR, as it was typed, or None.
    """

    plain: tuple[str, ...]
    axes: dict[str, list[Any]]
    fixed: dict[str, Any]
    methods: list[str] | None
    groups: dict[str, list[str]]
    out: str | None


def parse(words: Sequence[str]) -> Overrides:
    """Read the words of a command line. Raises ConfigError on a word that is no override or an unknown group name."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    plain: list[str] = []
    axes: dict[str, list[Any]] = {}
    fixed: dict[str, Any] = {}
    groups: dict[str, list[str]] = {}
    methods: list[str] | None = None
    out: str | None = None
    for word in words:
        if word.startswith("out="):
            # A path is taken as it stands: spaces, commas and brackets mean nothing in it.
            out = word.removeprefix("out=")
            if not out:
                raise ConfigError("out= names no folder; give out=DIR")
            continue
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{word!r} is no override (KEY=VALUE or KEY=A,B): {reason}") from None
        key = override.key_or_group
        values = _values(override, word)
        if key in catalog.GROUPS:
            if override.is_delete() or override.is_add():
                raise ConfigError(f"{word!r}: choose a {key} by {key}=NAME")
            chosen = _flatten(values)
            for name in chosen:
                check_name(key, name, catalog.names(key))
            if key == "method":
                methods = chosen
                plain.append(f"method=[{','.join(chosen)}]")
            else:
                groups[key] = chosen
        elif key in _LIST_KEYS:
            plain.append(f"{key}=[{','.join(_text(v) for v in _flatten(values))}]")
        elif len(values) == 1:
            plain.append(word)
            fixed[key] = values[0]
            axes.pop(key, None)
        else:
            prefix = _ADD * (2 if override.is_force_add() else 1 if override.is_add() else 0)
            plain.append(f"{prefix}{key}={_text(values[0])}")
            axes[key] = values
            fixed.pop(key, None)
    return Overrides(tuple(plain), axes, fixed, methods, groups, out)


def check_keys(overrides: Sequence[str], known: Sequence[str]) -> None:
    """Raise ConfigError on an override of a key that the composed configuration does not have."""
    for word in overrides:
        key = word.split("=", 1)[0]
        if key.startswith((_ADD, "~")) or key in catalog.GROUPS:
            continue
        if key not in known:
            raise ConfigError(
                f"unknown key {key!r}{nearest(key, known) or '; `hyperbench run --dry-run` lists what there is'}"
            )


def flat_keys(data: Any, prefix: str = "") -> list[str]:
    """Every key of nested mappings, dotted, inner nodes included."""
    keys: list[str] = []
    for name, value in data.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, dict):
            keys.extend(flat_keys(value, f"{prefix}{name}."))
    return keys


def _values(override: Override, word: str) -> list[Any]:
    if override.is_sweep_override():
        if not override.is_discrete_sweep():
            raise ConfigError(f"{word!r}: a grid needs listed values, such as {override.key_or_group}=1,2,4")
        # The types of the two parsers' values differ; repr-free element strings keep quoting out of the messages.
        return [_plain(value) for value in override.sweep_iterator()]
    return [_plain(override.value())]


def _plain(value: Any) -> Any:
    """Hydra's quoted strings become strings; lists and mappings keep plain elements."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.text if type(value).__name__ == "QuotedString" else value


def _flatten(values: list[Any]) -> list[str]:
    flat: list[str] = []
    for value in values:
        flat.extend(_flatten(value) if isinstance(value, list) else [value if isinstance(value, str) else _text(value)])
    return flat


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
