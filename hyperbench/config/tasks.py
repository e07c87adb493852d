"""Tasks: inputs that a language model makes of a text; some of its layers attend by the method. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hyperbench.config import longbench
from hyperbench.config.catalog import ConfigError
from hyperbench.store.schema import TASK, Point

#: The parameter of a method that says in which layers of the model it attends.
LAYERS = "layers"
#: The parameter of a task that holds the number of layers of its model, once that is known.
MODEL_LAYERS = "model_layers"
#: Keys of a task's file that say which layers attend by the method: the last so many, or these.
_CHOICES = ("last", LAYERS)
_ALL = "all"
#: The parameter of a task that names the metrics that each of its examples has; the first is told while it is measured.
METRICS = "metrics"
#: The metric of a task whose passes are timed, of all layers together; and the beginning of those of single layers.
ATTENTION_MS = "attention_ms"
LAYER_METRIC = "attention_ms_layer"
#: Words of a command line that stand for others: a task is an input, and its model one of its parameters.
ALIASES = {
    "task": "input", "data": "input.data",
    "model": "input.model", "model.name": "input.model", "model.path": "input.path",
}  # fmt: skip


def renamed(word: str) -> str:
    """A word of a command line with the key that an alias in it stands for."""
    match = re.match(r"([+~]*)(task(?=[.=])|(?:data|model(?:\.name|\.path)?)(?==))", word)
    return word if match is None else f"{match[1]}{ALIASES[match[2]]}{word[match.end() :]}"


def is_task(params: Mapping[str, Any]) -> bool:
    """True if an input with these parameters is a task."""
    return TASK in params


def params_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a task from its node of the configuration, without those that are the method's.

    Raises ConfigError on a value that cannot be.
    """
    if not isinstance(node[TASK], str) or not all(part.isidentifier() for part in node[TASK].split(".")):
        raise ConfigError(f"input.{TASK}={node[TASK]} names no function; give package.function")
    metrics = node.get(METRICS)
    if not isinstance(metrics, list) or not metrics or not all(isinstance(name, str) and name for name in metrics):
        raise ConfigError(f"input.{METRICS}={metrics} must be a list of the names of the metrics of each example")
    for name in ("model", "path", "text", longbench.DATA, longbench.DATASET):
        if not isinstance(node.get(name), str | None):
            raise ConfigError(f"input.{name}={node[name]} must be text or null")
    depths = node.get("depths", [0.0])
    if not isinstance(depths, list) or not depths or not all(_is_share(depth) for depth in depths):
        raise ConfigError(f"input.depths={depths} must be a list of places from 0 to 1")
    params = {key: value for key, value in node.items() if key not in ("name", "description", *_CHOICES)}
    return params | (longbench.params_of(node) if longbench.DATASET in node else {})


def name_of(node: Mapping[str, Any]) -> str:
    """The name of a task: that of its dataset behind it, where it has one."""
    dataset = node.get(longbench.DATASET)
    return f"{node['name']}/{dataset}" if dataset is not None else str(node["name"])


def data_axes(node: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The axis that the data of a task make where none is chosen: a dataset for each file that is there.

    Raises ConfigError where there is no such folder, or no file in it.
    """
    chosen = node.get(longbench.DATASET)
    if longbench.DATASET not in node or isinstance(chosen, str):
        return {}
    return {f"input.{longbench.DATASET}": chosen if chosen else longbench.found_in(node.get(longbench.DATA))}


def examples_of(point: Point, numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the numbers that are examples of a task: all, unless its data end before."""
    there = point.input_params.get(longbench.EXAMPLES)
    return numbers if there is None else tuple(number for number in numbers if number < there)


def file_of(params: Mapping[str, Any]) -> str | None:
    """The file that the examples of a task come from, if there is one."""
    dataset = params.get(longbench.DATASET)
    return None if dataset is None else f"{params[longbench.DATA]}/{dataset}.jsonl"


def answer_tokens(point: Point) -> int:
    """The most tokens that a task's model generates for an example."""
    dataset = point.input_params.get(longbench.DATASET)
    return longbench.datasets()[dataset].answer_tokens if dataset is not None else 0


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def layers_of(node: Mapping[str, Any]) -> str:
    """The layers that attend by the method, as text: "all", "last 10", "0,4,7"; "" is none of them.

    Raises ConfigError on what is no such choice.
    """
    last, layers = (node.get(name) for name in _CHOICES)
    if last is not None and layers is not None:
        raise ConfigError(f"input.last={last} and input.layers={layers} exclude each other")
    if layers is not None:
        listed = layers if isinstance(layers, list) else [layers]
        if not all(type(layer) is int and layer >= 0 for layer in listed) or len(set(listed)) < len(listed):
            raise ConfigError(f"input.layers={layers} must be different whole numbers; the first layer is 0")
        return ",".join(map(str, listed))
    if last is None:
        return _ALL
    if type(last) is not int or last < 0:
        raise ConfigError(f"input.last={last} must be a whole number of layers, or null for all")
    return f"last {last}" if last else ""


def numbered(layers: str, count: int) -> tuple[int, ...]:
    """The layers of such a text, of a model of `count` layers. Raises ConfigError if it has fewer."""
    if not layers:
        return ()
    if layers == _ALL:
        return tuple(range(count))
    if layers.startswith("last "):
        last = int(layers.removeprefix("last "))
        if last > count:
            raise ConfigError(f"input.last={last}: the model has {count} layers")
        return tuple(range(count - last, count))
    found = tuple(map(int, layers.split(",")))
    if max(found) >= count:
        raise ConfigError(f"input.layers={max(found)}: the model has layers 0 to {count - 1}")
    return found


def metrics_of(point: Point) -> tuple[str, ...]:
    """The metrics that each example of a task's point has."""
    return tuple(point.input_params[METRICS])


def layer_metric(layer: int) -> str:
    """The name of the time of one layer's attention."""
    return f"{LAYER_METRIC}{layer}"


def own_parameters(point: Point) -> dict[str, Any]:
    """The parameters of a point's method that its function takes: all but the layers in which it attends."""
    return {name: value for name, value in point.hyper.items() if name != LAYERS or not point.is_task}
