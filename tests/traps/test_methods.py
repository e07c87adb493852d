"""Methods that are not what they claim: none gets a time, and the row says what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hyperbench.measure import work_items
from hyperbench.measure.methods import method as registry
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.gate.properties import examine
from tests.helpers.measured_group import HYPER, Measured, all_of, item, odd
from tests.helpers.quoted import Quote
from tests.helpers.slow import slow

TRIVIAL = "hyperbench.measure.methods.trivial"
LIBRARY = "hyperbench.measure.methods.hyper"


def faulty(name: str, **options: Any) -> work_items.WorkItem:
    """A point of a faulty method."""
    return item(f"tests.helpers.faulty_methods.{name}", **options)


def refusal(one: work_items.WorkItem, passes: tuple[str, ...] = ("forward",)) -> str:
    """The one reason for which a method is incorrect, measured beside another one that stays what it was."""
    found = Measured(one, odd("exact", exact=True, is_causal=one.point.is_causal), passes=passes)
    name = one.point.method
    assert set(found.statuses(name).values()) == {"incorrect"}
    assert all(not t.samples_ms for t in found.timings(name).values())
    assert all(row.value is None for row in found.errors(name).values())
    assert set(found.statuses("exact").values()) == {"ok"}
    assert found.errors("exact")["out_rel_fro"].value < 1e-5  # type: ignore[operator]
    assert set(found.keys) == found.expected
    (reason,) = {t.message for t in found.timings(name).values()}
    return reason


NOT_CAUSAL = "not causal: outputs up to position "
LEAKS = Quote("not causal: outputs up to position 341 change with the keys and the values after it")
WRONG_AXES = Quote(
    "the output of the last position stays the same when the values of all others change: the axes must be (batch, "
    "heads, seq_len, head_dim)"
)
IGNORES_V = Quote("the output stays the same when v changes; a method that ignores it says so: ignores = ('v',)")
IN_OTHER_STORAGE = Quote(
    "a memoised result: after q, k and v were changed in place, the output is not that of the same values in other "
    "storage"
)
FEWER_CALLS = Quote(
    "a memoised result: a second call on the same values makes 9 of the 14 calls of PyTorch that the first makes"
)
DRAWS = Quote(
    "two calls on the same inputs give different outputs (relative difference 0.002); a method that is not "
    "deterministic says so: deterministic = False"
)
MISTAKES = [
    ("heads_for_positions", False, WRONG_AXES),
    ("heads_for_positions", True, WRONG_AXES),
    ("viewed_not_transposed", True, LEAKS),
    ("zeros", False, IGNORES_V),
    ("forgets_the_keys", False, Quote("the output stays the same when k changes")),
    ("forgets_the_queries", True, Quote("the output stays the same when q changes")),
    ("without_mask", True, LEAKS),
    ("off_by_one", True, LEAKS),
    ("centred_values", True, Quote("not causal: outputs up to position 13 change with the values after it")),
    ("largest_logit_of_all", True, Quote("not causal: outputs up to position 13 change with the keys after it")),
    ("by_place", False, IN_OTHER_STORAGE),
    ("by_version", False, FEWER_CALLS),
    ("by_content", False, FEWER_CALLS),
    ("remembers_the_order", False, IN_OTHER_STORAGE),
    ("scales_in_place", False, Quote("the method changed q in place; it must leave its inputs as they are")),
    ("sorts_in_place", False, Quote("the method changed k, v in place; it must leave its inputs as they are")),
    ("draws_anew", False, DRAWS),
]


@pytest.mark.parametrize(("name", "is_causal", "words"), MISTAKES)
def test_a_mistake_is_named_and_nothing_is_timed(name: str, is_causal: bool, words: Quote) -> None:
    reason = refusal(faulty(name, is_causal=is_causal))
    assert words.stands_in(reason), reason


@pytest.mark.parametrize(("name", "is_causal"), [("off_by_one", False), ("draws_anew_and_says_so", True)])
def test_the_same_method_without_its_mistake_is_timed(name: str, is_causal: bool) -> None:
    assert set(Measured(faulty(name, is_causal=is_causal)).statuses(name).values()) == {"ok"}


@pytest.mark.parametrize("which", ["keys", "values", "keys and the values"])
def test_a_leak_names_the_position_and_what_leaks(which: str) -> None:
    method = {"keys": "leaks_keys", "values": "centred_values", "keys and the values": "off_by_one"}[which]
    reason = refusal(faulty(method, is_causal=True))
    assert reason == (
        f"not causal: outputs up to position 13 change with the {which} after it; "
        f"with +method.{method}.allow_leak=true it is measured all the same, and marked as leaking"
    )


@pytest.mark.parametrize("name", ["heads_for_positions", "zeros", "without_mask"])
def test_an_exact_method_is_held_against_the_reference_first(name: str) -> None:
    assert refusal(faulty(name, exact=True, is_causal=True)).startswith("an exact method must agree with the reference")


def test_an_exact_method_is_held_against_exact_attention_in_every_round() -> None:
    found = Measured(odd("a_bit_off", exact=True, hyper={"factor": 1.01}), round_=1)
    assert found.statuses("a_bit_off") == all_of("incorrect")
    assert Quote("an exact method must agree with the reference: out_rel_fro is 0.01, above 0.0001").stands_in(
        found.timings("a_bit_off")["forward"].message
    )


@pytest.mark.parametrize("options", [{"round_": 1}, {"error": {"grad_max_seq_len": 39}}])
def test_gradients_of_an_exact_method_are_held_against_exact_ones_wherever_they_are_timed(options: Any) -> None:
    found = Measured(odd("wrong_gradient", exact=True), odd("exact", exact=True), **options)
    statuses = {"forward": "ok", "backward": "incorrect", "forward_backward": "incorrect"}
    assert found.statuses("wrong_gradient") == statuses
    assert "must agree with the reference: dq_rel_fro" in found.timings("wrong_gradient")["backward"].message
    assert found.statuses("exact") == all_of("ok")


def test_mistakes_are_found_in_every_round() -> None:
    assert Measured(faulty("zeros"), round_=2).statuses("zeros") == all_of("incorrect")


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", *slow("float16"), "bfloat16"])
def test_what_the_library_offers_passes(dtype: str, is_causal: bool) -> None:
    options: dict[str, Any] = {"dtype": dtype, "is_causal": is_causal}
    found = Measured(
        item(f"{LIBRARY}.hyper", hyper=HYPER, **options),
        item(f"{LIBRARY}.hyper_paper", hyper={**HYPER, "sampling": "iid", "pairing": "rank"}, **options),
        item(f"{TRIVIAL}.uniform", hyper={"sample_size": 8, "seed": 0}, **options),
        item(f"{TRIVIAL}.mean_v", **options),
        item(f"{TRIVIAL}.zero", **options),
        item("hyperbench.measure.methods.exact.flash2", exact=True, **options),
        item("hyperbench.measure.methods.exact.math", exact=True, **options),
    )
    for one in found.task.items:
        name = one.point.method
        assert found.statuses(name) == all_of("ok"), (name, found.timings(name))


def test_causality_in_q_is_a_property_and_no_mistake() -> None:
    long = {"seq_len": 128, "is_causal": True}
    found = Measured(
        item(f"{LIBRARY}.hyper", hyper=HYPER, **long),
        item(f"{LIBRARY}.hyper_paper", hyper={**HYPER, "pairing": "rank"}, **long),
        faulty("later_queries", **long),
        odd("exact", exact=True, **long),
    )
    known = {one.point.method: found.errors(one.point.method)["causal_in_q"].value for one in found.task.items}
    assert known == {"hyper": 1.0, "hyper_paper": 0.0, "later_queries": 0.0, "exact": 1.0}
    for name in known:
        assert found.statuses(name) == all_of("ok")
    free = Measured(faulty("later_queries", seq_len=128))
    assert "causal_in_q" not in free.errors("later_queries")


def test_a_leaf_that_holds_the_whole_sequence_is_causal_with_any_pairing() -> None:
    hyper = {**HYPER, "pairing": "rank", "min_seq_len": 64}
    found = Measured(item(f"{LIBRARY}.hyper_paper", hyper=hyper, is_causal=True))
    assert found.errors("hyper_paper")["causal_in_q"].value == 1.0


def test_a_method_that_takes_no_shorter_length_is_examined_at_its_own() -> None:
    shape = {"seq_len": 2048, "heads": 1, "hyper": {"only": 2048}, "is_causal": True}
    good, leaky = (faulty(name, **shape).point for name in ("one_length_only", "one_length_only_and_leaks"))
    assert examine(registry.find(good.target), good, exact=False).in_q is True
    with pytest.raises(IncorrectError, match=NOT_CAUSAL):
        examine(registry.find(leaky.target), leaky, exact=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not_finite", Quote("the output has non-finite values")),
        ("wrong_shape", Quote("the output has shape (1, 2, 39, 8), not (1, 2, 40, 8)")),
        ("wrong_dtype", Quote("the output is bfloat16, not float32")),
        ("no_tensor", Quote("the output is a tuple, not a tensor")),
    ],
)
def test_an_output_that_is_none_is_refused_first(name: str, words: Quote) -> None:
    reason = refusal(odd(name))
    assert words.stands_in(reason), reason


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_gradient", Quote("the output has no gradient with respect to q, k and v")),
        ("no_gradient_of_q", Quote("the gradient of q is None, not a tensor")),
    ],
)
def test_a_missing_gradient_costs_the_backward_passes_alone(name: str, words: Quote) -> None:
    found = Measured(odd(name))
    assert found.statuses(name) == {"forward": "ok", "backward": "incorrect", "forward_backward": "incorrect"}
    assert words.stands_in(found.timings(name)["backward"].message)


def test_gradients_are_given_and_never_accumulated() -> None:
    name = "takes_gradients_given"
    assert Measured(faulty(name)).statuses(name) == all_of("ok")


def test_a_method_that_changes_a_setting_of_the_process_is_told_by_name_and_changes_no_other() -> None:
    threads = torch.get_num_threads()
    done = Measured(item("tests.helpers.settings_changers.threads"), odd("exact", exact=True))
    assert torch.get_num_threads() == threads
    assert done.statuses("exact") == all_of("ok")
    quote = Quote("the method changed settings that all methods of the process share: threads (2 before, 1 after); "
                  "with isolate: true it gets a process of its own")  # fmt: skip
    assert set(done.statuses("threads").values()) == {"incorrect"}
    assert quote.stands_in(done.timings("threads")["forward"].message)
