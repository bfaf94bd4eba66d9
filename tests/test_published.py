"""Published results with enough items: they must show what the project claims of its methods."""

from __future__ import annotations

import pandas as pd
import pytest

from cf_utils.core import files

EMBEDDED = files.ROOT / "results" / "embedded"
RIVALS = ("wachter", "cem", "abele", "no_logit")


def metrics(name, profile="embedded"):
    """Read the published metrics of a notebook; skip the test if there are none."""
    file = files.ROOT / "results" / profile / name / "metrics.json"
    if not file.exists():
        pytest.skip(f"{file} is not published yet: make {profile}, make publish PROFILE={profile}")
    return files.read_json(file)


def test_the_demo_of_gradual_construction_convinces_independent_judges():
    m = metrics("01_gradual_mnist", "demo")
    assert (
        m["data"] == "embedded"
        and m["n"] >= 64
        and m["validity"] >= 0.98
        and m["claims_failed"] == 0
    )
    assert m["judge_real"] >= 0.98 and m["judge_pgd"] <= 0.10
    assert (
        m["judge_agreement_best"] >= 0.85
        and m["blank_judge_agreement"] >= 0.9
        and m["blank_n"] == 80
    )
    for key in ("n", "validity", "judge_agreement", "judge_agreement_all", "blocks_mean"):
        assert {key, *(f"{key}_{k}" for k in (*RIVALS, "best"))} <= m.keys()


@pytest.mark.parametrize("classifier", ["", "_984"])
def test_gradual_construction_beats_methods_without_a_prior_on_official_digits(classifier):
    m = metrics("01_gradual_mnist", "paper")
    assert m["data"] == "official" and m["n"] >= 360
    for rival in ("wachter", "cem", "no_logit"):
        difference = f"judge_difference_{rival}{classifier}"
        assert m[f"{difference}_mean"] >= 0.15 and m[f"{difference}_low"] > 0


@pytest.mark.parametrize(
    "path", sorted((files.ROOT / "results" / "benchmarks").glob("*.json")), ids=lambda p: p.stem
)
def test_benchmark_results_are_inside_their_bounds(path):
    found = files.read_json(path)
    assert not found["quick"] and found["missed"] == []


def test_samples_of_the_prior_of_faces_are_close_to_renders():
    m = metrics("06_diffusion_prior")
    assert m["data"] == "embedded" and m["n"] >= 256 and m["claims_failed"] == 0
    assert (
        abs(m["kid_embedded_floor"]) < 0.01
        and m["kid_embedded"] < 0.1
        and m["kid_embedded_filtered"] < m["kid_embedded"]
    )
    assert m["kid_embedded_few_upper"] > 10 * m["kid_embedded"]  # too few steps are far worse


def test_ace_on_faces_flips_decisions_by_the_true_cause():
    m = metrics("07_ace_faces")
    assert (
        m["data"] == "embedded"
        and m["n"] >= 256
        and m["n_dime"] == m["n_fastdime"] == m["n_dime_pasted"] == 64
    )
    assert m["classifier_accuracy"] >= 0.97
    assert m["flip_rate"] >= 0.95 and m["flip_rate"] >= m["flip_rate_pre"] - 0.02
    assert m["semantic_validity"] >= 0.8 * m["semantic_validity_ceiling"] > 0.4
    assert m["used_factor_moved_shortcut"] >= 0.8
    for rival in ("dime", "fastdime", "dime_pasted"):  # compared only if nine in ten flip
        assert (f"semantic_validity_less_{rival}" in m) == (m[f"flip_rate_{rival}"] >= 0.9)


def test_an_attack_without_a_prior_has_no_semantic_validity():
    assert metrics("07_ace_faces")["semantic_validity_pgd"] <= 0.1


def test_official_metrics_have_the_papers_value_and_embedded_ones_have_none():
    metrics("07_ace_faces")
    table = pd.read_csv(EMBEDDED / "07_ace_faces" / "tables" / "table1.csv", index_col=0)
    paper = table["paper, ACE l1"]
    assert (
        paper["fid"] == 1.27
        and paper["sfid"] == 3.97
        and paper["fva"] == pytest.approx(0.999)
        and paper["cout"] == 0.7828
    )
    assert paper[[name for name in paper.index if name.endswith("_embedded")]].isna().all()


def test_tables_5_and_6_have_no_empty_column():
    metrics("07_ace_faces")
    tables = EMBEDDED / "07_ace_faces" / "tables"
    five, six = (
        pd.read_csv(tables / f"{name}.csv", index_col=0) for name in ("table5_stages", "table6")
    )
    stages = ["Pre-CE", "FR-CE", "F-CE", "ACE"]
    assert list(five.index) == [*stages, "no change", "PGD", "true"]
    assert five.FR["no change"] == 0 and five.FR["true"] == 1
    assert five.loc["PGD":, ["FID, embedded", "CD, embedded"]].notna().all(axis=None)
    five = five.loc[stages]
    assert five.notna().all(axis=None)
    fid, sfid = five["FID, embedded"], five["sFID, embedded"]  # ranked as in the paper; CD is not
    assert (
        fid.idxmin() == sfid.idxmin() == "ACE"
        and fid.idxmax() == "FR-CE"
        and five["FR"].idxmin() == "F-CE"
    )
    assert five.loc["Pre-CE", "paper's CD"] == 3.05 and (five["n, attributes"] >= 64).all()
    assert set(six.index) == {"ACE", "pre-CE", "DiME", "random"} and six.notna().all(axis=None)
    assert six.FS["random"] < six.FS.drop("random").min() and six["paper's S3"]["DiME"] == 0.9396


def test_ace_on_roads_changes_the_true_region():
    m = metrics("08_ace_roads")
    assert m["data"] == "embedded" and m["n"] >= 64
    assert m["flip_rate"] >= 0.95 and m["flip_rate"] >= m["flip_rate_pre"] - 0.02
    assert (
        m["pixel_auroc"] > m["pixel_auroc_random"] + 0.2
        and m["share_inside"] > 5 * m["region_area"]
    )
    assert m["share_inside_right_lane"] > 5 * m["right_lane_area"]
    assert (
        m["semantic_validity_pgd"] <= 0.1 < m["semantic_validity"] <= m["semantic_validity_ceiling"]
    )
    assert m["pixel_auroc_descent"] > m["pixel_auroc_signed"]
    assert m["unused_factors_moved_descent"] < m["unused_factors_moved_signed"]
    assert (
        m["used_factor_moved_shortcut"] >= 0.8
        and m["followed_by_judge"] > m["followed_by_judge_pgd"] + 0.5
    )


@pytest.mark.parametrize(
    "of",
    [
        pytest.param(
            "",
            marks=pytest.mark.xfail(
                strict=True,
                reason="measured 0.89: nothing outside the mask has a rank; pedestrians 0.79",
            ),
        ),
        "_before_threshold",
        "_unmasked",
        "_decisive",
    ],
)
def test_pixels_that_ace_changes_on_roads_rank_the_true_region_first(of):
    assert metrics("08_ace_roads")[f"pixel_auroc{of}"] >= 0.9
