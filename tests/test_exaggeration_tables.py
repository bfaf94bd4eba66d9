"""Rivals of progressive exaggeration and the paper's tables, on four rendered faces."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from matplotlib import pyplot as plt

from cf_utils.evaluation.truth import true_progressions
from cf_utils.harness import exaggeration_cases, exaggeration_tables, results


@pytest.fixture(scope="module")
def case():
    return exaggeration_cases.rendered_case("faces", "smile", 4, 24)


@pytest.fixture(scope="module")
def methods(case):
    return case.methods(tau=0.95, seed=0)


@pytest.fixture(scope="module")
def shown(case, methods):
    return methods["exaggeration"].progress(case.classifier, case.data.x)


def test_rivals_search_for_the_outputs_that_exaggeration_was_asked_for(case, methods, shown):
    some = {k: methods[k] for k in ("exaggeration", "latent_shift")}
    found = exaggeration_tables.progress_rivals(case, some, shown, n=3, batch_size=2)
    assert list(found) == ["exaggeration", "latent_shift"]
    torch.testing.assert_close(found["exaggeration"], shown.images[:3])
    direct = methods["latent_shift"].progression(
        case.classifier, case.data.x[:3], shown.expected[:3].float()
    )
    torch.testing.assert_close(found["latent_shift"], direct.images, atol=1e-4, rtol=0)
    figure = exaggeration_tables.draw_rivals(case, shown, found, row=2)
    axes = figure.axes
    assert len(axes) == 2 * (1 + case.gan.bins)
    assert axes[1].get_title() == f"{shown.actual[2, 0]:.2f}"
    plt.close(figure)


def test_the_renderer_gives_the_outputs_that_were_asked_for(case, shown):
    """It moves the smile and nothing else."""
    truth = exaggeration_tables.render_truth(case, shown)
    factors = case.data.factors
    at = true_progressions.find_values(factors, case.classifier, shown.expected, "smile")
    for k in (0, 4, 9):
        image = factors.world.render(factors.move("smile", at[:, k].float()))
        torch.testing.assert_close(truth["renderer"][:, k], image)
    table = exaggeration_tables.compare_with_renderer(case, shown, truth)
    assert list(table) == ["value", "renderer", "n", "note"]
    assert table.renderer["rank_correlation"] > 0.98 > table.value["rank_correlation"]
    assert table.renderer["response_error"] < 0.02 < table.value["response_error"]
    assert table.renderer["rank_correlation_within_judge"] > 0.95
    told = exaggeration_tables.name_responses(table, "smile")
    assert told["monotone"] == table.value["monotone"]
    assert told["smile_monotone_renderer"] == table.renderer["smile_monotone"]


def test_photographs_have_no_renderer(case, shown):
    photographs = replace(case, truth=None, oracle=None, judges={})
    assert exaggeration_tables.render_truth(photographs, shown) == {}
    table = exaggeration_tables.compare_with_renderer(photographs, shown, {})
    told = exaggeration_tables.name_responses(table, "smile")
    assert not any(key.endswith("_renderer") for key in told)
    assert math.isnan(told["smile_monotone"]) and told["response_error"] > 0


def test_the_table_holds_the_papers_values_beside_ours(case, methods, shown):
    progressed = {"exaggeration": shown.images, "xgem": shown.images.flip(1)}
    compared = exaggeration_tables.compare_rivals(case, methods, progressed)
    told = exaggeration_tables.name_metrics(compared)
    assert told["fva_embedded_xgem"] == compared.values.xgem["fva_embedded"]
    assert told["lsc_method"] == compared.values.exaggeration["lsc_method"]
    poor = compared._replace(values=compared.values.drop(index="fva_embedded"))
    assert math.isnan(exaggeration_tables.name_metrics(poor)["fva_embedded_xgem"])
    table = exaggeration_tables.paper_beside_ours(case, compared)
    printed = results.reported("progressive-exaggeration")
    printed = printed[
        (printed["table"].isin(["Table 1", "Table 2"])) & (printed["task"] == "smiling")
    ]
    fva = printed[printed["metric"] == "face_verification_accuracy"].set_index("method").value
    for method, value in fva.items():
        ours = table.loc["face_verification_accuracy", f"paper, {method}"]
        assert ours == pytest.approx(value / 100)
    fid = printed[printed["metric"] == "FID_overall"].set_index("method").value
    assert table.loc["FID_overall", f"paper, {fid.index[0]}"] == pytest.approx(fid.iloc[0])
    assert table.loc["face_verification_accuracy", "faces, xgem"] == told["fva_embedded_xgem"]
    assert table.columns[-1] == "n" and table.n["FID_overall"] > 0


def test_the_committed_ablation_has_the_ten_settings_of_the_paper():
    table, curves = exaggeration_tables.read_ablation("f")
    assert len(table) == 10 and table["paper, FVA"].notna().all()
    assert (table.seeds == 2).all()
    assert list(curves) == ["λ_f = 0", "λ_f = 1", "λ_f = 10", "λ_f = 100"]
    slopes = {name: (actual[0, -1] - actual[0, 0]).item() for name, (_, actual) in curves.items()}
    assert abs(slopes["λ_f = 0"]) < 0.1 < 0.5 < slopes["λ_f = 1"] < slopes["λ_f = 100"]
    assert table.FVA["1,1,0"] < table.FVA["1,1,1"] < table.FVA["1,1,100"]
