"""Inputs: the same for the same seed whatever the dtype, of the right shape, with the structure they promise."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbench.config import catalog, compose
from hyperbench.measure import inputs
from hyperbench.measure.inputs import available, check_params, make_grad_output, make_inputs
from hyperbench.store.schema import TASK, Point
from tests.helpers.brute_force import probabilities
from tests.helpers.made_records import a_point

SHAPE = {"batch": 2, "heads": 4, "kv_heads": 2, "seq_len": 96, "head_dim": 16}
SHIPPED = {
    name: {k: v for k, v in data.items() if k not in ("name", "description")}
    for name, data in catalog.entries("input").items()
}
#: The families that draw random numbers: neither a file nor a function from outside decides.
DRAWN = [name for name, params in SHIPPED.items() if not {"path", "_target_"}.intersection(params)]


def point(family: str, **changes: Any) -> Point:
    """A point with the shipped parameters of a family."""
    return a_point(**{**SHAPE, "input": family, "input_params": SHIPPED[family], **changes})


def test_every_shipped_input_is_a_family_and_its_parameters_are_known() -> None:
    drawn = {name: params for name, params in SHIPPED.items() if not {"_target_", TASK}.intersection(params)}
    families = {params.get("family", name) for name, params in drawn.items()}
    assert families == set(available())
    for name in (*DRAWN, "smollm2"):
        check_params(name, SHIPPED[name])


@pytest.mark.parametrize("family", DRAWN)
def test_shapes_dtypes_and_finiteness(family: str) -> None:
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        made = point(family, dtype=dtype)
        q, k, v = make_inputs(made)
        assert q.shape == (2, 4, 96, 16)
        assert k.shape == v.shape == (2, 2, 96, 16)
        assert make_grad_output(made).shape == q.shape
        for x in (q, k, v, make_grad_output(made)):
            assert x.dtype == getattr(torch, dtype)
            assert x.isfinite().all()
            assert not x.requires_grad


@pytest.mark.parametrize("family", DRAWN)
def test_the_seed_decides_and_dtypes_only_round(family: str) -> None:
    base = make_inputs(point(family, dtype="float32"))
    for x, again, other, half, double in zip(
        base,
        make_inputs(point(family, dtype="float32")),
        make_inputs(point(family, dtype="float32", seed=1)),
        make_inputs(point(family, dtype="bfloat16")),
        make_inputs(point(family, dtype="float64")),
        strict=True,
    ):
        assert torch.equal(x, again)
        assert not torch.equal(x, other)
        assert torch.equal(half, x.to(torch.bfloat16))
        assert torch.equal(double, x.double())


def test_draws_do_not_disturb_and_are_not_disturbed_by_other_draws() -> None:
    torch.manual_seed(1)
    one = make_inputs(point("gaussian"))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(one[0], make_inputs(point("gaussian"))[0])
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_q_k_v_and_grad_output_are_independent() -> None:
    made = point("gaussian", kv_heads=4, seq_len=1000)
    drawn = [*make_inputs(made), make_grad_output(made)]
    for i, x in enumerate(drawn):
        for y in drawn[:i]:
            assert abs(float((x * y).mean())) < 6 / math.sqrt(x.numel())
    others = dataclasses.replace(made, method="math", hyper={}, is_causal=True)
    assert all(torch.equal(x, y) for x, y in zip(drawn[:3], make_inputs(others), strict=True))
    assert torch.equal(drawn[3], make_grad_output(others))


def test_gaussian_entries_have_their_standard_deviation() -> None:
    for std in (0.5, 1.0, 3.0):
        for x in make_inputs(point("gaussian", input_params={"std": std}, seq_len=1000)):
            assert float(x.std()) == pytest.approx(std, rel=0.03)
            assert float(x.mean()) == pytest.approx(0, abs=0.05 * std)


@pytest.mark.parametrize("family", ["clustered", "clustered_values"])
def test_clusters_are_there_and_are_common_to_queries_and_keys(family: str) -> None:
    params = {**SHIPPED[family], "num_clusters": 8, "center_std": 2.0, "noise_std": 0.1}
    q, k, v = make_inputs(point(family, input_params=params, seq_len=256))
    for x, y in ((q[:, :2], k), (k, k)):
        distance = torch.cdist(x, y)
        near = distance < 2.0
        # Two of a cluster are about 0.1 sqrt(2 * 16) = 0.6 apart, two of different ones about 2 sqrt(2 * 16) = 11.
        assert float(near.double().mean()) == pytest.approx(1 / 8, abs=0.06)
        assert float(distance[near].max()) < 1.5
        assert float(distance[~near].min()) > 3.0
    same = torch.cdist(k, k) < 2.0
    same.diagonal(dim1=2, dim2=3).fill_(False)
    alike = torch.nn.functional.cosine_similarity(v.unsqueeze(3), v.unsqueeze(2), dim=4)
    follows = float(alike[same].mean())
    assert (follows > 0.8) if family == "clustered_values" else (abs(follows) < 0.05)


def test_heavy_keys_draw_most_attention_of_the_leaning_queries() -> None:
    made = point("heavy_keys", heads=2, kv_heads=2, seq_len=512, head_dim=64)
    q, k, _ = (x.double() for x in make_inputs(made))
    probs = probabilities(q, k, False)[0]
    received = probs.sum(2)
    heavy = received.topk(4, dim=2).indices
    # The positions of the heavy keys are the same in all heads, and they are random.
    assert (heavy.sort(dim=2).values == heavy.sort(dim=2).values[:1, :1]).all()
    share = torch.gather(probs, 3, heavy.unsqueeze(2).expand(-1, -1, 512, -1)).max(dim=3).values
    leaning = share > 0.5
    assert float(leaning.double().mean()) == pytest.approx(0.25, abs=0.08)
    assert float(share[~leaning].mean()) < 0.1
    other = make_inputs(dataclasses.replace(made, seed=5))[1].norm(dim=3).topk(4, dim=2).indices
    assert set(other[0, 0].tolist()) != set(heavy[0, 0].tolist())


def test_more_heavy_keys_than_keys_are_all_of_them() -> None:
    assert make_inputs(point("heavy_keys", seq_len=3, input_params={"num_heavy": 10}))[0].shape[2] == 3


@pytest.mark.parametrize(
    ("family", "params", "words"),
    [
        ("gausian", {}, "did you mean 'gaussian'"),
        ("gaussian", {"sdt": 1.0}, "input.sdt is no parameter of gaussian; allowed: std; did you mean 'std'"),
        ("gaussian", {"num_clusters": 4}, "input.num_clusters is no parameter of gaussian"),
        ("gaussian", {"std": -1.0}, "input.std=-1.0 must be a number of at least 0"),
        ("gaussian", {"std": math.nan}, "input.std=nan must be"),
        ("gaussian", {"std": math.inf}, "input.std=inf must be"),
        ("gaussian", {"std": "big"}, "input.std=big must be"),
        ("gaussian", {"std": None}, "input.std=None must be"),
        ("gaussian", {"std": True}, "input.std=True must be"),
        ("clustered", {"num_clusters": 0}, "input.num_clusters=0 must be a positive integer"),
        ("clustered", {"num_clusters": 2.0}, "input.num_clusters=2.0 must be a positive integer"),
        ("heavy_keys", {"num_heavy": -1}, "input.num_heavy=-1 must be a positive integer"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(family: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        check_params(family, params)
    assert "\n" not in str(caught.value)


def test_a_new_input_is_one_module_and_one_yaml_and_no_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are those that docs/extending.md shows."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    section = page.partition("## An input")[2].partition("\n## ")[0]
    module, settings = re.findall(r"```(?:python|yaml)\n(.*?)```", section, re.DOTALL)
    conf = tmp_path / "conf"
    shutil.copytree(catalog.conf_dir(), conf)
    (conf / "input" / "ramp.yaml").write_text(settings)
    (tmp_path / "ramp.py").write_text(module)
    monkeypatch.setattr(catalog, "conf_dir", lambda: conf)
    monkeypatch.setattr(inputs, "__path__", [*inputs.__path__, str(tmp_path)])
    assert "ramp" in available()
    assert catalog.entries("input")["ramp"]["description"]
    config = compose.load(["input=ramp", "input.slope=0,2", "shape.seq_len=64"], lambda asked: ("cpu", ""))
    flat, steep = {point.input_params["slope"]: point for point in config.points}.values()
    assert {point.input for point in config.points} == {"ramp"}
    check_params("ramp", steep.input_params)
    with pytest.raises(ValueError, match=r"input\.slop is no .* did you mean 'slope'"):
        check_params("ramp", {"slop": 1.0})
    grown = [make_inputs(point)[1][:, :, -1].norm() for point in (flat, steep)]
    assert grown[1] > 2 * grown[0]
    sys.modules.pop("hyperbench.measure.inputs.ramp")


@pytest.mark.parametrize("family", DRAWN)
def test_torchs_defaults_decide_nothing(family: str) -> None:
    made = point(family)
    expected = [*make_inputs(made), make_grad_output(made)]
    try:
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float64)
        got = [*make_inputs(made), make_grad_output(made)]
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'clustered'"):
        make_inputs(a_point(input="clusterd"))
