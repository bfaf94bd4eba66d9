"""Metrics of DiffExplainer: reconstruction, alignment, manipulation, visibility and voxels."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from cf_utils.core import target_score
from cf_utils.evaluation import reconstructions, slice_attributions
from cf_utils.evaluation.attributions import integrated_gradients
from cf_utils.evaluation.metrics import alignment, manipulation, reconstruction, voxels
from cf_utils.models.teacher import Teacher
from tests.slice_models import LinearBlackBox, LinearSlices, make_patients
from tests.test_diffexplainer import make, targets
from tests.test_saliency import Pooled


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- reconstruction


def test_psnr_and_ssim_are_scikit_images_per_slice():
    x, y = rand(3, 2, 24, 20), rand(3, 2, 24, 20, seed=1)
    y = (0.7 * x + 0.3 * y).clamp(0, 1)
    for i in range(3):
        planes = [(x[i, c].double().numpy(), y[i, c].double().numpy()) for c in range(2)]
        expected = np.mean([peak_signal_noise_ratio(a, b, data_range=1) for a, b in planes])
        assert reconstruction.psnr(x, y)[i].item() == pytest.approx(expected, abs=1e-6)
        expected = np.mean(
            [
                structural_similarity(
                    a, b, data_range=1, gaussian_weights=True, use_sample_covariance=False
                )
                for a, b in planes
            ]
        )
        assert reconstruction.ssim(x, y)[i].item() == pytest.approx(expected, abs=1e-9)


def test_a_mask_restricts_both_to_its_pixels():
    x, y = rand(2, 2, 24, 24), rand(2, 2, 24, 24)
    mask = torch.zeros(2, 2, 24, 24, dtype=torch.bool)
    mask[0, :, 4:20, 4:20] = True
    y[0, :, 4:20, 4:20] -= 0.1  # inside
    y[0, :, :2] += 0.5  # outside; beyond half a window of the mask's inner part
    values = reconstruction.psnr(x, y, mask)
    assert values[0].item() == pytest.approx(20.0, abs=1e-4) and values[1].isnan()
    inner = torch.zeros_like(mask)
    inner[0, 0, 10:14, 10:14] = True
    far = y.clone()
    far[0, :, :3] = 0
    near, moved = reconstruction.ssim(x, y, inner), reconstruction.ssim(x, far, inner)
    assert near[0] == moved[0] and near[1].isnan()
    assert reconstruction.ssim(x, x)[0].item() == pytest.approx(1)
    assert reconstruction.psnr(x, x)[0].item() == math.inf


def test_a_summary_of_reconstructions():
    x, y = rand(4, 2, 16, 16), rand(4, 2, 16, 16, seed=1)
    a = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    b = torch.tensor([[0.0, 2.0], [1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    body = rand(4, 2, 16, 16, seed=2) > 0.5
    found = reconstruction.measure_reconstruction(x, y, a, b, body)
    assert found["n"] == 4 and found["same_decision"] == 0.75
    p, q = a.double().softmax(1), b.double().softmax(1)
    assert found["kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item())
    assert found["psnr_body"] != found["psnr"] and found["ssim_body"] != found["ssim"]
    assert "psnr_body" not in reconstruction.measure_reconstruction(x, y, a, b)
    with pytest.raises(ValueError, match=r"mask: got torch\.float32"):
        reconstruction.psnr(x, y, body.float())
    with pytest.raises(ValueError, match="y: got shape"):
        reconstruction.psnr(x, y[:2])


# ---------------------------------------------------------------- alignment


def test_alignment_equals_counts_and_pairs():
    gen = torch.Generator().manual_seed(3)
    teacher = torch.randn(60, 2, generator=gen) + torch.tensor([0.4, 0.0])
    agent = teacher + torch.randn(60, 2, generator=gen)
    found = alignment.measure_alignment(agent, teacher)
    true, said = (teacher[:, 1] > teacher[:, 0]).tolist(), (agent[:, 1] > agent[:, 0]).tolist()
    tp = sum(t and s for t, s in zip(true, said, strict=True))
    tn = sum(not t and not s for t, s in zip(true, said, strict=True))
    fp, fn = sum(said) - tp, sum(true) - tp
    assert found["accuracy"] == pytest.approx((tp + tn) / 60)
    assert found["sensitivity"] == pytest.approx(tp / (tp + fn))
    assert found["specificity"] == pytest.approx(tn / (tn + fp))
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    margin = (agent[:, 1] - agent[:, 0]).tolist()
    pairs = [
        (m > k) + 0.5 * (m == k)
        for m, t in zip(margin, true, strict=True)
        if t
        for k, u in zip(margin, true, strict=True)
        if not u
    ]
    assert found["auc"] == pytest.approx(sum(pairs) / len(pairs))
    p, q = teacher.double().softmax(1), agent.double().softmax(1)
    assert found["kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item())


def test_the_constant_predictor_is_the_best_one():
    teacher = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)) * 2
    found = alignment.measure_alignment(teacher, teacher)
    assert found["kl"] == pytest.approx(0, abs=1e-12) and found["auc"] == 1
    every = [
        alignment.divergence(teacher, torch.tensor([[1 - c, c]]).log().expand(50, 2)).mean()
        for c in torch.linspace(0.02, 0.98, 97)
    ]
    assert found["kl_constant"] <= min(every) + 1e-9
    assert found["kl_constant"] == pytest.approx(min(every).item(), abs=1e-4)


def test_alignment_with_one_class_and_bad_input():
    teacher = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    found = alignment.measure_alignment(teacher, teacher)
    assert math.isnan(found["auc"]) and math.isnan(found["sensitivity"])
    assert found["specificity"] == 1 and math.isnan(found["f1"])
    with pytest.raises(ValueError, match="agent, teacher: got"):
        alignment.measure_alignment(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="truth: got"):
        alignment.confusion(torch.zeros(2), torch.tensor([0, 2]))


# ---------------------------------------------------------------- manipulation


def test_manipulation_reads_the_scores_along_the_path():
    box, x = LinearBlackBox(), make_patients()
    target = targets(box, x)
    target[0] = 1 - target[0]  # already decided: no search
    cfs = make(limit=4.0, path_steps=4, path_by="amount")(box, x, target)
    found = manipulation.measure_manipulation(box, cfs)
    assert cfs.path_len[0] == 1 and found.moved[0].isnan() and found.scores[0].isnan().all()
    for i in range(1, len(x)):
        own = target_score(box(cfs.path[i, 1:]), target[i].expand(5))
        torch.testing.assert_close(found.scores[i], own.detach())
    assert (found.moved[1:] == 1).all() and (found.monotone[1:] == 1).all()
    assert torch.equal(found.reached[1:] == 1, cfs.reached[1:])
    summary = found.summary()
    assert summary["n"] == len(x) - 1
    assert summary["reached"] == cfs.reached[1:].double().mean().item()
    assert summary["final_score"] == pytest.approx(found.scores[1:, -1].mean().item())


def test_a_path_that_falls_is_not_monotone():
    class Wave(nn.Module):
        def forward(self, x):
            z = 2 * (8 * x.flatten(1).mean(1)).sin()
            return torch.stack([torch.zeros_like(z), z], 1)

    box, x = LinearBlackBox(), make_patients(2)
    cfs = make(path_steps=3)(box, x, targets(box, x))
    mean = torch.tensor([[0.0, 0.2, 0.1, 0.19], [0.0, 0.1, 0.15, 0.19]])
    path = mean[..., None, None, None].expand(-1, -1, *x.shape[1:]).double()
    fake = {"path": torch.cat([x[:, None], path], 1), "target": torch.ones(2, dtype=torch.int64)}
    found = manipulation.measure_manipulation(Wave(), dataclasses.replace(cfs, **fake))
    assert found.moved.tolist() == [1, 1] and found.monotone.tolist() == [0, 1]
    with pytest.raises(ValueError, match="cfs: got a result without path"):
        manipulation.measure_manipulation(
            Wave(), dataclasses.replace(cfs, path=None, path_len=None)
        )


def flood(plane):
    """Size of the largest part of a bool plane, eight neighbours, by flood fill."""
    open_pixels, best = {tuple(p) for p in plane.nonzero().tolist()}, 0
    while open_pixels:
        stack, size = [open_pixels.pop()], 0
        while stack:
            r, c = stack.pop()
            size += 1
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & open_pixels
            open_pixels -= near
            stack += near
        best = max(best, size)
    return best


def test_the_largest_visible_change_equals_a_flood_fill():
    difference = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    sd = torch.tensor([0.2, 0.4, 0.6, 0.8, 5.0])
    found = manipulation.largest_change(difference, sd)
    for i in range(5):
        changed = difference[i].abs() >= 2 * sd[i]
        assert found[i] == max(flood(plane) for plane in changed)
    assert found[4] == 0 and not manipulation.is_observable(difference, sd)[4]
    square = torch.zeros(2, 1, 8, 8)
    square[0, 0, :3, :3], square[1, 0, :2, :4] = -0.021, 0.021
    assert manipulation.is_observable(square, 0.01).tolist() == [True, False]  # 9 and 8 pixels
    with pytest.raises(ValueError, match="noise_sd: got 0"):
        manipulation.largest_change(square, 0.0)


# ---------------------------------------------------------------- voxels


def precision_recall(values, truth):
    """Average precision by its definition: sum over thresholds of (R_k - R_k-1) P_k."""
    total, recall = 0.0, 0.0
    for v in sorted(set(values), reverse=True):
        said = [t for m, t in zip(values, truth, strict=True) if m >= v]
        new = sum(said) / sum(truth)
        total, recall = total + (new - recall) * sum(said) / len(said), new
    return total


def test_average_precision_equals_its_definition_within_a_mask():
    maps = (rand(3, 2, 5, 5) * 6).round()  # with ties
    truth, within = rand(3, 2, 5, 5, seed=1) > 0.7, rand(3, 2, 5, 5, seed=2) > 0.3
    truth[2] = False
    found = voxels.auprc(maps, truth, within)
    for i in range(2):
        w = within[i].flatten()
        pair = (maps[i].flatten()[w].tolist(), truth[i].flatten()[w].tolist())
        assert found[i].item() == pytest.approx(precision_recall(*pair))
    assert found[2].isnan()
    constant = voxels.auprc(torch.ones(3, 2, 5, 5), truth)
    torch.testing.assert_close(constant[:2], truth[:2].flatten(1).double().mean(1))


def test_pointing_and_mass_by_hand():
    maps = torch.tensor([9.0, 5.0, 2.0, 2.0, 1.0, 0.0]).view(1, 1, 2, 3)
    truth = torch.tensor([True, False, True, False, False, False]).view(1, 1, 2, 3)
    assert voxels.pointing_hit(maps, truth).tolist() == [1]
    assert voxels.mass_at_equal_area(maps, truth).tolist() == [9 / 14]  # the largest two: 9 and 5
    wider = truth.clone()
    wider.view(-1)[4] = True  # three: 9, 5 and half of each 2
    assert voxels.mass_at_equal_area(maps, wider).tolist() == [10 / 16]
    tied = maps.clamp(max=5)
    assert voxels.pointing_hit(tied, truth).tolist() == [0.5]
    outside = torch.ones_like(truth)
    outside.view(-1)[0] = False  # the largest value does not count
    assert voxels.pointing_hit(maps, truth, outside).tolist() == [0]
    assert voxels.mass_at_equal_area(torch.zeros_like(maps), truth).tolist() == [0]


def test_perfect_and_reference_maps():
    truth = rand(6, 3, 16, 16) > 0.9
    found = voxels.compare_maps({"truth": truth.double(), "none": "no map"}, truth)
    assert list(found) == ["truth"]
    assert all((values == 1).all() for values in found["truth"].values())
    x, ids = rand(4, 3, 16, 16, seed=4), torch.arange(4)
    maps = voxels.reference_maps(x, ids, truth, seed=3)
    torch.testing.assert_close(maps["atlas"][2], truth.float().mean(0))
    again = voxels.reference_maps(x[2:3], ids[2:3], truth, seed=3)
    for name in maps:
        assert torch.equal(maps[name][2:3], again[name])
    step = torch.zeros(1, 3, 16, 16)
    step[..., 8:] = 1
    edges = voxels.reference_maps(step, ids[:1], truth)["edges"]
    assert (edges[0, :, :, 7:9] > 0.5).all() and (edges[..., :6] == 0).all()
    with pytest.raises(ValueError, match="masks: got shape"):
        voxels.reference_maps(x, ids, truth[:, :2])
    for bad, message in ((-x, "maps: got negative"), (x[:, :2], "truth: got torch.bool")):
        with pytest.raises(ValueError, match=message):
            voxels.auprc(bad, truth[:4])
    with pytest.raises(ValueError, match=r"within: got torch\.float32"):
        voxels.auprc(x, truth[:4], x)


# ---------------------------------------------------------------- attributions


def test_occlusion_of_a_linear_classifier_has_a_closed_form():
    box, x = LinearBlackBox(), make_patients(3).clamp(0, 1)
    target = torch.tensor([1, 0, 1])
    found = slice_attributions.occlusion(box, x, target, window=2, stride=2, baseline=0.25)
    part = (box.w.detach() * (x - 0.25)).unflatten(3, (2, 2)).unflatten(2, (2, 2))
    square = part.sum((3, 5))  # (B, S, 2, 2): fall of the log-odds per square
    expected = square.repeat_interleave(2, 2).repeat_interleave(2, 3)
    sign = torch.tensor([1.0, -1.0, 1.0]).double()[:, None, None, None]
    torch.testing.assert_close(found, sign * expected)
    images = torch.full_like(x, 0.25)
    again = slice_attributions.occlusion(box, x, target, window=2, stride=2, baseline=images)
    assert torch.equal(again, found)
    images[2] = x[2]  # an item that equals its baseline loses nothing
    again = slice_attributions.occlusion(box, x, target, window=2, stride=2, baseline=images)
    assert torch.equal(again[:2], found[:2]) and not again[2].any()
    with pytest.raises(ValueError, match=r"baseline: got shape \(2, "):
        slice_attributions.occlusion(box, x, target, baseline=images[:2])


def test_integrated_gradients_of_a_linear_classifier_start_at_the_baseline():
    box, x = LinearBlackBox(), make_patients(3).clamp(0, 1)
    target, start = torch.tensor([1, 0, 1]), slice_attributions.blur(x, 1)
    found = integrated_gradients(box, x, target, start, batch_size=2)
    sign = torch.tensor([1.0, -1.0, 1.0]).double()[:, None, None, None]
    torch.testing.assert_close(found, sign * box.w.detach() * (x - start))


def test_the_blurred_patient_is_a_gaussian_mean_of_each_slice():
    x = torch.zeros(1, 2, 21, 21, dtype=torch.float64)
    x[0, 0, 10, 10] = 1
    at = torch.arange(21) - 10
    weight = torch.exp(-at.double().square() / 8) * (at.abs() <= 6)
    weight = weight / weight.sum()
    found = slice_attributions.blur(x, 2)
    torch.testing.assert_close(found[0, 0], weight[:, None] * weight)
    assert not found[0, 1].any()


def test_grad_cam_plus_plus_equals_its_equations():
    """Eqs. of Chattopadhay et al.: alpha = g^2 / (2 g^2 + sum A g^3), w = sum alpha relu(g)."""
    f = Pooled(classes=3).double()
    x = torch.rand(4, 3, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 2, 1])
    a = f.act(f.conv(x)).detach().requires_grad_(True)
    logits = f.head(a.mean((2, 3)))
    others = logits.scatter(1, target[:, None], -torch.inf).amax(1)
    margin = logits.gather(1, target[:, None])[:, 0] - others
    (g,) = torch.autograd.grad(margin.sum(), a)
    alpha = g**2 / (2 * g**2 + (a * g**3).sum((2, 3), keepdim=True))
    weight = (alpha * g.clamp(min=0)).sum((2, 3), keepdim=True)
    expected = (weight * a).sum(1).clamp(min=0).detach()
    found = slice_attributions.grad_cam_plus_plus(f, f.act, x, target)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    assert (found > 0).any() and not f.act._forward_hooks


def test_maps_of_a_teacher_have_one_plane_per_slice_and_need_no_batch():
    teacher = Teacher(growth=4, blocks=(1, 2), first=8).double().eval()
    x = rand(3, 4, 32, 32).double()
    target, settings = torch.tensor([1, 0, 1]), {"window": 16, "stride": 16}
    maps = slice_attributions.attribution_maps(teacher, teacher.layer, x, target, **settings)
    assert list(maps) == [
        "saliency", "integrated gradients", "occlusion", "Grad-CAM", "Grad-CAM++",
    ]  # fmt: skip
    base = slice_attributions.blur(x)
    own = slice_attributions.occlusion(teacher, x, target, baseline=base, **settings)
    assert torch.equal(maps["occlusion"], own.abs())
    own = integrated_gradients(teacher, x, target, base)
    torch.testing.assert_close(maps["integrated gradients"], own.abs())
    rows = torch.tensor([2, 0])
    part = slice_attributions.attribution_maps(
        teacher, teacher.layer, x[rows], target[rows], **settings
    )
    for name, values in maps.items():
        assert values.shape == x.shape and (values >= 0).all(), name
        torch.testing.assert_close(values[rows], part[name], atol=1e-9, rtol=1e-6)
        same = (values == values[:, :1]).all()
        assert bool(same) == name.startswith("Grad-CAM"), name
    modes = {m.training for m in teacher.modules()}
    assert modes == {False} and all(p.requires_grad for p in teacher.parameters())
    assert not teacher.layer._forward_hooks


# ---------------------------------------------------------------- rows A to D


class WithNoise(LinearSlices):
    """alpha_T = 0.64: x_T = 0.8 x + 0.6 noise."""

    def invert(self, x, q, steps, iterations):
        return super().invert(x, q, steps)

    def add_noise(self, x, noise):
        return 0.8 * x + 0.6 * noise


def test_the_four_rows_have_closed_forms():
    model, x, ids = WithNoise(), make_patients(5), torch.arange(5) + 10
    rows = reconstructions.reconstruct_patients(model, x, ids, seed=1, draws=3)
    planes = x.flatten(2)
    basis = model.basis.detach()
    inside = (planes - 0.5) @ basis @ basis.T  # what q holds
    rest = planes - 0.5 - inside  # what x_T holds
    assert {k: len(v) for k, v in rows.items()} == {"a": 1, "b": 1, "c": 3, "d": 1}
    torch.testing.assert_close(rows["a"][0], x, atol=1e-12, rtol=0)
    other = (inside.roll(-1, 0) + rest + 0.5).view_as(x)
    torch.testing.assert_close(rows["d"][0], other, atol=1e-12, rtol=0)
    noise = (rows["c"] - (inside + 0.5).view_as(x)).flatten(1)
    assert abs(noise.mean()) < 0.2 and 0.8 < noise.std() < 1.2
    assert not torch.allclose(noise[0], noise[1])
    printed = (rows["b"][0].flatten(2) - inside - 0.5 - 0.8 * planes) / 0.6
    assert abs(printed.mean()) < 0.2 and 0.8 < printed.std() < 1.2
    pair = reconstructions.reconstruct_patients(model, x[[3, 1]], ids[[3, 1]], seed=1, draws=3)
    for name in "abc":  # noise per (seed, id): independent of the batch
        torch.testing.assert_close(pair[name], rows[name][:, [3, 1]], atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="expected at least 2 patients"):
        reconstructions.reconstruct_patients(model, x[:1], ids[:1])


def test_rows_are_measured_per_draw():
    box, x = LinearBlackBox(), make_patients(4).repeat(1, 1, 3, 3)

    class Mean(nn.Module):
        def forward(self, x):
            return box(x[..., :4, :4])

    y = torch.stack([x + 0.1, x + 0.01])
    found = reconstructions.measure_rows(Mean(), x, {"a": y[:1], "c": y}, x > 0.4)
    assert found["a"]["psnr"] == pytest.approx(20) and found["c"]["psnr"] == pytest.approx(30)
    assert found["c"]["draws"] == 2 and found["c"]["psnr_body"] == pytest.approx(30)
    one = reconstruction.measure_reconstruction(x, y[0], Mean()(x), Mean()(y[0]), x > 0.4)
    assert found["a"]["kl"] == pytest.approx(one["kl"]) and found["a"]["ssim"] == one["ssim"]
