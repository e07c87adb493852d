"""The command line's KEY=VALUE words: read with Hydra's own parser, split into plain overrides and axes of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.config import catalog, paths, tasks
from hyperbench.config.catalog import ConfigError, check_name, nearest, yaml_text
from hyperbench.config.inputs import FUNCTION, TARGET

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

#: Keys that hold a list by themselves; a comma makes a longer list of them and no axis.
_LIST_KEYS = ("passes", "error.seeds")
#: Other words for a name of a group.
_ALIASES = {("device", "gpu"): "cuda"}
#: Below these a key may be added that no file has.
_OPEN = ("method.", "input.", "protocol.", "error.", "sweep.axes.", "device.env.")


@dataclass(frozen=True)
class Setting:
    """One key and its value; `action` is "" (set), "+" (add), "++" (add or set) or "~" (leave out), as Hydra has it."""

    word: str
    action: str
    key: str
    value: Any


@dataclass(frozen=True)
class Overrides:
    """The settings, axes and groups that a command line asks for.

    Attributes:
        settings: keys to set, in order; a swept key stands here with the first of its values.
        axes: key -> values, for keys with several values.
        fixed: key -> value, for keys with one value.
        groups: group -> chosen names.
        out: the folder named by out=DIR, or None.
    """

    settings: tuple[Setting, ...]
    axes: dict[str, list[Any]]
    fixed: dict[str, Any]
    groups: dict[str, list[str]]
    out: Path | None


def parse(words: Sequence[str]) -> Overrides:
    """Read the words of a command line.

    Raises ConfigError on a word that is no override, a key that is given twice, or an unknown name of a group.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    settings: list[Setting] = []
    axes: dict[str, list[Any]] = {}
    fixed: dict[str, Any] = {}
    groups: dict[str, list[str]] = {}
    out: Path | None = None
    given: dict[str, str] = {}
    for given_word in words:
        word = tasks.renamed(given_word)
        if word.startswith("out="):
            _check_once("out", word, given)
            # A path is taken as it stands: spaces, commas and brackets mean nothing in it.
            if word == "out=":
                raise ConfigError("out= names no folder; give out=DIR")
            out = paths.folder(word.removeprefix("out="))
            continue
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{word!r} is no override (KEY=VALUE or KEY=A,B): {reason}") from None
        key = override.key_or_group
        if override.package is not None:
            raise ConfigError(f"{word!r}: @{override.package} has no meaning here; leave it out")
        if override.is_delete() and not (key.startswith("method.") and key.count(".") == 1):
            raise ConfigError(f"{word!r}: only a method can be left out, by ~method.NAME")
        if key == "out":
            raise ConfigError(f"{word!r}: name the folder by out=DIR")
        _check_once(key, word, given)
        values = _values(override, word)
        action = word[: len(word) - len(word.lstrip("+~"))]
        if key in catalog.GROUPS:
            if action:
                raise ConfigError(f"{word!r}: choose a {key} by {key}=NAME")
            groups[key] = _names(key, word, values, words)
        elif key in _LIST_KEYS:
            settings.append(Setting(word, "", key, _flatten(values)))
        else:
            settings.append(Setting(word, action, key, values[0]))
            if len(values) == 1:
                fixed[key] = values[0]
            else:
                axes[key] = values
    if f"input.{TARGET}" in given:
        # A function alone: none of the parameters of the input that is chosen otherwise are its own.
        groups.setdefault("input", [FUNCTION])
    return Overrides(tuple(settings), axes, fixed, groups, out)


def _check_once(key: str, word: str, given: dict[str, str]) -> None:
    """Raise ConfigError on the second word for a key, and note the first."""
    if key in given:
        several = "" if key == "out" else f"; several values are {key}=A,B"
        raise ConfigError(f"{key} is given twice, by {given[key]!r} and {word!r}; leave one out{several}")
    given[key] = word


def _names(group: str, word: str, values: list[Any], words: Sequence[str]) -> list[str]:
    """The names of a group that a word chooses. Raises ConfigError on an unknown one."""
    texts = [yaml_text(value) for value in _flatten(values)]
    chosen = [_ALIASES.get((group, text), text) for text in texts]
    if not chosen:
        raise ConfigError(f"{word!r} names no {group}; allowed: {', '.join(catalog.names(group))}")
    for name in chosen:
        added = next((w for w in words if w.lstrip("+").startswith(f"{group}.{name}.") and w.startswith("+")), None)
        if group == "method" and added and name not in catalog.names(group):
            raise ConfigError(
                f"{word!r}: leave {name} out of the list, {added!r} adds it to the methods that are chosen"
            )
        check_name(group, name, catalog.names(group))
    return chosen


def apply(settings: Sequence[Setting], cfg: DictConfig) -> None:
    """Set the keys of a composed configuration, in place.

    Raises ConfigError on a key that it does not have and that nothing would read, and on a value that does not fit.
    """
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    before = OmegaConf.to_container(cfg, resolve=False)
    known = flat_keys(before)
    for setting in settings:
        _check_key(setting, known)
        key, value = setting.key, setting.value
        try:
            if setting.action == "~":
                with open_dict(cfg):
                    del cfg.method[key.removeprefix("method.")]
                continue
            there = OmegaConf.select(cfg, key, throw_on_missing=False)
            if setting.action == "+" and there is not None and not isinstance(value, dict | list):
                raise ConfigError(f"{setting.word!r}: {key} has a value already; set it by {key}={yaml_text(value)}")
            OmegaConf.update(cfg, key, value, merge=True, force_add=bool(setting.action))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{setting.word!r}: {' '.join(str(error).split())}") from None
    _check_mappings(before, OmegaConf.to_container(cfg, resolve=False))


def _check_key(setting: Setting, known: Sequence[str]) -> None:
    """Raise ConfigError if the key of a setting is none that the configuration has or that may be added to it."""
    key, (group, _, rest) = setting.key, setting.key.partition(".")
    if key in known:
        return
    if setting.action.startswith("+"):
        if not key.startswith(_OPEN):
            raise ConfigError(f"{setting.word!r}: nothing reads the key {key!r}{nearest(key, known)}")
        return
    method = rest.partition(".")[0]
    if group == "method" and method in catalog.names("method") and f"method.{method}" not in known:
        raise ConfigError(f"{key}: method {method} is not chosen; choose it by method=[...,{method}]")
    raise ConfigError(f"unknown key {key!r}{nearest(key, known) or '; `hyperbench list keys` shows all'}")


def _check_mappings(before: Any, after: Any, prefix: str = "") -> None:
    """Raise ConfigError where an override put something else in the place of a mapping of the configuration."""
    for name, value in before.items():
        if isinstance(value, dict) and name in after:
            if not isinstance(after[name], dict):
                raise ConfigError(
                    f"{prefix}{name}={yaml_text(after[name])} must be a mapping; set its keys"
                    f" ({', '.join(f'{prefix}{name}.{key}' for key in value) or 'none'}) one by one"
                )
            _check_mappings(value, after[name], f"{prefix}{name}.")


def flat_keys(data: Any, prefix: str = "") -> list[str]:
    """Every key of nested mappings, dotted, inner nodes included."""
    keys: list[str] = []
    for name, value in data.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, dict):
            keys.extend(flat_keys(value, f"{prefix}{name}."))
    return keys


def _values(override: Override, word: str) -> list[Any]:
    from hydra.core.override_parser.types import ValueType

    if override.is_sweep_override():
        # Hydra calls its glob a choice too; there is nothing here for it to match.
        if not override.is_choice_sweep() or override.value_type is ValueType.GLOB_CHOICE_SWEEP:
            raise ConfigError(f"{word!r}: a grid needs listed values, such as {override.key_or_group}=1,2,4")
        # The types of the two parsers' values differ; repr-free element strings keep quoting out of the messages.
        return [_plain(value) for value in override.sweep_iterator()]
    return [_plain(override.value())]


def _plain(value: Any) -> Any:
    """Hydra's quoted strings become strings; lists and mappings keep plain elements."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.text if type(value).__name__ == "QuotedString" else value


def _flatten(values: list[Any]) -> list[Any]:
    return [item for value in values for item in (_flatten(value) if isinstance(value, list) else [value])]
