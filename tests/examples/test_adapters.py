"""Adapters of packages: named by `_target_` without the packages, short, and right in shape where one is installed."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
import torch

from hyperbench.measure.methods import method as registry
from hyperbench.measure.methods.peers.nystrom import nystrom
from tests.helpers.brute_force import attention, drawn

FILE = Path(__file__).resolve().parents[2] / "examples" / "adapters.py"
#: The package of each adapter.
PACKAGES = {
    "local_attention": "local_attention",
    "memory_efficient": "memory_efficient_attention_pytorch",
    "linear_attention": "linear_attention_transformer",
    "performer": "performer_pytorch",
    "nystrom": "nystrom_attention",
    "reformer": "reformer_pytorch",
    "routing": "routing_transformer",
    "sinkhorn": "sinkhorn_transformer",
}
MOST_LINES = 9


def needs(name: str) -> registry.Method:
    """An adapter whose package imports; the test is skipped where it does not."""
    pytest.importorskip(PACKAGES[name], exc_type=ImportError)
    return registry.find(f"examples.adapters.{name}")


def test_each_adapter_is_found_without_its_package_and_is_a_few_lines() -> None:
    functions = {node.name: node for node in ast.parse(FILE.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert set(functions) == set(PACKAGES) | {"prepare_performer"}
    for name in PACKAGES:
        registry.find(f"examples.adapters.{name}").check({})
        body = functions[name].body[1:]
        assert (body[-1].end_lineno or 0) - body[0].lineno < MOST_LINES
    imported = {alias for node in ast.parse(FILE.read_text()).body for alias in _imported(node)}
    assert imported <= {"__future__", "collections.abc", "torch"}


def _imported(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ImportFrom):
        return {str(node.module)}
    return {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_an_adapter_answers_in_the_right_shape(name: str) -> None:
    method = needs(name)
    q, k, v = (x.float() for x in drawn(1, 2, 2, 256, 16)[:3])
    assert method.function(q, k, v, is_causal=False).shape == q.shape


@pytest.mark.slow
def test_adapters_of_packages_that_are_right_are_right() -> None:
    q, k, v = (x.float() for x in drawn(1, 2, 2, 256, 16)[:3])
    exact = attention(q, k, v, True)
    assert torch.allclose(needs("memory_efficient").function(q, k, v, is_causal=True), exact, atol=1e-5)
    ours = nystrom(q, k, v, is_causal=False)
    assert torch.allclose(needs("nystrom").function(q, k, v, is_causal=False), ours, atol=1e-3)


def test_a_package_that_is_not_there_is_named() -> None:
    missing = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None]
    if not missing:
        pytest.skip("all eight packages are installed")
    q, k, v = (x.float() for x in drawn(1, 1, 1, 16, 8)[:3])
    with pytest.raises(ModuleNotFoundError, match=PACKAGES[missing[0]]):
        registry.find(f"examples.adapters.{missing[0]}").function(q, k, v, is_causal=False)
