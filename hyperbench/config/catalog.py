"""The configuration files that ship with hyperbench: where they are, which names each group has, what each is for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hyperbench.store.files import load_yaml

#: Groups a command line chooses from by `group=name`; the plural is what `hyperbench list` takes.
GROUPS = {"sweep": "sweeps", "method": "methods", "input": "inputs", "protocol": "protocols", "device": "devices"}


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


def names(group: str) -> list[str]:
    """The names of a group, in alphabetical order."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def check_files() -> None:
    """Raise ConfigError, within a moment, on a configuration file whose aliases make it endless or far too long."""
    for path in sorted(conf_dir().rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if "*" in text or "&" in text:
            try:
                load_yaml(text)
            except Exception as error:  # a YAML parser raises whatever its constructors of numbers and dates raise
                raise ConfigError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def entries(group: str) -> dict[str, dict[str, Any]]:
    """Every file of a group as plain data, as it is written (interpolations unresolved)."""
    found = {}
    for name in names(group):
        data = load_yaml((conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"))
        found[name] = data.get("sweep", data) if group == "sweep" else data
    return found


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
