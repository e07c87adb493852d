"""`hyperbench list`, and the completion of the shell: everything that there is to choose from."""

from __future__ import annotations

from typing import Any

from hyperbench.commands.output import print_json, print_pairs, stdout
from hyperbench.config import catalog

#: Entries of a group's files that no command line sets.
_NO_KEYS = ("name", "description", "exact", "kind")
KINDS = (*catalog.GROUPS.values(), "figures", "keys")


def list_(kind: str, *, as_json: bool) -> int:
    """Print everything of a kind. Raises ConfigError on an unknown kind, with the nearest one."""
    if as_json:
        print_json(rows(kind))
    else:
        print_pairs(((row["name"], row["description"]) for row in rows(kind)), stdout())
    return 0


def rows(kind: str) -> list[dict[str, str]]:
    """Name and description of everything of a kind. Raises ConfigError on an unknown kind, with the nearest one."""
    catalog.check_name("list", kind, KINDS)
    if kind == "figures":
        from hyperbench.analyze.figures import available

        return [{"name": name, "description": text} for name, text in available().items()]
    if kind == "keys":
        return _keys()
    group = next(group for group, plural in catalog.GROUPS.items() if plural == kind)
    return [
        {"name": name, "description": str(data.get("description", ""))} for name, data in catalog.entries(group).items()
    ]


def complete_override(incomplete: str) -> list[str]:
    """Completions of a word of `hyperbench run`: names of a group after its `=`, else groups and keys."""
    group, equals, _ = incomplete.partition("=")
    if equals:
        return [f"{group}={name}" for name in catalog.names(group)] if group in catalog.GROUPS else []
    words = [f"{group}=" for group in catalog.GROUPS] + [f"{row['name']}=" for row in _keys()] + ["out="]
    return [word for word in words if word.startswith(incomplete)]


def complete_figure(incomplete: str) -> list[str]:
    """Completions of a figure's name."""
    return [row["name"] for row in rows("figures") if row["name"].startswith(incomplete)]


def complete_kind(incomplete: str) -> list[str]:
    """Completions of what can be listed."""
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def _keys() -> list[dict[str, str]]:
    """Every key with its value as shipped (interpolations unresolved), those of all groups included."""
    import yaml

    root = yaml.safe_load((catalog.conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    root.pop("defaults")
    found = _texts(root) | _texts({"method": catalog.entries("method")})
    for name, data in catalog.entries("input").items():
        for key, text in _texts({"input": data}).items():
            found[key] = f"{text} (input={name})" if key not in found else f"{found[key]}, {text} (input={name})"
    found |= _texts({"protocol": catalog.entries("protocol")["standard"]})
    found["device.threads"] = "null"
    return [{"name": key, "description": text} for key, text in found.items()]


def _texts(data: dict[str, Any]) -> dict[str, str]:
    leaves = catalog.leaves(data)
    return {key: catalog.yaml_text(value) for key, value in leaves.items() if key.rpartition(".")[2] not in _NO_KEYS}
