"""The input of a point from its node of the configuration: its name, its parameters, and what a captured file says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hyperbench.config import captures, tasks
from hyperbench.config.captures import Capture, Layer
from hyperbench.config.catalog import ConfigError
from hyperbench.store.schema import TASK, Point

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: The key of an input that is a function of anybody's, and the input that `input._target_=package.function` stands for.
TARGET = "_target_"
FUNCTION = "function"
#: The family of inputs that a file holds.
CAPTURED = "captured"
#: Among the parameters of a point on a captured input, the hash of its file: another file is another point.
FILE_HASH = "sha256"
#: Keys of an input's file that are not its parameters.
_NO_PARAMETERS = ("name", "description")


def name_of(node: Mapping[str, Any]) -> str:
    """The name of an input; that of its function where it has no other."""
    if tasks.is_task(node):
        return tasks.name_of(node)
    name, target = str(node["name"]), node.get(TARGET)
    return target.rpartition(".")[2] if name == FUNCTION and isinstance(target, str) else name


def params_of(node: Mapping[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an input at a point of that shape; of a captured one its layer and the hash of its file too.

    Raises ConfigError, one line, on a capture that is missing, damaged, or does not hold what the point asks for.
    """
    if tasks.is_task(node):
        return tasks.params_of(node)
    params = {key: value for key, value in node.items() if key not in _NO_PARAMETERS}
    if TARGET in params:
        _check_target(params[TARGET])
    if not _is_captured(node):
        return params
    if FILE_HASH in params:
        raise ConfigError(f"input.{FILE_HASH} is read from the file of input.path; leave it out")
    path = _path(node)
    capture = captures.read(path)
    number = node.get("layer")
    if number is None:
        number = next(iter(capture.layers))
    if type(number) is not int or number not in capture.layers:
        raise ConfigError(f"input.layer={number} is not in {path}; allowed: {', '.join(map(str, capture.layers))}")
    _check_fits(shape, capture.layers[number], node.get("head"), f"layer {number} of {path}")
    return {**params, "layer": number, FILE_HASH: captures.sha256(path)}


def fit_grid(cfgs: Sequence[DictConfig]) -> None:
    """Let the grid of the device follow the captured inputs among those of a run, in place.

    Its head_dim becomes that of the file, its heads no more than a layer has, its lengths no longer than the file: so
    the defaults and the sweeps over the grid fit, and what is asked for by name is left as it is.
    """
    found = [(cfg.input, _capture_of(cfg)) for cfg in cfgs]
    layers = [(node, layer) for node, capture in found if capture is not None for layer in capture.layers.values()]
    if not layers:
        return
    most_rows = min(layer.rows for _, layer in layers)
    most_heads = min(1 if node.get("head") is not None else layer.heads for node, layer in layers)
    for cfg in cfgs:
        grid = cfg.device.grid
        grid.head_dim = layers[0][1].head_dim
        if isinstance(grid.heads, int):
            grid.heads = min(grid.heads, most_heads)
        if isinstance(grid.seq_len, Sequence) and all(isinstance(n, int) for n in grid.seq_len):
            grid.seq_len = [n for n in grid.seq_len if n <= most_rows] or [most_rows]


def files_of(points: Iterable[Point]) -> dict[str, str]:
    """The hashes of the files that points take their inputs from, by their paths."""
    found = (point.input_params for point in points if FILE_HASH in point.input_params)
    return {tasks.file_of(params) or str(params["path"]): str(params[FILE_HASH]) for params in found}


def target_of(params: Mapping[str, Any]) -> str | None:
    """The function that an input with these parameters is made by, if it is one from outside or a task's."""
    target = params.get(TASK, params.get(TARGET))
    return None if target is None else str(target)


def _check_target(target: Any) -> None:
    if not isinstance(target, str) or not target.strip():
        raise ConfigError(f"input.{TARGET}={target} names no function; give input.{TARGET}=package.function")


def _is_captured(node: Mapping[str, Any]) -> bool:
    return node.get("family", node.get("name")) == CAPTURED


def _path(node: Mapping[str, Any]) -> str:
    path = node.get("path")
    if not isinstance(path, str) or not path:
        raise ConfigError(
            f"input.path={path} names no file; give input.path=FILE.safetensors, which `hyperbench capture` makes"
        )
    return path


def _capture_of(cfg: DictConfig) -> Capture | None:
    # Where the path is an axis of the sweep, each point is checked by itself.
    path = cfg.input.get("path")
    return captures.read(path) if _is_captured(cfg.input) and isinstance(path, str) and path else None


def _check_fits(shape: Mapping[str, Any], layer: Layer, head: Any, where: str) -> None:
    """Raise ConfigError unless a point of this shape can be taken from a layer, or from one query head of it."""
    batch, heads, kv_heads, seq_len, head_dim = (
        shape[key] for key in ("batch", "heads", "kv_heads", "seq_len", "head_dim")
    )
    if head_dim != layer.head_dim:
        raise ConfigError(f"shape.head_dim={head_dim} does not fit {where}, whose head_dim is {layer.head_dim}")
    if seq_len > layer.rows:
        raise ConfigError(f"{where} has {layer.rows:,} rows; asked for shape.seq_len={seq_len}")
    if batch != 1:
        raise ConfigError(f"shape.batch={batch}: {where} is of one text; allowed: 1")
    if head is not None:
        if type(head) is not int or not 0 <= head < layer.heads:
            raise ConfigError(f"input.head={head} is not in {where}; allowed: 0 to {layer.heads - 1}, or null")
        if heads != 1:
            raise ConfigError(f"input.head={head} is one head and shape.heads={heads}; allowed: 1")
    if heads > layer.heads:
        raise ConfigError(f"shape.heads={heads} is more than the {layer.heads} query heads of {where}")
    group = layer.heads // layer.kv_heads
    if any(i // (heads // kv_heads) != i // group for i in range(heads)) and kv_heads != heads:
        fewer = f", {heads // group}" if heads % group == 0 and group > 1 else ""
        raise ConfigError(
            f"shape.kv_heads={kv_heads} does not fit {where}, where {group} query heads share a key head;"
            f" allowed: {heads}{fewer}"
        )
