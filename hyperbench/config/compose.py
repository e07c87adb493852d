"""The configuration of a run from the words of a command line: Hydra composes, this module expands the axes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.config import catalog, inputs, tasks, types
from hyperbench.config.axes import INPUT_AXIS, METHOD_KEYS, SHAPE_KEYS, Axes, axes_of, grids_of, inputs_of
from hyperbench.config.catalog import ConfigError, check_name
from hyperbench.config.overrides import Overrides, apply, parse
from hyperbench.config.types import CallOptions, DeviceConfig, ErrorConfig, ProtocolConfig
from hyperbench.store.run_folder import config_hash
from hyperbench.store.schema import Point

if TYPE_CHECKING:
    from omegaconf import DictConfig


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
    names, base = _compose(overrides, device)
    resolved = _resolve(base[0])
    axes, grids = axes_of(base[0], resolved, overrides, names), grids_of(resolved, overrides, names)
    resolved["sweep"]["axes"] = axes
    if "grids" in resolved["sweep"]:
        resolved["sweep"]["grids"] = grids
    if len(base) > 1:
        resolved["inputs"] = [_resolve(cfg)["input"] for cfg in base]
    resolved.pop("out")
    of_device = resolved["device"]
    env = {str(key): str(value) for key, value in of_device["env"].items()}
    device_config = DeviceConfig(device, of_device["dtypes"], of_device["threads"], env, reason)
    protocol = types.typed(ProtocolConfig, resolved["protocol"], "protocol")
    passes = types.passes_of(resolved["passes"], protocol)
    points = _expand(base, {key: values for key, values in axes.items() if key != INPUT_AXIS}, grids, device_config)
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


def _compose(overrides: Overrides, device: str) -> tuple[list[str], list[DictConfig]]:
    """The inputs that were chosen and the configuration for each, or none and that of the default: composed once.

    Keys are set afterwards, on what was composed without them: so a misspelt key is answered with the nearest name, and
    a further input takes no further composing.
    """
    import yaml
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    catalog.check_files()
    groups = overrides.groups
    words = [
        f"device={device}",
        *(f"{group}={_only(group, groups[group])}" for group in ("sweep", "protocol") if group in groups),
    ]
    words += [f"method=[{','.join(groups['method'])}]"] if "method" in groups else []
    own = catalog.own_dir()
    # By its name here alone: the grammar of Hydra's words would read signs in the path of the current folder.
    words += [f"hydra.searchpath=[file://{own}]"] if own else []
    try:
        with initialize_config_dir(str(catalog.conf_dir()), version_base="1.3"):
            composed = compose("config", words)
        with open_dict(composed):
            # A sweep sets keys of its own methods, of which others may have been chosen.
            for name in set(composed.method) - set(groups.get("method", composed.method)):
                del composed.method[name]
        plain: Any = OmegaConf.to_container(composed, resolve=False)
        catalog.check_own(groups, plain)
        names = inputs_of(composed, overrides)
        found = [composed.copy() for _ in names] or [composed]
        for name, cfg in zip(names, found, strict=False):
            with open_dict(cfg):
                cfg.input = OmegaConf.load(catalog.path_of("input", name))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    for cfg in found:
        apply(overrides.settings, cfg)
    inputs.fit_grid(found)
    return names, found


def _resolve(cfg: DictConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        resolved = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _expand(bases: list[DictConfig], axes: Axes, grids: Sequence[Axes], device: DeviceConfig) -> tuple[Point, ...]:
    """The product of the axes with those of each grid; an axis of one method's parameter multiplies that method."""
    from omegaconf import OmegaConf, open_dict

    found: dict[str, Point] = {}
    for base, (common, own_axes) in itertools.product(bases, _combinations(axes, grids)):
        cfg = base.copy()
        with open_dict(cfg):
            for key, value in common.items():
                OmegaConf.update(cfg, key, value)
        resolved = _resolve(cfg)
        for method in map(str, base.method):
            for own in _choices(method, own_axes):
                node = _node_with(cfg, method, own) if own else resolved["method"][method]
                point = _point({**resolved, "method": {method: node}}, method, device)
                if point is not None:
                    found.setdefault(point.point_id, point)
    if not found:
        raise ConfigError("no method is left; choose some by method=NAME,NAME")
    if len({point.is_task for point in found.values()}) > 1:
        raise ConfigError(
            "tasks of language models and other inputs are runs of their own; choose one kind by input=NAME"
        )
    return tuple(found.values())


def _node_with(cfg: DictConfig, method: str, own: dict[str, Any]) -> Any:
    """The configuration of a method as plain data with these of its parameters; `cfg` stays as it is.

    A copy of all of it for each point would take longer than anything else of a large grid.
    """
    from omegaconf import OmegaConf, open_dict

    kept = cfg.method[method].copy()
    with open_dict(cfg):
        for key, value in own.items():
            OmegaConf.update(cfg, key, value)
        node = _resolve(cfg.method[method])
        cfg.method[method] = kept
    return node


def _combinations(axes: Axes, grids: Sequence[Axes]) -> list[tuple[dict[str, Any], list[Axes]]]:
    """Every combination of the axes that all methods share, once, with the axes of methods' own of all its grids."""
    found: dict[str, tuple[dict[str, Any], list[Axes]]] = {}
    for grid in grids:
        every = axes | grid
        shared = {key: values for key, values in every.items() if not key.startswith("method.")}
        own = {key: values for key, values in every.items() if key not in shared}
        for values in itertools.product(*shared.values()):
            combination = dict(zip(shared, values, strict=True))
            found.setdefault(repr(combination), (combination, []))[1].append(own)
    return list(found.values())


def _choices(method: str, own_axes: Sequence[Axes]) -> list[dict[str, Any]]:
    """Every choice of a method's own parameters that one of these grids makes, once."""
    found: dict[str, dict[str, Any]] = {}
    for axes in own_axes:
        own = {key: values for key, values in axes.items() if key.startswith(f"method.{method}.")}
        for values in itertools.product(*own.values()):
            choice = dict(zip(own, values, strict=True))
            found.setdefault(repr(choice), choice)
    return list(found.values())


def _point(data: dict[str, Any], method: str, device: DeviceConfig) -> Point | None:
    """The point of a method; None where it attends in no layer of a language model, as the exact one does."""
    node = data["method"][method]
    if not isinstance(node, dict) or not node.get("_target_"):
        raise ConfigError(
            f"method.{method} has no _target_; name its function: +method.{method}._target_=package.function"
        )
    shape = {key: data["shape"][key] for key in SHAPE_KEYS}
    hyper = {str(key): value for key, value in node.items() if key not in METHOD_KEYS}
    is_task = tasks.is_task(data["input"])
    types.check_shape(shape, data["is_causal"], data["seed"], method, hyper)
    check_name("dtype", data["dtype"], device.dtypes)
    if is_task and not node.get("exact"):
        layers = tasks.layers_of(data["input"])
        if not layers:
            return None
        hyper[tasks.LAYERS] = layers
    try:
        return Point(
            method=method, target=str(node["_target_"]), device=device.name, dtype=data["dtype"],
            is_causal=is_task or data["is_causal"], input=inputs.name_of(data["input"]), seed=data["seed"], hyper=hyper,
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
