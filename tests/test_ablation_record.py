"""Table 6 and Fig. 12 from the record of the ablation."""

from __future__ import annotations

import pytest

from cf_utils.harness import ablation_record


def row(name, seed, cgan, f, rec, fva):
    return {
        "name": name,
        "seed": seed,
        "weights": {"cgan": cgan, "f": f, "rec": rec},
        "fid_embedded": 2.0,
        "lsc_method": 0.5,
        "fva_embedded": fva,
        "rank_correlation": None,
        "rank_correlation_judge": 0.25,
        "expected": [0.1, 0.9],
        "actual": [0.2, 0.8],
    }


RECORD = {
    "rows": [
        row("paper", 0, 1.0, 1.0, 100.0, 1.0),
        row("rec=0", 0, 1.0, 1.0, 0.0, 0.25),
        row("cgan=0", 0, 0.0, 1.0, 100.0, 0.75),
        row("paper", 1, 1.0, 1.0, 100.0, 0.5),
    ]
}


def test_a_setting_is_the_mean_of_its_seeds_beside_the_papers_row():
    table = ablation_record.ablation_table(RECORD)
    assert table.index.tolist() == ["1,1,100", "1,1,0", "0,1,100"]
    assert table.FVA.tolist() == [0.75, 0.25, 0.75] and table.seeds.tolist() == [2, 1, 1]
    assert table.loc["1,1,0", "paper, FVA"] == 0.0
    assert table.loc["0,1,100", "paper, FID"] == 67.2
    assert table.loc["1,1,100", "paper, LSC"] == pytest.approx(0.816)
    assert table["rank correlation, f"].isna().all() and (table["judge"] == 0.25).all()


def test_a_curve_holds_the_seeds_of_one_value_and_leaves_other_weights_out():
    curves = ablation_record.ablation_curves(RECORD, "rec")
    assert list(curves) == ["λ_rec = 0", "λ_rec = 100"]
    expected, actual = curves["λ_rec = 100"]
    assert expected.shape == actual.shape == (2, 2) and actual[0].tolist() == pytest.approx(
        [0.2, 0.8]
    )


def test_bad_input_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="cf ablation"):
        ablation_record.read_ablation(tmp_path / "no.json")
    with pytest.raises(ValueError, match="cgan, f or rec"):
        ablation_record.ablation_curves({"rows": []}, "rec")
