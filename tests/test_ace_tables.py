"""Tables of ACE beside the paper's: which faces each column uses, and which value stands where."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
import torch

from cf_utils.evaluation.metrics import perceptual
from cf_utils.harness import ace_tables
from tests import stripes
from tests.ace_stripes import SIZES, make_case, move, towards

EMBEDDED = ("fid_embedded", "sfid_embedded", "mnac_embedded", "cd_embedded")


@pytest.fixture
def case():
    return make_case()


def test_change_and_mask_are_means_per_item(case):
    cfs = move(case)
    x = cfs.query.clone()
    x[1, :, :8] += 0.25  # half of the image
    mask = torch.zeros(4, 3, 16, 16, dtype=torch.bool)
    mask[2, :, :4] = True
    cfs = dataclasses.replace(cfs, counterfactual=x, mask=mask)
    assert ace_tables.mean_change(cfs).tolist() == pytest.approx([0, 0.125, 0, 0])
    assert ace_tables.mask_area(cfs).tolist() == [0, 0, 0.25, 0]
    assert ace_tables.mask_area(dataclasses.replace(cfs, mask=None)).isnan().all()


def test_the_true_change_is_an_anchor_of_renders_alone(case):
    cfs = move(case, left=towards(case))
    anchors = ace_tables.find_anchors(case, cfs, cfs)
    assert list(anchors) == ["no change", "PGD", "true"]
    assert anchors["PGD"] is not cfs and anchors["true"].valid.all()
    torch.testing.assert_close(anchors["true"].score, cfs.score, atol=0.05, rtol=0)
    anchors = ace_tables.find_anchors(make_case(truth=False), cfs, cfs)
    assert list(anchors) == ["no change", "PGD"] and anchors["PGD"] is cfs
    assert torch.equal(anchors["no change"].counterfactual, cfs.query)


def fake_columns(monkeypatch, official=False):
    """Replace `measure_columns`: each value is the mean change plus the column's place."""

    def measure(case, cfs, linked, columns=("fid", "sfid", "fr"), **more):
        names = [*columns, "mnac", "cd", *(() if official else EMBEDDED)]
        value = ace_tables.mean_change(cfs).mean().item()
        rows = {name: value + i for i, name in enumerate(names)}
        if not official:
            rows |= dict.fromkeys(("fid", "sfid", "mnac", "cd"), float("nan"))
        return pd.DataFrame({"value": rows, "note": ""})

    monkeypatch.setattr(ace_tables, "measure_columns", measure)


def test_mnac_and_cd_are_measured_on_linked_faces(case, monkeypatch):
    asked = []

    def ace_table(cfs, f, columns, **more):
        asked.append((cfs, columns, more))
        return pd.DataFrame({"value": dict.fromkeys(columns, 0.0)})

    monkeypatch.setattr(ace_tables.tables, "ace_table", ace_table)
    linked = dataclasses.replace(case.linked, correlations=torch.ones(3), attribute=2)
    case = dataclasses.replace(case, linked=linked)
    own, other = move(case), move(case.linked)
    found = ace_tables.measure_columns(case, own, other, ["cout"], seed=7)
    assert list(found.index) == ["cout", "mnac", "cd"]
    (first, columns, more), (second, names, theirs) = asked
    assert first is own and columns == ("cout",) and more["seed"] == 7
    assert second is other and names == ("mnac", "cd") and theirs["embedded"] is False
    assert theirs["oracle"] is case.attributes and theirs["attribute"] == 2
    assert torch.equal(theirs["training"], torch.ones(3))
    photographs = dataclasses.replace(make_case(truth=False), dataset="celebahq")
    ace_tables.measure_columns(photographs, own, own)
    assert asked[-1][2]["oracle"] == "celebahq"


def test_table_5_has_the_printed_values_beside_the_stages(case, monkeypatch):
    fake_columns(monkeypatch)
    case = dataclasses.replace(case, label="smile")
    same, far = move(case), move(case, left=towards(case))
    rows = dict.fromkeys(("Pre-CE", "FR-CE", "F-CE", "PGD"), same) | {"ACE": far}
    few = dict.fromkeys(rows, same.select(range(3)))
    table = ace_tables.stage_table(case, rows, few)
    assert table.loc["Pre-CE", "paper's CD"] == 3.05 and table.loc["ACE", "paper's FID"] == 1.27
    assert table.loc["F-CE", "paper's FR"] == pytest.approx(0.9337)
    assert pd.isna(table.loc["PGD", "paper's FID"])
    change = ace_tables.mean_change(far).mean().item()
    assert table.loc["ACE", "mean change"] == pytest.approx(change)
    assert table.loc["ACE", "FID, embedded"] == pytest.approx(change + 5)
    assert table["CD, embedded"]["PGD"] == 8 and "FID" not in table.columns
    assert (table.n == 4).all() and (table["n, attributes"] == 3).all()
    metrics = ace_tables.stage_metrics(table)
    stages = ("pre", "fr", "f", "ace")
    assert set(metrics) == {f"{m}_embedded_{k}" for m in ("fid", "cd") for k in stages}
    assert metrics["fid_embedded_ace"] == table.loc["ACE", "FID, embedded"]
    other = ace_tables.stage_table(dataclasses.replace(case, dataset="celebahq"), rows, few)
    assert other.filter(like="paper's").isna().all(axis=None)


def test_columns_by_published_networks_keep_their_names(case, monkeypatch):
    fake_columns(monkeypatch, official=True)
    case = dataclasses.replace(make_case(truth=False), label="age")
    cfs = move(case, left=0.9)
    table = ace_tables.stage_table(case, {"ACE": cfs}, {"ACE": cfs})
    assert {"FID", "sFID", "MNAC", "CD"} <= set(table.columns)
    assert not [name for name in table.columns if "embedded" in name]


def test_table_1_has_the_papers_row_of_label_and_distance(case, monkeypatch):
    fake_columns(monkeypatch)
    cfs = move(case)
    for label, distance, fid in (("smile", "l1", 1.27), ("age", "l2", 2.08)):
        part = dataclasses.replace(case, label=label, attributes=None)
        paper = ace_tables.faces_table(part, cfs, cfs, distance, 0)[f"paper, ACE {distance}"]
        assert paper["fid"] == fid and 0.99 < paper["fva"] < 1
        assert paper["sfid"] == {"l1": 3.97, "l2": 4.62}[distance]
        assert paper[list(EMBEDDED)].isna().all()
    assert ace_tables.paper_table(case) == "Table 1"
    photographs = dataclasses.replace(case, dataset="celebahq", label="smile", attributes=None)
    assert ace_tables.paper_table(photographs) == "Table 2"
    paper = ace_tables.faces_table(photographs, cfs, cfs, "l1", 0)["paper, ACE l1"]
    assert paper["fid"] == 3.21


def test_table_6_leaves_out_what_is_not_valid(case, monkeypatch):
    def similar(name):
        def measure(encoder, query, image, seed):
            assert encoder is {"fs": "person", "s3": "scene"}[name]
            value = 1 - (image - query).abs().mean().item()
            return {f"{name}_embedded": value, f"{name}_embedded_random": len(query) / 10}

        return measure

    monkeypatch.setattr(ace_tables.identity, "fva_fs", lambda *a, seed: similar("fs")(*a, seed))
    monkeypatch.setattr(ace_tables.identity, "s3", similar("s3"))
    case = dataclasses.replace(case, face="person", label="smile")
    case.__dict__["alexnet"] = "scene"
    far, three = move(case, left=towards(case)), torch.tensor([True, True, False, True])
    far.counterfactual[2] = 0.9  # not valid, so it does not count
    far = dataclasses.replace(far, valid=three)
    one = dataclasses.replace(far, valid=torch.tensor([True, False, False, False]))
    table = ace_tables.similarity_table(case, {"ACE": far, "pre-CE": one}, 0)
    assert list(table.index) == ["ACE", "random"] and table.n.tolist() == [3, 3]
    change = (far.counterfactual - far.query)[three].abs().mean().item()
    assert table.FS["ACE"] == pytest.approx(1 - change) and table.S3["random"] == 0.3
    assert table.loc["ACE", "paper's FS"] == 0.8941
    assert table.loc["random", "paper's S3"] == 0.4337


def test_table_6_is_empty_where_a_published_network_is_missing(monkeypatch):
    def missing(name, device):
        raise FileNotFoundError(f"{name} is missing")

    monkeypatch.setattr(ace_tables.encoders, "load", missing)
    case = make_case(truth=False)
    table = ace_tables.similarity_table(case, {"ACE": move(case)}, 0)
    assert table.empty and list(table.columns) == ["FS", "S3", "n"]


def test_variants_stand_beside_the_anchors_on_the_same_faces(case):
    cfs = move(case, left=towards(case))
    pre = (cfs.query + 0.25).clamp(0, 1)
    path = torch.stack([cfs.query, pre, cfs.counterfactual], 1)
    mask = torch.ones(4, 3, 16, 16, dtype=torch.bool)
    whole = dataclasses.replace(cfs, path=path, path_len=torch.full((4,), 3), mask=mask)
    few = whole.select(range(2))
    table = ace_tables.variant_table({"PGD, l1": few}, {"no change": move(case), "true": cfs})
    assert list(table.index) == ["PGD, l1", "no change", "true"] and (table.n == 2).all()
    assert table.FR.tolist() == [1, 0, 1]
    change = ace_tables.mean_change(cfs)[:2].mean().item()
    assert table["mean change"].tolist() == pytest.approx([change, 0, change])
    pre_change = (pre - cfs.query)[:2].abs().mean().item()
    row = table.loc["PGD, l1"]
    assert row["of the pre-explanation"] == pytest.approx(pre_change)
    assert row["mask"] == 1 and row["UNet passes"] == 7


def test_diversity_is_the_mean_distance_between_seeds(case, monkeypatch):
    def distance(network, a, b, batch_size=50):
        return (a - b).abs().mean((1, 2, 3))

    monkeypatch.setattr(perceptual, "lpips_distance", distance)
    case.__dict__["lpips"] = torch.nn.Identity()
    low, high = (move(case, left=v) for v in (0.2, 0.7))
    same = torch.ones(4, dtype=torch.bool)
    low, high = (dataclasses.replace(c, valid=same) for c in (low, high))
    found = ace_tables.measure_diversity(case, {"same": [low, low], "varied": [low, high]})
    area = stripes.SPAN * 0.5 * 6 / 16  # 6 of 16 columns change by half of the span
    assert found["same"] == 0 and found["varied"] == pytest.approx(area, abs=0.01)
    case.__dict__["lpips"] = None
    assert ace_tables.measure_diversity(case, {"same": [low, low]}).isna().all()
    assert SIZES.n_seeds == 2
