"""The published data: complete, labelled, and consistent with itself."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hyperbench.analyze.claims.published import data_folder, load_claims, published_points


def test_claims_have_unique_ids_and_sources() -> None:
    claims = load_claims()
    assert len({c.id for c in claims}) == len(claims) >= 9
    assert all(c.source and c.claim for c in claims)


def test_fig4_marks_the_papers_two_points() -> None:
    marks = {p.is_causal: (p.seq_len, p.speedup) for p in published_points("fig4")}
    assert marks == {False: (131_072, 54.0), True: (131_072, 5.4)}


def test_recalled_claims_say_so_in_their_label() -> None:
    recalled = [c for c in load_claims() if c.recalled]
    assert {c.id for c in recalled} == {"fig3-all-layers", "alpha", "abstract-causal"}
    assert all("recalled" in c.label for c in recalled)
    assert not any("recalled" in c.label for c in load_claims() if not c.recalled)


def load_curves() -> pd.DataFrame:
    """The published curves, one row per value."""
    return pd.read_csv(data_folder() / "curves.csv")


def test_curves_say_how_each_value_was_obtained() -> None:
    curves = load_curves()
    assert curves["how"].notna().all()
    assert (curves.loc[curves["how"] == "read by eye", "uncertainty"] == 0.03).all()
    both = curves.dropna(subset=["exact_ms", "hyper_ms"])
    assert len(both) == 5
    pd.testing.assert_series_equal(both["exact_ms"] / both["hyper_ms"], both["speedup"], check_names=False, rtol=0.01)


def test_claims_read_from_a_plot_agree_with_its_curve() -> None:
    curves = load_curves().query("curve == 'zandieh' and seq_len == 131072")
    for claim in load_claims():
        if claim.id.startswith("zandieh"):
            causal, name = claim.setting["is_causal"], claim.setting["pass"]
            row = curves[(curves["is_causal"] == causal) & (curves["pass"] == name)]
            assert list(row["speedup"]) == [claim.value]


ENTRY = """
- {id: one, claim: c, setting: {}, quantity: q, value: 1.0, source: s, recalled: false, check: {rule: speedup_grows}}
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ENTRY.replace("source: s", "sauce: s"), "claim 'one': unknown key 'sauce'"),
        (ENTRY.replace("source: s", "sauce: s"), "did you mean 'source'?"),
        (ENTRY.replace("source: s, ", ""), "missing required field `source`"),
        (ENTRY.replace("value: 1.0", "value: many"), "$.value"),
        (ENTRY.replace("recalled: false", "recalled: 0"), "$.recalled"),
        ("- one", "a claim is a mapping"),
        (" {}", "no list of claims"),
        ("- {a: [", "damaged"),
        ("- !!python/object/apply:os.system [true]", "damaged"),
    ],
)
def test_a_malformed_claim_is_refused_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text("claims:\n" + text)
    with pytest.raises(ValueError, match=r"claims\.yaml") as refused:
        load_claims(path)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
