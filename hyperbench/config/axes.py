"""Axes and grids of a sweep: what varies in a run, read from the sweep's file and from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hyperbench.config import catalog, tasks
from hyperbench.config.catalog import ConfigError, check_name, nearest, yaml_text
from hyperbench.config.overrides import Overrides

if TYPE_CHECKING:
    from omegaconf import DictConfig

SHAPE_KEYS = ("batch", "heads", "kv_heads", "seq_len", "head_dim")
#: Keys that may hold several values; those of an input or of a method as well.
_AXIS_KEYS = (*(f"shape.{key}" for key in SHAPE_KEYS), "dtype", "is_causal", "seed")
#: Keys of a method's file that are not its parameters.
METHOD_KEYS = ("_target_", "description", "exact", "isolate", "kind", "layout", "causal", "allow_leak")
#: The axis of a sweep that names its inputs; on the command line that is the group `input`.
INPUT_AXIS = "input"

Axes = dict[str, list[Any]]
Resolved = Mapping[str, Any]


def inputs_of(cfg: DictConfig, overrides: Overrides) -> list[str]:
    """The inputs that the command line chooses, else those of the sweep's axis `input`; none: that of the defaults.

    Raises ConfigError on an unknown name.
    """
    from omegaconf import DictConfig, ListConfig, OmegaConf

    for setting in overrides.settings:
        if setting.key == f"sweep.axes.{INPUT_AXIS}":
            raise ConfigError(f"{setting.word!r}: choose inputs by input=NAME,NAME")
    chosen = overrides.groups.get("input")
    if chosen is None:
        axes = OmegaConf.select(cfg, "sweep.axes")
        written = axes.get(INPUT_AXIS, []) if isinstance(axes, DictConfig) else []
        chosen = [str(name) for name in (written if isinstance(written, ListConfig | list) else [written])]
        for name in chosen:
            check_name(f"sweep.axes.{INPUT_AXIS}", name, catalog.names("input"))
    return list(dict.fromkeys(chosen))


def axes_of(cfg: DictConfig, composed: Resolved, overrides: Overrides, inputs: list[str]) -> Axes:
    """The axes of the sweep, replaced by those of the command line; a list where one value belongs is an axis too.

    Several `inputs` are an axis as well, the last one. `composed` is `cfg` as plain data.
    """
    from omegaconf import ListConfig, OmegaConf

    written = composed["sweep"].get("axes") or {}
    if not isinstance(written, dict):
        raise ConfigError(f"sweep.axes={yaml_text(written)} must be a mapping from keys to values")
    sweep_axes = {str(key): value for key, value in written.items() if key != INPUT_AXIS}
    for key in sweep_axes:
        _check_axis_key(key, composed)
    axes = {key: _listed(value) for key, value in sweep_axes.items()}
    axes.update({key: [value] for key, value in overrides.fixed.items() if key in axes})
    for key, values in overrides.axes.items():
        _check_axis_key(key, composed)
        axes[key] = values
    for key in _AXIS_KEYS:
        value = OmegaConf.select(cfg, key)
        if key not in overrides.axes and isinstance(value, ListConfig) and (key not in axes or key in overrides.fixed):
            axes[key] = list(value)
    if len(inputs) < 2:
        axes = tasks.data_axes(composed["input"]) | axes
    for key, values in axes.items():
        if len(values) == 1 and isinstance(values[0], list):
            axes[key] = list(values[0])
        _check_values(key, axes[key], inputs)
    return {**axes, INPUT_AXIS: inputs} if len(inputs) > 1 else axes


def grids_of(composed: Resolved, overrides: Overrides, inputs: list[str]) -> list[Axes]:
    """The grids of the sweep: axes that each adds to those of the whole sweep; one without any where it has no grids.

    The command line's value of a method's key replaces those of every grid, and keys of methods that this run leaves
    out are left out. Of other keys a grid keeps the values that the command line asks for, and without one it is left
    out. Raises ConfigError on what is no grid, on a key that is no axis, and where no grid is left.
    """
    written = composed["sweep"].get("grids", [{}])
    if not isinstance(written, list) or not written or not all(isinstance(grid, dict) for grid in written):
        raise ConfigError(f"sweep.grids={yaml_text(written)} must be a list of mappings, each from keys to values")
    left_out = {f"method.{name}" for name in catalog.names("method") if name not in composed["method"]}
    asked = {key: _listed(value) for key, value in overrides.fixed.items()} | overrides.axes
    grids: list[Axes] = []
    for written_grid in written:
        grid: Axes = {}
        for key, value in written_grid.items():
            if str(key).rpartition(".")[0] in left_out:
                continue
            _check_axis_key(str(key), composed)
            values = _listed(value)
            _check_values(key, values, inputs)
            if key not in asked:
                grid[key] = values
            elif not key.startswith("method."):
                grid[key] = [item for item in values if item in asked[key]]
        if all(grid.values()) and grid not in grids:
            grids.append(grid)
    if not grids:
        raise ConfigError("no grid of this sweep holds what the command line asks for; leave a key out")
    return grids


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _check_values(key: str, values: list[Any], inputs: list[str]) -> None:
    if not values:
        raise ConfigError(f"{key}=[] is empty; give at least one value")
    if len(inputs) > 1 and key.startswith("input."):
        raise ConfigError(f"{key} cannot be swept together with several inputs; choose one input")


def _check_axis_key(key: str, composed: Resolved) -> None:
    parts = key.split(".")
    if key in _AXIS_KEYS or (parts[0] == "input" and len(parts) == 2):
        return
    if parts[0] == "method" and len(parts) == 3:
        if parts[1] not in composed["method"]:
            chosen = ", ".join(composed["method"])
            raise ConfigError(f"{key} is swept, but {parts[1]} is none of the methods of this run ({chosen})")
        if parts[2] in METHOD_KEYS:
            raise ConfigError(f"{key} takes one value for a run: {parts[2]} is no parameter of the method")
        return
    raise ConfigError(
        f"{key} takes one value for a run; axes of a grid are {', '.join(_AXIS_KEYS)}, input.KEY and method.NAME.KEY"
        f"{nearest(key, _AXIS_KEYS)}"
    )
