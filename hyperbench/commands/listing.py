"""What there is to choose from, in words: for `hyperbench list` and for the completion of the shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hyperbench.commands.output import print_json, stdout
from hyperbench.config import catalog

if TYPE_CHECKING:
    from rich.console import Console

KINDS = (*catalog.GROUPS.values(), "figures", "keys")


def list_(kind: str, *, as_json: bool) -> int:
    """Print everything of a kind. Raises ConfigError on an unknown kind, with the nearest one."""
    if as_json:
        print_json(rows(kind))
    else:
        print_rows(rows(kind), stdout())
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
    return [{"name": name, "description": str(_described(data))} for name, data in catalog.entries(group).items()]


def print_rows(listed: list[dict[str, str]], console: Console) -> None:
    """Two columns, the names in bold."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for row in listed:
        table.add_row(Text(row["name"], style="bold"), Text(row["description"]))
    console.print(table)


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


def _described(data: dict[str, Any]) -> str:
    return data.get("description", "")


def _keys() -> list[dict[str, str]]:
    """Every key with its value as shipped (interpolations unresolved), those of all groups included."""
    import yaml

    root = yaml.safe_load((catalog.conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    root.pop("defaults")
    found = _leaves(root, "")
    for name, data in catalog.entries("method").items():
        found |= _leaves({k: v for k, v in data.items() if k not in ("description", "exact")}, f"method.{name}.")
    for name, data in catalog.entries("input").items():
        for key, value in _leaves(
            {k: v for k, v in data.items() if k not in ("name", "description")}, "input."
        ).items():
            found[key] = f"{value} (input={name})" if key not in found else f"{found[key]}, {value} (input={name})"
    standard = catalog.entries("protocol")["standard"]
    found |= _leaves({k: v for k, v in standard.items() if k not in ("name", "description")}, "protocol.")
    found["device.threads"] = "null"
    return [{"name": key, "description": value} for key, value in found.items()]


def _leaves(data: dict[str, Any], prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = _yaml_text(value)
    return found


def _yaml_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_yaml_text(v) for v in value)}]"
    return str(value)
