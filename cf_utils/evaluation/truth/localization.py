"""Localisation: whether a map of change or saliency lies where a true counterfactual differs.

Maps are (B, H, W), regions (B, 1, H, W) or (M, 1, H, W) bool. The metrics return one value per
item, NaN where undefined; report the mean with n.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from scipy.stats import rankdata
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.evaluation.truth.true_counterfactuals import TrueSet
from cf_utils.models.classifiers import predict
from cf_utils.worlds import Factors


def member_regions(members: TrueSet, factors: Factors) -> Tensor:
    """Pixels where each member truly differs from its query. (M, 1, H, W) bool.

    The noise-free change of some channel must exceed 2 standard deviations of the camera's noise.
    `factors`: those of the B items.
    """
    size, world = (members.image.shape[2], members.image.shape[3]), factors.world
    parts = [members.image[:0, :1] > 0]
    if not len(members):
        return parts[0]
    items = members.item.unique()
    clean = world.render(factors.take(items), size, noise=False)
    table, query_of = members.member_factors(factors), torch.searchsorted(items, members.item)
    for at in torch.arange(len(members)).split(500):
        rows = table.take(at)
        change = world.render(rows, size, noise=False) - clean[query_of[at]]
        least = 2 * world.noise_sd(rows)[:, None, None, None]
        region = change.abs().amax(1, keepdim=True) > least
        parts.append(region.to(members.image.device))
    return torch.cat(parts)


def true_region(members: TrueSet, regions: Tensor) -> Tensor:
    """Union of the regions of an item's members. (B, 1, H, W) bool, empty without a member.

    It does not depend on the explanation, so the maps of several methods share one region.
    """
    out = torch.zeros(members.n, *regions.shape[1:], dtype=torch.int64)
    at = members.item[:, None, None, None].expand(regions.shape)
    return out.scatter_reduce(0, at, regions.cpu().long(), "amax").bool()


def decisive_regions(
    members: TrueSet, regions: Tensor, query: Tensor, target: Tensor, classifier: nn.Module
) -> Tensor:
    """The parts of each member's region that suffice to flip this classifier.

    Connected parts (eight neighbours) are pasted from the member into the query, those with the
    highest target probability first, until the classifier decides for the target. A moved object
    disappears in one place and appears in another; a classifier may need only one of them.

    Args: query (B, C, H, W); target (B,) int64. Returns: (M, 1, H, W) bool, the whole region where
    even all parts together do not flip the decision.
    """
    out = regions.clone()
    rows = zip(query[members.item], members.image, target[members.item], strict=True)
    for m, (x, image, t) in enumerate(rows):
        label, n = ndimage.label(regions[m, 0].cpu().numpy(), structure=np.ones((3, 3)))
        if n < 2:
            continue
        numbers = torch.arange(1, n + 1, device=x.device)[:, None, None, None]
        parts = torch.from_numpy(label).to(x.device)[None, None] == numbers  # (n, 1, H, W)

        def score(pasted: Tensor, x=x, image=image, t=t) -> Tensor:
            return predict(classifier, torch.where(pasted, image, x)).double().softmax(1)[:, t]

        order = score(parts).argsort(descending=True)
        unions = parts[order].cumsum(0) > 0  # the first part, the first two, ...
        enough = (score(unions) > 0.5).nonzero().flatten()
        out[m] = unions[enough[0] if len(enough) else n - 1].to(out.device)
    return out


def change_map(cfs: Counterfactuals) -> Tensor:
    """|counterfactual - query| summed over channels. (B, H, W) >= 0."""
    return (cfs.counterfactual - cfs.query).abs().sum(1)


def area(region: Tensor) -> Tensor:
    """Share of pixels inside a region, the `share_inside` of a uniform map. (B,), NaN if empty."""
    share = region.flatten(1).double().mean(1)
    return torch.where(share > 0, share, torch.nan)


def share_inside(maps: Tensor, region: Tensor) -> Tensor:
    """Share of a map's sum that lies inside the region. [0, 1], higher is better.

    `area` is the value of a uniform map, the chance level.

    Args: maps (B, H, W) >= 0; region (B, 1, H, W). Returns: (B,), NaN if map or region is empty.
    """
    values, inside = maps.flatten(1).double(), region.flatten(1).to(maps.device)
    if (values < 0).any():
        raise ValueError(
            "maps: got negative values, expected amounts; take the absolute value of a signed map"
        )
    total = values.sum(1)
    share = (values * inside).sum(1) / total
    return torch.where((total > 0) & inside.any(1), share, torch.nan)


def pixel_auroc(maps: Tensor, region: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Probability that a pixel inside the region has a higher value than one outside.

    Area under the ROC curve, ties count half. [0, 1], higher is better, 0.5 is chance.

    Args:
        maps: (B, H, W), finite, of any sign.
        region: (B, 1, H, W) bool.
        ignore: (B, 1, H, W) bool; its pixels outside `region` count on neither side.

    Returns: (B,), NaN where the region is empty or covers everything.
    """
    inside = region.flatten(1).cpu()
    ignored = torch.zeros_like(inside) if ignore is None else ignore.flatten(1).cpu() & ~inside
    values = maps.flatten(1).double().cpu().masked_fill(ignored, -torch.inf)
    # ignored pixels have the lowest ranks
    rank = torch.from_numpy(rankdata(values.numpy(), axis=1)) - ignored.sum(1, keepdim=True)
    n_inside, n_outside = inside.sum(1).double(), (~inside & ~ignored).sum(1).double()
    pairs_won = (rank * inside).sum(1) - n_inside * (n_inside + 1) / 2
    score = pairs_won / (n_inside * n_outside)
    return torch.where((n_inside > 0) & (n_outside > 0), score, torch.nan)
