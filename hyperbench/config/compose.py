"""The configuration of a run from the words of a command line: Hydra composes, this module expands the axes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.config import catalog, inputs, types
from hyperbench.config.catalog import ConfigError, check_name, nearest
from hyperbench.config.overrides import Overrides, apply, parse
from hyperbench.config.types import CallOptions, DeviceConfig, ErrorConfig, ProtocolConfig
from hyperbench.store.run_folder import config_hash
from hyperbench.store.schema import Point

if TYPE_CHECKING:
    from omegaconf import DictConfig

_SHAPE_KEYS = ("batch", "heads", "kv_heads", "seq_len", "head_dim")
#: Keys that may hold several values; those of an input or of a method as well.
_AXIS_KEYS = (*(f"shape.{key}" for key in _SHAPE_KEYS), "dtype", "is_causal", "seed")
#: Keys of a method's file that are not its parameters.
METHOD_KEYS = ("_target_", "description", "exact", "isolate", "kind", "layout", "causal", "allow_leak")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run needs to know, checked; `resolved` is what config.yaml holds.

    Parameters of `points` that are null are not yet those of the method; `exact_methods` claim to be exact,
    `isolated_methods` get worker processes of their own; `call_options` say how each method is called.
    """

    sweep: str
    device: DeviceConfig
    protocol: ProtocolConfig
    error: ErrorConfig
    passes: tuple[str, ...]
    stages: bool
    points: tuple[Point, ...]
    exact_methods: frozenset[str]
    isolated_methods: frozenset[str]
    call_options: dict[str, CallOptions]
    axes: dict[str, list[Any]]
    out: Path | None
    resolved: dict[str, Any]

    @property
    def config_hash(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the resolved configuration."""
        return config_hash(self.resolved)

    @property
    def targets(self) -> tuple[str, ...]:
        """The functions from outside or of our own that are measured, or make inputs; each once."""
        makers = (inputs.target_of(point.input_params) for point in self.points)
        return tuple(dict.fromkeys([*(point.target for point in self.points), *(name for name in makers if name)]))


def load(words: Sequence[str], choose_device: Callable[[str], tuple[str, str]]) -> RunConfig:
    """Compose and check the configuration of a command line.

    `choose_device` turns the configured device (auto, cpu or cuda) into one that is there and a reason, or raises
    ConfigError. Raises ConfigError, one line, on anything that cannot be run.
    """
    overrides = parse(words)
    asked = _only("device", overrides.groups.get("device", ["auto"]))
    device, reason = choose_device(asked)
    names = overrides.groups.get("input", [])
    base = _compose(overrides, device)
    first = base[0]
    axes = _axes(first, overrides, len(names) > 1)
    if len(names) > 1:
        axes = {**axes, "input": list(names)}
    resolved = _resolve(first)
    resolved["sweep"]["axes"] = axes
    if len(base) > 1:
        resolved["inputs"] = [_resolve(cfg)["input"] for cfg in base]
    resolved.pop("out")
    of_device = resolved["device"]
    env = {str(key): str(value) for key, value in of_device["env"].items()}
    device_config = DeviceConfig(device, of_device["dtypes"], of_device["threads"], env, reason)
    protocol = types.typed(ProtocolConfig, resolved["protocol"], "protocol")
    passes = types.passes_of(resolved["passes"], protocol)
    points = _expand(base, {key: values for key, values in axes.items() if key != "input"}, device_config)
    if files := inputs.files_of(points):
        resolved["input_files"] = files
    return RunConfig(
        sweep=_sweep_name(resolved["sweep"]["name"]),
        device=device_config,
        protocol=protocol,
        error=types.typed(ErrorConfig, resolved["error"], "error"),
        passes=passes,
        stages=types.stages_of(resolved["stages"], passes),
        points=points,
        exact_methods=_marked("exact", resolved["method"]),
        isolated_methods=_marked("isolate", resolved["method"]),
        call_options={name: types.call_options(name, node) for name, node in resolved["method"].items()},
        axes=axes,
        out=overrides.out,
        resolved=resolved,
    )


def differing_keys(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The dotted keys on which two resolved configurations differ."""
    # Keys of axes hold dots themselves; the last part tells them apart well enough for a message.
    left, right = catalog.leaves(one), catalog.leaves(other)
    absent = object()
    return sorted(key for key in left.keys() | right.keys() if left.get(key, absent) != right.get(key, absent))


def _compose(overrides: Overrides, device: str) -> list[DictConfig]:
    """The configuration for each input that was chosen, or for that of the sweep: composed once by Hydra.

    Keys are set afterwards, on what was composed without them: so a misspelt key is answered with the nearest name, and
    a further input takes no further composing.
    """
    import yaml
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    catalog.check_files()
    groups, names = overrides.groups, overrides.groups.get("input", [])
    words = [
        f"device={device}",
        *(f"{group}={_only(group, groups[group])}" for group in ("sweep", "protocol") if group in groups),
    ]
    words += [f"method=[{','.join(groups['method'])}]"] if "method" in groups else []
    words += [f"input={name}" for name in names[:1]]
    own = catalog.own_dir()
    # By its name here alone: the grammar of Hydra's words would read signs in the path of the current folder.
    words += [f"hydra.searchpath=[file://{own}]"] if own else []
    try:
        with initialize_config_dir(str(catalog.conf_dir()), version_base="1.3"):
            found = [compose("config", words)]
        catalog.check_own(groups, OmegaConf.to_container(found[0], resolve=False))
        for name in names[1:]:
            found.append(found[0].copy())
            with open_dict(found[-1]):
                found[-1].input = OmegaConf.load(catalog.path_of("input", name))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    for cfg in found:
        apply(overrides.settings, cfg)
    inputs.fit_grid(found)
    return found


def _resolve(cfg: DictConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        resolved = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _axes(cfg: DictConfig, overrides: Overrides, several_inputs: bool) -> dict[str, list[Any]]:
    """The axes of the sweep, replaced by those of the command line; a list where one value belongs is an axis too."""
    from omegaconf import ListConfig, OmegaConf

    composed = _resolve(cfg)
    sweep_axes = composed["sweep"]["axes"]
    for key in sweep_axes:
        _check_axis_key(key, composed)
    axes = {key: list(value) if isinstance(value, list) else [value] for key, value in sweep_axes.items()}
    axes.update({key: [value] for key, value in overrides.fixed.items() if key in axes})
    for key, values in overrides.axes.items():
        _check_axis_key(key, composed)
        axes[key] = values
    for key in _AXIS_KEYS:
        value = OmegaConf.select(cfg, key)
        if key not in overrides.axes and isinstance(value, ListConfig) and (key not in axes or key in overrides.fixed):
            axes[key] = list(value)
    for key, values in axes.items():
        if len(values) == 1 and isinstance(values[0], list):
            axes[key] = values = list(values[0])
        if not values:
            raise ConfigError(f"{key}=[] is empty; give at least one value")
        if several_inputs and key.startswith("input."):
            raise ConfigError(f"{key} cannot be swept together with several inputs; choose one input")
    return axes


def _check_axis_key(key: str, composed: dict[str, Any]) -> None:
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


def _expand(bases: list[DictConfig], axes: dict[str, list[Any]], device: DeviceConfig) -> tuple[Point, ...]:
    """The product of the axes; an axis of one method's parameter multiplies the points of that method only."""
    from omegaconf import OmegaConf, open_dict

    common = {key: values for key, values in axes.items() if not key.startswith("method.")}
    found: dict[str, Point] = {}
    for base, combination in itertools.product(bases, itertools.product(*common.values())):
        cfg = base.copy()
        with open_dict(cfg):
            for key, value in zip(common, combination, strict=True):
                OmegaConf.update(cfg, key, value)
            without_own = _resolve(cfg)
            for method in map(str, base.method):
                own = {key: values for key, values in axes.items() if key.startswith(f"method.{method}.")}
                for choice in itertools.product(*own.values()):
                    for key, value in zip(own, choice, strict=True):
                        OmegaConf.update(cfg, key, value)
                    point = _point(_resolve(cfg) if own else without_own, method, device)
                    found.setdefault(point.point_id, point)
    if not found:
        raise ConfigError("no method is left; choose some by method=NAME,NAME")
    return tuple(found.values())


def _point(data: dict[str, Any], method: str, device: DeviceConfig) -> Point:
    node = data["method"][method]
    if not isinstance(node, dict) or not node.get("_target_"):
        raise ConfigError(
            f"method.{method} has no _target_; name its function: +method.{method}._target_=package.function"
        )
    shape = {key: data["shape"][key] for key in _SHAPE_KEYS}
    hyper = {str(key): value for key, value in node.items() if key not in METHOD_KEYS}
    types.check_shape(shape, data["is_causal"], data["seed"], method, hyper)
    check_name("dtype", data["dtype"], device.dtypes)
    try:
        return Point(
            method=method, target=str(node["_target_"]), device=device.name, dtype=data["dtype"],
            is_causal=data["is_causal"], input=inputs.name_of(data["input"]), seed=data["seed"], hyper=hyper,
            input_params=inputs.params_of(data["input"], shape), **shape,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _marked(key: str, methods: dict[str, Any]) -> frozenset[str]:
    """The methods for which a key is true. Raises ConfigError unless it is true or false, or not given."""
    for name, node in methods.items():
        types.check_bool(f"method.{name}.{key}", node.get(key, False))
    return frozenset(name for name, node in methods.items() if node.get(key, False))


def _only(group: str, chosen: list[str]) -> str:
    if len(chosen) != 1:
        raise ConfigError(f"{group}={','.join(chosen)}: a run has one {group}")
    return chosen[0]


def _sweep_name(value: Any) -> str:
    """The name of the sweep, which names the run's folder."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", str(value)):
        raise ConfigError(f"sweep.name={value} must be letters, digits, _ and -")
    return str(value)
