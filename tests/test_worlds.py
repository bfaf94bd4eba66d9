"""Worlds: factors, renders, drawing tools, the hash of the code, and the shipped world cards."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cf_utils import worlds
from cf_utils.core import files
from cf_utils.datasets import rendered
from cf_utils.training import world_card, world_probes
from cf_utils.worlds import code_hash, draw, faces_frame, lung_ct_scan, radiographs_ct
from cf_utils.worlds.factors import interpolate
from cf_utils.worlds.graph import build_score_model
from cf_utils.worlds.world import SPLITS

NAMES = worlds.NAMES


@pytest.fixture(scope="module", params=NAMES)
def world(request):
    scan = {"radiographs": radiographs_ct, "lung_ct": lung_ct_scan}.get(request.param)
    if scan and not scan.exists():
        pytest.skip(f"{scan.FILE.name} is missing: run {scan.HOW}")
    return worlds.get(request.param)


@pytest.fixture(scope="module")
def faces():
    return worlds.get("faces")


@pytest.fixture(scope="module")
def crowd(faces):
    return faces.sample(6, "test")


def changed(a, b):
    """Return the pixels (N, H, W) that differ in any channel."""
    return (a != b).any(1)


# factors and random streams


def test_the_first_rows_of_a_longer_sample_are_the_shorter_sample(world):
    for variant in world.variants:
        ten, five, four = (world.sample(n, "train", variant) for n in (10, 5, 4))
        assert torch.equal(ten.take(slice(0, 5)).values, five.values)
        assert torch.equal(ten.ids[:4], four.ids)
        assert torch.equal(world.sample(3, "train", variant, start=2).values, ten.values[2:5])
    assert not torch.equal(world.sample(5, seed=1).values, five.values)


def test_splits_share_no_draw(world):
    tables = [world.sample(50, split) for split in SPLITS]
    draws = torch.cat([table.draws for table in tables])
    assert len(draws.unique(dim=0)) == 150
    assert len(torch.cat([table.ids for table in tables]).unique()) == 150
    for column in draws.T:
        assert len(column.unique()) >= 149


def test_a_move_changes_a_factor_with_its_children_and_is_reversible(faces, crowd):
    moved = crowd.move("smile", 0.9)
    different = (moved.values != crowd.values).any(0).nonzero().flatten().tolist()
    assert {faces.names[k] for k in different} == {"smile", "cheeks", "squint"}
    assert torch.equal(moved.move("smile", crowd["smile"]).values, crowd.values)
    assert torch.equal(moved.draws, crowd.draws) and (moved["smile"] == 0.9).all()
    assert (crowd.move("age", 1.0)["wrinkles"] > crowd.move("age", 0.3)["wrinkles"] + 0.5).all()


def normal_scores(factors, name):
    """Return normal scores by rank; a binary factor is standardised instead."""
    column, factor = factors[name].double(), factors.world.factors[factors.world.column(name)]
    if factor.kind == "binary":
        return (column - column.mean()) / column.std()
    rank = column.argsort().argsort().double()
    return torch.special.ndtri((rank + 0.5) / len(rank))


def shrinkage(world, rows):
    """Return how much of each correlation remains, (K, K).

    A binary factor keeps phi(q) / sqrt(p (1 - p)) of its score's correlation with another one.
    """
    keep = torch.ones(len(rows))
    for i, factor in enumerate(world.factors[k] for k in rows):
        if factor.kind == "binary":
            q = torch.special.ndtri(torch.tensor(factor.p)).item()
            density = math.exp(-q * q / 2) / math.sqrt(2 * math.pi)
            keep[i] = density / math.sqrt(factor.p * (1 - factor.p))
    return keep[:, None] * keep


@pytest.mark.parametrize("variant", ["independent", "correlated", "mixed"])
def test_measured_correlations_are_those_of_the_graph(world, variant):
    n = 1500
    graph = world.graph(variant)
    factors = world.sample(n, variant=variant)
    implied = build_score_model(world.names, graph).correlation
    names = [f.name for f in world.factors if f.parent is None and f.kind != "category"]
    z = torch.stack([normal_scores(factors, name) for name in names])
    found = z @ z.T / n
    rows = [world.column(name) for name in names]
    binary = torch.tensor([world.factors[k].kind == "binary" for k in rows])
    error = found - implied[rows][:, rows] * shrinkage(world, rows)
    # for two binary factors another formula holds
    error = error.masked_fill(binary & binary[:, None], 0).fill_diagonal_(0)
    assert error.abs().max() < 4.5 / math.sqrt(n)  # 0.116; measured 0.086, the largest of 990 pairs
    declared = [
        abs(implied[world.column(c), world.column(p)].item()) for c in graph for p, _ in graph[c]
    ]
    assert all(value >= 0.15 for value in declared)


def test_marginals_are_the_same_in_every_variant(world):
    variants = [v for v in world.variants if v != "site_b"]  # another hospital
    tables = [world.sample(1000, variant=v, seed=3).values for v in variants]
    for table in tables[1:]:
        gap = (table.sort(0).values - tables[0].sort(0).values).abs().mean(0)
        assert gap.max() < 0.06  # measured 0.018 at most


def test_few_images_but_some_lie_near_the_threshold_of_a_label(faces):
    factors = faces.sample(3000, "validation")
    for label in faces.labels:
        share, near = label(factors).double().mean().item(), label.share_near_threshold(factors)
        assert 0.3 < share < 0.6, (label.name, share)
        # measured 0.010 to 0.028
        assert near < 0.04 and (near > 0.002 or label.name == "glasses"), (label.name, near)


def test_a_road_slows_down_for_exactly_one_cause():
    roads = worlds.get("roads")
    factors = roads.sample(2000, "validation")
    assert 0.45 < roads.label("action")(factors).double().mean() < 0.55
    action = roads.label("action")
    causes = torch.stack([roads.label(k)(factors) for k in ("braking", "red", "crossing")])
    assert torch.equal(causes.sum(0), action(factors))
    assert (action(action.neutralise(factors)) == 0).all()


def test_confounded_data_correlate_the_label_with_the_shortcut(faces):
    tied = faces.sample(500, variant="confounded")
    agree = (tied["smile"] >= 0.5) == (tied["background"] >= 0.5)
    assert agree.double().mean() > 0.93  # measured 0.978
    roads = worlds.get("roads")
    tied = roads.sample(500, variant="confounded")
    agree = roads.label("action")(tied) == roads.label("right_braking")(tied)
    assert agree.double().mean() > 0.93  # measured 0.956
    own = faces.sample(500, variant={"glasses": (("smile", 0.9),)})
    assert np.corrcoef(own["glasses"], own["smile"])[0, 1] > 0.6  # measured 0.78


# pixels


def test_rendering_does_not_depend_on_batch_order_or_threads(world):
    factors = world.sample(7, "test")
    shape = (36, 36 * world.size[1] // world.size[0])  # not a multiple of a vector register
    for size in (world.size, shape):
        whole = world.render(factors, size)
        assert whole.dtype == torch.float32 and whole.shape == (7, world.channels, *size)
        assert whole.min() >= 0 and whole.max() <= 1 and whole.flatten(1).std(1).min() > 0.05
        order = torch.tensor([4, 2, 6])
        assert torch.equal(world.render(factors.take(order), size), whole[order])
        assert torch.equal(world.render(factors.take([5]), size), whole[5:6])
    was = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(world.render(factors, shape), whole)
    finally:
        torch.set_num_threads(was)


def test_camera_noise_is_its_own_stream_with_the_stated_strength(world):
    factors = world.sample(4, "test").move("noise", torch.tensor([0.0, 0.3, 0.7, 1.0]))
    clean, noisy = world.render(factors, noise=False), world.render(factors)
    inner = (clean > 0.1) & (clean < 0.9)
    for i, sd in enumerate(world.noise_sd(factors).tolist()):
        assert (noisy - clean)[i][inner[i]].std().item() == pytest.approx(sd, rel=0.05)
    name = "inspiration" if world.name == "lung_ct" else "exposure"
    a, b = factors.move(name, 0.4), factors.move(name, 0.45)
    noise = [world.render(f) - world.render(f, noise=False) for f in (a, b)]
    equal = (noise[0] - noise[1]).abs() < 1e-6
    assert equal[inner].double().mean() > 0.9  # the same draw under another image


REACH = {  # factor -> the box x0, x1, y0, y1, in head coordinates, that it may change
    "smile": (-0.58, 0.58, -0.32, 0.60),
    "beard": (-0.64, 0.64, -0.08, 0.82),
    "glasses": (-0.58, 0.58, -0.24, 0.32),
    "makeup": (-0.58, 0.58, -0.32, 0.62),
    "eye_color": (-0.36, 0.36, -0.14, 0.14),
    "mouth_open": (-0.36, 0.36, 0.2, 0.62),
    "fringe": (-0.6, 0.6, -0.75, 0.1),
    "jaw": (-0.75, 0.75, -0.05, 0.95),
    "nose_width": (-0.45, 0.45, -0.16, 0.42),
}


@pytest.mark.parametrize("name", REACH)
def test_a_factor_of_a_face_changes_its_region_and_nothing_else(faces, crowd, name):
    a, b = crowd.move(name, 0.1), crowd.move(name, 0.95)
    region = changed(faces.render(a, noise=False), faces.render(b, noise=False))
    assert region.flatten(1).sum(1).min() >= 4  # visible in every face
    wide = torch.nn.functional.max_pool2d(region[:, None].float(), 3, 1, 1)[:, 0] > 0
    # outside, the camera noise is the same, so pixels are bit-equal
    assert not (changed(faces.render(a), faces.render(b)) & ~wide).any()
    p = SimpleNamespace(**{k: crowd[k][:, None, None] for k in faces.names})
    faces_frame.place_head(p, 64, 64)
    x0, x1, y0, y1 = REACH[name]
    assert not (region & ((p.x < x0) | (p.x > x1) | (p.y < y0) | (p.y > y1))).any()


def test_the_background_does_not_depend_on_the_person():
    faces = worlds.get("faces")
    crowd = faces.sample(4, "test")
    moved = crowd
    for name in (*faces.role("cause"), *faces.role("identity")):
        moved = moved.move(name, 0.5)
    same = ~changed(faces.render(crowd), faces.render(moved))
    assert same[:, :8, :3].all() and same[:, :8, -3:].all()  # the upper corners


def test_only_the_cause_of_the_scene_changes_the_image_and_the_label():
    roads = worlds.get("roads")
    factors = roads.sample(12, "test")
    assert len(factors["scene"].unique()) == 3
    for k, name in enumerate(("braking", "red", "crossing")):
        off, on = factors.move(name, 0.0), factors.move(name, 1.0)
        moved = changed(roads.render(off), roads.render(on)).flatten(1)
        own = factors["scene"] == k
        assert (moved.any(1) == own).all() and (moved.double().mean(1) < 0.25).all()
        flips = (roads.label("action")(on) == 1) & (roads.label("action")(off) == 0)
        assert torch.equal(flips, own)


def test_each_cause_is_visible_and_grows_with_its_value(faces, crowd):
    steps = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    many = crowd.take([0, 1, 2] * 5)
    for name in faces.role("cause"):
        moved = many.move(name, steps.repeat_interleave(3))
        views = faces.render(moved, noise=False).view(5, 3, -1)
        away = (views - views[0]).square().sum(2).sqrt()  # (5, 3), in pixel units
        assert (away[1:] >= away[:-1] - 1e-6).all() and away[-1].min() > 0.4, (name, away)
        assert (away[3] > away[1]).all()


def test_edges_move_smoothly(world):
    """A shift by a tenth of a pixel changes no value by more than an antialiased edge allows.

    Without antialiasing a value would change by the whole contrast, 0.5 and more.
    """
    factors = world.sample(6, "test")
    # the second is the shift in canvas units per unit of the factor
    name, width = {
        "faces": ("shift_x", 0.40),
        "radiographs": ("shift_x", 0.32),
        "lung_ct": ("shift_x", 0.20),
        "roads": ("heading", 0.7),
    }[world.name]
    at = factors[name] * 0.8 + 0.1
    a, b, c = (
        world.render(factors.move(name, at + k * 0.1 * (2 / 64) / width), noise=False)
        for k in (0, 1, 10)
    )
    jump = (a - b).abs().amax((1, 2, 3))
    assert jump.max() < 0.20  # measured: faces 0.15, roads 0.13, radiographs 0.08
    # a shift by a whole pixel does move edges
    assert (c - a).abs().amax((1, 2, 3)).min() > 1.5 * jump.min()


def test_a_larger_render_is_the_same_picture(world):
    factors = world.sample(4, "test")
    double = tuple(2 * k for k in world.size)
    small, large = (world.render(factors, size, noise=False) for size in (None, double))
    error = (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean((1, 2, 3))
    assert error.max() < 0.02  # measured: faces 0.010, roads 0.010, radiographs 0.003


# drawing tools, compared with closed forms


def test_shapes_have_their_areas_and_distances():
    x, y, px = draw.grid(64, 64)
    x, y = x.expand(1, 64, 64).double(), y.expand(1, 64, 64).double()
    area = draw.inside(draw.ellipse(x - 0.013, y, 0.6, 0.4), px).sum() * px * px
    assert area.item() == pytest.approx(math.pi * 0.24, rel=0.005)
    area = draw.inside(draw.box(x, y - 0.01, 0.5, 0.3, 0.1), px).sum() * px * px
    assert area.item() == pytest.approx(4 * 0.15 - (4 - math.pi) * 0.01, rel=0.005)
    for half in (0.002, 0.01, 0.05):  # lines keep their area when thinner than a pixel
        area = draw.stroke(y - 0.017 * x, half, px).sum() * px * px
        assert area.item() == pytest.approx(4 * half, rel=0.02)
    d, t = draw.segment(x, y, -0.5, 0.1, 0.3, 0.4)
    along = torch.linspace(0, 1, 4001, dtype=torch.float64)
    u, v = (k.flatten()[:200, None] for k in (x, y))
    brute = ((u + 0.5 - 0.8 * along).square() + (v - 0.1 - 0.3 * along).square()).sqrt()
    torch.testing.assert_close(d.flatten()[:200], brute.min(1).values, atol=1e-5, rtol=0)
    assert t.min() >= 0 and t.max() <= 1


def test_waves_grain_and_colours():
    t = torch.linspace(-3, 3, 601, dtype=torch.float64)
    assert (draw.wave(t) - (2 * math.pi * t).sin()).abs().max() < 0.06
    lattice = torch.rand(2, 5, 7, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(10.0).double(), torch.arange(14.0).double(), indexing="ij")
    grown = draw.grain(lattice, x.expand(2, -1, -1), y.expand(2, -1, -1))
    assert torch.equal(grown, lattice.repeat(1, 2, 2))  # exact on the lattice, which repeats
    between = draw.grain(lattice, x.expand(2, -1, -1) + 0.4, y.expand(2, -1, -1) + 0.7)
    assert lattice.min() <= between.min() and between.max() <= lattice.max()
    colours = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), (1.0, 0.0, 0.4))
    found = draw.palette(colours, torch.tensor([0.0, 0.5, 1.0]))[:, :, 0, 0]
    assert torch.equal(found, torch.tensor(colours))
    knots, at = ((0.1, 1.0), (0.4, 3.0), (0.9, 2.0)), torch.rand(50, dtype=torch.float64)
    np.testing.assert_allclose(interpolate(at, knots), np.interp(at, *zip(*knots, strict=True)))


# data sets and bad input


def test_a_rendered_data_set_holds_renders_and_their_labels(faces):
    data = rendered.load("faces", "validation", n=5, label="age")
    assert torch.equal(data.x, faces.render(data.factors))
    assert torch.equal(data.y, faces.label("age")(data.factors))
    assert torch.equal(data.labels[:, data.label_names.index("age")], data.y)
    assert data.class_names == ("young", "old")
    two = data.take([3, 1])
    assert torch.equal(faces.render(two.factors), data.x[[3, 1]])
    assert torch.equal(two.ids, data.ids[[3, 1]])
    x, y, i = data[2]
    assert x.shape == (3, 64, 64) and y in (0, 1) and i == data.ids[2]
    assert rendered.load("roads", n=2, size=(32, 64)).x.shape == (2, 3, 32, 64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: worlds.get("moon"), "world: got 'moon', expected one of"),
        (lambda w: w.sample(0), "n, start: got 0, 0"),
        (lambda w: w.sample(2, start=-1), "n, start: got 2, -1"),
        (lambda w: w.sample(2, "holdout"), "split: got 'holdout'"),
        (lambda w: w.sample(2, variant="wild"), "variant: got 'wild', expected one of"),
        (lambda w: w.sample(2, variant={"smile": (("nose", 0.5),)}), "factor: got 'nose'"),
        (
            lambda w: w.sample(2, variant={"grey": (("smile", 0.5),)}),
            "got 'grey', which is a child",
        ),
        (
            lambda w: w.sample(2, variant={"age": (("smile", 0.9), ("beard", 0.9))}),
            "parents of 'age' explain a variance of 1.620, expected at most 1",
        ),
        (
            lambda w: w.sample(2, variant={"age": (("smile", 0.5),), "smile": (("age", 0.5),)}),
            "expected a graph without cycles",
        ),
        (
            lambda w: w.sample(2).move("smile", 1.2),
            "value: got 1.2 to 1.2 for smile, expected values inside",
        ),
        (
            lambda w: w.sample(2).move("smile", torch.tensor([0.1, torch.nan])),
            "for smile, expected values inside",
        ),
        (lambda w: w.sample(2).move("frown", 0.5), "factor: got 'frown'"),
        (lambda w: w.sample(2)["frown"], "factor: got 'frown'"),
        (lambda w: w.label("sad"), "label: got 'sad', expected one of"),
        (lambda w: w.role("hero"), "role: got 'hero'"),
        (lambda w: w.render(w.sample(1), (8, 8)), "size: got \\(8, 8\\)"),
        (
            lambda w: w.render(w.sample(1), (64, 128)),
            "size: got \\(64, 128\\), expected height >= 16 and the aspect ratio",
        ),
    ],
)
def test_bad_input_is_refused_by_name(faces, call, words):
    with pytest.raises(ValueError, match=words):
        call(faces)


# world cards


def test_probes_find_information_where_there_is_some_and_only_there():
    """Three data sets with known answers: brightness reveals the label, a place, or nothing."""
    gen = torch.Generator().manual_seed(0)
    x = 0.3 + 0.2 * torch.rand(400, 3, 16, 16, generator=gen)
    y = torch.randint(0, 2, (400,), generator=gen)
    bright, placed = x.clone(), x.clone()
    bright[y == 1] += 0.1
    placed[y == 1, :, 3:6] += 0.1
    placed[y == 0, :, 9:12] += 0.1

    def score(auc, x):
        return auc(x[:300], y[:300], x[300:], y[300:])

    assert score(world_probes.histogram_auc, bright) > 0.95
    assert 0.35 < score(world_probes.histogram_auc, placed) < 0.65
    assert score(world_probes.pixel_auc, placed) > 0.95
    assert 0.35 < score(world_probes.pixel_auc, x) < 0.65
    assert world_probes.bootstrap_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], draws=1)[0] == 0.75


def test_the_distance_ratio_detects_copies():
    x = torch.rand(400, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ratio = world_probes.nearest_distance_ratio
    assert ratio(x[:300], x[300:], 50) == pytest.approx(1, abs=0.03)
    assert ratio(x[300:350], x[300:], 50) == 0  # the training set holds copies of the queries


def test_pgd_flips_a_linear_model_whose_margin_is_in_reach():
    """The margin is 4; an eps in every pixel changes it by 768 eps."""
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 2))
    grey = torch.full((8, 3, 16, 16), 0.5)
    with torch.no_grad():
        linear[1].weight.copy_(torch.stack([torch.zeros(768), torch.ones(768)]))
        linear[1].bias.copy_(torch.tensor([0.0, -384.0 + 4.0]))
    assert world_probes.pgd_flip_rate(linear, grey) == 1.0  # 768 * 2 / 255 = 6.0
    assert world_probes.pgd_flip_rate(linear, grey, eps=1 / 255) == 0.0  # 3.0


# Still open: PGD flips too few decisions on age (0.81 to 0.86) and cardiomegaly (0.67; one channel,
# a large shape), and on CT, where a finding is a density of a large region. The bound is 0.9.
OPEN = {(f"{label}:", "flipped_by_pgd") for label in ("age", "cardiomegaly", "mortality")}
OPEN.add(("emphysema:", "flipped_by_pgd"))


@pytest.mark.parametrize("name", sorted(path.stem for path in world_card.FOLDER.glob("*.json")))
def test_the_committed_world_card_is_of_this_code_and_within_its_bounds(name):
    found = files.read_json(world_card.FOLDER / f"{name}.json")
    message = f"the world changed: run `cf world check {name}`"
    assert found["sha256"] == worlds.get(name).sha256(), message
    assert tuple(found["checked"]) == world_card.CHECKED[name]
    assert world_card.list_violations(found["checked"]) == found["outside"]
    violated = {tuple(line.split(" ")[:2]) for line in found["outside"]}
    assert violated <= OPEN, f"outside its bounds: {found['outside']}"


def test_a_value_outside_its_bounds_is_named_and_the_check_fails(monkeypatch, tmp_path, capsys):
    row = {
        "auc_neutralised": 0.5,
        "auc_histogram": 0.61,
        "auc_pixels": 0.7,
        "auc_cnn": 0.98,
        "flipped_by_pgd": 0.95,
        "nearest_train_over_test": 1.0,
    }
    card = {
        "checked": {"smile": row},
        "outside": world_card.list_violations({"smile": row}),
        "cpu_ms_per_image": 4.0,
        "seconds": 1.0,
    }
    monkeypatch.setattr(world_card, "FOLDER", tmp_path)
    monkeypatch.setattr(world_card, "check", lambda name, n: card)
    assert world_card.write("faces") == 1
    assert "outside: smile: auc_histogram 0.610 is outside [0.0, 0.6]" in capsys.readouterr().out
    assert files.read_json(tmp_path / "faces.json")["checked"] == {"smile": row}


def test_a_world_is_checked_with_a_report_of_each_step(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.delenv("CF_HEADLESS", raising=False)
    monkeypatch.setattr(
        world_card, "check_label", lambda *args: {k: 1.0 for k in world_card.BOUNDS}
    )
    card = world_card.check("roads", n=8, n_test=4)
    assert card["sha256"] == worlds.get("roads").sha256() and card["n_few"] == 8
    assert set(card["labels"]) == {label.name for label in worlds.get("roads").labels}
    assert capsys.readouterr().err.splitlines() == [
        "roads: rendering 12 images",
        "roads: checking action",
    ]
    with pytest.raises(ValueError, match="world: got 'moon'"):
        world_card.check("moon")
    with pytest.raises(ValueError, match="--n: got 0, expected"):
        world_card.check("faces", n=0)


# the hash of a world's code


def copy_package(folder, monkeypatch):
    """Copy the package's modules, from which the hash is computed, and return the folder."""
    for path in code_hash.FOLDER.glob("*.py"):
        (folder / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(code_hash, "FOLDER", folder)
    return folder


def list_code(folder, name="faces"):
    return code_hash.list_statements(folder / f"{name}.py", folder / "world.py")


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_hash_ignores_wording_and_layout(tmp_path, monkeypatch):
    before = list_code(code_hash.FOLDER)
    folder = copy_package(tmp_path, monkeypatch)
    assert list_code(folder) == before
    edit(
        folder / "draw.py", '"""Return the smooth step from 0 at `low`', '"""Other words for `low`'
    )
    edit(folder / "draw.py", "def step(t: Tensor) -> Tensor:", "def step(t):  # no annotation")
    edit(folder / "draw.py", "import torch\n", "import math\nimport torch\n")
    edit(folder / "factors.py", 'f"value: got {low:.3g} to', 'f"the value: got {low:.3g} to')
    edit(folder / "world.py", "name: str\n    classes", "name: object\n    classes")
    edit(
        folder / "faces.py",
        "shadow_of_hair = 0.35 * p.face",
        "shadow_of_hair = (0.35\n        * p.face)",
    )
    assert list_code(folder) == before


def test_the_hash_ignores_the_file_that_holds_a_definition(tmp_path, monkeypatch):
    before = list_code(code_hash.FOLDER)
    folder = copy_package(tmp_path, monkeypatch)
    text = (folder / "factors.py").read_text(encoding="utf-8")
    moved = text[text.index("def interpolate(") : text.index("def draw_uniform(")]
    (folder / "knots.py").write_text("import torch\n\n\n" + moved)
    edit(folder / "factors.py", moved, "")
    assert list_code(folder) != before
    line = "from cf_utils.worlds.knots import interpolate\n"
    edit(folder / "factors.py", "from cf_utils import core\n", f"from cf_utils import core\n{line}")
    assert list_code(folder) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("draw.py", "t * t * (3 - 2 * t)", "t * t * (3 - 2.0001 * t)"),
        (
            "faces.py",
            'Factor("smile", "cause", quantiles=bimodal',
            'Factor("smile", quantiles=bimodal',
        ),
        ("faces_head.py", "nx, ny = 0.92 * p.u", "nx, ny = 0.93 * p.u"),
        ("factors.py", ">> 12) + 0.5", ">> 11) + 0.5"),
        ("graph.py", "explained > 1 + 1e-9", "explained > 1 + 1e-8"),
        ("world.py", "2**17", "2**16"),
    ],
)
def test_the_hash_depends_on_every_line_of_code(tmp_path, monkeypatch, file, old, new):
    before = list_code(code_hash.FOLDER), list_code(code_hash.FOLDER, "roads")
    folder = copy_package(tmp_path, monkeypatch)
    edit(folder / file, old, new)
    assert list_code(folder) != before[0]
    assert (list_code(folder, "roads") == before[1]) == file.startswith("faces")


def test_the_hash_covers_all_modules_behind_a_world_and_the_random_stream(monkeypatch):
    found = code_hash.find_modules(code_hash.FOLDER / "roads.py", code_hash.FOLDER / "world.py")
    own = {f"roads{part}.py" for part in ("", "_scene", "_objects", "_weather")}
    assert {path.name for path in found} == own | {"draw.py", "factors.py", "graph.py", "world.py"}
    before = worlds.get("roads").sha256()
    assert before == worlds.get("roads").sha256() != worlds.get("faces").sha256()
    monkeypatch.setattr(code_hash.core, "item_noise", lambda *a: torch.zeros(1, 4))
    assert worlds.get("roads").sha256() != before


def test_a_world_without_a_file_has_no_hash():
    with pytest.raises(
        ValueError, match="draw: got a function of 'interactive', which has no file"
    ):
        sys.modules["interactive"] = SimpleNamespace()
        try:
            code_hash.hash_world("stripes", "interactive")
        finally:
            del sys.modules["interactive"]
