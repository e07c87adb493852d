"""Inputs that a function of anybody makes: given as they are, the same for a seed, and refused in one line if wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hyperbench.measure.inputs import check_params, make_inputs
from hyperbench.measure.probe import main as probe
from hyperbench.measure.runner import prepare
from hyperbench.measure.work_items import groups_of
from hyperbench.measure.worker.settings import Settings
from hyperbench.store.schema import Point
from tests.helpers.made_records import a_point
from tests.helpers.made_runs import facts

OWN = "tests.helpers.own_inputs"
SIZES = {"batch": 2, "heads": 4, "kv_heads": 2, "seq_len": 24, "head_dim": 8}


def a_made(name: str, seed: int = 0, dtype: str = "float64", **params: Any) -> Point:
    """A point on what a function of tests.helpers.own_inputs makes."""
    return a_point(input=name, input_params={"_target_": f"{OWN}.{name}", **params}, seed=seed, dtype=dtype, **SIZES)


def test_what_it_makes_is_the_input_and_the_seed_decides() -> None:
    state = torch.get_rng_state()
    q, k, v = make_inputs(a_made("waves"))
    assert q.shape == (2, 4, 24, 8)
    assert k.shape == v.shape == (2, 2, 24, 8)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(q, make_inputs(a_made("waves"))[0])
    assert not torch.equal(q, make_inputs(a_made("waves", seed=1))[0])
    assert torch.equal(q.to(torch.bfloat16), make_inputs(a_made("waves", dtype="bfloat16"))[0])
    stronger = make_inputs(a_made("waves", strength=3.0))[0]
    sine = torch.arange(24, dtype=torch.float64).sin().unsqueeze(1).expand(24, 8)
    assert torch.allclose(stronger - q, 2 * sine.expand_as(q))


def test_parameters_may_be_lists_and_points_of_alike_ones_are_one_group() -> None:
    points = [a_made("takes_any", sizes=[1, 2]), a_made("takes_any", sizes=[1, 3])]
    assert len(groups_of([*points, points[0]])) == 2


@pytest.mark.parametrize(
    ("target", "params", "told"),
    [
        (f"{OWN}.wave", {}, rf"input\._target_={OWN}\.wave cannot be imported"),
        ("tests.helpers.raises_at_import.f", {}, "cannot be imported"),
        (f"{OWN}.constant", {}, "is a int, not a function"),
        (f"{OWN}.waves", {"strenght": 1}, r"input\.strenght is no parameter of .*did you mean 'strength'"),
        (f"{OWN}.swapped", {"strength": 1}, "allowed: none"),
        (f"{OWN}.needs_strength", {}, r"needs a value for its parameter 'strength'; give \+input\.strength=VALUE"),
    ],
)
def test_what_cannot_be_called_is_refused_before_the_run(target: str, params: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        check_params("mine", {"_target_": target, **params})
    assert "\n" not in str(caught.value)
    check_params("mine", {"_target_": f"{OWN}.takes_any", "anything": [1]})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("swapped", "q must be (batch, heads, seq_len, head_dim) = (2, 4, 24, 8), not (2, 24, 4, 8); transpose(1, 2)"),
        ("too_many_key_heads", "k must be (batch, heads, seq_len, head_dim) = (2, 2, 24, 8), not (2, 4, 24, 8)"),
        ("whole_numbers", "k must be of floating point numbers, not torch.int64"),
        ("not_finite", "v holds NaN or infinite numbers"),
        ("only_two", "must return three tensors (q, k, v), not 2 of Tensor"),
        ("nothing", "must return three tensors (q, k, v), not NoneType"),
        ("raises", "input raises: RuntimeError: no weights are here"),
    ],
)
def test_what_it_makes_wrong_is_one_line_of_the_probe(name: str, told: str) -> None:
    point = a_made(name)
    (problem,) = probe._input_problems([{"family": name, "params": point.input_params, "point": point.as_dict()}])
    assert told in problem
    assert "\n" not in problem


def test_a_run_asks_the_probe_to_try_a_function_at_its_smallest_point() -> None:
    asked: list[dict[str, Any]] = []

    def ask(request: dict[str, Any], env: Any) -> Any:
        asked.append(request)
        raise ValueError("enough")

    words = ["input._target_=my.waves", "shape.seq_len=64,16,32", "device=cpu"]
    with pytest.raises(ValueError, match="enough"):
        prepare.prepare(words, ask)
    (item,) = asked[0]["inputs"]
    assert (item["family"], item["params"], item["point"]["seq_len"]) == ("waves", {"_target_": "my.waves"}, 16)


def test_a_function_that_makes_inputs_is_no_method_that_could_be_measured() -> None:
    def ask(request: dict[str, Any], env: Any) -> Any:
        return {**facts(request), "missing": {"a.b": "method mine: there is no a"}}

    words = ["input._target_=my.waves", "~method.flash2", "~method.hyper", "+method.mine._target_=a.b", "device=cpu"]
    with pytest.raises(ValueError, match="method mine: there is no a"):
        prepare.prepare(words, ask)


def test_settings_that_it_changes_are_put_back_and_no_method_is_blamed() -> None:
    settings = Settings()
    before = torch.get_num_threads()
    with settings.standard():
        make_inputs(a_made("changes_settings"))
    assert torch.get_num_threads() == before
    with settings.kept("a method"):
        pass
