"""What is published at sizes that carry a claim holds what was asked of it."""

from __future__ import annotations

import pandas as pd
import pytest

from cf_utils.core import files

EMBEDDED = files.ROOT / "results" / "embedded"
RIVALS = ("wachter", "cem", "abele", "no_logit")


def metrics(name, profile="embedded"):
    file = files.ROOT / "results" / profile / name / "metrics.json"
    if not file.exists():
        pytest.skip(f"{file} is not published yet: make {profile}, make publish PROFILE={profile}")
    return files.read_json(file)


def test_the_demo_of_gradual_construction():
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
def test_gradual_construction_on_official_digits_beats_who_has_no_prior(classifier):
    m = metrics("01_gradual_mnist", "paper")
    assert m["data"] == "official" and m["n"] >= 360
    for rival in ("wachter", "cem", "no_logit"):
        difference = f"judge_difference_{rival}{classifier}"
        assert m[f"{difference}_mean"] >= 0.15 and m[f"{difference}_low"] > 0


@pytest.mark.parametrize(
    "path", sorted((files.ROOT / "results" / "benchmarks").glob("*.json")), ids=lambda p: p.stem
)
def test_what_the_benchmarks_measured_is_inside_its_bounds(path):
    found = files.read_json(path)
    assert not found["quick"] and found["missed"] == []


def test_the_prior_of_faces_draws_what_one_takes_for_renderings():
    m = metrics("06_diffusion_prior")
    assert m["data"] == "embedded" and m["n"] >= 256 and m["claims_failed"] == 0
    assert (
        abs(m["kid_embedded_floor"]) < 0.01
        and m["kid_embedded"] < 0.1
        and m["kid_embedded_filtered"] < m["kid_embedded"]
    )
    assert m["kid_embedded_few_upper"] > 10 * m["kid_embedded"]  # a wrong sampler is far worse


def test_ace_on_faces():
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
    for rival in ("dime", "fastdime", "dime_pasted"):  # compared only where nine in ten turn
        assert (f"semantic_validity_less_{rival}" in m) == (m[f"flip_rate_{rival}"] >= 0.9)


def test_an_attack_without_a_prior_has_no_semantic_validity():
    assert metrics("07_ace_faces")["semantic_validity_pgd"] <= 0.1


def test_the_papers_columns_stand_beside_ours():
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


def test_stages_and_persons_have_all_their_columns():
    """Tables 5 and 6, ours beside the paper's: a column that cannot be filled would be an empty one."""
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
    fid, sfid = (
        five["FID, embedded"],
        five["sFID, embedded"],
    )  # as in the paper; CD is not (claims.csv)
    assert (
        fid.idxmin() == sfid.idxmin() == "ACE"
        and fid.idxmax() == "FR-CE"
        and five["FR"].idxmin() == "F-CE"
    )
    assert five.loc["Pre-CE", "paper's CD"] == 3.05 and (five["n, attributes"] >= 64).all()
    assert set(six.index) == {"ACE", "pre-CE", "DiME", "random"} and six.notna().all(axis=None)
    assert six.FS["random"] < six.FS.drop("random").min() and six["paper's S3"]["DiME"] == 0.9396


def test_ace_on_roads():
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
                strict=True, reason="0.89: a mask leaves nothing outside; pedestrians 0.79"
            ),
        ),
        "_before_threshold",
        "_unmasked",
        "_decisive",
    ],
)
def test_what_ace_changes_on_roads_ranks_the_true_region(of):
    assert metrics("08_ace_roads")[f"pixel_auroc{of}"] >= 0.9
