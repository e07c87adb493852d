"""The configuration files that ship with hyperbench: where they are, which names each group has, what each is for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hyperbench.store.files import load_yaml

#: Groups a command line chooses from by `group=name`; the plural is what `hyperbench list` takes.
GROUPS = {"sweep": "sweeps", "method": "methods", "input": "inputs", "protocol": "protocols", "device": "devices"}

#: Groups to which the user's own files add, and the folder in which they lie.
OWN_GROUPS = ("method", "input", "sweep", "protocol")
_OWN = "conf"


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line: the key, the value, what is allowed."""


def conf_dir() -> Path:
    """The folder of the configuration files: inside the installed package, else the checkout's own.

    Raises ConfigError if neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no configuration files beside {package}; reinstall hyperbench")


def own_dir() -> Path | None:
    """The folder conf/ in the current one, with the user's own files; None where there is none.

    That of a checkout of hyperbench is none, whether it is this one or another.
    """
    own = Path(_OWN)
    is_ours = (own / "config.yaml").is_file() and Path("hyperbench/config").is_dir()
    return own if own.is_dir() and not is_ours else None


def path_of(group: str, name: str) -> Path:
    """The file of a name of a group. Raises ConfigError on one of the user's with the name of another that ships."""
    shipped, own = conf_dir() / group / f"{name}.yaml", _own_files(group).get(name)
    if own is None or not shipped.is_file():
        return own or shipped
    raise ConfigError(f"{own} has the name of a {group} that ships with hyperbench; give it another name")


def names(group: str) -> list[str]:
    """The names of a group, in alphabetical order, those of the user's own files among them."""
    return sorted({*shipped_names(group), *_own_files(group)})


def shipped_names(group: str) -> list[str]:
    """The names of a group that ship with hyperbench, in alphabetical order."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _own_files(group: str) -> dict[str, Path]:
    """The user's own files of a group, by name."""
    own = own_dir()
    found = sorted((own / group).glob("*.yaml")) if own is not None and group in OWN_GROUPS else []
    return {path.stem: path for path in found}


def check_files() -> None:
    """Raise ConfigError, within a moment, on a configuration file whose aliases make it endless or far too long."""
    own = [path for group in OWN_GROUPS for path in _own_files(group).values()]
    for path in [*sorted(conf_dir().rglob("*.yaml")), *own]:
        text = _read(path)
        if "*" in text or "&" in text:
            _loaded(path, text)


def check_own(chosen: Mapping[str, Iterable[str]], composed: Mapping[str, Any]) -> None:
    """Raise ConfigError where a chosen name is that of two files, or the user's own file stands in the wrong place.

    `chosen` are names by group; `composed` is the configuration that Hydra made of them.
    """
    defaults = {group: [composed[group].get("name")] for group in OWN_GROUPS if group != "method"}
    for group in OWN_GROUPS:
        own = _own_files(group)
        used = composed["method"] if group == "method" else chosen.get(group, defaults[group])
        for name in dict.fromkeys([*chosen.get(group, ()), *used]):
            path_of(group, str(name))
            place = f"method.{name}" if group == "method" else "_global_"
            misplaced = name not in composed["method"] if group == "method" else "sweep" in composed["sweep"]
            if name in own and group in ("method", "sweep") and misplaced:
                raise ConfigError(f"{own[name]} must begin with the line: # @package {place}")


def entries(group: str, *, shipped: bool = False) -> dict[str, dict[str, Any]]:
    """Every file of a group as plain data, as it is written (interpolations unresolved); or those `shipped` alone.

    Raises ConfigError on one that is damaged, or has the name of another.
    """
    found = {}
    for name in shipped_names(group) if shipped else names(group):
        path = conf_dir() / group / f"{name}.yaml" if shipped else path_of(group, name)
        data = _loaded(path, _read(path))
        found[name] = data.get("sweep", data) if group == "sweep" else data
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def _loaded(path: Path, text: str) -> dict[str, Any]:
    """The mapping that a file holds. Raises ConfigError on anything else."""
    try:
        data = load_yaml(text)
    except Exception as error:  # a YAML parser raises whatever its constructors of numbers and dates raise
        raise ConfigError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must be a mapping of keys to values")
    return data


def leaves(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted key; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def yaml_text(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(yaml_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint that ends an error message: the nearest allowed name, or nothing if none is near."""
    close = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_name(key: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ConfigError unless value is one of the allowed names."""
    options = list(allowed)
    if value not in options:
        raise ConfigError(f"{key}={value} is unknown; allowed: {', '.join(options)}{nearest(str(value), options)}")
